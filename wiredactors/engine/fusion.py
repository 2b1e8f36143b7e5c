"""What `mx.compile` makes of a function: operations on each item that follow one another are one.

A graph that is recorded has the functions in the raw that a model has compiled, since one
transformation cannot look into another. So while it is recorded they are called through a mark that
ties their results to what they were given, and afterwards what lies between is fused as MLX does it
(`mlx/compile.cpp`). Fused operations need no room for what they hand on to each other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

from wiredactors.engine.graph import Graph, Name, Operation
from wiredactors.engine.imports import import_mlx
from wiredactors.engine.layout import ELEMENTWISE, FUSED
from wiredactors.engine.standing_in import StandIn, standing_in

#: MLX fuses at most so many in a row, half as many where each has several inputs: in a function
#: that is compiled for any shape, as most are, it broadcasts each input of those first.
_DEPTH = 11
#: ... of at most so many arrays.
_ARRAYS = 24

_FUSABLE = {*ELEMENTWISE, "Broadcast"}

#: The shape by which a mark is known.
_MARK = (1,) * 9


def compiles() -> bool:
    """Whether MLX compiles functions here; on a CPU it does without where there is no g++."""
    if os.environ.get("MLX_DISABLE_COMPILE"):
        return False
    mx = import_mlx()
    return bool(mx.default_device() != mx.cpu) or shutil.which("g++") is not None


def marked_functions() -> contextlib.AbstractContextManager[None]:
    """Inside it, compiled functions of mlx and mlx-lm leave marks in this thread's graphs."""
    mx = import_mlx()
    kind = type(mx.compile(lambda x: x))
    mark = mx.arange(1).reshape(_MARK)
    inside = False

    def through(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal inside
            if inside:  # a compiled function in another is a part of it
                return function(*arguments, **options)
            inside = True
            try:
                results = function(*arguments, **options)
            finally:
                inside = False
            return _tied(mx, results, [*arguments, *options.values()], mark)

        return call

    return standing_in(
        lambda: [
            StandIn(vars(module), name, through(value))
            for module_name, module in list(sys.modules.items())
            if module_name.startswith(("mlx_lm.models.", "mlx.nn"))
            for name, value in list(vars(module).items())
            if type(value) is kind
        ]
    )


def _tied(mx: Any, results: Any, arguments: list[Any], mark: Any) -> Any:
    several = isinstance(results, (list, tuple))
    outputs = list(results) if several else [results]
    if not all(isinstance(each, mx.array) for each in outputs):
        return results
    given = [each for each in arguments if isinstance(each, mx.array)]
    tied = mx.depends(outputs, [*given, mark])
    return type(results)(tied) if several else tied[0]


def fuse(graph: Graph) -> None:
    """Fuse what lies between marks, and take the marks out."""
    makers = graph.makers()
    marks = [each for each in graph.operations if _is_mark(graph, each)]
    same = {
        output: source
        for mark in marks
        for output, source in zip(mark.outputs, mark.inputs, strict=False)
    }

    def real(name: Name) -> Name:
        while name in same:
            name = same[name]
        return name

    users = _users(graph)
    gone: set[int] = set()
    fused: dict[int, Operation] = {}
    for mark in marks:
        limits = {real(name) for name in mark.inputs[len(mark.outputs) :]}
        for root in _inner(graph, mark, makers, limits):
            if id(root) in gone or root.primitive not in _FUSABLE:
                continue
            members, inputs = _cluster(graph, root, makers, users, limits, real)
            if len(members) > 1:
                gone |= {id(each) for each in members}
                fused[id(root)] = Operation(FUSED, tuple(inputs), root.outputs, ())
    operations: list[Operation] = []
    for operation in graph.operations:
        if _is_mark(graph, operation):
            continue
        operation = fused.get(id(operation)) or operation
        if id(operation) not in gone:
            operations.append(operation.reading(tuple(map(real, operation.inputs))))
    graph.operations = operations
    graph.outputs = tuple(real(name) for name in graph.outputs)


def _is_mark(graph: Graph, operation: Operation) -> bool:
    return operation.primitive == "Depends" and (graph.arrays[operation.inputs[-1]].shape == _MARK)


def _users(graph: Graph) -> dict[Name, int]:
    """How many operations use an array; a mark, and whoever wants it, count as one."""
    users: dict[Name, int] = {}
    for operation in graph.operations:
        names = operation.inputs
        if _is_mark(graph, operation):
            names = names[: len(operation.outputs)]
        for name in names:
            users[name] = users.get(name, 0) + 1
    for name in graph.outputs:
        users[name] = users.get(name, 0) + 1
    return users


def _inner(
    graph: Graph, mark: Operation, makers: dict[Name, Operation], limits: set[Name]
) -> list[Operation]:
    """The operations between a mark's inputs and outputs, the last first."""
    found: dict[int, Operation] = {}
    line: list[Name] = list(mark.inputs[: len(mark.outputs)])
    while line:
        name = line.pop(0)
        maker = makers.get(name)
        if name in limits or maker is None or id(maker) in found or _is_mark(graph, maker):
            continue
        found[id(maker)] = maker
        line.extend(maker.inputs)
    return list(found.values())


def _cluster(
    graph: Graph,
    root: Operation,
    makers: dict[Name, Operation],
    users: dict[Name, int],
    limits: set[Name],
    real: Callable[[Name], Name],
) -> tuple[list[Operation], list[Name]]:
    """What is fused into `root`, and what goes into it from outside."""
    members = [root]
    depths = {id(root): 0}
    changed = True
    while changed:
        changed = False
        used: dict[Name, int] = {}
        below: dict[Name, int] = {}
        for member in members:
            depth = depths[id(member)] + (1 if len(member.inputs) == 1 else 2)
            for name in member.inputs:
                used[name] = used.get(name, 0) + 1
                below[name] = min(depth, below.get(name, depth))
        for name, times in used.items():
            maker = makers.get(name)
            if (
                maker is not None
                and id(maker) not in depths
                and name not in limits
                and maker.primitive in _FUSABLE
                and users[name] == times
                and below[name] < _DEPTH
                and len(used) < _ARRAYS
            ):
                members.append(maker)
                depths[id(maker)] = below[name]
                changed = True
    made = {name for member in members for name in member.outputs}
    inputs = dict.fromkeys(
        real(name) for member in members for name in member.inputs if name not in made
    )
    return members, list(inputs)
