"""Read the header of a GGUF file, and check all of it before anybody loads the file.

MLX's own reader follows the lengths and offsets of a header without checking them, so a corrupted
file kills the process with SIGSEGV. This one is pure Python: what it returns has been checked
against the size of the file, and whatever is wrong is a `ModelLoadError`.

Source of the format: "GGUF", docs/gguf.md of github.com/ggml-org/ggml. Sizes and offsets are bytes.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import TypeAlias

from attrs import evolve, field, frozen

from wiredactors.engine.gguf_bytes import HeaderBytes
from wiredactors.memory.errors import ModelLoadError

GGUFScalar: TypeAlias = bool | int | float | str
GGUFValue: TypeAlias = GGUFScalar | tuple[GGUFScalar, ...]

# The number of a tensor type: its name, values in a block, bytes of a block. The numbers are
# `enum ggml_type` of docs/gguf.md (40 and 41: ggml.h), the sizes those of the block structs in
# ggml-common.h. Numbers that are missing were removed from the format.
_TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

# `enum gguf_metadata_value_type` of docs/gguf.md; the letters are those of `struct`.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9

# The least bytes that one entry can take: the lengths of its strings, types, a name of one letter.
_SMALLEST_ENTRY = 8 + 1 + 4 + 1
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8

_LONGEST_KEY = 65535
_LONGEST_TENSOR_NAME = 64
_DEFAULT_ALIGNMENT = 32


@frozen
class GGUFTensor:
    """One tensor of the file.

    Attributes:
        name: as in the file, "blk.0.attn_q.weight".
        shape: dimensions as GGUF gives them, the fastest first: a matrix is (columns, rows).
        type: name of the tensor type, "Q4_1".
        offset: bytes from the start of the file (GGUF itself counts from the start of the data).
        byte_size: bytes of its data, padding left out.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    byte_size: int


@frozen
class GGUFHeader:
    """What a GGUF file says of itself, checked.

    Attributes:
        path: the file.
        version: of the format, 2 or 3.
        metadata: keys to values; arrays are tuples.
        tensors: in the order of the file; each lies inside it, none overlap.
        alignment: of each tensor's data, in bytes.
        data_offset: bytes from the start of the file to where the tensors' data begins.
        file_size: bytes.
    """

    path: str
    version: int
    metadata: Mapping[str, GGUFValue] = field(repr=False)
    tensors: tuple[GGUFTensor, ...] = field(repr=False)
    alignment: int
    data_offset: int
    file_size: int


def read_gguf_header(path: str | os.PathLike[str]) -> GGUFHeader:
    """The header of the GGUF file at `path`; of the tensors' data nothing is read.

    Checked are the magic, the version, every count and length against what is left of the file,
    value types, names, dimensions, tensor types, and that each tensor's data is aligned, inside the
    file and its own. A header without tensors (a vocabulary) is valid.

    Source: docs/gguf.md of github.com/ggml-org/ggml, versions 2 and 3, which are read alike.

    Raises:
        ModelLoadError: the file cannot be read, is no GGUF file, is truncated or corrupted, or uses
            a version or type that is not known here. The message says which, and at which byte.
    """
    name = os.fspath(path)
    try:
        # A pipe would make `open` wait for a writer.
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise ModelLoadError(f"{name}: is not a file: give the path of the .gguf file itself")
        with open(name, "rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            return _header(name, HeaderBytes(name, file, file_size), file_size)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelLoadError(f"{name}: cannot be read ({reason}): check the path") from error


def _header(path: str, data: HeaderBytes, file_size: int) -> GGUFHeader:
    magic = data.take(4, "the magic")
    if magic != b"GGUF":
        raise data.corrupted(f"it begins with {magic!r} and not with the magic b'GGUF'", 0)
    version = data.take_int32("the version")
    if version in (2 << 24, 3 << 24):
        raise data.unsupported("the file is big-endian", 4)
    if version not in (2, 3):
        raise data.unsupported(f"the GGUF version is {version} and not 2 or 3", 4)
    tensor_count = data.take_count(_SMALLEST_TENSOR, "tensors")
    metadata_count = data.take_count(_SMALLEST_ENTRY, "metadata entries")
    metadata: dict[str, GGUFValue] = {}
    for _ in range(metadata_count):
        start = data.at
        key = _name(data, "a metadata key", _LONGEST_KEY)
        if key in metadata:
            raise data.corrupted(f"the metadata key {key!r} is there twice", start)
        metadata[key] = _value(data, key)
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
        raise data.corrupted(f"general.alignment is {alignment!r} and no multiple of 8", data.at)
    starts: dict[str, int] = {}
    table: dict[str, GGUFTensor] = {}
    for _ in range(tensor_count):
        start = data.at
        tensor = _tensor(data, file_size)
        if tensor.name in table:
            raise data.corrupted(f"the tensor {tensor.name!r} is there twice", start)
        starts[tensor.name] = start
        table[tensor.name] = tensor
    data_offset = data.at + -data.at % alignment
    tensors = tuple(evolve(each, offset=data_offset + each.offset) for each in table.values())
    _check_places(data, tensors, starts, alignment, data_offset, file_size)
    return GGUFHeader(path, version, metadata, tensors, alignment, data_offset, file_size)


def _name(data: HeaderBytes, what: str, longest: int) -> str:
    start = data.at
    name = data.take_string(what)
    if not 1 <= len(name.encode()) <= longest:
        raise data.corrupted(f"{what} is not 1 to {longest} bytes long", start)
    return name


def _value(data: HeaderBytes, key: str) -> GGUFValue:
    what = f"the value of {key!r}"
    start = data.at
    kind = data.take_int32(what)
    if letter := _NUMBERS.get(kind):
        return _numbers(data, 1, letter, what)[0]
    if kind == _BOOL:
        return data.take_bools(1, what)[0]
    if kind == _STRING:
        return data.take_string(what)
    if kind == _ARRAY:
        return _array(data, key, what)
    raise data.corrupted(f"{what} has the unknown type {kind}", start)


def _array(data: HeaderBytes, key: str, what: str) -> tuple[GGUFScalar, ...]:
    start = data.at
    kind = data.take_int32(what)
    elements = f"elements of {key!r}"
    if letter := _NUMBERS.get(kind):
        count = data.take_count(struct.calcsize(letter), elements)
        return _numbers(data, count, letter, what)
    if kind == _BOOL:
        return data.take_bools(data.take_count(1, elements), what)
    if kind == _STRING:
        return tuple([data.take_string(what) for _ in range(data.take_count(8, elements))])
    if kind == _ARRAY:
        # The format allows it; neither llama.cpp nor MLX reads it, and no known key needs it.
        raise data.unsupported(f"{what} is an array of arrays", start)
    raise data.corrupted(f"{what} is an array of the unknown type {kind}", start)


def _numbers(data: HeaderBytes, count: int, letter: str, what: str) -> tuple[int | float, ...]:
    layout = struct.Struct(f"<{count}{letter}")
    return layout.unpack(data.take(layout.size, what))


def _tensor(data: HeaderBytes, file_size: int) -> GGUFTensor:
    """One entry of the tensor table; its offset is still counted from the start of the data."""
    start = data.at
    name = _name(data, "a tensor's name", _LONGEST_TENSOR_NAME)
    rank = data.take_int32(f"the rank of {name!r}")
    if not 1 <= rank <= 4:
        raise data.corrupted(f"the tensor {name!r} has {rank} dimensions and not 1 to 4", start)
    shape = tuple([data.take_int64(f"the shape of {name!r}") for _ in range(rank)])
    kind = data.take_int32(f"the type of {name!r}")
    if kind not in _TENSOR_TYPES:
        raise data.unsupported(f"the tensor {name!r} has the unknown type {kind}", data.at - 4)
    type_name, block_values, block_bytes = _TENSOR_TYPES[kind]
    values = prod(shape)
    if not values:
        raise data.corrupted(f"the tensor {name!r} has a dimension of 0: {shape}", start)
    if shape[0] % block_values:
        raise data.corrupted(
            f"the tensor {name!r} has rows of {shape[0]} values, which are no whole blocks of "
            f"{block_values} as {type_name} has them",
            start,
        )
    byte_size = values // block_values * block_bytes
    if byte_size > file_size:
        raise data.corrupted(
            f"the tensor {name!r} with dimensions {shape} of {type_name} would take {byte_size} "
            f"bytes and the file has {file_size}",
            start,
        )
    return GGUFTensor(name, shape, type_name, data.take_int64(f"the offset of {name!r}"), byte_size)


def _check_places(
    data: HeaderBytes,
    tensors: tuple[GGUFTensor, ...],
    starts: Mapping[str, int],
    alignment: int,
    data_offset: int,
    file_size: int,
) -> None:
    """Each tensor's data is aligned, inside the file, and overlaps no other's."""
    for tensor in tensors:
        relative = tensor.offset - data_offset
        if relative % alignment:
            raise data.corrupted(
                f"the data of tensor {tensor.name!r}, at offset {relative}, is not aligned to "
                f"{alignment} bytes",
                starts[tensor.name],
            )
        if (end := tensor.offset + tensor.byte_size) > file_size:
            raise data.corrupted(
                f"the data of tensor {tensor.name!r} would end at byte {end} and the file has "
                f"{file_size}",
                starts[tensor.name],
            )
    in_place = sorted(tensors, key=lambda each: each.offset)
    for first, second in pairwise(in_place):
        if second.offset < first.offset + first.byte_size:
            raise data.corrupted(
                f"the data of the tensors {first.name!r} and {second.name!r} overlap",
                starts[second.name],
            )
