"""Scores of several rows, and what is told of them: each row's own, whoever is beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs


@attrs.define
class Scores:
    """The scores of a step's rows; `own` are those that a row's processors returned."""

    _mx: Any
    _logits: Any
    _index: Callable[[tuple[int, ...]], Any]
    own: dict[int, Any] = attrs.field(factory=dict)

    def parts(self, rows: tuple[int, ...]) -> list[tuple[tuple[int, ...], Any]]:
        """The scores of some rows, those of one type together, so that none changes another's."""
        if not rows:
            return []
        if not any(row in self.own for row in rows):
            everyone = len(rows) == self._logits.shape[0]
            return [(rows, self._logits if everyone else self._logits[self._index(rows)])]
        by_type: dict[Any, list[tuple[int, Any]]] = {}
        for row in rows:
            scores = self.own.get(row)
            if scores is None:
                scores = self._logits[row : row + 1]
            by_type.setdefault(scores.dtype, []).append((row, scores))
        return [
            (tuple(row for row, _ in part), self._mx.concatenate([scores for _, scores in part]))
            for part in by_type.values()
        ]


@attrs.define
class Told:
    """The log-probabilities of some rows: arrays, read when the first of them is asked for."""

    _rows: tuple[int, ...]
    _counts: dict[int, int]
    arrays: list[Any]
    _values: list[Any] | None = None

    def of(self, row: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        if self._values is None:
            self._values = [array.tolist() for array in self.arrays]
        logprob, *top = (values[self._rows.index(row)] for values in self._values)
        pairs = sorted(zip(*top, strict=True), key=lambda pair: (-pair[1], pair[0]))
        return logprob, tuple(pairs[: self._counts[row]])


def normalized(mx: Any, logits: Any) -> Any:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
