"""Where arrays lie: numpy keeps the same account of strides, and MLX's memory tells of copies."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.engine.graphs import peak_of
from wiredactors.engine.layout import Layout, elementwise, row_contiguous, view

mx = pytest.importorskip("mlx.core")


def layout_of(array: Any) -> Layout:
    """That of a numpy array, in items."""
    return Layout(array.shape, tuple(stride // array.itemsize for stride in array.strides))


BASE = np.zeros((4, 6, 8), dtype=np.int32)


class TestLayout:
    def test_a_new_array(self) -> None:
        layout = row_contiguous((4, 6, 8))
        assert layout == layout_of(BASE)
        assert layout.is_row_contiguous
        assert layout.is_dense
        assert layout.is_matrix
        assert not layout.is_column_contiguous
        assert (layout.data_size, layout.span) == (192, 192)

    def test_transposed(self) -> None:
        layout = layout_of(BASE.T)
        assert layout.is_column_contiguous
        assert layout.is_dense
        assert not layout.is_row_contiguous

    def test_with_holes(self) -> None:
        layout = layout_of(BASE[:, :, :3])
        assert not layout.is_dense
        assert (layout.data_size, layout.span) == (4 * 6 * 3, 192 - 5)

    def test_broadcast(self) -> None:
        layout = layout_of(np.broadcast_to(BASE[:1], (4, 6, 8)))
        assert (layout.data_size, layout.span) == (48, 48)
        assert not layout.is_row_contiguous

    def test_one_number_shown_often(self) -> None:
        layout = layout_of(np.broadcast_to(np.int32(1), (4, 6)))
        assert layout.is_scalar
        assert layout.span == 1

    def test_nothing(self) -> None:
        assert row_contiguous((4, 0)).span == 0

    def test_an_axis_of_one_may_have_any_stride(self) -> None:
        assert Layout((4, 1, 8), (8, 77, 1)).is_row_contiguous

    @pytest.mark.parametrize(
        ("strides", "is_matrix"),
        [((48, 8, 1), True), ((48, 1, 6), True), ((48, 0, 1), True), ((48, 16, 2), False)],
    )
    def test_what_blas_can_read(self, strides: tuple[int, ...], is_matrix: bool) -> None:
        assert Layout((4, 6, 8), strides).is_matrix is is_matrix


class TestViews:
    @pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
    def test_transpose(self, axes: tuple[int, ...]) -> None:
        expected = BASE.transpose(axes)
        assert view("Transpose", layout_of(BASE), expected.shape, [axes]) == layout_of(expected)

    def test_slice(self) -> None:
        expected = BASE[1:4:2, ::3, 2:]
        found = view("Slice", layout_of(BASE), expected.shape, [[1, 0, 2], [4, 6, 8], [2, 3, 1]])
        assert found == layout_of(expected)

    def test_broadcast(self) -> None:
        source = np.zeros((6, 1), dtype=np.int32)
        expected = np.broadcast_to(source, (4, 6, 8))
        assert view("Broadcast", layout_of(source), expected.shape, []) == layout_of(expected)

    def test_squeeze_and_expand(self) -> None:
        source = BASE[:1]
        assert view("Squeeze", layout_of(source), (6, 8), [[0]]) == layout_of(source[0])
        expanded = view("ExpandDims", row_contiguous((6, 8)), (6, 1, 8), [[1]])
        assert expanded is not None
        assert expanded.is_row_contiguous

    @pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
    @pytest.mark.parametrize("shape", [(192,), (24, 8), (4, 48), (2, 2, 6, 8), (4, 6, 2, 4)])
    def test_reshape_looks_or_copies_as_numpy_does(
        self, axes: tuple[int, ...], shape: tuple[int, ...]
    ) -> None:
        source = BASE.transpose(axes)
        reshaped = source.reshape(shape)
        found = view("Reshape", layout_of(source), shape, [])
        if np.shares_memory(source, reshaped):
            assert found == layout_of(reshaped)
        else:
            assert found is None

    @pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
    def test_mlx_copies_then(self, axes: tuple[int, int]) -> None:
        source = np.zeros((100, 200), dtype=np.float32).transpose(axes)
        copies = view("Reshape", layout_of(source), (20_000,), []) is None
        peak = peak_of(lambda x: x.transpose(axes).reshape(-1), (100, 200))
        assert peak == 80_000 * copies

    def test_other_operations_make_buffers(self) -> None:
        assert view("Exp", row_contiguous((4,)), (4,), []) is None


class TestElementwise:
    ROW, COLUMN = row_contiguous((4, 6)), Layout((4, 6), (1, 4))
    SCALAR, HOLES = Layout((4, 6), (0, 0)), Layout((4, 6), (12, 1))

    @pytest.mark.parametrize(
        ("inputs", "expected"),
        [
            ([COLUMN], COLUMN),
            ([HOLES], ROW),
            ([COLUMN, SCALAR], COLUMN),
            ([COLUMN, COLUMN], COLUMN),
            ([ROW, COLUMN], ROW),
        ],
    )
    def test_a_result_lies_as_what_it_is_made_of(
        self, inputs: list[Layout], expected: Layout
    ) -> None:
        assert elementwise(inputs, (4, 6)) == expected

    def test_of_single_numbers_it_is_one(self) -> None:
        assert elementwise([self.SCALAR, self.SCALAR], (4, 6)).span == 1
        assert peak_of(lambda x: mx.exp(mx.broadcast_to(x, (100, 100))), ()) == 4
