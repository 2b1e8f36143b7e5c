"""Room: what those who wait would find, once what was planned for others has gone and come in."""

from __future__ import annotations

import math
from collections import Counter

import attrs

from wiredactors.memory.book import Book
from wiredactors.memory.group import Group
from wiredactors.memory.holding import Holding
from wiredactors.memory.lane import Waiter


@attrs.define
class Plan:
    """What must go for one that waits. Sizes are bytes.

    Attributes:
        yielding: whose owners give them up.
        shrinking: shared reservations that become smaller then, and by how much.
    """

    yielding: list[Holding] = attrs.field(factory=list)
    shrinking: dict[Holding, int] = attrs.field(factory=dict)
    _freed_in: Counter[Group] = attrs.field(factory=Counter)

    def add(self, holding: Holding) -> None:
        self.yielding.append(holding)
        self._freed_in[holding.group] += holding.size

    def shrink(self, shared: Holding, more: int) -> None:
        self.shrinking[shared] = self.shrinking.get(shared, 0) + more
        self._freed_in[shared.group] += more

    def freed_in(self, group: Group) -> int:
        return self._freed_in[group]

    @property
    def new(self) -> list[Holding]:
        """Those that have not been asked yet."""
        return [holding for holding in self.yielding if not holding.asked]

    @property
    def drains(self) -> bool:
        """One that is in use has been asked, and still lives."""
        return any(holding.asked and holding.in_use for holding in self.yielding)


class Room:
    """The room that there is now."""

    def __init__(self, book: Book):
        self._book = book
        self._freed = 0  # by earlier plans, less what those they are for will take
        self._freed_in: Counter[Group] = Counter()
        self._gone_of: Counter[Group] = Counter()

    def counts(self, holding: Holding) -> bool:
        """Whether it takes any of this room."""
        return True

    def need(self, waiter: Waiter) -> int:
        """The bytes that a waiter would take of it."""
        return waiter.more

    def missing(self, waiter: Waiter) -> float:
        """The bytes that it lacks under the ceiling."""
        return self.need(waiter) - self._ceiling_room(waiter.holding.group) - self._freed

    def blocks(self, waiter: Waiter, plan: Plan) -> bool:
        """Whether its own policy keeps it out though the plan has come about. Raises PolicyError.

        A user's own policy is asked what it says of that plan alone.
        """
        group = waiter.holding.group
        if group.bound is not None:
            freed = self._freed_in[group] + plan.freed_in(group)
            return self.need(waiter) > self._group_room(group) + freed
        left = self._sizes_in(group)
        for holding in [*plan.yielding, *([waiter.holding] if waiter.grows else [])]:
            if holding.group is group and self.counts(holding):
                left.remove(holding.size)
        for shared, less in plan.shrinking.items():
            if shared.group is group and less:
                left.remove(shared.size)
                left.append(shared.size - less)
        return not group.admits(self._book.baseline, left, waiter.wants)

    def base_freed_by(self, holding: Holding, waiter: Waiter, planned: int = 1) -> int:
        """The base of its group, if it is the last there but for `planned` - 1; else 0."""
        group = holding.group
        last = self._count_in(group) == self._gone_of[group] + planned
        return group.base_bytes if last and group is not waiter.holding.group else 0

    def take(self, waiter: Waiter, plan: Plan) -> None:
        """The plan is made: it comes about, and the waiter comes in."""
        for holding in filter(self.counts, plan.yielding):
            self._freed += holding.size + self.base_freed_by(holding, waiter)
            self._freed_in[holding.group] += holding.size
            self._gone_of[holding.group] += 1
        for shared, less in plan.shrinking.items():
            self._freed += less
            self._freed_in[shared.group] += less
        if self.counts(waiter.holding):
            self._freed -= self.need(waiter)
            self._freed_in[waiter.holding.group] -= self.need(waiter)

    # -- of the book

    def _ceiling_room(self, group: Group) -> float:
        return self._book.ceiling_room(group)

    def _group_room(self, group: Group) -> float:
        return self._book.group_room(group)

    def _count_in(self, group: Group) -> int:
        return group.sizes.length

    def _sizes_in(self, group: Group) -> list[int]:
        return list(group.sizes)


class RoomAfterWork(Room):
    """The room that there would be if all active work had ended, and all that is reclaimable, and
    what is used outside the tickets were no more.
    """

    def counts(self, holding: Holding) -> bool:
        return not (holding.active or holding.reclaimable)

    def need(self, waiter: Waiter) -> int:
        kept_itself = waiter.grows and self.counts(waiter.holding)
        return waiter.wants - (waiter.holding.size if kept_itself else 0)

    def missing_bytes(self, waiter: Waiter) -> int:
        """The bytes that it lacks under the ceiling and in its group, where they can be reckoned.

        That is what reservations must give that are not reclaimable.
        """
        group = waiter.holding.group
        missing = self.missing(waiter)
        if group.bound is not None:
            missing = max(missing, self.need(waiter) - self._group_room(group))
        return int(max(0, missing))

    def _ceiling_room(self, group: Group) -> float:
        book = self._book
        if book.ceiling is None:
            return math.inf
        kept = book.reservations.kept_bytes + book.reservations.kept_base_bytes(group)
        return book.ceiling - book.baseline - kept

    def _group_room(self, group: Group) -> float:
        assert group.bound is not None
        return group.bound - self._book.baseline - self._book.reservations.kept_in(group)

    def _count_in(self, group: Group) -> int:
        return self._book.reservations.kept_count(group)

    def _sizes_in(self, group: Group) -> list[int]:
        every = self._book.holdings.values()
        return [held.size for held in every if held.group is group and self.counts(held)]
