"""The runtime: one manager, one engine, and the models that are loaded."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import trio

from wiredactors.actors.manager import WiredMemoryManager
from wiredactors.actors.model import Model
from wiredactors.actors.nursery import open_bare_nursery
from wiredactors.actors.opening import claimed_slot, open_manager_with
from wiredactors.actors.protocol import Engine, Guard, LimitBackend
from wiredactors.actors.service import Service
from wiredactors.actors.stay import Host
from wiredactors.actors.workspace import Workspace
from wiredactors.engine.mlx_engine import MlxEngine
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.errors import ManagerClosed, ModelLoadError, ModelNotLoaded
from wiredactors.memory.policies import WiredMemoryPolicy, WiredSumPolicy
from wiredactors.scheduling.requests import LoadOptions, StayOptions, StepReport


class Runtime:
    """Serves models from this process. Open it with `open_runtime()`.

    Attributes:
        manager: the one owner of memory, for events, snapshots and your own tickets.
        models: the models by name, those that `add` has registered and nobody has used yet, too;
            a view.
    """

    def __init__(self, host: Host, nursery: trio.Nursery):
        self.manager = host.manager
        self._host = host
        self._nursery = nursery
        self._models: dict[str, Model] = {}
        self.models: Mapping[str, Model] = MappingProxyType(self._models)
        self._services: dict[str, Service] = {}  # those that come or leave, too
        self._closed = False

    def add(
        self,
        source: str | Path,
        name: str | None = None,
        *,
        pinned: bool = False,
        keep_alive: float | None = None,
        dtype: str | None = None,
        dequantize: bool = False,
        prefill_step_size: int | None = None,
        max_batch_size: int = 32,
        weight: float = 1.0,
        margin: int | None = None,
    ) -> Model:
        """Register a model, which is loaded when it is first used, or by `Model.load`.

        When others need the room and it is idle it yields, the least recently used first, and is
        loaded again at its next use. Whoever uses it meanwhile waits in order.

        Args:
            source: a GGUF file, a directory in Hugging Face layout, or a hub id.
            name: what to call it; left out, the last part of the source.
            pinned: once loaded it stays: it does not yield, and `keep_alive` means nothing.
            keep_alive: seconds after its last use for which it stays in memory; None is until
                others need the room.
            dtype, dequantize, prefill_step_size, max_batch_size: see `LoadOptions`.
            weight: the model's share of the device's time while several have work: one of 2.0
                gets twice the time of one of 1.0.
            margin: bytes that are held for safety beside its workspace, once for the model and
                not for each job; None is the default of the model's plan.

        Raises:
            ModelLoadError: the name is taken.
            ValueError: an option is out of its range.
            ManagerClosed: the runtime has closed.
        """
        options = LoadOptions(
            dtype=dtype,
            dequantize=dequantize,
            prefill_step_size=prefill_step_size,
            max_batch_size=max_batch_size,
            weight=weight,
            margin_bytes=margin,
        )
        stay = StayOptions(pinned=pinned, keep_alive=keep_alive)
        service = self._register(source, name, options, stay, lasting=True)
        return self._show(service)

    async def load(
        self,
        source: str | Path,
        name: str | None = None,
        *,
        pinned: bool = False,
        keep_alive: float | None = None,
        dtype: str | None = None,
        dequantize: bool = False,
        prefill_step_size: int | None = None,
        max_batch_size: int = 32,
        weight: float = 1.0,
        margin: int | None = None,
    ) -> Model:
        """Load a model now, and serve it until `unload`, or until the runtime closes.

        Its reservation is admitted before anything is loaded, and may wait for memory. Once loaded
        it is as one of `add`: it yields when it is idle and others need the room, unless it is
        pinned. What `add` has registered can be loaded ahead in the same words.

        Args:
            source, name, pinned, keep_alive, dtype, dequantize, prefill_step_size, max_batch_size,
                weight, margin: see `add`.

        Raises:
            ModelLoadError: it cannot be loaded, or the name is taken.
            TicketTooLarge: it can never fit.
            ValueError: an option is out of its range.
            ManagerClosed: the runtime has closed, or closes meanwhile.
        """
        options = LoadOptions(
            dtype=dtype,
            dequantize=dequantize,
            prefill_step_size=prefill_step_size,
            max_batch_size=max_batch_size,
            weight=weight,
            margin_bytes=margin,
        )
        stay = StayOptions(pinned=pinned, keep_alive=keep_alive)
        name = _name_of(source) if name is None else name
        there = self._services.get(name)
        if there is not None and there.lasting and there.source == str(source):
            await there.ready()
            return self._models[name]
        service = self._register(source, name, options, stay, lasting=False)
        try:
            await service.ready()
        except BaseException:
            service.part(_closed(name), cancel_jobs=True)
            with trio.CancelScope(shield=True):
                await service.parted.wait()
            raise
        return self._show(service)

    async def unload(self, name: str) -> None:
        """Let a model go when the jobs under way have ended.

        One of `add` stays registered, and is loaded again when it is used again. One of `load`
        takes no more jobs, and is forgotten. That goes on though waiting for it is cancelled; a
        second call waits for it too.

        Raises:
            ModelNotLoaded: there is no model of that name in memory.
            And what the engine raises where it cannot let it go.
        """
        service = self._services.get(name)
        if service is not None and service.lasting:
            await service.unload()
        else:
            await self._forget(name, service)

    async def remove(self, name: str) -> None:
        """Unload a model, if it is loaded, and forget it. Those who wait for it are refused.

        Raises:
            ModelNotLoaded: there is no model of that name.
            And what the engine raises where it cannot let it go.
        """
        await self._forget(name, self._services.get(name))

    async def _forget(self, name: str, service: Service | None) -> None:
        if service is None or (name not in self._models and service.refusal is None):
            raise ModelNotLoaded(f"no model named {name!r} is loaded: {sorted(self._models)} are")
        if self._models.pop(name, None) is not None:
            parting = f"model {name!r} is being unloaded: it takes no more jobs"
            service.part(ModelNotLoaded(parting), cancel_jobs=False)
        await service.parted.wait()
        service.raise_unload_error()

    def _register(
        self,
        source: str | Path,
        name: str | None,
        options: LoadOptions,
        stay: StayOptions,
        *,
        lasting: bool,
    ) -> Service:
        name = _name_of(source) if name is None else name
        if self._closed:
            raise _closed(name)
        there = self._services.get(name)
        if there is not None:
            state = "loaded already"
            if there.refusal is not None:
                state = "being unloaded"
            elif there.lasting:
                state = "registered already"
            raise ModelLoadError(f"a model named {name!r} is {state}: give another name")
        service = Service(name, str(source), options, self._host, stay, lasting=lasting)
        self._services[name] = service
        # In the runtime's nursery, whoever asked for it: it must end before the engine closes.
        self._nursery.start_soon(self._be, service)
        return service

    def _show(self, service: Service) -> Model:
        model = self._models[service.name] = Model(service)
        return model

    @trio.lowlevel.enable_ki_protection
    async def _be(self, service: Service) -> None:
        """The model's task."""
        try:
            await service.run()
        finally:
            self._models.pop(service.name, None)
            del self._services[service.name]

    async def _drain(self, seconds: float) -> None:
        """Take no more requests, and let those that have come go on, so long at most."""
        self._closed = True
        for service in self._services.values():
            service.refusal = service.refusal or _closed(service.name)
        with trio.move_on_after(seconds):
            while jobs := [job for each in self._services.values() for job in each.jobs]:
                await jobs[0].wait_ended()

    def _close(self) -> None:
        """Cancel every job and load; the models then unload."""
        self._closed = True
        for service in self._services.values():
            service.part(_closed(service.name), cancel_jobs=True)
        self._nursery.cancel_scope.cancel()


def _name_of(source: str | Path) -> str:
    return Path(source).name.removesuffix(".gguf") or str(source)


def _closed(name: str) -> ManagerClosed:
    return ManagerClosed(f"model {name!r} is not there: the runtime has closed")


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


@contextlib.asynccontextmanager
async def open_runtime(
    policy: WiredMemoryPolicy | None = None,
    configuration: WiredMemoryConfiguration | None = None,
    backend: LimitBackend | None = None,
    engine: Engine | None = None,
    *,
    on_step: Callable[[StepReport], Any] | None = None,
    drain_seconds: float = 0.0,
) -> AsyncIterator[Runtime]:
    """Serve MLX models from this process, inside one memory budget.

    Leaving it takes no more requests, waits up to `drain_seconds` for the jobs under way, cancels
    what still runs, unloads every model, restores the baseline, and ends the device thread. If it
    is left by an exception, or cancelled, also while it waits for jobs, that is cancelled at once.
    An exception of the body leaves it bare.

    Args:
        policy: of the runtime's reservations and its jobs' own tickets; None is a sum under the
            ceiling. Use it for your own tickets too, to share one cap.
        configuration: see `WiredMemoryConfiguration`.
        backend: who sets the wired limit; None is the engine's, at quiet points of its thread.
        engine: who runs models; None is MLX.
        on_step: called on the trio thread with a `StepReport` after each step and load; what it
            raises ends the runtime.
        drain_seconds: how long the jobs under way may go on when the body has ended.

    Raises:
        ManagerAlreadyOpen: a manager is open in this process.
        MLXNotInstalled: MLX cannot be imported; the message names what to install.
    """
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
