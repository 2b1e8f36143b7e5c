"""Yielding: which reclaimable reservations would have to go for those who wait."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

from wiredactors.memory.book import Book
from wiredactors.memory.errors import PolicyError
from wiredactors.memory.group import Group
from wiredactors.memory.holding import Holding
from wiredactors.memory.lane import Waiter


class Plans:
    """Plans one waiter's room after another's; each is made as if those before had come in.

    A plan costs O(reservations in it, and those that are asked already).
    """

    def __init__(self, book: Book):
        self._book = book
        self._gone: set[str] = set()  # by earlier plans
        self._freed = 0  # by them, less what those they are for will take
        self._freed_in: Counter[Group] = Counter()
        self._gone_of: Counter[Group] = Counter()

    def for_waiter(self, waiter: Waiter, *, in_group_only: bool = False) -> list[Holding] | None:
        """Which must go before it fits; None where that is not enough, or nothing is missing.

        `in_group_only`: before its own policy lets it in, whatever the ceiling does.
        """
        if waiter.grows and waiter.holding.asked:  # it is to yield itself
            return None
        try:
            yielding = list(self._until_it_fits(waiter, in_group_only=in_group_only))
        except (PolicyError, _NotEnough):
            return None
        if not yielding:
            return None
        for holding in yielding:
            self._gone.add(holding.ticket_id)
            self._freed += holding.size + self._base_freed_by(holding, waiter)
            self._freed_in[holding.group] += holding.size
            self._gone_of[holding.group] += 1
        self._freed -= waiter.more
        self._freed_in[waiter.holding.group] -= waiter.more
        if waiter.grows:
            self._gone.add(waiter.ticket_id)  # nobody asks it for what it comes to need
        return yielding

    def _until_it_fits(self, waiter: Waiter, *, in_group_only: bool) -> Iterator[Holding]:
        group, book = waiter.holding.group, self._book
        missing = 0 if in_group_only else waiter.more - book.ceiling_room(group) - self._freed
        if missing > book.reservations.reclaimable_bytes + book.base_total:
            raise _NotEnough  # at once, whatever their number
        in_group: list[Holding] = []
        freed_in_group = 0
        planned: Counter[Group] = Counter()
        for holding in self._candidates(waiter):
            blocked = self._group_blocks(waiter, in_group, freed_in_group)
            if missing <= 0 and not blocked:
                return
            if missing > 0 or (blocked and holding.group is group):
                planned[holding.group] += 1
                missing -= holding.size + self._base_freed_by(
                    holding, waiter, planned[holding.group]
                )
                if holding.group is group:
                    in_group.append(holding)
                    freed_in_group += holding.size
                yield holding
        if missing > 0 or self._group_blocks(waiter, in_group, freed_in_group):
            raise _NotEnough

    def _candidates(self, waiter: Waiter) -> Iterator[Holding]:
        """Those that are asked already, which will go in any case, and then all others."""
        reservations = self._book.reservations
        willing = (h for h in reservations.reclaimable.values() if not h.asked)
        for holding in itertools.chain(reservations.asked.values(), willing):
            if (
                holding.size
                and holding.ticket_id not in self._gone
                and holding is not waiter.holding
                and holding.ticket_id not in waiter.holding.requires
            ):
                yield holding

    def _base_freed_by(self, holding: Holding, waiter: Waiter, planned: int = 1) -> int:
        """The base of its group, if it is the last there but for `planned` - 1; else 0."""
        group = holding.group
        last = group.sizes.length == self._gone_of[group] + planned
        return group.base_bytes if last and group is not waiter.holding.group else 0

    def _group_blocks(self, waiter: Waiter, gone: list[Holding], freed: int) -> bool:
        """Whether its policy keeps it out though those of its group, `freed` bytes, had gone."""
        group = waiter.holding.group
        if group.bound is not None:
            return waiter.more > self._book.group_room(group) + self._freed_in[group] + freed
        left = list(group.sizes)
        for holding in [*gone, *([waiter.holding] if waiter.grows else [])]:
            left.remove(holding.size)
        return not group.admits(self._book.baseline, left, waiter.wants)


class _NotEnough(Exception):
    """What could be asked for does not make the room."""
