"""Yielding: which reclaimable reservations would have to go for those who wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from wiredactors.memory.book import Book
from wiredactors.memory.errors import PolicyError
from wiredactors.memory.group import Group
from wiredactors.memory.holding import Holding
from wiredactors.memory.lane import Waiter


class Plans:
    """Plans one waiter's room after another's; each is made as if those before had come in."""

    def __init__(self, book: Book):
        self._book = book
        reclaimable = book.reservations.reclaimable.values()
        # Those that are asked already will go in any case.
        self._left = sorted(reclaimable, key=lambda holding: not holding.asked)
        self._freed = 0  # by earlier plans, less what those they are for will take
        self._freed_in: Counter[Group] = Counter()

    def for_waiter(self, waiter: Waiter) -> list[Holding] | None:
        """Which must go before it fits; None where that is not enough, or nothing is missing."""
        candidates = [
            holding
            for holding in self._left
            if holding.size
            and holding is not waiter.holding
            and holding.ticket_id not in waiter.holding.requires
        ]
        if not candidates:
            return None
        try:
            yielding = list(self._until_it_fits(waiter, candidates))
        except (PolicyError, _NotEnough):
            return None
        self._book_plan(waiter, yielding)
        return yielding

    def _until_it_fits(self, waiter: Waiter, candidates: list[Holding]) -> Iterator[Holding]:
        group = waiter.holding.group
        missing = waiter.more - self._book.ceiling_room(group) - self._freed
        in_group: list[Holding] = []
        for holding in candidates:
            blocked = self._group_blocks(waiter, in_group)
            if missing <= 0 and not blocked:
                return
            if missing > 0 or (blocked and holding.group is group):
                missing -= holding.size
                if holding.group is group:
                    in_group.append(holding)
                yield holding
        if missing > 0 or self._group_blocks(waiter, in_group):
            raise _NotEnough

    def _group_blocks(self, waiter: Waiter, gone: list[Holding]) -> bool:
        """Whether its policy keeps it out though those of its group had gone."""
        group = waiter.holding.group
        freed = sum(holding.size for holding in gone)
        if group.bound is not None:
            return waiter.more > self._book.group_room(group) + self._freed_in[group] + freed
        left = list(group.sizes)
        for holding in [*gone, *([waiter.holding] if waiter.grows else [])]:
            left.remove(holding.size)
        return not group.admits(self._book.baseline, left, waiter.wants)

    def _book_plan(self, waiter: Waiter, yielding: list[Holding]) -> None:
        for holding in yielding:
            self._left.remove(holding)
            self._freed += holding.size
            self._freed_in[holding.group] += holding.size
        self._freed -= waiter.more
        self._freed_in[waiter.holding.group] -= waiter.more


class _NotEnough(Exception):
    """What could be asked for does not make the room."""
