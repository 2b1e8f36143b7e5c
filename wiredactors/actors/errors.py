"""Errors that one task keeps for others."""

from __future__ import annotations


def likeness(error: Exception) -> Exception:
    """The same error for one more who waits.

    One that is raised in several tasks would grow by the frames of all of them, and keep them.
    """
    alike = type(error).__new__(type(error), *error.args)
    alike.__dict__.update(error.__dict__)
    alike.__cause__, alike.__traceback__ = error.__cause__, error.__traceback__
    return alike
