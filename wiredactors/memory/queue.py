"""The queue of those that wait, in the one order of the ledger.

The order is priority, raised by one for each `aging_seconds` waited, then arrival. All that wait
age alike, so the comparison never changes while they do: an earlier arrival is worth
`aging_seconds` for each step of priority. That makes the key a constant, set at arrival, and those
of one group and one priority a lane in the order of arrival. One that has waited elsewhere before
(for its model) stands as if it had waited here; where that is amid a lane, it is in another one.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator

from wiredactors.memory.group import Group
from wiredactors.memory.lane import Lane, Waiter


class WaitQueue:
    """Waiters in order, and in lanes. Adding, finding and removing one costs O(log n).

    Attributes:
        lanes: those that hold anybody.
        by_id: all that wait.
        required: how many that wait stand on a ticket, by its id.
    """

    def __init__(self, aging_seconds: float = math.inf, *, by_priority: bool = True):
        """`by_priority` False: the order is that of arrival."""
        self.aging_seconds = aging_seconds
        self._by_priority = by_priority
        self._lanes: dict[tuple[Group, int, int], Lane] = {}
        self.by_id: dict[str, Waiter] = {}
        self._arrivals = 0
        self.required: Counter[str] = Counter()

    def add(self, waiter: Waiter) -> None:
        holding = waiter.holding
        priority = holding.priority if self._by_priority else 0
        ahead = priority * self.aging_seconds if priority else 0.0
        waiter.key = (waiter.since - ahead, self._arrivals)
        self._arrivals += 1
        self._lane_for(waiter, priority).append(waiter)
        self.by_id[holding.ticket_id] = waiter
        for ticket_id in holding.requires:
            self.required[ticket_id] += 1

    def _lane_for(self, waiter: Waiter, priority: int) -> Lane:
        """The first of its lanes at whose end it may stand."""
        group, number = waiter.holding.group, 0
        while (lane := self._lanes.get((group, priority, number))) and not lane.takes(waiter.key):
            number += 1
        if lane is None:
            lane = self._lanes[group, priority, number] = Lane(group, priority, number)
        return lane

    def remove(self, waiter: Waiter) -> None:
        lane = waiter.lane
        assert lane is not None
        lane.remove(waiter)
        if not lane.count:
            del self._lanes[lane.group, lane.priority, lane.number]
        del self.by_id[waiter.holding.ticket_id]
        for ticket_id in waiter.holding.requires:
            self.required[ticket_id] -= 1
            if not self.required[ticket_id]:
                del self.required[ticket_id]

    def copy_from(
        self,
        other: WaitQueue,
        copied: Callable[[Waiter], Waiter],
        copied_group: Callable[[Group], Group],
    ) -> None:
        """Hold copies of all in `other`, in the same lanes and places, and go on from there."""
        for lane in other.lanes:
            new = lane.copy(copied_group(lane.group), copied)
            self._lanes[new.group, new.priority, new.number] = new
        copies = {waiter.ticket_id: waiter for lane in self.lanes for waiter in lane}
        self.by_id = {ticket_id: copies[ticket_id] for ticket_id in other.by_id}
        self._arrivals = other._arrivals
        self.required = other.required.copy()

    @property
    def lanes(self) -> Collection[Lane]:
        return self._lanes.values()

    def before(self, waiter: Waiter) -> Iterator[Waiter]:
        """Those that stand before `waiter`."""
        return itertools.takewhile(lambda other: other is not waiter, self)

    def __len__(self) -> int:
        return len(self.by_id)

    def __iter__(self) -> Iterator[Waiter]:
        return heapq.merge(*self._lanes.values(), key=lambda waiter: waiter.key)
