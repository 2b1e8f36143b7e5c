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


async def watch_memory(
    read: Callable[[], MemoryReading | None],
    report: Callable[[MemoryReading | None], object],
    fail: Callable[[Exception], object],
    every: Callable[[], float | None],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Read at once, and then every `every()` seconds, until cancelled. Started: it has been read.

    Args:
        read: called on the trio thread, so it must not block; None where nothing is known.
        report: gets each reading. After readings it gets None, once, when nothing is known any
            more: the source says so, or it was switched off.
        fail: gets the error, once, when `FAILURES_TOLERATED` readings in a row have failed.
            Nothing is known then either, and `report` is not called for that.
        every: asked before each reading, and every few seconds; None or 0 is off.
    """
    known = False  # something has been reported that still counts
    failures = 0
    started = False
    while True:
        seconds = every()
        reading = None
        try:
            if seconds:
                reading = _checked(read())
            failures = 0
        except Exception as error:  # psutil's, the system's, or a user's own backend's
            failures += 1
            if failures == FAILURES_TOLERATED:
                known = False
                fail(error)
        if not failures and (reading is not None or known):
            report(reading)
            known = reading is not None
        if not started:
            task_status.started()
            started = True
        await _sleep_until_due(every)


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
