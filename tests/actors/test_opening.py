"""A process has one open manager, and opening it imports no MLX."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import wiredactors as wa
from wiredactors.actors.opening import memory_reader
from wiredactors.engine.machine import read_host_memory
from wiredactors.memory.outside import MemoryReading
from wiredactors.memory.tickets import open_manager_slot
from wiredactors.testing import RecordingBackend

POLICY = wa.WiredSumPolicy(cap=100)


class Backend:
    supported = True

    def __init__(self):
        self.writes = []

    def recommended_working_set_bytes(self):
        return 1000

    def set_wired_limit(self, limit):
        self.writes.append(limit)


async def test_a_second_one_is_an_error_and_leaves_the_first_alone():
    async with wa.open_manager(backend=Backend()) as manager:
        with pytest.raises(wa.ManagerAlreadyOpen):
            async with wa.open_manager(backend=Backend()):
                pytest.fail("it opened")
        assert open_manager_slot.manager is manager
        assert await POLICY.ticket(10).start() == 10


@pytest.mark.parametrize("configuration", [{"max_waiters": 5}, {}, 5])
async def test_a_configuration_that_is_none_is_an_error(configuration):
    with pytest.raises(TypeError, match="open it with a WiredMemoryConfiguration, not "):
        async with wa.open_manager(configuration):
            pytest.fail("it is open")
    async with wa.open_manager():
        pass


async def test_one_after_the_other_is_none():
    for _ in range(2):
        async with wa.open_manager(backend=Backend()):
            assert await POLICY.ticket(10).start() == 10
    assert open_manager_slot.manager is None


async def test_a_ticket_may_start_in_the_next_one():
    ticket = POLICY.ticket(10)
    for _ in range(2):
        async with wa.open_manager(backend=Backend()) as manager:
            await ticket.start()
            assert [t.ticket_id for t in manager.snapshot().tickets] == [ticket.id]


async def test_without_one_a_ticket_cannot_start_and_its_end_in_a_finally_is_quiet():
    ticket = POLICY.ticket(10)
    with pytest.raises(wa.NoManager):
        await ticket.start()
    with pytest.raises(wa.NoManager):
        async with ticket.wired_limit():
            pytest.fail("the body ran")
    with pytest.raises(wa.NoManager):
        await ticket.end()
    ticket.end_nowait()
    assert await ticket.resize(20) == 0
    assert ticket.size == 20


@pytest.mark.parametrize("error", [ValueError("mine"), ExceptionGroup("mine", [KeyError()])])
async def test_an_exception_of_the_body_leaves_bare(error):
    with pytest.raises(type(error)) as raised:
        async with wa.open_manager(backend=Backend()):
            raise error
    assert raised.value is error


async def test_it_does_so_also_in_a_cancelled_scope():
    with pytest.raises(ValueError, match="mine"), trio.CancelScope() as scope:  # noqa: PT012  # what raises is the block as a whole
        async with wa.open_manager(backend=Backend()):
            scope.cancel()
            raise ValueError("mine")


async def test_a_backend_that_fails_at_opening_leaves_nothing_open():
    class Broken(Backend):
        def recommended_working_set_bytes(self):
            raise OSError("no device")

    with pytest.raises(OSError, match="no device"):
        async with wa.open_manager(backend=Broken()):
            pytest.fail("it opened")
    async with wa.open_manager(backend=Backend()):
        pass


async def test_the_default_ceiling_is_what_the_device_recommends():
    async with wa.open_manager(backend=Backend()) as manager:
        assert manager.snapshot().ceiling == 1000


async def test_without_a_device_that_has_a_limit_the_same_is_decided():
    async with wa.open_manager() as manager:
        assert await POLICY.ticket(10).start() == 10
        assert manager.snapshot().ceiling > 0


async def test_a_foreign_write_becomes_an_event_in_the_managers_own_loop():
    async with wa.open_manager(backend=Backend()) as manager, manager.events() as events:
        manager.report_foreign_write(77)
        await wait_all_tasks_blocked()
        assert (await anext(events)).kind == "snapshot"
        event = await anext(events)
        assert (event.kind, event.desired_limit) == ("foreign_limit_write", 77)


def test_memory_is_read_by_the_backend_or_from_the_host_but_not_for_a_pretended_total():
    class Pretending(Backend):
        def total_memory_bytes(self):
            return 2000

    class Reading(Pretending):
        def memory_reading(self):
            return MemoryReading(2000, 1500, 10)

    assert memory_reader(Backend()) is read_host_memory
    assert memory_reader(Pretending()) is None
    assert memory_reader(Reading())() == MemoryReading(2000, 1500, 10)


async def test_memory_that_has_come_free_lets_someone_in_without_waiting_for_the_watch():
    class Reading(Backend):
        available = 100

        def total_memory_bytes(self):
            return 1100

        def memory_reading(self):
            return MemoryReading(1100, self.available, 0)

    backend = Reading()
    settings = wa.WiredMemoryConfiguration(watch_seconds=3600)
    async with wa.open_manager(settings, backend) as manager:
        ticket = wa.WiredSumPolicy().ticket(200)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ticket.start)
            await wait_all_tasks_blocked()
            assert len(manager.snapshot().waiters) == 1
            backend.available = 900
            manager.read_memory_now()
            await wait_all_tasks_blocked()
            assert not manager.snapshot().waiters
        await ticket.end()


def test_opening_imports_neither_mlx_nor_mlx_lm():
    program = """
import sys, trio
import wiredactors as wa
class Backend:
    supported = True
    def recommended_working_set_bytes(self): return 1000
    def set_wired_limit(self, limit): pass
async def main():
    async with wa.open_manager(backend=Backend()):
        async with wa.WiredSumPolicy().ticket(10).wired_limit():
            pass
trio.run(main)
print([name for name in sys.modules if name.split(".")[0] in ("mlx", "mlx_lm", "mlx_vlm")])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


async def test_a_backend_whose_reading_is_nonsense_is_told_of_and_harms_nobody(autojump_clock):
    class Nonsense(RecordingBackend):
        reads = 0

        def memory_reading(self):
            self.reads += 1
            return 5 if self.reads > 1 else None

    backend = Nonsense(100)
    async with wa.open_manager(backend=backend) as manager, manager.events() as events:
        async with wa.WiredSumPolicy().ticket(60).wired_limit() as limit:
            await trio.sleep(60)
            assert limit == backend.limit == 60
        errors = []
        with contextlib.suppress(trio.WouldBlock):
            while True:
                errors.append(events.receive_nowait().error)
    assert [error for error in errors if error] == [
        "TypeError: memory_reading() must return a MemoryReading or None, not 5"
    ]
    assert backend.limit == 0
