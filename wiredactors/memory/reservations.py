"""Reservations: those that stay until their owners end them, and those that yield when asked."""

from __future__ import annotations

from collections import Counter

from wiredactors.memory.group import Group
from wiredactors.memory.holding import Holding


class Reservations:
    """The live reservations, with the sums that say what no other ticket's end would free.

    Attributes:
        reclaimable: those whose owners would give them up, the least recently used first.
        evictable: models, whose owners would too, in that order.
        asked: those of both that have been asked to, in that order.
        reclaimable_bytes: of all that are reclaimable.
        evictable_bytes: of all models.
        kept_bytes: of all that are not reclaimable, models included.
    """

    def __init__(self) -> None:
        self.reclaimable: dict[str, Holding] = {}
        self.evictable: dict[str, Holding] = {}
        self.asked: dict[str, Holding] = {}
        self.reclaimable_bytes = 0
        self.evictable_bytes = 0
        self.kept_bytes = 0
        self._kept_in: Counter[Group] = Counter()  # bytes
        self._kept_count: Counter[Group] = Counter()

    def add(self, holding: Holding) -> None:
        if holding.reclaimable:
            self.reclaimable[holding.ticket_id] = holding
            self.reclaimable_bytes += holding.size
        else:
            if holding.evictable:
                self.evictable[holding.ticket_id] = holding
                self.evictable_bytes += holding.size
            self._kept_count[holding.group] += 1
            self._keep(holding.group, holding.size)

    def remove(self, holding: Holding) -> None:
        if holding.reclaimable:
            del self.reclaimable[holding.ticket_id]
            self.asked.pop(holding.ticket_id, None)
            self.reclaimable_bytes -= holding.size
            return
        if holding.evictable:
            del self.evictable[holding.ticket_id]
            self.asked.pop(holding.ticket_id, None)
            self.evictable_bytes -= holding.size
        group = holding.group
        self._keep(group, -holding.size)
        self._kept_count[group] -= 1
        if not self._kept_count[group]:
            del self._kept_count[group], self._kept_in[group]

    def resized(self, holding: Holding, change: int) -> None:
        """Its size has changed by `change` bytes."""
        if holding.reclaimable:
            self.reclaimable_bytes += change
            if change < 0:  # it has given what it would, and may be asked for the rest
                self.release(holding)
        else:
            if holding.evictable:
                self.evictable_bytes += change
            self._keep(holding.group, change)

    def ask(self, holding: Holding) -> None:
        """One whose owner can be asked for it is."""
        holding.asked = True
        self.asked[holding.ticket_id] = holding

    def release(self, holding: Holding) -> None:
        """It is not asked for any more."""
        holding.asked = False
        self.asked.pop(holding.ticket_id, None)

    def used(self, holding: Holding) -> None:
        """One whose owner can be asked for it was used: it yields after all others like it."""
        order = self.reclaimable if holding.reclaimable else self.evictable
        del order[holding.ticket_id]
        order[holding.ticket_id] = holding

    def _keep(self, group: Group, change: int) -> None:
        self.kept_bytes += change
        self._kept_in[group] += change

    def kept_in(self, group: Group) -> int:
        """Bytes in `group` that do not yield."""
        return self._kept_in[group]

    def kept_count(self, group: Group) -> int:
        """How many of `group` do not yield by themselves."""
        return self._kept_count[group]

    def kept_base_bytes(self, group: Group) -> int:
        """The bases that would count if only those that do not yield and one of `group` lived."""
        bases = sum(other.base_bytes for other in self._kept_count)
        return bases if group in self._kept_count else bases + group.base_bytes
