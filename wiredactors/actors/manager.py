"""The manager: one task that owns the ledger and the wired limit.

It drains its mailbox, hands the commands to the ledger, and carries the effects out in order. It
waits for nobody: a limit that is written elsewhere comes back as a command. Its mailbox is
unbounded by type and bounded by construction, since a ticket has at most a start, an end and a
resize under way.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Callable
from typing import Any, assert_never

import attrs
import trio

from wiredactors.actors.broadcast import Broadcast, EventStream
from wiredactors.actors.protocol import DeferredLimitBackend, LimitBackend
from wiredactors.memory import messages as m
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.errors import ManagerClosed
from wiredactors.memory.events import EventKind, Explanation, Snapshot
from wiredactors.memory.ledger import Ledger
from wiredactors.memory.tickets import WiredMemoryTicket


class _Request:
    """A question to the manager whose sender waits for the answer."""

    __slots__ = ("_answered", "_error", "_limit", "new_size", "ticket")

    def __init__(self, ticket: WiredMemoryTicket | None = None, new_size: int | None = None):
        self.ticket = ticket
        self.new_size = new_size
        self._answered = trio.Event()
        self._limit = 0
        self._error: Exception | None = None

    def answer(self, limit: int) -> None:
        self._limit = limit
        self._answered.set()

    def refuse(self, error: Exception) -> None:
        self._error = error
        self._answered.set()

    async def wait(self) -> int:
        await self._answered.wait()
        if self._error is not None:
            raise self._error
        return self._limit


class WiredMemoryManager:
    """The one owner of the process's wired limit. Open it with `open_manager()`.

    Tickets are its clients; people use `events`, `snapshot`, `explain` and
    `update_configuration`.
    """

    def __init__(
        self,
        configuration: WiredMemoryConfiguration,
        backend: LimitBackend,
        ceiling_of: Callable[[WiredMemoryConfiguration], int | None],
        supported: bool,
        owner: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ):
        """`supported` is the backend's word at opening; `ceiling_of` knows the device's memory.

        Inside `owner()` a write by the backend passes the guard that keeps all others out.
        """
        self._owner = owner
        self._backend = backend
        self._ceiling_of = ceiling_of
        self._inert = not supported and not configuration.policy_only_when_unsupported
        self._ledger = Ledger(
            configuration,
            ceiling=ceiling_of(configuration),
            writes=supported and configuration.wired_mode != "off",
        )
        self._broadcast = Broadcast()
        if not configuration.debug_events or self._inert:
            self._broadcast.close()
        self._send, self._receive = trio.open_memory_channel[m.Command](math.inf)

    # -- for people

    @property
    def configuration(self) -> WiredMemoryConfiguration:
        return self._ledger.configuration

    @contextlib.asynccontextmanager
    async def events(self) -> AsyncIterator[EventStream]:
        """A stream of every event from now on; the first is a snapshot of the state.

        It never holds up the manager: one that lags more than `event_buffer` events behind
        misses some, and reads how many in a record of kind `missed`. It ends when the manager
        closes.
        """
        buffer = self.configuration.event_buffer
        async with self._broadcast.subscribe(
            self.snapshot, trio.current_time(), buffer=buffer
        ) as stream:
            yield stream

    def snapshot(self) -> Snapshot:
        """The state of the ledger now, frozen."""
        return self._ledger.snapshot()

    @property
    def granted_bytes(self) -> int:
        """Bytes of all tickets that hold any; readable from any thread."""
        return self._ledger.granted_bytes

    def explain(self, ticket_id: str) -> Explanation:
        """Why a ticket waits, since when, behind whom, and what would let it in."""
        return self._ledger.explain(ticket_id, trio.current_time())

    async def update_configuration(self, **changes: Any) -> None:
        """Change fields of the configuration, for example `shrink_cooldown=0.5`.

        Raises:
            ManagerBusy: tickets are active or wait; reservations do not hinder it.
            ValueError: a value is out of its range.
            TypeError: there is no such field.
        """
        configuration = attrs.evolve(self.configuration, **changes)
        if self._inert:
            return
        ceiling = self._ceiling_of(configuration)
        request = _Request()
        self._post(m.Configure(configuration, ceiling, request))
        await request.wait()

    # -- for tickets

    async def start_ticket(self, ticket: WiredMemoryTicket, *, exclusive: bool = False) -> int:
        """See `WiredMemoryTicket.start`."""
        if self._inert:
            await trio.lowlevel.checkpoint()
            return 0
        request = _Request(ticket)
        self._post(
            m.Start(
                ticket_id=ticket.id,
                size=ticket.size,
                kind=ticket.kind,
                policy=ticket.policy,
                reply=request,
                priority=ticket.priority,
                pinned=ticket.pinned,
                reclaimable=ticket.reclaimable,
                requires=ticket.requires,
                exclusive=exclusive,
            )
        )
        try:
            return await request.wait()
        except trio.Cancelled:
            self._post_if_open(m.CancelStart(ticket.id, request))
            raise

    async def end_ticket(self, ticket: WiredMemoryTicket) -> int:
        """See `WiredMemoryTicket.end`."""
        request = _Request(ticket)
        if self._inert or not self._post_if_open(m.End(ticket.id, request)):
            await trio.lowlevel.checkpoint()
            return 0
        return await request.wait()

    def end_ticket_nowait(self, ticket: WiredMemoryTicket) -> None:
        """See `WiredMemoryTicket.end_nowait`. After the manager has closed there is nothing left."""
        if not self._inert:
            self._post_if_open(m.End(ticket.id))

    async def resize_ticket(self, ticket: WiredMemoryTicket, size: int) -> int:
        """See `WiredMemoryTicket.resize`."""
        if self._inert:
            ticket.size = size
            await trio.lowlevel.checkpoint()
            return 0
        request = _Request(ticket, new_size=size)
        self._post(m.Resize(ticket.id, size, request))
        try:
            return await request.wait()
        except trio.Cancelled:
            self._post_if_open(m.CancelResize(ticket.id, request))
            raise

    # -- for the other actors

    def note(self, kind: EventKind, **fields: Any) -> None:
        """Put an event of a model or a job into the stream, numbered like all others."""
        self._post_if_open(m.Note(kind, **fields))

    def report_foreign_write(self, limit: int) -> None:
        """Other code in this process tried to set the wired limit. Call it on the trio thread."""
        self._post_if_open(m.ForeignWrite(limit))

    # -- the task

    async def run(self) -> None:
        """Serve until closed, with every ticket ended and the baseline restored.

        Shielded: whoever cancels the application must not lose the ends of its tickets.
        """
        with trio.CancelScope(shield=True), self._receive:
            while not self._ledger.finished:
                deadline = self._ledger.deadline
                with trio.move_on_at(math.inf if deadline is None else deadline):
                    self._take(await self._receive.receive())
                self._drain()
        self._broadcast.close()

    def close(self) -> None:
        """End everything; `run` returns when the baseline is back."""
        self._post_if_open(m.Close())

    def _drain(self) -> None:
        """Take all that has come, then settle the limit once."""
        with contextlib.suppress(trio.WouldBlock):
            while True:
                self._take(self._receive.receive_nowait())
        self._settle()

    def _take(self, command: m.Command) -> None:
        self._carry_out(self._ledger.receive(command, trio.current_time()))
        if isinstance(command, m.CancelResize):
            self._tell_size(command.reply)

    def _settle(self) -> None:
        self._carry_out(self._ledger.settle(trio.current_time()))

    def _carry_out(self, effects: list[m.Effect]) -> None:
        for effect in effects:
            match effect:
                case m.Emit(event):
                    self._broadcast.send(event)
                case m.WriteLimit(limit):
                    self._write_limit(limit)
                case m.Answer(request, limit):
                    self._tell_size(request)
                    request.answer(limit)
                case m.Refuse(request, error):
                    request.refuse(error)
                case _:
                    assert_never(effect)

    def _tell_size(self, request: _Request) -> None:
        """A resize has (or has not) taken effect: the ticket says what the ledger holds."""
        if request.new_size is not None and request.ticket is not None:
            held = self._ledger.size_of(request.ticket.id)
            request.ticket.size = request.new_size if held is None else held

    def _write_limit(self, limit: int) -> None:
        if isinstance(self._backend, DeferredLimitBackend):
            self._backend.write_wired_limit(
                limit,
                lambda previous, error: self._post_if_open(_outcome(limit, previous, error)),
            )
            return
        try:
            with self._owner():
                previous = self._backend.set_wired_limit(limit)
            outcome = _outcome(limit, previous, None)
        except Exception as error:  # whatever a backend raises is a refusal
            outcome = _outcome(limit, None, error)
        self._take(outcome)
        self._settle()

    def _post(self, command: m.Command) -> None:
        if not self._post_if_open(command):
            raise ManagerClosed("the manager has closed: open one round all that uses its tickets")

    def _post_if_open(self, command: m.Command) -> bool:
        """Put a command into the mailbox; whether anybody is left to read it."""
        try:
            self._send.send_nowait(command)
        except trio.BrokenResourceError:
            return False
        return True


def _outcome(limit: int, previous: object, error: BaseException | None) -> m.Command:
    if error is not None:
        return m.LimitRefused(limit, f"{type(error).__name__}: {error}")
    return m.LimitWritten(limit, previous if isinstance(previous, int) else None)
