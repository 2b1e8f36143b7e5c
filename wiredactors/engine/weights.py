"""Weight files in safetensors, as far as their headers tell.

Format: a little-endian 64-bit header length, a JSON header with each tensor's type, shape and data
offsets (relative to the header's end), then the data.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from wiredactors.memory.errors import ModelLoadError

#: What mlx-lm's loader reads besides the weights.
CONFIG_FILES = ("config.json", "generation_config.json", "hf_quant_config.json")

#: The files that it takes for weights.
WEIGHT_PATTERN = "model*.safetensors"

#: A header larger than this is none (the format's own bound).
_MAX_HEADER_BYTES = 100_000_000

#: No weight file is as large as this; an offset beyond it is a corrupted one.
_MAX_FILE_BYTES = 1 << 44


@attrs.frozen
class WeightFile:
    """The header of a weight file.

    Attributes:
        name: the file's name, without its folder.
        head: the header's length and the header, as they stand in the file.
        size: the whole file's bytes, by its header.
        is_whole: whether the data is here too.
    """

    name: str
    head: bytes
    size: int
    is_whole: bool


def weight_files(path: Path) -> list[WeightFile]:
    """The weight files of a model directory, sorted by name.

    Raises:
        ModelLoadError: one cannot be read, or its header is not whole, or is none.
    """
    return [read_weight_file(file) for file in sorted(path.glob(WEIGHT_PATTERN))]


def read_weight_file(file: Path) -> WeightFile:
    """Read a file's header, checked against the file's size.

    Raises:
        ModelLoadError: the file cannot be read, or its header is not whole, or is none.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
            if 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                head += stream.read(length)
    except OSError as error:
        raise ModelLoadError(f"{file} cannot be read: {error}: download it again") from error
    if len(head) != 8 + length:
        raise ModelLoadError(
            f"{file} has no whole header ({size} bytes in all): it is truncated or corrupted: "
            "download it again"
        )
    return parse_weight_file(str(file), head, size)


def parse_weight_file(name: str, head: bytes, size: int = 0) -> WeightFile:
    """A file's header, of a file of which `size` bytes are here.

    Raises:
        ModelLoadError: it is no header.
    """
    try:
        header = json.loads(head[8:])
        spans = [entry["data_offsets"] for key, entry in header.items() if key != "__metadata__"]
        last = max((_end(*span) for span in spans), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelLoadError(
            f"{name} has an unreadable header ({error}): it is truncated or corrupted: download "
            "it again"
        ) from error
    whole = len(head) + last
    return WeightFile(Path(name).name, head, whole, is_whole=size >= whole)


def _end(begin: object, end: object) -> int:
    """Where a tensor's data ends.

    Raises:
        ValueError: these are no offsets.
    """
    if not (isinstance(begin, int) and isinstance(end, int)):
        raise ValueError("an offset is no whole number")
    if not 0 <= begin <= end <= _MAX_FILE_BYTES:
        raise ValueError(f"a tensor lies from {begin} to {end}")
    return end


@contextlib.contextmanager
def hollow_copy(configs: Path, files: Sequence[WeightFile]) -> Iterator[Path]:
    """A model directory with the headers and holes for data: enough for a loader that is lazy.

    Besides the weights it has the config files of the folder `configs`. The holes take no room on
    the disk.
    """
    with tempfile.TemporaryDirectory(prefix="wiredactors-") as folder:
        hollow = Path(folder)
        for name in CONFIG_FILES:
            if (configs / name).exists():
                shutil.copyfile(configs / name, hollow / name)
        for weights in files:
            with (hollow / weights.name).open("wb") as stream:
                stream.write(weights.head)
                stream.truncate(weights.size)
        yield hollow
