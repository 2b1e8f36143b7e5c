"""Binary units, and bytes as a person reads them."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


def format_bytes(count: int) -> str:
    """`count` bytes in the largest unit that leaves at least one: "135.2 MiB"."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(count) >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def checked_size(value: object, what: str) -> int:
    """`value` as a number of bytes.

    Raises:
        TypeError: it is not an integer (a float hides a rounding, a string a missing parse).
        ValueError: it is negative.
    """
    # bool is an int to Python, but True bytes is somebody's mistake. Other integers (numpy's)
    # speak __index__.
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} must be an integer number of bytes, not {value!r}")
    size = value.__index__()
    assert isinstance(size, int)
    if size < 0:
        raise ValueError(f"{what} must not be negative, but is {size}")
    return size
