"""One stream of events to any number of subscribers, none of whom can block the sender."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import attrs
import trio

from wiredactors.memory.events import EventKind, Snapshot, WiredMemoryEvent


@attrs.define(eq=False)
class _Subscriber:
    send: trio.MemorySendChannel[WiredMemoryEvent]
    missed: int = 0
    last_missed: WiredMemoryEvent | None = None

    def miss(self, event: WiredMemoryEvent) -> None:
        self.missed += 1
        self.last_missed = event

    def take_missed(self) -> WiredMemoryEvent | None:
        """The record of what was lost since the last one."""
        missed, last = self.missed, self.last_missed
        self.missed, self.last_missed = 0, None
        if last is None:
            return None
        return WiredMemoryEvent(
            kind=EventKind.MISSED,
            sequence=last.sequence,
            timestamp=last.timestamp,
            active_count=last.active_count,
            waiter_count=last.waiter_count,
            missed=missed,
        )


class EventStream:
    """What one subscriber reads: `async for event in stream`.

    It gives way to other tasks only when there is nothing to read.
    """

    def __init__(
        self, receive: trio.MemoryReceiveChannel[WiredMemoryEvent], subscriber: _Subscriber
    ):
        self._receive = receive
        self._subscriber = subscriber

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> WiredMemoryEvent:
        # What is there is read in one go: at one event a turn of the event loop nobody could keep
        # up with a manager that makes hundreds.
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            with contextlib.suppress(trio.WouldBlock):
                return self._receive.receive_nowait()
            return await self._receive.receive()
        except trio.EndOfChannel:
            missed = self._subscriber.take_missed()
            if missed is None:
                raise StopAsyncIteration from None
            return missed

    def receive_nowait(self) -> WiredMemoryEvent:
        """The next event if there is one; raises `trio.WouldBlock` or `trio.EndOfChannel`."""
        try:
            return self._receive.receive_nowait()
        except trio.EndOfChannel:
            missed = self._subscriber.take_missed()
            if missed is None:
                raise
            return missed


class Broadcast:
    """Sends each event to every subscriber's own bounded buffer.

    A subscriber whose buffer is full loses events and is told how many, in a `missed` record
    that stands where they would have.
    """

    def __init__(self) -> None:
        self._subscribers: list[_Subscriber] = []
        self._closed = False

    def send(self, event: WiredMemoryEvent) -> None:
        for subscriber in self._subscribers:
            self._send_to(subscriber, event)

    def _send_to(self, subscriber: _Subscriber, event: WiredMemoryEvent) -> None:
        # The record of the lost ones goes first, so there must be room for both.
        statistics = subscriber.send.statistics()
        room = statistics.max_buffer_size - statistics.current_buffer_used
        if room < (2 if subscriber.missed else 1):
            subscriber.miss(event)
            return
        missed = subscriber.take_missed()
        if missed is not None:
            subscriber.send.send_nowait(missed)
        subscriber.send.send_nowait(event)

    @contextlib.asynccontextmanager
    async def subscribe(
        self, snapshot: Callable[[], Snapshot], now: float, *, buffer: int
    ) -> AsyncIterator[EventStream]:
        """A stream that begins with a snapshot and has every event after it.

        On a closed broadcast the stream ends at once.
        """
        # One more than the buffer for the snapshot, so that it counts against nobody.
        send, receive = trio.open_memory_channel[WiredMemoryEvent](buffer + 1)
        subscriber = _Subscriber(send)
        if self._closed:
            send.close()
        else:
            state = snapshot()
            send.send_nowait(
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
            self._subscribers.append(subscriber)
        try:
            with receive:
                yield EventStream(receive, subscriber)
        finally:
            if subscriber in self._subscribers:
                self._subscribers.remove(subscriber)
            send.close()

    def end_streams(self) -> None:
        """End every stream, after what its subscriber has not read yet."""
        for subscriber in self._subscribers:
            subscriber.send.close()
        self._subscribers.clear()

    def close(self) -> None:
        """End every stream, and those that are opened from now on at once."""
        self._closed = True
        self.end_streams()
