"""The values in a GGUF tensor's blocks, as MLX packs them or as plain numbers.

GGUF quantizes each row on its own, in blocks of 32 values with one scale, which is what MLX calls
affine quantization with groups of 32: value = code * scale + bias. So the blocks of Q4_0, Q4_1 and
Q8_0 are re-sorted into MLX's arrays without loss. numpy and not MLX does it, so that it costs no
memory that MLX counts.

Sources: the block structs in ggml-common.h and `dequantize_row_*` in ggml-quants.c of
github.com/ggml-org/ggml; MLX's packing, eight 4-bit codes in a 32-bit word with the first in the
lowest bits, as `mx.quantize` gives it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import frozen

from wiredactors.engine.gguf_layout import GROUP

Array = npt.NDArray[Any]

# A block: its scale, for Q4_1 the value of code 0, and the codes. A byte of 4-bit codes holds
# value j in its lower half and value j + 16 in its upper half.
_LAYOUTS = {
    "Q4_0": np.dtype([("scale", "<f2"), ("codes", "u1", 16)]),
    "Q4_1": np.dtype([("scale", "<f2"), ("least", "<f2"), ("codes", "u1", 16)]),
    "Q8_0": np.dtype([("scale", "<f2"), ("codes", "i1", 32)]),
}


@frozen(eq=False)
class PackedRows:
    """Rows of a matrix as MLX's affine quantization has them.

    Attributes:
        codes: uint32, (rows, columns * bits / 32).
        scales: float32, (rows, columns / 32).
        biases: float32, of the same shape.
    """

    codes: Array
    scales: Array
    biases: Array


def packed_rows(raw: bytes, type_name: str, columns: int) -> PackedRows:
    """The rows of `columns` values in `raw`, which has whole rows of a type in `PACKED_BITS`.

    The same codes, scales and biases as `mx.load` gives, but for the scales' dtype: here float32,
    into which the file's float16 goes without loss.
    """
    blocks = np.frombuffer(raw, _LAYOUTS[type_name]).reshape(-1, columns // GROUP)
    scales = blocks["scale"].astype(np.float32)
    codes = blocks["codes"]
    if type_name == "Q8_0":
        # MLX's codes are not negative: 0 stands for -128.
        return PackedRows(_words(codes.view(np.uint8) ^ 0x80), scales, scales * -128)
    values = np.concatenate([codes & 15, codes >> 4], axis=-1)
    pairs = values[..., 0::2] | values[..., 1::2] << 4
    # The codes of Q4_0 count from -8.
    biases = blocks["least"].astype(np.float32) if type_name == "Q4_1" else scales * -8
    return PackedRows(_words(pairs), scales, biases)


def dense_rows(raw: bytes, type_name: str, columns: int) -> Array:
    """The rows of `columns` values in `raw` as float32, (rows, columns).

    `raw` has whole rows of a type in `PACKED_BITS` or `DENSE_TYPES`. What a packed type means is
    exact for Q4_0 and Q8_0, and rounded once for Q4_1, which is what `mx.dequantize` gives with
    float32 scales.
    """
    if type_name == "F32":
        return np.frombuffer(raw, "<f4").reshape(-1, columns)
    if type_name == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float32).reshape(-1, columns)
    if type_name == "BF16":
        # The upper half of a float32.
        upper = np.frombuffer(raw, "<u2").astype(np.uint32)
        return (upper << 16).view(np.float32).reshape(-1, columns)
    blocks = np.frombuffer(raw, _LAYOUTS[type_name])
    codes = blocks["codes"]
    if type_name != "Q8_0":
        codes = np.concatenate([codes & 15, codes >> 4], axis=-1)
    values = codes.astype(np.float32)
    if type_name == "Q4_0":
        values -= 8
    # A scale that is not finite is the model's own affair, and no reason for numpy to warn.
    with np.errstate(all="ignore"):
        values *= blocks["scale"].astype(np.float32)[:, None]
        if type_name == "Q4_1":
            values += blocks["least"].astype(np.float32)[:, None]
    return values.reshape(-1, columns)


def halves_apart(rows: Array, head_dim: int) -> Array:
    """Undo the order of rows in which llama's GGUF files keep the q and k projections.

    In each head the converter puts the rows i and i + head_dim / 2, which rotary embedding turns
    together, side by side; mlx-lm, as the original model, wants all the first ones, then all the
    second ones. `rows` has whole heads.

    Source: `permute` under "LLaMA" in docs/gguf.md of github.com/ggml-org/ggml.
    """
    heads = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def _words(codes: Array) -> Array:
    """Bytes of codes, (rows, blocks, bytes), as 32-bit words, (rows, words)."""
    return np.ascontiguousarray(codes).reshape(codes.shape[0], -1).view("<u4")
