"""The sizes of one group's tickets, with their sum and their largest kept as they change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from sortedcontainers import SortedList


class Sizes(Sequence[int]):
    """A bag of sizes in bytes that knows its `total` and its `largest` without looking at each.

    Adding, removing and replacing cost O(log n), so a ledger of 100,000 tickets decides as fast
    as one of ten. It reads as a sequence in ascending order.
    """

    __slots__ = ("_ordered", "total")

    def __init__(self, sizes: Sequence[int] = ()):
        self._ordered = SortedList(sizes)
        self.total = sum(sizes)

    @property
    def largest(self) -> int:
        """The largest size, 0 where there is none."""
        return self._ordered[-1] if self._ordered else 0

    def add(self, size: int) -> None:
        self._ordered.add(size)
        self.total += size

    def remove(self, size: int) -> None:
        self._ordered.remove(size)
        self.total -= size

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        found: int | Sequence[int] = self._ordered[index]
        return found

    def __len__(self) -> int:
        return len(self._ordered)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ordered)

    def __repr__(self) -> str:
        return f"Sizes({list(self._ordered)!r})"


def total_of(sizes: Sequence[int]) -> int:
    """The sum of `sizes`, at once where they keep it themselves."""
    return sizes.total if isinstance(sizes, Sizes) else sum(sizes)


def largest_of(sizes: Sequence[int]) -> int:
    """The largest of `sizes` (0 where there is none), at once where they keep it themselves."""
    return sizes.largest if isinstance(sizes, Sizes) else max(sizes, default=0)
