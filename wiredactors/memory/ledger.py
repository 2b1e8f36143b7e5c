"""The ledger: a state machine that admits tickets and decides the limit.

Commands go in with `now`, effects come out in the order in which they must be carried out, and
`deadline` says when to look again if nothing else happens. The rules:

- A ticket that could not be admitted though everything that may go away had gone is refused at
  once. One that fits later waits, in the order of the queue.
- After each change everyone is admitted whom the order lets in. A later ticket may pass one that
  does not fit yet, until that one was passed `overtake_count` times or waited
  `overtake_seconds`; from then on nobody takes what it competes for.
- Live tickets that want to grow go before new ones.
- The limit is settled once a turn: `settle` follows the commands that were drained together. Its
  write is an effect whose outcome comes back as a command. A granted start is answered when a
  write that was decided after it has its outcome.
- Events record decisions; their numbers have no gaps.
"""

from __future__ import annotations

from typing import Any, assert_never

from wiredactors.memory import messages as m
from wiredactors.memory.book import Book, Group, Holding
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.errors import (
    ManagerBusy,
    ManagerClosed,
    PolicyError,
    QueueFull,
    TicketInUse,
    TicketTooLarge,
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
from wiredactors.memory.queue import Waiter, WaitQueue


class Ledger:
    """See the module. It holds no clock, no lock and no task, and never raises for a command."""

    def __init__(
        self, configuration: WiredMemoryConfiguration, *, ceiling: int | None, writes: bool
    ):
        """`writes`: limits are written as effects; without, they only are decided."""
        self.configuration = configuration
        self.sequence = 0
        self._writes = writes
        self._book = Book(ceiling)
        self._queue = WaitQueue(configuration.aging_seconds)
        self._growers: list[Waiter] = []  # in the order in which they asked
        self._limit = LimitControl(configuration)
        self._effects: list[m.Effect] = []
        self._now = 0.0
        self._known_baseline = 0  # what the first write returned
        self._first_write_done = False
        self._captured = False  # since the ledger was last empty
        self._restoring = False  # the last active ticket has ended, the baseline is not back yet
        self._desired_limit = 0  # of the last settle
        self._changed = False  # something that the limit depends on, in this turn
        self._unsettled: list[tuple[m.Reply, str | None]] = []  # to answer after the next settle
        self._writing: list[tuple[m.Reply, str | None]] = []  # to answer with the write's outcome
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
            group = self._book.group_for(command.policy)
            if not self._captured:
                self._capture_baseline()
            self._book.check_possible(group, command.size, command.requires)
            bound = self.configuration.max_waiters
            waiter = self._waiter_for(command, group)
            if bound is not None and len(self._queue) >= bound and not self._may_enter(waiter):
                raise QueueFull(len(self._queue), bound)
        except WiredMemoryError as error:
            self._refuse_admission(command.reply, command.ticket_id, command.size, error)
            return
        self._queue.add(waiter)
        self._book.await_group(group, +1)
        self._admit()
        if self._queue.get(command.ticket_id) is waiter:
            self._emit_ticket(EventKind.ADMISSION_WAIT, waiter.holding)

    def _start_again(self, command: m.Start) -> None:
        if command.exclusive:
            self._refuse(
                command.reply, TicketInUse(f"ticket {command.ticket_id} is already running")
            )
            return
        holding = self._book.holdings[command.ticket_id]
        self._emit_ticket(EventKind.TICKET_START_IGNORED, holding)
        self._unsettled.append((command.reply, None))

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
        )
        return Waiter(holding, command.reply, wants=command.size, since=self._now)

    def _capture_baseline(self) -> None:
        override = self.configuration.baseline_override
        self._book.baseline = self._known_baseline if override is None else override
        self._captured = True
        self._emit(EventKind.BASELINE_CAPTURED)

    def _cancel_start(self, command: m.CancelStart) -> None:
        waiter = self._queue.get(command.ticket_id)
        if waiter is not None and waiter.reply is command.reply:
            self._leave_queue(waiter, EventKind.ADMISSION_CANCELLED)
        elif self._forget_answer(command.reply):
            # Admitted, and cancelled before the start returned: the body never ran.
            self._release(self._book.holdings[command.ticket_id])

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
            self._refuse(waiter.reply, _withdrawn(command.ticket_id))
        elif holding is not None:
            start = self._pending_start(command.ticket_id)
            if start is not None:
                self._forget_answer(start)
                self._refuse(start, _withdrawn(command.ticket_id))
            self._release(holding)
        else:
            self._emit(EventKind.TICKET_END_IGNORED, ticket_id=command.ticket_id)
        if command.reply is not None:
            self._unsettled.append((command.reply, None))

    def _release(self, holding: Holding) -> None:
        for grower in [g for g in self._growers if g.holding is holding]:
            self._growers.remove(grower)
            self._refuse(grower.reply, _withdrawn(holding.ticket_id))
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
            self._unsettled.append((command.reply, None))
            return
        if any(grower.holding is holding for grower in self._growers):
            self._refuse(
                command.reply, TicketInUse(f"ticket {command.ticket_id} already waits to grow")
            )
            return
        try:
            self._book.check_possible(
                holding.group, command.size, holding.requires, own=holding.ticket_id
            )
        except WiredMemoryError as error:
            self._emit_ticket(EventKind.RESIZE_REFUSED, holding, error=str(error))
            self._refuse(command.reply, error)
            return
        if waiter is not None:
            holding.size = waiter.wants = command.size
            self._emit_ticket(EventKind.TICKET_RESIZED, holding)
            self._unsettled.append((command.reply, None))
        elif command.size <= holding.size:
            self._grow(Waiter(holding, command.reply, wants=command.size, since=self._now))
        else:
            grower = Waiter(holding, command.reply, wants=command.size, since=self._now)
            self._growers.append(grower)
            self._admit()
            if grower in self._growers:
                self._emit_ticket(EventKind.RESIZE_WAIT, holding, size=command.size)
            return
        self._admit()

    def _grow(self, grower: Waiter) -> None:
        self._book.resize(grower.holding, grower.wants)
        self._changed = True
        self._emit_ticket(EventKind.TICKET_RESIZED, grower.holding)
        self._unsettled.append((grower.reply, None))

    def _cancel_resize(self, command: m.CancelResize) -> None:
        for grower in [g for g in self._growers if g.reply is command.reply]:
            self._growers.remove(grower)
            self._emit_ticket(EventKind.RESIZE_CANCELLED, grower.holding)
            self._admit()
        self._forget_answer(command.reply)

    # -- admission

    def _admit(self) -> None:
        """Let in everyone whom the order lets in: growers first, then the queue."""
        passed: list[Waiter] = []  # they do not fit, and may be passed
        kept: set[object] = set()  # groups, or "ceiling", in which room is kept free
        for grower in list(self._growers):
            self._try(grower, kept, passed, growing=True)
        self._refuse_stuck_grower()
        for waiter in list(self._queue):
            if "ceiling" in kept:
                break
            self._try(waiter, kept, passed, growing=False)

    def _try(
        self, waiter: Waiter, kept: set[object], passed: list[Waiter], *, growing: bool
    ) -> None:
        group = waiter.holding.group
        if group in kept or "ceiling" in kept:
            waiter.blocked_by = "order"
            return
        try:
            blocked_by = self._book.blocked_by(
                group, waiter.wants, growing=waiter.holding if growing else None
            )
            if blocked_by is None and not growing:
                group.check_joined_by(self._book.baseline, waiter.wants)
        except PolicyError as error:
            self._fail_waiter(waiter, error, growing)
            return
        waiter.blocked_by = blocked_by
        if blocked_by is None:
            self._let_in(waiter, growing)
            for other in passed:
                if other.blocked_by == "ceiling" or other.holding.group is group:
                    other.passed += 1
        elif growing or self._passed_enough(waiter):
            kept.add("ceiling" if blocked_by == "ceiling" else group)
        else:
            passed.append(waiter)

    def _passed_enough(self, waiter: Waiter) -> bool:
        waited = self._now - waiter.since
        return (
            waiter.passed >= self.configuration.overtake_count
            or waited >= self.configuration.overtake_seconds
        )

    def _let_in(self, waiter: Waiter, growing: bool) -> None:
        if growing:
            self._growers.remove(waiter)
            self._grow(waiter)
            return
        holding = waiter.holding
        self._queue.remove(waiter)
        if not self._captured:
            self._capture_baseline()
        self._emit_ticket(EventKind.ADMISSION_GRANTED, holding)
        self._book.add(holding)
        self._book.await_group(holding.group, -1)
        holding.since = self._now
        self._changed = True
        self._restoring = self._restoring and not holding.active
        self._emit_ticket(EventKind.TICKET_STARTED, holding)
        self._unsettled.append((waiter.reply, holding.ticket_id))
        if holding.pinned:
            self._refuse_impossible()

    def _may_enter(self, waiter: Waiter) -> bool:
        """Whether a newcomer would be admitted at once, so that no place in the queue is needed."""
        competing = any(
            self._passed_enough(other)
            and (other.holding.group is waiter.holding.group or other.blocked_by == "ceiling")
            for other in [*self._growers, *self._queue]
        )
        return not competing and self._book.blocked_by(waiter.holding.group, waiter.wants) is None

    def _refuse_impossible(self) -> None:
        """A pinned ticket has come in: what cannot fit beside it will never fit."""
        for waiter in list(self._queue):
            holding = waiter.holding
            try:
                self._book.check_possible(holding.group, holding.size, holding.requires)
            except WiredMemoryError as error:
                self._fail_waiter(waiter, error, growing=False)

    def _refuse_stuck_grower(self) -> None:
        """If every active ticket waits to grow, the last to ask gives way."""
        growing = [g for g in self._growers if g.holding.active]
        if not growing or len(growing) < self._book.active:
            return
        last = growing[-1]
        group = last.holding.group
        error = TicketTooLarge(
            need=last.wants,
            cap=group.policy.cap if isinstance(group.policy.cap, int) else self._book.ceiling,
            pinned_bytes=self._book.total - last.holding.size,
            largest_possible=last.holding.size + self._book.available(group),
        )
        self._fail_waiter(last, error, growing=True)

    def _fail_waiter(self, waiter: Waiter, error: WiredMemoryError, growing: bool) -> None:
        if growing:
            self._growers.remove(waiter)
            self._emit_ticket(EventKind.RESIZE_REFUSED, waiter.holding, error=str(error))
            self._refuse(waiter.reply, error)
            return
        self._queue.remove(waiter)
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
        if not self._book.active:
            return self._book.baseline
        if self.configuration.wired_mode == "fit":
            return self._book.baseline + self._book.total
        wanted = self._book.baseline
        for group in self._book.groups.values():
            if group.sizes:
                wanted = max(wanted, self._limit_of(group))
        return wanted

    def _limit_of(self, group: Group) -> int:
        try:
            return group.limit(self._book.baseline)
        except PolicyError as error:
            self._emit(EventKind.POLICY_FAILED, policy=group.label, error=str(error))
            return group.last_limit()

    def _settle(self) -> None:
        working = self._book.active > 0
        desired = self._desired_limit = self._desired()
        due = self._limit.deadline is not None and self._now >= self._limit.deadline
        limit = self._limit.next_write(desired, working=working, now=self._now)
        if working and (self._changed or (due and limit is not None)):
            self._emit(EventKind.LIMIT_COMPUTED, desired_limit=desired)
        self._changed = False
        if limit is None:
            self._finish_turn()
        elif not self._writes:
            self._limit.written(limit, self._now)
            self._applied(limit)
            self._finish_turn()
        else:
            self._limit.in_flight = limit
            self._writing += self._unsettled
            self._unsettled = []
            self._effects.append(m.WriteLimit(limit))

    def _finish_turn(self) -> None:
        if self._limit.in_flight is not None:
            return  # whoever waits in this turn waits for the outcome and what follows it
        self._restored_if_so()
        limit = self._in_force()
        answers, self._unsettled = self._unsettled, []
        self._effects += [m.Answer(reply, limit) for reply, _ in answers]

    def _applied(self, limit: int) -> None:
        self._emit(EventKind.LIMIT_APPLIED, desired_limit=limit, applied_limit=limit)

    def _restored_if_so(self) -> None:
        if self._restoring and self._in_force() == self._book.baseline:
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
            self._learn_baseline(command.previous or 0)
        elif command.previous is not None and command.previous != expected:
            self._emit(EventKind.FOREIGN_LIMIT_WRITE, desired_limit=command.previous)
        # Those whose write this was are answered by the settle that follows, which writes again
        # if the baseline has turned out to be another.
        self._unsettled = self._writing + self._unsettled
        self._writing = []

    def _learn_baseline(self, previous: int) -> None:
        """The first write says what was in force before; a leftover of another is not taken."""
        if self.configuration.baseline_override is not None:
            return
        ceiling = self._book.ceiling
        if ceiling is not None and previous >= ceiling and previous > 0:
            self._emit(EventKind.FOREIGN_LIMIT_WRITE, desired_limit=previous)
            return
        self._known_baseline = previous
        if previous != self._book.baseline:
            self._book.baseline = previous
            self._changed = True
            self._emit(EventKind.BASELINE_CAPTURED)

    def _limit_refused(self, command: m.LimitRefused) -> None:
        self._limit.refused(command.limit, self._now)
        self._emit(
            EventKind.LIMIT_APPLY_FAILED,
            desired_limit=command.limit,
            applied_limit=self._limit.current,
            error=command.error,
        )
        self._unsettled = self._writing + self._unsettled
        self._writing = []

    # -- the rest

    def _configure(self, command: m.Configure) -> None:
        if self._book.active or len(self._queue):
            self._refuse(command.reply, ManagerBusy(self._book.active, len(self._queue)))
            return
        self.configuration = command.configuration
        self._limit.configuration = command.configuration
        self._queue.aging_seconds = command.configuration.aging_seconds
        self._book.ceiling = command.ceiling
        self._emit(EventKind.CONFIGURATION_UPDATED)
        override = command.configuration.baseline_override
        wanted = self._known_baseline if override is None else override
        if self._captured and wanted != self._book.baseline:
            self._capture_baseline()
        self._changed = True
        self._unsettled.append((command.reply, None))

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
        for waiter in list(self._queue):
            self._fail_waiter(waiter, ManagerClosed("the manager has closed"), growing=False)
        for grower in list(self._growers):
            self._fail_waiter(grower, ManagerClosed("the manager has closed"), growing=True)
        for holding in list(self._book.holdings.values()):
            self._release(holding)

    def _pending_start(self, ticket_id: str) -> m.Reply | None:
        """The start of `ticket_id` that is granted and not answered yet."""
        for reply, started in [*self._writing, *self._unsettled]:
            if started == ticket_id:
                return reply
        return None

    def _forget_answer(self, reply: m.Reply) -> bool:
        """Drop the answer that `reply` waits for; whether it was that of a granted start."""
        found = False
        for answers in (self._writing, self._unsettled):
            for entry in [e for e in answers if e[0] is reply]:
                answers.remove(entry)
                found = found or entry[1] is not None
        return found

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
        )

    # -- looking

    def snapshot(self) -> Snapshot:
        """The whole state, frozen."""
        growing = {g.ticket_id: g.wants for g in self._growers}
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

    def size_of(self, ticket_id: str) -> int | None:
        """The bytes that a ticket holds or waits for; None for one that does neither."""
        waiter = self._queue.get(ticket_id)
        holding = waiter.holding if waiter else self._book.holdings.get(ticket_id)
        return holding.size if holding is not None else None

    def explain(self, ticket_id: str, now: float) -> Explanation:
        """Why a ticket waits, since when, behind whom, and what would let it in."""
        return explain(self._book, self._queue, self._growers, ticket_id, now)


def _withdrawn(ticket_id: str) -> TicketWithdrawn:
    return TicketWithdrawn(f"ticket {ticket_id} was ended before its start() had returned")


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
