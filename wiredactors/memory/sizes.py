"""The sizes of one group's tickets, with their sum and their largest kept as they change."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import overload


class Sizes(Sequence[int]):
    """A bag of sizes in bytes that knows its `total`, `length` and `largest` without a search.

    Adding and removing cost O(1), and O(log n) from the first time on that anyone asks for the
    largest; so a ledger of 100,000 tickets decides as fast as one of ten. It reads as a sequence,
    in no order that means anything.
    """

    __slots__ = ("_counts", "_heap", "length", "total")

    def __init__(self, sizes: Iterable[int] = ()):
        self.total = 0
        self.length = 0
        self._counts: dict[int, int] = {}  # how many there are of each size
        self._heap: list[int] | None = None  # negative sizes; some may have gone meanwhile
        for size in sizes:
            self.add(size)

    @property
    def largest(self) -> int:
        """The largest size, 0 where there is none."""
        if self._heap is None:
            self._heap = [-size for size in self._counts]
            heapq.heapify(self._heap)
        while self._heap and -self._heap[0] not in self._counts:
            heapq.heappop(self._heap)
        return -self._heap[0] if self._heap else 0

    def add(self, size: int) -> None:
        count = self._counts.get(size, 0)
        self._counts[size] = count + 1
        self.length += 1
        self.total += size
        if self._heap is not None and not count:
            heapq.heappush(self._heap, -size)
            if len(self._heap) > 2 * len(self._counts) + 16:  # mostly of sizes that have gone
                self._heap = None

    def remove(self, size: int) -> None:
        count = self._counts[size]
        if count == 1:
            del self._counts[size]
        else:
            self._counts[size] = count - 1
        self.length -= 1
        self.total -= size

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        return list(self)[index]

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        for size, count in self._counts.items():
            yield from itertools.repeat(size, count)

    def __repr__(self) -> str:
        return f"Sizes({list(self)!r})"


def total_of(sizes: Sequence[int]) -> int:
    """The sum of `sizes`, at once where they keep it themselves."""
    return sizes.total if isinstance(sizes, Sizes) else sum(sizes)


def largest_of(sizes: Sequence[int]) -> int:
    """The largest of `sizes` (0 where there is none), at once where they keep it themselves."""
    return sizes.largest if isinstance(sizes, Sizes) else max(sizes, default=0)
