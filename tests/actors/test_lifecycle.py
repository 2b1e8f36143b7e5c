"""The life of a model, carried out: each kind of request in each state, under the mock clock.

The table itself is tried in `tests/scheduling/test_lifecycle.py`; the numbers are in `lives.py`.
"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import wiredactors as wa
from tests.actors.lives import (
    ALL,
    LIVES,
    LOAD,
    MODEL,
    READY_IN,
    STATES,
    UNLOAD,
    WANTS,
    WEIGHTS,
    House,
    M,
    bring,
    by_start,
    held,
    refused,
)
from tests.actors.modelled import BASE, PROMPT, ROW
from wiredactors.testing import RecordingBackend

pytestmark = pytest.mark.usefixtures("bounded")


#: What is told from then on.
COMES = {
    "absent": ["0 queued", "0 loading", "4 ready"],
    "queued": ["5 loading", "9 ready"],
    "loading": ["2.5 ready"],
    "ready": [],
    "draining": ["9 unloaded unload", "9 queued", "9 loading", "13 ready"],
    "unloading": ["2 unloaded unload", "2 queued", "2 loading", "6 ready"],
    "failed": ["1 queued", "1 loading", "5 ready"],
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("want", WANTS)
async def test_a_request_is_served_as_soon_as_the_model_is_there(
    state: str, want: str, autojump_clock: MockClock
) -> None:
    house = House()
    call, takes, answer = WANTS[want]
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        model, _ = await bring(house, nursery, state)
        assert await call(house, model) == answer
        assert house.now == READY_IN[state] + takes
        await wait_all_tasks_blocked()
        assert house.life() == COMES[state]
        assert (model.state, dict(runtime.models)) == ("ready", {"m": model})
        assert house.tickets == LIVES


@pytest.mark.parametrize("state", [state for state in STATES if state != "ready"])
async def test_what_needs_the_model_at_once_is_refused_and_says_where_it_is(
    state: str, autojump_clock: MockClock
) -> None:
    house = House()
    async with house.opened(), trio.open_nursery() as nursery:
        model, _ = await bring(house, nursery, state)
        for call in (model.ticket_size, model.count_tokens):
            with pytest.raises(wa.ModelNotLoaded, match=f"not loaded, but {state}"):
                call(PROMPT)
        with pytest.raises(wa.ModelNotLoaded, match=f"not loaded, but {state}"):
            _ = model.weight_bytes


# -- unload and remove

#: When it has gone, where it goes at all.
UNLOADED_AT = {"ready": UNLOAD, "draining": 6 + UNLOAD, "unloading": UNLOAD - 1}


@pytest.mark.parametrize("state", STATES)
async def test_unload_waits_until_a_model_has_gone_and_refuses_where_there_is_none(
    state: str, autojump_clock: MockClock
) -> None:
    house = House()
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        model, _ = await bring(house, nursery, state)
        if state not in UNLOADED_AT:
            with pytest.raises(wa.ModelNotLoaded, match=f"'m' is not loaded, but {state}"):
                await runtime.unload("m")
            assert (house.now, house.life(), model.state) == (0, [], state)
            return
        await runtime.unload("m")
        assert (house.now, model.state) == (UNLOADED_AT[state], "absent")
        await wait_all_tasks_blocked()
        gone = [f"{UNLOADED_AT[state]:g} unloaded unload"]
        assert house.life() == (["0 draining unload", *gone] if state == "ready" else gone)
        assert house.tickets == {}
        assert dict(runtime.models) == {"m": model}
        await trio.sleep(1000)
        assert model.state == "absent"  # nobody wants it
        assert await by_start(house, model) == MODEL.answer(PROMPT, 2)


#: When it has gone, how a job ends that has come just before, and what is told of the model.
REMOVED: dict[str, tuple[float, str, list[str]]] = {
    "absent": (0, "", []),
    "queued": (0, "refused", ["0 failed cancelled"]),
    "loading": (0.5, "refused", ["0.5 failed cancelled"]),
    "ready": (3 + UNLOAD, "length", ["0 draining unload", "6 unloaded unload"]),
    "draining": (6 + UNLOAD, "refused", ["9 unloaded unload"]),
    "unloading": (UNLOAD - 1, "refused", ["2 unloaded unload"]),
    "failed": (0, "refused", []),
}


@pytest.mark.parametrize("state", STATES)
async def test_remove_refuses_those_who_wait_and_lets_end_what_runs(
    state: str, autojump_clock: MockClock
) -> None:
    house = House()
    at, fate, told = REMOVED[state]
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        model, _ = await bring(house, nursery, state)
        job = model.start_generation(PROMPT, 2) if fate else None
        nursery.start_soon(runtime.remove, "m")
        await wait_all_tasks_blocked()
        assert dict(runtime.models) == {}
        gone = "'m' is being unloaded" if at else "'m' is not loaded any more"
        with pytest.raises(wa.ModelNotLoaded, match=gone):
            model.start_generation(PROMPT)
        with pytest.raises(wa.ModelNotLoaded, match=gone):
            await model.load()
        if job is not None and fate == "refused":
            assert job.result is not None
            assert (job.result.finish_reason, house.now) == ("error", 0)
            with pytest.raises(wa.ModelNotLoaded, match="'m' is being unloaded"):
                await job.wait()
        if at:
            with pytest.raises(wa.ModelLoadError, match="'m' is being unloaded"):
                runtime.add("m")
            await runtime.remove("m")  # a second call waits too
        assert house.now == at
        await wait_all_tasks_blocked()
        assert house.life() == told
        assert not house.tickets.keys() & LIVES.keys()
        if job is not None and fate != "refused":
            assert (await job.wait()).finish_reason == fate
        with pytest.raises(wa.ModelNotLoaded, match="there is no model 'm'"):
            await runtime.remove("m")
        runtime.add("other", "m")  # the name is free


# -- pinning


@pytest.mark.parametrize("state", STATES)
async def test_pin_and_unpin_hold_in_every_state_and_change_nothing_else(
    state: str, autojump_clock: MockClock
) -> None:
    house = House(ceiling=ALL)
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        model, _ = await bring(house, nursery, state)
        model.pin()
        await wait_all_tasks_blocked()
        assert (model.pinned, model.state, house.life()) == (True, state, [])
        await model.load()
        assert house.now == READY_IN[state]
        assert house.pinned()
        await trio.sleep(6)  # what was held beside it has ended
        async with held(ALL - BASE - 50 * M):
            with pytest.raises(wa.TicketTooLarge), trio.fail_after(1):
                await wa.WiredSumPolicy().ticket(ALL - WEIGHTS + 1, kind="reservation").start()
            nursery.start_soon(refused, runtime.add("other").load)
            await trio.sleep(100)
            assert (model.state, runtime.models["other"].state) == ("ready", "queued")
            model.unpin()
            await wait_all_tasks_blocked()
            assert (model.pinned, model.state) == (False, "unloading")
            await trio.sleep(UNLOAD + LOAD)
            await wait_all_tasks_blocked()
            assert runtime.models["other"].state == "ready"


@pytest.mark.parametrize("steps", range(30))
async def test_a_model_that_is_pinned_at_any_moment_of_its_coming_is_pinned(
    steps: int, autojump_clock: MockClock
) -> None:
    house = House()
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        model = runtime.add("m")
        nursery.start_soon(model.load)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        model.pin()
        await model.load()
        await wait_all_tasks_blocked()
        assert house.pinned()


# -- those who wait and go away

#: What is told when the only one who waits has gone away at once, and where the model is for ever
#: then.
LEFT: dict[str, tuple[list[str], str]] = {
    "absent": (["0 failed cancelled"], "absent"),
    "queued": (["0 failed cancelled"], "absent"),
    "loading": (["0.5 failed cancelled"], "absent"),
    "draining": (["9 unloaded unload"], "absent"),
    "unloading": (["2 unloaded unload"], "absent"),
    "failed": ([], "failed"),
}


@pytest.mark.parametrize("state", LEFT)
@pytest.mark.parametrize("who", ["job", "block", "load", "tune"])
async def test_one_who_waits_and_goes_away_ends_at_once_and_no_load_goes_on_for_nobody(
    state: str, who: str, autojump_clock: MockClock
) -> None:
    house = House()
    told, at_last = LEFT[state]
    scope = trio.CancelScope()
    async with house.opened(), trio.open_nursery() as nursery:
        model, earlier = await bring(house, nursery, state)

        async def wait() -> None:
            with scope:
                if who == "block":
                    async with model.generate(PROMPT) as job:
                        await job.wait()
                elif who != "job":
                    await (model.load() if who == "load" else model.tune(100))

        nursery.start_soon(wait)
        job = model.start_generation(PROMPT) if who == "job" else None
        await wait_all_tasks_blocked()
        earlier.cancel()
        await wait_all_tasks_blocked()
        coming = {"absent": "loading"}.get(state, state)
        assert model.state == coming  # one is enough
        house.begin()
        if job is not None:
            job.cancel()
            assert job.result is not None
            assert job.result.finish_reason == "cancelled"
            assert job not in model.jobs
        scope.cancel()
        await wait_all_tasks_blocked()
        if state == "absent":  # it was loading by then, and looks up after a second
            told = ["1 failed cancelled"]
        assert house.now == 0
        await trio.sleep(1000)
        assert house.life() == told
        assert model.state == at_last
        assert house.tickets == {}


async def test_of_several_who_wait_one_may_go_and_the_load_goes_on(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime:
        model = runtime.add("m")
        jobs = [model.start_generation(PROMPT, 2) for _ in range(3)]
        await trio.sleep(1.5)
        jobs[0].cancel()
        jobs[2].cancel()
        assert model.jobs == (jobs[1],)
        assert (await jobs[1].wait()).finish_reason == "length"
        assert house.now == LOAD + 3
        assert house.jobs("job_cancelled") == [jobs[0].id, jobs[2].id]


@pytest.mark.parametrize("after", [0.0, 0.2, 0.5])
async def test_who_comes_while_a_load_stops_waits_for_the_next(
    after: float, autojump_clock: MockClock
) -> None:
    house = House()
    async with house.opened() as runtime:
        model = runtime.add("m")
        job = model.start_generation(PROMPT)
        await trio.sleep(1.5)
        job.cancel()
        await trio.sleep(after) if after else None
        assert await by_start(house, model) == MODEL.answer(PROMPT, 2)
        assert house.now == 2 + LOAD + 3
        await wait_all_tasks_blocked()
        assert house.life() == [
            *["0 queued", "0 loading", "2 failed cancelled"],
            *["2 queued", "2 loading", "6 ready"],
        ]


# -- closing

#: When all has gone, and what is told of the model.
CLOSED: dict[str, tuple[float, list[str]]] = {
    "absent": (0, []),
    "queued": (0, ["0 failed cancelled"]),
    "loading": (0.5, ["0.5 failed cancelled"]),
    "ready": (1 + UNLOAD, ["0 draining close", "4 unloaded close"]),  # amid a prompt
    "draining": (1 + UNLOAD, ["4 unloaded unload"]),
    "unloading": (UNLOAD - 1, ["2 unloaded unload"]),
    "failed": (0, []),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("way", ["its end", "an exception", "cancelled"])
async def test_a_runtime_that_is_left_in_any_state_and_way_leaves_nothing(
    state: str, way: str, autojump_clock: MockClock
) -> None:
    backend = RecordingBackend(limit=5 * M)
    house = House(drain_seconds=0 if way == "its end" else 100, backend=backend)
    at, told = CLOSED[state]
    jobs: list[wa.Job] = []
    scope = trio.CancelScope()

    async def serve() -> None:
        async with house.opened():
            model, _ = await bring(house, nursery, state, room=ALL - 5 * M)
            if state != "absent":
                jobs.append(model.start_generation(PROMPT, 2))
                await wait_all_tasks_blocked()
            if way == "an exception":
                raise KeyError("body")
            if way == "cancelled":
                scope.cancel()
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with scope:
            if way == "an exception":
                with pytest.raises(KeyError, match="body"):
                    await serve()
            else:
                await serve()
        assert house.now == at
        nursery.cancel_scope.cancel()
    assert house.life() == told
    assert (max(backend.writes, default=0) > WEIGHTS) is (state in ("queued", "ready", "draining"))
    for job in jobs:
        assert job.result is not None
        assert job.result.finish_reason == "cancelled"


# -- yielding to others

#: When the other model has its room, and what is told of the one that is in its way.
YIELDS: dict[str, tuple[float, list[str]]] = {
    "absent": (0, []),
    # It came first, and is asked as soon as it is ready and nobody uses it.
    "queued": (9 + UNLOAD, ["5 loading", "9 ready", "9 draining pressure", "12 unloaded pressure"]),
    "loading": (2.5 + UNLOAD, ["2.5 ready", "2.5 draining pressure", "5.5 unloaded pressure"]),
    "ready": (UNLOAD, ["0 draining pressure", "3 unloaded pressure"]),
    "draining": (6 + UNLOAD, ["9 unloaded unload"]),
    "unloading": (UNLOAD - 1, ["2 unloaded unload"]),
    "failed": (0, []),
}


@pytest.mark.parametrize("state", STATES)
async def test_another_that_needs_the_room_gets_it_when_the_memory_is_back(
    state: str, autojump_clock: MockClock
) -> None:
    house = House(ceiling=BASE + ROW)
    at, told = YIELDS[state]
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        model, _ = await bring(house, nursery, state, room=BASE + ROW)
        await runtime.add("other").load()
        assert house.now == at + LOAD
        await wait_all_tasks_blocked()
        assert house.life() == told
        assert model.state == ("failed" if state == "failed" else "absent")
        # Whoever wants it again waits for the other to go, and nobody need ask for that.
        house.begin()
        assert await by_start(house, model) == MODEL.answer(PROMPT, 2)
        assert house.now == UNLOAD + LOAD + 3
        await wait_all_tasks_blocked()
        assert house.life() == ["0 queued", "3 loading", "7 ready"]
        assert house.life("other") == ["0 draining pressure", "3 unloaded pressure"]
