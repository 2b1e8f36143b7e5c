"""Graphs are recorded with shapes and without numbers."""

from __future__ import annotations

from typing import Any

import pytest

from wiredactors.engine.graph import Graph, Shaped, record_graph

mx = pytest.importorskip("mlx.core")


def primitives(graph: Graph) -> list[str]:
    return [operation.primitive for operation in graph.operations]


def test_an_array_has_a_size() -> None:
    array = Shaped((2, 3, 5), item_bytes=2)
    assert (array.size, array.nbytes) == (30, 60)
    assert Shaped((), item_bytes=4).nbytes == 4
    assert Shaped((3, 0), item_bytes=4).nbytes == 0


def test_what_goes_in_and_comes_out() -> None:
    graph = record_graph(lambda x, y: [mx.exp(x), y], [mx.zeros((2, 3)), mx.zeros(5, mx.int8)])
    x, y = graph.inputs
    assert graph.arrays[x] == Shaped((2, 3), 4)
    assert graph.arrays[y] == Shaped((5,), 1)
    assert primitives(graph) == ["Exp"]
    assert graph.outputs == (graph.operations[0].outputs[0], y)
    assert graph.makers() == {graph.outputs[0]: graph.operations[0]}


def test_nothing_is_evaluated() -> None:
    before = mx.get_active_memory()
    graph = record_graph(lambda x: [x @ x], [mx.zeros((1 << 20, 1 << 20))])
    assert graph.arrays[graph.outputs[0]].nbytes == 4 << 40
    assert mx.get_active_memory() - before < 1000


def test_what_is_needed_leads_to_an_output() -> None:
    graph = record_graph(lambda x: [mx.sin(x), mx.exp(mx.cos(x))], [mx.zeros(3)])
    graph.outputs = graph.outputs[1:]
    needed = graph.needed()
    made = [each.primitive for each in graph.operations if each.outputs[0] in needed]
    assert sorted(made) == ["Cos", "Exp"]


def test_a_question_for_numbers_is_mlx_s_own_error() -> None:
    with pytest.raises(ValueError, match="eval"):
        record_graph(lambda x: [x + x.item()], [mx.zeros(())])


class TestExportable:
    """MLX cannot export these."""

    def test_contiguous_is_recorded_as_a_view_in_order(self) -> None:
        graph = record_graph(lambda x: [mx.contiguous(x.T)], [mx.zeros((2, 3))])
        assert graph.operations[-1].primitive == "AsStrided"
        assert graph.operations[-1].arguments[1] == (2, 1)

    def test_small_floats_are_bytes(self) -> None:
        def function(x: Any) -> list[Any]:
            small = mx.to_fp8(x)
            return [small, mx.from_fp8(small, mx.float32)]

        graph = record_graph(function, [mx.zeros(8)])
        assert [graph.arrays[name].nbytes for name in graph.outputs] == [8, 32]

    def test_afterwards_they_are_mlx_s_own_again(self) -> None:
        names = ("contiguous", "to_fp8", "from_fp8")
        before = [getattr(mx, name) for name in names]
        with pytest.raises(RuntimeError):
            record_graph(lambda: (_ for _ in ()).throw(RuntimeError()), [])
        assert [getattr(mx, name) for name in names] == before


class TestUnmerged:
    """MLX makes equal operations one; some of them nobody meant to share."""

    def test_each_cache_has_zeros_of_its_own(self) -> None:
        def function(x: Any) -> list[Any]:
            grown = [mx.concatenate([x, mx.zeros((5, 3))]) for _ in range(3)]
            return [mx.exp(grown[0]), mx.sin(grown[1]), mx.cos(grown[2]), mx.zeros((5, 3))]

        graph = record_graph(function, [mx.zeros((2, 3))])
        users = [each.inputs[1] for each in graph.operations if each.primitive == "Concatenate"]
        users.append(graph.outputs[-1])
        makers = graph.makers()
        assert len(set(users)) == len(users)
        assert {makers[name].primitive for name in users} == {"Full"}
        assert all(graph.arrays[name].shape == (5, 3) for name in users)

    def test_what_is_made_of_one_array_stays_shared(self) -> None:
        graph = record_graph(lambda x: [mx.exp(mx.sin(x)), mx.cos(mx.sin(x))], [mx.zeros(3)])
        assert sorted(primitives(graph)) == ["Cos", "Exp", "Sin"]
