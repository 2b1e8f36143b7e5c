"""The ledger: a state machine that admits tickets and decides the limit.

Commands go in with `now`, effects come out in the order in which they must be carried out, and
`deadline` says when to look again if nothing else happens. The rules:

- A ticket that could not be admitted though everything that may go away had gone is refused at
  once. One that fits later waits. After each change everyone is admitted whom the order lets in
  (`admission`).
- The limit is settled once a turn: `settle` follows the commands that were drained together
  (`settlement`).
- Events record decisions; their numbers have no gaps (`journal`).

A change costs O(log n) in the tickets that live and wait, and O(n) in the groups and the lanes
that they wait in; but see `admission` on a user's own policy.
"""

from __future__ import annotations

from typing import assert_never

import attrs

from wiredactors.memory import messages as m
from wiredactors.memory.admission import Admission
from wiredactors.memory.book import Book
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.errors import (
    ManagerBusy,
    ManagerClosed,
    QueueFull,
    TicketInUse,
    TicketWithdrawn,
    WiredMemoryError,
)
from wiredactors.memory.events import EventKind, Explanation, Snapshot
from wiredactors.memory.explaining import explain, snapshot
from wiredactors.memory.group import Group
from wiredactors.memory.holding import Holding
from wiredactors.memory.journal import Journal
from wiredactors.memory.lane import Waiter
from wiredactors.memory.outside import OutsidePressure
from wiredactors.memory.pressure import Pressure
from wiredactors.memory.settlement import Settlement
from wiredactors.memory.tickets import WiredMemoryTicket


class Ledger:
    """See the module. It holds no clock, no lock and no task, and never raises for a command.

    Attributes:
        deadline: when to call `settle` again if no command comes before.
    """

    def __init__(
        self, configuration: WiredMemoryConfiguration, *, ceiling: int | None, writes: bool
    ):
        """`writes`: there is a limit to write; without one, limits only are decided."""
        self.configuration = configuration
        self._book = Book(ceiling)
        self._admission = Admission(self._book, configuration)
        self._queue = self._admission.queue
        self._growers = self._admission.growers
        self._journal = Journal(self._book, self._queue)
        self._settlement = Settlement(configuration, self._book, self._journal, writes=writes)
        self._answers = self._settlement.answers
        self._pressure = Pressure(self._book, self._admission, self._journal)
        self._outside = OutsidePressure()
        self._closed = False
        self.deadline: float | None = None

    # -- in and out

    def receive(self, command: m.Command, now: float) -> list[m.Effect]:
        """Take one command. Call `settle` when all that came together have been taken."""
        self._journal.now = now
        match command:
            case m.Start():
                self._start(command)
            case m.End():
                self._end(command)
            case m.CancelStart():
                self._cancel_start(command)
            case m.Resize():
                self._resize(command)
            case m.CancelResize():
                self._cancel_resize(command)
            case m.Use():
                self._use(command)
            case m.Observe():
                self._observe(command)
            case m.LimitWritten():
                self._limit_written(command)
            case m.LimitRefused():
                self._settlement.refused(command)
            case m.ForeignWrite():
                self._journal.emit(EventKind.FOREIGN_LIMIT_WRITE, desired_limit=command.limit)
            case m.Configure():
                self._configure(command)
            case m.Note():
                self._note(command)
            case m.Close():
                self._close()
            case _:
                assert_never(command)
        return self._journal.take()

    def settle(self, now: float) -> list[m.Effect]:
        """Decide the limit, and answer those who only waited for that."""
        self._journal.now = now
        if not self._admission.idle:
            self._pressure.look()
        self.deadline = self._settlement.settle()
        return self._journal.take()

    def listen(self, listening: bool) -> None:
        """Whether anybody reads events; without, they are numbered and not made."""
        self._journal.listening = listening

    @property
    def baseline(self) -> int:
        """The limit to come back to."""
        return self._book.baseline

    @property
    def finished(self) -> bool:
        """Whether it has closed and no write is under way."""
        return self._closed and not self._settlement.in_flight

    # -- start

    def _start(self, command: m.Start) -> None:
        ticket, reply = command.ticket, command.reply
        if self._closed:
            self._journal.refuse(reply, ManagerClosed("the manager has closed"))
            return
        if ticket.id in self._book.holdings or ticket.id in self._queue.by_id:
            self._start_again(command)
            return
        try:
            holding = self._holding_for(ticket, self._book.group_for(ticket.policy), reply)
            if not self._settlement.captured:
                self._settlement.capture()
            if self._admission.idle and self._book.fits(holding.group, holding.size):
                self._let_in(holding)
                return
            self._book.check_possible(holding, holding.size)
        except WiredMemoryError as error:
            self._refuse_admission(reply, ticket.id, ticket.size, error)
            return
        self._wait(Waiter(holding, reply, wants=holding.size, since=holding.since))

    def _start_again(self, command: m.Start) -> None:
        holding = self._book.holdings.get(command.ticket_id)
        if holding is None:
            error = TicketInUse(f"ticket {command.ticket_id} already waits to start")
            self._journal.refuse(command.reply, error)
        elif command.exclusive:
            error = TicketInUse(f"ticket {command.ticket_id} is already running")
            self._journal.refuse(command.reply, error)
        else:
            self._journal.emit_ticket(EventKind.TICKET_START_IGNORED, holding)
            self._answers.owe_again(command.reply, holding)

    def _holding_for(self, ticket: WiredMemoryTicket, group: Group, reply: m.Reply) -> Holding:
        return Holding(
            ticket.id,
            ticket.size,
            ticket.kind,
            group,
            ticket.priority,
            ticket.pinned,
            ticket.reclaimable,
            ticket.requires,
            self._journal.now,
            reply,
        )

    def _wait(self, waiter: Waiter) -> None:
        self._queue.add(waiter)
        self._book.await_group(waiter.holding.group, +1)
        self._admit()
        if waiter.lane is None:  # it has had its answer
            return
        bound = self.configuration.max_waiters
        if bound is not None and len(self._queue.by_id) > bound:
            self._fail_waiter(waiter, QueueFull(len(self._queue.by_id) - 1, bound))
            self._admit()  # it may have kept room free
        else:
            self._journal.emit_ticket(EventKind.ADMISSION_WAIT, waiter.holding)

    def _let_in(self, holding: Holding) -> None:
        self._journal.emit_ticket(EventKind.ADMISSION_GRANTED, holding)
        self._book.add(holding)
        holding.since = holding.used_at = self._journal.now
        self._journal.tickets_started += 1
        self._settlement.changed = True
        if holding.active:
            self._settlement.restoring = False
        self._journal.emit_ticket(EventKind.TICKET_STARTED, holding)
        self._answers.owe(holding.reply)

    def _cancel_start(self, command: m.CancelStart) -> None:
        waiter = self._queue.by_id.get(command.ticket_id)
        holding = self._book.holdings.get(command.ticket_id)
        self._answers.forget(command.reply)
        if waiter is not None and waiter.reply is command.reply:
            self._leave_queue(waiter, EventKind.ADMISSION_CANCELLED)
        elif holding is not None and holding.reply is command.reply:
            # Admitted, and cancelled before the start returned, perhaps with its answer on the
            # way: the body never ran, and nobody else will end it.
            self._release(holding, _withdrawn(holding))

    def _leave_queue(self, waiter: Waiter, kind: EventKind, error: str | None = None) -> None:
        self._queue.remove(waiter)
        self._book.await_group(waiter.holding.group, -1)
        self._journal.emit_ticket(kind, waiter.holding, error=error)
        self._admit()  # it may have kept room free

    # -- end

    def _end(self, command: m.End) -> None:
        holding = self._book.holdings.get(command.ticket_id)
        if holding is not None:
            self._release(holding)
        else:
            self._end_waiter(command.ticket_id)
        if command.reply is not None:
            self._answers.owe(command.reply)

    def _end_waiter(self, ticket_id: str) -> None:
        waiter = self._queue.by_id.get(ticket_id)
        if waiter is None:
            self._journal.emit(EventKind.TICKET_END_IGNORED, ticket_id=ticket_id)
            return
        self._leave_queue(waiter, EventKind.ADMISSION_CANCELLED, error="withdrawn")
        self._journal.refuse(waiter.reply, _withdrawn(waiter.holding))

    def _release(self, holding: Holding, error: WiredMemoryError | None = None) -> None:
        """Take its bytes back; `error` is for whoever still waits for it to start or grow."""
        for reply in self._answers.take_starts_of(holding):
            self._journal.refuse(reply, error or _withdrawn(holding))
        grower = self._growers.by_id.get(holding.ticket_id)
        if grower is not None:
            self._fail_waiter(grower, error or _withdrawn(holding))
        self._book.remove(holding)
        self._settlement.changed = True
        if holding.active and not self._book.active:
            self._settlement.restoring = True
        self._journal.emit_ticket(EventKind.TICKET_ENDED, holding)
        self._settlement.captured = bool(self._book.holdings)  # else the next captures it anew
        if not self._admission.idle:
            self._admit()

    # -- resize

    def _resize(self, command: m.Resize) -> None:
        waiter = self._queue.by_id.get(command.ticket_id)
        holding = waiter.holding if waiter else self._book.holdings.get(command.ticket_id)
        if holding is None:  # it takes the size when it starts
            self._answers.owe(command.reply)
            return
        if self._growers.by_id.get(command.ticket_id) is not None:
            error = TicketInUse(f"ticket {command.ticket_id} already waits to grow")
            self._journal.refuse(command.reply, error)
            return
        if command.size > holding.size and not self._resize_is_possible(holding, command):
            return  # less is always possible
        if waiter is not None:
            self._resize_waiter(waiter, command)
        elif command.size <= holding.size:
            self._change_size(holding, command.size, command.reply)
            self._admit()
        else:
            grower = Waiter(holding, command.reply, command.size, self._journal.now, grows=True)
            self._growers.add(grower)
            self._admit()
            if grower.lane is not None:
                self._journal.emit_ticket(EventKind.RESIZE_WAIT, holding, size=command.size)

    def _resize_is_possible(self, holding: Holding, command: m.Resize) -> bool:
        try:
            self._book.check_possible(holding, command.size)
        except WiredMemoryError as error:
            self._journal.emit_ticket(EventKind.RESIZE_REFUSED, holding, error=str(error))
            self._journal.refuse(command.reply, error)
            return False
        return True

    def _resize_waiter(self, waiter: Waiter, command: m.Resize) -> None:
        waiter.holding.size = waiter.wants = command.size
        assert waiter.lane is not None
        waiter.lane.update(waiter)
        self._journal.emit_ticket(EventKind.TICKET_RESIZED, waiter.holding)
        self._answers.owe(command.reply)
        self._admit()

    def _change_size(self, holding: Holding, size: int, reply: m.Reply) -> None:
        self._book.resize(holding, size)
        holding.asked = False  # it has given what it would, and may be asked again
        self._settlement.changed = True
        self._journal.emit_ticket(EventKind.TICKET_RESIZED, holding)
        self._answers.owe(reply)
        self._admission.doubt_beside(holding)

    def _cancel_resize(self, command: m.CancelResize) -> None:
        self._answers.forget(command.reply)
        grower = self._growers.by_id.get(command.ticket_id)
        if grower is not None and grower.reply is command.reply:
            self._growers.remove(grower)
            self._journal.emit_ticket(EventKind.RESIZE_CANCELLED, grower.holding)
            self._admit()

    # -- admission

    def _admit(self) -> None:
        """Let in everyone whom the order lets in, and refuse those who have become impossible."""
        if self._admission.idle:
            return
        for waiter, error in self._admission.decisions(self._journal.now):
            if error is not None:
                self._fail_waiter(waiter, error)
                continue
            if not self._settlement.captured:
                self._settlement.capture()
            self._admission.remove(waiter)
            if waiter.grows:
                self._change_size(waiter.holding, waiter.wants, waiter.reply)
            else:
                self._let_in(waiter.holding)
                self._admission.doubt_beside(waiter.holding)
                self._book.await_group(waiter.holding.group, -1)

    def _fail_waiter(self, waiter: Waiter, error: WiredMemoryError) -> None:
        self._admission.remove(waiter)
        if waiter.grows:
            self._journal.emit_ticket(EventKind.RESIZE_REFUSED, waiter.holding, error=str(error))
            self._journal.refuse(waiter.reply, error)
        else:
            self._book.await_group(waiter.holding.group, -1)
            self._refuse_admission(waiter.reply, waiter.ticket_id, waiter.holding.size, error)

    def _refuse_admission(
        self, reply: m.Reply, ticket_id: str, size: int, error: WiredMemoryError
    ) -> None:
        self._journal.emit(
            EventKind.ADMISSION_REFUSED, ticket_id=ticket_id, size=size, error=str(error)
        )
        self._settlement.captured = bool(self._book.holdings)
        self._journal.refuse(reply, error)

    # -- what presses

    def _use(self, command: m.Use) -> None:
        holding = self._book.holdings.get(command.ticket_id)
        if holding is not None and holding.reclaimable:
            holding.used_at = self._journal.now
            self._book.reservations.used(holding)
            self._journal.emit_ticket(EventKind.TICKET_USED, holding)

    def _observe(self, command: m.Observe) -> None:
        ceiling, held = self._book.ceiling, self._book.total
        changed = self._outside.observe(command.reading, ceiling=ceiling, held_bytes=held)
        if not changed and command.error is None:
            return
        self._book.excess = self._outside.excess_bytes
        details = {} if command.reading is None else attrs.asdict(command.reading)
        self._journal.emit(
            EventKind.OUTSIDE_PRESSURE,
            size=self._book.excess,
            error=command.error,
            details=details,
        )
        self._admit()

    # -- the rest

    def _limit_written(self, command: m.LimitWritten) -> None:
        if self._settlement.written(command):
            self._admission.doubt()
            self._admit()

    def _configure(self, command: m.Configure) -> None:
        if self._book.active or self._queue.by_id:
            self._journal.refuse(
                command.reply, ManagerBusy(self._book.active, len(self._queue.by_id))
            )
            return
        self.configuration = command.configuration
        self._book.ceiling = command.ceiling
        self._admission.configure(command.configuration)
        details = {
            "ceiling": command.ceiling,
            "aging_seconds": command.configuration.aging_seconds,
        }
        self._journal.emit(EventKind.CONFIGURATION_UPDATED, details=details)
        self._settlement.configure(command.configuration)
        self._answers.owe(command.reply)
        self._admit()  # a grower may wait for the ceiling

    def _note(self, note: m.Note) -> None:
        self._journal.emit(
            note.kind,
            model=note.model,
            job=note.job,
            ticket_id=note.ticket_id,
            size=note.size,
            error=note.error,
            details=note.details,
        )

    def _close(self) -> None:
        self._closed = True
        error = ManagerClosed("the manager has closed")
        for waiter in [*self._queue, *self._growers]:
            self._fail_waiter(waiter, error)
        for holding in list(self._book.holdings.values()):
            self._release(holding, error)
        self._settlement.retry_now()  # the last chance to restore the baseline

    # -- looking

    def snapshot(self) -> Snapshot:
        """The whole state, frozen."""
        return snapshot(self._book, self._admission, self._settlement, self._journal)

    @property
    def sequence(self) -> int:
        """The number of the last event."""
        return self._journal.sequence

    @property
    def granted_bytes(self) -> int:
        """Bytes of all tickets that hold any."""
        return self._book.total

    def is_asked(self, ticket_id: str) -> bool | None:
        """Whether a reservation has been asked to yield; None for one that is not held."""
        holding = self._book.holdings.get(ticket_id)
        return None if holding is None else holding.asked

    def size_of(self, ticket_id: str) -> int | None:
        """The bytes that a ticket holds or waits for; None for one that does neither."""
        waiter = self._queue.by_id.get(ticket_id)
        holding = waiter.holding if waiter else self._book.holdings.get(ticket_id)
        return holding.size if holding is not None else None

    def explain(self, ticket_id: str, now: float) -> Explanation:
        """Why a ticket waits, since when, behind whom, and what would let it in."""
        return explain(self._book, self._admission, ticket_id, now)


def _withdrawn(holding: Holding) -> TicketWithdrawn:
    return TicketWithdrawn(f"ticket {holding.ticket_id} was ended meanwhile")
