"""mlx-lm's caches as allocations: how long they are, and making them real one array at a time.

A cache is known by the name of its type, so that nobody has to import mlx-lm to ask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wiredactors.engine.imports import import_mlx
from wiredactors.memory.cache_cost import bucket_tokens


def parts(cache: Any) -> Iterator[Any]:
    """The caches that a layer's cache is made of: itself, or those in its list."""
    if type(cache).__name__ == "CacheList":
        for part in cache.caches:
            yield from parts(part)
    else:
        yield cache


def is_plain(part: Any) -> bool:
    """Whether it holds keys and values in whole steps of 256 tokens."""
    return type(part).__name__ in ("KVCache", "BatchKVCache")


def is_rotating(part: Any) -> bool:
    """Whether it holds keys and values of a window, and in no whole steps."""
    return type(part).__name__ in ("RotatingKVCache", "BatchRotatingKVCache")


def settle(caches: list[Any]) -> None:
    """Make a batch's caches real, as short as its rows allow. After rows have joined or left.

    mlx-lm only notes down what is to be joined and cut. The next step would build the new cache
    while the whole old one is alive, which is twice the batch and more; one array at a time it is
    little more than the batch.
    """
    mx = import_mlx()
    for cache in caches:
        for part in parts(cache):
            if is_plain(part):
                _fit(part, 0, bucket_tokens(part._idx))
            elif is_rotating(part):
                _shorten(part)
            for array in arrays_of(part):
                mx.eval(array)


def arrays_of(part: Any) -> list[Any]:
    """The arrays that it holds now."""
    from mlx.utils import tree_flatten

    array = import_mlx().array
    flat: Any = tree_flatten(part.state)
    return [value for _, value in flat if isinstance(value, array)]


def _shorten(part: Any) -> None:
    """Drop the padding on the left that only rows which have left needed.

    mlx-lm does so in its other batch cache, but lets this one grow with every row that comes and
    goes, up to the window. In one that has reached its window there is nothing to drop.
    """
    if part.keys is None or part.rotated or part._offset != part._idx:
        return
    spare = max(0, min(part.left_padding.tolist()))
    part.left_padding -= spare
    part._idx -= spare
    part._offset -= spare
    _fit(part, spare, min(part.max_size, bucket_tokens(part._idx)))


def _fit(part: Any, begin: int, length: int) -> None:
    """Let keys and values begin at `begin` and be `length` long; none, if there are none."""
    if part.keys is None:
        return
    mx = import_mlx()
    for name in ("keys", "values"):
        array = getattr(part, name)[..., begin : begin + length, :]
        missing = length - array.shape[2]
        if missing:
            array = mx.pad(array, [(0, 0), (0, 0), (0, missing), (0, 0)])
        # A slice alone would keep alive what it was cut from.
        setattr(part, name, mx.contiguous(array))
