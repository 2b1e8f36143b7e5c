"""A computation as MLX would carry it out, recorded without carrying it out.

`mx.export_function` with a callback tells every operation with the shapes of what goes in and comes
out, and evaluates nothing: a 70B llama's prefill is recorded in about a tenth of a second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from wiredactors.engine.imports import import_mlx
from wiredactors.engine.layout import row_contiguous
from wiredactors.engine.standing_in import StandIn, standing_in

#: An array of a graph, by its name there.
Name = str

#: How MLX begins when it wants an array that nobody has evaluated.
_WANTS_NUMBERS = "[eval] Attempting to eval an array"

#: How it begins when it cannot record an operation.
_CANNOT_EXPORT = "[export_function]"


class Unrecordable(ValueError):
    """MLX cannot record a function: only running it would tell. The message says why.

    Any other error is a mistake, of the function or of ours.
    """


@attrs.frozen
class Shaped:
    """An array without its numbers."""

    shape: tuple[int, ...]
    item_bytes: int

    @property
    def size(self) -> int:
        size = 1
        for extent in self.shape:
            size *= extent
        return size

    @property
    def nbytes(self) -> int:
        return self.size * self.item_bytes


@attrs.frozen
class Operation:
    """One primitive of MLX, by its name there."""

    primitive: str
    inputs: tuple[Name, ...]
    outputs: tuple[Name, ...]
    arguments: Sequence[Any]

    def reading(self, inputs: tuple[Name, ...]) -> Operation:
        """The same operation on other inputs."""
        if inputs == self.inputs:
            return self
        return Operation(self.primitive, inputs, self.outputs, self.arguments)


@attrs.define
class Graph:
    """What leads from `inputs` to `outputs`.

    Attributes:
        inputs, outputs: arrays that go in and come out; one may be both.
        arrays: every array of it.
        constants: those that are neither inputs nor made by an operation.
        operations: in an order in which they could be carried out.
    """

    inputs: tuple[Name, ...] = ()
    outputs: tuple[Name, ...] = ()
    constants: tuple[Name, ...] = ()
    arrays: dict[Name, Shaped] = attrs.field(factory=dict)
    operations: list[Operation] = attrs.field(factory=list)

    def makers(self) -> dict[Name, Operation]:
        """Who makes each array that is made."""
        return {name: operation for operation in self.operations for name in operation.outputs}

    def needed(self) -> set[Name]:
        """The outputs, and all that leads to them."""
        makers = self.makers()
        needed: set[Name] = set()
        stack = list(self.outputs)
        while stack:
            name = stack.pop()
            if name not in needed:
                needed.add(name)
                if name in makers:
                    stack.extend(makers[name].inputs)
        return needed


def record_graph(function: Callable[..., Sequence[Any]], arrays: Sequence[Any]) -> Graph:
    """The graph of `function(*arrays)`, which returns arrays. Nothing is evaluated.

    Raises:
        Unrecordable: MLX cannot record it. Besides, whatever the function raises.
    """
    mx = import_mlx()
    graph = Graph()

    def named(entries: Sequence[Any]) -> tuple[Name, ...]:
        for name, shape, dtype in entries:
            if name not in graph.arrays:
                graph.arrays[name] = Shaped(tuple(shape), dtype.size)
        return tuple([entry[0] for entry in entries])

    def take(entry: dict[str, Any]) -> None:
        kind = entry["type"]
        if kind == "inputs":
            graph.inputs = named(entry["inputs"])
        elif kind == "outputs":
            graph.outputs = named(entry["outputs"])
        elif kind == "constants":
            graph.constants = named([(name, a.shape, a.dtype) for name, a in entry["constants"]])
        elif kind == "primitive":
            graph.operations.append(
                Operation(
                    primitive=entry["name"],
                    inputs=named(entry["inputs"]),
                    outputs=named(entry["outputs"]),
                    arguments=entry["arguments"],
                )
            )

    try:
        with _exportable(mx):
            mx.export_function(take, lambda *given: tuple(function(*given)), *arrays)
    except (ValueError, RuntimeError) as error:
        if str(error).startswith(_WANTS_NUMBERS):
            raise Unrecordable("its code asks for numbers that only running it gives") from error
        if str(error).startswith(_CANNOT_EXPORT):
            raise Unrecordable(f"MLX cannot record it ({error})") from error
        raise
    _unmerge(graph)
    return graph


def _unmerge(graph: Graph) -> None:
    """Give those who want equal arrays, each made anew for them, an array of their own again.

    To export a function MLX makes equal operations on equal inputs one. Caches ask for zeros of one
    shape again and again, though, and on CUDA each attention makes numbers of the mask's bits. What
    else is computed twice is rare.
    """
    makers = graph.makers()
    seen: set[Name] = set()
    operations: list[Operation] = []

    def own(name: Name, *, mask: bool = False) -> Name:
        maker = makers.get(name)
        if maker is None or not (
            maker.primitive == "Full" or (mask and maker.primitive == "Select")
        ):
            return name
        if name not in seen:
            seen.add(name)
            return name
        copy = f"{name}/{len(graph.arrays)}"
        graph.arrays[copy] = graph.arrays[name]
        inputs = tuple(own(each) for each in maker.inputs)
        operations.append(attrs.evolve(maker, inputs=inputs, outputs=(copy,)))
        return copy

    for operation in graph.operations:
        attends = operation.primitive == "ScaledDotProductAttention"
        inputs = tuple([own(name, mask=attends) for name in operation.inputs])
        operations.append(operation.reading(inputs))
    graph.outputs = tuple(own(name) for name in graph.outputs)
    graph.operations = operations


def _exportable(mx: Any) -> contextlib.AbstractContextManager[None]:
    """MLX 0.32 cannot export these operations; meanwhile each is made of what it can."""

    def contiguous(a: Any, allow_col_major: bool = False, *, stream: Any = None) -> Any:
        strides = row_contiguous(tuple(a.shape)).strides
        return mx.as_strided(a, a.shape, strides, 0, stream=stream)  # see `liveness`

    def to_fp8(x: Any, *, stream: Any = None) -> Any:
        return x.astype(mx.uint8, stream=stream)

    def from_fp8(x: Any, dtype: Any = mx.bfloat16, *, stream: Any = None) -> Any:
        return x.astype(dtype, stream=stream)

    stand_ins: dict[str, Callable[..., Any]] = {
        "contiguous": contiguous,
        "to_fp8": to_fp8,
        "from_fp8": from_fp8,
    }
    return standing_in(lambda: [StandIn(vars(mx), name, each) for name, each in stand_ins.items()])
