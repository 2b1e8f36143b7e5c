"""Watches the memory of the machine, at a slow pace."""

from __future__ import annotations

from collections.abc import Callable

import trio

from wiredactors.memory.outside import MemoryReading

#: How many readings in a row may fail before that is told: one that fails now and then is no news,
#: but admission must not go by an old reading for ever, nor the watch be dead in silence.
FAILURES_TOLERATED = 3

#: Look so often whether another pace holds, or it is on again.
_IDLE_SECONDS = 5.0


class MemoryWatch:
    """Reads the memory of the machine and tells of it.

    Args:
        read: called on the trio thread, so it must not block; None where nothing is known.
        report: gets each reading. After readings it gets None, once, when nothing is known any
            more: the source says so, or it was switched off.
        fail: gets the error, once, when `FAILURES_TOLERATED` readings in a row have failed.
            Nothing is known then either, and `report` is not called for that.
        every: asked before each reading, and every few seconds; None or 0 is off.
    """

    def __init__(
        self,
        read: Callable[[], MemoryReading | None],
        report: Callable[[MemoryReading | None], object],
        fail: Callable[[Exception], object],
        every: Callable[[], float | None],
    ):
        self._read = read
        self._report = report
        self._fail = fail
        self._every = every
        self._runs = False
        self._known = False  # something has been reported that still counts
        self._failures = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read at once, and then at its pace, until cancelled. Started: it has been read."""
        self._runs = True
        try:
            self.read_now()
            task_status.started()
            while True:
                await _sleep_until_due(self._every)
                self.read_now()
        finally:
            self._runs = False

    def read_now(self) -> None:
        """Read between two readings: much has come free, and others need not wait for the next.

        It has been reported when this returns. Nothing happens unless it runs and is on.
        """
        if not self._runs:
            return
        reading = None
        try:
            if self._every():
                reading = _checked(self._read())
            self._failures = 0
        except Exception as error:  # psutil's, the system's, or a user's own backend's
            self._failures += 1
            if self._failures == FAILURES_TOLERATED:
                self._known = False
                self._fail(error)
        if not self._failures and (reading is not None or self._known):
            self._report(reading)
            self._known = reading is not None


async def _sleep_until_due(every: Callable[[], float | None]) -> None:
    """Sleep through one pace; of a new one that comes meanwhile, what is left of that."""
    began = trio.current_time()
    left = every() or _IDLE_SECONDS
    while left > 0:
        await trio.sleep(min(left, _IDLE_SECONDS))
        left = began + (every() or _IDLE_SECONDS) - trio.current_time()


def _checked(reading: object) -> MemoryReading | None:
    if reading is None or isinstance(reading, MemoryReading):
        return reading
    raise TypeError(f"memory_reading() must return a MemoryReading or None, not {reading!r}")
