"""Opening a runtime: an engine, a manager and the models' nursery, closed in the reverse order."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import trio

from wiredactors.actors.manager import WiredMemoryManager
from wiredactors.actors.nursery import open_bare_nursery
from wiredactors.actors.opening import claimed_slot, open_manager_with
from wiredactors.actors.protocol import Engine, Guard, LimitBackend
from wiredactors.actors.runtime import Runtime
from wiredactors.actors.stay import Host
from wiredactors.actors.workspace import Workspace
from wiredactors.engine.mlx_engine import MlxEngine
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.policies import WiredMemoryPolicy, WiredSumPolicy
from wiredactors.scheduling.requests import StepReport

#: How long jobs may go on when the body has ended, unless the caller says otherwise.
DRAIN_SECONDS = 5.0


@contextlib.asynccontextmanager
async def open_runtime(
    policy: WiredMemoryPolicy | None = None,
    configuration: WiredMemoryConfiguration | None = None,
    backend: LimitBackend | None = None,
    engine: Engine | None = None,
    *,
    on_step: Callable[[StepReport], Any] | None = None,
    drain_seconds: float = DRAIN_SECONDS,
) -> AsyncIterator[Runtime]:
    """Serve MLX models from this process, inside one memory budget.

    Leaving it takes no more requests, waits up to `drain_seconds` for the jobs under way and those
    that wait, cancels what is left, unloads every model, restores the baseline, and ends the device
    thread. If it is left by an exception, or cancelled, also while it waits for jobs, these are
    cancelled at once. An exception of the body leaves it bare.

    Args:
        policy: of the runtime's reservations and its jobs' own tickets; None is a sum under the
            ceiling. Use it for your own tickets too, to share one cap.
        configuration: see `WiredMemoryConfiguration`.
        backend: who sets the wired limit; None is the engine's, at quiet points of its thread.
        engine: who runs models; None is MLX.
        on_step: called on the trio thread with a `StepReport` after each step and load; what it
            raises ends the runtime.
        drain_seconds: how long jobs may go on when the body has ended, in seconds from 0.

    Raises:
        ManagerAlreadyOpen: a manager is open in this process.
        MLXNotInstalled: MLX cannot be imported; the message names what to install.
    """
    if isinstance(drain_seconds, bool) or not drain_seconds >= 0:
        raise ValueError(f"drain_seconds must be a number of seconds from 0, not {drain_seconds!r}")
    policy = WiredSumPolicy() if policy is None else policy
    engine = MlxEngine() if engine is None else engine
    granted = _Granted()
    listener = _Listener(on_step)

    def limit_backend(guard: Guard) -> LimitBackend | None:
        own = engine.limit_backend(guard)  # also where it is not used: the engine learns the guard
        return own if backend is None else backend

    # The slot is claimed round the whole life of the engine: two would call MLX side by side.
    with claimed_slot():
        await engine.open(granted, None if on_step is None else listener)
        try:
            async with (
                open_manager_with(
                    configuration,
                    limit_backend,
                    pool_bytes=engine.pool_bytes,
                ) as manager,
                open_bare_nursery() as nursery,
            ):
                granted.manager = manager
                listener.nursery = nursery
                runtime = Runtime(_host(engine, policy, manager), nursery)
                try:
                    yield runtime
                    await runtime._drain(drain_seconds)
                finally:
                    runtime._close()
        finally:
            await engine.close()


def _host(engine: Engine, policy: WiredMemoryPolicy, manager: WiredMemoryManager) -> Host:
    numbers: Counter[str] = Counter()

    def new_id(what: str) -> str:
        numbers[what] += 1
        return f"{what}-{numbers[what]}"

    return Host(
        engine=engine,
        policy=policy,
        manager=manager,
        workspace=Workspace(policy, manager),
        settle=lambda: manager.read_memory_now(),
        new_id=new_id,
    )


class _Granted:
    """What the ledger has granted, for the engine's reports; readable from any thread."""

    def __init__(self) -> None:
        self.manager: WiredMemoryManager | None = None

    def __call__(self) -> int:
        return self.manager.granted_bytes if self.manager is not None else 0


class _Listener:
    """A user's `on_step`, whose failure is raised in the runtime and not amid trio's own code."""

    def __init__(self, on_step: Callable[[StepReport], Any] | None):
        self._on_step = on_step
        self.nursery: trio.Nursery | None = None

    def __call__(self, report: StepReport) -> None:
        if self._on_step is None:
            return
        try:
            self._on_step(report)
        except Exception as error:
            self._on_step = None
            if self.nursery is not None:
                self.nursery.start_soon(_raise, error)


async def _raise(error: Exception) -> None:
    try:
        raise error
    finally:
        del error
