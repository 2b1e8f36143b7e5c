"""The line before a model: those who wait until it is ready, in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from wiredactors.actors.job import Job


class Caller:
    """Somebody who waits for the model itself: to have it loaded, or to measure it.

    Attributes:
        arrival: its number in the line.
        since: when it came, in seconds on trio's clock.
    """

    priority = 0

    def __init__(self, arrival: int):
        self.arrival = arrival
        self.since = trio.current_time()
        self._called = trio.Event()
        self._error: Exception | None = None

    def call(self, error: Exception | None = None) -> None:
        """The model is ready, or has failed."""
        self._error = error
        self._called.set()

    async def wait(self) -> None:
        """Wait to be called; raises what the model failed of."""
        await self._called.wait()
        error, self._error = self._error, None
        if error is None:
            return
        try:
            raise error
        finally:
            del error  # see `Request.raise_refusal`


#: What stands in a line.
Waiting = Job | Caller


class Line:
    """Each has a number, and who comes back has kept it.

    Whoever joins or leaves costs O(1), and to call all of them O(n log n).
    """

    def __init__(self) -> None:
        self._waiting: dict[int, Waiting] = {}
        self._joined = trio.Event()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        return iter([waiting for _, waiting in sorted(self._waiting.items())])

    def __contains__(self, waiting: Waiting) -> bool:
        return self._waiting.get(waiting.arrival) is waiting

    @property
    def priority(self) -> int:
        """The highest of those who wait."""
        return max((waiting.priority for waiting in self._waiting.values()), default=0)

    @property
    def since(self) -> float:
        """Since when the first of them has waited."""
        return min(waiting.since for waiting in self._waiting.values())

    def join(self, waiting: Waiting) -> None:
        self._waiting[waiting.arrival] = waiting
        self._joined.set()

    def leave(self, waiting: Waiting) -> bool:
        """Whether it stood in the line."""
        return self._waiting.pop(waiting.arrival, None) is not None

    def take_all(self) -> list[Waiting]:
        """All who wait, in their order; the line is empty then."""
        everyone = list(self)
        self._waiting.clear()
        return everyone

    async def wait(self) -> None:
        """Wait until somebody stands in the line."""
        while not self._waiting:
            self._joined = trio.Event()
            await self._joined.wait()
