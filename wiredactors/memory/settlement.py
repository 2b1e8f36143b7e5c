"""Settling a turn: the limit that the tickets ask for, its write, and who is answered by it.

The limit is decided once a turn, after all commands that came together. Its write is an effect
whose outcome comes back as a command. A request is answered when a write that was decided after it
has its outcome, or at once where there is none.
"""

from __future__ import annotations

from wiredactors.memory import messages as m
from wiredactors.memory.answers import Answers
from wiredactors.memory.book import Book
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.errors import PolicyError
from wiredactors.memory.events import EventKind
from wiredactors.memory.group import Group
from wiredactors.memory.journal import Journal
from wiredactors.memory.limit import LimitControl


class Settlement:
    """The baseline, the limit wanted and the one in force. Limits are bytes.

    Attributes:
        answers: who is owed one.
        desired: the limit that was wanted when it was last settled.
        changed: something that the limit depends on has changed in this turn.
        captured: the baseline is known, since the ledger was last empty.
        restoring: the last active ticket has ended, and the baseline is not back yet.
    """

    def __init__(
        self, configuration: WiredMemoryConfiguration, book: Book, journal: Journal, *, writes: bool
    ):
        """`writes`: there is a limit to write; without one, limits only are decided."""
        self.answers = Answers()
        self.desired = 0
        self.changed = self.captured = self.restoring = False
        self._book = book
        self._journal = journal
        self._writes = writes
        self._limit = LimitControl(configuration)
        self._set_configuration(configuration)
        self._known_baseline = 0  # what the first write returned
        self._first_write_done = False
        self._last_tries = 0  # of a write that is refused while closing

    def configure(self, configuration: WiredMemoryConfiguration) -> None:
        self._set_configuration(configuration)
        self._limit.configure(configuration)
        if self.captured and self._wanted_baseline() != self._book.baseline:
            self.capture()
        self.changed = True

    def _set_configuration(self, configuration: WiredMemoryConfiguration) -> None:
        self._configuration = configuration
        # There is a limit, and it is not ours: what is decided is not in force. But what was raised
        # before, and could not be restored, still is.
        raised = self._limit.current not in (None, self._book.baseline)
        self._hands_off = self._writes and configuration.wired_mode == "off" and not raised

    @property
    def current(self) -> int | None:
        """The limit in force; None before the first one."""
        return self._limit.current

    @property
    def limit_writes(self) -> int:
        """How many writes have had their outcome."""
        return self._limit.outcomes

    @property
    def in_flight(self) -> bool:
        """A write is under way."""
        return self._limit.in_flight is not None

    # -- the baseline

    def capture(self) -> None:
        """A ticket comes to an empty ledger: know what limit to come back to."""
        self._book.baseline = self._wanted_baseline()
        self.captured = self.changed = True
        self._journal.emit(EventKind.BASELINE_CAPTURED)

    def copy_baseline(self, other: Settlement) -> None:
        """Know of it what `other` knows."""
        self.captured, self._known_baseline = other.captured, other._known_baseline

    def _wanted_baseline(self) -> int:
        override = self._configuration.baseline_override
        return self._known_baseline if override is None else override

    # -- once a turn

    def settle(self) -> float | None:
        """Decide the limit, and answer those who only waited for that.

        Returns when to settle again if nothing happens before.
        """
        limits, now = self._limit, self._journal.now
        working = self._book.active > 0
        changed, self.changed = self.changed, False
        if changed:
            self.desired = self._wanted()
        due = limits.deadline is not None and now >= limits.deadline
        limit = None
        if not self._hands_off:
            limit = limits.next_write(self.desired, working=working, now=now)
        if working and (changed or (due and limit is not None)):
            self._journal.emit(EventKind.LIMIT_COMPUTED, desired_limit=self.desired)
        if limit is not None:
            if self._writes:
                limits.in_flight = limit
                self.answers.await_write()
                self._journal.effect(m.WriteLimit(limit))
                return None
            limits.written(limit, now)
            self._say_applied(limit)
        if limits.in_flight is None:  # else what was decided in this turn is not written yet
            if self.restoring:
                self._say_restored()
            self._answer(self.answers.take_of_turn())
        return limits.deadline

    def _wanted(self) -> int:
        book = self._book
        wanted = book.baseline
        if not book.active:
            return wanted
        if self._configuration.wired_mode == "fit":
            total = book.baseline + book.total
            return max(wanted, total if book.ceiling is None else min(total, book.ceiling))
        for group in book.groups.values():
            if group.sizes.length:
                wanted = max(wanted, self._limit_of(group))
        return wanted

    def _limit_of(self, group: Group) -> int:
        try:
            return self._book.limit_of(group)
        except PolicyError as error:
            self._journal.emit(EventKind.POLICY_FAILED, policy=group.label, error=str(error))
            return self._book.last_limit_of(group)

    def _answer(self, replies: list[m.Reply]) -> None:
        if replies:
            self._journal.effect(m.Answer(replies, self._in_force()))

    def _in_force(self) -> int:
        return self._book.baseline if self._limit.current is None else self._limit.current

    def _say_applied(self, limit: int) -> None:
        self._journal.emit(EventKind.LIMIT_APPLIED, desired_limit=limit, applied_limit=limit)

    def _say_restored(self) -> None:
        baseline = self._book.baseline
        if self.restoring and self._in_force() == baseline:
            self.restoring = False
            if not self._hands_off:
                self._journal.emit(EventKind.BASELINE_RESTORED, applied_limit=baseline)
            self._set_configuration(self._configuration)  # it may let go of the limit now

    # -- what has come of a write

    def written(self, command: m.LimitWritten) -> bool:
        """The backend took it. True: another baseline was learned, so all is to be decided anew."""
        expected = self._limit.current
        self._limit.written(command.limit, self._journal.now)
        self._say_applied(command.limit)
        if not self._first_write_done:
            self._first_write_done = True
            if self._learn_baseline(command.previous or 0):
                self.answers.await_another()
                return True
        elif command.previous is not None and command.previous != expected:
            self._say_foreign(command.previous)
        self._say_restored()
        self._answer(self.answers.take_of_write())
        return False

    def _learn_baseline(self, previous: int) -> bool:
        """The first write says what was in force before; whether that is a new baseline."""
        overridden = self._configuration.baseline_override is not None
        ceiling = self._book.ceiling
        if ceiling is not None and previous >= ceiling and previous > 0:
            if not overridden:  # a leftover of another's is not taken
                self._say_foreign(previous)
            return False
        self._known_baseline = previous
        if overridden or previous == self._book.baseline:
            return False
        self._book.baseline = previous
        self.changed = True
        self._journal.emit(EventKind.BASELINE_CAPTURED)
        return True

    def refused(self, command: m.LimitRefused) -> None:
        """The backend raised: the last good limit stays, and it is tried again later."""
        self._limit.refused(command.limit, self._journal.now)
        self._journal.emit(
            EventKind.LIMIT_APPLY_FAILED,
            desired_limit=command.limit,
            applied_limit=self._limit.current,
            error=command.error,
        )
        self._answer(self.answers.take_of_write())
        if self._last_tries:  # the baseline must come back, and there is no later
            self._last_tries -= 1
            self._limit.retry_now()

    def _say_foreign(self, limit: int) -> None:
        self._journal.emit(EventKind.FOREIGN_LIMIT_WRITE, desired_limit=limit)

    def close(self) -> None:
        """All has ended: try a refused write again at once, and once more if it fails."""
        self._last_tries = 1
        self._limit.retry_now()
