"""Load a llama from a checked GGUF file into mlx-lm, and say beforehand what memory that takes.

The file is read tensor by tensor and not by `mx.load`. That one has the whole packed file in memory
first, follows a corrupted header, and crashes over a float64 in the metadata (all three tried with
mlx 0.32.4). What comes out is the same, bit for bit, and beside the model itself there are
never more than a few MiB.

In the file the rows of the q and k projections stand in another order (see
`gguf_blocks.halves_apart`). They are put back: each row is quantized on its own, so nothing is
lost, and the result is the original model's arithmetic. `rope_traditional` would do as well, but
adds up each head in another order, with other rounding.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from wiredactors.engine.gguf import GGUFHeader
from wiredactors.engine.gguf_layout import GROUP, Placement, gguf_config, gguf_placements
from wiredactors.engine.gguf_tokenizer import gguf_tokenizer
from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.memory.errors import ModelLoadError
from wiredactors.memory.units import KIB

if TYPE_CHECKING:
    from wiredactors.engine.gguf_blocks import Array

__all__ = ["empty_model", "gguf_config", "gguf_load_peak_bytes", "gguf_weight_bytes", "load_gguf"]

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# A tensor of more values than this is read, unpacked and copied to MLX in pieces.
_PIECE_VALUES = 1 << 20

# The random key and the scalars of which the model's first, never evaluated, weights would be made
# (tried: 3,628 bytes for 30 layers), in the smallest buffers that there are.
_SCALARS = 64 * KIB


def gguf_weight_bytes(header: GGUFHeader, dequantize: bool, dtype: str) -> int:
    """Bytes of the weights as MLX holds them after `load_gguf` with the same arguments.

    For a packed matrix the codes, scales and biases; for any other the plain numbers. Exact: on a
    CPU active memory grows by this and the 8 bytes of the random key, if that was not there yet;
    on a GPU each array is rounded up to MLX's pages as well.

    Args:
        header: from `read_gguf_header`.
        dequantize: whether packed tensors become plain numbers.
        dtype: of the activations, so of plain numbers, scales and biases: "float32", "float16" or
            "bfloat16".

    Raises:
        ModelLoadError: as `gguf_config`.
        ValueError: another dtype.
    """
    placements = gguf_placements(header, dequantize)
    return sum(sum(_row_bytes(each, dtype)) * each.rows for each in placements)


def gguf_load_peak_bytes(header: GGUFHeader, dequantize: bool, dtype: str) -> int:
    """An upper bound of MLX's active memory during `load_gguf`, above what it was before.

    Tensors are loaded the largest first, and only those of more than a million values need anything
    besides themselves (one piece), so this is the weights with every array rounded up as the
    strictest allocator does it, and little else. On a CPU SmolLM2-135M peaks 4 kB above its
    weights, and this says 3.1 % more with 4 bits and 0.03 % more in float32. numpy's working
    memory, which MLX does not count, is a few pieces: some 16 MiB.

    Args and errors as `gguf_weight_bytes`.
    """
    done = peak = 0
    for placement in _loading_order(header, dequantize, dtype):
        piece = _piece_rows(placement)
        sizes = _row_bytes(placement, dtype)
        whole = sum(_buffer_bytes(size * placement.rows) for size in sizes)
        pieces = sum(_buffer_bytes(size * piece) for size in sizes)
        peak = max(peak, done + whole + (pieces if piece < placement.rows else 0))
        done += whole
    return peak + _SCALARS


def load_gguf(
    path: str | os.PathLike[str],
    header: GGUFHeader,
    *,
    dequantize: bool,
    dtype: str,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Any, Any, dict[str, Any]]:
    """Load the model: mlx-lm's llama with its weights evaluated, tokenizer and configuration.

    Everything happens on the calling thread, which must be the one that runs the model later. MLX's
    pool of freed buffers is emptied, because a larger buffer out of it would count as a whole.

    Args:
        path: the file.
        header: what `read_gguf_header` said of it.
        dequantize: whether packed tensors become plain numbers.
        dtype: of plain numbers, scales and biases, and so of the activations: "float32", "float16"
            or "bfloat16".
        progress: called with the bytes of the file that are done and those to do in all, after each
            piece. What it raises ends the loading, and nothing is kept.

    Returns:
        The model, the `TokenizerWrapper`, and what `gguf_config` says.

    Raises:
        ModelLoadError: the architecture, the tokenizer or a tensor type is not supported, or the
            file cannot be read or is no longer the one that the header was read from.
        ValueError: another dtype.
    """
    config = gguf_config(header, dequantize)
    placements = _loading_order(header, dequantize, dtype)
    tokenizer = gguf_tokenizer(header)
    mx = import_mlx()
    model = empty_model(config)
    mx.clear_cache()
    weights: list[tuple[str, Any]] = []
    to_do = sum(each.tensor.byte_size for each in placements)
    done = 0
    with _read_errors(header):
        file = open(path, "rb")  # noqa: SIM115 - closed below; only its errors are caught here
    with file:
        if os.fstat(file.fileno()).st_size != header.file_size:
            raise _changed(header)
        for placement in placements:
            parts: dict[str, Any] = {}
            for first, arrays, byte_size in _pieces(file, header, placement):
                for name, array in arrays.items():
                    _place(parts, name, array, first, placement.rows, dtype)
                done += byte_size
                if progress is not None:
                    progress(done, to_do)
            if _piece_rows(placement) < placement.rows:
                mx.clear_cache()
            weights += [(f"{placement.module}.{name}", each) for name, each in parts.items()]
    model.load_weights(weights, strict=True)
    model.eval()
    mx.eval(model.parameters())
    return model, tokenizer, config


def empty_model(config: dict[str, Any]) -> Any:
    """The model with weights that were never evaluated, which take no memory."""
    nn = importlib.import_module("mlx.nn")
    llama = import_mlx_lm("models.llama")
    model = llama.Model(llama.ModelArgs.from_dict(config))
    if quantization := config.get("quantization"):
        usual = {key: quantization[key] for key in ("group_size", "bits", "mode")}

        def choice(path: str, module: Any) -> Any:
            return hasattr(module, "to_quantized") and quantization.get(path, usual)

        nn.quantize(model, **usual, class_predicate=choice)
    return model


def _pieces(
    file: BinaryIO, header: GGUFHeader, placement: Placement
) -> Iterator[tuple[int, dict[str, Array], int]]:
    """The tensor in pieces: the first row, the arrays by MLX's names, the bytes of the file."""
    from wiredactors.engine import gguf_blocks as blocks  # here, because it imports numpy

    tensor = placement.tensor
    row_bytes = tensor.byte_size // placement.rows
    with _read_errors(header):
        file.seek(tensor.offset)
    for first in range(0, placement.rows, _piece_rows(placement)):
        rows = min(_piece_rows(placement), placement.rows - first)
        with _read_errors(header):
            raw = file.read(rows * row_bytes)
        if len(raw) < rows * row_bytes:
            raise _changed(header)
        arrays: dict[str, Array]
        if placement.bits is None:
            arrays = {"weight": blocks.dense_rows(raw, tensor.type, placement.columns)}
        else:
            packed = blocks.packed_rows(raw, tensor.type, placement.columns)
            arrays = {"weight": packed.codes, "scales": packed.scales, "biases": packed.biases}
        if placement.head_dim is not None:
            arrays = {
                name: blocks.halves_apart(each, placement.head_dim) for name, each in arrays.items()
            }
        elif len(tensor.shape) == 1:
            arrays = {name: each[0] for name, each in arrays.items()}
        yield first, arrays, len(raw)


def _place(
    parts: dict[str, Any], name: str, array: Array, first: int, rows: int, dtype: str
) -> None:
    """Copy `array` to MLX, as `parts[name]` or as its rows from `first` on."""
    mx = import_mlx()
    # MLX converts while it copies, so there is never a second array.
    copied = mx.array(array, dtype=mx.uint32 if array.dtype == "uint32" else getattr(mx, dtype))
    if len(array) == rows or array.ndim == 1:
        parts[name] = copied
        mx.eval(copied)
        return
    if first == 0:
        parts[name] = mx.zeros((rows, array.shape[1]), copied.dtype)
    # In place: nothing else holds the array, so MLX gives its buffer to the result.
    parts[name][first : first + len(array)] = copied
    mx.eval(parts[name])


def _loading_order(header: GGUFHeader, dequantize: bool, dtype: str) -> list[Placement]:
    """The largest first: what it needs besides itself is then gone when memory is fullest."""
    placements = gguf_placements(header, dequantize)
    return sorted(placements, key=lambda each: -sum(_row_bytes(each, dtype)) * each.rows)


def _piece_rows(placement: Placement) -> int:
    """Rows that are read at once: all of a small tensor; whole heads."""
    unit = placement.head_dim or 1
    return min(placement.rows, max(1, _PIECE_VALUES // placement.columns // unit) * unit)


def _row_bytes(placement: Placement, dtype: str) -> tuple[int, ...]:
    """Bytes that a row takes in each of the arrays which MLX has of the tensor."""
    if dtype not in _ITEM_BYTES:
        raise ValueError(f"dtype must be one of {', '.join(_ITEM_BYTES)}, not {dtype!r}")
    item = _ITEM_BYTES[dtype]
    if placement.bits is None:
        return (placement.columns * item,)
    scales = placement.columns // GROUP * item
    return placement.columns * placement.bits // 8, scales, scales


def _buffer_bytes(byte_size: int) -> int:
    """At most what MLX counts for an array of `byte_size`.

    On a CPU it is the size itself (tried). Metal rounds up to pages of 16 KiB, from one page on;
    CUDA does too, and to powers of two below (read in mlx/backend/*/allocator.cpp, not tried).
    """
    page = 16 * KIB
    if byte_size <= page:
        return 1 << (byte_size - 1).bit_length()
    return byte_size + -byte_size % page


@contextmanager
def _read_errors(header: GGUFHeader) -> Iterator[None]:
    """What goes wrong with the file, and not what goes wrong in a caller's `progress`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelLoadError(f"{header.path}: cannot be read ({reason}): check the path") from error


def _changed(header: GGUFHeader) -> ModelLoadError:
    return ModelLoadError(
        f"{header.path}: the file is not the one whose header was read (it had {header.file_size} "
        "bytes): wait until it is complete and load it again"
    )
