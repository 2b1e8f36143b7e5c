"""A model: how it is loaded and let go, and the workspace that models share.

Weights are 100 MiB, a load takes 4 s, a row of up to 256 tokens holds 10 MiB, reads 100 prompt
tokens a second and takes a second a token.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import wiredactors as wa
from wiredactors.actors.broadcast import EventStream
from wiredactors.scheduling.requests import LoadPlan
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
SOURCES = {
    "small": MODEL,
    "wide": attrs.evolve(MODEL, workspace_bytes=30 * M),
    "peaky": attrs.evolve(MODEL, peak_bytes=150 * M),
    "broken": attrs.evolve(MODEL, load_error=wa.ModelLoadError("the file is broken")),
    "heavier": attrs.evolve(MODEL, loaded_bytes=120 * M),
    "lighter": attrs.evolve(MODEL, loaded_bytes=90 * M),
    "huge": attrs.evolve(MODEL, weight_bytes=1000 * M),
}


class House:
    """A runtime under a ceiling, and all that a test looks at."""

    def __init__(self, ceiling: int = 1000 * M, **more: Any):
        self.engine = ModelledEngine(SOURCES)
        self.backend = RecordingBackend()
        self.configuration = wa.WiredMemoryConfiguration(admission_ceiling=ceiling, **more)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[wa.Runtime]:
        async with wa.open_runtime(
            configuration=self.configuration, backend=self.backend, engine=self.engine
        ) as runtime:
            self.runtime = runtime
            yield runtime
        assert self.tickets == self.waiters == {}
        assert self.backend.limit == 0
        assert self.engine.held_bytes == 0
        assert all(r.charged_bytes <= r.granted_bytes for r in self.engine.records)

    @property
    def tickets(self) -> dict[str, int]:
        tickets = self.runtime.manager.snapshot().tickets
        return {ticket.ticket_id: ticket.size // M for ticket in tickets}

    @property
    def waiters(self) -> dict[str, int]:
        waiters = self.runtime.manager.snapshot().waiters
        return {waiter.ticket_id: waiter.size // M for waiter in waiters}


def read(stream: EventStream) -> list[wa.WiredMemoryEvent]:
    """What has come so far, without the snapshot."""
    events = []
    while True:
        try:
            events.append(stream.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return [event for event in events if event.kind != "snapshot"]


async def run_job(model: wa.Model, tokens: int) -> wa.GenerationResult | None:
    async with model.generate("x" * 100, max_tokens=tokens) as job:
        async for _ in job:
            pass
    return job.result


@asynccontextmanager
async def held(size: int) -> AsyncIterator[None]:
    async with wa.WiredSumPolicy().ticket(size).wired_limit():
        yield


# -- loading


async def test_the_reservation_is_admitted_before_the_load_and_holds_its_peak(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(runtime.load, "peaky")
        await trio.sleep(2)
        assert house.tickets == {"weights/peaky": 150, "workspace": 10}
        assert runtime.models == {}
        await trio.sleep(2.5)
        assert house.tickets == {"weights/peaky": 100, "workspace": 10}
        assert runtime.models["peaky"].weight_bytes == 100 * M
    [load] = [record for record in house.engine.records if record.what == "load"]
    assert load.granted_bytes == 160 * M


async def test_a_load_waits_for_memory_and_goes_in_when_a_job_ends(
    autojump_clock: MockClock,
) -> None:
    house = House(ceiling=235 * M)
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        first = await runtime.load("small", "first")
        nursery.start_soon(run_job, first, 50)  # from 4 to 55
        await wait_all_tasks_blocked()
        with trio.fail_after(1000):
            await runtime.load("wide", "second")
        assert trio.current_time() == pytest.approx(55 + 4)
        assert house.tickets == {"weights/first": 100, "weights/second": 100, "workspace": 30}


async def test_a_load_that_waits_holds_nothing_and_asks_once_for_all(
    autojump_clock: MockClock,
) -> None:
    house = House(ceiling=240 * M)
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        await runtime.load("small", "first", pinned=True)
        async with held(20 * M):
            nursery.start_soon(runtime.load, "wide", "second")
            await wait_all_tasks_blocked()
            assert house.waiters == {"weights/second": 120}  # its weights, and what it adds
            assert house.tickets["workspace"] == 10
        await trio.sleep(1)
        assert house.tickets == {"weights/first": 100, "weights/second": 100, "workspace": 30}


async def test_nobody_takes_the_room_of_the_workspace_while_it_moves(
    autojump_clock: MockClock,
) -> None:
    house = House(ceiling=240 * M)
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        await runtime.load("small", "first", pinned=True)

        async def hold() -> None:
            async with held(15 * M):
                await trio.sleep(10)

        async with held(130 * M):
            nursery.start_soon(runtime.load, "wide", "second")
            await wait_all_tasks_blocked()
            nursery.start_soon(hold)  # would fit into what moves, and into nothing else
            await wait_all_tasks_blocked()
        await trio.sleep(1)
        assert house.tickets == {"weights/first": 100, "weights/second": 100, "workspace": 30}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("source", ["huge", "small"])
async def test_a_load_that_can_never_fit_is_refused_at_once_and_leaves_nothing(
    source: str, autojump_clock: MockClock
) -> None:
    # Of "small" the weights alone would fit, but not beside the workspace that they stand on.
    house = House(ceiling=105 * M)
    async with house.opened() as runtime, held(100 * M):
        with pytest.raises(wa.TicketTooLarge) as caught:
            await runtime.load(source)
        assert trio.current_time() == 0
        error = caught.value
        assert error.need == SOURCES[source].weight_bytes + 10 * M
        assert (error.cap, error.pinned_bytes, error.largest_possible) == (105 * M, 0, 105 * M)
        assert (len(house.tickets), house.waiters, runtime.models) == (1, {}, {})


async def test_a_load_that_fits_neither_now_nor_later_beside_a_workspace_is_refused_at_once(
    autojump_clock: MockClock,
) -> None:
    house = House(ceiling=1009 * M)
    async with house.opened() as runtime:
        wide = await runtime.load("wide")
        for pinned, kept in [(False, 10), (True, 130)]:  # of the workspace, its own part at least
            if pinned:
                wide.pin()
            with pytest.raises(wa.TicketTooLarge) as caught:
                await runtime.load("huge")
            assert (caught.value.need, caught.value.pinned_bytes) == (1000 * M, kept * M)
        assert house.tickets == {"weights/wide": 100, "workspace": 30}


async def test_a_failing_load_frees_everything_and_its_name_can_be_used_again(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime, runtime.manager.events() as stream:
        for source, match in [("broken", "the file is broken"), ("unknown", "no model 'unknown'")]:
            with pytest.raises(wa.ModelLoadError, match=match):
                await runtime.load(source, "chat")
            assert (house.tickets, house.engine.held_bytes, runtime.models) == ({}, 0, {})
        await wait_all_tasks_blocked()
        failures = [event for event in read(stream) if event.kind == "model_failed"]
        assert [event.model for event in failures] == ["chat", "chat"]
        assert failures[0].error == "the file is broken"
        await runtime.load("small", "chat")
        assert list(runtime.models) == ["chat"]


async def test_a_name_can_be_loaded_once(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(runtime.load, "small", "chat")
        await trio.sleep(1)
        with pytest.raises(wa.ModelLoadError, match="'chat' is loaded already"):
            await runtime.load("small", "chat")
        await trio.sleep(5)
        with pytest.raises(wa.ModelLoadError, match="'chat' is loaded already"):
            await runtime.load("wide", "chat")
        assert house.tickets == {"weights/chat": 100, "workspace": 10}


async def test_every_option_of_a_load_reaches_the_engine(autojump_clock: MockClock) -> None:
    house = House()
    options: dict[str, Any] = {
        "dtype": "float16",
        "dequantize": True,
        "prefill_step_size": 64,
        "max_batch_size": 3,
        "weight": 2.5,
    }
    load, plans = house.engine.load, []

    async def noted(name: str, plan: LoadPlan, *more: Any) -> Any:
        plans.append(plan)
        return await load(name, plan, *more)

    engine: Any = house.engine
    engine.load = noted
    async with house.opened() as runtime:
        await runtime.load("small", margin=M, **options)
        assert attrs.asdict(plans[0].options) == options | {"margin_bytes": M}
        with pytest.raises(ValueError, match="weight"):
            await runtime.load("small", "other", weight=0)


async def test_wrong_options_are_refused_before_anything_else(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as runtime:
        with pytest.raises(ValueError, match="prefill_step_size"):
            await runtime.load("small", prefill_step_size=100)
        with pytest.raises(ValueError, match="dtype"):
            await runtime.load("small", dtype="int3")
        await runtime.load("small")


async def test_weights_that_turn_out_smaller_give_the_rest_back(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as runtime:
        model = await runtime.load("lighter")
        assert house.tickets["weights/lighter"] == 90
        assert model.weight_bytes == 90 * M


async def test_weights_that_turn_out_larger_wait_for_the_rest(autojump_clock: MockClock) -> None:
    house = House(ceiling=130 * M)
    house.engine.sources["heavier"] = attrs.evolve(SOURCES["heavier"], workspace_bytes=0)
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        async with held(20 * M):
            nursery.start_soon(runtime.load, "heavier")
            await trio.sleep(10)
            assert (house.tickets["weights/heavier"], runtime.models) == (100, {})
        await wait_all_tasks_blocked()
        assert house.tickets == {"weights/heavier": 120, "workspace": 0}
        assert list(runtime.models) == ["heavier"]
        # For once the engine held more than was granted.
        house.engine.records.clear()


async def test_weights_that_turn_out_too_large_for_ever_fail_the_load(
    autojump_clock: MockClock,
) -> None:
    house = House(ceiling=115 * M)
    async with house.opened() as runtime:
        with pytest.raises(wa.TicketTooLarge) as caught:
            await runtime.load("heavier")
        assert caught.value.need == 120 * M
        assert (house.tickets, house.engine.held_bytes, runtime.models) == ({}, 0, {})
        house.engine.records.clear()  # for once the engine held more than was granted


@pytest.mark.parametrize("cancel_at", [0.0, 1.0, 5.0, 5.5, 6.0, 7.0, 8.9, 9.0])
async def test_a_load_that_is_cancelled_at_any_moment_leaves_nothing(
    cancel_at: float, autojump_clock: MockClock
) -> None:
    """It waits for memory until 5 and loads until 9; another model is there."""
    house = House(ceiling=235 * M)
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        await runtime.load("small", "other", pinned=True)
        start = trio.current_time()

        async def hold() -> None:
            async with held(20 * M):
                await trio.sleep(5)

        nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        with trio.CancelScope(deadline=start + cancel_at) as scope:
            await runtime.load("wide", "second")
        if scope.cancelled_caught:
            assert "weights/second" not in house.tickets | house.waiters
            assert house.tickets["workspace"] == 10
            assert house.engine.models == {"other"}
            assert list(runtime.models) == ["other"]
        else:
            assert cancel_at == 9
            await runtime.unload("second")
        with trio.fail_after(20):
            await runtime.load("wide", "second")  # the name is free


async def test_of_two_loads_that_may_not_come_in_yet_one_can_be_cancelled(
    autojump_clock: MockClock,
) -> None:
    house = House(overtake_seconds=0)  # nobody passes one that waits

    async def wait_and_go() -> None:
        async with held(1000 * M):
            pass

    async with house.opened() as runtime, trio.open_nursery() as nursery:
        async with held(1000 * M):
            nursery.start_soon(wait_and_go)
            await wait_all_tasks_blocked()
            nursery.start_soon(runtime.load, "small", "first")
            await wait_all_tasks_blocked()
            with trio.fail_after(2), trio.move_on_after(1):
                await runtime.load("small", "second")
        await trio.sleep(5)
        assert list(runtime.models) == ["first"]


# -- unloading


async def test_unload_waits_for_running_jobs_and_takes_no_new_ones(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        model = await runtime.load("small")
        async with model.generate("x" * 100, max_tokens=20) as job:  # until 25
            nursery.start_soon(runtime.unload, "small")
            await wait_all_tasks_blocked()
            with pytest.raises(wa.ModelNotLoaded, match="'small' is being unloaded"):
                await run_job(model, 1)
            with pytest.raises(wa.ModelNotLoaded):
                model.ticket_size("x")
            await runtime.unload("small")  # a second one waits too
            assert trio.current_time() == pytest.approx(25)
            assert job.result is not None
            assert job.result.finish_reason == "length"
        assert (house.tickets, house.engine.models, runtime.models) == ({}, frozenset(), {})
        with pytest.raises(wa.ModelNotLoaded):
            await run_job(model, 1)


async def test_an_unload_whose_caller_goes_away_goes_on(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as runtime:
        model = await runtime.load("small")
        async with model.generate("x" * 100, max_tokens=20):
            with trio.move_on_after(1):
                await runtime.unload("small")
            assert runtime.models == {}
            with pytest.raises(wa.ModelLoadError, match="'small' is being unloaded"):
                await runtime.load("small")
        await runtime.unload("small")
        assert house.tickets == {}


async def test_unload_of_an_unknown_name_says_which_are_known(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as runtime:
        await runtime.load("small")
        with pytest.raises(wa.ModelNotLoaded, match=r"'big'.*\['small'\]"):
            await runtime.unload("big")


async def test_the_reservation_ends_after_the_weights_have_gone(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as runtime:
        await runtime.load("small")
        await runtime.unload("small")
        [record] = [record for record in house.engine.records if record.what == "unload"]
        assert record.granted_bytes == 110 * M
        assert house.tickets == {}
        await runtime.load("small")


async def test_an_unload_that_fails_says_so_and_frees_the_name(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House()

    async def fail(name: str) -> None:
        raise OSError("the device is gone")

    async with house.opened() as runtime, runtime.manager.events() as stream:
        await runtime.load("small")
        with monkeypatch.context() as patch:
            patch.setattr(house.engine, "unload", fail)
            with pytest.raises(OSError, match="the device is gone"):
                await runtime.unload("small")
        assert (house.tickets, runtime.models) == ({}, {})
        assert [e.error for e in read(stream) if e.kind == "model_failed"] == [
            "OSError('the device is gone')"
        ]
        await runtime.load("small")
        house.engine.records.clear()  # it holds the one that it could not let go of


# -- the workspace


async def test_the_workspace_is_held_once_as_the_largest(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as runtime:
        sizes = [house.tickets.get("workspace")]
        for source in ("small", "wide", "peaky"):
            await runtime.load(source)
            sizes.append(house.tickets["workspace"])
        for name in ("wide", "small", "peaky"):
            await runtime.unload(name)
            sizes.append(house.tickets.get("workspace"))
        assert sizes == [None, 10, 30, 30, 10, 10, None]


async def test_models_that_come_and_go_together_leave_the_right_workspace(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for source in ("small", "wide", "peaky"):
                    nursery.start_soon(runtime.load, source)
            assert house.tickets["workspace"] == 30
            async with trio.open_nursery() as nursery:
                nursery.start_soon(runtime.unload, "small")
                nursery.start_soon(runtime.unload, "wide")
            await wait_all_tasks_blocked()
            assert house.tickets == {"weights/peaky": 100, "workspace": 10}
            await runtime.unload("peaky")
            assert house.tickets == {}


async def test_an_unload_does_not_wait_for_a_load_that_waits(autojump_clock: MockClock) -> None:
    house = House(ceiling=350 * M)
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        await runtime.load("small", "first", pinned=True)
        await runtime.load("small", "second", pinned=True)
        async with held(120 * M):
            nursery.start_soon(runtime.load, "wide", "third")
            await wait_all_tasks_blocked()
            assert house.waiters == {"weights/third": 120}
            with trio.fail_after(1):
                await runtime.unload("first")
            # Its memory is what the third has waited for.
            await trio.sleep(5)
            assert list(runtime.models) == ["second", "third"]


async def test_a_job_that_can_never_fit_beside_weights_and_workspace_is_refused(
    autojump_clock: MockClock,
) -> None:
    house = House(ceiling=115 * M)
    async with house.opened() as runtime:
        model = await runtime.load("small")
        with pytest.raises(wa.TicketTooLarge) as caught:
            await run_job(model, 20)
        error = caught.value
        assert (error.need, error.pinned_bytes) == (10 * M, 110 * M)
        assert (error.cap, error.largest_possible) == (115 * M, 5 * M)


# -- events


async def test_a_models_events_are_numbered_in_the_one_sequence_and_tied_to_its_ticket(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime, runtime.manager.events() as stream:
        model = await runtime.load("peaky", "chat")
        await run_job(model, 2)
        await runtime.unload("chat")
        events = read(stream)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    about_model = [event for event in events if event.model == "chat" and event.job is None]
    assert [event.kind for event in about_model] == [
        "model_queued",
        "model_loading",
        *["model_progress"] * 4,
        "model_ready",
        "model_draining",
        "model_unloaded",
    ]
    assert {event.ticket_id for event in about_model} == {"weights/chat"}
    assert about_model[0].details["source"] == "peaky"
    assert about_model[5].details == {"done_bytes": 100 * M, "total_bytes": 100 * M}
    about_job = [event for event in events if event.job is not None]
    assert {(event.model, event.ticket_id) for event in about_job} == {("chat", "job-1")}
    assert str(model) == "<Model chat>"
