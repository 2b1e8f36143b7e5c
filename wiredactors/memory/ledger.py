"""The ledger: a state machine that admits tickets and decides the limit.

Commands go in with `now`, effects come out in the order in which they must be carried out, and
`deadline` says when to look again if nothing else happens. The rules:

- A ticket that could not be admitted though everything that may go away had gone is refused at
  once. One that fits later waits. After each change everyone is admitted whom the order lets in
  (`admission`).
- The limit is settled once a turn: `settle` follows the commands that were drained together
  (`settlement`).
- Events record decisions; their numbers have no gaps (`journal`).

A change costs O(log n) in the tickets that live and wait, and grows with the groups and the lanes
that they wait in. It costs O(n) in those that wait when a ticket comes or grows that is pinned, or
that others who wait stand on: are they possible still? See `admission` on a user's own policy.
"""

from __future__ import annotations

from typing import assert_never

import attrs

from wiredactors.memory import messages as m
from wiredactors.memory.admission import Admission
from wiredactors.memory.book import Book
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.desk import Desk
from wiredactors.memory.errors import ManagerBusy
from wiredactors.memory.events import EventKind, Explanation, Snapshot
from wiredactors.memory.explaining import explain, snapshot
from wiredactors.memory.journal import Journal
from wiredactors.memory.outside import OutsidePressure
from wiredactors.memory.pressure import Pressure
from wiredactors.memory.settlement import Settlement


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
        self._pressure = Pressure(self._book, self._admission, self._journal, configuration)
        self._outside = OutsidePressure()
        self._desk = Desk(
            self._book,
            self._admission,
            self._journal,
            self._settlement,
            configuration.max_waiters,
        )
        self.deadline: float | None = None

    # -- in and out

    def receive(self, command: m.Command, now: float) -> list[m.Effect]:
        """Take one command. Call `settle` when all that came together have been taken."""
        self._journal.now = now
        match command:
            case m.Start():
                self._desk.start(command)
                if self._book.excess:
                    self._claim_for(command)
            case m.End():
                self._desk.end(command)
            case m.CancelStart():
                self._desk.cancel_start(command)
            case m.Resize():
                self._desk.resize(command)
            case m.CancelResize():
                self._desk.cancel_resize(command)
            case m.Use():
                self._desk.use(command)
            case m.Pin():
                self._desk.pin(command)
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
        look_again = None if self._admission.idle else self._pressure.look()
        self.deadline = self._settlement.settle()
        if look_again is not None and (self.deadline is None or look_again < self.deadline):
            self.deadline = look_again
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
        return self._desk.closed and not self._settlement.in_flight

    # -- what presses

    def _observe(self, command: m.Observe) -> None:
        changed = self._outside.observe(
            command.reading, ceiling=self._book.ceiling, claimed_bytes=self._claimed_bytes()
        )
        if changed or command.error is not None:
            self._say_outside(command.error)

    def _claimed_bytes(self) -> int:
        book = self._book
        waiting = sum(w.wants for w in self._queue if not w.holding.active)
        bases = sum(group.base_bytes for group in book.groups.values() if not group.sizes.length)
        return book.total + book.base_total + waiting + bases

    def _claim_for(self, start: m.Start) -> None:
        """One that has to wait may be for what is in memory already, and is not outside then."""
        waiter = self._queue.by_id.get(start.ticket_id)
        if waiter is None or waiter.reply is not start.reply:  # it does not wait, or did before
            return
        group = waiter.holding.group
        claimed = 0 if waiter.holding.active else waiter.wants
        if not group.sizes.length and group.waiting == 1:
            claimed += group.base_bytes
        if claimed and self._outside.claim(claimed, ceiling=self._book.ceiling):
            self._say_outside(None)

    def _say_outside(self, error: str | None) -> None:
        self._book.excess = self._outside.excess_bytes
        reading = self._outside.reading
        self._journal.emit(
            EventKind.OUTSIDE_PRESSURE,
            size=self._book.excess,
            error=error,
            details={} if reading is None else attrs.asdict(reading),
        )
        self._desk.admit()

    # -- the rest

    def _limit_written(self, command: m.LimitWritten) -> None:
        if self._settlement.written(command):
            self._admission.doubt()
            self._desk.admit()

    def _configure(self, command: m.Configure) -> None:
        if self._book.active or self._queue.by_id:
            self._journal.refuse(
                command.reply, ManagerBusy(self._book.active, len(self._queue.by_id))
            )
            return
        self.configuration = command.configuration
        self._desk.max_waiters = command.configuration.max_waiters
        self._book.ceiling = command.ceiling
        self._admission.configure(command.configuration)
        self._pressure.configure(command.configuration)
        details = {"ceiling": command.ceiling, **attrs.asdict(command.configuration)}
        self._journal.emit(EventKind.CONFIGURATION_UPDATED, details=details)
        self._settlement.configure(command.configuration)
        self._settlement.answers.owe(command.reply)
        self._desk.admit()  # a grower may wait for the ceiling

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
        self._desk.close()
        self._settlement.close()

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
        return explain(self._book, self._admission, self._pressure, ticket_id, now)
