"""The runtime: opening and closing, whatever is under way, and cancelling it at any moment."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import wiredactors as wa
from wiredactors.actors.broadcast import EventStream
from wiredactors.scheduling.requests import LoadOptions, LoadPlan, StepReport
from wiredactors.testing import ModelledEngine, ModelledModel, RecordingBackend

M = wa.MIB
MODEL = ModelledModel(
    weight_bytes=100 * M,
    workspace_bytes=10 * M,
    kv_bytes_per_token=40 * wa.KIB,
    load_seconds=4,
    prefill_tokens_per_second=100,
    step_seconds=1,
)
PROMPT = "x" * 100
BASELINE = 7  # the limit that was in force before


class House:
    """An engine and a backend, and what must be true of them when the runtime has closed."""

    def __init__(self, ceiling: int = 1000 * M, *, quiet: bool = False):
        self.recording = RecordingBackend(limit=BASELINE)
        self.engine = ModelledEngine({"model": MODEL}, backend=self.recording if quiet else None)
        self.backend = None if quiet else self.recording
        self.configuration = wa.WiredMemoryConfiguration(admission_ceiling=BASELINE + ceiling)

    def open(self, **more: Any) -> Any:
        more.setdefault("drain_seconds", 0.0)
        return wa.open_runtime(
            configuration=self.configuration, backend=self.backend, engine=self.engine, **more
        )

    def check(self, runtime: wa.Runtime) -> None:
        snapshot = runtime.manager.snapshot()
        assert (snapshot.tickets, snapshot.waiters) == ((), ())
        assert self.recording.limit == BASELINE
        assert runtime.models == {}
        assert not self.engine.is_open
        assert (self.engine.records[-1].what, self.engine.records[-1].held_bytes) == ("close", 0)
        assert all(r.charged_bytes <= r.granted_bytes for r in self.engine.records)


def read(stream: EventStream) -> list[wa.WiredMemoryEvent]:
    """What has come so far, without the snapshot."""
    events = []
    while True:
        try:
            events.append(stream.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return [event for event in events if event.kind != "snapshot"]


async def read_all(job: wa.Job) -> int:
    return len([chunk async for chunk in job])


# -- whole lives


@pytest.mark.parametrize("quiet", [False, True], ids=["at-once", "at-quiet-points"])
@pytest.mark.parametrize("cancel_at", [0.0, 1.0, 4.0, 4.5, 5.0, 5.5, 8.5, 9.0, 17.5, 18.0])
async def test_a_runtime_that_is_cancelled_at_any_moment_leaves_nothing(
    cancel_at: float, quiet: bool, autojump_clock: MockClock
) -> None:
    """It loads until 4, one job runs until 9 and another waits for it, then shutdown."""
    house = House(ceiling=120 * M, quiet=quiet)
    runtimes = []

    async def use(model: wa.Model) -> None:
        async with model.generate(PROMPT, max_tokens=4) as job:
            await read_all(job)

    with trio.CancelScope(deadline=cancel_at):
        async with house.open() as runtime, trio.open_nursery() as nursery:
            runtimes.append(runtime)
            model = await runtime.load("model")
            nursery.start_soon(use, model)
            nursery.start_soon(use, model)
    if runtimes:
        house.check(runtimes[0])


async def test_a_runtime_can_be_opened_again(autojump_clock: MockClock) -> None:
    house = House()
    for _ in range(2):
        async with house.open() as runtime:
            model = await runtime.load("model")
            async with model.generate(PROMPT, max_tokens=2) as job:
                assert await read_all(job) == 2
        house.check(runtime)


# -- closing


async def test_closing_cancels_jobs_of_tasks_that_stay_and_unloads(
    autojump_clock: MockClock,
) -> None:
    house = House(ceiling=120 * M)
    results = []

    async def stay(model: wa.Model) -> None:
        async with model.generate(PROMPT, max_tokens=100) as job:
            await read_all(job)  # just ends
            await trio.sleep(10)  # in no hurry to leave
        results.append(job.result)

    async with trio.open_nursery() as outside:
        async with house.open() as runtime:
            model = await runtime.load("model")
            outside.start_soon(stay, model)  # runs
            outside.start_soon(stay, model)  # waits
            await trio.sleep(3.5)
        assert trio.current_time() == pytest.approx(8)  # the step under way is finished
        house.check(runtime)
    assert [result.finish_reason for result in results] == ["cancelled", "cancelled"]
    assert sorted(result.generation_tokens for result in results) == [0, 3]


@pytest.mark.parametrize("close_at", [0.0, 1.0, 5.0, 6.0, 9.0])
async def test_closing_stops_a_load_of_a_task_that_stays(
    close_at: float, autojump_clock: MockClock
) -> None:
    """The plan takes until 1, it waits for memory until 5, and loads until 9."""
    house = House(ceiling=120 * M)
    engine_plan = house.engine.plan

    async def slow_plan(source: str, options: LoadOptions) -> LoadPlan:
        await trio.sleep(1)
        return await engine_plan(source, options)

    house.engine.plan = slow_plan
    errors: list[Exception] = []

    async def load() -> None:
        try:
            await runtime.load("model")
        except wa.ManagerClosed as error:
            errors.append(error)

    async def hold() -> None:
        async with wa.WiredSumPolicy().ticket(100 * M).wired_limit():
            await trio.sleep(5)

    async with trio.open_nursery() as outside:
        async with house.open() as runtime:
            outside.start_soon(hold)
            outside.start_soon(load)
            await wait_all_tasks_blocked()
            await trio.sleep(close_at)
        assert trio.current_time() <= close_at + 1
        house.check(runtime)
    assert errors or close_at == 9


async def test_an_unload_under_way_returns_when_the_runtime_closes(
    autojump_clock: MockClock,
) -> None:
    house = House()
    done = []

    async def note(what: Callable[..., Awaitable[object]], *arguments: object) -> None:
        await what(*arguments)
        done.append(what)

    async def long_job(model: wa.Model) -> None:
        async with model.generate(PROMPT, max_tokens=100) as job:
            await read_all(job)

    async with trio.open_nursery() as outside:
        async with house.open() as runtime:
            model = await runtime.load("model")
            outside.start_soon(note, long_job, model)
            await trio.sleep(2)
            outside.start_soon(note, runtime.unload, "model")
            await trio.sleep(2)
        await wait_all_tasks_blocked()
        assert len(done) == 2
        assert trio.current_time() <= 9  # the step under way is finished, the job is not


async def test_cancelling_it_stops_jobs_of_other_tasks_though_its_body_takes_its_time(
    autojump_clock: MockClock,
) -> None:
    house = House()
    ends: list[float] = []
    events: list[wa.WiredMemoryEvent] = []

    async def long_job(model: wa.Model) -> None:
        async with model.generate(PROMPT, max_tokens=100) as job:
            await read_all(job)
        ends.append(trio.current_time())

    async def listen(runtime: wa.Runtime) -> None:
        async with runtime.manager.events() as stream:
            events.extend([event async for event in stream])

    async with trio.open_nursery() as outside:
        with trio.CancelScope() as scope:
            async with house.open() as runtime:
                outside.start_soon(listen, runtime)
                model = await runtime.load("model")
                outside.start_soon(long_job, model)
                await trio.sleep(3.5)
                scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.sleep(50)
    house.check(runtime)
    assert ends == [pytest.approx(8)]
    # It had been served, so it did not fail.
    assert [event.kind for event in events if event.model and not event.job][-3:] == [
        "model_ready",
        "model_draining",
        "model_unloaded",
    ]


async def test_after_closing_nothing_can_be_loaded_or_generated(autojump_clock: MockClock) -> None:
    house = House()
    async with house.open() as runtime:
        model = await runtime.load("model")
    with trio.fail_after(1):
        with pytest.raises(wa.ManagerClosed, match="the runtime has closed"):
            await runtime.load("model", "other")
        with pytest.raises(wa.ModelNotLoaded):
            await runtime.unload("model")
        with pytest.raises(wa.ManagerClosed, match="the runtime has closed"):
            async with model.generate(PROMPT):
                pytest.fail("the body must not run")


# -- errors


async def test_an_exception_of_the_body_leaves_bare_with_everything_ended(
    autojump_clock: MockClock,
) -> None:
    house = House()
    jobs = []

    async def body() -> None:
        async with house.open() as runtime:
            jobs.append(runtime)
            model = await runtime.load("model")
            async with model.generate(PROMPT, max_tokens=9) as job:
                jobs.append(job)
                await job.__anext__()
                raise KeyError("body")

    with pytest.raises(KeyError, match="body"):
        await body()
    runtime, job = jobs
    house.check(runtime)
    assert job.result.finish_reason == "cancelled"


async def test_an_engine_that_does_not_open_says_why_and_leaves_no_manager(
    autojump_clock: MockClock,
) -> None:
    with pytest.raises(OSError, match="no device"):
        async with wa.open_runtime(engine=ModelledEngine(open_error=OSError("no device"))):
            pytest.fail("the body must not run")
    house = House()
    async with house.open():
        pass


async def test_a_second_runtime_is_a_clear_error_and_never_opens_its_engine(
    autojump_clock: MockClock,
) -> None:
    house, second = House(), House()
    async with house.open() as runtime:
        with pytest.raises(wa.ManagerAlreadyOpen):
            async with second.open():
                pytest.fail("the body must not run")
        assert second.engine.records == []
        await runtime.load("model")
    house.check(runtime)


async def test_no_second_one_opens_before_the_engine_of_the_first_has_closed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, second = House(), House()
    refused = []
    close = house.engine.close

    async def slowly() -> None:
        with pytest.raises(wa.ManagerAlreadyOpen):
            async with second.open():
                pytest.fail("the body must not run")
        with pytest.raises(wa.NoManager):
            await wa.WiredSumPolicy().ticket(1).start()
        refused.append(True)
        await close()

    monkeypatch.setattr(house.engine, "close", slowly)
    async with house.open():
        pass
    assert refused
    async with second.open():
        pass


async def test_a_runtime_that_is_cancelled_from_within_is_just_left(
    autojump_clock: MockClock,
) -> None:
    house = House()
    try:
        async with house.open() as runtime:
            runtime._nursery.cancel_scope.cancel()
            await trio.sleep_forever()
    except trio.Cancelled:  # noqa: ASYNC103  # nobody cancelled what is out here
        pytest.fail("it came out")
    house.check(runtime)


async def test_a_backend_that_refuses_refuses_no_job(autojump_clock: MockClock) -> None:
    house = House()
    house.recording.refuse_over = 50 * M
    async with house.open() as runtime, runtime.manager.events() as stream:
        model = await runtime.load("model")
        async with model.generate(PROMPT, max_tokens=2) as job:
            assert await read_all(job) == 2
        kinds = [event.kind for event in read(stream)]
    assert "limit_apply_failed" in kinds
    assert "ticket_started" in kinds
    house.check(runtime)


# -- the rest


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("model", "model"),
        ("org/Model-0.5B", "Model-0.5B"),
        ("files/Model-0.5B.Q4_K_M.gguf", "Model-0.5B.Q4_K_M"),
        ("files/directory/", "directory"),
    ],
)
async def test_a_model_is_called_by_the_last_part_of_its_source(
    source: str, name: str, autojump_clock: MockClock
) -> None:
    house = House()
    house.engine.sources[source] = MODEL
    async with house.open() as runtime:
        model = await runtime.load(source)
        assert model.name == name
        assert runtime.models == {name: model}
        with pytest.raises(TypeError):
            runtime.models["other"] = model


async def test_reservations_and_jobs_share_one_cap_with_a_callers_own_tickets(
    autojump_clock: MockClock,
) -> None:
    house = House()
    policy = wa.WiredSumPolicy(cap=122 * M)
    async with house.open(policy=policy) as runtime:
        model = await runtime.load("model")
        snapshot = runtime.manager.snapshot()
        assert {ticket.policy for ticket in snapshot.tickets} == {repr(policy)}
        async with policy.ticket(3 * M).wired_limit():
            async with model.generate(PROMPT, max_tokens=2) as job:
                with trio.move_on_after(50):
                    await job.__anext__()
                    pytest.fail("admitted above the cap")
            model.pin()
            with pytest.raises(wa.TicketTooLarge):
                await runtime.load("model", "second")


async def test_each_step_and_load_is_reported(autojump_clock: MockClock) -> None:
    house = House()
    reports: list[StepReport] = []
    async with house.open(on_step=reports.append) as runtime:
        model = await runtime.load("model")
        async with model.generate(PROMPT, max_tokens=3) as job:
            await read_all(job)
    assert [(report.what, report.rows) for report in reports] == [
        ("load", 0),
        ("prefill", 0),
        *[("step", 1)] * 3,
    ]
    assert [report.granted_bytes // M for report in reports] == [110, 120, 120, 120, 120]
    assert all(report.peak_bytes <= report.granted_bytes for report in reports)


async def test_two_models_take_turns_and_their_memory_stays_within_what_is_granted(
    autojump_clock: MockClock,
) -> None:
    house = House(ceiling=250 * M)
    house.engine.sources["other"] = attrs.evolve(MODEL, workspace_bytes=20 * M)
    finished: list[float] = []

    async def use(model: wa.Model) -> None:
        async with model.generate(PROMPT, max_tokens=10) as job:
            await read_all(job)
            assert job.result is not None
            assert job.result.text == MODEL.answer(PROMPT, 10)
            finished.append(trio.current_time())

    async with house.open() as runtime:
        models = [await runtime.load("model"), await runtime.load("other")]
        async with trio.open_nursery() as nursery:
            for model in models * 3:
                nursery.start_soon(use, model)
    assert len(finished) == 6
    assert all(r.peak_bytes <= r.granted_bytes for r in house.engine.reports)
    house.check(runtime)


async def test_the_events_of_everything_are_numbered_without_gaps(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.open() as runtime, runtime.manager.events() as stream:
        model = await runtime.load("model")
        async with model.generate(PROMPT, max_tokens=50) as job:
            await job.__anext__()
        async with model.generate(PROMPT, max_tokens=2) as job:
            pass
        await runtime.unload("model")
        events = read(stream)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    # Nothing is ended twice, or changed for its own sake.
    kinds = {event.kind for event in events}
    assert not kinds & {"ticket_end_ignored", "ticket_start_ignored", "resize_wait"}
    resized = [event.ticket_id for event in events if event.kind == "ticket_resized"]
    assert sorted(resized) == ["weights/model", "workspace"]


@pytest.mark.parametrize("seed", range(25))
async def test_whatever_tasks_do_at_once_nothing_is_left(
    seed: int, autojump_clock: MockClock
) -> None:
    """Loads, unloads, jobs and a caller's tickets, cancelled and left at random moments."""
    random = Random(seed)
    house = House(ceiling=random.choice([130, 180, 260, 400]) * M, quiet=random.random() < 0.5)
    house.engine.sources["wide"] = attrs.evolve(MODEL, workspace_bytes=30 * M, peak_bytes=130 * M)
    house.engine.sources["broken"] = attrs.evolve(MODEL, load_error=wa.ModelLoadError("broken"))

    async def work(runtime: wa.Runtime) -> None:
        await trio.sleep(random.choice([0, 3, 20, 40]) * random.random())
        name, kind = random.choice(["first", "second"]), random.random()
        with trio.move_on_after(random.choice([0, 2, 5.5, 30, 1000, 1000])):
            if kind < 0.3:
                await runtime.load(random.choice(list(house.engine.sources)), name)
            elif kind < 0.45:
                await runtime.unload(name)
            elif kind < 0.55:
                async with wa.WiredSumPolicy().ticket(random.choice([5, 50]) * M).wired_limit():
                    await trio.sleep(random.random() * 20)
            elif name in runtime.models:
                await generate(runtime, runtime.models[name])

    async def generate(runtime: wa.Runtime, model: wa.Model) -> None:
        prompt, tokens = "x" * random.choice([10, 100, 300]), random.choice([1, 5, 30])
        jobs = []
        try:
            async with model.generate(prompt, tokens, priority=random.choice([0, 3])) as job:
                jobs.append(job)
                if random.random() < 0.2:
                    house.engine.fail_row(job.id, after_tokens=random.choice([0, 3]))
                if random.random() < 0.8:
                    await read_all(job)
        finally:
            for job in jobs:
                snapshot = runtime.manager.snapshot()
                assert job.result is not None
                assert job.id not in house.engine.rows
                assert job.id not in {t.ticket_id for t in snapshot.tickets + snapshot.waiters}

    async def work_and_be_refused(runtime: wa.Runtime) -> None:
        with contextlib.suppress(wa.WiredMemoryError):
            await work(runtime)

    async with trio.open_nursery() as outside:
        with trio.move_on_after(random.choice([10, 25.5, 1000])):
            async with house.open() as runtime, trio.open_nursery() as inside:
                for _ in range(20):
                    nursery = inside if random.random() < 0.7 else outside
                    nursery.start_soon(work_and_be_refused, runtime)
        house.check(runtime)
