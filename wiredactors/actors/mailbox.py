"""A mailbox: a queue with one reader, who is woken when something comes.

trio's memory channel does the same for any number of readers and writers with a bound. The
manager's is written and read for every ticket, and half of what a ticket costs would be the channel
(measured); so this one does only what it needs.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Put things in from any task of the loop; one task waits for them and takes them out.

    Attributes:
        items: what has come and was not taken out yet, the oldest first.
    """

    __slots__ = ("_reader", "items")

    def __init__(self) -> None:
        self.items: deque[T] = deque()
        self._reader: trio.lowlevel.Task | None = None

    def put(self, item: T) -> None:
        """Add `item`, and wake the reader."""
        self.items.append(item)
        if self._reader is not None:
            self.wake()

    def wake(self) -> None:
        """Let the reader return from `wait` though nothing may have come."""
        reader = self._reader
        if reader is not None:
            trio.lowlevel.reschedule(reader)
            self._reader = None  # not before: who fails to wake it must not lose it

    async def wait(self) -> None:
        """Return when there is something, or when woken.

        Others have run by then, also where something was there from the start.

        Raises:
            trio.BusyResourceError: another task waits already.
        """
        if self.items:
            await trio.lowlevel.checkpoint()
            return
        if self._reader is not None:
            raise trio.BusyResourceError("another task reads here already")
        self._reader = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._leave)

    def _leave(self, _: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED


def wrong_thread() -> RuntimeError:
    """What is raised where a task of one event loop would wake, or wait in, another loop."""
    return RuntimeError(
        "this belongs to the event loop of another thread: call it there, through "
        "trio.from_thread.run_sync(), or trio.from_thread.run() where it is async"
    )
