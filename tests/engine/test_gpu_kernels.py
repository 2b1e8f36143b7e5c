"""What operations take on GPUs. The numbers said to be measured are an H100's, with mlx 0.32.4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.engine.graphs import Drawing
from wiredactors.engine.devices import Device, cuda, metal
from wiredactors.engine.gpu_kernels import (
    CudaKernels,
    MetalKernels,
    heads_last,
    in_order_of,
    is_product_ready,
)
from wiredactors.engine.graph import Operation, Shaped
from wiredactors.engine.kernels import Call
from wiredactors.engine.layout import Layout, row_contiguous
from wiredactors.engine.liveness import evaluate

CUDA, METAL = CudaKernels(), MetalKernels()


def call(
    primitive: str,
    layouts: Sequence[Layout],
    *,
    item_bytes: int = 2,
    arguments: Sequence[Any] = (),
    output: tuple[int, ...] | None = None,
) -> Call:
    """An operation whose inputs lie so; the output is shaped as the first unless said."""
    arrays = [Shaped(layout.shape, item_bytes) for layout in layouts]
    result = Shaped(layouts[0].shape if output is None else output, item_bytes)
    return Call(Operation(primitive, (), (), arguments), arrays, layouts, [result])


def attention(
    rows: int, heads: int, tokens: int, context: int, width: int, *, item_bytes: int = 2
) -> Call:
    """As a model asks for it: queries of tokens side by side, keys of a cache in steps of 256."""
    queries = heads_last((rows, heads, tokens, width))
    length = -(-context // 256) * 256
    keys = Layout((rows, heads, context, width), (heads * length * width, length * width, width, 1))
    return call("ScaledDotProductAttention", [queries, keys, keys], item_bytes=item_bytes)


class TestProducts:
    @pytest.mark.parametrize(
        ("layout", "is_ready"),
        [
            (Layout((8, 4), (4, 1)), True),
            (Layout((8, 4), (1, 8)), True),
            (Layout((8, 4), (12, 1)), False),  # a part of wider rows
            (Layout((1, 4), (12, 1)), False),  # of one row, too: MLX looks at strides alone
            (Layout((4,), (3,)), True),
        ],
    )
    def test_matrices_in_one_piece_are_not_copied(self, layout: Layout, is_ready: bool) -> None:
        assert is_product_ready(layout) is is_ready
        if len(layout.shape) == 2:
            other = row_contiguous((4, 1 << 14))
            copied = [] if is_ready else [2 * 4 * layout.shape[0]]
            assert CUDA.scratch(call("Matmul", [layout, other])) == copied

    @pytest.mark.parametrize(
        ("rows", "inner", "columns", "item_bytes", "measured"),
        [
            (1, 8192, 2048, 2, 0),
            (4, 8192, 2048, 2, 131_072),
            (64, 8192, 2048, 2, 2_097_152),
            (512, 8192, 2048, 2, 0),
            (512, 2048, 2048, 2, 0),
            (16, 2048, 2048, 4, 1_048_576),
            (4, 2048, 512, 4, 65_536),
            (128, 256, 192, 4, 393_216),
            (512, 2048, 2048, 4, 0),
        ],
    )
    def test_small_results_are_summed_up_of_parts(
        self, rows: int, inner: int, columns: int, item_bytes: int, measured: int
    ) -> None:
        layouts = [row_contiguous((rows, inner)), row_contiguous((columns, inner))]
        turned = Layout((inner, columns), (1, inner))
        product = call("Matmul", [layouts[0], turned], item_bytes=item_bytes)
        assert sum(CUDA.scratch(product)) == measured
        assert METAL.scratch(product) == []

    def test_packed_products_want_rows(self) -> None:
        rows, turned = row_contiguous((8, 64)), Layout((8, 64), (1, 8))
        weights = row_contiguous((16, 8))
        assert CUDA.scratch(call("QuantizedMatmul", [rows, weights])) == []
        assert CUDA.scratch(call("QuantizedMatmul", [turned, weights])) == [2 * 8 * 64]


class TestAttention:
    def test_a_prompt_takes_nothing_beside_its_result(self) -> None:
        prompt = attention(1, 32, 512, 4096, 64)
        assert CUDA.scratch(prompt) == METAL.scratch(prompt) == []
        assert CUDA.donors(prompt) == 0

    @pytest.mark.parametrize(
        ("rows", "context", "width", "measured"),
        [
            (1, 200, 64, 0),
            (1, 600, 64, 49_152 + 16),
            (1, 4096, 64, 278_528 + 16),
            (1, 4096, 96, 409_600 + 16),
            (4, 4096, 64, 278_528 + 32),
        ],
    )
    def test_a_token_is_worked_on_in_parts(
        self, rows: int, context: int, width: int, measured: int
    ) -> None:
        sizes = CUDA.scratch(attention(rows, 32, 1, context, width))
        assert sum(cuda().allocated(size) for size in sizes) == measured

    def test_of_four_bytes_it_takes_two_passes_over_long_contexts(self) -> None:
        assert CUDA.scratch(attention(1, 4, 1, 1024, 64, item_bytes=4)) == []
        assert CUDA.scratch(attention(1, 4, 1, 1025, 64, item_bytes=4)) == [
            4 * 4 * 32 * 64,
            4 * 4 * 32,
            4 * 4 * 32,
        ]

    def test_the_result_lies_as_the_queries_do(self) -> None:
        prompt = attention(2, 4, 100, 100, 64)
        assert CUDA.result(prompt, prompt.outputs[0]) == prompt.layouts[0]
        assert METAL.result(prompt, prompt.outputs[0]) == heads_last((2, 4, 100, 64))

    def test_metal_writes_few_tokens_in_order(self) -> None:
        few = attention(2, 4, 8, 100, 64)
        assert METAL.result(few, few.outputs[0]).is_row_contiguous


class TestRotation:
    """A quarter of wider rows, as where queries, keys and values are one product."""

    PART = Layout((1, 4, 128, 64), (128 * 512, 64, 512, 1))

    def test_it_keeps_the_gaps_on_cuda(self) -> None:
        whole = call("RoPE", [self.PART], arguments=[64, False])
        layout = CUDA.result(whole, whole.outputs[0])
        assert layout.span == 128 * 512 - 256
        assert METAL.result(whole, whole.outputs[0]).span == 4 * 128 * 64

    def test_where_it_turns_a_part_it_makes_a_copy_without_gaps(self) -> None:
        half = call("RoPE", [self.PART], arguments=[32, False])
        assert CUDA.result(half, half.outputs[0]).is_row_contiguous


class TestOthers:
    def test_a_norm_wants_rows(self) -> None:
        rows, holes = row_contiguous((8, 64)), Layout((8, 64), (128, 1))
        assert CUDA.result(call("RMSNorm", [rows]), Shaped((8, 64), 2)) == rows
        assert CUDA.result(call("RMSNorm", [holes]), Shaped((8, 64), 2)).is_row_contiguous

    def test_a_sum_copies_what_has_holes(self) -> None:
        """Measured: of a half of wider rows, as much as it is."""
        half = Layout((1, 128, 4096), (128 * 8192, 8192, 1))
        assert CUDA.scratch(call("Reduce", [half], output=(1, 128, 1))) == [1_048_576]
        whole = row_contiguous((1, 128, 4096))
        assert CUDA.scratch(call("Reduce", [whole], output=(1, 128, 1))) == []

    @pytest.mark.parametrize(("item_bytes", "measured"), [(2, 1_622_272), (4, 2_408_704)])
    def test_long_sorts_take_all_again(self, item_bytes: int, measured: int) -> None:
        long = call("ArgSort", [row_contiguous((1, 200_000))], item_bytes=item_bytes, arguments=[1])
        sizes = CUDA.scratch(long)
        # Where its blocks begin is not counted: 50 numbers of 4 bytes.
        assert 0 <= measured - sum(cuda().allocated(size) for size in sizes) <= 16_384
        short = call("ArgSort", [row_contiguous((128, 4096))], arguments=[1])
        assert CUDA.scratch(short) == []

    def test_axes_keep_their_order(self) -> None:
        assert in_order_of(Layout((8, 4), (1, 8)), (8, 1)) == Layout((8, 1), (1, 8))

    def test_kernels_of_an_operation(self) -> None:
        two = call("Concatenate", [row_contiguous((4,)), row_contiguous((4,))])
        assert CUDA.calls(two, 0, is_view=False) == 3
        assert CUDA.calls(call("Matmul", [row_contiguous((4, 4))]), 1, is_view=False) == 2
        assert CUDA.calls(call("Reshape", [row_contiguous((4, 4))]), 0, is_view=True) == 0


@pytest.mark.parametrize("device", [cuda(), metal()])
def test_a_norm_takes_over_a_buffer_however_large_it_is(device: Device) -> None:
    drawing = Drawing()
    wide = drawing.makes("Hadamard", "wide", [drawing.takes("x", 100, 1000)], 100, 1000)
    row = drawing.makes("Slice", "a", [wide], 1, 1000, arguments=[[0, 0], [1, 1000], [1, 1]])
    graph = drawing.wants(drawing.makes("RMSNorm", "b", [row], 1, 1000))
    assert evaluate(graph, device=device).peak_bytes == device.allocated(400_000)
