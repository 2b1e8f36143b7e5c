"""The other ways to admit work that the manager is compared with.

Each is ordinary code that does the manager's arithmetic: a bare trio mailbox (the round trip
alone), a counter under `asyncio.Condition` and under `threading.Condition`, and a plain port of
the algorithm that the Swift manager has.
"""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import trio
import trio.testing

#: One of these is what every ticket here holds.
SIZE = 1024
#: No timed part takes longer, whatever number of pairs it was to measure.
MOST_SECONDS = 5.0


class Meter:
    """Seconds for a number of pairs, with neither the set-up nor the tidying up in them."""

    def __init__(self, pairs: int, *, collector: bool = True):
        """`collector`: Python's garbage collector runs meanwhile, as it does in a program."""
        self._pairs = pairs
        self._collector = collector
        self._counted = 0
        self._ended = 0.0
        self._done = trio.Event()

    def count(self) -> None:
        """A pair is over."""
        self._counted += 1
        if self._counted == self._pairs:
            self._ended = time.perf_counter()
            self._done.set()

    async def measure(self, go: Callable[[], object]) -> float:
        """Seconds a pair, from `go()` on, which lets those loop who now wait for it.

        They go on when the measure is over: only a steady state is seen.
        """
        gc.collect()
        if not self._collector:
            gc.disable()
        try:
            began = time.perf_counter()
            go()
            with trio.move_on_after(MOST_SECONDS):
                await self._done.wait()
            ended = self._ended or time.perf_counter()
        finally:
            gc.enable()
        return (ended - began) / max(self._counted, 1)


@attrs.frozen
class Contention:
    """What tasks saw that loop over start and end: a rate, and the longest wait in seconds."""

    tasks: int
    pairs_per_second: float
    longest: float

    @property
    def longest_in_turns(self) -> float:
        """1 is what each wait would be if everybody came in turn."""
        return self.longest * self.pairs_per_second / self.tasks


# -- the bare mailbox


@asynccontextmanager
async def open_bare() -> AsyncIterator[trio.MemorySendChannel[trio.Event]]:
    """An actor that does nothing but answer: put an event into its mailbox and await it."""
    send, receive = trio.open_memory_channel[trio.Event](float("inf"))

    async def serve() -> None:
        async for event in receive:
            event.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield send
        nursery.cancel_scope.cancel()


async def bare_round_trip(send: trio.MemorySendChannel[trio.Event]) -> None:
    event = trio.Event()
    send.send_nowait(event)
    await event.wait()


async def bare_pairs(tasks: int, pairs: int) -> float:
    """Seconds a pair of bare round trips takes, with so many tasks."""
    meter, gate = Meter(pairs), trio.Event()

    async def client(send: trio.MemorySendChannel[trio.Event]) -> None:
        await gate.wait()
        while True:
            await bare_round_trip(send)
            await bare_round_trip(send)
            meter.count()

    async with open_bare() as send, trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(client, send)
        await trio.testing.wait_all_tasks_blocked()
        seconds = await meter.measure(gate.set)
        nursery.cancel_scope.cancel()
    return seconds


# -- counters under a condition


def asyncio_contention(tasks: int, room: int, pairs: int) -> Contention:
    """A counter under `asyncio.Condition`: `tasks` tasks share room for `room`."""

    async def main() -> Contention:
        used, longest, turns = 0, 0.0, iter(range(pairs))
        condition = asyncio.Condition()

        def fits() -> bool:
            return used + SIZE <= room * SIZE

        async def client() -> None:
            nonlocal used, longest
            for _ in turns:  # all draw from the one iterator
                asked = time.perf_counter()
                async with condition:
                    await condition.wait_for(fits)
                    used += SIZE
                longest = max(longest, time.perf_counter() - asked)
                await asyncio.sleep(0)
                async with condition:
                    used -= SIZE
                    condition.notify_all()

        gc.collect()
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(client())
        return Contention(tasks, pairs / (time.perf_counter() - began), longest)

    return asyncio.run(main())


def threading_contention(tasks: int, room: int, pairs: int) -> Contention:
    """A counter under `threading.Condition`, with a thread for each task."""
    used, turns = 0, iter(range(pairs))
    condition, barrier = threading.Condition(), threading.Barrier(tasks + 1)
    longest = [0.0] * tasks

    def fits() -> bool:
        return used + SIZE <= room * SIZE

    def client(number: int) -> None:
        nonlocal used
        barrier.wait()
        for _ in turns:
            asked = time.perf_counter()
            with condition:
                condition.wait_for(fits)
                used += SIZE
            longest[number] = max(longest[number], time.perf_counter() - asked)
            time.sleep(0)
            with condition:
                used -= SIZE
                condition.notify_all()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(tasks)]
    for thread in threads:
        thread.start()
    gc.collect()
    barrier.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return Contention(tasks, pairs / (time.perf_counter() - began), max(longest))


# -- the algorithm of the Swift manager


class PlainPort:
    """Sums over all tickets at each start; each end wakes all who wait, and each looks again."""

    def __init__(self, cap: int):
        self.limit = 0
        self._cap = cap
        self._tickets: dict[object, int] = {}
        self._waiters: dict[object, trio.Event] = {}

    async def start(self, ticket: object, size: int) -> int:
        await trio.lowlevel.checkpoint()
        while sum(self._tickets.values()) + size > self._cap:
            self._waiters[ticket] = woken = trio.Event()
            await woken.wait()
        self._tickets[ticket] = size
        return self._recompute()

    def end(self, ticket: object) -> int:
        del self._tickets[ticket]
        limit = self._recompute()
        waiters, self._waiters = self._waiters, {}
        for woken in waiters.values():
            woken.set()
        return limit

    def _recompute(self) -> int:
        self.limit = min(sum(self._tickets.values()), self._cap)
        return self.limit


async def port_waiting(waiters: int, room: int, pairs: int) -> float:
    """Seconds a pair takes in the plain port while `waiters` wait."""
    manager, meter, gate = PlainPort(room * SIZE), Meter(pairs), object()

    async def client() -> None:
        while True:
            ticket = object()
            await manager.start(ticket, SIZE)
            await trio.lowlevel.checkpoint()
            manager.end(ticket)
            meter.count()

    await manager.start(gate, room * SIZE)
    async with trio.open_nursery() as nursery:
        for _ in range(waiters + room):
            nursery.start_soon(client)
        await trio.testing.wait_all_tasks_blocked()
        seconds = await meter.measure(lambda: manager.end(gate))
        nursery.cancel_scope.cancel()
    return seconds
