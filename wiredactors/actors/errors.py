"""Errors that one task keeps for others."""

from __future__ import annotations

import copy

from wiredactors.memory.errors import ModelLoadError, WiredMemoryError


def likeness(error: Exception) -> Exception:
    """The same error for one more who waits.

    One that is raised in several tasks would grow by the frames of all of them, and keep them. Of
    a foreign one that cannot be copied it is a `ModelLoadError` that says the same.
    """
    alike = _copy(error)
    if type(alike) is not type(error) or str(alike) != str(error):
        alike = ModelLoadError(repr(error))
        alike.__cause__ = error
        return alike
    alike.__cause__, alike.__traceback__ = error.__cause__, error.__traceback__
    return alike


def _copy(error: Exception) -> Exception | None:
    if isinstance(error, WiredMemoryError):  # their constructors take numbers, and make the text
        alike = type(error).__new__(type(error), *error.args)
        alike.__dict__.update(error.__dict__)
        return alike
    try:
        return copy.copy(error)
    except Exception:  # whatever its own __reduce__ or __new__ raises
        return None
