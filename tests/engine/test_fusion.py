"""What MLX compiles into one operation, by the buffers that are left."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.graphs import peak_of
from wiredactors.engine.fusion import compiles, fuse, marked_functions
from wiredactors.engine.graph import Graph, record_graph
from wiredactors.engine.liveness import evaluate

mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")

#: A hundred thousand numbers of four bytes.
SHAPE = (100, 1000)
BYTES = 400_000

ACTIVATIONS = ["silu", "gelu", "gelu_approx", "gelu_fast_approx", "relu6", "softplus", "mish"]


def recorded(function: Any, *shapes: tuple[int, ...]) -> Graph:
    with marked_functions():
        graph = record_graph(lambda *given: [function(*given)], [mx.zeros(each) for each in shapes])
    fuse(graph)
    return graph


def primitives(graph: Graph) -> list[str]:
    """Of the operations that are carried out."""
    needed = graph.needed()
    return [each.primitive for each in graph.operations if each.outputs[0] in needed]


@pytest.mark.skipif(not compiles(), reason="MLX compiles nothing here")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_take_what_they_do_in_mlx(name: str) -> None:
    def function(x: Any) -> Any:
        return getattr(nn, name)(mx.exp(x))

    peak = evaluate(recorded(function, SHAPE)).peak_bytes
    assert peak // BYTES == peak_of(function, SHAPE) // BYTES


def test_what_is_compiled_is_one() -> None:
    assert primitives(recorded(lambda x: nn.silu(x), SHAPE)) == ["Compiled"]


def test_what_is_too_deep_is_two() -> None:
    """Six operations, five of them of two inputs, lie between its cube and its result."""
    graph = recorded(lambda x: nn.gelu_approx(x), SHAPE)
    assert primitives(graph).count("Compiled") == 2


def test_what_is_not_compiled_stays_as_it_is() -> None:
    graph = recorded(lambda x: x * mx.sigmoid(x), SHAPE)
    assert primitives(graph) == ["Sigmoid", "Multiply"]


def test_a_result_that_is_wanted_elsewhere_is_not_fused_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = mx.compile(lambda x: (mx.exp(x), mx.sin(mx.exp(x))))
    monkeypatch.setattr(nn, "twofold", compiled, raising=False)
    graph = recorded(lambda x: mx.add(*nn.twofold(x)), SHAPE)
    assert sorted(primitives(graph)) == ["Add", "Exp", "Sin"]


def test_functions_are_mlx_s_own_again() -> None:
    before = nn.silu
    with marked_functions():
        assert nn.silu is not before
    assert nn.silu is before


def test_without_a_compiler_nothing_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wiredactors.engine.fusion.shutil.which", lambda name: None)
    assert compiles() is (mx.default_device() != mx.cpu)
    monkeypatch.setattr("wiredactors.engine.fusion.shutil.which", lambda name: "/usr/bin/g++")
    assert compiles()
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")
    assert not compiles()
