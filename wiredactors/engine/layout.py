"""How an array lies in its buffer, and which operations only look at a buffer in another way.

The rules are those of MLX's own evaluation (`mlx/backend/common/common.cpp`, `slicing.cpp`,
`utils.cpp`, `unary.h`, `binary.h` of mlx 0.32), as far as memory is concerned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

Extents = tuple[int, ...]

#: Operations on each item, and of how many inputs.
ELEMENTWISE = {
    name: inputs
    for inputs, names in {
        1: "Abs ArcCos ArcCosh ArcSin ArcSinh ArcTan ArcTanh AsType BitwiseInvert Ceil Conjugate "
        "Cos Cosh Erf ErfInv Exp Expm1 Floor Log Log1p LogicalNot Negative Round Rsqrt Sigmoid "
        "Sign Sin Sinh Sqrt Square Tan Tanh",
        2: "Add ArcTan2 BitwiseBinary Divide Equal FloorDivide Greater GreaterEqual Less "
        "LessEqual LogAddExp LogicalAnd LogicalOr Maximum Minimum Multiply NotEqual Power "
        "Remainder Subtract",
        3: "Select",
    }.items()
    for name in names.split()
}

#: Several of them that MLX has made one of (see `fusion`).
FUSED = "Compiled"


@attrs.frozen
class Layout:
    """Shape and strides, both counted in items."""

    shape: Extents
    strides: Extents

    @property
    def is_row_contiguous(self) -> bool:
        """Whether it lies as numbers are written: the last axis closest together."""
        step = 1
        for extent, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if extent != 1:
                if stride != step:
                    return False
                step *= extent
        return True

    @property
    def is_column_contiguous(self) -> bool:
        """Whether it lies the other way round: the first axis closest together."""
        return Layout(self.shape[::-1], self.strides[::-1]).is_row_contiguous

    @property
    def is_scalar(self) -> bool:
        """Whether it is one number, however often it is shown."""
        return self.data_size == 1

    @property
    def is_dense(self) -> bool:
        """Whether each item of it lies somewhere once, without holes, in whatever order."""
        step = 1
        axes = [
            (stride, extent)
            for extent, stride in zip(self.shape, self.strides, strict=True)
            if extent != 1
        ]
        for stride, extent in sorted(axes):
            if stride != step:
                return False
            step *= extent
        return True

    @property
    def is_matrix(self) -> bool:
        """Whether its last two axes are a matrix that BLAS can read, transposed or not."""
        if len(self.shape) < 2:
            return True
        rows, columns = self.shape[-2:]
        row_stride, column_stride = self.strides[-2:]
        as_written = column_stride == 1 and row_stride in (columns, 0)
        transposed = row_stride == 1 and column_stride in (rows, 0)
        return as_written or transposed or rows == 1 or columns == 1

    @property
    def data_size(self) -> int:
        """Items that are there, those of broadcast axes counted once."""
        size = 1
        for extent, stride in zip(self.shape, self.strides, strict=True):
            if stride:
                size *= extent
        return size

    @property
    def span(self) -> int:
        """Items from the first to the last, those between that belong to others counted too."""
        if 0 in self.shape:
            return 0
        return 1 + sum(
            (extent - 1) * stride for extent, stride in zip(self.shape, self.strides, strict=True)
        )


def row_contiguous(shape: Extents) -> Layout:
    """As a new array lies."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return Layout(shape, tuple(reversed(strides)))


def elementwise(inputs: Sequence[Layout], shape: Extents) -> Layout:
    """How the result of an operation on each item lies, where it is given a buffer of its own."""
    if all(each.is_scalar for each in inputs):
        return Layout(shape, (0,) * len(shape))
    vectors = [each for each in inputs if not each.is_scalar]
    first = vectors[0]
    if len(vectors) == 1:
        alike = first.is_dense
    else:
        alike = all(each.is_row_contiguous for each in vectors) or all(
            each.is_column_contiguous for each in vectors
        )
    return first if alike and first.shape == shape else row_contiguous(shape)


def view(primitive: str, source: Layout, shape: Extents, arguments: Sequence[Any]) -> Layout | None:
    """How the result lies in the buffer of `source`; None where the operation makes a new one."""
    rule = _VIEWS.get(primitive)
    return None if rule is None else rule(source, shape, arguments)


def _same(source: Layout, shape: Extents, arguments: Sequence[Any]) -> Layout | None:
    return source


def _broadcast(source: Layout, shape: Extents, arguments: Sequence[Any]) -> Layout | None:
    missing = len(shape) - len(source.shape)
    strides = [0] * missing
    for extent, wanted, stride in zip(source.shape, shape[missing:], source.strides, strict=True):
        strides.append(0 if extent == 1 and wanted != 1 else stride)
    return Layout(shape, tuple(strides))


def _transpose(source: Layout, shape: Extents, arguments: Sequence[Any]) -> Layout | None:
    axes = arguments[0]
    return Layout(shape, tuple(source.strides[axis] for axis in axes))


def _expand(source: Layout, shape: Extents, arguments: Sequence[Any]) -> Layout | None:
    strides = list(source.strides)
    for axis in arguments[0]:
        strides.insert(axis, 1)
    return Layout(shape, tuple(strides))


def _squeeze(source: Layout, shape: Extents, arguments: Sequence[Any]) -> Layout | None:
    gone = set(arguments[0])
    return Layout(
        shape, tuple(stride for axis, stride in enumerate(source.strides) if axis not in gone)
    )


def _slice(source: Layout, shape: Extents, arguments: Sequence[Any]) -> Layout | None:
    _, _, steps = arguments
    return Layout(
        shape, tuple(stride * step for stride, step in zip(source.strides, steps, strict=True))
    )


def _split(source: Layout, shape: Extents, arguments: Sequence[Any]) -> Layout | None:
    return Layout(shape, source.strides)


def _reshape(source: Layout, shape: Extents, arguments: Sequence[Any]) -> Layout | None:
    if source.is_row_contiguous or 0 in source.shape:
        return row_contiguous(shape)
    left, strides = _collapsed(source)
    result: list[int] = []
    at = 0
    for extent in shape:
        if at < len(left) and left[at] % extent == 0:
            left[at] //= extent
            result.append(left[at] * strides[at])
            at += left[at] == 1
        elif extent == 1:
            result.append(result[-1])
        else:
            return None
    return Layout(shape, tuple(result))


def _strided(source: Layout, shape: Extents, arguments: Sequence[Any]) -> Layout | None:
    return Layout(shape, tuple(arguments[1]))


def _collapsed(layout: Layout) -> tuple[list[int], list[int]]:
    """Shape and strides with neighbouring axes joined where they are one run of items."""
    extents: list[int] = []
    strides: list[int] = []
    for extent, stride in zip(layout.shape, layout.strides, strict=True):
        if extent == 1:
            continue
        if extents and strides[-1] == stride * extent:
            extents[-1] *= extent
            strides[-1] = stride
        else:
            extents.append(extent)
            strides.append(stride)
    return (extents, strides) if extents else ([1], [1])


_VIEWS = {
    "AsStrided": _strided,
    "Broadcast": _broadcast,
    "BroadcastAxes": _broadcast,
    "Copy": _same,
    "Depends": _same,
    "ExpandDims": _expand,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "StopGradient": _same,
    "Transpose": _transpose,
    "Unflatten": _reshape,
    "View": _same,
}
