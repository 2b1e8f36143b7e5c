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


class EventStream:
    """What one subscriber reads: `async for event in stream`."""

    def __init__(self, receive: trio.MemoryReceiveChannel[WiredMemoryEvent]):
        self._receive = receive

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> WiredMemoryEvent:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def receive_nowait(self) -> WiredMemoryEvent:
        """The next event if there is one; raises `trio.WouldBlock` or `trio.EndOfChannel`."""
        return self._receive.receive_nowait()


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
        if statistics.tasks_waiting_receive:
            room += 1
        if room < (2 if subscriber.missed else 1):
            subscriber.missed += 1
            return
        if subscriber.missed:
            subscriber.send.send_nowait(_missed(subscriber.missed, event))
            subscriber.missed = 0
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
                yield EventStream(receive)
        finally:
            if subscriber in self._subscribers:
                self._subscribers.remove(subscriber)
            send.close()

    def close(self) -> None:
        """End every stream, after what its subscriber has not read yet."""
        self._closed = True
        for subscriber in self._subscribers:
            subscriber.send.close()
        self._subscribers.clear()


def _missed(count: int, before: WiredMemoryEvent) -> WiredMemoryEvent:
    return attrs.evolve(
        WiredMemoryEvent(
            kind=EventKind.MISSED,
            sequence=before.sequence - 1,
            timestamp=before.timestamp,
            active_count=before.active_count,
            waiter_count=before.waiter_count,
        ),
        missed=count,
    )
