"""What finished jobs teach about the next ones: how far predictions of their caches were off.

A ratio is usually well below one: a row is charged for the longest that it can become, in whole
steps and with a copy of a layer for moments when rows join or leave, and most answers stop
early in a cache that needs no copy then. That costs admission, never memory, and the prediction
error that events carry shows it. A ratio above one means that the prediction missed something:
then the next rows are charged so much more.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

#: How many of the last observations count.
KEPT_RATIOS = 256

#: No factor is larger. A prediction that misses more is wrong, and its model is not made usable by
#: charging more: one absurd observation would refuse every later job, none of which could mend it.
MOST_FACTOR = 4.0

#: So many of a hundred must have been charged enough; of up to 100 that is all.
PERCENT = 99


class Correction:
    """By how much one model's rows outgrow what is predicted. Sizes are bytes.

    It only ever raises a charge: what the structure of a cache demands is allocated sooner or
    later, however short the answers were so far.

    Attributes:
        recorded: how many observations were recorded here, beside those that it began with.
        on_record: called after each.
    """

    def __init__(self, ratios: Iterable[float] = ()):
        """`ratios` are earlier observations, each observed / predicted, oldest first."""
        self._ratios: deque[float] = deque(ratios, KEPT_RATIOS)
        self._factor = _factor_of(self._ratios)
        self.recorded = 0
        self.on_record: Callable[[], object] = lambda: None

    def __repr__(self) -> str:
        return f"<Correction {self._factor:.4g} of {len(self._ratios)} jobs>"

    def record(self, predicted: int, observed: int) -> None:
        """Learn from a row that was predicted to take so much, and took so much in the end.

        Raises:
            ValueError: one of them is no size above 0.
        """
        for name, value in (("predicted", predicted), ("observed", observed)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a number of bytes from 1, not {value!r}")
        self._ratios.append(observed / predicted)
        self._factor = _factor_of(self._ratios)
        self.recorded += 1
        self.on_record()

    @property
    def factor(self) -> float:
        """What predictions are multiplied by: the 0.99 quantile of the ratios, from 1.0 to 4.0.

        Between these it is one of the ratios: the least that 99 % of the others do not exceed.
        """
        return self._factor

    def corrected(self, size: int) -> int:
        """A predicted size as it is charged, rounded up."""
        if self._factor == 1:
            return size
        return math.ceil(Fraction(self._factor) * size)

    @property
    def count(self) -> int:
        """How many observations count."""
        return len(self._ratios)

    @property
    def median_error(self) -> float | None:
        """The median of (observed - predicted) / predicted; None before any observation."""
        return statistics.median(self._ratios) - 1 if self._ratios else None

    # -- to keep it

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a file."""
        return {"ratios": list(self._ratios)}

    def joined(self, other: Correction, count: int) -> Correction:
        """These observations, and after them the last `count` of another's."""
        return Correction([*self._ratios, *list(other._ratios)[max(0, other.count - count) :]])

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Correction:
        """Back from plain data.

        Raises:
            ValueError: it is not what `to_dict` makes.
        """
        ratios = data.get("ratios") if isinstance(data, Mapping) else None
        if not isinstance(ratios, list):
            raise ValueError(f"a correction is kept as a dictionary with a list 'ratios': {data!r}")
        for ratio in ratios:
            number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
            if not number or not 0 < ratio <= sys.float_info.max:
                raise ValueError(f"a ratio of observed to predicted bytes cannot be {ratio!r}")
        return cls(float(ratio) for ratio in ratios)


def _factor_of(ratios: Iterable[float]) -> float:
    ordered = sorted(ratios)
    if not ordered:
        return 1.0
    quantile = ordered[-(-PERCENT * (len(ordered) - 1) // 100)]  # rounded up
    return min(max(1.0, quantile), MOST_FACTOR)
