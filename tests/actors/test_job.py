"""A job: its ticket, its stream, its result, on a modelled engine under the mock clock.

The model reads 100 prompt tokens a second and takes a second a step; a row of up to 256 tokens
holds 10 MiB. Beside its weights (100 MiB) and workspace (10 MiB) the ceiling of most tests leaves
room for one such row.
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
from tests.actors.modelled import BASE, MODEL, PROMPT, ROW
from wiredactors.actors.broadcast import EventStream
from wiredactors.testing import ModelledEngine, ModelledModel, RecordingBackend


class House:
    """A runtime with one model, and all that a test looks at."""

    def __init__(self, room: int = ROW, model: ModelledModel = MODEL, **configuration: Any):
        self.engine = ModelledEngine({"model": model})
        self.backend = RecordingBackend()
        self.configuration = wa.WiredMemoryConfiguration(
            admission_ceiling=BASE + room, **configuration
        )

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[wa.Model]:
        async with wa.open_runtime(
            configuration=self.configuration, backend=self.backend, engine=self.engine
        ) as runtime:
            self.manager = runtime.manager
            model = await runtime.load("model")
            yield model
            # Looked at here too: closing would hide what was left.
            await wait_all_tasks_blocked()
            assert self.tickets == ["weights/model", "workspace"]
            assert self.waiters == []
            assert self.engine.rows == frozenset()
        assert self.tickets == []
        assert self.backend.limit == 0
        assert self.engine.held_bytes == 0
        assert all(r.charged_bytes <= r.granted_bytes for r in self.engine.records)

    @property
    def tickets(self) -> list[str]:
        return sorted(ticket.ticket_id for ticket in self.manager.snapshot().tickets)

    @property
    def waiters(self) -> list[str]:
        return [ticket.ticket_id for ticket in self.manager.snapshot().waiters]


def read(stream: EventStream) -> list[wa.WiredMemoryEvent]:
    """What has come so far, without the snapshot."""
    events = []
    while True:
        try:
            events.append(stream.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return [event for event in events if event.kind != "snapshot"]


async def read_all(job: wa.Job) -> list[wa.Chunk]:
    return [chunk async for chunk in job]


async def occupy(house: House, seconds: float = 1000.0, size: int = ROW) -> None:
    """Hold `size` bytes for a while."""
    async with wa.WiredSumPolicy().ticket(size).wired_limit():
        await trio.sleep(seconds)


# -- the way a job goes


async def test_the_answer_comes_in_chunks_that_join_to_the_result(
    autojump_clock: MockClock,
) -> None:
    house = House(model=attrs.evolve(MODEL, flushed_text="!"))
    async with house.opened() as model, model.generate(PROMPT, max_tokens=5) as job:
        chunks = await read_all(job)
    assert job.result is not None
    assert "".join(chunk.text for chunk in chunks) == job.result.text
    assert job.result.text == MODEL.answer(PROMPT, 5) + "!"
    assert tuple(c.token for c in chunks if c.token is not None) == job.result.tokens
    assert chunks[-1] == wa.Chunk("!", None)
    assert job.result.finish_reason == "length"
    assert job.result.generation_tokens == len(job.result.tokens) == 5


async def test_times_and_sizes_of_a_result_are_exact(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model, trio.open_nursery() as nursery:
        nursery.start_soon(occupy, house, 7.0)
        await wait_all_tasks_blocked()
        async with model.generate(PROMPT, max_tokens=5) as job:
            await read_all(job)
        result = job.result
    assert result is not None
    assert result.waited == pytest.approx(7)
    assert result.time_to_first_token == pytest.approx(7 + 1 + 1)  # wait, prefill, step
    assert result.prompt_tokens == 100
    assert result.prompt_tps == pytest.approx(100 / 2)
    assert result.generation_tps == pytest.approx(1)
    assert (result.ticket_size, result.kv_bytes) == (ROW, ROW)


async def test_the_ticket_starts_before_the_row_and_ends_after_its_memory_has_gone(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model, house.manager.events() as stream:
        async with model.generate(PROMPT, max_tokens=3) as job:
            await read_all(job)
        events = [(event.kind, event.ticket_id) for event in read(stream)]
    assert [kind for kind, id in events if id == job.id and kind.startswith(("ticket", "job"))] == [
        "job_queued",
        "ticket_started",
        "job_admitted",
        "job_first_token",
        "ticket_ended",
        "job_finished",
    ]
    [submit, let_go] = [r for r in house.engine.records if r.row_id == job.id]
    assert (submit.what, let_go.what) == ("submit", "let_go")
    # The ledger held the row's bytes at both moments.
    assert submit.granted_bytes == let_go.granted_bytes == BASE + ROW


async def test_a_ticket_of_a_row_that_is_left_early_ends_after_its_memory_has_gone(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model:
        async with model.generate(PROMPT, max_tokens=50) as job:
            await job.__anext__()
            await trio.sleep(0.5)  # in the middle of a step
        assert job.id not in house.tickets
        [_, let_go] = [r for r in house.engine.records if r.row_id == job.id]
    assert let_go.granted_bytes == BASE + ROW
    assert let_go.time == 3  # the step was not torn apart


async def test_the_end_of_the_stream_comes_when_the_ticket_has_ended_and_the_result_is_set(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model, model.generate(PROMPT, max_tokens=3) as job:
        await read_all(job)
        assert job.result is not None
        assert job.id not in house.tickets


async def test_reading_after_the_end_just_ends_and_unread_chunks_stay_readable(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model, model.generate(PROMPT, max_tokens=3) as job:
        assert len(await read_all(job)) == 3
        assert await read_all(job) == []
    assert await read_all(job) == []

    async with house.opened() as model:
        async with model.generate(PROMPT, max_tokens=50) as job:
            await trio.sleep(3.5)
        assert len(await read_all(job)) == job.result.generation_tokens == 3


async def test_a_slow_reader_holds_up_nobody(autojump_clock: MockClock) -> None:
    house = House(room=2 * ROW)
    async with house.opened() as model, model.generate(PROMPT, max_tokens=20) as slow:
        await trio.sleep(1.5)  # prefilled, and in its first step
        async with model.generate(PROMPT, max_tokens=20) as other:
            await read_all(other)
        # That step, the other's prefill, perhaps a step beside it, and twenty of both.
        assert trio.current_time() <= 2 + 2 + 20
        await trio.sleep(100)
        assert slow.result.finish_reason == "length"
        assert len(await read_all(slow)) == 20


async def test_max_tokens_is_cut_to_what_the_context_leaves(autojump_clock: MockClock) -> None:
    house = House(model=attrs.evolve(MODEL, context_length=104))
    async with house.opened() as model:
        assert model.context_length == 104
        async with model.generate(PROMPT, max_tokens=10**9) as job:
            assert len(await read_all(job)) == 4
        assert job.result.finish_reason == "length"
        with pytest.raises(wa.PromptTooLong) as caught:
            async with model.generate("x" * 104):
                pytest.fail("the body must not run")
        assert (caught.value.prompt_tokens, caught.value.context_length) == (104, 104)


# -- admission


async def test_entering_does_not_wait_for_admission(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model, trio.open_nursery() as nursery:
        nursery.start_soon(occupy, house, 5.0)
        await wait_all_tasks_blocked()
        async with model.generate(PROMPT, max_tokens=1) as job:
            assert trio.current_time() == 0
            await job.__anext__()
            assert trio.current_time() == pytest.approx(5 + 1 + 1)


async def test_a_refusal_is_raised_bare_at_the_first_read_and_once(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model:
        async with model.generate("x" * 300, max_tokens=1) as job:
            with pytest.raises(wa.TicketTooLarge) as caught:
                await job.__anext__()
            assert await read_all(job) == []
        error = caught.value
        assert (error.need, error.pinned_bytes, error.cap) == (2 * ROW, BASE, BASE + ROW)
        assert error.largest_possible == ROW
        assert job.result.finish_reason == "error"
        assert (job.result.waited, job.result.time_to_first_token) == (0, None)


async def test_a_refusal_that_goes_through_the_body_leaves_bare(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model:
        with pytest.raises(wa.TicketTooLarge):
            async with model.generate("x" * 300) as job:
                await read_all(job)
        assert job.result.finish_reason == "error"


@pytest.mark.parametrize("checkpoints", range(6))
async def test_a_refusal_that_nobody_read_is_raised_bare_at_leaving_however_soon(
    checkpoints: int, autojump_clock: MockClock
) -> None:
    house = House()

    async def body() -> None:
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()

    async with house.opened() as model:
        for _ in range(10):  # trio shuffles its tasks
            with pytest.raises(wa.TicketTooLarge):
                async with model.generate("x" * 300):
                    await body()


async def test_a_full_queue_is_said_at_the_first_read(autojump_clock: MockClock) -> None:
    house = House(max_waiters=1)
    async with house.opened() as model, trio.open_nursery() as nursery:
        nursery.start_soon(occupy, house, 5.0)
        await wait_all_tasks_blocked()
        async with model.generate(PROMPT, max_tokens=1) as first:
            await wait_all_tasks_blocked()
            with pytest.raises(wa.QueueFull) as caught:
                async with model.generate(PROMPT, max_tokens=1) as second:
                    await second.__anext__()
            assert (caught.value.waiting, caught.value.bound) == (1, 1)
            assert len(await read_all(first)) == 1


async def test_a_larger_priority_goes_first(autojump_clock: MockClock) -> None:
    house = House()
    order = []

    async def one(model: wa.Model, name: str, priority: int) -> None:
        async with model.generate(PROMPT, max_tokens=1, priority=priority) as job:
            await job.__anext__()
            order.append(name)

    async with house.opened() as model, trio.open_nursery() as nursery:
        nursery.start_soon(occupy, house, 5.0)
        await wait_all_tasks_blocked()
        for name, priority in [("low", 0), ("high", 5), ("middle", 2)]:
            nursery.start_soon(one, model, name, priority)
            await wait_all_tasks_blocked()
    assert order == ["high", "middle", "low"]


# -- leaving early


async def test_leaving_while_it_waits_leaves_no_waiter(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model, trio.open_nursery() as nursery:
        nursery.start_soon(occupy, house)
        await wait_all_tasks_blocked()
        async with model.generate(PROMPT, max_tokens=50) as job:
            await trio.sleep(1)
            assert house.waiters == [job.id]
        assert house.waiters == []
        assert job.result.finish_reason == "cancelled"
        assert (job.result.waited, job.result.generation_tokens) == (1, 0)
        async with model.generate(PROMPT, max_tokens=50) as job:
            pass
        assert house.waiters == []
        nursery.cancel_scope.cancel()


async def test_leaving_at_once_leaves_no_ticket(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model:
        for _ in range(5):
            async with model.generate(PROMPT, max_tokens=50) as job:
                pass
            assert job.id not in house.tickets
            assert job.result.finish_reason == "cancelled"
        assert [r for r in house.engine.records if r.what == "submit"] == []


async def test_leaving_early_cancels_and_what_came_is_in_the_result(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model:
        async with model.generate(PROMPT, max_tokens=50) as job:
            chunk = await job.__anext__()
        assert job.result.finish_reason == "cancelled"
        assert job.result.text.startswith(chunk.text)
        assert job.result.generation_tokens in (1, 2)
        assert job.result.kv_bytes == ROW
        assert trio.current_time() <= 3
        assert job.id not in house.tickets


async def test_an_exception_of_the_body_leaves_bare_and_the_result_is_set(
    autojump_clock: MockClock,
) -> None:
    house = House()

    async def body(job: wa.Job) -> None:
        await job.__anext__()
        raise KeyError("body")

    async with house.opened() as model:
        with pytest.raises(KeyError):
            async with model.generate(PROMPT, max_tokens=50) as job:
                await body(job)
        assert job.result.finish_reason == "cancelled"
        assert job.id not in house.tickets


async def test_another_task_may_cancel_a_job_and_its_reader_just_ends(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as model, trio.open_nursery() as nursery:
        async with model.generate(PROMPT, max_tokens=50) as job:

            async def cancel() -> None:
                await trio.sleep(4.5)
                job.cancel()

            nursery.start_soon(cancel)
            assert len(await read_all(job)) == 4  # the step under way is finished
        assert job.result.finish_reason == "cancelled"
        job.cancel()  # once more harms nobody
        async with model.generate(PROMPT, max_tokens=2) as next_job:
            assert len(await read_all(next_job)) == 2


async def test_the_limit_falls_back_when_the_last_job_has_ended(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model:
        assert house.backend.writes == []  # reservations alone raise nothing
        async with model.generate(PROMPT, max_tokens=2) as job:
            await job.__anext__()
            assert house.backend.limit == BASE + ROW
        assert house.backend.writes == [BASE + ROW, 0]


# -- failures


async def test_a_failing_row_fails_its_job_alone(autojump_clock: MockClock) -> None:
    house = House(room=2 * ROW)
    async with house.opened() as model, model.generate(PROMPT, max_tokens=5) as good:
        house.engine.fail_row("job-2", after_tokens=2)
        with pytest.raises(wa.GenerationError):
            async with model.generate(PROMPT, max_tokens=5) as bad:
                await read_all(bad)
        assert bad.result.finish_reason == "error"
        assert bad.result.generation_tokens == 2
        assert bad.id not in house.tickets
        assert len(await read_all(good)) == 5


async def test_the_tokens_before_a_failure_come_first(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model, model.generate(PROMPT, max_tokens=5) as job:
        house.engine.fail_row(job.id, after_tokens=2)
        await trio.sleep(100)
        await job.__anext__()
        await job.__anext__()
        with pytest.raises(wa.GenerationError):
            await job.__anext__()


async def test_a_failed_job_says_so_in_an_event(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as model, house.manager.events() as stream:
        house.engine.fail_row("job-1")
        with pytest.raises(wa.GenerationError):
            async with model.generate(PROMPT, max_tokens=5) as job:
                await job.__anext__()
        [failed] = [event for event in read(stream) if event.kind == "job_failed"]
    assert (failed.job, failed.ticket_id, failed.model) == (job.id, job.id, "model")
    assert "fails" in failed.error


# -- a caller's own ticket


async def test_a_callers_ticket_is_started_and_ended_by_the_job(autojump_clock: MockClock) -> None:
    house = House(room=5 * ROW)
    ticket = wa.WiredSumPolicy().ticket(3 * ROW)
    async with house.opened() as model, house.manager.events() as stream:
        for _ in range(2):  # after its end it may start again
            async with model.generate(PROMPT, max_tokens=2, wired_memory_ticket=ticket) as job:
                await job.__anext__()
                assert ticket.id in house.tickets
            assert ticket.id not in house.tickets
            assert job.result.ticket_size == 3 * ROW
        events = read(stream)
    assert job.id not in {event.ticket_id for event in events}
    assert "ticket_undersized" not in {event.kind for event in events}


async def test_a_ticket_smaller_than_the_estimate_is_honoured_and_an_event_says_by_how_much(
    autojump_clock: MockClock,
) -> None:
    house = House()
    ticket = wa.WiredSumPolicy().ticket(ROW - 7)
    async with wa.open_runtime(backend=house.backend, engine=house.engine) as runtime:
        model = await runtime.load("model")
        async with runtime.manager.events() as stream:
            async with model.generate(PROMPT, 2, wired_memory_ticket=ticket) as job:
                assert len(await read_all(job)) == 2
            [event] = [event for event in read(stream) if event.kind == "ticket_undersized"]
    assert (event.ticket_id, event.job, event.size) == (ticket.id, job.id, ROW - 7)
    assert event.details["missing_bytes"] == 7


async def test_a_callers_ticket_that_cannot_fit_beside_the_weights_is_refused_at_once(
    autojump_clock: MockClock,
) -> None:
    house = House(room=5 * ROW)
    ticket = wa.WiredSumPolicy().ticket(5 * ROW + 1)
    async with house.opened() as model:
        with pytest.raises(wa.TicketTooLarge) as caught:
            async with model.generate(PROMPT, wired_memory_ticket=ticket) as job:
                await job.__anext__()
        assert caught.value.largest_possible == 5 * ROW


async def test_a_reservation_is_no_ticket_for_a_job(autojump_clock: MockClock) -> None:
    house = House()
    ticket = wa.WiredSumPolicy().ticket(ROW, kind="reservation")
    async with house.opened() as model:
        with pytest.raises(ValueError, match="must be active"):
            async with model.generate(PROMPT, wired_memory_ticket=ticket):
                pass


async def test_a_ticket_that_runs_already_is_refused_and_goes_on(autojump_clock: MockClock) -> None:
    house = House(room=2 * ROW)
    ticket = wa.WiredSumPolicy().ticket(ROW)
    async with house.opened() as model:
        async with ticket.wired_limit():
            async with model.generate(PROMPT, wired_memory_ticket=ticket) as job:
                with pytest.raises(wa.TicketInUse):
                    await job.__anext__()
            assert ticket.id in house.tickets
        async with model.generate(PROMPT, 5, wired_memory_ticket=ticket) as job:
            await job.__anext__()
            with pytest.raises(wa.TicketInUse):
                async with model.generate(PROMPT, wired_memory_ticket=ticket) as second:
                    await second.__anext__()
            assert len(await read_all(job)) == 4


async def test_a_ticket_that_is_withdrawn_while_it_waits_fails_the_job(
    autojump_clock: MockClock,
) -> None:
    house = House()
    ticket = wa.WiredSumPolicy().ticket(ROW)
    async with house.opened() as model, trio.open_nursery() as nursery:
        nursery.start_soon(occupy, house, 5.0)
        await wait_all_tasks_blocked()
        async with model.generate(PROMPT, wired_memory_ticket=ticket) as job:
            await wait_all_tasks_blocked()
            await ticket.end()
            with pytest.raises(wa.TicketWithdrawn):
                await job.__anext__()


async def test_a_ticket_that_an_earlier_manager_admitted_belongs_to_this_one_now(
    autojump_clock: MockClock,
) -> None:
    ticket = wa.WiredSumPolicy().ticket(ROW)
    async with wa.open_manager(backend=RecordingBackend()), ticket.wired_limit():
        pass
    house = House(room=2 * ROW)
    async with house.opened() as model:
        async with model.generate(PROMPT, 5, wired_memory_ticket=ticket) as job:
            await job.__anext__()
            await ticket.resize(2 * ROW)
            [held] = [t for t in house.manager.snapshot().tickets if t.ticket_id == ticket.id]
            assert held.size == 2 * ROW
        assert ticket.id not in house.tickets


async def test_a_ticket_that_names_a_closed_manager_fails_the_job(
    autojump_clock: MockClock,
) -> None:
    async with wa.open_manager(backend=RecordingBackend()) as closed:
        pass
    house = House()
    ticket = wa.WiredSumPolicy().ticket(ROW, manager=closed)
    async with house.opened() as model:
        with pytest.raises(wa.ManagerClosed):
            async with model.generate(PROMPT, wired_memory_ticket=ticket) as job:
                await job.__anext__()
        assert job.result.finish_reason == "error"


# -- cancellation from outside


@pytest.mark.parametrize("quiet", [False, True], ids=["at-once", "at-quiet-points"])
@pytest.mark.parametrize("cancel_at", [0.0, 0.5, 4.9, 5.0, 5.5, 6.0, 6.5, 7.0, 8.0, 8.5, 10.0])
async def test_a_job_that_is_cancelled_at_any_moment_leaves_nothing(
    cancel_at: float, quiet: bool, autojump_clock: MockClock
) -> None:
    """It waits until 5, prefills until 6, has its tokens at 7, 8, 9 and 10."""
    house = House()
    if quiet:
        house.engine = ModelledEngine({"model": MODEL}, backend=house.backend)
    async with house.opened() as model, trio.open_nursery() as nursery:
        nursery.start_soon(occupy, house, 5.0)
        await wait_all_tasks_blocked()
        with trio.CancelScope(deadline=cancel_at) as scope:
            async with model.generate(PROMPT, max_tokens=4) as job:
                await read_all(job)
        assert job.id not in house.tickets + house.waiters
        assert job.id not in house.engine.rows
        assert job.result.finish_reason in ("cancelled", "length")
        assert scope.cancelled_caught or job.result.finish_reason == "length"
        nursery.cancel_scope.cancel()


async def test_the_sizes_of_a_job_are_those_that_its_model_says(autojump_clock: MockClock) -> None:
    house = House(room=3 * ROW)
    async with house.opened() as model:
        assert model.ticket_size(PROMPT, max_tokens=156) == ROW
        assert model.ticket_size(PROMPT, max_tokens=157) == 2 * ROW
        messages = [{"role": "user", "content": "hello"}]
        async with model.generate(messages, max_tokens=300) as job:
            assert job.ticket.size == model.ticket_size(messages, max_tokens=300) == 2 * ROW
        for arguments in ({"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 2.0}, {"stop": ""}):
            with pytest.raises(ValueError, match="must"):
                async with model.generate(PROMPT, **arguments):
                    pytest.fail("the body must not run")
        with pytest.raises(ValueError, match="empty"):
            model.ticket_size("")
