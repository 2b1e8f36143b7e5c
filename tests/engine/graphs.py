"""Graphs made by hand, and what the real MLX holds at most."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

from wiredactors.engine.graph import Graph, Operation, Shaped
from wiredactors.engine.imports import import_mlx


class Drawing:
    """A graph, an operation at a time; items are four bytes unless said otherwise."""

    def __init__(self) -> None:
        self.graph = Graph()

    def takes(self, name: str, *shape: int, item_bytes: int = 4) -> str:
        self.graph.arrays[name] = Shaped(shape, item_bytes)
        self.graph.inputs += (name,)
        return name

    def makes(
        self,
        primitive: str,
        name: str,
        inputs: Sequence[str],
        *shape: int,
        item_bytes: int = 4,
        arguments: Sequence[Any] = (),
    ) -> str:
        self.graph.arrays[name] = Shaped(shape, item_bytes)
        self.graph.operations.append(Operation(primitive, tuple(inputs), (name,), arguments))
        return name

    def wants(self, *names: str) -> Graph:
        self.graph.outputs = names
        return self.graph


def peak_of(function: Callable[..., Any], *shapes: tuple[int, ...]) -> int:
    """Bytes that MLX really holds at most while it evaluates `function` of zeros, beside those."""
    mx = import_mlx()
    before_limit = mx.set_cache_limit(0)
    try:
        given = [mx.zeros(shape) for shape in shapes]
        mx.eval(given)
        mx.eval(function(*given))  # scalars of the process, kernels
        mx.synchronize()
        gc.collect()
        before = int(mx.get_active_memory())
        mx.reset_peak_memory()
        results = function(*given)
        mx.eval(results)
        mx.synchronize()
        return max(0, int(mx.get_peak_memory()) - before)  # the peak begins at 0
    finally:
        mx.set_cache_limit(before_limit)
