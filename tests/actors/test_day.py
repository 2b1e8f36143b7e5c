"""A day in small: 2,000 short jobs on three models, of which two fit, and all that can go wrong.

Priorities, cancels, unloads, pins, jobs that never fit and loads that fail come by chance, from a
seed. What happened is judged by the log alone; see `audit`.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import wiredactors as wa
from tests.actors.audit import Audit
from wiredactors.memory.events import WiredMemoryEvent
from wiredactors.testing import ModelledEngine, ModelledModel, RecordingBackend

M = wa.MIB
JOBS = 2000
CEILING = 300 * M
SWITCHES_PER_MINUTE = 8
TURN_SECONDS = 5.0
LOAD_SECONDS = 2.0
UNLOAD_SECONDS = 0.5
STEP_SECONDS = 0.05
TOKENS_PER_SECOND = 4000.0
MOST_TOKENS = 12
KEEP_ALIVE = {"a": None, "b": None, "c": 6.0}

_COMMON = ModelledModel(
    kv_bytes_per_token=40 * wa.KIB,
    load_seconds=LOAD_SECONDS,
    unload_seconds=UNLOAD_SECONDS,
    prefill_tokens_per_second=TOKENS_PER_SECOND,
    step_seconds=STEP_SECONDS,
)
#: All three with their workspace take 332 MiB, the two largest 250.
SOURCES = {
    "a": attrs.evolve(_COMMON, weight_bytes=100 * M, workspace_bytes=10 * M),
    "b": attrs.evolve(_COMMON, weight_bytes=120 * M, workspace_bytes=30 * M),
    "c": attrs.evolve(_COMMON, weight_bytes=80 * M, workspace_bytes=10 * M, margin_bytes=2 * M),
}


class BadDisk(Exception):
    """What a load fails of."""


@attrs.frozen
class Asked:
    """A job, and what is to become of it."""

    job: wa.Job
    model: str
    prompt: str
    max_tokens: int
    priority: int


@attrs.define
class Call:
    """Somebody's call about a model, from when to when."""

    what: str
    model: str
    began: float
    ended: float = float("inf")


class Day:
    """The world in which it happens."""

    def __init__(self, seed: int, jobs: int = JOBS):
        self.random = random.Random(seed)
        self.count = jobs
        sources = {
            name: attrs.evolve(
                source,
                load_errors=tuple(
                    BadDisk(f"load {number} of {name}") if self.random.random() < 0.15 else None
                    for number in range(500)
                ),
            )
            for name, source in SOURCES.items()
        }
        self.engine = ModelledEngine(sources)
        self.backend = RecordingBackend()
        self.log: list[WiredMemoryEvent] = []
        self.calls: list[Call] = []
        self.asked: list[Asked] = []
        self.errors: dict[str, Exception] = {}
        self.cancelled: set[str] = set()
        self.waits_of_callers: list[float] = []
        self.audit = Audit(
            ceiling=CEILING,
            switches_per_minute=SWITCHES_PER_MINUTE,
            turn_seconds=TURN_SECONDS,
            keep_alive=KEEP_ALIVE,
            was_called=self.was_called,
        )

    def was_called(self, what: str, model: str, when: float) -> bool:
        return any(
            call.what == what and call.model == model and call.began <= when <= call.ended
            for call in self.calls
        )

    @contextlib.contextmanager
    def calling(self, what: str, model: str) -> Iterator[None]:
        call = Call(what, model, trio.current_time())
        self.calls.append(call)
        try:
            yield
        finally:
            call.ended = trio.current_time()

    # -- the day

    async def run(self) -> None:
        configuration = wa.WiredMemoryConfiguration(
            admission_ceiling=CEILING,
            switches_per_minute=SWITCHES_PER_MINUTE,
            turn_seconds=TURN_SECONDS,
        )
        async with (
            trio.open_nursery() as readers,  # who read to the end, when all is closed
            wa.open_runtime(
                configuration=configuration, backend=self.backend, engine=self.engine
            ) as runtime,
        ):
            await readers.start(self._read, runtime)
            for name in SOURCES:
                runtime.add(name, keep_alive=KEEP_ALIVE[name])
            await self._live(runtime)
            await self._empty(runtime)
        self.audit.read_all(self.log)
        self.audit.close()

    async def _read(
        self, runtime: wa.Runtime, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with runtime.manager.events() as events:
            task_status.started()
            async for event in events:
                self.log.append(event)

    async def _live(self, runtime: wa.Runtime) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._meddle, runtime, nursery.cancel_scope)
            async with trio.open_nursery() as workers:
                await self._ask(runtime, workers)
            nursery.cancel_scope.cancel()

    async def _ask(self, runtime: wa.Runtime, workers: trio.Nursery) -> None:
        """Jobs come, now of these models and now of those, with quiet times between."""
        chance = self.random
        while len(self.asked) < self.count:
            weights = [chance.random() ** 3 + 0.01 for _ in SOURCES]
            gap = chance.choice([0.05, 0.2, 0.4])
            for _ in range(chance.randrange(10, 60)):
                [name] = chance.choices(list(SOURCES), weights)
                self._ask_once(runtime.models[name], workers)
                await trio.sleep(chance.expovariate(1 / gap))
            if chance.random() < 0.3:
                await trio.sleep(chance.uniform(5, 20))

    def _ask_once(self, model: wa.Model, workers: trio.Nursery) -> None:
        chance = self.random
        prompt = chance.choice("xyz") * chance.choice([30, 30, 100, 300])
        if chance.random() < 0.02:
            prompt = "l" * chance.choice([2500, 3500])
        if len(self.asked) % 500 == 250:
            prompt = "t" * 4000  # too long for b and its workspace, at any time
        tokens, priority = chance.choice([2, 4, MOST_TOKENS]), chance.choice([0, 0, 1, 2])
        job = model.start_generation(prompt, max_tokens=tokens, priority=priority)
        self.asked.append(Asked(job, model.name, prompt, tokens, priority))
        workers.start_soon(self._follow, job)
        if chance.random() < 0.12:
            workers.start_soon(self._cancel, job, chance.choice([0, 0.3, 2, 8]) * chance.random())

    async def _follow(self, job: wa.Job) -> None:
        try:
            await job.wait()
        except Exception as error:
            self.errors[job.id] = error

    async def _cancel(self, job: wa.Job, after: float) -> None:
        await trio.sleep(after)
        self.cancelled.add(job.id)
        job.cancel()

    async def _meddle(self, runtime: wa.Runtime, scope: trio.CancelScope) -> None:
        """Somebody unloads, loads ahead, gives up loading, and pins."""
        chance = self.random
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(chance.expovariate(1 / 8))
                model = runtime.models[chance.choice(list(SOURCES))]
                what = chance.choice([self._unload, self._load, self._load, self._pin])
                nursery.start_soon(what, runtime, model)

    async def _unload(self, runtime: wa.Runtime, model: wa.Model) -> None:
        with self.calling("unload", model.name), contextlib.suppress(wa.ModelNotLoaded):
            await runtime.unload(model.name)

    async def _load(self, runtime: wa.Runtime, model: wa.Model) -> None:
        began = trio.current_time()
        with (
            self.calling("load", model.name),
            contextlib.suppress(BadDisk, wa.TicketTooLarge),
            trio.move_on_after(self.random.choice([0.5, 3, 1000])),
        ):
            await model.load()
        self.waits_of_callers.append(trio.current_time() - began)

    async def _pin(self, runtime: wa.Runtime, model: wa.Model) -> None:
        if any(other.pinned for other in runtime.models.values()):
            return
        model.pin()
        await trio.sleep(self.random.uniform(0, 10))
        model.unpin()

    async def _empty(self, runtime: wa.Runtime) -> None:
        for name in SOURCES:
            runtime.models[name].unpin()
            await self._unload(runtime, runtime.models[name])
        snapshot = runtime.manager.snapshot()
        assert snapshot.tickets == snapshot.waiters == ()
        assert self.engine.held_bytes == 0
        assert runtime.manager.granted_bytes == 0

    # -- what is left of it

    def text_of(self, asked: Asked) -> str:
        """What it would be alone."""
        return SOURCES[asked.model].answer(asked.prompt, asked.max_tokens)

    def alike(self) -> list[list[Asked]]:
        """Those that differ in nothing but the moment of their call, and have their text."""
        groups: dict[tuple[Any, ...], list[Asked]] = {}
        for asked in self.asked:
            assert asked.job.result is not None
            if asked.job.result.finish_reason == "length":
                key = (asked.model, asked.priority, len(asked.prompt), asked.max_tokens)
                groups.setdefault(key, []).append(asked)
        return list(groups.values())

    @property
    def longest_job(self) -> float:
        """From its memory until it has given it back."""
        admitted = {e.job: e.timestamp for e in self.log if e.kind == "job_admitted"}
        ends = ("job_finished", "job_cancelled", "job_failed")
        return max(
            event.timestamp - admitted[event.job]
            for event in self.log
            if event.kind in ends and event.job in admitted
        )

    def longest(self, begin: str, *ends: str) -> float:
        """The longest that any model took from one event of its life to the next."""
        began: dict[str | None, float] = {}
        longest = 0.0
        for event in self.log:
            if event.kind == begin:
                began[event.model] = event.timestamp
            elif event.kind in ends and event.model in began:
                longest = max(longest, event.timestamp - began.pop(event.model))
        return longest

    @property
    def longest_wait_of_weights(self) -> float:
        """What the configuration promises to a model that waits for its memory.

        Those that come later and have more priority pass it, until it has aged by as much: two
        steps. From then on it is the first, and its turn has come: then it waits for the next
        switch that is allowed, for those in its place to be loaded and to have their turn, and for
        what runs on those that go to end, one after the other if there are two.
        """
        aged = 2 * self.audit.aging_seconds
        turn = max(60 / SWITCHES_PER_MINUTE, self.longest_load + TURN_SECONDS)
        return aged + turn + 2 * (self.longest_job + UNLOAD_SECONDS)

    @property
    def longest_load(self) -> float:
        return self.longest("model_loading", "model_ready", "model_failed")

    @property
    def longest_wait(self) -> float:
        """And to a request, from its call to its memory.

        It may come just as its model goes. Then the weights wait, and are loaded; one device loads
        one model at a time. Then the job waits beside others of the model: after
        `overtake_seconds` room is kept for it, and it is there when the longest job has ended.
        """
        goes = self.longest_job + UNLOAD_SECONDS
        overtaken = wa.WiredMemoryConfiguration().overtake_seconds
        return (
            goes + self.longest_wait_of_weights + self.longest_load + overtaken + self.longest_job
        )


@pytest.mark.parametrize("seed", range(4))
async def test_a_day_of_2000_jobs_on_three_models_of_which_two_fit(
    seed: int, shuffle: Callable[[int], None], autojump_clock: MockClock
) -> None:
    shuffle(seed)
    day = Day(seed)
    with trio.fail_after(20_000):
        await day.run()
    audit = day.audit
    assert audit.objections == []

    # Memory is back, and at no moment was there more than the tickets said.
    assert day.engine.held_bytes == 0
    assert day.backend.limit == 0
    assert all(r.held_bytes <= r.granted_bytes <= CEILING for r in day.engine.records)
    assert all(r.charged_bytes <= r.granted_bytes for r in day.engine.records)

    # Every job has ended: with its text, cancelled, or refused.
    assert len(day.asked) >= JOBS
    ends: Counter[str] = Counter()
    for asked in day.asked:
        result, whole = asked.job.result, day.text_of(asked)
        assert result is not None
        ends[result.finish_reason] += 1
        match result.finish_reason:
            case "length":
                assert result.text == whole
            case "cancelled":
                assert asked.job.id in day.cancelled
                assert whole.startswith(result.text)
            case "error":
                error = day.errors[asked.job.id]
                assert isinstance(error, (BadDisk, wa.TicketTooLarge))
                if isinstance(error, wa.TicketTooLarge):
                    assert error.need > error.largest_possible
                assert result.text == ""

    # Where nothing else decides between two (not their model, nor their priority, nor how long
    # their prompts and answers are), they have their memory in the order of their calls. Those
    # that have it at the same moment reach the engine in any order; of all others the one that was
    # called first also has its first token first.
    for alike in day.alike():
        started = [audit.started[asked.job.id] for asked in alike]
        assert started == sorted(started)
        firsts = [audit.first_tokens[asked.job.id] for asked in alike]
        for (one, other), moments in zip(pairwise(firsts), pairwise(started), strict=True):
            assert one <= other or moments[0][0] == moments[1][0]

    # Nobody waits longer than the configuration promises.
    assert max(audit.waits.values()) <= day.longest_wait
    assert day.longest("model_queued", "model_loading", "model_failed") <= (
        day.longest_wait_of_weights
    )
    assert max(day.waits_of_callers) <= day.longest_wait

    # And all that can happen did.
    reasons = Counter(e.details["reason"] for e in day.log if e.kind == "model_draining")
    assert reasons["pressure"] >= 30
    assert reasons["unload"] >= 3
    assert reasons["keep_alive"] >= 1
    assert audit.drains >= 10
    assert ends["length"] >= JOBS / 2
    assert ends["cancelled"] >= 100
    refused = Counter(type(error) for error in day.errors.values())
    assert min(refused[BadDisk], refused[wa.TicketTooLarge]) >= 1
