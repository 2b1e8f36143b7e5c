"""The job actor: one generation, from its ticket's start to its end.

The order is the promise: the ticket starts before the engine sees the prompt, and ends only after
the engine has let the row's memory go.

A job whose model is not there has no task: it lies in the model's line, where it can be cancelled
or fail, and is given its row when the model is ready. If the model must go again before the job
was admitted, the job goes back into the line.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import attrs
import trio

from wiredactors.actors.charge import Charge
from wiredactors.actors.protocol import EngineModel
from wiredactors.actors.result import Chunk, GenerationResult
from wiredactors.memory.events import EventKind
from wiredactors.memory.tickets import TicketManager, WiredMemoryTicket
from wiredactors.scheduling.requests import GenerationRequest, RowOutput, RowRequest


@attrs.frozen
class Row:
    """What a job is on a model that is there.

    Attributes:
        model: the loaded model.
        request: the prompt in its tokens, and `max_tokens` as the context leaves them.
        charge: the job's own idea of its size, also where the ticket is a caller's.
    """

    model: EngineModel
    request: RowRequest
    charge: Charge


class Job:
    """A generation under way: iterate over its chunks or not, `cancel()` it, `wait()` for it.

    Made by `Model.start_generation` and `Model.generate`. It runs by itself, in the model, so it
    goes on though nobody reads, waits, or keeps it. `async with job:` binds it to a block: leaving
    early cancels it. It holds no nursery and no cancel scope of yours open, so streams of your own
    may be wrapped round it, and closing the outermost one closes it.

    What makes it fail is raised once: by the first read or `wait()`, or by leaving its block. If
    nobody looks, it is still in the event `job_failed` and in `result.finish_reason`.

    Attributes:
        id: its name in events, and in the engine.
        model: the name of its model.
        since: when it was asked for, in seconds on trio's clock.
        request: what was asked for.
        ticket: the memory that it waits for and holds; its size is known once the model is there.
        result: None until it has ended.
    """

    def __init__(
        self,
        id: str,
        arrival: int,
        model: str,
        request: GenerationRequest,
        ticket: WiredMemoryTicket,
        note: Callable[..., None],
        withdraw: Callable[[Job], object],
        *,
        sizes_ticket: bool,
    ):
        """`arrival` is its place in its model's line, where `withdraw(job)` hears that it was
        cancelled; `sizes_ticket`: the ticket is its own, and no caller's."""
        self.id = id
        self.arrival = arrival
        self.request = request
        self.ticket = ticket
        self.result: GenerationResult | None = None
        self.model = model
        self._note_event = note
        self._withdraw = withdraw
        self._sizes_ticket = sizes_ticket
        self._row: Row | None = None
        self._told = False  # that it is queued
        self._stood_in_line = False
        self._cancelled = False
        self._postponed = False
        self._start_scope = trio.CancelScope()
        self._row_scope = trio.CancelScope()
        # Room for every token and what is flushed: a slow reader holds up nobody.
        self._send, self._receive = trio.open_memory_channel[Chunk](request.max_tokens + 2)
        self._row_ended = trio.Event()
        self._ended = trio.Event()
        self._error: Exception | None = None
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._finish_reason = ""
        self._kv_bytes = 0
        self.since = trio.current_time()
        self._admitted: float | None = None
        self._first_token: float | None = None
        self._last_token: float | None = None

    # -- for people

    def __aiter__(self) -> Job:
        return self

    async def __anext__(self) -> Chunk:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            self.raise_error()
            raise StopAsyncIteration from None

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._texts)

    def cancel(self) -> None:
        """Stop at the next step; `wait()` or `aclose()` says when the memory is back."""
        self._cancelled = True
        self._start_scope.cancel()
        self._row_scope.cancel()
        self._withdraw(self)  # where it stands in a line, it has ended by now

    async def wait(self) -> GenerationResult:
        """Wait until it has ended: its memory is back, and its ticket has ended.

        Cancelling the wait does not cancel the job.

        Raises:
            What made the job fail, unless that was raised already.
        """
        await self.wait_ended()
        self.raise_error()
        assert self.result is not None
        return self.result

    async def aclose(self) -> None:
        """Cancel it, and return when it has ended. Raises nothing, not even when cancelled."""
        self.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    async def __aenter__(self) -> Job:
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
        if error_type is None:
            self.raise_error()

    # -- for the model

    @property
    def priority(self) -> int:
        return self.request.priority

    def give_row(self, row: Row) -> None:
        """The model is there: this is what the job is on it."""
        self._row = row
        if self._sizes_ticket:
            self.ticket.size = row.charge.size
        if not self._told:
            self._told = True
            self._note(EventKind.JOB_QUEUED, prompt_tokens=len(row.request.prompt))

    def stand_in_line(self) -> None:
        """The model is not there: the job has no row yet, or has none any more."""
        self._row = None
        self._stood_in_line = True
        if not self._told:
            self._told = True
            self._note(EventKind.JOB_QUEUED)

    async def wait_ended(self) -> None:
        """Wait until it has ended; raises nothing."""
        await self._ended.wait()

    def postpone(self) -> bool:
        """Give the row up, if it has no memory yet; whether that is so. `run` then ends soon."""
        self._postponed = self._admitted is None and not self._cancelled
        if self._postponed:
            self._start_scope.cancel()
        return self._postponed

    def end(self, error: Exception | None = None) -> None:
        """It has ended; of `error`, if it never ran."""
        self._error = self._error or error
        try:
            self._conclude()
        except Exception as broken:  # a job that breaks down ends alone
            self._error = self._error or broken
        finally:
            # The stream ends last: who has read to the end finds the result, and the ticket ended.
            self._send.close()
            self._ended.set()

    def raise_error(self) -> None:
        """Raise what made the job fail, once."""
        error, self._error = self._error, None
        if error is None:
            return
        try:
            raise error
        finally:
            del error  # see `Request.raise_refusal`

    @trio.lowlevel.enable_ki_protection  # between admission and its note a ticket would be lost
    async def run(self) -> bool:
        """Be the job, on its row; whether it has ended: it has not where it was postponed.

        Only `cancel` stops it early; its errors are kept for whoever reads it.
        """
        assert self._row is not None
        with trio.CancelScope(shield=True):
            try:
                await self._generate(self._row)
            except Exception as error:
                self._error = error
        if self._postponed and self._admitted is None and not (self._cancelled or self._error):
            self._postponed = False
            self._start_scope = trio.CancelScope()
            return False
        self.end()
        return True

    async def _generate(self, row: Row) -> None:
        missing = row.charge.size - self.ticket.size
        if missing > 0:
            self._note(EventKind.TICKET_UNDERSIZED, missing_bytes=missing)
        manager = self.ticket.bind()
        with self._start_scope:
            await self._start_ticket(manager)
        if self._admitted is not None:
            try:
                await self._run_row(row)
            finally:
                await manager.end_ticket(self.ticket)

    async def _start_ticket(self, manager: TicketManager) -> None:
        since = self.since if self._stood_in_line else None
        await manager.start_ticket(self.ticket, exclusive=True, since=since)
        self._admitted = trio.current_time()
        self._note(EventKind.JOB_ADMITTED, waited=self._admitted - self.since)

    async def _run_row(self, row: Row) -> None:
        """Returns when the engine holds nothing of the row."""
        if self._row_scope.cancel_called:
            return
        try:
            with self._row_scope:
                row.model.submit(row.request, self._take)
                await self._row_ended.wait()
        finally:
            if not self._row_ended.is_set():
                self._kv_bytes = max(await row.model.remove(self.id), self._kv_bytes)

    def _take(self, output: RowOutput) -> None:
        """One output of the engine; on the trio thread, never blocking."""
        if self.result is not None:
            return  # what comes late harms nobody
        token, text = output.token, output.text
        if token is not None:
            self._tokens.append(token)
            self._last_token = now = trio.current_time()
            if self._first_token is None:
                self._first_token = now
                self._note(EventKind.JOB_FIRST_TOKEN, seconds=now - self.since)
        if text or token is not None:
            self._texts.append(text)
            self._send.send_nowait(Chunk(text, token, output.logprob, output.top_logprobs))
        if output.last:
            self._error = output.error
            self._finish_reason = output.finish_reason or ""
            self._kv_bytes = output.kv_bytes
            self._row_ended.set()

    def _conclude(self) -> None:
        reason = "error" if self._error is not None else self._finish_reason or "cancelled"
        now = trio.current_time()
        admitted = now if self._admitted is None else self._admitted
        first = self._first_token
        later = len(self._tokens) - 1
        prompt_tokens = 0 if self._row is None else len(self._row.request.prompt)
        self.result = GenerationResult(
            text="".join(self._texts),
            tokens=tuple(self._tokens),
            prompt_tokens=prompt_tokens,
            generation_tokens=len(self._tokens),
            prompt_tps=_rate(prompt_tokens, admitted, first),
            generation_tps=_rate(later, first, self._last_token),
            finish_reason=reason,
            waited=admitted - self.since,
            time_to_first_token=None if first is None else first - self.since,
            ticket_size=self.ticket.size,
            kv_bytes=self._kv_bytes,
        )
        kind = {"error": EventKind.JOB_FAILED, "cancelled": EventKind.JOB_CANCELLED}.get(
            reason, EventKind.JOB_FINISHED
        )
        self._note(
            kind,
            error=None if self._error is None else str(self._error),
            finish_reason=reason,
            generation_tokens=len(self._tokens),
            generation_tps=self.result.generation_tps,
            waited=self.result.waited,
            time_to_first_token=self.result.time_to_first_token,
            kv_bytes=self._kv_bytes,
            **({} if self._row is None else self._row.charge.settle(self._kv_bytes)),
        )

    def _note(self, kind: EventKind, error: str | None = None, **details: Any) -> None:
        self._note_event(
            kind,
            model=self.model,
            job=self.id,
            ticket_id=self.ticket.id,
            size=self.ticket.size or None,
            error=error,
            details=details,
        )


def _rate(count: int, begin: float | None, end: float | None) -> float:
    """`count` per second; 0 where there was no time to measure."""
    if begin is None or end is None or end <= begin or count <= 0:
        return 0.0
    return count / (end - begin)
