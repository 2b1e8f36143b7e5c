"""Outside pressure: what others, and what no ticket tells of, take beyond their reserve.

A ceiling leaves a reserve to everyone else: total memory less the ceiling. What lies outside the
ledger is what is used of the machine less what our own tickets have in memory,

    outside = (total - available) - min(footprint, bytes of all tickets)
    excess = outside - reserve, if that is more than 0

and admission goes by the ceiling less the excess. That is the same as saying that the ceiling is
never more than what is free, and what our own tickets have in memory already:

    ceiling - excess = min(ceiling, available + min(footprint, bytes of all tickets))

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


@attrs.frozen
class MemoryReading:
    """The memory of the machine, or of a device that has its own, at one moment.

    Attributes:
        total_bytes: what there is.
        available_bytes: what could be had now, without anybody's memory being swapped out.
        footprint_bytes: what this process has of it.
    """

    total_bytes: int = attrs.field(validator=_size)
    available_bytes: int = attrs.field(validator=_size)
    footprint_bytes: int = attrs.field(validator=_size)


class OutsidePressure:
    """How far admission is tightened, from one reading to the next.

    Attributes:
        excess_bytes: what is in force: take it off the ceiling. 0 where nothing presses.
    """

    def __init__(self) -> None:
        self.excess_bytes = 0

    def observe(
        self, reading: MemoryReading | None, *, ceiling: int | None, held_bytes: int
    ) -> bool:
        """Take a reading in; whether `excess_bytes` changed by it, which is worth an event.

        It changes by a hundredth of the ceiling at least, or when pressure ends.

        Args:
            reading: None where nothing is known any more: nothing presses then.
            ceiling: bytes; None for none.
            held_bytes: of all tickets.
        """
        if reading is None or ceiling is None:
            excess, step = 0, 1
        else:
            excess, step = _excess(reading, ceiling, held_bytes), max(1, ceiling // _QUIET_PART)
        before = self.excess_bytes
        if excess and abs(excess - before) < step:
            return False
        self.excess_bytes = excess
        return excess != before


def _excess(reading: MemoryReading, ceiling: int, held_bytes: int) -> int:
    if ceiling >= reading.total_bytes:
        return 0
    own = min(reading.footprint_bytes, held_bytes)
    return max(0, ceiling - reading.available_bytes - own)
