"""Events go to any number of subscribers, and none of them can hold up the sender."""

from __future__ import annotations

import pytest
import trio

from wiredactors.actors.broadcast import Broadcast
from wiredactors.memory.events import EventKind, Snapshot, WiredMemoryEvent


def event(number: int) -> WiredMemoryEvent:
    return WiredMemoryEvent(kind=EventKind.TICKET_STARTED, sequence=number, timestamp=0.0)


def snapshot() -> Snapshot:
    return Snapshot(
        sequence=0,
        baseline=3,
        current_limit=5,
        desired_limit=5,
        ceiling=None,
        tickets=(),
        waiters=(),
    )


def send(broadcast: Broadcast, number: int) -> None:
    """An event in a turn of its own."""
    broadcast.begin_turn()
    broadcast.send(event(number))


def subscribe(broadcast: Broadcast, buffer: int = 10):
    return broadcast.subscribe(snapshot, 1.5, buffer=buffer)


async def test_every_subscriber_gets_a_snapshot_and_then_every_event():
    broadcast = Broadcast()
    async with subscribe(broadcast) as one:
        send(broadcast, 1)
        async with subscribe(broadcast) as other:
            send(broadcast, 2)
            broadcast.close()
            read = [e async for e in one]
            assert [e.sequence for e in read] == [0, 1, 2]
            assert (read[0].kind, read[0].timestamp, read[0].baseline) == ("snapshot", 1.5, 3)
            assert [e.sequence async for e in other] == [0, 2]


async def test_a_slow_one_is_told_how_many_it_missed_where_they_would_have_stood():
    broadcast = Broadcast()
    async with subscribe(broadcast, buffer=3) as stream:
        for number in range(1, 9):
            send(broadcast, number)
        assert [stream.receive_nowait().sequence for _ in range(4)] == [0, 1, 2, 3]
        send(broadcast, 9)
        missed, following = stream.receive_nowait(), stream.receive_nowait()
        assert (missed.kind, missed.missed, missed.sequence) == ("missed", 5, 8)
        assert following.sequence == 9


async def test_a_turn_larger_than_the_buffer_is_missed_by_nobody_who_was_not_behind_before():
    broadcast = Broadcast()
    async with subscribe(broadcast, buffer=3) as stream:
        broadcast.begin_turn()
        for number in range(1, 51):
            broadcast.send(event(number))
        send(broadcast, 51)
        assert [stream.receive_nowait().sequence for _ in range(51)] == list(range(51))
        assert (missed := stream.receive_nowait()).missed == 1
        assert missed.sequence == 51


async def test_it_is_told_also_when_the_stream_ends_first():
    broadcast = Broadcast()
    async with subscribe(broadcast, buffer=1) as stream, subscribe(broadcast, buffer=1) as other:
        for number in range(1, 5):
            send(broadcast, number)
        broadcast.close()
        read = [e async for e in stream]
        assert [e.kind for e in read] == ["snapshot", "ticket_started", "missed"]
        assert (read[-1].missed, read[-1].sequence) == (3, 4)
        assert [other.receive_nowait().missed for _ in range(3)] == [None, None, 3]
        with pytest.raises(trio.EndOfChannel):
            other.receive_nowait()


async def test_a_slow_one_costs_the_others_nothing():
    broadcast = Broadcast()
    async with subscribe(broadcast, buffer=1), subscribe(broadcast, buffer=100) as quick:
        for number in range(1, 50):
            send(broadcast, number)
        assert [quick.receive_nowait().sequence for _ in range(50)] == list(range(50))


async def test_one_that_has_left_gets_nothing_and_costs_nothing():
    broadcast = Broadcast()
    with pytest.raises(KeyError):
        async with subscribe(broadcast):
            raise KeyError
    send(broadcast, 1)
    assert broadcast._streams == []


async def test_on_a_closed_one_a_stream_ends_at_once():
    broadcast = Broadcast()
    broadcast.close()
    async with subscribe(broadcast) as stream:
        assert [e async for e in stream] == []


async def test_ended_streams_can_be_followed_by_new_ones():
    broadcast = Broadcast()
    async with subscribe(broadcast) as stream:
        broadcast.end_streams()
        assert [e.kind async for e in stream] == ["snapshot"]
    async with subscribe(broadcast) as stream:
        send(broadcast, 1)
        assert [stream.receive_nowait().sequence for _ in range(2)] == [0, 1]
