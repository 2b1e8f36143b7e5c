"""Graphs are recorded with shapes and without numbers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.graphs import Drawing
from wiredactors.engine.graph import Graph, Shaped, Unrecordable, _unmerge, record_graph

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


def test_a_question_for_numbers_cannot_be_recorded() -> None:
    for ask in (lambda x: x + x.item(), lambda x: mx.array(x.tolist()), memoryview):
        with pytest.raises(Unrecordable, match="asks for numbers"):
            record_graph(lambda x, ask=ask: [ask(x)], [mx.zeros(())])


def test_nor_can_an_operation_that_mlx_cannot_export() -> None:
    to_fp8 = mx.to_fp8
    with pytest.raises(Unrecordable, match="ToFP8"):
        record_graph(lambda x: [to_fp8(x)], [mx.zeros(3)])


def test_any_other_error_is_as_it_was() -> None:
    with pytest.raises(ValueError, match="reshape") as caught:
        record_graph(lambda x: [x.reshape(2, 2)], [mx.zeros(3)])
    assert not isinstance(caught.value, Unrecordable)


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
            parts = [mx.exp(x), mx.sin(x), mx.cos(x)]
            return [mx.concatenate([part, mx.zeros((5, 3))]) for part in parts]

        graph = record_graph(function, [mx.zeros((2, 3))])
        added = [each.inputs[1] for each in graph.operations if each.primitive == "Concatenate"]
        assert len(set(added)) == 3
        assert {graph.makers()[name].primitive for name in added} == {"Full"}
        assert {graph.arrays[name].shape for name in added} == {(5, 3)}

    def test_each_attention_has_numbers_of_its_own_for_a_mask(self) -> None:
        """As CUDA asks for them; two attentions of one mask."""
        drawing = Drawing()
        bits = drawing.takes("bits", 4, 4, item_bytes=1)
        one = drawing.takes("one")
        zeros = drawing.makes("Full", "zeros", [one], 4, 4)
        numbers = drawing.makes("Select", "numbers", [bits, zeros, zeros], 4, 4)
        other = drawing.makes("Exp", "other", [numbers], 4, 4)
        for name in ("a", "b"):
            drawing.makes("ScaledDotProductAttention", name, [bits, bits, bits, numbers], 4, 4)
        graph = drawing.wants("a", "b", other)
        _unmerge(graph)
        masks = [each.inputs[3] for each in graph.operations if len(each.inputs) == 4]
        made = graph.makers()
        assert len(set(masks)) == 2
        assert {made[name].primitive for name in masks} == {"Select"}
        of_zeros = [name for mask in masks for name in made[mask].inputs[1:]]
        assert len(set(of_zeros)) == 4

    def test_what_is_made_of_one_array_stays_shared(self) -> None:
        graph = record_graph(lambda x: [mx.exp(mx.sin(x)), mx.cos(mx.sin(x))], [mx.zeros(3)])
        assert sorted(primitives(graph)) == ["Cos", "Exp", "Sin"]
