"""A model's steps, thought through one after another: nothing is evaluated or allocated.

Each step's graph is recorded and its evaluation played (`graph.py`, `liveness.py`). Then the caches
are given arrays of the same shapes that stand for evaluated ones, and the next step begins. So what
counts is what a cache's own code does with its arrays, of whatever kind the cache is.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import attrs

from wiredactors.engine.cache import parts
from wiredactors.engine.fusion import compiles, fuse, marked_functions
from wiredactors.engine.graph import record_graph
from wiredactors.engine.imports import import_mlx
from wiredactors.engine.liveness import Buffer, Device, Held, evaluate
from wiredactors.engine.modules import own_tables, untouched

#: Caches of which it is known how they grow.
_GROWING = ("KVCache", "RotatingKVCache", "QuantizedKVCache", "ArraysCache")


class Step(NamedTuple):
    """Bytes of one step: the most that it held at once, and the caches that it left."""

    peak_bytes: int
    left_bytes: int


class Tracer:
    """Runs a model without running it, from empty caches on. Sizes are bytes.

    Attributes:
        model: the model.
        caches: one for each layer; their arrays have shapes and no numbers.
        cache_bytes: what they hold now, each buffer once.
        constant_bytes: tables that the model makes of itself at its first step, and keeps.
        steps: of each step the most that it held at once, caches among it, and what it left.
        operations: operations of the last step, more where a model works token by token.
        vocabulary: the width of its answer; 0 before the first step.
        fed: what each cache of keys and values was given last, by its place among them.
    """

    def __init__(
        self,
        model: Any,
        caches: list[Any],
        device: Device,
        after: Callable[[list[Any]], object] = lambda caches: None,
    ):
        """`after(caches)` comes after each step, before its evaluation; it may replace some."""
        self.caches = caches
        self.cache_bytes = 0
        self.constant_bytes = 0
        self.steps: list[Step] = []
        self.operations = 0
        self.vocabulary = 0
        self._mx = import_mlx()
        self.model = model
        self._device = device
        self._after = after
        self._weights = _flatten(model.parameters())
        self.fed: dict[int, Fed] = {}
        self._buffers = [
            Buffer(number, device.allocated(array.nbytes))
            for number, array in enumerate(_arrays_of(caches))
        ]

    def step(self, rows: int, tokens: int, *, logits: bool = False) -> None:
        """Think through a step of `tokens` more tokens for each of `rows` rows.

        `logits`: whether the next token is wanted too, as in decoding.
        """

        def run(given: Sequence[Any]) -> list[Any]:
            with self._watched():
                answer = self.model(given[0], cache=self.caches)
            self.vocabulary = int(answer.shape[-1])
            self._after(self.caches)
            return [self._mx.argmax(answer[:, -1], axis=-1)] if logits else []

        self._do(run, [self._mx.zeros((rows, tokens), self._mx.int32)])

    @property
    def can_grow(self) -> bool:
        """Whether the caches alone can be given more tokens, once a step has shown of what kind.

        States do not grow; what a cache of the model's own does nobody knows.
        """
        known = all(
            type(part).__name__.removeprefix("Batch") in _GROWING
            for cache in self.caches
            for part in parts(cache)
        )
        return known and set(self.fed) == set(range(len(key_value_parts(self.caches))))

    def grow(self, tokens: int) -> None:
        """As `step`, but for the caches alone: keys and values of `tokens` more tokens.

        It is for the middle of a long prompt; `can_grow` says whether it may be used.
        """
        fed = [self.fed[place] for place in range(len(key_value_parts(self.caches)))]

        def run(given: Sequence[Any]) -> list[Any]:
            for part, keys, values in zip(
                key_value_parts(self.caches), given[::2], given[1::2], strict=True
            ):
                part.update_and_fetch(keys, values)
            self._after(self.caches)
            return []

        self._do(run, [array for each in fed for array in each.arrays(self._mx, tokens)])

    def bytes_of(self, part: Any) -> int:
        """Bytes of the buffers in which the arrays of one cache lie."""
        mine = {id(array) for array in _arrays_of([part])}
        places = [
            buffer
            for array, buffer in zip(_arrays_of(self.caches), self._buffers, strict=True)
            if id(array) in mine
        ]
        return sum(buffer.size for buffer in set(places))

    @property
    def workspace_bytes(self) -> int:
        """The most that a step held beyond the caches that it left, or beyond those of now."""
        return max(step.peak_bytes - min(step.left_bytes, self.cache_bytes) for step in self.steps)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Note down which keys and values each cache is given."""
        watched = key_value_parts(self.caches)
        for place, part in enumerate(watched):
            part.update_and_fetch = functools.partial(self._feed, place, part.update_and_fetch)
        try:
            yield
        finally:
            for part in watched:
                del part.update_and_fetch

    def _feed(self, place: int, feed: Callable[..., Any], keys: Any, values: Any) -> Any:
        self.fed[place] = Fed(keys.shape, keys.dtype, values.shape, values.dtype)
        return feed(keys, values)

    def _do(self, run: Callable[[Sequence[Any]], list[Any]], given: Sequence[Any]) -> None:
        weights = [array for _, array in self._weights]
        held_before = _arrays_of(self.caches)
        counts: list[int] = []

        def function(*arrays: Any) -> list[Any]:
            rest = arrays[len(given) :]
            self._place_weights(rest[: len(weights)])
            _replace(self.caches, iter(rest[len(weights) :]))
            wanted = run(arrays[: len(given)])
            caches = _arrays_of(self.caches)
            counts.extend((len(wanted), len(caches)))
            return [*wanted, *caches, *own_tables(self.model)]

        fusing = compiles()
        with untouched(self.model), marked_functions() if fusing else contextlib.nullcontext():
            try:
                graph = record_graph(function, [*given, *weights, *held_before])
            finally:
                self._place_weights(weights)
        if fusing:
            fuse(graph)
        wanted, held_after = counts
        caches = graph.outputs[wanted : wanted + held_after]
        tables = graph.outputs[wanted + held_after :]
        graph.outputs = graph.outputs[: wanted + held_after]
        # Of the model's tables only those that the step needs are evaluated.
        tables = tuple(set(tables) & graph.needed())
        graph.outputs += tables
        names = graph.inputs[len(given) + len(weights) :]
        held = evaluate(graph, dict(zip(names, self._buffers, strict=True)), self._device)
        self.operations = len(graph.operations)
        self._settle(held, caches, tables)

    def _settle(self, held: Held, caches: Sequence[str], tables: Sequence[str]) -> None:
        """The step has been evaluated."""
        self.constant_bytes = held.bytes_of(tables)
        self._buffers = [held.kept[name] for name in caches]
        self.cache_bytes = held.bytes_of(caches)
        self.steps.append(Step(held.peak_bytes - self.constant_bytes, self.cache_bytes))
        zeros = (self._mx.zeros(array.shape, array.dtype) for array in _arrays_of(self.caches))
        _replace(self.caches, zeros)

    def _place_weights(self, arrays: Sequence[Any]) -> None:
        from mlx.utils import tree_unflatten

        names = (name for name, _ in self._weights)
        self.model.update(tree_unflatten(list(zip(names, arrays, strict=True))))


@attrs.frozen
class Fed:
    """What a cache was given of one step: shapes of (rows, heads, tokens, width)."""

    key_shape: tuple[int, ...]
    key_dtype: Any
    value_shape: tuple[int, ...]
    value_dtype: Any

    def arrays(self, mx: Any, tokens: int) -> tuple[Any, Any]:
        """The same of a step of `tokens` tokens."""
        rows, heads, _, width = self.key_shape
        values = (*self.value_shape[:2], tokens, self.value_shape[3])
        return (
            mx.zeros((rows, heads, tokens, width), self.key_dtype),
            mx.zeros(values, self.value_dtype),
        )


def key_value_parts(caches: Sequence[Any]) -> list[Any]:
    """The caches that hold keys and values, those in lists of caches too."""
    found: list[Any] = []
    for cache in caches:
        inner = getattr(cache, "caches", None)
        if isinstance(inner, (list, tuple)):
            found += key_value_parts(inner)
        elif hasattr(cache, "update_and_fetch"):
            found.append(cache)
    return found


def _arrays_of(caches: Sequence[Any]) -> list[Any]:
    """The arrays that caches hold, in the order in which `_replace` replaces them."""
    arrays: list[Any] = []

    def take(array: Any) -> Any:
        arrays.append(array)
        return array

    _walk(list(caches), take)
    return arrays


def _replace(caches: Sequence[Any], arrays: Iterator[Any]) -> None:
    _walk(list(caches), lambda array: next(arrays))


def _walk(thing: Any, change: Callable[[Any], Any]) -> Any:
    """`thing` with each array in it changed; caches are changed in place."""
    if isinstance(thing, import_mlx().array):
        return change(thing)
    if isinstance(thing, (list, tuple)):
        return type(thing)([_walk(each, change) for each in thing])
    if isinstance(thing, dict):
        return {key: _walk(each, change) for key, each in thing.items()}
    if _is_cache(thing):
        for name, value in vars(thing).items():
            setattr(thing, name, _walk(value, change))
    return thing


def _is_cache(thing: Any) -> bool:
    return type(thing).__module__.startswith("mlx_lm.") and hasattr(thing, "__dict__")


def _flatten(tree: Any) -> list[tuple[str, Any]]:
    from mlx.utils import tree_flatten

    flat: Any = tree_flatten(tree)
    return list(flat)
