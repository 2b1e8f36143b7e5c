"""Evaluations played on graphs that can be added up by hand, and MLX's own of the same."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from tests.engine.graphs import Drawing, peak_of
from wiredactors.engine.devices import CPU, Device, cuda
from wiredactors.engine.graph import record_graph
from wiredactors.engine.liveness import Buffer, evaluate, tape

mx = pytest.importorskip("mlx.core")

#: 10,000 numbers of four bytes.
WIDE = 40_000
PAGE = 16384


def chain(drawing: Drawing, primitive: str, length: int, size: int = 10_000) -> str:
    """So many operations in a row; returns the last result."""
    name = drawing.takes("x", size)
    for number in range(length):
        name = drawing.makes(primitive, f"{primitive}{number}", [name], size)
    return name


class TestDonation:
    def test_a_result_takes_over_what_nobody_else_wants(self) -> None:
        drawing = Drawing()
        graph = drawing.wants(chain(drawing, "Exp", 5))
        assert evaluate(graph).peak_bytes == WIDE

    def test_not_what_was_passed_in(self) -> None:
        drawing = Drawing()
        graph = drawing.wants(chain(drawing, "Exp", 1))
        held = evaluate(graph)
        assert held.kept["Exp0"].size == WIDE

    def test_but_what_was_passed_in_and_given_away(self) -> None:
        drawing = Drawing()
        graph = drawing.wants(chain(drawing, "Exp", 1))
        held = evaluate(graph, {"x": Buffer(0, WIDE)})
        assert held.peak_bytes == WIDE

    def test_not_what_is_wanted_again(self) -> None:
        drawing = Drawing()
        first = drawing.makes("Exp", "a", [drawing.takes("x", 10_000)], 10_000)
        second = drawing.makes("Exp", "b", [first], 10_000)
        assert evaluate(drawing.wants(first, second)).peak_bytes == 2 * WIDE

    def test_not_what_is_of_another_width(self) -> None:
        drawing = Drawing()
        first = drawing.makes("Exp", "a", [drawing.takes("x", 1000)], 1000)
        second = drawing.makes("AsType", "b", [first], 1000, item_bytes=2)
        assert evaluate(drawing.wants(second)).peak_bytes == 4000 + 2000

    def test_not_what_lies_in_another_order(self) -> None:
        """The sum of rows and columns is made of rows, and only the columns are to be had."""
        drawing = Drawing()
        rows = drawing.takes("x", 100, 100)
        made = drawing.makes("Exp", "a", [rows], 100, 100)
        columns = drawing.makes("Transpose", "b", [made], 100, 100, arguments=[[1, 0]])
        graph = drawing.wants(drawing.makes("Add", "c", [rows, columns], 100, 100))
        assert evaluate(graph).peak_bytes == 2 * WIDE
        assert peak_of(lambda x: x + mx.exp(x).T, (100, 100)) == 2 * WIDE

    @pytest.mark.parametrize(("rest", "more"), [(16384, 0), (16388, 40)])
    def test_not_what_lies_in_a_buffer_that_is_much_larger(self, rest: int, more: int) -> None:
        """`wide` is ten numbers and the rest; `a` is the first ten of them, `b` made of those."""
        drawing = Drawing()
        size = 10 + rest // 4
        wide = drawing.makes("Sort", "wide", [drawing.takes("x", size)], size, arguments=[0])
        part = drawing.makes("Slice", "a", [wide], 10, arguments=[[0], [10], [1]])
        graph = drawing.wants(drawing.makes("Exp", "b", [part], 10))
        assert evaluate(graph).peak_bytes == 40 + rest + more

    def test_mlx_does_so(self) -> None:
        assert peak_of(lambda x: mx.exp(mx.exp(mx.exp(x))), (10_000,)) == WIDE
        assert peak_of(lambda x: (y := mx.exp(x), mx.exp(y)), (10_000,)) == 2 * WIDE


class TestViews:
    def test_they_take_nothing_and_keep_the_buffer(self) -> None:
        drawing = Drawing()
        made = drawing.makes("Exp", "a", [drawing.takes("x", 100, 100)], 100, 100)
        part = drawing.makes("Slice", "b", [made], 1, 100, arguments=[[0, 0], [1, 100], [1, 1]])
        held = evaluate(drawing.wants(part))
        assert held.peak_bytes == WIDE
        assert held.bytes_of(["b"]) == WIDE  # 400 bytes of it are the slice

    def test_outputs_of_one_buffer_count_once(self) -> None:
        drawing = Drawing()
        made = drawing.makes("Exp", "a", [drawing.takes("x", 100, 100)], 100, 100)
        flat = drawing.makes("Reshape", "b", [made], 10_000)
        held = evaluate(drawing.wants(made, flat))
        assert held.bytes_of(["a", "b"]) == WIDE

    def test_what_looks_at_an_input_keeps_nothing(self) -> None:
        drawing = Drawing()
        flat = drawing.makes("Reshape", "b", [drawing.takes("x", 100, 100)], 10_000)
        assert evaluate(drawing.wants(flat)).bytes_of(["b"]) == 0

    def test_mlx_does_so(self) -> None:
        assert peak_of(lambda x: mx.exp(x)[:1], (100, 100)) == WIDE
        assert peak_of(lambda x: mx.exp(x).reshape(-1), (100, 100)) == WIDE

    @pytest.mark.parametrize(("rows", "copied"), [(100, False), (60, False), (59, True)])
    def test_contiguous_copies_what_is_much_the_smaller_part(self, rows: int, copied: bool) -> None:
        """Of 100 rows of 400 bytes; 40 rows are 16,000 bytes and 41 are 16,400."""
        expected = WIDE + rows * 400 * copied

        def function(x: Any) -> Any:
            return mx.contiguous(mx.exp(x)[:rows])

        graph = record_graph(lambda x: [function(x)], [mx.zeros((100, 100))])
        assert evaluate(graph).peak_bytes == expected
        assert peak_of(function, (100, 100)) == expected


class TestCopies:
    def test_a_product_copies_what_is_no_matrix(self) -> None:
        def function(x: Any, y: Any) -> Any:
            return x.reshape(10, 10, 10)[:, :, 0] @ y

        graph = record_graph(
            lambda *given: [function(*given)], [mx.zeros(1000), mx.zeros((10, 10))]
        )
        assert evaluate(graph).peak_bytes == 400 + 400  # the copy and the product
        assert peak_of(function, (1000,), (10, 10)) == 400 + 400

    def test_a_transposed_matrix_is_one(self) -> None:
        def function(x: Any, y: Any) -> Any:
            return x.T @ y

        graph = record_graph(
            lambda *given: [function(*given)], [mx.zeros((10, 10)), mx.zeros((10, 10))]
        )
        assert evaluate(graph).peak_bytes == 400
        assert peak_of(function, (10, 10), (10, 10)) == 400


def test_a_rotation_on_cuda_keeps_the_gaps_of_wider_rows() -> None:
    """Four of 512 numbers each, from the first to the last 1,600 of them."""
    drawing = Drawing()
    wide = drawing.takes("x", 1, 1, 4, 512)
    arguments = [[0, 0, 0, 0], [1, 1, 4, 64], [1, 1, 1, 1]]
    part = drawing.makes("Slice", "a", [wide], 1, 1, 4, 64, arguments=arguments)
    graph = drawing.wants(
        drawing.makes("RoPE", "b", [part, drawing.takes("at")], 1, 1, 4, 64, arguments=[64, False])
    )
    assert evaluate(graph, device=cuda()).peak_bytes == cuda().allocated(4 * 1600) == 8192


class TestOrder:
    def test_the_first_input_is_made_first_where_all_fit(self) -> None:
        drawing = Drawing()
        x = drawing.takes("x", 1)
        parts = [drawing.makes("Exp", f"e{number}", [x], 1) for number in range(3)]
        graph = drawing.wants(drawing.makes("Concatenate", "c", parts, 3))
        assert [each.outputs[0] for each in tape(graph)] == ["e2", "e1", "e0", "c"]

    def test_at_most_twenty_side_by_side(self) -> None:
        """Each of 30 is an exponential of a sine: the last ten wait until the others are done.

        Backwards: the ten that were put off come first, then the sines and exponentials of the 20.
        """
        drawing = Drawing()
        x = drawing.takes("x", 1)
        for number in range(30):
            drawing.makes("Sin", f"s{number}", [x], 1)
            drawing.makes("Exp", f"e{number}", [f"s{number}"], 1)
        graph = drawing.wants(*(f"e{number}" for number in range(30)))
        order = [each.outputs[0] for each in tape(graph)]
        first = order[:20]
        assert {name[1:] for name in first} == {str(number) for number in range(20, 30)}
        assert order[-20:] == [f"e{number}" for number in reversed(range(20))]

    def test_what_nobody_wants_is_not_evaluated(self) -> None:
        drawing = Drawing()
        x = drawing.takes("x", 1)
        drawing.makes("Exp", "unwanted", [x], 1)
        graph = drawing.wants(drawing.makes("Sin", "wanted", [x], 1))
        assert [each.outputs[0] for each in tape(graph)] == ["wanted"]


class TestRunAhead:
    """Transforms into ever new arrays, of which each is let go when the next has been done."""

    def transforms(self, length: int) -> Drawing:
        drawing = Drawing()
        drawing.wants(chain(drawing, "Hadamard", length))
        return drawing

    @pytest.mark.parametrize(
        ("device", "buffers"),
        [
            (Device(tasks=0, task_calls=2), 2),  # each is waited for
            (Device(tasks=1, task_calls=2), 3),
            (Device(tasks=0, task_calls=4), 3),  # every second one is
            (Device(tasks=2, task_calls=4), 7),
            (CPU, 50),  # ten tasks of ten calls are more than all of them make
        ],
    )
    def test_so_many_are_given_out_before_one_is_waited_for(
        self, device: Device, buffers: int
    ) -> None:
        held = evaluate(self.transforms(50).graph, device=device)
        assert held.peak_bytes == buffers * WIDE

    def test_on_a_cpu_a_hundred_calls_are_under_way_at_most(self) -> None:
        # 2 calls each: after 110 calls, which are 55 of them, the first task has been waited for,
        # which are five of them. So at most 55 at once, and the one that comes next.
        assert evaluate(self.transforms(500).graph).peak_bytes in (55 * WIDE, 56 * WIDE)

    def test_looking_at_a_buffer_in_another_way_is_one_call(self) -> None:
        """Three calls for each pair: a task of twelve is four pairs, and a fifth is given out."""
        drawing = Drawing()
        name = drawing.takes("x", 10_000)
        for number in range(20):
            made = drawing.makes("Hadamard", f"h{number}", [name], 10_000)
            name = drawing.makes("Reshape", f"r{number}", [made], 10_000)
        device = Device(tasks=0, task_calls=12)
        assert evaluate(drawing.wants(name), device=device).peak_bytes == 5 * WIDE

    def test_mlx_runs_no_further(self) -> None:
        def function(x: Any) -> Any:
            for _ in range(200):
                x = mx.argsort(x).astype(mx.float32)
            return x

        graph = record_graph(lambda x: [function(x)], [mx.zeros(10_000)])
        assert peak_of(function, (10_000,)) <= evaluate(graph).peak_bytes

    def test_a_gpu_waits_between_operations_only(self) -> None:
        """A task ends after the operation that comes to more than so many kernels."""
        device = attrs.evolve(cuda(), tasks=0, task_calls=1)
        rounded = 3 * PAGE  # 40,000 bytes
        assert evaluate(self.transforms(50).graph, device=device).peak_bytes == 3 * rounded

    def test_a_gpu_waits_after_so_many_items(self) -> None:
        device = attrs.evolve(cuda(), tasks=0, task_items=10_000)
        assert evaluate(self.transforms(50).graph, device=device).peak_bytes == 2 * 3 * PAGE
