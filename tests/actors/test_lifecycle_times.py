"""Who comes when, how long a model stays, what it fails of, and how a runtime ends: by the clock.

The numbers are in `lives.py`.
"""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import wiredactors as wa
from tests.actors.lives import (
    ALL,
    BROKEN,
    LIVES,
    LOAD,
    MODEL,
    UNLOAD,
    WANTS,
    WEIGHTS,
    House,
    M,
    by_start,
    held,
    hold,
    refused,
)
from tests.actors.modelled import BASE, PROMPT, ROW
from wiredactors.testing import ModelledEngine, RecordingBackend

pytestmark = pytest.mark.usefixtures("bounded")


# -- busy, pinned, slow


async def test_a_busy_model_ends_what_runs_and_postpones_what_waits_in_its_old_place(
    autojump_clock: MockClock,
) -> None:
    """There is room for one model and one row. The job that runs has 60 s to go."""
    house = House(ceiling=BASE + ROW)
    async with house.opened() as runtime:
        model, other = runtime.add("m"), runtime.add("other")
        await model.load()
        await wait_all_tasks_blocked()
        house.begin()
        running = model.start_generation(PROMPT, 60)
        await trio.sleep(1)
        there = other.start_generation(PROMPT, 2)
        await trio.sleep(1)
        waiting = [model.start_generation(PROMPT, 2) for _ in range(2)]
        await trio.sleep(28.5)
        assert (model.state, model.jobs) == ("ready", (running, *waiting))
        await trio.sleep(1)  # its turn has come, after 30 s
        assert model.state == "draining"
        assert model.jobs == (running, *waiting)
        assert list(house.waiters) == ["weights/other"]
        waiting.append(model.start_generation(PROMPT, 2))
        waiting[1].cancel()
        assert waiting[1].result is not None
        del waiting[1]
        assert (await running.wait()).generation_tokens == 60
        assert house.now == 61
        await there.wait()
        assert house.now == 61 + UNLOAD + LOAD + 3
        for job in waiting:
            assert (await job.wait()).text == MODEL.answer(PROMPT, 2)
        assert house.now == 71 + UNLOAD + LOAD + 3 + 3
        await wait_all_tasks_blocked()
        assert house.jobs("job_admitted") == [
            job.id for job in (running, there, waiting[0], waiting[1])
        ]
        await wait_all_tasks_blocked()
        # A job that was sent back is still the same one: it came once.
        assert house.jobs("job_queued").count(waiting[0].id) == 1
        assert house.life() == [
            *["31 draining pressure", "64 unloaded pressure"],
            *["64 queued", "74 loading", "78 ready"],
        ]
        assert house.life("other") == [
            *["1 queued", "64 loading", "68 ready", "71 draining pressure", "74 unloaded pressure"]
        ]


@pytest.mark.parametrize("first", ["unload", "remove", "nobody"])
async def test_a_job_without_memory_is_sent_back_whoever_else_has_told_its_model_to_go(
    first: str, autojump_clock: MockClock
) -> None:
    """Its ticket is its caller's; if the model will not come again, it is told so."""
    house = House(ceiling=BASE + ROW)
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        model, other = runtime.add("m"), runtime.add("other")
        await model.load()
        house.begin()
        running = model.start_generation(PROMPT, 60)
        await wait_all_tasks_blocked()
        nursery.start_soon(other.load)
        await wait_all_tasks_blocked()
        ticket = wa.WiredSumPolicy().ticket(ROW)
        waiting = model.start_generation(PROMPT, 2, wired_memory_ticket=ticket)
        await wait_all_tasks_blocked()
        if first != "nobody":
            nursery.start_soon(getattr(runtime, first), "m")
            await wait_all_tasks_blocked()
        assert list(house.waiters) == ["weights/other", ticket.id]
        await trio.sleep(30.5)
        assert list(house.waiters) == ["weights/other"]
        if first == "remove":
            with pytest.raises(wa.ModelNotLoaded):
                await waiting.wait()
            assert house.now == 30.5
        else:
            assert (waiting.result, model.jobs) == (None, (running, waiting))
            assert (await waiting.wait()).finish_reason == "length"
            assert house.now == 61 + UNLOAD + LOAD + UNLOAD + LOAD + 3
        assert (await running.wait()).generation_tokens == 60
        async with ticket.wired_limit():
            pass


@pytest.mark.parametrize("ahead", [True, False])
async def test_a_pinned_model_comes_where_there_is_room_for_it_and_nothing_else(
    ahead: bool, autojump_clock: MockClock
) -> None:
    """Its own workspace is not what it leaves no room for."""
    house = House(ceiling=BASE)
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        model = runtime.add("m", pinned=ahead)
        nursery.start_soon(hold, BASE, 5)
        await wait_all_tasks_blocked()
        nursery.start_soon(model.load)
        await wait_all_tasks_blocked()
        assert model.state == "queued"
        model.pin()
        await trio.sleep(5 + LOAD + 1)
        assert (model.state, house.pinned(), house.tickets) == ("ready", True, LIVES)


async def test_a_pinned_model_never_goes_by_itself(autojump_clock: MockClock) -> None:
    house = House(ceiling=BASE + ROW)
    async with house.opened() as runtime:
        model = runtime.add("m", pinned=True, keep_alive=5)
        await model.load()
        await wait_all_tasks_blocked()
        house.begin()
        with pytest.raises(wa.TicketTooLarge):
            await runtime.add("other").load()
        await trio.sleep(1000)
        assert (house.life(), model.state, model.pinned) == ([], "ready", True)
        await runtime.unload("m")
        assert model.state == "absent"


@pytest.mark.parametrize("load_seconds", [20.0, 40.0])
async def test_two_models_that_do_not_fit_together_serve_both_though_loads_take_long(
    load_seconds: float, autojump_clock: MockClock
) -> None:
    """Longer than the turn of one that waits: it is not asked before it has served anybody."""
    slow = attrs.evolve(MODEL, load_seconds=load_seconds)
    house = House(ceiling=BASE + ROW, m=slow, other=slow)
    async with house.opened() as runtime:
        jobs = [runtime.add(name).start_generation(PROMPT, 2) for name in ("m", "other")]
        with trio.fail_after(20 * load_seconds):
            for job in jobs:
                assert (await job.wait()).finish_reason == "length"


# -- order and priority


async def test_those_who_wait_come_in_the_order_of_their_calls_whatever_they_waited_for(
    autojump_clock: MockClock,
) -> None:
    """There is room for one row: each is admitted alone."""
    house = House(ceiling=BASE + ROW)
    order: list[str] = []

    async def load(name: str) -> None:
        await model.load()
        order.append(name)

    async with house.opened() as runtime, trio.open_nursery() as nursery:
        model = runtime.add("m")
        jobs = [model.start_generation(PROMPT, 1)]
        await trio.sleep(0.5)
        assert model.state == "loading"
        jobs += [model.start_generation(PROMPT, 1) for _ in range(2)]
        await trio.sleep(LOAD)
        nursery.start_soon(runtime.unload, "m")  # while they run
        await wait_all_tasks_blocked()
        assert model.state == "draining"
        jobs += [model.start_generation(PROMPT, 1) for _ in range(2)]
        for job in jobs[:3]:
            await job.wait()
        await wait_all_tasks_blocked()
        assert model.state == "unloading"
        jobs += [model.start_generation(PROMPT, 1) for _ in range(2)]
        assert model.jobs == tuple(jobs[3:])
        for job in jobs:
            await job.wait()
        await wait_all_tasks_blocked()
        assert house.jobs("job_admitted") == [job.id for job in jobs]
        assert house.jobs("job_finished") == [job.id for job in jobs]


async def test_a_load_asks_with_the_highest_priority_of_the_line(
    autojump_clock: MockClock,
) -> None:
    house = House(ceiling=BASE + ROW)
    async with house.opened() as runtime, held(BASE + ROW):
        for name, priorities in (("m", [0, 0]), ("other", [1, 7, 3])):
            model = runtime.add(name)
            jobs = [model.start_generation(PROMPT, 1, priority=each) for each in priorities]
            assert [job.ticket.priority for job in jobs] == priorities
        await wait_all_tasks_blocked()
        waiters = runtime.manager.snapshot().waiters
        assert [(waiter.ticket_id, waiter.priority) for waiter in waiters] == [
            ("weights/other", 7),
            ("weights/m", 0),
        ]
        for model in runtime.models.values():
            for job in model.jobs:
                job.cancel()


# -- keep_alive


@pytest.mark.parametrize("keep_alive", [0.0, 5.0])
async def test_a_model_goes_so_long_after_its_last_use(
    keep_alive: float, autojump_clock: MockClock
) -> None:
    house = House()
    async with house.opened() as runtime:
        model = runtime.add("m", keep_alive=keep_alive)
        job = model.start_generation(PROMPT, 2)
        await job.wait()
        assert house.now == LOAD + 3
        if keep_alive:
            await trio.sleep(keep_alive - 1)
            await model.start_generation(PROMPT, 2).wait()
            await trio.sleep(keep_alive - 1)
            await model.tune(100)
        end = house.now
        await trio.sleep(1000)
        assert house.life()[2:] == [
            "4 ready",
            f"{end + keep_alive:g} draining keep_alive",
            f"{end + keep_alive + UNLOAD:g} unloaded keep_alive",
        ]
        assert (model.state, house.tickets) == ("absent", {})
        assert await by_start(house, model) == MODEL.answer(PROMPT, 2)


async def test_who_comes_as_its_keep_alive_is_over_is_served_all_the_same(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime:
        model = runtime.add("m", keep_alive=5)
        for _ in range(5):  # trio shuffles its tasks
            await by_start(house, model)
            await trio.sleep(5)
            assert await by_start(house, model) == MODEL.answer(PROMPT, 2)


@pytest.mark.parametrize("want", WANTS)
async def test_a_model_that_never_stays_serves_each_request(
    want: str, autojump_clock: MockClock
) -> None:
    house = House()
    call, takes, answer = WANTS[want]
    async with house.opened() as runtime:
        model = runtime.add("m", keep_alive=0)
        for _ in range(3):
            house.begin()
            assert await call(house, model) == answer
            assert house.now == LOAD + takes
            await trio.sleep(10)
            assert model.state == "absent"


@pytest.mark.parametrize("pinned_for", [2.0, 50.0])
async def test_a_model_that_is_unpinned_goes_when_its_keep_alive_is_over(
    pinned_for: float, autojump_clock: MockClock
) -> None:
    house = House()
    async with house.opened() as runtime:
        model = runtime.add("m", keep_alive=5)
        await model.load()
        await wait_all_tasks_blocked()
        house.begin()
        model.pin()
        await trio.sleep(pinned_for)
        assert (model.state, house.life()) == ("ready", [])
        model.unpin()
        await trio.sleep(1000)
        at = max(5, pinned_for)
        assert house.life() == [
            f"{at:g} draining keep_alive",
            f"{at + UNLOAD:g} unloaded keep_alive",
        ]


# -- failing

#: What a model fails of, after how many seconds of each try.
FAILURES: dict[str, tuple[dict[str, Any], float, type[Exception]]] = {
    "its plan": ({"plan_error": BROKEN}, 0, wa.ModelLoadError),
    "its admission": ({"weight_bytes": 2 * ALL}, 0, wa.TicketTooLarge),
    "its load": ({"load_error": BROKEN}, LOAD, wa.ModelLoadError),
    "what it really takes": ({"loaded_bytes": 2 * ALL}, LOAD + UNLOAD, wa.TicketTooLarge),
}


@pytest.mark.parametrize("of", FAILURES)
async def test_a_model_that_fails_frees_everything_and_fails_those_who_wait_with_the_cause(
    of: str, autojump_clock: MockClock
) -> None:
    quick = attrs.evolve(MODEL, step_seconds=1 / 64)  # that much a load may have to wait
    house = House(other=quick)
    change, takes, cause = FAILURES[of]
    bad = attrs.evolve(MODEL, **change)
    errors: list[BaseException] = []

    async def fail(model: wa.Model, want: str) -> None:
        with pytest.raises(cause) as caught:
            await WANTS[want][0](house, model)
        assert house.now == pytest.approx(takes, abs=0.1)
        errors.append(caught.value)

    async with house.opened() as runtime:
        await runtime.load("other")
        running = runtime.models["other"].start_generation(PROMPT, 60)
        await trio.sleep(1)
        house.engine.sources["m"] = bad
        model = runtime.add("m")
        house.begin()
        async with trio.open_nursery() as nursery:
            for want in WANTS:
                nursery.start_soon(fail, model, want)
        assert len(errors) == len(WANTS)
        assert len({str(error) for error in errors}) == 1
        assert model.state == "failed"
        assert house.tickets.keys() == {"weights/other", "workspace", running.ticket.id}
        assert house.engine.held_bytes == WEIGHTS + ROW
        await wait_all_tasks_blocked()
        failed_at = house.now
        assert house.life()[-1] == f"{failed_at:g} failed {failed_at + 1:g}"
        # The next ones try again, together, and with success.
        house.engine.sources["m"] = MODEL
        async with trio.open_nursery() as nursery:
            for want in WANTS:
                nursery.start_soon(WANTS[want][0], house, model)
        await wait_all_tasks_blocked()
        again = failed_at + 1
        assert house.life()[-3:-1] == [f"{again:g} queued", f"{again:g} loading"]
        assert (await running.wait()).finish_reason == "length"
        if of == "what it really takes":
            house.engine.records.clear()  # for once it held more than was granted


async def test_the_back_off_doubles_with_each_failure_and_begins_anew_after_a_success(
    autojump_clock: MockClock,
) -> None:
    bad: list[Exception | None] = [BROKEN] * 8
    house = House(m=attrs.evolve(MODEL, load_errors=(*bad, None, BROKEN)))
    retries: list[float] = []
    async with house.opened() as runtime:
        model = runtime.add("m")
        for _ in bad:
            before = trio.current_time()
            with pytest.raises(wa.ModelLoadError, match="the file is broken"):
                await model.start_generation(PROMPT).wait()
            retries.append(trio.current_time() - before - LOAD)
        assert retries == [0, 1, 2, 4, 8, 16, 32, 60]
        await trio.sleep(30)  # half of it is over
        before = trio.current_time()
        await model.load()
        assert trio.current_time() == before + 30 + LOAD
        await runtime.unload("m")
        with pytest.raises(wa.ModelLoadError):
            await model.load()
        before = trio.current_time()
        await model.load()
        assert trio.current_time() == before + 1 + LOAD
        await runtime.unload("m")
        before = trio.current_time()
        await model.load()
        assert trio.current_time() == before + LOAD


async def test_after_the_back_off_is_over_the_next_request_is_tried_at_once(
    autojump_clock: MockClock,
) -> None:
    house = House(m=attrs.evolve(MODEL, load_errors=(BROKEN,)))
    async with house.opened() as runtime:
        model = runtime.add("m")
        with pytest.raises(wa.ModelLoadError):
            await model.load()
        await trio.sleep(1000)
        assert len(house.engine.records) == 1  # nobody wants it
        house.begin()
        await model.load()
        assert house.now == LOAD


async def test_a_request_that_goes_away_during_the_back_off_is_not_tried(
    autojump_clock: MockClock,
) -> None:
    house = House(m=attrs.evolve(MODEL, load_errors=(BROKEN,)))
    async with house.opened() as runtime:
        model = runtime.add("m")
        with pytest.raises(wa.ModelLoadError):
            await model.load()
        job = model.start_generation(PROMPT)
        await trio.sleep(0.5)
        job.cancel()
        await trio.sleep(100)
        assert len(house.engine.records) == 1
        house.begin()
        await model.load()
        assert house.now == LOAD


async def test_an_unload_that_fails_holds_off_those_who_wait_and_is_told_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(ceiling=BASE + ROW)

    async def fail(name: str) -> int:
        del house.engine._models[name]
        raise OSError("the device is gone")

    async with house.opened() as runtime, trio.open_nursery() as nursery:
        model, other = runtime.add("m"), runtime.add("other")
        await model.load()
        await wait_all_tasks_blocked()
        house.begin()
        with monkeypatch.context() as patch:
            patch.setattr(house.engine, "unload", fail)
            nursery.start_soon(other.load)  # nobody hears of an unload for others' sake
            await wait_all_tasks_blocked()
            assert model.state == "failed"
        job = model.start_generation(PROMPT, 2)
        assert (await job.wait()).finish_reason == "length"
        await wait_all_tasks_blocked()
        assert house.life() == [
            *["0 draining pressure", "0 failed 1", "1 queued", "7 loading", "11 ready"],
        ]
        await runtime.unload("m")  # it raises nothing: that was another stay
        assert model.state == "absent"
        await model.load()
        with monkeypatch.context() as patch:
            patch.setattr(house.engine, "unload", fail)
            with pytest.raises(OSError, match="the device is gone"):
                await runtime.unload("m")
        with pytest.raises(wa.ModelNotLoaded, match="not loaded, but failed"):
            await runtime.unload("m")


# -- jobs with tickets of their callers


async def test_a_callers_own_ticket_waits_with_its_job_and_asks_for_nothing_before(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime:
        model = runtime.add("m")
        ticket = wa.WiredSumPolicy().ticket(2 * ROW, priority=3)
        small = wa.WiredSumPolicy().ticket(1)
        jobs = [
            model.start_generation(PROMPT, 2, wired_memory_ticket=each) for each in (ticket, small)
        ]
        assert [job.ticket for job in jobs] == [ticket, small]
        await trio.sleep(LOAD - 1)
        assert house.tickets == LIVES
        assert house.waiters == {}
        await trio.sleep(1.5)
        assert house.tickets == LIVES | {ticket.id: 2 * ROW, small.id: 1}
        results = [await job.wait() for job in jobs]
        assert [result.ticket_size for result in results] == [2 * ROW, 1]
        assert house.tickets == LIVES
        await wait_all_tasks_blocked()
        assert house.jobs("ticket_undersized") == [jobs[1].id]
        house.engine.records.clear()  # the small one was honoured


async def test_a_callers_own_ticket_is_free_again_when_its_waiting_job_has_ended(
    autojump_clock: MockClock,
) -> None:
    house = House(m=attrs.evolve(MODEL, load_errors=(BROKEN,)))
    async with house.opened() as runtime:
        model = runtime.add("m")
        ticket = wa.WiredSumPolicy().ticket(ROW)
        job = model.start_generation(PROMPT, 2, wired_memory_ticket=ticket)
        await trio.sleep(1.5)
        job.cancel()
        failing = model.start_generation(PROMPT, 2, wired_memory_ticket=ticket)
        assert (await failing.wait()).finish_reason == "length"
        async with ticket.wired_limit():
            assert ticket.id in house.tickets


async def test_what_is_wrong_with_a_request_ends_it_alone_when_the_model_is_there(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime:
        model = runtime.add("m")
        jobs = [model.start_generation(prompt, 2) for prompt in (PROMPT, "x" * 5000, "", PROMPT)]
        with pytest.raises(wa.PromptTooLong):
            await jobs[1].wait()
        with pytest.raises(ValueError, match="empty"):
            await jobs[2].wait()
        assert house.now == LOAD
        for job in (jobs[0], jobs[3]):
            assert (await job.wait()).text == MODEL.answer(PROMPT, 2)


# -- what is free afterwards


class Machine(RecordingBackend):
    """A machine of 300 MiB. What does not come back of a model is kept by this process, or by the
    driver.
    """

    engine: ModelledEngine

    def memory_reading(self) -> wa.MemoryReading:
        taken, left = self.engine.held_bytes, self.engine.leftover_bytes
        return wa.MemoryReading(300 * M, max(0, 300 * M - taken), taken - left)


async def test_memory_is_measured_again_after_an_unload_and_before_the_next_admission(
    autojump_clock: MockClock,
) -> None:
    """Tickets may have 290 MiB of it, and the next model wants 210; half of the last is left, not
    in this process."""
    machine = Machine()
    leaking = attrs.evolve(MODEL, weight_bytes=200 * M, leftover_bytes=100 * M)
    house = House(
        290 * M,
        backend=machine,
        configuration={"watch_seconds": 1000.0},
        m=leaking,
        other=attrs.evolve(MODEL, weight_bytes=200 * M),
    )
    machine.engine = house.engine
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        model, other = runtime.add("m"), runtime.add("other")
        await model.load()
        nursery.start_soon(other.load)
        await trio.sleep(UNLOAD + 2)
        states = (str(model.state), str(other.state))
        house.engine.leftover_bytes = 0
        assert "weights/m" not in house.tickets
        # Its bytes are free by the tickets, and not on the machine.
        assert states == ("absent", "queued")
        await trio.sleep(1000)
        assert other.state == "ready"


async def test_an_unload_says_what_did_not_come_back(autojump_clock: MockClock) -> None:
    house = House(m=attrs.evolve(MODEL, leftover_bytes=7))
    async with house.opened() as runtime:
        model = runtime.add("m")
        await model.load()
        await runtime.unload("m")
        await wait_all_tasks_blocked()
        [event] = [event for event in house.read() if event.kind == "model_unloaded"]
        assert dict(event.details) == {"reason": "unload", "leftover_bytes": 7}
        house.engine.leftover_bytes = 0


# -- draining at the end

#: By the seconds that jobs may go on: when all has gone, and how the jobs have ended. One runs, one
#: waits for memory, one for its model.
DRAINS: dict[float, tuple[float, list[str]]] = {
    0.0: (1 + UNLOAD, ["cancelled", "cancelled", "cancelled"]),
    4.5: (5 + UNLOAD, ["cancelled", "cancelled", "cancelled"]),
    13.5: (12 + UNLOAD, ["length", "length", "cancelled"]),
    16.5: (12 + UNLOAD + 2, ["length", "length", "cancelled"]),
    99.0: (12 + UNLOAD + LOAD + 6 + UNLOAD, ["length", "length", "length"]),
}


@pytest.mark.parametrize("seconds", DRAINS)
async def test_jobs_go_on_so_long_and_are_cancelled_then(
    seconds: float, autojump_clock: MockClock
) -> None:
    house = House(ceiling=BASE + ROW, drain_seconds=seconds)
    at, fates = DRAINS[seconds]
    async with house.opened() as runtime:
        model, other = runtime.add("m"), runtime.add("other")
        await model.load()
        jobs = [each.start_generation(PROMPT, 5) for each in (model, model, other)]
        await wait_all_tasks_blocked()
        house.begin()
    assert [job.result.finish_reason for job in jobs if job.result] == fates
    assert house.now == at


async def test_while_it_drains_nothing_new_is_taken(autojump_clock: MockClock) -> None:
    house = House(drain_seconds=100)
    refusals = 0

    async def come() -> None:
        nonlocal refusals
        await trio.sleep(1)
        for call in (lambda: model.start_generation(PROMPT), lambda: runtime.add("other")):
            with pytest.raises(wa.ManagerClosed, match="the runtime has closed"):
                call()
            refusals += 1
        for wait in (model.load, model.tune, lambda: runtime.load("other")):
            with pytest.raises(wa.ManagerClosed, match="the runtime has closed"):
                await wait()
            refusals += 1

    async with trio.open_nursery() as nursery:
        async with house.opened() as runtime:
            model = runtime.add("m")
            job = model.start_generation(PROMPT, 5)
            nursery.start_soon(come)
            house.begin()
        assert (await job.wait()).finish_reason == "length"
        assert house.now == LOAD + 6 + UNLOAD
    assert refusals == 5


@pytest.mark.parametrize("seconds", [0.5, 3.0, 4.5])
async def test_a_cancellation_while_it_drains_is_immediate(
    seconds: float, autojump_clock: MockClock
) -> None:
    """Its load looks up each second, and so do its jobs."""
    house = House(drain_seconds=1000)
    with trio.CancelScope() as scope:
        async with house.opened() as runtime:
            job = runtime.add("m").start_generation(PROMPT, 100)
            await wait_all_tasks_blocked()
            house.begin()
            scope.deadline = trio.current_time() + seconds
    assert scope.cancelled_caught
    assert job.result is not None
    assert job.result.finish_reason == "cancelled"
    assert house.now == {0.5: 1, 3.0: 3, 4.5: 5 + UNLOAD}[seconds]


@pytest.mark.parametrize("jobs", [0, 1])
async def test_an_idle_runtime_does_not_wait_for_its_drain(
    jobs: int, autojump_clock: MockClock
) -> None:
    house = House(drain_seconds=1000)
    async with house.opened() as runtime:
        await runtime.add("m").load()
        for _ in range(jobs):
            await by_start(house, runtime.models["m"])
        house.begin()
    assert house.now == UNLOAD


async def test_a_load_that_nobody_but_a_caller_waits_for_is_not_drained(
    autojump_clock: MockClock,
) -> None:
    house = House(drain_seconds=1000)
    async with trio.open_nursery() as nursery, house.opened() as runtime:
        model = runtime.add("m")
        nursery.start_soon(refused, model.load)
        await trio.sleep(0.5)
    assert trio.current_time() == 1


@pytest.mark.parametrize(
    ("idle_seconds", "loads"), [(0.0, ["m", "other", "m"]), (0.5, ["m", "other"])]
)
async def test_a_moment_without_work_is_not_idleness_yet(
    idle_seconds: float, loads: list[str], autojump_clock: MockClock
) -> None:
    """Whoever had an answer asks again 0.1 s later, while another model waits."""
    house = House(ceiling=BASE + ROW)
    house.engine.idle_seconds = idle_seconds
    async with house.opened() as runtime:
        model, other = runtime.add("m"), runtime.add("other")
        first = model.start_generation(PROMPT, 2)
        await trio.sleep(1)
        coming = other.start_generation(PROMPT, 2)
        await first.wait()
        await trio.sleep(0.1)
        second = model.start_generation(PROMPT, 2)
        for job in (second, coming):
            assert (await job.wait()).finish_reason == "length"
    assert [record.model for record in house.engine.records if record.what == "load"] == loads
