"""mlx-lm's caches as allocations: which grow in whole steps, and cutting them back to those."""

from __future__ import annotations

from typing import Any

from wiredactors.engine.imports import import_mlx
from wiredactors.scheduling.buckets import STEP_TOKENS


def grows_whole(cache: Any) -> bool:
    """Whether `cache` can be cut back to whole steps; a rotating one, say, cannot."""
    return type(cache).__name__ in ("KVCache", "BatchKVCache")


def cut_to_whole_steps(cache: Any) -> None:
    """Pad the allocation of a batch's cache back to whole steps.

    When a row leaves, mlx-lm's batch cache drops the padding that only that row needed, from the
    left; what is left is no multiple of a step, and the next growth would add a whole step to it.
    """
    if not grows_whole(cache) or cache.keys is None:
        return
    over = -cache.keys.shape[2] % STEP_TOKENS
    if over:
        mx = import_mlx()
        padding = [(0, 0), (0, 0), (0, over), (0, 0)]
        cache.keys = mx.pad(cache.keys, padding)
        cache.values = mx.pad(cache.values, padding)
