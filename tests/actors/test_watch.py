"""Memory is read at a slow pace, and a reading that fails harms nobody, but not in silence."""

from __future__ import annotations

import pytest
import trio

from wiredactors.actors.watch import FAILURES_TOLERATED, MemoryWatch
from wiredactors.memory.outside import MemoryReading

ONE, OTHER = MemoryReading(100, 90, 5), MemoryReading(100, 20, 5)


class Watched:
    """A watch with what it has read and told, and when."""

    def __init__(self, seconds=5.0):
        self.seconds = seconds
        self.reading = ONE  # an exception is raised
        self.read_at = []
        self.told = []
        self.watch = MemoryWatch(
            self.read, self.told.append, self.told.append, lambda: self.seconds
        )

    def read(self):
        self.read_at.append(trio.current_time())
        if isinstance(self.reading, Exception):
            raise self.reading
        return self.reading

    def take_told(self):
        told = self.told.copy()
        self.told.clear()
        return told

    async def run(self):
        await self.watch.run()


@pytest.fixture
async def watched(autojump_clock, nursery):
    """It has read once already, at time 0; the test looks between two readings from then on."""
    watched = Watched()
    nursery.start_soon(watched.run)
    await trio.sleep(1)
    return watched


async def test_it_reads_at_once_and_then_every_so_many_seconds(autojump_clock, watched):
    assert watched.read_at == [0]
    await trio.sleep(12)
    assert watched.read_at == [0, 5, 10]
    assert watched.told == [ONE, ONE, ONE]


async def test_another_pace_holds_from_the_next_reading_on(autojump_clock, watched):
    watched.seconds = 2
    await trio.sleep(8.5)
    assert watched.read_at == [0, 5, 7, 9]


async def test_after_a_slow_pace_a_quick_one_holds_soon(autojump_clock, nursery):
    watched = Watched(seconds=3600)
    nursery.start_soon(watched.run)
    await trio.sleep(61)
    watched.seconds = 5
    await trio.sleep(10)
    assert watched.read_at == [0, 65, 70]
    watched.seconds = 3600
    await trio.sleep(3650)
    assert watched.read_at == [0, 65, 70, 3670]


async def test_a_slow_pace_can_be_switched_off_soon(autojump_clock, nursery):
    watched = Watched(seconds=3600)
    nursery.start_soon(watched.run)
    await trio.sleep(61)
    watched.seconds = 0
    await trio.sleep(10)
    assert (watched.read_at, watched.told) == ([0], [ONE, None])


@pytest.mark.parametrize("off", [0, None])
async def test_it_can_be_off_and_come_on(autojump_clock, nursery, off):
    watched = Watched(seconds=off)
    nursery.start_soon(watched.run)
    await trio.sleep(31)
    assert (watched.read_at, watched.told) == ([], [])
    watched.seconds = 3
    await trio.sleep(11)
    assert watched.read_at == [35, 38, 41]


@pytest.mark.parametrize("off", [0, None])
async def test_switching_it_off_says_once_that_nothing_is_known_any_more(
    autojump_clock, watched, off
):
    watched.seconds = off
    await trio.sleep(60)
    assert watched.read_at == [0]
    assert watched.told == [ONE, None]


async def test_a_source_that_knows_nothing_is_told_of_once_and_only_after_a_reading(
    autojump_clock, watched
):
    watched.reading = None
    await trio.sleep(20)
    assert watched.take_told() == [ONE, None]
    watched.reading = OTHER
    await trio.sleep(5)
    assert watched.told == [OTHER]


async def test_a_source_that_never_knew_anything_is_not_told_of(autojump_clock, nursery):
    watched = Watched()
    watched.reading = None
    nursery.start_soon(watched.run)
    await trio.sleep(61)
    assert len(watched.read_at) == 13
    assert watched.told == []


async def test_a_reading_that_fails_now_and_then_is_passed_over(autojump_clock, watched):
    for _ in range(4):
        watched.reading = OSError("not now")
        await trio.sleep(5 * (FAILURES_TOLERATED - 1))
        watched.reading = OTHER
        await trio.sleep(5)
    assert watched.told == [ONE, *[OTHER] * 4]


async def test_when_it_goes_on_failing_that_is_told_once_and_it_goes_on(autojump_clock, watched):
    watched.reading = error = OSError("no memory here")
    await trio.sleep(5 * (FAILURES_TOLERATED - 1))
    assert watched.take_told() == [ONE]
    await trio.sleep(500)
    assert watched.take_told() == [error]
    watched.reading = OTHER
    await trio.sleep(5)
    assert watched.take_told() == [OTHER]
    watched.reading = error
    await trio.sleep(500)
    assert watched.told == [error]


async def test_a_source_that_fails_from_the_beginning_is_told_of_too(autojump_clock, nursery):
    watched = Watched()
    watched.reading = error = PermissionError("never")
    nursery.start_soon(watched.run)
    await trio.sleep(500)
    assert watched.told == [error]


async def test_nothing_is_known_after_a_failure_so_switching_off_says_nothing_more(
    autojump_clock, watched
):
    watched.reading = error = OSError("no memory here")
    await trio.sleep(50)
    watched.seconds = 0
    await trio.sleep(50)
    assert watched.told == [ONE, error]


async def test_it_reads_when_it_is_asked_to_and_keeps_its_pace(autojump_clock, watched):
    watched.reading = OTHER
    watched.watch.read_now()
    assert watched.told == [ONE, OTHER]
    await trio.sleep(5)
    assert watched.read_at == [0, 1, 5]


async def test_nothing_is_read_for_asking_while_it_is_off_or_does_not_run(autojump_clock):
    watched = Watched(seconds=0)
    watched.watch.read_now()
    with trio.move_on_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched.run)
            await trio.sleep(0.5)
            watched.watch.read_now()
    watched.seconds = 5
    watched.watch.read_now()
    assert (watched.read_at, watched.told) == ([], [])


async def test_a_reading_that_was_asked_for_may_fail_as_any_other(autojump_clock, watched):
    watched.reading = error = OSError("not now")
    for _ in range(FAILURES_TOLERATED + 1):
        watched.watch.read_now()
    assert watched.told == [ONE, error]


async def test_a_cancellation_ends_it(autojump_clock):
    watched = Watched()
    with trio.move_on_after(7) as scope:
        await watched.run()
    assert scope.cancelled_caught
    assert watched.read_at == [0, 5]
