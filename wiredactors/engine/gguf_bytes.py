"""The bytes of a GGUF header, taken one after the other, each only if the file has it.

Source of the encodings: "GGUF", docs/gguf.md of github.com/ggml-org/ggml. Numbers are little-endian
and not aligned, a string is its length in 8 bytes and that many bytes of UTF-8, a truth value is
one byte, 0 or 1.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from wiredactors.memory.errors import ModelLoadError
from wiredactors.memory.units import MIB, format_bytes

# Metadata and tensor table of the largest vocabularies take some 30 MiB. More than this is a length
# that went wrong in a large file, and would be read into memory before anybody could tell.
_LONGEST_HEADER = 256 * MIB

_INT32 = struct.Struct("<I")
_INT64 = struct.Struct("<Q")


class HeaderBytes:
    """Reads a file from its first byte; a length is believed only as far as the file goes.

    The file is read in pieces and not mapped: where a mapped file is cut short meanwhile, touching
    it kills the process. Every method that takes raises `ModelLoadError` where the file ends, and
    `what` says for the message what was being read.

    Attributes:
        at: bytes taken so far, which is where the next one stands.
    """

    def __init__(self, path: str, file: BinaryIO, file_size: int):
        self.at = 0
        self._path = path
        self._file = file
        self._file_size = file_size
        self._data = b""

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes."""
        end = self.at + count
        if end > len(self._data):
            self._read(end, what)
        taken = self._data[self.at : end]
        self.at = end
        return taken

    def take_int32(self, what: str) -> int:
        """The next 4 bytes as an unsigned number."""
        number: int = _INT32.unpack(self.take(4, what))[0]
        return number

    def take_int64(self, what: str) -> int:
        """The next 8 bytes as an unsigned number."""
        number: int = _INT64.unpack(self.take(8, what))[0]
        return number

    def take_count(self, smallest: int, what: str) -> int:
        """The next 8 bytes as the number of things that take at least `smallest` bytes each.

        Raises:
            ModelLoadError: so many cannot be in what is left of the file.
        """
        start = self.at
        count = self.take_int64(f"the number of {what}")
        left = self._file_size - self.at
        if count * smallest > left:
            raise self.corrupted(
                f"there should be {count} {what} of at least {smallest} bytes each, and {left} "
                "bytes are left",
                start,
            )
        return count

    def take_string(self, what: str) -> str:
        """The next string.

        Raises:
            ModelLoadError: it is longer than what is left of the file, or not UTF-8.
        """
        start = self.at
        length = self.take_int64(what)
        left = self._file_size - self.at
        if length > left:
            raise self.corrupted(
                f"{what} has a string of {length} bytes, and {left} bytes are left", start
            )
        taken = self.take(length, what)
        try:
            return taken.decode()
        except UnicodeDecodeError:
            raise self.corrupted(f"{what} has a string that is not UTF-8", start) from None

    def take_bools(self, count: int, what: str) -> tuple[bool, ...]:
        """The next `count` truth values.

        Raises:
            ModelLoadError: one of them is neither 0 nor 1.
        """
        start = self.at
        taken = self.take(count, what)
        if taken.strip(b"\0\1"):
            raise self.corrupted(f"{what} has a truth value that is neither 0 nor 1", start)
        return tuple(byte == 1 for byte in taken)

    def corrupted(self, problem: str, at: int) -> ModelLoadError:
        """The error to raise where the file says something impossible at byte `at`."""
        return ModelLoadError(
            f"{self._path}: {problem} (at byte {at}): the file is truncated or corrupted, or no "
            "GGUF file; download it again"
        )

    def unsupported(self, problem: str, at: int) -> ModelLoadError:
        """The error to raise where the file says something that is not understood here."""
        return ModelLoadError(
            f"{self._path}: {problem} (at byte {at}), which is not supported: convert the model "
            "again with a current converter; if other programs cannot read the file either, it is "
            "corrupted, download it again"
        )

    def _read(self, end: int, what: str) -> None:
        """Has the bytes up to `end` in memory, and some more, so that reads are few and large."""
        if end > self._file_size:
            raise self.corrupted(f"the file ends at byte {self._file_size}, inside {what}", self.at)
        if end > _LONGEST_HEADER:
            limit = format_bytes(_LONGEST_HEADER)
            raise self.corrupted(f"the header goes on beyond {limit} with {what}", self.at)
        # Twice as much each time, so that copying what is there already does not add up.
        wanted = max(end, 2 * len(self._data), MIB)
        wanted = min(wanted, self._file_size, _LONGEST_HEADER)
        self._data += self._file.read(wanted - len(self._data))
        if end > len(self._data):
            raise self.corrupted(f"the file became shorter meanwhile, inside {what}", self.at)
