"""One error for several who wait: each has its own, and all say the same."""

from __future__ import annotations

from typing import Any, Self

import pytest

import wiredactors as wa
from wiredactors.actors.errors import likeness


class Odd(Exception):
    """It cannot be made of its own arguments."""

    def __new__(cls, *, reason: str) -> Self:
        return super().__new__(cls, reason)

    def __init__(self, *, reason: str):
        super().__init__(reason)


@pytest.mark.parametrize(
    "error",
    [
        wa.TicketTooLarge(5, 4, 1, 3),
        wa.ModelLoadError("the file is broken"),
        OSError(2, "no such file", "model.gguf"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        KeyError("config"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_is_of_the_same_type_and_says_the_same(error: Exception) -> None:
    alike: Any = likeness(error)
    assert alike is not error
    assert (type(alike), str(alike)) == (type(error), str(error))
    assert vars(alike) == vars(error)


def test_one_that_cannot_be_made_again_is_told_as_the_failure_of_a_load() -> None:
    error = Odd(reason="odd")
    alike = likeness(error)
    assert isinstance(alike, wa.ModelLoadError)
    assert str(alike) == "Odd('odd')"
    assert alike.__cause__ is error
