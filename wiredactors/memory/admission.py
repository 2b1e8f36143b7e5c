"""Admission: who may come in or grow now, and who never will.

- Live tickets that want to grow go before new ones, which leave free what those compete for.
  Growers pass each other: nobody new takes their place, so each has its turn as others end.
- A waiting ticket that does not fit yet may be passed, until it was passed `overtake_count` times
  or waited `overtake_seconds`; from then on nobody takes what it competes for: its own group, or
  the ceiling where that is what blocks it.
- If every active ticket waits to grow, none would ever end: the last to ask is refused.
- One that has become impossible (beside a new pinned ticket, over a baseline that was learned
  late) is refused and does not wait for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from wiredactors.memory.book import Book, Holding
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.errors import PolicyError, WiredMemoryError
from wiredactors.memory.queue import Waiter, WaitQueue

#: A waiter, and why it is refused; None lets it in.
Decision = tuple[Waiter, WiredMemoryError | None]

_CEILING = "ceiling"


class Admission:
    """Those that wait to start (`queue`) and to grow (`growers`), and the order among them."""

    def __init__(self, book: Book, configuration: WiredMemoryConfiguration):
        self.queue = WaitQueue(configuration.aging_seconds)
        self.growers: list[Waiter] = []  # in the order in which they asked
        self._book = book
        self._configuration = configuration
        self._in_doubt = False

    def configure(self, configuration: WiredMemoryConfiguration) -> None:
        self._configuration = configuration
        self.queue.aging_seconds = configuration.aging_seconds
        self.doubt()

    def grower_of(self, holding: Holding) -> Waiter | None:
        """The live ticket's wish to grow, if it has one."""
        return next((grower for grower in self.growers if grower.holding is holding), None)

    def remove(self, waiter: Waiter) -> None:
        if waiter.grows:
            self.growers.remove(waiter)
        else:
            self.queue.remove(waiter)

    def doubt(self) -> None:
        """Something has come to stay: look whether those that wait are possible still."""
        self._in_doubt = True

    def decisions(self, now: float) -> Iterator[Decision]:
        """Whom to let in and whom to refuse, one by one.

        Each must be carried out before the next is asked for, which builds upon it.
        """
        yield from self._round(now)
        while self._in_doubt:
            yield from self._round(now)

    def _round(self, now: float) -> Iterator[Decision]:
        if self._in_doubt:
            self._in_doubt = False
            yield from self._impossible()
        for grower in list(self.growers):
            error = self._look_at(grower)
            if error is not None or grower.blocked_by is None:
                yield grower, error
        stuck = self._stuck_grower()
        if stuck is not None:
            yield stuck
        yield from self._round_of_queue(now)

    def _round_of_queue(self, now: float) -> Iterator[Decision]:
        kept = {_competes_for(grower) for grower in self.growers}
        passed: list[Waiter] = []  # they do not fit yet, and may be passed
        for waiter in list(self.queue):
            group = waiter.holding.group
            if group in kept or _CEILING in kept:
                waiter.blocked_by = "order"
                continue
            error = self._look_at(waiter)
            if error is not None:
                yield waiter, error
            elif waiter.blocked_by is None:
                yield waiter, None
                for other in passed:
                    other.passed += _competes_for(other) in (group, _CEILING)
            elif self._passed_enough(waiter, now):
                kept.add(_competes_for(waiter))
            else:
                passed.append(waiter)

    def _look_at(self, waiter: Waiter) -> PolicyError | None:
        """See what blocks it now; the error where its policy cannot say."""
        holding = waiter.holding
        growing = holding if waiter.grows else None
        try:
            waiter.blocked_by = self._book.blocked_by(holding.group, waiter.wants, growing)
            if waiter.blocked_by is None:
                self._book.check_limit_with(holding.group, waiter.wants, growing)
        except PolicyError as error:
            return error
        return None

    def _passed_enough(self, waiter: Waiter, now: float) -> bool:
        return (
            waiter.passed >= self._configuration.overtake_count
            or now - waiter.since >= self._configuration.overtake_seconds
        )

    def _impossible(self) -> Iterator[Decision]:
        for waiter in [*self.growers, *self.queue]:
            try:
                self._book.check_possible(waiter.holding, waiter.wants)
            except WiredMemoryError as error:
                yield waiter, error

    def _stuck_grower(self) -> Decision | None:
        growing = [grower for grower in self.growers if grower.holding.active]
        if not growing or len(growing) < self._book.active:
            return None
        last = growing[-1]
        try:
            return last, self._book.too_large_now(last.holding, last.wants)
        except PolicyError as error:
            return last, error


def _competes_for(waiter: Waiter) -> object:
    return _CEILING if waiter.blocked_by == _CEILING else waiter.holding.group
