"""mlx-lm's caches as allocations: how long they are, and making them real one array at a time.

A cache is known by the name of its type, so that nobody has to import mlx-lm to ask.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from wiredactors.engine.imports import import_mlx, import_mlx_lm
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


def can_pad(cache: Any) -> bool:
    """Whether whoever reads it leaves out the padding of a row: keys and values have a mask."""
    return all(is_plain(part) or is_rotating(part) for part in parts(cache))


def batched(cache: Any) -> Any:
    """The same cache in the form that other rows can join."""
    kind = type(cache).__name__
    models = import_mlx_lm("models.cache")
    if kind == "KVCache":
        rows = 1 if cache.keys is None else cache.keys.shape[0]
        shared = models.BatchKVCache([0] * rows)
        shared.keys, shared.values, shared._idx = cache.keys, cache.values, cache.offset
        shared.offset = shared.offset + cache.offset
        return shared
    if kind == "CacheList":
        return models.CacheList(*map(batched, cache.caches))
    return cache if hasattr(cache, "extend") else cache.merge([cache])


def unpadded(cache: Any, rows: int) -> Any:
    """The same cache of rows of one length in mlx-lm's plain form, whose attention has no mask.

    A mask for each row more than doubles the time of attention, and the plain form counts its
    tokens in Python, where the batch form computes the lengths of its rows layer by layer.
    """
    kind = type(cache).__name__
    models = import_mlx_lm("models.cache")
    if kind == "BatchKVCache":
        plain = models.KVCache()
        plain.keys, plain.values, plain.offset = cache.keys, cache.values, cache._idx
        return plain
    if kind == "CacheList":
        return models.CacheList(*(unpadded(part, rows) for part in cache.caches))
    return cache.extract(0) if rows == 1 and is_rotating(cache) else cache


def twin(cache: Any) -> Any:
    """A cache of the same arrays, which may then have other rows."""
    if type(cache).__name__ == "CacheList":
        return import_mlx_lm("models.cache").CacheList(*map(twin, cache.caches))
    return copy.copy(cache)


class Settling:
    """Makes the caches of a batch real, as short as its rows allow. After rows joined or left.

    mlx-lm only notes down what is to be joined and cut. The next step would build the new cache
    while the whole old one is alive, which is twice the batch and more. A layer at a time it is
    little more than the batch; but each evaluation waits for the device, so as many layers are made
    real at once as `spare_bytes` hold beside the batch.
    """

    def __init__(self, spare_bytes: int):
        self._mx = import_mlx()
        self._spare_bytes = spare_bytes
        self._arrays: list[Any] = []
        self._bytes = 0

    def add(self, cache: Any, room: int = 0) -> None:
        """A layer's cache, which is made real now or with the next ones.

        Keys and values have room for `room` more tokens.
        """
        arrays = []
        for part in parts(cache):
            if is_plain(part):
                _fit(part, 0, bucket_tokens(_length(part) + room))
            elif is_rotating(part):
                _shorten(part)
            arrays += arrays_of(part)
        # For a moment there is also what it is cut from, or joined of.
        size = 2 * sum(int(array.nbytes) for array in arrays)
        if self._bytes + size > self._spare_bytes:
            self.finish()
        self._arrays += arrays
        self._bytes += size
        if self._bytes > self._spare_bytes:  # more than there is: one after the other
            for array in self._arrays:
                self._mx.eval(array)
            self._arrays, self._bytes = [], 0

    def finish(self) -> None:
        """Make real what is left."""
        self._mx.eval(self._arrays)
        self._arrays, self._bytes = [], 0


def make_room(caches: list[Any], spare_bytes: int) -> None:
    """Let full caches of keys and values grow by a step, before the model does.

    In a step of the model all layers would grow at once, each beside its old self.
    """
    settling = Settling(spare_bytes)
    for cache in caches:
        for part in parts(cache):
            if is_plain(part) and part.keys is not None and _length(part) >= part.keys.shape[2]:
                settling.add(part, room=1)
    settling.finish()


def _length(part: Any) -> int:
    return int(part._idx if type(part).__name__ == "BatchKVCache" else part.offset)


def arrays_of(part: Any) -> list[Any]:
    """The arrays that it holds now."""
    from mlx.utils import tree_flatten

    array = import_mlx().array
    flat: Any = tree_flatten(part.state)
    return [value for _, value in flat if isinstance(value, array)]


def _shorten(part: Any) -> None:
    """Drop the padding on the left that only rows which have left needed.

    mlx-lm does so in its other batch cache, but lets this one grow with every row that comes and
    goes, up to the window. In one that has reached its window there is nothing to drop; one that is
    beyond it, after a chunk, is cut by the next step.
    """
    if type(part).__name__ == "RotatingKVCache" or part.keys is None:
        return
    if part.rotated or part._offset != part._idx or part._idx > part.max_size:
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
