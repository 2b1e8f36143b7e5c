"""Bytes are integers, and read as a person reads them."""

from __future__ import annotations

import pytest

import wiredactors as wa
from wiredactors.memory.units import checked_size, format_bytes


def test_the_units_are_binary():
    assert (wa.KIB, wa.MIB, wa.GIB) == (1024, 1024**2, 1024**3)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * wa.MIB, "1.5 GiB"),
        (-2 * wa.MIB, "-2.0 MiB"),
    ],
)
def test_bytes_are_shown_in_the_largest_unit_that_leaves_one(count, text):
    assert format_bytes(count) == text


class Integer:
    def __index__(self) -> int:
        return 7


@pytest.mark.parametrize(("value", "size"), [(0, 0), (1 << 80, 1 << 80), (Integer(), 7)])
def test_what_speaks_integer_is_a_size(value, size):
    assert checked_size(value, "it") == size


@pytest.mark.parametrize("value", [1.0, "1", None, True, b"1", [1]])
def test_what_is_no_integer_is_a_type_error(value):
    with pytest.raises(TypeError, match="it must be an integer number of bytes"):
        checked_size(value, "it")


def test_what_is_negative_is_a_value_error():
    with pytest.raises(ValueError, match="it must not be negative, but is -1"):
        checked_size(-1, "it")
