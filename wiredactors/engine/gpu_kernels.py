"""What operations need besides their results, and how results lie, on GPUs.

From `mlx/backend/gpu`, `cuda` and `metal` of mlx 0.32. What NVIDIA's libraries take is not to be
read there: it was measured on an H100.
"""

from __future__ import annotations

from collections.abc import Sequence

from wiredactors.engine.graph import Shaped
from wiredactors.engine.kernels import Call, Kernels
from wiredactors.engine.layout import ELEMENTWISE, FUSED, Layout, elementwise, row_contiguous

_NORMS = ("RMSNorm", "LayerNorm")

#: They take over any buffer that nobody else keeps, however large it is.
_GREEDY = (*_NORMS, "Softmax", "RoPE", "ScaledDotProductAttention")

_IN_PLACE = {
    **ELEMENTWISE,
    FUSED: 1 << 20,  # any of its inputs
    **dict.fromkeys([*_GREEDY, "SliceUpdate", "Scatter", "ScatterAxis"], 1),
}

_PRODUCTS = ("Matmul", "AddMM", "BlockMaskedMM", "GatherMM", "SegmentedMM")

#: Inputs of these that must lie as numbers are written, by their places.
_IN_ROWS: dict[str, tuple[int, ...]] = {
    "QuantizedMatmul": (0,),
    "GatherQMM": (0, -2, -1),
    "Convolution": (0, 1),
}

#: Sorting along more than that needs two more of everything.
_SORTED_AT_ONCE = 4096


class GpuKernels(Kernels):
    """What Metal and CUDA have in common."""

    whole_operations = True

    def result(self, call: Call, output: Shaped) -> Layout:
        name = call.primitive
        if name in ELEMENTWISE or name == FUSED:
            return elementwise(call.layouts, output.shape)
        if not call.layouts:
            return row_contiguous(output.shape)
        first = call.layouts[0]
        if name in ("SliceUpdate", "Scatter", "ScatterAxis"):
            return _as_it_lies(first, first.is_dense and not first.is_scalar)
        if name in _NORMS:
            return _as_it_lies(first, first.is_dense and has_rows(first))
        if name in ("Softmax", "Scan"):
            return _as_it_lies(first, first.is_dense and first.strides[-1:] == (1,))
        if name == "Reduce" and len(output.shape) == len(first.shape) and first.is_dense:
            return in_order_of(first, output.shape)
        if name == "RoPE":
            return self.rotated(call)
        if name == "ScaledDotProductAttention":
            return self.attended(call, output)
        return row_contiguous(output.shape)

    def rotated(self, call: Call) -> Layout:
        raise NotImplementedError

    def attended(self, call: Call, output: Shaped) -> Layout:
        raise NotImplementedError

    def donors(self, call: Call) -> int:
        if call.primitive == "ScaledDotProductAttention" and _is_long(call):
            return 0
        return _IN_PLACE.get(call.primitive, 0)

    def is_frugal(self, primitive: str) -> bool:
        return primitive not in _GREEDY

    def scratch(self, call: Call) -> list[int]:
        name = call.primitive
        if name in _PRODUCTS:
            copied = [
                array.nbytes
                for array, layout in zip(call.inputs[:2], call.layouts, strict=False)
                if not is_product_ready(layout)
            ]
            return [*copied, *self.split(call)]
        if name in _IN_ROWS:
            return [
                call.inputs[place].nbytes
                for place in _IN_ROWS[name]
                if not call.layouts[place].is_row_contiguous
            ]
        if name == "Reduce":
            first = call.layouts[0]
            return [] if first.is_dense else [call.inputs[0].nbytes]
        if name in ("Sort", "ArgSort", "Partition", "ArgPartition"):
            return _merged(call)
        if name == "ScaledDotProductAttention":
            return self.attention(call)
        return []

    def split(self, call: Call) -> list[int]:
        """Partial sums of a product of which several parts are worked on at once."""
        return []

    def attention(self, call: Call) -> list[int]:
        return [
            array.nbytes
            for array, layout in zip(call.inputs, call.layouts, strict=True)
            if layout.strides[-1:] not in ((1,), ())
        ]

    def calls(self, call: Call, scratch: int, *, is_view: bool) -> int:
        """Kernels that are launched."""
        if is_view:
            return 0
        if call.primitive == "Concatenate":
            return len(call.inputs) + 1
        return 1 + scratch


class CudaKernels(GpuKernels):
    def rotated(self, call: Call) -> Layout:
        first = call.layouts[0]
        partial = call.operation.arguments[0] < first.shape[-1]
        return _as_it_lies(first, len(first.shape) <= 4 and not partial)

    def attended(self, call: Call, output: Shaped) -> Layout:
        queries = call.layouts[0]
        if queries.is_row_contiguous:
            return row_contiguous(output.shape)
        if _is_long(call):
            return in_order_of(queries, output.shape)
        return heads_last(output.shape)

    def attention(self, call: Call) -> list[int]:
        copied = super().attention(call)
        if _is_long(call):
            return copied
        rows, heads, tokens, width = call.outputs[0].shape
        context = call.inputs[1].shape[2]
        work = rows * heads * tokens
        if _is_cached(call):
            # Measured: from 512 tokens on cuDNN has an H100 work on 1,056 parts of 128 tokens at
            # most, each a sum, a maximum and a result in four bytes.
            if context < 512:
                return [*copied, 4 * rows, 4 * rows]
            parts = min(-(-context // 128), max(1, 1056 // (rows * heads)))
            return [*copied, 4 * rows, 4 * rows, 4 * work * parts * (width + 2)]
        if context > 1024:
            return [*copied, 4 * work * 32 * width, 4 * work * 32, 4 * work * 32]
        return copied

    def split(self, call: Call) -> list[int]:
        """Measured: cuBLAS splits the inner dimension where the result is small."""
        first, second = call.inputs[:2]
        rows, columns = first.size // first.shape[-1], second.shape[-1]
        inner = first.shape[-1]
        if call.primitive == "GatherMM" or len(second.shape) > 2 or rows == 1 or columns == 1:
            return []
        if first.item_bytes == 4:
            parts = min(8, inner // 64) if rows * columns <= min(160 * inner, 1 << 17) else 0
        else:
            parts = 4 if inner >= 8192 and rows <= 128 else 0
        return [4 * rows * columns * parts] if parts > 1 else []


class MetalKernels(GpuKernels):
    def rotated(self, call: Call) -> Layout:
        return row_contiguous(call.outputs[0].shape)

    def attended(self, call: Call, output: Shaped) -> Layout:
        return row_contiguous(output.shape) if output.shape[2] <= 8 else heads_last(output.shape)


def _is_long(call: Call) -> bool:
    """Whether cuDNN reads more than one token (`scaled_dot_product_attention.cpp`)."""
    return call.inputs[0].item_bytes == 2 and call.inputs[0].shape[2] > 1


def _is_cached(call: Call) -> bool:
    """Whether cuDNN reads one token, with keys that are part of a cache."""
    keys = call.layouts[1]
    if call.inputs[0].item_bytes != 2 or keys.shape[2] < 256 or keys.strides[2] == 0:
        return False
    return (keys.strides[1] // keys.strides[2]) % 256 == 0


def _merged(call: Call) -> list[int]:
    """Values and indices, twice; the result is one of them (`sort.cu`)."""
    array, axis = call.inputs[0], call.operation.arguments[-1]
    if array.shape[axis] <= _SORTED_AT_ONCE:
        return []
    values, indices = array.nbytes, 4 * array.size
    is_index = call.primitive.startswith("Arg")
    return [values, indices, values if is_index else indices]


def _as_it_lies(layout: Layout, fits: bool) -> Layout:
    return layout if fits else row_contiguous(layout.shape)


def has_rows(layout: Layout) -> bool:
    """Whether its last axis is in one piece and the one before follows on it."""
    if layout.strides[-1:] != (1,):
        return not layout.shape
    return len(layout.shape) < 2 or layout.strides[-2] in (0, layout.shape[-1])


def is_product_ready(layout: Layout) -> bool:
    """Whether its last two axes are a matrix in one piece, transposed or not."""
    if len(layout.shape) < 2:
        return True
    (rows, columns), (row, column) = layout.shape[-2:], layout.strides[-2:]
    return (row, column) == (columns, 1) or (row, column) == (1, rows)


def in_order_of(layout: Layout, shape: Sequence[int]) -> Layout:
    """A new array whose axes are as close together, one after the other, as those of `layout`."""
    strides = [0] * len(shape)
    step = 1
    for axis in sorted(range(len(shape)), key=lambda axis: (layout.strides[axis] or 1, -axis)):
        strides[axis] = step
        step *= shape[axis]
    return Layout(tuple(shape), tuple(strides))


def heads_last(shape: Sequence[int]) -> Layout:
    """Of (rows, heads, tokens, width): the heads of a token lie side by side."""
    _, heads, tokens, width = shape
    return Layout(tuple(shape), (tokens * heads * width, width, heads * width, 1))
