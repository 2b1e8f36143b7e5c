"""Lanes: those that wait for the same bytes in the same way, one after the other.

A lane holds waiters of one group and one priority, so its order is that of the time since when they
wait, and never changes. It finds the first that fits into a room without looking at each: a tree
over its slots keeps the least size below each node. And it counts how often each was passed without
touching each: a pass is noted at the last one that it passed, and counts for all before that one as
well.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from wiredactors.memory.group import Group
from wiredactors.memory.holding import Holding

_NOTHING: float = math.inf  # the size of an empty slot
_FEWEST_SLOTS = 8

#: The place of a waiter in the one order of the ledger; the smaller goes first.
Key = tuple[float, float]


@attrs.define(eq=False)
class Waiter:
    """A ticket that waits for its start, or a live one that waits to grow to `wants` bytes.

    Attributes:
        lane, slot: where it stands.
        said_to_need: the bytes of reservations that must go for it, as an event last said.
        made_go: the models that were asked to yield for it.
    """

    holding: Holding
    reply: Any
    wants: int
    since: float
    grows: bool = False
    key: Key = (0.0, 0)
    lane: Lane | None = None
    slot: int = -1
    said_to_need: int = 0
    made_go: frozenset[str] = frozenset()

    @property
    def ticket_id(self) -> str:
        return self.holding.ticket_id

    @property
    def more(self) -> int:
        """The bytes that it would hold besides those that it holds."""
        return self.wants - self.holding.size if self.grows else self.wants

    @property
    def passed(self) -> int:
        """How often a later one that competes with it went first."""
        return self.lane.passed(self) if self.lane is not None else 0


class Lane:
    """Waiters in the order of their keys. Sizes are bytes.

    Adding at the end, removing, finding the first that fits and noting a pass cost O(log n), n
    being the number of its slots: those in use, and as many that have been.
    """

    __slots__ = ("_end", "_head", "_least", "_noted", "_passes", "_slots", "_width", "count",
                 "group", "number", "priority")  # fmt: skip

    def __init__(self, group: Group, priority: int = 0, number: int = 0):
        """`number` tells lanes of one group and one priority apart."""
        self.group = group
        self.priority = priority
        self.number = number
        self.count = 0
        self._lay_out([], [])

    def _lay_out(self, waiters: list[Waiter], passes: list[int]) -> None:
        """Give each waiter a slot, with as many to spare."""
        width = _FEWEST_SLOTS
        while width < 2 * len(waiters):
            width *= 2
        self._width = width
        self._slots: list[Waiter | Key] = list(waiters)  # of one that has left, its key
        self._passes = passes  # noted at each slot
        self._noted = sum(passes)  # from the head on
        self._head = 0  # the first slot in use
        self._end = len(waiters)  # the first never used
        # Node i has the nodes 2i and 2i + 1 below it; slot s is node width + s.
        least = [_NOTHING] * (2 * width)
        for slot, waiter in enumerate(waiters):
            waiter.slot = slot
            least[width + slot] = waiter.more
        for node in range(width - 1, 0, -1):
            below = least[2 * node]
            least[node] = min(below, least[2 * node + 1])
        self._least = least

    # -- changing

    def takes(self, key: Key) -> bool:
        """Whether one of that key may stand at the end."""
        if not self._slots:
            return True
        last = self._slots[-1]
        return (last.key if isinstance(last, Waiter) else last) <= key

    def append(self, waiter: Waiter) -> None:
        """Put `waiter` at the end."""
        if self._end == self._width:
            self._close_gaps()
        slot = self._end
        waiter.lane, waiter.slot = self, slot
        self._slots.append(waiter)
        self._passes.append(0)
        self._end += 1
        self.count += 1
        self._set(slot, waiter.more)

    def remove(self, waiter: Waiter) -> None:
        """Take `waiter` out. What was noted at its slot still counts for those before it."""
        slot = waiter.slot
        self._slots[slot] = waiter.key
        self.count -= 1
        self._set(slot, _NOTHING)
        waiter.lane = None
        if slot == self._head:
            self._advance()

    def update(self, waiter: Waiter) -> None:
        """The bytes that `waiter` asks for have changed."""
        self._set(waiter.slot, waiter.more)

    def _set(self, slot: int, size: float) -> None:
        least = self._least
        node = self._width + slot
        least[node] = size
        while node > 1:
            other = least[node ^ 1]
            node >>= 1
            now = size if size < other else other  # noqa: FURB136  # min() would be half of its cost
            if least[node] == now:
                return
            least[node] = size = now

    def _advance(self) -> None:
        head, slots = self._head, self._slots
        while head < self._end and not isinstance(slots[head], Waiter):
            self._noted -= self._passes[head]
            head += 1
        self._head = head

    def _close_gaps(self) -> None:
        self._lay_out(list(self), self._passes_in_use())

    def _passes_in_use(self) -> list[int]:
        """What was noted at each waiter, and at those since who have left."""
        passes: list[int] = []
        for slot in range(self._head, self._end):
            if isinstance(self._slots[slot], Waiter):
                passes.append(self._passes[slot])
            else:
                passes[-1] += self._passes[slot]  # the head's slot is in use
        return passes

    def copy(self, group: Group, copied: Callable[[Waiter], Waiter]) -> Lane:
        """A lane of copies, of the copied group, each in its slot and passed as often."""
        lane = Lane(group, self.priority, self.number)
        lane.count = self.count
        lane._width, lane._head, lane._end = self._width, self._head, self._end
        lane._slots = [copied(s) if isinstance(s, Waiter) else s for s in self._slots]
        lane._passes, lane._noted = list(self._passes), self._noted
        lane._least = list(self._least)
        for slot, waiter in enumerate(lane._slots):
            if isinstance(waiter, Waiter):
                waiter.lane, waiter.slot = lane, slot
        return lane

    # -- passing

    def note_pass(self, key: Key) -> None:
        """One that stands at `key` has gone before all of this lane that stand before it."""
        slot = bisect_left(self._slots, key, self._head, self._end, key=_key_of) - 1
        if slot >= self._head:
            self._passes[slot] += 1
            self._noted += 1

    @property
    def head_passed(self) -> int:
        """How often the first was passed; no other of the lane was more often."""
        return self._noted

    def passed(self, waiter: Waiter) -> int:
        """How often `waiter` was passed; it costs O(n)."""
        return sum(self._passes[waiter.slot :])

    # -- looking

    @property
    def head(self) -> Waiter:
        """The first; there must be one."""
        head = self._slots[self._head]
        assert isinstance(head, Waiter)
        return head

    @property
    def least(self) -> float:
        """The fewest bytes that anyone here asks for."""
        return self._least[1]

    def first_within(self, room: float) -> Waiter | None:
        """The first that asks for no more than `room`."""
        least, width = self._least, self._width
        if least[1] > room:
            return None
        node = 1
        while node < width:
            node *= 2
            if least[node] > room:
                node += 1
        found = self._slots[node - width]
        assert isinstance(found, Waiter)
        return found

    def __iter__(self) -> Iterator[Waiter]:
        return (w for w in self._slots[self._head : self._end] if isinstance(w, Waiter))

    def __len__(self) -> int:
        return self.count


def _key_of(slot: Waiter | Key) -> Key:
    return slot.key if isinstance(slot, Waiter) else slot
