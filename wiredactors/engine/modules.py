"""What a model's modules hold besides their weights.

Tables that they make of themselves, and what they note down when they are called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from wiredactors.engine.graph import record_graph
from wiredactors.engine.imports import import_mlx


def own_tables(model: Any) -> list[Any]:
    """Arrays that modules keep besides their weights, for instance a rotation's frequencies."""
    from mlx.utils import tree_flatten

    flat: Any = tree_flatten(model.parameters())
    array = import_mlx().array
    weights = {id(weight) for _, weight in flat}
    found: dict[int, Any] = {}
    for module in model.modules():
        for value in [*dict.values(module), *vars(module).values()]:
            if isinstance(value, array) and id(value) not in weights:
                found[id(value)] = value
    return list(found.values())


def resident_table_bytes(model: Any) -> int:
    """Bytes of such arrays that are there before the first step.

    Some were evaluated when the model was built; of the others it is what they are made of.
    """
    mx = import_mlx()
    there, lazy = 0, []
    for table in own_tables(model):
        try:
            there += mx.get_array_buffer_size(table)
        except ValueError:  # it has not been evaluated
            lazy.append(table)
    for table in lazy:
        graph = record_graph(lambda table=table: [table], [])
        there += sum(graph.arrays[name].nbytes for name in graph.constants)
    return there


@contextlib.contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Undo what modules note down in themselves when they are called, positions for instance."""
    before = [(module, dict(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, items, attributes in before:
            dict.clear(module)
            dict.update(module, items)
            vars(module).clear()
            vars(module).update(attributes)
