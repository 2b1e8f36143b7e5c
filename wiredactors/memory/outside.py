"""Outside pressure: what others, and what no ticket tells of, take beyond their reserve.

A ceiling leaves a reserve to everyone else: total memory less the ceiling. What lies outside the
ledger is what is used of the machine less what our own tickets have in memory,

    outside = (total - available) - min(footprint, bytes claimed by tickets)
    excess = outside - reserve, if that is more than 0

and admission goes by the ceiling less the excess. That is the same as saying that the ceiling is
never more than what is free, and what our own tickets have in memory already:

    ceiling - excess = min(ceiling, available + min(footprint, bytes claimed by tickets))

Tickets claim their bytes and their policies' bases. Reservations claim them while they wait, too:
weights are often in memory before the ticket for them starts, and were never outside then.

A ceiling at or above the total leaves no reserve: whoever sets it overcommits knowingly, and
nothing is watched.
"""

from __future__ import annotations

from typing import Any

import attrs

from wiredactors.memory.units import checked_size

#: An excess that changes by less than this part of the ceiling is left as it is: memory moves all
#: the time, and an event for each move would drown the others.
_QUIET_PART = 100


def _size(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    checked_size(value, attribute.name)


def _within_total(instance: MemoryReading, attribute: attrs.Attribute[Any], value: int) -> None:
    checked_size(value, attribute.name)
    if value > instance.total_bytes:
        raise ValueError(
            f"available_bytes must not be more than total_bytes, but are {value} of "
            f"{instance.total_bytes}"
        )


@attrs.frozen
class MemoryReading:
    """The memory of the machine, or of a device that has its own, at one moment.

    Attributes:
        total_bytes: what there is.
        available_bytes: what could be had now, without anybody's memory being swapped out.
        footprint_bytes: what this process has of it.
    """

    total_bytes: int = attrs.field(validator=_size)
    available_bytes: int = attrs.field(validator=_within_total)
    footprint_bytes: int = attrs.field(validator=_size)


class OutsidePressure:
    """How far admission is tightened, from one reading to the next.

    Attributes:
        excess_bytes: what is in force: take it off the ceiling. 0 where nothing presses.
        reading: the last that was taken in.
    """

    def __init__(self) -> None:
        self.excess_bytes = 0
        self.reading: MemoryReading | None = None
        self._ceiling: int | None = None
        self._claimed = 0

    def observe(
        self, reading: MemoryReading | None, *, ceiling: int | None, claimed_bytes: int
    ) -> bool:
        """Take a reading in; whether `excess_bytes` changed by it, which is worth an event.

        It changes by a hundredth of the ceiling at least, or when pressure ends.

        Args:
            reading: None where nothing is known any more: nothing presses then.
            ceiling: bytes; None for none.
            claimed_bytes: by all tickets.
        """
        self.reading, self._ceiling, self._claimed = reading, ceiling, claimed_bytes
        excess = self._excess()
        step = max(1, (ceiling or 0) // _QUIET_PART)
        before = self.excess_bytes
        if excess and abs(excess - before) < step:
            return False
        self.excess_bytes = excess
        return excess != before

    def claim(self, more_bytes: int, *, ceiling: int | None) -> bool:
        """A ticket comes for what may be in memory already; whether `excess_bytes` fell by that."""
        self._claimed += more_bytes
        self._ceiling = ceiling
        excess = min(self._excess(), self.excess_bytes)
        before, self.excess_bytes = self.excess_bytes, excess
        return excess != before

    def _excess(self) -> int:
        reading, ceiling = self.reading, self._ceiling
        if reading is None or ceiling is None or ceiling >= reading.total_bytes:
            return 0
        own = min(reading.footprint_bytes, self._claimed)
        return max(0, ceiling - reading.available_bytes - own)
