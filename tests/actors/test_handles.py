"""Jobs as handles: started, held, waited for, left early, and streams round streams of them.

The model reads 100 prompt tokens a second and takes a second a step; a row of up to 256 tokens
holds 10 MiB.
"""

from __future__ import annotations

import gc
import inspect
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import wiredactors as wa
from tests.actors.modelled import BASE, MODEL, PROMPT, ROW
from wiredactors.scheduling.requests import RowOutput, RowRequest
from wiredactors.testing import ModelledEngine, ModelledModel, RecordingBackend

TOO_LONG = "x" * 300  # two steps of 256 tokens, of which most tests have one
LIVE = ["weights/model", "workspace"]


class House:
    """A runtime with one model, which has nothing left when it is unloaded."""

    def __init__(self, rows: int = 1, model: ModelledModel = MODEL):
        self.engine = ModelledEngine({"model": model})
        self.configuration = wa.WiredMemoryConfiguration(admission_ceiling=BASE + rows * ROW)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[wa.Model]:
        backend = RecordingBackend()
        async with wa.open_runtime(
            configuration=self.configuration,
            backend=backend,
            engine=self.engine,
            drain_seconds=0.0,
        ) as self.runtime:
            yield await self.runtime.load("model")
        assert self.tickets == []
        assert backend.limit == self.engine.held_bytes == 0
        assert all(r.charged_bytes <= r.granted_bytes for r in self.engine.records)

    @property
    def tickets(self) -> list[str]:
        snapshot = self.runtime.manager.snapshot()
        return sorted(ticket.ticket_id for ticket in snapshot.tickets + snapshot.waiters)

    def lasts(self, stream: wa.EventStream) -> list[wa.WiredMemoryEvent]:
        """The last events of the jobs that have ended since the last look."""
        events = []
        while True:
            try:
                events.append(stream.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                kinds = ("job_finished", "job_cancelled", "job_failed")
                return [event for event in events if event.kind in kinds]


def submits(model: wa.Model, submit: Callable[..., None]) -> None:
    """`submit(request, deliver)` takes the place of the engine's."""
    loaded: Any = model._ready.loaded
    loaded.submit = submit


# -- started, held and waited for


async def test_a_job_outlives_the_scope_that_started_it(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model:
        with trio.CancelScope() as scope:
            job = model.start_generation(PROMPT, max_tokens=5)
            scope.cancel()
            await trio.lowlevel.checkpoint()
        assert trio.current_time() == 0
        assert model.jobs == (job,)
        assert (await job.wait()).text == MODEL.answer(PROMPT, 5)
        assert trio.current_time() == pytest.approx(1 + 5)


async def test_waiting_returns_when_the_ticket_has_ended(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model:
        job = model.start_generation(PROMPT, max_tokens=3)
        result = await job.wait()
        assert house.tickets == LIVE
        assert house.engine.rows == frozenset()
        assert model.jobs == ()
        assert result is job.result is await job.wait()
        assert (result.finish_reason, result.kv_bytes) == ("length", ROW)


async def test_a_job_may_be_read_before_while_and_after_it_is_waited_for(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model, trio.open_nursery() as nursery:
        job = model.start_generation(PROMPT, max_tokens=6)
        nursery.start_soon(job.wait)
        texts = [(await job.__anext__()).text for _ in range(2)]
        result = await job.wait()
        texts += [chunk.text async for chunk in job]
        assert "".join(texts) == result.text == MODEL.answer(PROMPT, 6)


async def test_a_job_that_is_told_to_stop_ends_at_the_next_step(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model:
        job = model.start_generation(PROMPT, max_tokens=50)
        await trio.sleep(3.5)
        job.cancel()
        result = await job.wait()
        assert trio.current_time() == pytest.approx(4)
        assert (result.finish_reason, result.generation_tokens) == ("cancelled", 3)
        assert house.tickets == LIVE


async def test_who_stops_waiting_does_not_stop_the_job(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model:
        job = model.start_generation(PROMPT, max_tokens=5)
        with trio.move_on_after(2.5) as scope:
            await job.wait()
        assert scope.cancelled_caught
        assert trio.current_time() == 2.5
        assert (await job.wait()).finish_reason == "length"


@pytest.mark.parametrize("error", [wa.TicketTooLarge, wa.GenerationError])
async def test_waiting_raises_what_made_it_fail_bare_and_once(
    error: type[Exception], autojump_clock: MockClock
) -> None:
    house = House()
    async with house.opened() as model:
        job = model.start_generation(TOO_LONG if error is wa.TicketTooLarge else PROMPT, 5)
        house.engine.fail_row(job.id)
        with pytest.raises(error):
            await job.wait()
        assert (await job.wait()).finish_reason == "error"
        assert [chunk async for chunk in job] == []
        assert house.tickets == LIVE


async def test_a_failure_that_was_read_is_not_raised_by_waiting(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model:
        job = model.start_generation(TOO_LONG)
        with pytest.raises(wa.TicketTooLarge):
            await job.__anext__()
        assert (await job.wait()).finish_reason == "error"


async def test_what_is_wrong_with_the_arguments_is_raised_at_once(
    autojump_clock: MockClock,
) -> None:
    house = House()
    reservation = wa.WiredSumPolicy().ticket(ROW, kind="reservation")
    async with house.opened() as model:
        refused: list[dict[str, Any]] = [
            {"max_tokens": 0},
            {"top_logprobs": -1},
            {"kv_bits": 7},
            {"wired_memory_ticket": reservation},
        ]
        for wrong in refused:
            with pytest.raises(ValueError, match="must be"):
                model.start_generation(PROMPT, **wrong)
        with pytest.raises(wa.PromptTooLong):
            model.start_generation("x" * 4096)
        assert model.jobs == ()
        await house.runtime.unload("model")
        with pytest.raises(wa.ModelNotLoaded):
            model.start_generation(PROMPT)


async def test_a_generation_whose_block_is_not_entered_does_not_start(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model:
        generation = model.generate(PROMPT)
        await wait_all_tasks_blocked()
        assert model.jobs == ()
        async with generation as job:
            assert model.jobs == (job,)


async def test_jobs_that_are_started_in_one_turn_ask_for_memory_in_that_order(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model:
        for _ in range(10):  # trio shuffles its tasks
            jobs = [model.start_generation(PROMPT, max_tokens=1) for _ in range(5)]
            await wait_all_tasks_blocked()
            waiters = house.runtime.manager.snapshot().waiters
            assert model.jobs == tuple(jobs)
            assert [waiter.ticket_id for waiter in waiters] == [job.id for job in jobs[1:]]
            for job in jobs:
                await job.wait()


# -- jobs that nobody looks at


async def test_a_failure_that_nobody_reads_is_an_event_and_harms_nobody(
    autojump_clock: MockClock,
) -> None:
    house = House(rows=2)
    async with house.opened() as model, house.runtime.manager.events() as stream:
        other = model.start_generation(PROMPT, max_tokens=5)
        failed = [model.start_generation("x" * 600).id, model.start_generation(PROMPT).id]
        house.engine.fail_row(failed[1])
        assert (await other.wait()).finish_reason == "length"
        gc.collect()
        assert (await model.start_generation(PROMPT, 1).wait()).finish_reason == "length"
        await wait_all_tasks_blocked()
        errors = {event.job: event.error for event in house.lasts(stream)}
        assert [bool(errors[id]) for id in failed] == [True, True]
        assert list(errors) == [*failed, other.id, "job-4"]


async def test_a_job_that_breaks_down_ends_alone(autojump_clock: MockClock) -> None:
    house = House(rows=2)
    async with house.opened() as model:
        other = model.start_generation(PROMPT, max_tokens=5)
        await wait_all_tasks_blocked()

        def submit(request: RowRequest, deliver: Callable[[RowOutput], object]) -> None:
            deliver(RowOutput(row_id=request.row_id, finish_reason="stop", kv_bytes=-1))

        submits(model, submit)
        with pytest.raises(ValueError, match="observed must be"):
            await model.start_generation(PROMPT).wait()
        assert (await other.wait()).finish_reason == "length"
        assert house.runtime.models["model"] is model


async def test_unload_waits_for_it_and_it_can_be_asked_afterwards(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model:
        job = model.start_generation(PROMPT, max_tokens=5)
        await house.runtime.unload("model")
        assert trio.current_time() == pytest.approx(1 + 5)
        assert house.tickets == []
        assert (await job.wait()).finish_reason == "length"
        assert len([chunk async for chunk in job]) == 5


async def test_closing_the_runtime_cancels_those_that_run_and_those_that_wait(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model:
        jobs = [model.start_generation(PROMPT, max_tokens=50) for _ in range(3)]
        await trio.sleep(3.5)
        jobs.append(model.start_generation(PROMPT, max_tokens=50))
    assert trio.current_time() == pytest.approx(4)
    assert [job.result.finish_reason for job in jobs if job.result] == ["cancelled"] * 4
    assert (await jobs[0].wait()).generation_tokens == 3


async def test_a_body_that_fails_leaves_the_runtime_bare_though_jobs_run(
    autojump_clock: MockClock,
) -> None:
    house = House()
    jobs = []

    async def body() -> None:
        async with house.opened() as model:
            jobs.append(model.start_generation(PROMPT, max_tokens=50))
            await jobs[0].__anext__()
            raise KeyError("body")

    with pytest.raises(KeyError):
        await body()
    assert house.tickets == []
    assert jobs[0].result is not None


# -- left early


async def test_a_handle_that_is_left_early_is_cancelled_and_its_memory_is_back(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model:
        async with model.start_generation(PROMPT, max_tokens=50) as job:
            await job.__anext__()
            await trio.sleep(0.5)
        assert trio.current_time() == pytest.approx(3)
        assert (house.tickets, house.engine.rows) == (LIVE, frozenset())
        assert job.result is not None
        assert job.result.finish_reason == "cancelled"


async def test_leaving_raises_what_was_not_read_unless_the_body_fails_itself(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model:
        with pytest.raises(wa.TicketTooLarge):
            async with model.start_generation(TOO_LONG):
                pass
        with pytest.raises(KeyError):
            async with model.start_generation(TOO_LONG):
                raise KeyError("body")


@pytest.mark.parametrize("moment", [0.0, 0.5, 1.0, 1.5, 2.5, 3.0, 3.5, 9.0])
async def test_closing_returns_when_it_has_ended_at_any_moment_and_raises_nothing(
    moment: float, autojump_clock: MockClock
) -> None:
    """It prefills until 1, and has its tokens at 2, 3, 4 and 5."""
    house = House()
    async with house.opened() as model:
        with trio.CancelScope() as scope:
            job = model.start_generation(PROMPT, max_tokens=4)
            await trio.sleep(moment)
            scope.cancel()
            await job.aclose()
            assert job.result is not None
            assert (house.tickets, house.engine.rows) == (LIVE, frozenset())
        await job.aclose()
        assert (await job.wait()).finish_reason == ("length" if moment > 5 else "cancelled")


async def test_closing_keeps_a_failure_for_who_waits(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model:
        job = model.start_generation(TOO_LONG)
        await job.aclose()
        job = model.start_generation(TOO_LONG)
        await wait_all_tasks_blocked()
        await job.aclose()
        with pytest.raises(wa.TicketTooLarge):
            await job.wait()


# -- streams round streams


async def texts(model: wa.Model, max_tokens: int = 50) -> AsyncGenerator[str, None]:
    async with model.generate(PROMPT, max_tokens) as job:
        async for chunk in job:
            yield chunk.text


async def twice(inner: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async with aclosing(inner):
        async for text in inner:
            yield text * 2


async def test_closing_the_outermost_stream_closes_every_inner_one(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model:
        async with aclosing(twice(twice(texts(model)))) as outer:
            assert await outer.__anext__() == MODEL.answer(PROMPT, 1) * 4
            [job] = model.jobs
        assert trio.current_time() == pytest.approx(3)
        assert (house.tickets, house.engine.rows) == (LIVE, frozenset())
        assert job.result is not None
        assert job.result.finish_reason == "cancelled"


async def test_a_failure_goes_through_every_stream_and_leaves_nothing(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model:
        house.engine.fail_row("job-1", after_tokens=2)
        async with aclosing(twice(texts(model))) as outer:
            await outer.__anext__()
            await outer.__anext__()
            with pytest.raises(wa.GenerationError):
                await outer.__anext__()
        assert (house.tickets, house.engine.rows) == (LIVE, frozenset())


async def test_streams_may_be_closed_in_any_order_and_by_any_task(
    autojump_clock: MockClock,
) -> None:
    house = House(rows=3)
    async with house.opened() as model, trio.open_nursery() as nursery:
        streams = [texts(model) for _ in range(3)]
        for stream in streams:
            await stream.__anext__()
        await streams[0].aclose()
        assert len(house.engine.rows) == 2
        nursery.start_soon(streams[2].aclose)
        await trio.sleep(2)
        assert len(house.engine.rows) == 1
        with trio.CancelScope() as scope:
            scope.cancel()
            await streams[1].aclose()
        assert (house.tickets, house.engine.rows) == (LIVE, frozenset())


async def test_a_scope_round_the_reader_of_a_stream_does_what_it_says(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model:
        async with aclosing(twice(texts(model))) as outer:
            with trio.move_on_after(2.5) as scope:
                async for _ in outer:
                    pass
        assert scope.cancelled_caught
        assert trio.current_time() == pytest.approx(3)
        assert house.tickets == LIVE


async def test_a_stream_that_is_dropped_and_not_closed_stops_its_job_too(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model:
        streams = [texts(model)]
        await streams[0].__anext__()
        with pytest.warns(ResourceWarning, match="was garbage collected"):
            streams.clear()
        await trio.sleep(1.5)  # the step is finished
        assert (house.tickets, house.engine.rows) == (LIVE, frozenset())


@pytest.mark.parametrize("seed", range(20))
async def test_jobs_that_are_left_in_any_way_at_any_time_leave_nothing(
    seed: int, autojump_clock: MockClock, shuffle: Callable[[int], None]
) -> None:
    shuffle(seed)
    chance = random.Random(seed)
    house = House(rows=4, model=attrs.evolve(MODEL, answer_tokens=12))

    async def use(model: wa.Model) -> None:
        await trio.sleep(chance.uniform(0, 20))
        job = model.start_generation(PROMPT, max_tokens=chance.randint(1, 20))
        if chance.random() < 0.2:
            house.engine.fail_row(job.id, after_tokens=chance.randint(0, 10))
        with suppress(wa.GenerationError), trio.move_on_after(chance.uniform(0, 30)):
            way = chance.choice(["wait", "read", "block", "close", "cancel", "leave"])
            if way == "wait":
                await job.wait()
            elif way == "read":
                async for _ in job:
                    pass
            elif way == "block":
                async with job:
                    await trio.sleep(chance.uniform(0, 20))
            elif way == "close":
                await trio.sleep(chance.uniform(0, 20))
                await job.aclose()
            elif way == "cancel":
                await trio.sleep(chance.uniform(0, 20))
                job.cancel()
                assert (await job.wait()).finish_reason in ("cancelled", "stop", "length")
        jobs.append(job)

    jobs: list[wa.Job] = []
    async with house.opened() as model:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(use, model)
        await house.runtime.unload("model")
        assert house.tickets == []
    assert len(jobs) == 20
    assert all(job.result is not None for job in jobs)


# -- slow readers


async def test_what_a_slow_reader_leaves_lying_is_bounded_by_its_own_tokens(
    autojump_clock: MockClock,
) -> None:
    house = House(rows=2, model=attrs.evolve(MODEL, flushed_text="!"))
    async with house.opened() as model:
        slow = model.start_generation(PROMPT, max_tokens=20)
        other = model.start_generation(PROMPT, max_tokens=20)
        assert len([chunk async for chunk in other]) == 21
        await slow.wait()
        # Two prompts were read one after the other, and the rows had steps together.
        assert trio.current_time() <= 2 + 1 + 20
        lying = slow._receive.statistics()
        assert (lying.current_buffer_used, lying.max_buffer_size) == (21, 22)
        assert len([chunk async for chunk in slow]) == 21


async def test_it_is_bounded_by_what_the_context_leaves_however_much_was_asked_for(
    autojump_clock: MockClock,
) -> None:
    house = House(model=attrs.evolve(MODEL, context_length=104))
    async with house.opened() as model:
        job = model.start_generation(PROMPT, max_tokens=10**9)
        assert (await job.wait()).generation_tokens == 4
        assert job._receive.statistics().peak_buffer_used <= 4 + 2


async def test_what_an_engine_brings_when_the_job_has_ended_is_dropped(
    autojump_clock: MockClock,
) -> None:
    house = House()
    delivers: list[Callable[[RowOutput], object]] = []

    def submit(request: RowRequest, deliver: Callable[[RowOutput], object]) -> None:
        deliver(RowOutput(row_id=request.row_id, text="a", token=1))
        deliver(RowOutput(row_id=request.row_id, finish_reason="stop"))
        delivers.append(deliver)

    async with house.opened() as model:
        submits(model, submit)
        job = model.start_generation(PROMPT)
        await job.wait()
        delivers[0](RowOutput(row_id=job.id, text="b", token=2))
        assert [chunk.text async for chunk in job] == ["a"]
        assert job.text == "a"


# -- what is asked of the engine


def asked(house: House, model: wa.Model) -> list[RowRequest]:
    """The requests that reach the engine from here on."""
    requests: list[RowRequest] = []

    def submit(request: RowRequest, deliver: Callable[[RowOutput], object]) -> None:
        requests.append(request)
        house.engine.submit("model", request, deliver)

    submits(model, submit)
    return requests


async def test_everything_that_is_asked_for_reaches_the_engine_by_both_ways(
    autojump_clock: MockClock,
) -> None:
    house = House()
    sampling: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "seed": 7,
        "stop": ("end",),
        "repetition_penalty": 1.1,
        "repetition_context_size": 30,
        "logit_bias": {5: -1.0},
        "logits_processors": [max],
        "sampler": min,
        "logprobs": True,
        "top_logprobs": 3,
    }
    cache: dict[str, Any] = {"kv_bits": 4, "kv_group_size": 32}
    async with house.opened() as model:
        requests = asked(house, model)
        await model.start_generation(PROMPT, 3, **sampling, **cache).wait()
        async with model.generate(PROMPT, 3, **sampling, **cache) as job:
            await job.wait()
        await model.start_generation(PROMPT, 3, max_kv_size=128).wait()
        await model.start_generation(PROMPT, 3, stop="end").wait()
    first, second, third, fourth = requests
    assert attrs.evolve(first, row_id=second.row_id) == second
    got = attrs.asdict(first.sampling)
    assert got.keys() == sampling.keys()  # none is forgotten
    assert got == sampling | {"logit_bias": ((5, -1.0),), "logits_processors": (max,)}
    assert attrs.asdict(first.cache) == {"kv_bits": 4, "kv_group_size": 32, "max_kv_size": None}
    assert third.cache.max_kv_size == 128
    assert fourth.sampling.stop == ("end",)


def test_both_ways_take_the_same_arguments() -> None:
    ways = [inspect.signature(way) for way in (wa.Model.start_generation, wa.Model.generate)]
    assert ways[0].parameters == ways[1].parameters
    assert "kv_bits" in ways[1].parameters


async def test_chunks_tell_log_probabilities_when_asked(autojump_clock: MockClock) -> None:
    house = House()

    def submit(request: RowRequest, deliver: Callable[[RowOutput], object]) -> None:
        likely = ((1, -0.5), (7, -2.0))
        row = request.row_id
        deliver(RowOutput(row_id=row, text="a", token=1, logprob=-0.5, top_logprobs=likely))
        deliver(RowOutput(row_id=row, text="!", finish_reason="stop"))

    async with house.opened() as model:
        submits(model, submit)
        job = model.start_generation(PROMPT, logprobs=True, top_logprobs=2)
        first, flushed = [chunk async for chunk in job]
    assert (first.logprob, first.top_logprobs) == (-0.5, ((1, -0.5), (7, -2.0)))
    assert (flushed.token, flushed.logprob, flushed.top_logprobs) == (None, None, ())
    assert wa.Chunk("a", 1) == wa.Chunk("a", 1, logprob=None, top_logprobs=())
