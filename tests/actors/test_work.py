"""Measuring a loaded model: its ticket, and what happens to it when others come or go.

Weights are 100 MiB, the workspace 10; a row takes 10 MiB for each 256 tokens; 256 prompt tokens
are read in a second, in chunks of as many.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import wiredactors as wa
from wiredactors.memory.measurement import WiredMemoryMeasurement
from wiredactors.testing import ModelledEngine, ModelledModel, RecordingBackend

M = wa.MIB
ROW = 10 * M
MODEL = ModelledModel(
    weight_bytes=100 * M,
    workspace_bytes=10 * M,
    kv_bytes_per_token=40 * wa.KIB,
    load_seconds=0,
    prefill_tokens_per_second=256,
    prefill_step_size=256,
    step_seconds=1,
)


class House:
    """A runtime with one model, and all that a test looks at."""

    def __init__(self, ceiling: int = 1000 * M):
        self.engine = ModelledEngine({"model": MODEL})
        self.backend = RecordingBackend()
        self.configuration = wa.WiredMemoryConfiguration(admission_ceiling=ceiling)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[wa.Model]:
        async with wa.open_runtime(
            configuration=self.configuration, backend=self.backend, engine=self.engine
        ) as self.runtime:
            with trio.fail_after(1000):
                yield await self.runtime.load("model")
        assert self.held == self.waiters == {}
        assert (self.backend.limit, self.engine.held_bytes) == (0, 0)
        assert all(r.charged_bytes <= r.granted_bytes for r in self.engine.records)

    @property
    def held(self) -> dict[str, int]:
        """Tickets besides the model's own reservations, in MiB."""
        tickets = self.runtime.manager.snapshot().tickets
        return {t.ticket_id: t.size // M for t in tickets if t.kind == "active"}

    @property
    def waiters(self) -> dict[str, int]:
        waiters = self.runtime.manager.snapshot().waiters
        return {waiter.ticket_id: waiter.size // M for waiter in waiters}

    @property
    def measured(self) -> list[float]:
        """When measurements ended."""
        return [record.time for record in self.engine.records if record.what == "tune"]


async def occupy(house: House, size: int, seconds: float) -> None:
    async with wa.WiredSumPolicy().ticket(size).wired_limit():
        await trio.sleep(seconds)


async def test_a_measurement_has_weights_cache_and_workspace(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model:
        measured = await model.tune(1000, batch_size=2, decode_tokens=30)
    assert isinstance(measured, WiredMemoryMeasurement)
    assert measured.measured
    assert (measured.weight_bytes, measured.workspace_bytes) == (100 * M, 2 * 10 * M)
    assert measured.kv_bytes == 2 * 5 * ROW
    assert measured.peak_active_bytes == measured.total_bytes == 220 * M
    assert (measured.token_count, measured.batch_size, measured.decode_tokens) == (1000, 2, 30)
    assert trio.current_time() == pytest.approx(2 * 1000 / 256 + 30)


async def test_the_prefill_step_is_the_models_own_unless_given(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model:
        assert (await model.tune()).prefill_step_size == 256
        assert (await model.tune(prefill_step_size=300)).prefill_step_size == 300
        other = await house.runtime.load("model", "other", prefill_step_size=64)
        assert (await other.tune()).prefill_step_size == 64


async def test_what_is_to_be_measured_reaches_the_engine(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model:
        assert model.count_tokens("x" * 512) == 512
        measured = await model.tune(512, kv_bits=4, kv_group_size=32, max_kv_size=128)
    assert (measured.token_count, measured.kv_bits, measured.max_kv_size) == (512, 4, 128)


@pytest.mark.parametrize(
    ("arguments", "tokens", "workspace"),
    [
        ({}, 2048, 0),
        ({"token_count": 1}, 256, 0),
        ({"token_count": 256, "decode_tokens": 1}, 512, 0),
        # The workspace of 10 MiB is held for steps of 256 tokens; three rows take 30.
        ({"token_count": 257, "batch_size": 3}, 3 * 512, 20 * M),
        # Chunks of 512 tokens take 20, ...
        ({"token_count": 1024, "prefill_step_size": 512}, 1024, 10 * M),
        # ... and those of 320 make the cache grow to 512, 832 and 1152.
        ({"token_count": 900, "prefill_step_size": 320}, 1152, 5 * M // 2),
    ],
)
async def test_its_ticket_holds_the_caches_and_what_its_steps_need_beyond_the_workspace(
    arguments: dict[str, Any], tokens: int, workspace: int, autojump_clock: MockClock
) -> None:
    house = House()
    size = tokens * 40 * wa.KIB + workspace
    async with house.opened() as model, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: model.tune(**arguments))
        await wait_all_tasks_blocked()
        assert house.held == {"tune-1": size // M}
        assert house.engine.held_bytes == 100 * M + tokens * 40 * wa.KIB
        assert house.backend.limit == 110 * M + size
    # It had the bytes until the engine had let go of its own.
    [record] = [record for record in house.engine.records if record.what == "tune"]
    assert record.granted_bytes == 110 * M + size


async def test_the_ticket_has_ended_when_it_returns(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model, house.runtime.manager.events() as stream:
        await model.tune()
        assert (house.held, house.backend.limit) == ({}, 0)
    kinds = [event.kind async for event in stream if event.ticket_id == "tune-1"]
    assert [kind for kind in kinds if kind.startswith("ticket")] == [
        "ticket_started",
        "ticket_ended",
    ]


async def test_measurements_are_numbered_apart_from_jobs_and_over_all_models(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model, trio.open_nursery() as nursery:
        other = await house.runtime.load("model", "other")
        nursery.start_soon(model.tune)
        nursery.start_soon(other.tune)
        await wait_all_tasks_blocked()
        assert set(house.held) == {"tune-1", "tune-2"}
        async with model.generate("x") as job:
            assert job.id == "job-1"


# -- refusals


async def test_what_does_not_fit_into_the_context_is_refused(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model:
        for arguments in ({"token_count": 4097}, {"token_count": 4000, "decode_tokens": 97}):
            with pytest.raises(wa.PromptTooLong) as caught:
                await model.tune(**arguments)
            assert (caught.value.prompt_tokens, caught.value.context_length) == (4097, 4096)
        await model.tune(4096)
        await model.tune(4000, decode_tokens=96)
    assert len(house.measured) == 2


@pytest.mark.parametrize(
    "arguments", [{"token_count": 0}, {"prefill_step_size": 0}, {"batch_size": 0}, {"kv_bits": 7}]
)
async def test_numbers_out_of_their_range_are_refused(
    arguments: dict[str, Any], autojump_clock: MockClock
) -> None:
    house = House()
    async with house.opened() as model:
        with pytest.raises(ValueError, match=next(iter(arguments))):
            await model.tune(**arguments)
        assert house.measured == []


async def test_one_that_can_never_fit_beside_weights_and_workspace_is_refused_at_once(
    autojump_clock: MockClock,
) -> None:
    house = House(ceiling=189 * M)
    async with house.opened() as model:
        with pytest.raises(wa.TicketTooLarge) as caught:
            await model.tune()
        error = caught.value
        assert (error.need, error.pinned_bytes) == (80 * M, 110 * M)
        assert (trio.current_time(), house.measured) == (0, [])


async def test_it_waits_for_memory_as_a_job_does(autojump_clock: MockClock) -> None:
    house = House(ceiling=190 * M)
    async with house.opened() as model, trio.open_nursery() as nursery:
        nursery.start_soon(occupy, house, 1, 5.0)
        await wait_all_tasks_blocked()
        nursery.start_soon(model.tune)
        await trio.sleep(4)
        assert (house.held, house.waiters) == ({next(iter(house.held)): 0}, {"tune-1": 80})
        await trio.sleep(20)
        assert house.measured == [5 + 8]


async def test_what_is_known_needs_no_memory_and_is_not_predicted(
    autojump_clock: MockClock,
) -> None:
    house = House(ceiling=190 * M)
    async with house.opened() as model, trio.open_nursery() as nursery:
        known = await model.tune(256)
        loaded = model._ready.loaded

        async def recall(parameters: Any) -> WiredMemoryMeasurement:
            assert parameters.token_count == 2048
            return known

        loaded.recall = recall  # type: ignore[method-assign]
        nursery.start_soon(occupy, house, 80 * M, 5.0)
        await wait_all_tasks_blocked()
        assert await model.tune() is known
        assert (len(house.held), house.waiters) == (1, {})
    assert house.measured == [1]


# -- cancelling


@pytest.mark.parametrize(
    ("cancel_at", "ends_at"), [(0, 0), (4.5, 4.5), (5.5, 6), (6.5, 7), (12.5, 13)]
)
async def test_a_measurement_that_is_cancelled_leaves_nothing(
    cancel_at: float, ends_at: float, autojump_clock: MockClock
) -> None:
    """It waits until 5, and has a chunk each second until 13: no chunk is torn apart."""
    house = House(ceiling=190 * M)
    async with house.opened() as model, trio.open_nursery() as nursery:
        nursery.start_soon(occupy, house, ROW, 5.0)
        await wait_all_tasks_blocked()
        with trio.CancelScope(deadline=cancel_at) as scope:
            await model.tune()
        assert scope.cancelled_caught or ends_at == 13
        assert trio.current_time() == pytest.approx(ends_at)
        await wait_all_tasks_blocked()
        assert "tune-1" not in house.held | house.waiters
        assert house.engine.held_bytes == 100 * M
        nursery.cancel_scope.cancel()
    assert len(house.measured) == (cancel_at >= 5)


# -- unloading and closing


async def test_unload_waits_for_a_measurement_and_takes_no_new_one(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model, trio.open_nursery() as nursery:
        nursery.start_soon(model.tune)
        await trio.sleep(1)
        nursery.start_soon(house.runtime.unload, "model")
        await wait_all_tasks_blocked()
        with pytest.raises(wa.ModelNotLoaded, match="is being unloaded"):
            await model.tune()
        await house.runtime.unload("model")
        assert trio.current_time() == pytest.approx(8)
        with pytest.raises(wa.ModelNotLoaded, match="is not loaded"):
            await model.tune()
    assert house.measured == [8]


async def test_unload_waits_for_a_measurement_that_is_only_thought_through_yet(
    autojump_clock: MockClock,
) -> None:
    house = House()
    for cancel in (False, True):
        async with house.opened() as model, trio.open_nursery() as nursery:
            predict = model._ready.loaded.predict

            async def slowly(parameters: Any, predict: Any = predict) -> WiredMemoryMeasurement:
                await trio.sleep(5)
                return await predict(parameters)

            model._ready.loaded.predict = slowly  # type: ignore[method-assign]
            nursery.start_soon(model.tune)
            await wait_all_tasks_blocked()
            if cancel:
                nursery.cancel_scope.cancel()
            else:
                await house.runtime.unload("model")
    assert house.measured == [5 + 8]


async def test_unload_waits_for_jobs_and_measurements_alike(autojump_clock: MockClock) -> None:
    house = House()
    for tokens in (3, 30):  # shorter and longer than the measurement
        async with house.opened() as model, trio.open_nursery() as nursery:
            nursery.start_soon(model.tune)
            async with model.generate("x", tokens) as job:
                await wait_all_tasks_blocked()
                await house.runtime.unload("model")
                assert job.result is not None
                assert job.result.finish_reason == "length"
            assert house.held == {}
    assert len(house.measured) == 2


async def test_the_end_of_a_job_does_not_let_the_model_go_while_a_measurement_waits(
    autojump_clock: MockClock,
) -> None:
    house = House(ceiling=195 * M)
    async with house.opened() as model, trio.open_nursery() as nursery:
        nursery.start_soon(occupy, house, ROW, 20.0)
        await wait_all_tasks_blocked()
        nursery.start_soon(model.tune)
        await wait_all_tasks_blocked()
        async with model.generate("x", 2) as job:
            nursery.start_soon(house.runtime.unload, "model")
            assert len([chunk async for chunk in job]) == 2
    assert house.measured == [20 + 8]


@pytest.mark.parametrize("close_at", [0.0, 0.5, 5.0, 6.5])
async def test_closing_stops_a_measurement_of_a_task_that_stays(
    close_at: float, autojump_clock: MockClock
) -> None:
    """It waits until 5."""
    house = House(ceiling=190 * M)
    errors = []

    async def measure(model: wa.Model) -> None:
        with pytest.raises(wa.ModelNotLoaded, match="unloaded while it was measured") as caught:
            await model.tune()
        errors.append(caught.value)

    async with trio.open_nursery() as outside:
        async with house.opened() as model:
            outside.start_soon(occupy, house, ROW, 5.0)
            await wait_all_tasks_blocked()
            outside.start_soon(measure, model)
            await wait_all_tasks_blocked()
            await trio.sleep(close_at)
        assert trio.current_time() <= close_at + 1
        await wait_all_tasks_blocked()
        assert len(errors) == 1
        outside.cancel_scope.cancel()


async def test_a_runtime_that_is_cancelled_stops_a_measurement_of_its_own_body(
    autojump_clock: MockClock,
) -> None:
    house = House()
    with trio.CancelScope(deadline=2.5) as scope:
        async with house.opened() as model:
            await model.tune()
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(3)


async def test_jobs_wait_for_the_device_and_go_on(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model, model.generate("x", 5) as job:
        await job.__anext__()
        began = trio.current_time()
        await model.tune()
        assert trio.current_time() - began <= 8 + 1  # the step under way
        assert len([chunk async for chunk in job]) == 4
    assert job.result is not None
    assert job.result.text == MODEL.answer("x", 5)
