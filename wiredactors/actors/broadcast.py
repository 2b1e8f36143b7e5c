"""One stream of events to any number of subscribers, none of whom can block the sender."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from threading import get_ident

import trio

from wiredactors.actors.mailbox import Mailbox, wrong_thread
from wiredactors.memory.events import EventKind, Snapshot, WiredMemoryEvent


class EventStream:
    """What one subscriber reads: `async for event in stream`.

    It gives way to other tasks only when there is nothing to read: at one event a turn of the
    event loop nobody could keep up with a manager that makes hundreds.
    """

    def __init__(self, buffer: int):
        """`buffer` is how many events it may lag behind, when a turn begins, and miss none."""
        self._buffer = buffer
        self._mailbox: Mailbox[WiredMemoryEvent] = Mailbox()
        self._ended = False
        self._behind = False  # too far, when the turn began
        self._missed = 0
        self._last_missed: WiredMemoryEvent | None = None
        self._thread = get_ident()

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> WiredMemoryEvent:
        items = self._mailbox.items
        if items:
            return items.popleft()
        while True:
            try:
                return self.receive_nowait()
            except trio.WouldBlock:
                if get_ident() != self._thread:
                    raise wrong_thread() from None
                await self._mailbox.wait()
            except trio.EndOfChannel:
                await trio.lowlevel.checkpoint()
                raise StopAsyncIteration from None

    def receive_nowait(self) -> WiredMemoryEvent:
        """The next event.

        Raises:
            trio.WouldBlock: there is none yet.
            trio.EndOfChannel: there will be none.
        """
        if self._mailbox.items:
            return self._mailbox.items.popleft()
        if self._last_missed is not None:
            return self._take_missed(self._last_missed)
        raise trio.EndOfChannel if self._ended else trio.WouldBlock

    # -- for the broadcast

    def begin_turn(self) -> None:
        """See whether it has fallen behind too far; what one turn brings counts against nobody."""
        # The record of the lost ones goes first, so there must be room for both.
        room = self._buffer - (self._last_missed is not None)
        self._behind = len(self._mailbox.items) >= room

    def put(self, event: WiredMemoryEvent) -> None:
        """Add an event, or count it as missed where it has fallen behind too far."""
        if self._behind:
            self._missed += 1
            self._last_missed = event
            return
        if self._last_missed is not None:
            self._mailbox.put(self._take_missed(self._last_missed))
        self._mailbox.put(event)

    def _take_missed(self, last: WiredMemoryEvent) -> WiredMemoryEvent:
        """The record of what was lost since the last one."""
        missed, self._missed, self._last_missed = self._missed, 0, None
        return WiredMemoryEvent(
            kind=EventKind.MISSED,
            sequence=last.sequence,
            timestamp=last.timestamp,
            active_count=last.active_count,
            waiter_count=last.waiter_count,
            missed=missed,
        )

    def end(self) -> None:
        """There will be no more; what has come can still be read."""
        self._ended = True
        self._mailbox.wake()


class Broadcast:
    """Sends each event to every subscriber's own bounded buffer.

    Events come in turns, between which subscribers can read. One whose buffer is full when a turn
    begins loses the events of that turn, and is told how many in a `missed` record in their place.
    """

    def __init__(self, listen: Callable[[bool], None] | None = None):
        """`listen` is told whether anybody subscribes, whenever that may have changed."""
        self._listen = listen
        self._streams: list[EventStream] = []
        self._closed = False
        self._tell_listening()

    def begin_turn(self) -> None:
        """What is sent from here on comes at once: nobody can read amid it."""
        for stream in self._streams:
            stream.begin_turn()

    def send(self, event: WiredMemoryEvent) -> None:
        for stream in self._streams:
            stream.put(event)

    @contextlib.asynccontextmanager
    async def subscribe(
        self, snapshot: Callable[[], Snapshot], now: float, *, buffer: int
    ) -> AsyncIterator[EventStream]:
        """A stream that begins with a snapshot and has every event after it.

        On a closed broadcast the stream ends at once.
        """
        # One more than the buffer for the snapshot, so that it counts against nobody.
        stream = EventStream(buffer + 1)
        if self._closed:
            stream.end()
        else:
            state = snapshot()
            stream.put(
                WiredMemoryEvent(
                    kind=EventKind.SNAPSHOT,
                    sequence=state.sequence,
                    timestamp=now,
                    baseline=state.baseline,
                    applied_limit=state.current_limit,
                    active_count=len(state.tickets),
                    waiter_count=len(state.waiters),
                    snapshot=state,
                )
            )
            self._streams.append(stream)
            self._tell_listening()
        try:
            yield stream
        finally:
            if stream in self._streams:
                self._streams.remove(stream)
                self._tell_listening()
            stream.end()

    def _tell_listening(self) -> None:
        if self._listen is not None:
            self._listen(bool(self._streams))

    def end_streams(self) -> None:
        """End every stream, after what its subscriber has not read yet."""
        for stream in self._streams:
            stream.end()
        self._streams.clear()
        self._tell_listening()

    def close(self) -> None:
        """End every stream, and those that are opened from now on at once."""
        self._closed = True
        self.end_streams()
