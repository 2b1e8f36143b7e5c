"""The desk: tickets come in, wait, grow, and are given back.

It carries out what admission decides, and says so.
"""

from __future__ import annotations

from collections.abc import Callable

from wiredactors.memory import messages as m
from wiredactors.memory.admission import Admission
from wiredactors.memory.book import Book
from wiredactors.memory.errors import (
    ManagerClosed,
    QueueFull,
    TicketInUse,
    TicketWithdrawn,
    WiredMemoryError,
)
from wiredactors.memory.events import EventKind
from wiredactors.memory.group import Group
from wiredactors.memory.holding import Holding
from wiredactors.memory.journal import Journal
from wiredactors.memory.lane import Waiter
from wiredactors.memory.settlement import Settlement
from wiredactors.memory.share import Share


class Desk:
    """See the module.

    Attributes:
        max_waiters: how many tickets may wait; None is no bound.
        closed: no ticket comes in any more.
    """

    def __init__(
        self,
        book: Book,
        admission: Admission,
        journal: Journal,
        settlement: Settlement,
        max_waiters: int | None,
    ):
        self.max_waiters = max_waiters
        self.closed = False
        self._book = book
        self._admission = admission
        self._queue = admission.queue
        self._growers = admission.growers
        self._journal = journal
        self._settlement = settlement
        self._answers = settlement.answers

    # -- start

    def start(self, command: m.Start) -> None:
        ticket, reply = command.ticket, command.reply
        if self.closed:
            self._journal.refuse(reply, _closed())
            return
        if ticket.id in self._book.holdings or ticket.id in self._queue.by_id:
            self._start_again(command)
            return
        try:
            holding = self._holding_for(command, self._book.group_for(ticket.policy))
            if not self._settlement.captured:
                self._settlement.capture()
            if self._admission.idle and self._book.fits(holding.group, holding.size):
                self._let_in(holding)
                return
            self._book.check_possible(holding, holding.size)
        except WiredMemoryError as error:
            self._refuse_admission(reply, ticket.id, ticket.size, error)
            return
        if holding.evictable:
            self._admission.stand_behind(holding)
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

    def _holding_for(self, command: m.Start, group: Group) -> Holding:
        ticket, now = command.ticket, self._journal.now
        return Holding(
            ticket.id,
            ticket.size,
            ticket.kind,
            group,
            ticket.priority,
            ticket.pinned,
            ticket.reclaimable,
            ticket.requires if ticket.share is None else _with_share(ticket.requires, ticket.share),
            now if command.since is None else min(command.since, now),
            command.reply,
            ticket.evictable,
            ticket.share,
        )

    def _wait(self, waiter: Waiter) -> None:
        self._queue.add(waiter)
        self._book.await_ticket(waiter.holding)
        self.admit()
        if waiter.lane is None:  # it has had its answer
            return
        bound = self.max_waiters
        waited_before = waiter.since < self._journal.now  # for its model: it was let in then
        if bound is not None and len(self._queue.by_id) > bound and not waited_before:
            self._fail_waiter(waiter, QueueFull(len(self._queue.by_id) - 1, bound))
            self.admit()  # it may have kept room free
        else:
            more = {"since": waiter.since} if waited_before else {}
            self._journal.emit_ticket(EventKind.ADMISSION_WAIT, waiter.holding, more=more)

    def _let_in(self, holding: Holding) -> None:
        self._journal.emit_ticket(EventKind.ADMISSION_GRANTED, holding)
        self._book.add(holding)
        holding.since = holding.used_at = self._journal.now
        holding.in_use = holding.evictable
        self._journal.tickets_started += 1
        self._settlement.changed = True
        if holding.active:
            self._settlement.restoring = False
        self._journal.emit_ticket(EventKind.TICKET_STARTED, holding)
        self._answers.owe(holding.reply)

    def cancel_start(self, command: m.CancelStart) -> None:
        waiter = self._queue.by_id.get(command.ticket_id)
        holding = self._book.holdings.get(command.ticket_id)
        self._answers.forget(command.reply)
        if waiter is not None and waiter.reply is command.reply:
            self._leave_queue(waiter, EventKind.ADMISSION_CANCELLED)
        elif holding is not None and holding.reply is command.reply:
            # Admitted, and cancelled before the start returned, perhaps with its answer on the
            # way: the body never ran, and nobody else will end it.
            self._release(holding)

    def _leave_queue(self, waiter: Waiter, kind: EventKind, error: str | None = None) -> None:
        self._queue.remove(waiter)
        self._book.await_no_more(waiter.holding)
        self._journal.emit_ticket(kind, waiter.holding, error=error)
        self.admit()  # it may have kept room free

    # -- end

    def end(self, command: m.End) -> None:
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

    def _release(
        self, holding: Holding, error: Callable[[], WiredMemoryError] | None = None
    ) -> None:
        """Take its bytes back; who still waits for it to start or grow gets an `error` each."""
        for reply in self._answers.take_starts_of(holding):
            self._journal.refuse(reply, error() if error else _withdrawn(holding))
        grower = self._growers.by_id.get(holding.ticket_id)
        if grower is not None:
            self._fail_waiter(grower, error() if error else _withdrawn(holding))
        self._book.remove(holding)
        self._settlement.changed = True
        if holding.active and not self._book.active:
            self._settlement.restoring = True
        self._journal.emit_ticket(EventKind.TICKET_ENDED, holding)
        self._settlement.captured = bool(self._book.holdings)  # else the next captures it anew
        if not self._admission.idle:
            self.admit()

    # -- resize

    def resize(self, command: m.Resize) -> None:
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
            self.admit()
        else:
            grower = Waiter(holding, command.reply, command.size, self._journal.now, grows=True)
            self._growers.add(grower)
            self.admit()
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
        self.admit()

    def _change_size(self, holding: Holding, size: int, reply: m.Reply) -> None:
        if size > holding.size or self._book.shares.is_shared(holding.ticket_id):
            self._admission.doubt_beside(holding)
        self._book.resize(holding, size)
        self._settlement.changed = True
        self._journal.emit_ticket(EventKind.TICKET_RESIZED, holding)
        self._answers.owe(reply)

    def cancel_resize(self, command: m.CancelResize) -> None:
        self._answers.forget(command.reply)
        grower = self._growers.by_id.get(command.ticket_id)
        if grower is not None and grower.reply is command.reply:
            self._growers.remove(grower)
            self._journal.emit_ticket(EventKind.RESIZE_CANCELLED, grower.holding)
            self.admit()

    # -- admission

    def admit(self) -> None:
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
                self._book.await_no_more(waiter.holding)

    def _fail_waiter(self, waiter: Waiter, error: WiredMemoryError) -> None:
        self._admission.remove(waiter)
        if waiter.grows:
            self._journal.emit_ticket(EventKind.RESIZE_REFUSED, waiter.holding, error=str(error))
            self._journal.refuse(waiter.reply, error)
        else:
            self._book.await_no_more(waiter.holding)
            self._refuse_admission(waiter.reply, waiter.ticket_id, waiter.holding.size, error)

    def _refuse_admission(
        self, reply: m.Reply, ticket_id: str, size: int, error: WiredMemoryError
    ) -> None:
        self._journal.emit(
            EventKind.ADMISSION_REFUSED, ticket_id=ticket_id, size=size, error=str(error)
        )
        self._settlement.captured = bool(self._book.holdings)
        self._journal.refuse(reply, error)

    # -- use, and the end of all

    def use(self, command: m.Use) -> None:
        """A reservation whose owner can be asked for it yields after all others like it."""
        holding = self._book.holdings.get(command.ticket_id)
        if holding is None or not holding.yields:
            return
        details = {}
        if holding.evictable:
            serves = holding.served_since is not None
            if serves and holding.in_use is command.in_use:  # work that follows other work
                return
            if command.in_use is not None:
                holding.in_use = command.in_use
                if not serves:
                    holding.served_since = self._journal.now
            details = {"in_use": holding.in_use}
        holding.used_at = self._journal.now
        self._book.reservations.used(holding)
        self._journal.emit_ticket(EventKind.TICKET_USED, holding, details=details)
        if holding.evictable:  # those that count on it keep room only while it would go
            self.admit()

    def pin(self, command: m.Pin) -> None:
        """A ticket comes to stay, or may go away again; those that wait may be impossible then."""
        waiter = self._queue.by_id.get(command.ticket_id)
        holding = waiter.holding if waiter else self._book.holdings.get(command.ticket_id)
        if holding is None or holding.reclaimable or holding.pinned is command.pinned:
            return
        if waiter is not None:
            holding.pinned = command.pinned
        else:
            self._book.pin(holding, command.pinned)
        self._journal.emit_ticket(
            EventKind.TICKET_PINNED, holding, details={"pinned": command.pinned}
        )
        if command.pinned and waiter is None:
            self._admission.doubt()
            self.admit()

    def close(self) -> None:
        """Refuse all that wait, and end all that live."""
        self.closed = True
        for waiter in [*self._queue, *self._growers]:
            self._fail_waiter(waiter, _closed())
        for holding in list(self._book.holdings.values()):
            self._release(holding, _closed)


def _with_share(requires: tuple[str, ...], share: Share) -> tuple[str, ...]:
    """Who shares a reservation stands on it."""
    return requires if share.ticket_id in requires else (*requires, share.ticket_id)


def _withdrawn(holding: Holding) -> TicketWithdrawn:
    return TicketWithdrawn(f"ticket {holding.ticket_id} was ended meanwhile")


def _closed() -> ManagerClosed:
    return ManagerClosed("the manager has closed")
