"""Models that work token by token: a long step of theirs is not thought through whole.

Its graph has operations of each token, hundreds of thousands of them. Instead two short steps are
thought through, and sizes go on in a straight line: each more token takes as much as the one
before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from wiredactors.engine.cache import parts
from wiredactors.engine.tracing import Tracer, key_value_parts

#: Tokens of the two short steps.
SHORT = (16, 32)

#: More operations than these are too many (about three seconds).
_MOST_OPERATIONS = 60_000


def short_steps(new_tracer: Callable[[], Tracer], *, rows: int, tokens: int) -> list[Tracer]:
    """Tracers that have made the short steps, where `tokens` tokens are too many; else none.

    They are thought through for it, but not where there is attention alone: that is one graph,
    however long the step.
    """
    tracers = []
    for length in SHORT:
        tracer = new_tracer()
        if not has_states(tracer.caches):
            return []
        tracer.step(rows, length)
        tracers.append(tracer)
    if not tracer.can_grow:
        return []  # nor would it be known how its caches go on
    fewer, more = (each.operations for each in tracers)
    each_token = (more - fewer) // (SHORT[1] - SHORT[0])
    return tracers if each_token * tokens > _MOST_OPERATIONS else []


def has_states(caches: Sequence[Any]) -> bool:
    """Whether any of them holds something else than keys and values."""
    return any(not key_value_parts([part]) for cache in caches for part in parts(cache))


def size_at(tokens: int, sizes: Sequence[int]) -> int:
    """The value at `tokens` of the line through those of the short steps, never below the last."""
    slope = max(0, sizes[1] - sizes[0]) / (SHORT[1] - SHORT[0])
    return sizes[1] + math.ceil(slope * max(0, tokens - SHORT[1]))
