"""Whose step is next on the one device: the batches take turns."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Turns(Generic[Key]):
    """A round robin over whoever has work: the one that has waited longest goes next."""

    def __init__(self) -> None:
        self._order: list[Key] = []

    def next(self, ready: Iterable[Key]) -> Key | None:
        """The next of `ready`, which may change from call to call; None if nobody is."""
        waiting = set(ready)
        self._order = [key for key in self._order if key in waiting]
        self._order += [key for key in waiting if key not in self._order]
        if not self._order:
            return None
        chosen = self._order.pop(0)
        self._order.append(chosen)
        return chosen
