"""What has gone wrong in other systems that load and unload models, each as a test of ours.

Weights are 100 MiB and 10 of workspace are shared. A load takes 4 s and an unload 1, a row of up to
256 tokens holds 10 MiB, reads 100 prompt tokens a second and takes a second a token. What happened
is judged by the log, too: see `audit`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import wiredactors as wa
from tests.actors.audit import Audit
from wiredactors.memory.events import WiredMemoryEvent
from wiredactors.testing import ModelledEngine, ModelledModel, RecordingBackend

M = wa.MIB
LOAD, UNLOAD = 4.0, 1.0
MODEL = ModelledModel(
    weight_bytes=100 * M,
    workspace_bytes=10 * M,
    kv_bytes_per_token=40 * wa.KIB,
    load_seconds=LOAD,
    unload_seconds=UNLOAD,
    prefill_tokens_per_second=100,
    step_seconds=1,
)
PROMPT = "x" * 100  # read in a second

ONE = 170 * M  # a model and six rows
TWO = 250 * M  # two and four


@pytest.fixture(autouse=True)
def same_order(shuffle: Callable[[int], None]) -> None:
    """Of tasks that are ready at once trio picks the same each time."""
    shuffle(0)


class BadDisk(Exception):
    """What a load, or an unload, fails of."""


class House:
    """A runtime with the models a, b and c, and all that a test looks at."""

    def __init__(self, ceiling: int, *, a: Any = (), b: Any = (), c: Any = (), **more: Any):
        """`a`, `b` and `c` change the model; the rest is of the configuration."""
        changes = {"a": a, "b": b, "c": c}
        self.engine = ModelledEngine(
            {name: attrs.evolve(MODEL, **dict(change)) for name, change in changes.items()}
        )
        self.backend = RecordingBackend()
        self.configuration = wa.WiredMemoryConfiguration(
            admission_ceiling=ceiling, event_buffer=1_000_000, **more
        )
        self.log: list[WiredMemoryEvent] = []
        self.audit = Audit(
            ceiling=ceiling,
            switches_per_minute=self.configuration.switches_per_minute,
            turn_seconds=self.configuration.turn_seconds,
            was_called=lambda what, model, when: True,
        )

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[wa.Runtime]:
        async with wa.open_runtime(
            configuration=self.configuration, backend=self.backend, engine=self.engine
        ) as runtime:
            self.runtime = runtime
            async with runtime.manager.events() as self._stream:
                for name in ("a", "b", "c"):
                    runtime.add(name)
                yield runtime
                for name in list(runtime.models):
                    await runtime.remove(name)
                assert self.tickets == self.waiters == {}
                assert self.engine.held_bytes == self.engine.leftover_bytes
                self.events()
        assert self.backend.limit == 0
        assert all(r.charged_bytes <= r.granted_bytes for r in self.engine.records)
        self.audit.close()
        assert self.audit.objections == []

    def events(self, *kinds: str) -> list[WiredMemoryEvent]:
        """All that have come so far, of these kinds."""
        while True:
            try:
                event = self._stream.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                break
            self.log.append(event)
            self.audit.read(event)
        return [event for event in self.log if event.kind in kinds]

    def evictions(self) -> list[str | None]:
        return [event.ticket_id for event in self.events("reclaim_requested")]

    def loads(self, model: str) -> int:
        return sum(event.model == model for event in self.events("model_loading"))

    @property
    def tickets(self) -> dict[str, int]:
        tickets = self.runtime.manager.snapshot().tickets
        return {ticket.ticket_id: ticket.size // M for ticket in tickets}

    @property
    def waiters(self) -> dict[str, int]:
        waiters = self.runtime.manager.snapshot().waiters
        return {waiter.ticket_id: waiter.size // M for waiter in waiters}

    def start(self, model: str, tokens: int = 3, prompt: str = PROMPT, **more: Any) -> wa.Job:
        return self.runtime.models[model].start_generation(prompt, max_tokens=tokens, **more)

    async def keep_busy(self, model: str, tokens: int = 3, priority: int = 0) -> None:
        """One job after the other."""
        while True:
            await whole(self.start(model, tokens, priority=priority))


async def whole(job: wa.Job) -> float:
    """Wait for a job's whole answer; how long it waited."""
    result = await job.wait()
    assert result.finish_reason == "length"
    assert result.text == MODEL.answer(job.request.prompt, job.request.max_tokens)
    return result.waited


async def until(house: House, holds: Callable[[], bool]) -> None:
    """Wait for the first event after which it holds."""
    async with house.runtime.manager.events() as events:
        async for _ in events:  # the first one tells how things stand
            if holds():
                return
    pytest.fail("it never held")


def moments(end: float) -> list[float]:
    """From 0 to `end`, four a second: between all that happens, and just when it does."""
    return [number / 4 for number in range(int(4 * end) + 1)]


# -- eviction loop for a model that can never fit: ollama#18282


@pytest.mark.parametrize("pinned", [False, True])
async def test_ollama_18282_what_can_never_fit_is_refused_and_evicts_nobody(
    pinned: bool, autojump_clock: MockClock
) -> None:
    """Too large by itself, or beside what is pinned: asked for again and again it evicts nobody."""
    size = 200 * M if pinned else 1000 * M
    house = House(300 * M, c={"weight_bytes": size}, b={"weight_bytes": 50 * M})
    async with house.opened() as runtime:
        for name in ("a", "b"):
            await runtime.models[name].load()
        if pinned:
            runtime.models["a"].pin()
        for _ in range(20):
            with pytest.raises(wa.TicketTooLarge):
                await house.start("c").wait()
        assert house.evictions() == []
        assert house.loads("c") == 0
        assert runtime.models["a"].state == runtime.models["b"].state == "ready"
        # Nor is it tried at once each time: the back-off bounds that.
        assert trio.current_time() > 19
        if pinned:
            runtime.models["a"].unpin()
            await whole(house.start("c"))


# -- head-of-line blocking by a model that waits for memory: ollama#14578


async def test_ollama_14578_jobs_of_a_loaded_model_go_on_while_another_waits_for_memory(
    autojump_clock: MockClock,
) -> None:
    house = House(TWO, c={"weight_bytes": 140 * M})
    async with house.opened() as runtime:
        for name in ("a", "b"):
            await runtime.models[name].load()
        busy = [house.start(name, 120) for name in ("a", "b")]  # none is idle for a moment
        await trio.sleep(10)
        waiting = house.start("c")
        turn = trio.current_time() + house.configuration.turn_seconds
        while trio.current_time() < turn - 5:
            assert await whole(house.start("a", 1)) == 0
            assert await whole(house.start("b", 1)) == 0
        assert list(house.waiters) == ["weights/c"]
        # And then comes the turn of the one that waits.
        await trio.sleep_until(turn + 0.5)
        assert house.evictions() == ["weights/a"]
        for job in (*busy, waiting):
            await whole(job)


# -- permanent unload-pending: omlx#3363


@pytest.mark.parametrize("meanwhile", ["requests", "cancel", "failure", "nobody_waits", "error"])
async def test_omlx_3363_an_unload_ends_whatever_comes_meanwhile(
    meanwhile: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the jobs that run, and the next request loads the model again."""
    house = House(ONE)

    async def fail(name: str) -> int:
        raise BadDisk("it stays")

    async with house.opened() as runtime, trio.open_nursery() as nursery:
        model = runtime.models["a"]
        job = house.start("a", 10)  # until 4 + 1 + 10
        await trio.sleep(6)
        later = []
        with monkeypatch.context() as patch, trio.fail_after(11):
            if meanwhile == "error":
                patch.setattr(house.engine, "unload", fail)
            if meanwhile == "nobody_waits":
                with trio.move_on_after(1):
                    await runtime.unload("a")
            else:
                nursery.start_soon(_unload, runtime, meanwhile == "error")
            await wait_all_tasks_blocked()
            assert model.state == "draining"
            if meanwhile == "failure":
                house.engine.fail_row(job.id, after_tokens=4)
            if meanwhile == "cancel":
                job.cancel()
            if meanwhile == "requests":
                for _ in range(5):
                    later.append(house.start("a"))
                    await trio.sleep(1)
            await until(house, lambda: model.state not in ("draining", "unloading"))
        assert model.state in ("absent", "failed", "queued", "loading")
        if meanwhile == "error":
            # The engine has kept what the ledger gave back, so the records say so.
            house.engine.records.clear()
            house.engine._models.clear()
        for each in [*later, house.start("a")]:
            with trio.fail_after(60):
                await whole(each)
        if meanwhile == "failure":
            with pytest.raises(wa.GenerationError):
                await job.wait()
    assert house.audit.lives["a"].loads == 2


async def _unload(runtime: wa.Runtime, fails: bool) -> None:
    if fails:
        with pytest.raises(BadDisk):
            await runtime.unload("a")
    else:
        await runtime.unload("a")


# -- leaked active count: omlx#1595


@pytest.mark.parametrize("way", ["cancel", "leave", "scope", "fail"])
async def test_omlx_1595_a_job_that_ends_at_any_moment_leaves_its_model_idle(
    way: str, autojump_clock: MockClock
) -> None:
    """Another model that needs the room has it at once, and need not wait its turn.

    From its call the job waits in the line until 4, is read until 5 and answers until 8.
    """
    for moment in moments(8.5):
        house = House(ONE)
        async with house.opened() as runtime:
            start = trio.current_time()
            with trio.move_on_at(start + moment if way == "scope" else float("inf")):
                async with runtime.models["a"].generate(PROMPT, max_tokens=3) as job:
                    if way == "fail":
                        house.engine.fail_row(job.id, after_tokens=int(moment) % 3)
                    await trio.sleep_until(start + moment)
                    if way == "cancel":
                        job.cancel()
                    if way == "scope":
                        await trio.sleep_forever()
                    if way == "fail":
                        with pytest.raises(wa.GenerationError):
                            await job.wait()
            assert job.result is not None
            await wait_all_tasks_blocked()
            began = trio.current_time()
            assert runtime.models["a"].jobs == ()
            with trio.fail_after(100):
                await runtime.models["b"].load()
            # Amid a load the device is taken for a part of it.
            assert trio.current_time() - began <= LOAD / 4 + UNLOAD + LOAD, moment
            assert runtime.models["a"].state == "absent"
            if moment < 4 and way != "fail":
                assert house.loads("a") <= 1
                assert house.evictions() == []


# -- wedge when a request arrives during a load: omlx#2701


@pytest.mark.parametrize("fate", ["succeeds", "fails", "first_cancelled", "cancelled_then_fails"])
async def test_omlx_2701_a_request_that_comes_at_any_moment_of_a_load_ends(
    fate: str, autojump_clock: MockClock
) -> None:
    """The load may fail under it, or its first requester may go away at that moment."""
    fails = fate in ("fails", "cancelled_then_fails")
    for moment in moments(LOAD + 1):
        house = House(ONE, a={"load_errors": (BadDisk("once"),) if fails else ()})
        async with house.opened() as runtime:
            first = house.start("a", 1)
            await trio.sleep(moment)
            goes = fate in ("first_cancelled", "cancelled_then_fails")
            if goes and int(moment * 4) % 2:
                first.cancel()  # before the other comes: nobody wants it for a moment
            second = house.start("a")
            caller = await _load_in(runtime.models["a"])
            if goes:
                first.cancel()
            with trio.fail_after(3 * LOAD + 10):
                failed = await _ends(second)
            assert caller, "and so does whoever waits for the model itself"
            if not fails:
                assert not failed, moment
            if not (fails or goes):
                await whole(first)
            with trio.fail_after(30):  # whatever that was, the next one is served
                await whole(house.start("a"))


async def _load_in(model: wa.Model) -> bool:
    """Whether somebody who loads it, and gives up after a while, comes to an end."""
    with trio.move_on_after(0.1), contextlib.suppress(BadDisk):
        await model.load()
    return True


async def _ends(job: wa.Job) -> bool:
    """Whether the load failed under it; else it has its whole answer."""
    try:
        await whole(job)
    except BadDisk:
        return True
    return False


# -- eviction of a model in use: LM Studio#1796


async def test_lm_studio_1796_a_model_in_use_does_not_go_before_its_jobs_have_ended(
    autojump_clock: MockClock,
) -> None:
    """Whenever another is asked for, and though its turn comes meanwhile."""
    for moment in moments(6):
        house = House(ONE, turn_seconds=2.0)
        async with house.opened() as runtime, trio.open_nursery() as nursery:
            await runtime.models["a"].load()
            job = house.start("a", 5)
            nursery.start_soon(_measure, runtime.models["a"], moment)
            await trio.sleep(moment)
            other = house.start("b")
            await whole(job)
            await whole(other)
        unloads = [r.time for r in house.engine.records if (r.what, r.model) == ("unload", "a")]
        ends = [r.time for r in house.engine.records if (r.what, r.model) == ("let_go", "a")]
        assert len(unloads) == 1
        assert unloads[0] >= ends[0] + UNLOAD


async def _measure(model: wa.Model, moment: float) -> None:
    """Now and then a measurement uses it, too."""
    if moment % 1 == 0:
        await model.tune(256, prefill_step_size=256)


async def test_lm_studio_1796_a_job_that_comes_as_its_idle_model_is_asked_to_go_has_its_answer(
    autojump_clock: MockClock, shuffle: Callable[[int], None]
) -> None:
    for seed in range(20):
        shuffle(seed)
        house = House(ONE)
        async with house.opened() as runtime:
            await runtime.models["a"].load()
            jobs = [house.start("b"), house.start("a")]
            for _ in range(seed % 5):
                await trio.lowlevel.checkpoint()
            jobs.append(house.start("a"))
            for job in jobs:
                with trio.fail_after(100):
                    await whole(job)


# -- memory not returned after an unload: mlx-lm#1235


@pytest.mark.parametrize("leftover", [0, 7 * M])
async def test_mlx_lm_1235_an_unload_tells_what_did_not_come_back(
    leftover: int, autojump_clock: MockClock
) -> None:
    house = House(ONE, a={"leftover_bytes": leftover})
    async with house.opened() as runtime:
        await whole(house.start("a"))
        await whole(house.start("b"))  # for which a yields
        await whole(house.start("a"))
        await runtime.unload("a")
        assert house.tickets == {}
        told = [
            (event.model, event.details["reason"], event.details["leftover_bytes"])
            for event in house.events("model_unloaded")
        ]
        assert told == [
            ("a", "pressure", leftover),
            ("b", "pressure", 0),
            ("a", "unload", leftover),
        ]
        assert house.engine.leftover_bytes == 2 * leftover


# -- ours: two that need each other's memory


@pytest.mark.parametrize("priorities", [(0, 0), (0, 2), (2, 0)])
@pytest.mark.parametrize("apart", [0.0, 0.5])
async def test_two_ready_models_whose_jobs_need_each_others_memory_both_have_it(
    priorities: tuple[int, int], apart: float, autojump_clock: MockClock
) -> None:
    """One of them goes, and comes again for its own job."""
    house, began, end = await _need_each_others(priorities, apart)
    job_seconds = 1500 / 100 + 3
    once = job_seconds + UNLOAD + LOAD + job_seconds + UNLOAD
    assert end - began <= once + 2 * (LOAD + UNLOAD) + 2 * apart
    assert len(house.evictions()) <= 4


async def test_of_two_models_whose_jobs_need_each_others_memory_only_one_goes_at_a_time(
    autojump_clock: MockClock, shuffle: Callable[[int], None]
) -> None:
    """Whose own model goes already asks nobody to go: its turn comes with its model."""
    for seed in range(60):
        shuffle(seed)
        house, _, _ = await _need_each_others((0, 2), 0.0)
        assert len(house.evictions()) == 2, seed


async def _need_each_others(
    priorities: tuple[int, int], apart: float
) -> tuple[House, float, float]:
    """From when to when it took both to have their answer."""
    house = House(TWO)
    async with house.opened() as runtime:
        for name in ("a", "b"):
            await runtime.models[name].load()
        began = trio.current_time()
        jobs = []
        for name, priority in zip("ab", priorities, strict=True):
            jobs.append(house.start(name, prompt="y" * 1500, priority=priority))  # 70 MiB
            await trio.sleep(apart)
        for job in jobs:
            await whole(job)
        return house, began, trio.current_time()


# -- ours: two that take turns


@attrs.frozen
class Turns:
    """What limits how often two saturated models take turns, of which one fits."""

    turn_seconds: float
    per_minute: int
    longest_job: float = 6.0  # three come at once, are read one by one and answer together

    @property
    def longest_wait(self) -> float:
        """Of a request, from its call until it has its memory.

        At worst it comes as its model is about to go, which takes a job and the unload. From then
        on the weights wait: for the other to be loaded and to have its turn, and for a switch to be
        allowed. Then the other's jobs end, it unloads, and this one is loaded. A load has the
        device to itself, and jobs of the other wait for it.
        """
        goes = self.longest_job + LOAD + UNLOAD
        return goes + max(LOAD + self.turn_seconds, 60.0 / self.per_minute) + goes + LOAD


@pytest.mark.parametrize(
    "turns", [Turns(30.0, 10), Turns(5.0, 10), Turns(5.0, 3), Turns(0.0, 4)], ids=str
)
async def test_two_saturated_models_take_turns_within_bounds(
    turns: Turns, autojump_clock: MockClock
) -> None:
    house = House(ONE, turn_seconds=turns.turn_seconds, switches_per_minute=turns.per_minute)
    waits: dict[str, list[float]] = {"a": [], "b": []}

    async def keep_asking(model: str) -> None:
        while True:
            waits[model].append(await whole(house.start(model)))

    async with house.opened(), trio.open_nursery() as nursery:
        for name in "ab":
            for _ in range(3):
                nursery.start_soon(keep_asking, name)
        await trio.sleep(900)
        nursery.cancel_scope.cancel()
    # How many there are in a minute the audit holds against the bound.
    assert len(house.audit.switches) >= 900 / turns.longest_wait
    for each in waits.values():
        assert max(each) <= turns.longest_wait
        assert len(each) >= 3 * 900 / turns.longest_wait, "and both get somewhere"


@pytest.mark.parametrize(("turn_seconds", "per_minute"), [(45.0, 10), (0.0, 1)])
async def test_jobs_of_a_ready_model_go_on_until_another_may_make_it_go(
    turn_seconds: float, per_minute: int, autojump_clock: MockClock
) -> None:
    """What waits for a model to go has no use for room that is kept before that is allowed."""
    house = House(TWO, turn_seconds=turn_seconds, switches_per_minute=per_minute)
    async with house.opened() as runtime:
        await runtime.models["a"].load()
        await runtime.models["b"].load()
        await runtime.models["c"].load()  # a switch: a was idle
        busy = [house.start(name, 120) for name in ("b", "c")]  # none is idle for a moment
        waiting = house.start("a")
        end = trio.current_time() + 40
        while trio.current_time() < end:
            assert await whole(house.start("b", 1)) == 0
            assert await whole(house.start("c", 1)) == 0
        for job in (*busy, waiting):
            await whole(job)


async def test_a_model_that_went_for_another_does_not_come_back_before_it(
    autojump_clock: MockClock,
) -> None:
    """Its own line has more priority; but then it would have gone, and come again, for nothing."""
    house = House(TWO, b={"weight_bytes": 140 * M})
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        for name in ("a", "c"):
            await runtime.models[name].load()
        for tokens in (3, 5, 7):  # so that it is in use all the time
            nursery.start_soon(house.keep_busy, "a", tokens, 1)
            await trio.sleep(1)
        work = house.start("c", 45)  # when a has gone, b still waits for that to end
        await trio.sleep(1)
        other = house.start("b")
        await until(house, lambda: house.loads("b") > 0)
        assert house.loads("a") == 1
        assert house.evictions()[0] == "weights/a"  # then c, which is idle by now, for a
        nursery.cancel_scope.cancel()
    assert work.result is not None
    assert other.result is not None


async def test_a_model_that_has_just_come_does_not_go_while_other_work_ends_and_makes_room(
    autojump_clock: MockClock,
) -> None:
    """That nothing runs on it is no reason while what keeps its jobs out ends by itself."""
    house = House(TWO)  # room for four rows
    async with house.opened() as runtime:
        await runtime.models["a"].load()
        first = [house.start("a", 5) for _ in range(3)]
        await trio.sleep(0.5)
        coming = house.start("b")
        await trio.sleep(0.5)
        waiting = house.start("c")
        await wait_all_tasks_blocked()
        first.append(house.start("a", 5))  # the last row
        for job in first:
            await whole(job)
        await whole(coming)
        assert house.audit.idle_stays == []
        assert house.loads("b") == 1
        await whole(waiting)


async def test_models_that_take_longer_to_load_than_their_turn_serve_all_the_same(
    autojump_clock: MockClock,
) -> None:
    """Or each would be asked to go while it is loaded, again and again, with nothing done."""
    slow = {"load_seconds": 40.0}
    house = House(ONE, a=slow, b=slow)
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        await runtime.models["a"].load()
        for name in ("a", "b"):
            for _ in range(3):
                nursery.start_soon(house.keep_busy, name)
        await trio.sleep(1000)
        nursery.cancel_scope.cancel()
    in_vain = [stay for stay in house.audit.idle_stays if stay[2] == "pressure"]
    assert in_vain == []
    assert min(len(house.audit.admitted[name]) for name in "ab") > 20


async def test_a_pin_that_comes_as_a_model_goes_makes_no_other_go_in_its_place(
    autojump_clock: MockClock,
) -> None:
    """It goes all the same, and is pinned when it comes again."""
    house = House(TWO)
    async with house.opened() as runtime:
        for name in ("a", "b"):
            await runtime.models[name].load()
        waiting = house.start("c")
        await trio.sleep(UNLOAD / 2)
        runtime.models["a"].pin()
        await whole(waiting)
        assert house.evictions() == ["weights/a"]
        assert runtime.models["b"].state == "ready"
        await whole(house.start("a"))
        snapshot = runtime.manager.snapshot()
        assert [t.ticket_id for t in snapshot.tickets if t.pinned] == ["weights/a"]
        runtime.models["a"].unpin()


async def test_explain_names_the_parameter_that_limits_and_only_while_it_does(
    autojump_clock: MockClock,
) -> None:
    house = House(ONE, turn_seconds=10.0, switches_per_minute=1)
    async with house.opened() as runtime:

        def explained(model: str) -> wa.Explanation:
            return runtime.manager.explain(f"weights/{model}")

        await runtime.models["a"].load()
        await trio.sleep(4)
        # Not its turn yet.
        busy = house.start("a", 20)
        await wait_all_tasks_blocked()
        waits = house.start("b")
        began = trio.current_time()
        for _ in range(9):
            await trio.sleep(1)
            told = explained("b")
            assert (told.limited_by, told.would_yield) == ("turn_seconds", ("weights/a",))
            assert told.limited_until == began + 10
            assert "turn_seconds" in told.reason
            assert "switches_per_minute" not in told.reason
        # It is asked for, and goes: nothing limits any more.
        await trio.sleep(1.5)
        told = explained("b")
        assert (told.limited_by, told.asked) == (None, ("weights/a",))
        assert "_seconds" not in told.reason
        assert "_minute" not in told.reason
        await whole(busy)
        await whole(waits)


async def test_explain_names_the_limit_of_switches_and_only_while_it_limits(
    autojump_clock: MockClock,
) -> None:
    house = House(ONE, turn_seconds=10.0, switches_per_minute=1)
    async with house.opened() as runtime:
        manager = runtime.manager
        await runtime.models["a"].load()
        await runtime.models["b"].load()  # the switch of this minute: a was idle
        [switched] = [event.timestamp for event in house.events("reclaim_requested")]
        waits = house.start("a")
        await trio.sleep(1)
        # b is idle, and no turn has to be waited for, but the next switch.
        told = manager.explain("weights/a")
        assert (told.limited_by, told.limited_until) == ("switches_per_minute", switched + 60)
        assert told.would_yield == ("weights/b",)
        assert "switches_per_minute" in told.reason
        assert "turn_seconds" not in told.reason
        # Then b is in use: first its turn, and when that has come the switch again.
        busy = house.start("b", 120)
        await trio.sleep(0.5)
        assert manager.explain("weights/a").limited_by == "turn_seconds"
        await trio.sleep(10)
        told = manager.explain("weights/a")
        assert (told.limited_by, told.limited_until) == ("switches_per_minute", switched + 60)
        await trio.sleep_until(switched + 60.5)
        told = manager.explain("weights/a")
        assert (told.limited_by, told.asked) == (None, ("weights/b",))
        await whole(waits)
        await whole(busy)


async def test_explain_names_no_parameter_where_one_waits_for_work_only(
    autojump_clock: MockClock,
) -> None:
    house = House(TWO)
    async with house.opened() as runtime:
        await runtime.models["a"].load()
        job = house.start("a", prompt="y" * 1500)  # 70 MiB
        await wait_all_tasks_blocked()
        other = house.start("b")  # fits when that has ended
        await trio.sleep(5)
        told = runtime.manager.explain("weights/b")
        assert (told.state, told.limited_by, told.would_yield) == ("waiting", None, ())
        await whole(job)
        await whole(other)
        assert house.evictions() == []


# -- ours: those who wait for each other


async def test_two_loads_that_want_of_the_workspace_do_not_wait_for_each_other(
    autojump_clock: MockClock,
) -> None:
    """The first fits when the workspace has shrunk, which the second's wish holds up."""
    shapes = {"a": (100, 100), "b": (440, 50), "c": (316, 100)}
    models: Any = {
        name: {"weight_bytes": weights * M, "workspace_bytes": workspace * M}
        for name, (weights, workspace) in shapes.items()
    }
    house = House(500 * M, **models)
    async with house.opened() as runtime:
        await runtime.models["a"].load()
        jobs = [house.start("a", 50)]
        await trio.sleep(2)
        for name in "bc":
            jobs.append(house.start(name))
            await trio.sleep(1)
        with trio.fail_after(200):
            for job in jobs:
                await job.wait()


async def test_a_measurement_without_memory_does_not_hold_up_a_model_that_must_go(
    autojump_clock: MockClock,
) -> None:
    """It waits until the model comes again."""
    house = House(TWO, b={"weight_bytes": 170 * M})
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        model = runtime.models["a"]
        await model.load()
        measured = trio.Event()

        async def tune() -> None:
            await model.tune(token_count=3400)  # 140 MiB: all that is left beside the weights
            measured.set()

        work = house.start("a", 60)
        await trio.sleep(1)
        other = house.start("b")
        await wait_all_tasks_blocked()
        nursery.start_soon(tune)
        with trio.fail_after(300):
            for job in (work, other):
                await job.wait()
            await measured.wait()
        assert house.loads("a") == 2


async def test_jobs_that_waited_for_their_model_are_not_refused_because_many_did(
    autojump_clock: MockClock,
) -> None:
    house = House(ONE, max_waiters=3)  # of which six run together
    async with house.opened():
        jobs = [house.start("a", 3) for _ in range(20)]
        for job in jobs:
            assert (await job.wait()).finish_reason == "length"
