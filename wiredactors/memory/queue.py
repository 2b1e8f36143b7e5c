"""The queue of tickets that wait, in the one order of the ledger.

The order is priority, raised by one for each `aging_seconds` waited, then arrival. All that wait
age alike, so the comparison never changes while they do: an earlier arrival is worth
`aging_seconds` for each step of priority. That makes the key a constant, set at arrival.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import attrs
from sortedcontainers import SortedKeyList

from wiredactors.memory.book import Holding


@attrs.define(eq=False)
class Waiter:
    """A ticket that waits for its start, or a live one that waits to grow to `wants` bytes."""

    holding: Holding
    reply: Any
    wants: int
    since: float
    grows: bool = False
    passed: int = 0
    blocked_by: str | None = None
    key: tuple[float, int] = (0.0, 0)

    @property
    def ticket_id(self) -> str:
        return self.holding.ticket_id


class WaitQueue:
    """Waiters in order; adding, finding and removing cost O(log n)."""

    def __init__(self, aging_seconds: float):
        self.aging_seconds = aging_seconds
        self._arrivals = itertools.count()
        self._ordered: SortedKeyList = SortedKeyList(key=lambda waiter: waiter.key)
        self._by_id: dict[str, Waiter] = {}

    def add(self, waiter: Waiter) -> None:
        place = waiter.since - waiter.holding.priority * self.aging_seconds
        waiter.key = (place, next(self._arrivals))
        self._ordered.add(waiter)
        self._by_id[waiter.ticket_id] = waiter

    def get(self, ticket_id: str) -> Waiter | None:
        return self._by_id.get(ticket_id)

    def remove(self, waiter: Waiter) -> None:
        self._ordered.remove(waiter)
        del self._by_id[waiter.ticket_id]

    def before(self, waiter: Waiter) -> Iterator[Waiter]:
        """Those that stand before `waiter`."""
        return itertools.takewhile(lambda other: other is not waiter, self._ordered)

    def __len__(self) -> int:
        return len(self._ordered)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._ordered)
