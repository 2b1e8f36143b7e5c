"""Owners of caches give them up when asked, and outside pressure reaches admission."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import wiredactors as wa
from wiredactors.testing import RecordingBackend

SUM100 = wa.WiredSumPolicy(cap=100)
SETTINGS = wa.WiredMemoryConfiguration(admission_ceiling=100)


pytestmark = pytest.mark.usefixtures("bounded")


class Cache:
    """A kept prefix cache as a user would write one: a task that gives it up when asked."""

    def __init__(self, size: int):
        self.ticket = SUM100.ticket(size, kind="reservation", reclaimable=True)
        self.held = False
        self.freeing = trio.Event()
        self.may_end = trio.Event()

    async def keep(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> bool:
        await self.ticket.start()
        self.held = True
        task_status.started()
        asked = await self.ticket.wait_for_reclaim()
        if asked:
            self.freeing.set()
            await self.may_end.wait()
            self.held = False
            await self.ticket.end()
        return asked


async def test_an_owner_that_is_asked_frees_its_cache_and_the_job_comes_in_then(autojump_clock):
    async with wa.open_manager(SETTINGS), trio.open_nursery() as nursery:
        cache = Cache(60)
        await nursery.start(cache.keep)
        job = SUM100.ticket(70)

        async def run():
            async with job.wired_limit():
                assert not cache.held, "the bytes were granted before they were free"

        nursery.start_soon(run)
        await cache.freeing.wait()
        await wait_all_tasks_blocked()
        cache.may_end.set()


async def test_without_pressure_nobody_is_asked_and_an_end_ends_the_wait(autojump_clock):
    async with wa.open_manager(SETTINGS) as manager, trio.open_nursery() as nursery:
        cache = Cache(60)
        answers = []

        async def keep():
            answers.append(await cache.keep())

        nursery.start_soon(keep)
        await wait_all_tasks_blocked()
        async with SUM100.ticket(40).wired_limit():
            pass
        assert answers == []
        await cache.ticket.end()
        await wait_all_tasks_blocked()
        assert answers == [False]
        assert manager._asked == {}


async def test_one_that_asks_late_is_told_at_once(autojump_clock):
    async with wa.open_manager(SETTINGS), trio.open_nursery() as nursery:
        ticket = SUM100.ticket(60, kind="reservation", reclaimable=True)
        await ticket.start()
        nursery.start_soon(SUM100.ticket(70).start)
        await wait_all_tasks_blocked()
        assert await ticket.wait_for_reclaim()
        await ticket.end()


async def test_closing_the_manager_ends_the_wait(autojump_clock):
    async with trio.open_nursery() as nursery:
        async with wa.open_manager(SETTINGS):
            ticket = SUM100.ticket(60, kind="reservation", reclaimable=True)
            await ticket.start()
            answers = []

            async def wait():
                answers.append(await ticket.wait_for_reclaim())

            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert answers == [False]


async def test_one_that_never_started_has_nobody_to_ask_it():
    with pytest.raises(wa.NoManager):
        await SUM100.ticket(1, kind="reservation", reclaimable=True).wait_for_reclaim()


async def test_a_touch_makes_it_yield_last(autojump_clock):
    async with wa.open_manager(SETTINGS) as manager:
        first = SUM100.ticket(40, kind="reservation", reclaimable=True)
        second = SUM100.ticket(40, kind="reservation", reclaimable=True)
        first.touch()  # it does not run yet: nothing
        await first.start()
        await second.start()
        first.touch()
        with trio.move_on_after(1):
            await SUM100.ticket(40).start()
        asked = [t.ticket_id for t in manager.snapshot().tickets if t.asked]
        assert asked == [second.id]


class TestWatching:
    async def test_what_others_take_keeps_tickets_out_until_they_give_it_back(self, autojump_clock):
        backend = RecordingBackend(60, total_memory=100)
        backend.reading = wa.MemoryReading(100, 100, 0)
        async with wa.open_manager(backend=backend) as manager, trio.open_nursery() as nursery:
            await wait_all_tasks_blocked()
            backend.reading = wa.MemoryReading(100, 20, 0)
            await trio.sleep(6)
            assert manager.snapshot().excess_bytes == 40
            ticket = wa.WiredSumPolicy().ticket(30)
            nursery.start_soon(ticket.start)
            await wait_all_tasks_blocked()
            assert "used outside" in manager.explain(ticket.id).reason
            backend.reading = wa.MemoryReading(100, 100, 0)
            await trio.sleep(6)
            assert manager.explain(ticket.id).state == "running"

    async def test_it_is_read_before_the_first_ticket_comes_in(self, autojump_clock):
        backend = RecordingBackend(60, total_memory=100)
        backend.reading = wa.MemoryReading(100, 20, 0)
        async with wa.open_manager(backend=backend):
            with trio.move_on_after(3) as scope:
                await wa.WiredSumPolicy().ticket(30).start()
            assert scope.cancelled_caught

    async def test_it_can_be_switched_off(self, autojump_clock):
        backend = RecordingBackend(60, total_memory=100)
        backend.reading = wa.MemoryReading(100, 20, 0)
        settings = wa.WiredMemoryConfiguration(watch_seconds=0)
        async with wa.open_manager(settings, backend=backend):
            await wa.WiredSumPolicy().ticket(30).start()
            await trio.sleep(100)

    async def test_a_source_that_fails_is_told_once(self, autojump_clock):
        class Blind(RecordingBackend):
            def memory_reading(self):
                raise OSError("no /proc here")

        told = []
        async with wa.open_manager(backend=Blind(60)) as manager, manager.events() as events:
            with trio.move_on_after(60):
                async for event in events:
                    told.append(event)  # noqa: PERF401  # it never ends by itself
        assert [(e.kind.value, e.error) for e in told[1:]] == [
            ("outside_pressure", "OSError: no /proc here")
        ]
