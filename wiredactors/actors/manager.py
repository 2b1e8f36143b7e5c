"""The manager: one task that owns the ledger and the wired limit.

It drains its mailbox, hands the commands to the ledger, and carries the effects out in order. It
waits for nobody: a limit that is written elsewhere comes back as a command. Its mailbox is
unbounded by type and bounded by construction, since a ticket has at most a start, an end and a
resize under way.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from threading import get_ident
from typing import Any, assert_never

import attrs
import trio

from wiredactors.actors.broadcast import Broadcast, EventStream
from wiredactors.actors.hold import TicketHold
from wiredactors.actors.mailbox import Mailbox, wrong_thread
from wiredactors.actors.protocol import DeferredLimitBackend, LimitBackend
from wiredactors.actors.request import Request
from wiredactors.memory import messages as m
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.errors import ManagerClosed
from wiredactors.memory.events import EventKind, Explanation, Snapshot, WiredMemoryEvent
from wiredactors.memory.ledger import Ledger
from wiredactors.memory.outside import MemoryReading
from wiredactors.memory.tickets import WiredMemoryTicket
from wiredactors.memory.trial import Asking, DryRun, all_admitted, dry_run
from wiredactors.memory.units import checked_size

#: The most commands that one turn takes. Between two turns others run, subscribers among them, so
#: this bounds how many events come at once: far fewer than their buffers hold. With 20 a burst of
#: 2,000 tickets takes half as long again, and with no bound hardly less than with 200 (measured).
_COMMANDS_A_TURN = 200


class WiredMemoryManager:
    """The one owner of the process's wired limit. Open it with `open_manager()`.

    Tickets are its clients; people use `events`, `snapshot`, `explain`, `would_admit`
    and `update_configuration`.
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
        self._deferred = backend if isinstance(backend, DeferredLimitBackend) else None
        self._ceiling_of = ceiling_of
        self._supported = supported
        self._inert = not supported and not configuration.policy_only_when_unsupported
        self._ledger = Ledger(
            configuration,
            ceiling=ceiling_of(configuration),
            writes=supported,
        )
        self._broadcast = Broadcast(self._ledger.listen)
        self._open_requests: set[Request] = set()
        self._asked: dict[str, _Life] = {}  # of reservations whose owners wait to be asked
        self._updating = trio.Lock()
        self._mailbox: Mailbox[m.Command] = Mailbox()
        self._served = False  # to the end: nobody reads the mailbox any more
        self._thread = get_ident()
        self._trio_token = trio.lowlevel.current_trio_token()
        #: Have the machine's memory read and reported at once; whoever opened it knows how. What is
        #: asked of the manager afterwards is decided by that reading.
        self.read_memory_now: Callable[[], None] = lambda: None

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
        self._check_thread()
        broadcast = self._broadcast
        if self._inert or not self.configuration.debug_events:
            broadcast = Broadcast()
            broadcast.close()
        async with broadcast.subscribe(
            self.snapshot, trio.current_time(), buffer=self.configuration.event_buffer
        ) as stream:
            yield stream

    @property
    def baseline(self) -> int:
        """The limit in bytes that is restored when the last active ticket ends."""
        return self._ledger.baseline

    def snapshot(self) -> Snapshot:
        """The state of the ledger now, frozen."""
        return self._ledger.snapshot()

    @property
    def granted_bytes(self) -> int:
        """Bytes of all tickets that hold any; readable from any thread."""
        return self._ledger.granted_bytes

    def explain(self, ticket_id: str | WiredMemoryTicket) -> Explanation:
        """Why a ticket waits, since when, behind whom, and what would let it in.

        Args:
            ticket_id: its id, or the ticket itself.

        Raises:
            TypeError: it is neither.
        """
        if isinstance(ticket_id, WiredMemoryTicket):
            ticket_id = ticket_id.id
        elif not isinstance(ticket_id, str):
            raise TypeError(f"explain takes a ticket or its id, not {ticket_id!r}")
        return self._ledger.explain(ticket_id, trio.current_time())

    def would_admit(self, tickets: Iterable[Asking]) -> DryRun:
        """What would happen if these asked now, one after the other, and what would have to yield.

        A dry run of the ledger: nothing starts, and no event says so. Like `snapshot`, it does
        not know of an `end_nowait()` that came since the last `await`. It costs O(n) in the
        tickets that live and wait.

        Args:
            tickets: tickets, or `(size, policy)` for an active one. A ticket that runs or waits
                already would be refused (`TicketInUse`), as each is work of its own.

        Raises:
            TypeError: one is neither.
        """
        if self._inert:
            return all_admitted(tickets)
        return dry_run(self._ledger, tickets, trio.current_time())

    async def update_configuration(self, **changes: Any) -> None:
        """Change fields of the configuration, for example `shrink_cooldown=0.5`.

        Raises:
            ManagerBusy: tickets are active or wait; reservations do not hinder it.
            ValueError: a value is out of its range, or decided for good when the manager opened.
            TypeError: there is no such field.
        """
        self._check_thread()
        async with self._updating:  # two at once must not undo each other's changes
            configuration = attrs.evolve(self.configuration, **changes)
            was = self.configuration.policy_only_when_unsupported
            if not self._supported and configuration.policy_only_when_unsupported != was:
                raise ValueError("policy_only_when_unsupported is decided when the manager opens")
            request = Request()
            await self._ask(m.Configure(configuration, self._ceiling_of(configuration), request))

    # -- for tickets

    def start_ticket(
        self, ticket: WiredMemoryTicket, *, exclusive: bool = False, since: float | None = None
    ) -> Coroutine[Any, Any, int]:
        """See `WiredMemoryTicket.start`; `since` is that of `messages.Start`."""
        # Not a coroutine around a coroutine: thousands may wait in it.
        if self._inert:
            return _do_nothing()
        return self._ask(m.Start(ticket, Request(ticket), exclusive, since), m.CancelStart)

    async def end_ticket(self, ticket: WiredMemoryTicket) -> int:
        """See `WiredMemoryTicket.end`."""
        if self._inert:
            return await _do_nothing()
        try:
            return await self._ask(m.End(ticket.id, Request(ticket)))
        except ManagerClosed:  # it has ended all that there was
            return 0

    def end_ticket_nowait(self, ticket: WiredMemoryTicket) -> None:
        """See `WiredMemoryTicket.end_nowait`. After closing there is nothing left to end."""
        if not self._inert:
            self._post(m.End(ticket.id))

    def hold_ticket(self, ticket: WiredMemoryTicket) -> TicketHold:
        """See `WiredMemoryTicket.wired_limit`."""
        return TicketHold(self, ticket)

    async def resize_ticket(self, ticket: WiredMemoryTicket, size: int) -> int:
        """See `WiredMemoryTicket.resize`."""
        if self._inert or self._served:  # it holds nothing here
            ticket.size = size
            return await _do_nothing()
        request = Request(ticket, new_size=size)
        return await self._ask(m.Resize(ticket.id, size, request), m.CancelResize)

    def touch_ticket(self, ticket: WiredMemoryTicket) -> None:
        """See `WiredMemoryTicket.touch`."""
        if not self._inert:
            self._post(m.Use(ticket.id))

    def use_ticket(self, ticket: WiredMemoryTicket, *, in_use: bool) -> None:
        """Say whether an evictable reservation is in use from now on; it is from its start on.

        It takes effect at the manager's next turn, and means nothing for a ticket that is not
        evictable or does not run.
        """
        if not self._inert:
            self._post(m.Use(ticket.id, in_use))

    def pin_ticket(self, ticket: WiredMemoryTicket, pinned: bool) -> None:
        """Change whether a ticket may go away, of one that runs or waits from the next turn on.

        Raises:
            ValueError: it is reclaimable, which a pinned one cannot be.
        """
        if ticket.reclaimable:
            raise ValueError(f"{ticket.id} is reclaimable, so it cannot be pinned")
        ticket.pinned = pinned
        if not self._inert:
            self._post(m.Pin(ticket.id, pinned))

    async def wait_for_reclaim(self, ticket: WiredMemoryTicket) -> bool:
        """See `WiredMemoryTicket.wait_for_reclaim`."""
        self._check_thread()
        asked = self._ledger.is_asked(ticket.id)
        if self._served or asked is not False:
            await trio.lowlevel.checkpoint()
            return bool(asked) and not self._served
        life = self._asked.setdefault(ticket.id, _Life())
        while not life.over:
            if self._ledger.is_asked(ticket.id):
                return True
            await life.news.wait()
        return False

    @trio.lowlevel.enable_ki_protection
    async def _ask(self, command: m.Asking, undo: type[m.Undoing] | None = None) -> int:
        """Send a command and wait for the answer.

        When the wait is cancelled, or interrupted by Ctrl-C, an `undo` goes out, and the exception
        goes on when the manager has dealt with that, which takes it no more than its turn:
        nothing is left behind then. A refusal that came first is not lost over a cancellation.
        """
        request: Request = command.reply
        if self._served:
            raise ManagerClosed("the manager has closed: open one round all that uses its tickets")
        if get_ident() != self._thread:
            raise wrong_thread()
        self._mailbox.put(command)
        del command  # what waits long should hold little
        self._open_requests.add(request)
        try:
            request.sender = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(request.leave)
        except BaseException as reason:
            ticket = request.ticket
            if undo is not None and ticket is not None and self._post(undo(ticket.id, request)):
                request.taken_back = trio.Event()
                with trio.CancelScope(shield=True):
                    await request.taken_back.wait()
                if isinstance(reason, trio.Cancelled):
                    request.raise_refusal()
            raise
        finally:
            self._open_requests.discard(request)
        return request.outcome()

    # -- for the other actors

    def note(self, kind: EventKind, **fields: Any) -> None:
        """Put an event of a model or a job into the stream, numbered like all others."""
        self._post(m.Note(kind, **fields))

    def report_foreign_write(self, limit: int) -> None:
        """Other code in this process tried to set the wired limit."""
        self._post(m.ForeignWrite(limit))

    def report_memory(self, reading: MemoryReading | None) -> None:
        """The machine's memory as it is now; None where that is not known any more."""
        if not self._inert:
            self._post(m.Observe(reading))

    def report_blindness(self, error: Exception) -> None:
        """The machine's memory cannot be read."""
        if not self._inert:
            self._post(m.Observe(None, f"{type(error).__name__}: {error}"))

    # -- the task

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Serve until closed, with every ticket ended and the baseline restored.

        Shielded, and a Ctrl-C that comes amid it goes to the main task: whoever stops the
        application must not lose the ends of its tickets.
        """
        try:
            with trio.CancelScope(shield=True):
                while not self._ledger.finished:
                    await self._serve_until_deadline()
                    self._take_turn(trio.current_time())
        finally:
            self._served = True
            # Whoever still asks, also inside a shield of its own, must not wait for ever.
            for request in self._open_requests:
                if not request.answered:
                    request.refuse(ManagerClosed("the manager has closed"))
                _say_taken_back(request)
            for life in self._asked.values():
                life.end()
            self._asked.clear()
            self._broadcast.close()

    async def _serve_until_deadline(self) -> None:
        """Take turn after turn, until the ledger's deadline has passed or it is finished."""
        now = trio.lowlevel.current_clock().current_time
        # One scope for many turns: to make one for each would cost more than the turn, and the
        # deadline of a shrink that is held back stays the same for long.
        with trio.CancelScope() as alarm:
            while not self._ledger.finished:
                deadline = math.inf if self._ledger.deadline is None else self._ledger.deadline
                if alarm.deadline != deadline:
                    alarm.deadline = deadline
                await self._mailbox.wait()
                self._take_turn(now())

    def _close(self) -> None:
        """End everything; `run` returns when the baseline is back."""
        self._post(m.Close())

    def _take_turn(self, now: float) -> None:
        """Take what has come, up to a turn's worth, then settle the limit once."""
        self._broadcast.begin_turn()
        commands = self._mailbox.items
        for _ in range(min(len(commands), _COMMANDS_A_TURN)):
            self._take(commands.popleft(), now)
        self._settle(now)

    def _take(self, command: m.Command, now: float) -> None:
        # No name for the effects: a refusal's traceback leads back to this frame.
        self._carry_out(self._ledger.receive(command, now), now)
        match command:
            case m.Start():
                pass
            case m.End():
                self._look_after_life(command.ticket_id)
            case m.CancelStart():
                self._look_after_life(command.ticket_id)
                _say_taken_back(command.reply)
            case m.Resize():
                self._tell_size(command.reply)
            case m.CancelResize():
                self._tell_size(command.reply)
                _say_taken_back(command.reply)
            case m.Configure() if not self.configuration.debug_events:
                self._broadcast.end_streams()

    def _settle(self, now: float) -> None:
        self._carry_out(self._ledger.settle(now), now)

    def _carry_out(self, effects: list[m.Effect], now: float) -> None:
        for effect in effects:
            match effect:
                case m.Answer(requests, limit):
                    for request in requests:
                        if request.new_size is not None:
                            self._tell_size(request)
                        request.answer(limit)
                case WiredMemoryEvent():
                    self._broadcast.send(effect)
                case m.WriteLimit(limit):
                    self._write_limit(limit, now)
                case m.Reclaim(ticket_id):
                    if ticket_id in self._asked:
                        self._asked[ticket_id].tell()
                case m.Refuse(request, error):
                    request.refuse(error)
                case _:
                    assert_never(effect)

    def _look_after_life(self, ticket_id: str) -> None:
        """A ticket may have ended: then its owner waits no more, not even if it starts again."""
        if self._asked and ticket_id in self._asked and self._ledger.is_asked(ticket_id) is None:
            self._asked.pop(ticket_id).end()

    def _tell_size(self, request: Request) -> None:
        """A resize was taken, or answered, or its sender has given up: the ticket has what is held.

        Where nothing is held, the size is for the next start, which may come in the same turn.
        """
        ticket = request.ticket
        if ticket is None or request.new_size is None:
            return
        held = self._ledger.size_of(ticket.id)
        if held is not None:
            ticket.size = held
        elif request.taken_back is None:
            ticket.size = request.new_size
        if ticket.size == request.new_size:
            request.new_size = None  # what is told once is not told again: others may come after

    def _write_limit(self, limit: int, now: float) -> None:
        if self._deferred is not None:
            done = _Outcome(limit, self._post)
            try:
                self._deferred.write_wired_limit(limit, done)
            except Exception as error:
                done(None, error)
            return
        try:
            with self._owner():
                previous = self._backend.set_wired_limit(limit)
            outcome = _outcome(limit, previous, None)
        except Exception as error:  # whatever a backend raises is a refusal
            outcome = _outcome(limit, None, error)
        self._take(outcome, now)
        self._settle(now)

    def _post(self, command: m.Command) -> bool:
        """Put a command into the mailbox; whether anybody is left to read it.

        From another thread it is handed over to the event loop, and comes in at its next turn.
        """
        if self._served:
            return False
        if get_ident() == self._thread:
            self._mailbox.put(command)
        else:
            with contextlib.suppress(trio.RunFinishedError):
                self._trio_token.run_sync_soon(self._post, command)
        return True

    def _check_thread(self) -> None:
        """Nobody may wait here who is on another thread: to wake it would fail amid a turn."""
        if get_ident() != self._thread:
            raise wrong_thread()


async def _do_nothing() -> int:
    """What a ticket does where there is nothing to do; the limit is 0."""
    await trio.lowlevel.checkpoint()
    return 0


def _say_taken_back(request: Request) -> None:
    if request.taken_back is not None:
        request.taken_back.set()


class _Life:
    """What the owner of a reservation waits for, from one start of it to its end.

    Attributes:
        news: set when it may have been asked, or is over.
    """

    def __init__(self) -> None:
        self.news = trio.Event()
        self.over = False

    def tell(self) -> None:
        """It has been asked; whoever waits sees whether that holds yet."""
        self.news.set()
        self.news = trio.Event()

    def end(self) -> None:
        self.over = True
        self.news.set()


class _Outcome:
    """What a deferred backend calls when its write is done; once counts."""

    def __init__(self, limit: int, post: Callable[[m.Command], bool]):
        self._limit = limit
        self._post: Callable[[m.Command], bool] | None = post

    def __call__(self, previous: int | None, error: BaseException | None) -> None:
        post, self._post = self._post, None
        if post is not None:
            post(_outcome(self._limit, previous, error))


def _outcome(limit: int, previous: object, error: BaseException | None) -> m.Command:
    if error is not None:
        return m.LimitRefused(limit, f"{type(error).__name__}: {error}")
    try:
        return m.LimitWritten(limit, checked_size(previous, "the previous limit"))
    except (TypeError, ValueError):  # None, or nothing that could be restored
        return m.LimitWritten(limit, None)
