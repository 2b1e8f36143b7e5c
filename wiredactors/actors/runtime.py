"""The runtime: one manager, one engine, and the models that are loaded."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import trio

from wiredactors.actors.manager import WiredMemoryManager
from wiredactors.actors.model import Model
from wiredactors.actors.nursery import open_bare_nursery
from wiredactors.actors.opening import claimed_slot, open_manager_with
from wiredactors.actors.protocol import Engine, Guard, LimitBackend
from wiredactors.actors.service import Service
from wiredactors.actors.workspace import Workspace
from wiredactors.engine.mlx_engine import MlxEngine
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.errors import ManagerClosed, ModelLoadError, ModelNotLoaded
from wiredactors.memory.policies import WiredMemoryPolicy, WiredSumPolicy
from wiredactors.scheduling.requests import LoadOptions, StepReport


class Runtime:
    """Serves models from this process. Open it with `open_runtime()`.

    Attributes:
        manager: the one owner of memory, for events, snapshots and your own tickets.
        models: the loaded models by name; a view.
    """

    def __init__(
        self,
        manager: WiredMemoryManager,
        engine: Engine,
        policy: WiredMemoryPolicy,
        nursery: trio.Nursery,
    ):
        self.manager = manager
        self._engine = engine
        self._policy = policy
        self._nursery = nursery
        self._models: dict[str, Model] = {}
        self.models: Mapping[str, Model] = MappingProxyType(self._models)
        self._present: dict[str, _Presence] = {}
        self._numbers: Counter[str] = Counter()
        self._workspace = Workspace(policy, manager)
        self._closed = False

    async def load(
        self,
        source: str | Path,
        name: str | None = None,
        *,
        dtype: str | None = None,
        dequantize: bool = False,
        prefill_step_size: int | None = None,
        max_batch_size: int = 32,
        weight: float = 1.0,
        margin: int | None = None,
    ) -> Model:
        """Load a model and serve it until `unload`, or until the runtime closes.

        Its reservation is admitted before anything is loaded, and may wait for memory.

        Args:
            source: a GGUF file, a directory in Hugging Face layout, or a hub id.
            name: what to call it; left out, the last part of the source.
            dtype, dequantize, prefill_step_size, max_batch_size: see `LoadOptions`.
            weight: the model's share of the device's time while several have work: one of 2.0
                gets twice the time of one of 1.0.
            margin: bytes that are held for safety beside its workspace, once for the model and
                not for each job; None is the default of the model's plan.

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
        name = _name_of(source) if name is None else name
        if self._closed:
            raise _closed(name)
        there = self._present.get(name)
        if there is not None:
            leaves = there.ready and name not in self._models
            state = "being unloaded" if leaves else "loaded already"
            raise ModelLoadError(f"a model named {name!r} is {state}: give another name")
        service = Service(
            name,
            self._policy,
            self.manager,
            self.manager.note,
            self._new_id,
            self._workspace,
        )
        presence = self._present[name] = _Presence(service, Model(service))
        # In the runtime's nursery, whoever asked for it: it must end before the engine closes.
        self._nursery.start_soon(self._be, presence, str(source), options)
        try:
            await presence.settled.wait()
        except trio.Cancelled:
            presence.scope.cancel()
            with trio.CancelScope(shield=True):
                await presence.gone.wait()
            raise
        presence.raise_error()
        if not presence.ready:
            raise _closed(name)
        return presence.model

    async def unload(self, name: str) -> None:
        """Take no more jobs for a model, and let it go when those under way have ended.

        That goes on though waiting for it is cancelled; a second call waits for it too.

        Raises:
            ModelNotLoaded: there is no model of that name.
            And what the engine raises where it cannot let it go.
        """
        presence = self._present.get(name)
        if presence is None or not presence.ready:
            raise ModelNotLoaded(f"no model named {name!r} is loaded: {sorted(self._models)} are")
        self._models.pop(name, None)
        presence.service.leave(cancel_jobs=False)
        await presence.gone.wait()
        presence.raise_error()

    def _new_id(self, what: str) -> str:
        self._numbers[what] += 1
        return f"{what}-{self._numbers[what]}"

    @trio.lowlevel.enable_ki_protection
    async def _be(self, presence: _Presence, source: str, options: LoadOptions) -> None:
        """The model's task. What it raises is for whoever loads or unloads it."""
        name = presence.service.name

        def ready() -> None:
            self._models[name] = presence.model
            presence.ready = True
            presence.settled.set()

        try:
            with presence.scope:
                await presence.service.run(self._engine, source, options, ready)
        except Exception as error:
            presence.error = error
        finally:
            self._models.pop(name, None)
            del self._present[name]
            presence.settled.set()
            presence.gone.set()

    def _close(self) -> None:
        """Cancel every job and load; the models then unload."""
        self._closed = True
        for presence in self._present.values():
            if presence.ready:
                presence.service.leave(cancel_jobs=True)
        self._nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class _Presence:
    """A model that is here, or coming. `settled`: it is ready, or has failed."""

    service: Service
    model: Model
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    settled: trio.Event = attrs.field(factory=trio.Event)
    gone: trio.Event = attrs.field(factory=trio.Event)
    ready: bool = False
    error: Exception | None = None

    def raise_error(self) -> None:
        """Raise what the model failed of, once."""
        error, self.error = self.error, None
        if error is None:
            return
        try:
            raise error
        finally:
            del error  # see `Request.raise_refusal`


def _name_of(source: str | Path) -> str:
    return Path(source).name.removesuffix(".gguf") or str(source)


def _closed(name: str) -> ManagerClosed:
    return ManagerClosed(f"model {name!r} was not loaded: the runtime has closed")


@contextlib.asynccontextmanager
async def open_runtime(
    policy: WiredMemoryPolicy | None = None,
    configuration: WiredMemoryConfiguration | None = None,
    backend: LimitBackend | None = None,
    engine: Engine | None = None,
    *,
    on_step: Callable[[StepReport], Any] | None = None,
) -> AsyncIterator[Runtime]:
    """Serve MLX models from this process, inside one memory budget.

    Leaving it cancels what still runs, unloads every model, restores the baseline, and ends the
    device thread. An exception of the body leaves it bare.

    Args:
        policy: of the runtime's reservations and its jobs' own tickets; None is a sum under the
            ceiling. Use it for your own tickets too, to share one cap.
        configuration: see `WiredMemoryConfiguration`.
        backend: who sets the wired limit; None is the engine's, at quiet points of its thread.
        engine: who runs models; None is MLX.
        on_step: called on the trio thread with a `StepReport` after each step and load; what it
            raises ends the runtime.

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
                runtime = Runtime(manager, engine, policy, nursery)
                try:
                    yield runtime
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
