"""What operations need besides their results, and how results lie, on the CPU.

From `mlx/backend/cpu` and `mlx/backend/common` of mlx 0.32. The GPUs' are in `gpu_kernels`.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from wiredactors.engine.graph import Operation, Shaped
from wiredactors.engine.layout import ELEMENTWISE, FUSED, Layout, elementwise, row_contiguous

#: Operations that work in a copy of their first input, which lies as that does.
_COPYING = ("SliceUpdate", "Softmax", "Sort")

#: Operations whose result may take over the buffer of one of its first inputs, and how many.
_IN_PLACE = {
    **ELEMENTWISE,
    FUSED: 1 << 20,  # any of its inputs
    **dict.fromkeys(_COPYING, 1),
    **dict.fromkeys(["LayerNorm", "RMSNorm", "RoPE"], 1),
}

#: What an operation wants of how its inputs lie.
_NEEDS = {
    "Matmul": "is_matrix",
    "AddMM": "is_matrix",
    "BlockMaskedMM": "is_matrix",
    "GatherMM": "is_matrix",
    "QuantizedMatmul": "is_row_contiguous",
    "GatherQMM": "is_row_contiguous",
    "Scan": "is_row_contiguous",
}


@attrs.frozen
class Call:
    """An operation, its arrays, and how those that go in lie."""

    operation: Operation
    inputs: Sequence[Shaped]
    layouts: Sequence[Layout]
    outputs: Sequence[Shaped]

    @property
    def primitive(self) -> str:
        return self.operation.primitive


class Kernels:
    """How the CPU works.

    Attributes:
        whole_operations: whether a task ends between operations only.
    """

    whole_operations = False

    def result(self, call: Call, output: Shaped) -> Layout:
        """How a result lies in a buffer of its own."""
        if call.primitive in ELEMENTWISE or call.primitive == FUSED:
            return elementwise(call.layouts, output.shape)
        if call.primitive in _COPYING:
            return elementwise(call.layouts[:1], output.shape)
        return row_contiguous(output.shape)

    def donors(self, call: Call) -> int:
        """Of how many of the first inputs the result may take over the buffer."""
        return _IN_PLACE.get(call.primitive, 0)

    def is_frugal(self, primitive: str) -> bool:
        """Whether a buffer that is much larger than the result is not taken over."""
        return True

    def scratch(self, call: Call) -> list[int]:
        """Bytes of each buffer that is there while it works, besides inputs and results."""
        if call.primitive == "Convolution":
            return _unfolded(call)
        need = _NEEDS.get(call.primitive)
        if need is None:
            return []
        return [
            array.nbytes
            for array, layout in zip(call.inputs, call.layouts, strict=True)
            if not getattr(layout, need)
        ]

    def calls(self, call: Call, scratch: int, *, is_view: bool) -> int:
        """Calls that it makes, with so many buffers of `scratch`.

        On the CPU that is one that works and one that lets go.
        """
        return 1 if is_view else 2


def _unfolded(call: Call) -> list[int]:
    """What a convolution makes of its input, to multiply matrices (`cpu/conv.cpp`).

    All in four bytes: the input padded, its windows side by side, and the weights of groups.
    """
    inputs, weights = call.inputs
    output = call.outputs[0]
    _, before, after, *_, groups, _ = call.operation.arguments
    rows, *extents, channels = inputs.shape
    padded = rows * channels
    for extent, low, high in zip(extents, before, after, strict=True):
        padded *= extent + low + high
    windows = output.size // output.shape[-1] * channels
    for extent in weights.shape[1:-1]:
        windows *= extent
    return [4 * padded, 4 * windows, 4 * weights.size * (groups > 1)]
