"""The ledger: a state machine that admits tickets and decides the limit.

Commands go in with `now`, effects come out in the order in which they must be carried out, and
`deadline` says when to look again if nothing else happens. The rules:

- A ticket that could not be admitted though everything that may go away had gone is refused at
  once. One that fits later waits. After each change everyone is admitted whom the order lets in
  (`admission`).
- The limit is settled once a turn: `settle` follows the commands that were drained together. Its
  write is an effect whose outcome comes back as a command (`limit`).
- A granted start is answered when a write that was decided after it has its outcome (`answers`).
- Events record decisions; their numbers have no gaps.
"""

from __future__ import annotations

from typing import Any, assert_never

from wiredactors.memory import messages as m
from wiredactors.memory.admission import Admission
from wiredactors.memory.answers import Answers
from wiredactors.memory.book import Book, Group, Holding
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.errors import (
    ManagerBusy,
    ManagerClosed,
    PolicyError,
    QueueFull,
    TicketInUse,
    TicketWithdrawn,
    WiredMemoryError,
)
from wiredactors.memory.events import (
    EventKind,
    Explanation,
    Snapshot,
    TicketSnapshot,
    WiredMemoryEvent,
)
from wiredactors.memory.explaining import explain
from wiredactors.memory.limit import LimitControl
from wiredactors.memory.queue import Waiter


class Ledger:
    """See the module. It holds no clock, no lock and no task, and never raises for a command."""

    def __init__(
        self, configuration: WiredMemoryConfiguration, *, ceiling: int | None, writes: bool
    ):
        """`writes`: there is a limit to write; without one, limits only are decided."""
        self.configuration = configuration
        self.sequence = 0
        self._writes = writes
        self._book = Book(ceiling)
        self._admission = Admission(self._book, configuration)
        self._queue = self._admission.queue
        self._limit = LimitControl(configuration)
        self._effects: list[m.Effect] = []
        self._now = 0.0
        self._known_baseline = 0  # what the first write returned
        self._first_write_done = False
        self._captured = False  # since the ledger was last empty
        self._restoring = False  # the last active ticket has ended, the baseline is not back yet
        self._desired_limit = 0  # of the last settle
        self._changed = False  # something that the limit depends on, in this turn
        self._answers = Answers()
        self._closed = False

    # -- in and out

    def receive(self, command: m.Command, now: float) -> list[m.Effect]:
        """Take one command. Call `settle` when all that came together have been taken."""
        self._now = now
        match command:
            case m.Start():
                self._start(command)
            case m.CancelStart():
                self._cancel_start(command)
            case m.End():
                self._end(command)
            case m.Resize():
                self._resize(command)
            case m.CancelResize():
                self._cancel_resize(command)
            case m.LimitWritten():
                self._limit_written(command)
            case m.LimitRefused():
                self._limit_refused(command)
            case m.ForeignWrite():
                self._emit(EventKind.FOREIGN_LIMIT_WRITE, desired_limit=command.limit)
            case m.Configure():
                self._configure(command)
            case m.Note():
                self._note(command)
            case m.Close():
                self._close()
            case _:
                assert_never(command)
        return self._taken()

    def settle(self, now: float) -> list[m.Effect]:
        """Decide the limit, and answer those who only waited for that."""
        self._now = now
        self._settle()
        return self._taken()

    @property
    def baseline(self) -> int:
        """The limit to come back to."""
        return self._book.baseline

    @property
    def deadline(self) -> float | None:
        """When to call `settle` again if no command comes before."""
        return self._limit.deadline

    @property
    def finished(self) -> bool:
        """Whether it has closed and no write is under way."""
        return self._closed and self._limit.in_flight is None

    def _taken(self) -> list[m.Effect]:
        taken, self._effects = self._effects, []
        return taken

    # -- start

    def _start(self, command: m.Start) -> None:
        if self._closed:
            self._refuse(command.reply, ManagerClosed("the manager has closed"))
            return
        if self._queue.get(command.ticket_id) is not None:
            self._refuse(
                command.reply, TicketInUse(f"ticket {command.ticket_id} already waits to start")
            )
            return
        if command.ticket_id in self._book.holdings:
            self._start_again(command)
            return
        try:
            waiter = self._waiter_for(command, self._book.group_for(command.policy))
            if not self._captured:
                self._capture_baseline()
            self._book.check_possible(waiter.holding, command.size)
        except WiredMemoryError as error:
            self._refuse_admission(command.reply, command.ticket_id, command.size, error)
            return
        self._queue.add(waiter)
        self._book.await_group(waiter.holding.group, +1)
        self._admit()
        if self._queue.get(command.ticket_id) is not waiter:
            return
        bound = self.configuration.max_waiters
        if bound is not None and len(self._queue) > bound:
            self._fail_waiter(waiter, QueueFull(len(self._queue) - 1, bound))
            self._admit()  # it may have kept room free
        else:
            self._emit_ticket(EventKind.ADMISSION_WAIT, waiter.holding)

    def _start_again(self, command: m.Start) -> None:
        if command.exclusive:
            self._refuse(
                command.reply, TicketInUse(f"ticket {command.ticket_id} is already running")
            )
            return
        holding = self._book.holdings[command.ticket_id]
        self._emit_ticket(EventKind.TICKET_START_IGNORED, holding)
        self._answers.owe(command.reply, start_of=command.ticket_id)

    def _waiter_for(self, command: m.Start, group: Group) -> Waiter:
        holding = Holding(
            ticket_id=command.ticket_id,
            size=command.size,
            kind=command.kind,
            group=group,
            priority=command.priority,
            pinned=command.pinned,
            reclaimable=command.reclaimable,
            requires=command.requires,
            since=self._now,
            reply=command.reply,
        )
        return Waiter(holding, command.reply, wants=command.size, since=self._now)

    def _capture_baseline(self) -> None:
        override = self.configuration.baseline_override
        self._book.baseline = self._known_baseline if override is None else override
        self._captured = self._changed = True
        self._emit(EventKind.BASELINE_CAPTURED)

    def _cancel_start(self, command: m.CancelStart) -> None:
        waiter = self._queue.get(command.ticket_id)
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
        self._emit_ticket(kind, waiter.holding, error=error)
        self._admit()  # it may have kept room free

    # -- end

    def _end(self, command: m.End) -> None:
        waiter = self._queue.get(command.ticket_id)
        holding = self._book.holdings.get(command.ticket_id)
        if waiter is not None:
            self._leave_queue(waiter, EventKind.ADMISSION_CANCELLED, error="withdrawn")
            self._refuse(waiter.reply, _withdrawn(waiter.holding))
        elif holding is not None:
            self._release(holding, _withdrawn(holding))
        else:
            self._emit(EventKind.TICKET_END_IGNORED, ticket_id=command.ticket_id)
        if command.reply is not None:
            self._answers.owe(command.reply)

    def _release(self, holding: Holding, error: WiredMemoryError) -> None:
        """Take its bytes back; `error` is for whoever still waits for it to start or grow."""
        for reply in self._answers.take_starts_of(holding.ticket_id):
            self._refuse(reply, error)
        grower = self._admission.grower_of(holding)
        if grower is not None:
            self._fail_waiter(grower, error)
        self._book.remove(holding)
        self._changed = True
        if holding.active and not self._book.active:
            self._restoring = True
        self._emit_ticket(EventKind.TICKET_ENDED, holding)
        if not self._book.holdings:
            self._captured = False
        self._admit()

    # -- resize

    def _resize(self, command: m.Resize) -> None:
        waiter = self._queue.get(command.ticket_id)
        holding = waiter.holding if waiter else self._book.holdings.get(command.ticket_id)
        if holding is None:  # it takes the size when it starts
            self._answers.owe(command.reply)
            return
        if self._admission.grower_of(holding) is not None:
            self._refuse(
                command.reply, TicketInUse(f"ticket {command.ticket_id} already waits to grow")
            )
            return
        if command.size > holding.size:  # less is always possible
            try:
                self._book.check_possible(holding, command.size)
            except WiredMemoryError as error:
                self._emit_ticket(EventKind.RESIZE_REFUSED, holding, error=str(error))
                self._refuse(command.reply, error)
                return
        if waiter is not None:
            holding.size = waiter.wants = command.size
            self._emit_ticket(EventKind.TICKET_RESIZED, holding)
            self._answers.owe(command.reply)
            self._admit()
            return
        grower = Waiter(holding, command.reply, command.size, self._now, grows=True)
        self._admission.growers.append(grower)
        if command.size <= holding.size:
            self._grow(grower)
        self._admit()
        if self._admission.grower_of(holding) is grower:
            self._emit_ticket(EventKind.RESIZE_WAIT, holding, size=command.size)

    def _grow(self, grower: Waiter) -> None:
        holding = grower.holding
        self._admission.remove(grower)
        self._book.resize(holding, grower.wants)
        self._changed = True
        self._emit_ticket(EventKind.TICKET_RESIZED, holding)
        self._answers.owe(grower.reply)
        self._doubt_if_it_stays(holding)

    def _cancel_resize(self, command: m.CancelResize) -> None:
        self._answers.forget(command.reply)
        holding = self._book.holdings.get(command.ticket_id)
        grower = self._admission.grower_of(holding) if holding is not None else None
        if grower is not None and grower.reply is command.reply:
            self._admission.remove(grower)
            self._emit_ticket(EventKind.RESIZE_CANCELLED, grower.holding)
            self._admit()

    # -- admission

    def _admit(self) -> None:
        """Let in everyone whom the order lets in, and refuse those who have become impossible."""
        for waiter, error in self._admission.decisions(self._now):
            if error is not None:
                self._fail_waiter(waiter, error)
            elif waiter.grows:
                self._grow(waiter)
            else:
                self._let_in(waiter)

    def _let_in(self, waiter: Waiter) -> None:
        holding = waiter.holding
        if not self._captured:
            self._capture_baseline()
        self._admission.remove(waiter)
        self._emit_ticket(EventKind.ADMISSION_GRANTED, holding)
        self._book.add(holding)
        self._book.await_group(holding.group, -1)
        holding.since = self._now
        self._changed = True
        self._restoring = self._restoring and not holding.active
        self._emit_ticket(EventKind.TICKET_STARTED, holding)
        self._answers.owe(waiter.reply, start_of=holding.ticket_id)
        self._doubt_if_it_stays(holding)

    def _doubt_if_it_stays(self, holding: Holding) -> None:
        # Only reservations are pinned or stood on by others, by what these words mean; an active
        # one that is used so all the same counts when the next ticket asks.
        if holding.pinned or not holding.active:
            self._admission.doubt()

    def _fail_waiter(self, waiter: Waiter, error: WiredMemoryError) -> None:
        self._admission.remove(waiter)
        if waiter.grows:
            self._emit_ticket(EventKind.RESIZE_REFUSED, waiter.holding, error=str(error))
            self._refuse(waiter.reply, error)
        else:
            self._book.await_group(waiter.holding.group, -1)
            self._refuse_admission(waiter.reply, waiter.ticket_id, waiter.holding.size, error)

    def _refuse_admission(
        self, reply: m.Reply, ticket_id: str, size: int, error: WiredMemoryError
    ) -> None:
        self._emit(EventKind.ADMISSION_REFUSED, ticket_id=ticket_id, size=size, error=str(error))
        if not self._book.holdings:
            self._captured = False
        self._refuse(reply, error)

    # -- the limit

    def _desired(self) -> int:
        book = self._book
        if not book.active:
            return book.baseline
        if self.configuration.wired_mode == "fit":
            wanted = book.baseline + book.total
            wanted = wanted if book.ceiling is None else min(wanted, book.ceiling)
        else:
            groups = [group for group in book.groups.values() if group.sizes]
            wanted = max(self._limit_of(group) for group in groups)
        return max(book.baseline, wanted)

    def _limit_of(self, group: Group) -> int:
        try:
            return self._book.limit_of(group)
        except PolicyError as error:
            self._emit(EventKind.POLICY_FAILED, policy=group.label, error=str(error))
            return self._book.last_limit_of(group)

    def _settle(self) -> None:
        working = self._book.active > 0
        changed, self._changed = self._changed, False
        if changed:
            self._desired_limit = self._desired()
        desired = self._desired_limit
        due = self._limit.deadline is not None and self._now >= self._limit.deadline
        limit = None
        if not self._hands_off:
            limit = self._limit.next_write(desired, working=working, now=self._now)
        if working and (changed or (due and limit is not None)):
            self._emit(EventKind.LIMIT_COMPUTED, desired_limit=desired)
        if limit is not None and self._writes:
            self._limit.in_flight = limit
            self._answers.await_write()
            self._effects.append(m.WriteLimit(limit))
            return
        if limit is not None:
            self._limit.written(limit, self._now)
            self._applied(limit)
        if self._limit.in_flight is None:  # else what was decided in this turn is not written yet
            self._restored_if_so()
            self._answer(self._answers.take_of_turn())

    @property
    def _hands_off(self) -> bool:
        """There is a limit, and it is not ours: what is decided is not in force."""
        return self._writes and self.configuration.wired_mode == "off"

    def _answer(self, replies: list[m.Reply]) -> None:
        limit = self._in_force()
        self._effects += [m.Answer(reply, limit) for reply in replies]

    def _applied(self, limit: int) -> None:
        self._emit(EventKind.LIMIT_APPLIED, desired_limit=limit, applied_limit=limit)

    def _restored_if_so(self) -> None:
        if self._restoring and not self._hands_off and self._in_force() == self._book.baseline:
            self._restoring = False
            self._emit(EventKind.BASELINE_RESTORED, applied_limit=self._book.baseline)

    def _in_force(self) -> int:
        return self._book.baseline if self._limit.current is None else self._limit.current

    def _limit_written(self, command: m.LimitWritten) -> None:
        expected = self._limit.current
        self._limit.written(command.limit, self._now)
        self._applied(command.limit)
        if not self._first_write_done:
            self._first_write_done = True
            if self._learn_baseline(command.previous or 0):
                self._answers.await_another()  # computed anew from it, the limit is another
                return
        elif command.previous is not None and command.previous != expected:
            self._emit(EventKind.FOREIGN_LIMIT_WRITE, desired_limit=command.previous)
        self._restored_if_so()
        self._answer(self._answers.take_of_write())

    def _learn_baseline(self, previous: int) -> bool:
        """The first write says what was in force before; whether that is a new baseline."""
        overridden = self.configuration.baseline_override is not None
        ceiling = self._book.ceiling
        if ceiling is not None and previous >= ceiling and previous > 0:
            if not overridden:  # a leftover of another's is not taken
                self._emit(EventKind.FOREIGN_LIMIT_WRITE, desired_limit=previous)
            return False
        self._known_baseline = previous
        if overridden or previous == self._book.baseline:
            return False
        self._book.baseline = previous
        self._changed = True
        self._emit(EventKind.BASELINE_CAPTURED)
        self._admission.doubt()
        self._admit()
        return True

    def _limit_refused(self, command: m.LimitRefused) -> None:
        self._limit.refused(command.limit, self._now)
        self._emit(
            EventKind.LIMIT_APPLY_FAILED,
            desired_limit=command.limit,
            applied_limit=self._limit.current,
            error=command.error,
        )
        self._answer(self._answers.take_of_write())

    # -- the rest

    def _configure(self, command: m.Configure) -> None:
        if self._book.active or len(self._queue):
            self._refuse(command.reply, ManagerBusy(self._book.active, len(self._queue)))
            return
        self.configuration = command.configuration
        self._limit.configuration = command.configuration
        self._admission.configure(command.configuration)
        self._book.ceiling = command.ceiling
        self._emit(EventKind.CONFIGURATION_UPDATED, details={"ceiling": command.ceiling})
        override = command.configuration.baseline_override
        wanted = self._known_baseline if override is None else override
        if self._captured and wanted != self._book.baseline:
            self._capture_baseline()
        self._changed = True
        self._answers.owe(command.reply)
        self._admit()  # a grower may wait for the ceiling

    def _note(self, note: m.Note) -> None:
        self._emit(
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
        for waiter in [*self._queue, *self._admission.growers]:
            self._fail_waiter(waiter, error)
        for holding in list(self._book.holdings.values()):
            self._release(holding, error)
        self._limit.retry_now()  # the last chance to restore the baseline

    def _refuse(self, reply: m.Reply, error: Exception) -> None:
        self._effects.append(m.Refuse(reply, error))

    def _emit(self, kind: EventKind, **fields: Any) -> None:
        self.sequence += 1
        fields.setdefault("baseline", self._book.baseline)
        event = WiredMemoryEvent(
            kind=kind,
            sequence=self.sequence,
            timestamp=self._now,
            active_count=len(self._book.holdings),
            waiter_count=len(self._queue),
            **fields,
        )
        self._effects.append(m.Emit(event))

    def _emit_ticket(
        self,
        kind: EventKind,
        holding: Holding,
        *,
        size: int | None = None,
        error: str | None = None,
    ) -> None:
        self._emit(
            kind,
            ticket_id=holding.ticket_id,
            size=holding.size if size is None else size,
            ticket_kind=holding.kind,
            priority=holding.priority,
            policy=holding.group.label,
            error=error,
            details={"pinned": True} if holding.pinned else {},
        )

    # -- looking

    def snapshot(self) -> Snapshot:
        """The whole state, frozen."""
        growing = {g.ticket_id: g.wants for g in self._admission.growers}
        return Snapshot(
            sequence=self.sequence,
            baseline=self._book.baseline,
            current_limit=self._limit.current,
            desired_limit=self._desired_limit,
            ceiling=self._book.ceiling,
            tickets=tuple(
                _ticket_snapshot(h, growing.get(h.ticket_id)) for h in self._book.holdings.values()
            ),
            waiters=tuple(_ticket_snapshot(w.holding, None) for w in self._queue),
        )

    @property
    def granted_bytes(self) -> int:
        """Bytes of all tickets that hold any."""
        return self._book.total

    def size_of(self, ticket_id: str) -> int | None:
        """The bytes that a ticket holds or waits for; None for one that does neither."""
        waiter = self._queue.get(ticket_id)
        holding = waiter.holding if waiter else self._book.holdings.get(ticket_id)
        return holding.size if holding is not None else None

    def explain(self, ticket_id: str, now: float) -> Explanation:
        """Why a ticket waits, since when, behind whom, and what would let it in."""
        return explain(self._book, self._queue, self._admission.growers, ticket_id, now)


def _withdrawn(holding: Holding) -> TicketWithdrawn:
    return TicketWithdrawn(f"ticket {holding.ticket_id} was ended meanwhile")


def _ticket_snapshot(holding: Holding, wants: int | None) -> TicketSnapshot:
    return TicketSnapshot(
        ticket_id=holding.ticket_id,
        size=holding.size,
        kind=holding.kind,
        priority=holding.priority,
        policy=holding.group.label,
        pinned=holding.pinned,
        since=holding.since,
        wants_size=wants,
    )
