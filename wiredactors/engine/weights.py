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

#: A header larger than this is none (the format's own bound).
_MAX_HEADER_BYTES = 100_000_000


@attrs.frozen
class WeightFile:
    """The header of a weight file.

    Attributes:
        name: the file's name.
        head: the header's length and the header, as they stand in the file.
        data_bytes: bytes of all tensors.
        size: the whole file's bytes.
        is_whole: whether the data is there too.
    """

    name: str
    head: bytes
    data_bytes: int
    size: int
    is_whole: bool


def weight_files(path: Path) -> list[WeightFile]:
    """The weight files of a model directory, sorted by name.

    Raises:
        ModelLoadError: a header is not whole, or is none.
    """
    return [read_weight_file(file) for file in sorted(path.glob("model*.safetensors"))]


def read_weight_file(file: Path) -> WeightFile:
    """Read a file's header, checked against the file's size.

    Raises:
        ModelLoadError: the header is not whole, or is none.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise ModelLoadError(
                f"{file} has no whole header ({size} bytes in all): it is truncated or corrupted: "
                "download it again"
            )
        head += stream.read(length)
    return parse_weight_file(str(file), head, size)


def parse_weight_file(name: str, head: bytes, size: int) -> WeightFile:
    """A file's header, of a file of `size` bytes in all.

    Raises:
        ModelLoadError: it is no header.
    """
    try:
        header = json.loads(head[8:])
        spans = [entry["data_offsets"] for key, entry in header.items() if key != "__metadata__"]
        data_bytes = sum(end - begin for begin, end in spans)
        last = max((end for _, end in spans), default=0)
        if any(begin < 0 or end < begin for begin, end in spans):
            raise ValueError("a tensor ends before it begins")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(
            f"{name} has an unreadable header ({error}): it is truncated or corrupted: download "
            "it again"
        ) from error
    whole = len(head) + last
    return WeightFile(Path(name).name, head, int(data_bytes), whole, is_whole=size >= whole)


@contextlib.contextmanager
def hollow_copy(path: Path | None, files: Sequence[WeightFile]) -> Iterator[Path]:
    """A model directory with the headers and holes for data: enough for a loader that is lazy.

    Besides the weights it has the config files of `path`, if one is given. The holes take no room
    on the disk.
    """
    with tempfile.TemporaryDirectory(prefix="wiredactors-") as folder:
        hollow = Path(folder)
        if path is not None:
            for name in CONFIG_FILES:
                if (path / name).exists():
                    shutil.copyfile(path / name, hollow / name)
        for weights in files:
            with (hollow / weights.name).open("wb") as stream:
                stream.write(weights.head)
                stream.truncate(weights.size)
        yield hollow
