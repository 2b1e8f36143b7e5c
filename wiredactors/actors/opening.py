"""Opening and closing the one manager of a process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

import trio

from wiredactors.actors.manager import WiredMemoryManager
from wiredactors.actors.nursery import open_bare_nursery
from wiredactors.actors.protocol import LimitBackend
from wiredactors.actors.watch import MemoryWatch
from wiredactors.engine.backend import DeviceLimitBackend, device_memory
from wiredactors.engine.guard import LimitGuard
from wiredactors.engine.machine import host_memory_bytes, read_host_memory
from wiredactors.memory.configuration import WiredMemoryConfiguration, ceiling_of
from wiredactors.memory.errors import ManagerAlreadyOpen
from wiredactors.memory.outside import MemoryReading
from wiredactors.memory.tickets import open_manager_slot
from wiredactors.memory.units import checked_size


@contextlib.asynccontextmanager
async def open_manager(
    configuration: WiredMemoryConfiguration | None = None, backend: LimitBackend | None = None
) -> AsyncIterator[WiredMemoryManager]:
    """Open the process's one owner of the wired limit, for tickets round your own MLX code.

    While it is open, mlx-lm's own writers and any other write of the limit do not reach MLX and
    show up as events of kind `foreign_limit_write`. Leaving it ends what still runs, refuses what
    still waits (`ManagerClosed`), and restores the baseline.

    MLX wants its limit changed at a quiet point, never during an async evaluation, and under
    this function alone no quiet point can be made: start and end tickets between your
    evaluations, or pass a backend that waits for one.

    Args:
        configuration: see `WiredMemoryConfiguration`.
        backend: who sets the limit, called in the manager's own task, so it must not block;
            None is the device's. Where there is no limit to set (CPU, CUDA) the manager admits
            and decides all the same, and applies nothing.

    Raises:
        ManagerAlreadyOpen: one is open in this process: share it.
        GuardError: the installed mlx-lm sets the limit in a way that is not known.
    """
    with claimed_slot():
        async with open_manager_with(configuration, lambda guard: backend) as manager:
            yield manager


@contextlib.contextmanager
def claimed_slot() -> Iterator[None]:
    """Be the one in this process that opens a manager, until everything of it is closed again.

    Raises:
        ManagerAlreadyOpen: another is.
    """
    if not open_manager_slot.claim.acquire(blocking=False):
        raise ManagerAlreadyOpen(
            "a manager is open in this process, which has one wired limit: use that one"
        )
    try:
        yield
    finally:
        open_manager_slot.claim.release()


@contextlib.asynccontextmanager
async def open_manager_with(
    configuration: WiredMemoryConfiguration | None,
    backend_for: Callable[[LimitGuard], LimitBackend | None],
    pool_bytes: int = 0,
) -> AsyncIterator[WiredMemoryManager]:
    """As `open_manager`, with a backend that is made once there is a guard to write through.

    The caller has claimed the slot. `pool_bytes` is what the allocator's pool of freed buffers may
    hold besides all tickets.
    """
    configuration = WiredMemoryConfiguration() if configuration is None else configuration
    if not isinstance(configuration, WiredMemoryConfiguration):
        raise TypeError(f"open it with a WiredMemoryConfiguration, not {configuration!r}")
    trio_token = trio.lowlevel.current_trio_token()
    manager: WiredMemoryManager | None = None

    def report(limit: int) -> None:
        def tell() -> None:
            if manager is not None:
                manager.report_foreign_write(limit)

        trio_token.run_sync_soon(tell)

    # On any thread, where a whole snapshot could be taken amid a change.
    guard = LimitGuard(report, baseline=lambda: manager.baseline if manager else 0)
    chosen = backend_for(guard)
    if chosen is None:
        chosen = DeviceLimitBackend(device_memory(), guard.write)
    manager = _make_manager(configuration, chosen, guard, pool_bytes)
    with guard:
        open_manager_slot.manager = manager
        try:
            async with open_bare_nursery() as nursery:
                nursery.start_soon(manager.run)
                watching = trio.CancelScope()
                try:
                    read = memory_reader(chosen)
                    if read is not None:
                        await nursery.start(_watch, manager, read, watching)
                    yield manager
                finally:
                    watching.cancel()
                    manager._close()
        finally:
            open_manager_slot.manager = None


async def _watch(
    manager: WiredMemoryManager,
    read: Callable[[], MemoryReading | None],
    scope: trio.CancelScope,
    task_status: trio.TaskStatus[None],
) -> None:
    """Tell the manager of the memory that others take, the first time before any ticket comes."""
    watch = MemoryWatch(
        read,
        manager.report_memory,
        manager.report_blindness,
        lambda: manager.configuration.watch_seconds,
    )
    manager.read_memory_now = watch.read_now
    with scope:
        await watch.run(task_status)


def _make_manager(
    configuration: WiredMemoryConfiguration,
    backend: LimitBackend,
    guard: LimitGuard,
    pool_bytes: int,
) -> WiredMemoryManager:
    """Read the backend's facts once, and give the manager a ceiling that follows from them."""
    supported = backend.supported
    recommended = backend.recommended_working_set_bytes()
    if recommended is not None:
        recommended = checked_size(recommended, "the recommended working set")
    total = getattr(backend, "total_memory_bytes", host_memory_bytes)()

    def ceiling(configuration: WiredMemoryConfiguration) -> int | None:
        return ceiling_of(
            configuration,
            supported=supported,
            recommended_bytes=recommended,
            total_memory=total,
            pool_bytes=pool_bytes,
        )

    return WiredMemoryManager(configuration, backend, ceiling, supported, owner=guard.owner)


def memory_reader(backend: LimitBackend) -> Callable[[], MemoryReading | None] | None:
    """How to read the memory that the backend's ceiling is of, now; None where nobody can.

    A backend that names a total of its own speaks of other memory than this machine's, unless it
    reads it itself.
    """
    own: Callable[[], MemoryReading | None] | None = getattr(backend, "memory_reading", None)
    if own is not None:
        return own
    return None if hasattr(backend, "total_memory_bytes") else read_host_memory
