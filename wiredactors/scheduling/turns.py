"""Whose step is next on the one device: the batches take turns."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Turns(Generic[Key]):
    """A round robin over whoever has work: the one that has waited longest goes next."""

    def __init__(self) -> None:
        self._order: dict[Key, None] = {}

    def next(self, ready: Iterable[Key]) -> Key | None:
        """The next of `ready`, which may change from call to call; None if nobody is."""
        waiting = dict.fromkeys(ready)
        order = {key: None for key in self._order if key in waiting}
        order.update(waiting)  # the new ones, behind those that wait
        self._order = order
        chosen = next(iter(order), None)
        if chosen is not None:
            del order[chosen]
            order[chosen] = None
        return chosen
