"""What jobs are charged, and what the finished ones teach, on a modelled engine.

A row of up to 256 tokens is predicted to take 10 MiB; of "greedy", it takes 2.5 MiB more. The
models read 100 prompt tokens a second and take a second a step.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import wiredactors as wa
from tests.actors.modelled import MODEL, PROMPT, ROW
from wiredactors.actors.broadcast import EventStream
from wiredactors.memory.cache_cost import CacheCost
from wiredactors.scheduling.requests import CacheOptions
from wiredactors.testing import ModelledEngine, ModelledModel, RecordingBackend

SOURCES = {
    "exact": MODEL,
    "greedy": attrs.evolve(MODEL, unpredicted_bytes=ROW // 4),
    "brief": attrs.evolve(MODEL, answer_tokens=3),
}
LEARNED = {"predicted_bytes", "observed_bytes", "prediction_error", "correction"}


class House:
    def __init__(self) -> None:
        self.engine = ModelledEngine(SOURCES)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[wa.Runtime]:
        async with (
            wa.open_runtime(backend=RecordingBackend(), engine=self.engine) as runtime,
            runtime.manager.events() as self.stream,
        ):
            yield runtime

    def lasts(self) -> list[Mapping[str, Any]]:
        """The details of the last events of the jobs that have ended since the last look."""
        kinds = ("job_finished", "job_cancelled", "job_failed")
        return [event.details for event in read(self.stream) if event.kind in kinds]


def read(stream: EventStream) -> list[wa.WiredMemoryEvent]:
    events = []
    while True:
        try:
            events.append(stream.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return events


async def run_job(model: wa.Model, max_tokens: int = 2, **more: Any) -> wa.GenerationResult:
    async with model.generate(PROMPT, max_tokens, **more) as job:
        async for _ in job:
            pass
    assert job.result is not None
    return job.result


async def test_rows_that_took_more_than_predicted_raise_what_the_next_are_charged(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime:
        model = await runtime.load("greedy")
        assert (model.correction, model.ticket_size(PROMPT, 2)) == (1.0, ROW)
        first = await run_job(model)
        assert (first.ticket_size, first.kv_bytes) == (ROW, ROW + ROW // 4)
        assert (model.correction, model.ticket_size(PROMPT, 2)) == (1.25, ROW + ROW // 4)
        second = await run_job(model)
        assert second.ticket_size == second.kv_bytes == ROW + ROW // 4
        # It learns from what was predicted, not from what was charged.
        assert house.engine.corrections["greedy"].to_dict() == {"ratios": [1.25, 1.25]}
        assert [details["correction"] for details in house.lasts()] == [1.25, 1.25]


async def test_the_last_event_of_a_job_has_its_prediction_and_what_came_of_it(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime:
        await run_job(await runtime.load("greedy"))
        await run_job(await runtime.load("brief"), 300)  # two steps, for an answer in the first
        learned = [{name: details[name] for name in LEARNED} for details in house.lasts()]
        assert learned == [
            {
                "predicted_bytes": ROW,
                "observed_bytes": ROW + ROW // 4,
                "prediction_error": 0.25,
                "correction": 1.25,
            },
            {
                "predicted_bytes": 2 * ROW,
                "observed_bytes": ROW,
                "prediction_error": -0.5,
                "correction": 1.0,
            },
        ]


async def test_no_charge_goes_below_what_the_cache_is_built_like(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime:
        model = await runtime.load("brief")
        for _ in range(5):
            await run_job(model, 300)
        assert (model.correction, model.ticket_size(PROMPT, 300)) == (1.0, 2 * ROW)
        assert model.prediction_error == -0.5


async def test_a_row_that_decoded_counts_though_it_was_cancelled_or_failed(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime:
        model = await runtime.load("greedy")
        async with model.generate(PROMPT, 5) as job:
            await job.__anext__()
        assert house.engine.corrections["greedy"].count == 1
        house.engine.fail_row("job-2", after_tokens=1)
        with pytest.raises(wa.GenerationError):
            await run_job(model)
        assert house.engine.corrections["greedy"].count == 2
        lasts = house.lasts()
        assert [details["finish_reason"] for details in lasts] == ["cancelled", "error"]
        assert [details["prediction_error"] for details in lasts] == [0.25, 0.25]


async def test_of_a_row_that_never_decoded_nothing_is_learned_or_told(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime:
        model = await runtime.load("greedy")
        async with model.generate(PROMPT, 2):
            pass  # never admitted
        async with model.generate(3 * PROMPT, 2):
            await trio.sleep(0.5)  # in the first of two chunks
        too_large = wa.WiredSumPolicy().ticket(1000 * wa.GIB)
        with pytest.raises(wa.TicketTooLarge):
            await run_job(model, wired_memory_ticket=too_large)
        lasts = house.lasts()
        assert [details["kv_bytes"] for details in lasts] == [0, 0, 0]
        assert all(LEARNED.isdisjoint(details) for details in lasts)
        assert (model.correction, model.prediction_error) == (1.0, None)
        assert house.engine.corrections["greedy"].count == 0


async def test_where_nothing_was_predicted_nothing_is_learned(autojump_clock: MockClock) -> None:
    house = House()
    house.engine.sources["free"] = ModelledModel(kv_bytes_per_token=0, unpredicted_bytes=7)
    async with house.opened() as runtime:
        model = await runtime.load("free")
        assert (await run_job(model)).kv_bytes == 7
        assert (model.correction, model.prediction_error) == (1.0, None)


async def test_a_row_under_a_callers_ticket_counts_by_its_own_prediction(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime:
        model = await runtime.load("greedy")
        await run_job(model, wired_memory_ticket=wa.WiredSumPolicy().ticket(7 * ROW))
        [details] = house.lasts()
        assert (details["predicted_bytes"], details["prediction_error"]) == (ROW, 0.25)
        assert model.correction == 1.25


async def test_a_callers_ticket_is_undersized_by_what_is_charged_now(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime:
        model = await runtime.load("greedy")
        for _ in range(2):
            await run_job(model, wired_memory_ticket=wa.WiredSumPolicy().ticket(ROW))
        events = [event for event in read(house.stream) if event.kind == "ticket_undersized"]
        assert [event.details["missing_bytes"] for event in events] == [ROW // 4]


async def test_models_learn_each_for_itself(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as runtime:
        greedy, exact = await runtime.load("greedy"), await runtime.load("exact")
        await run_job(greedy)
        assert (greedy.correction, exact.correction) == (1.25, 1.0)
        await run_job(exact)
        assert (greedy.prediction_error, exact.prediction_error) == (0.25, 0.0)


async def test_the_engine_keeps_what_was_learned(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as runtime:
        model = await runtime.load("greedy")
        await run_job(model)
        await runtime.unload("greedy")
        for read_it in (lambda: model.correction, lambda: model.prediction_error):
            with pytest.raises(wa.ModelNotLoaded):
                read_it()
        assert (await runtime.load("greedy")).correction == 1.25


async def test_a_job_that_was_made_before_is_charged_what_was_known_then(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime:
        model = await runtime.load("greedy")
        async with model.generate(PROMPT, 2) as first, model.generate(PROMPT, 9) as second:
            async for _ in first:
                pass
            assert model.correction == 1.25
            assert second.ticket.size == ROW


async def test_a_row_is_charged_by_how_its_cache_is_kept(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as runtime:
        model = await runtime.load("exact")
        asked: list[CacheOptions] = []

        def row_cost(options: CacheOptions) -> CacheCost:
            asked.append(options)
            if options.max_kv_size is not None:
                raise ValueError("the model keeps its own cache")
            share = 1 if options.kv_bits is None else 4
            return CacheCost(fixed_bytes=0, step_bytes=ROW // share, copy_bytes=0)

        loaded: Any = model._ready.loaded
        loaded.row_cost = row_cost
        quantized = {"kv_bits": 4, "kv_group_size": 32}
        assert model.ticket_size(PROMPT, 2) == ROW
        assert model.ticket_size(PROMPT, 2, **quantized) == ROW // 4
        job = model.start_generation(PROMPT, 2, **quantized)
        assert job.ticket.size == ROW // 4
        assert asked == [CacheOptions(), *[CacheOptions(kv_bits=4, kv_group_size=32)] * 2]
        with pytest.raises(ValueError, match="its own cache"):
            model.ticket_size(PROMPT, 2, max_kv_size=512)
        with pytest.raises(ValueError, match="its own cache"):
            model.start_generation(PROMPT, 2, max_kv_size=512)
        assert model.jobs == (job,)
        await job.aclose()
