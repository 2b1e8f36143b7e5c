"""The runtime: one manager, one engine, and the models that are loaded."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import trio

from wiredactors.actors.manager import WiredMemoryManager
from wiredactors.actors.model import Model
from wiredactors.actors.nursery import open_bare_nursery
from wiredactors.actors.opening import open_manager_with
from wiredactors.actors.protocol import Engine, LimitBackend
from wiredactors.engine.mlx_engine import MlxEngine
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.errors import ModelLoadError, ModelNotLoaded
from wiredactors.memory.policies import WiredMemoryPolicy, WiredSumPolicy
from wiredactors.memory.tickets import WiredMemoryTicket
from wiredactors.scheduling.requests import LoadOptions, LoadPlan, StepReport


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
        self._job_numbers = itertools.count(1)
        # One step runs at a time, so the workspace is held once, as the largest of the models'.
        self._workspace = WiredMemoryTicket(
            size=0, policy=policy, kind="reservation", manager=manager, id="workspace"
        )
        self._workspace_lock = trio.Lock()

    async def load(
        self,
        source: str | Path,
        name: str | None = None,
        *,
        dtype: str | None = None,
        dequantize: bool = False,
        prefill_step_size: int | None = None,
        max_batch_size: int = 32,
    ) -> Model:
        """Load a model and serve it until `unload`, or until the runtime closes.

        Its reservation is admitted before anything is loaded, and may wait for memory.

        Args:
            source: a GGUF file, a directory in Hugging Face layout, or a hub id.
            name: what to call it; left out, the last part of the source.
            dtype, dequantize, prefill_step_size, max_batch_size: see `LoadOptions`.

        Raises:
            ModelLoadError: it cannot be loaded, or the name is taken.
            TicketTooLarge: it can never fit.
            ValueError: an option is out of its range.
        """
        options = LoadOptions(
            dtype=dtype,
            dequantize=dequantize,
            prefill_step_size=prefill_step_size,
            max_batch_size=max_batch_size,
        )
        name = Path(source).stem if name is None else name
        if name in self._present:
            raise ModelLoadError(f"a model named {name!r} is loaded already: give another name")
        presence = self._present[name] = _Presence()
        try:
            presence.plan = await self._engine.plan(str(source), options)
            await self._fit_workspace()
            model = Model(
                name,
                self._policy,
                self.manager,
                self.manager.note,
                self._job_numbers,
                self._workspace,
            )
            await self._nursery.start(self._run_model, model, presence)
        except BaseException:
            await self._forget(name, presence)
            raise
        return model

    async def unload(self, name: str) -> None:
        """Take no more jobs for a model, and let it go when those under way have ended.

        Raises:
            ModelNotLoaded: there is no model of that name.
        """
        model = self._models.get(name)
        if model is None:
            raise ModelNotLoaded(f"no model named {name!r} is loaded: {sorted(self._models)} are")
        model.leave(cancel_jobs=False)
        await self._present[name].gone.wait()

    async def _run_model(
        self, model: Model, presence: _Presence, task_status: trio.TaskStatus[None]
    ) -> None:
        """The model's task: its failure after it was ready ends the model, not the runtime."""
        assert presence.plan is not None

        def ready() -> None:
            self._models[model.name] = model
            task_status.started()

        try:
            await model.run(self._engine, presence.plan, ready)
        except Exception:
            if model.name not in self._models:
                raise  # out of `load`, bare
        if model.name in self._models:
            await self._forget(model.name, presence)

    async def _forget(self, name: str, presence: _Presence) -> None:
        self._models.pop(name, None)
        self._present.pop(name, None)
        with trio.CancelScope(shield=True):
            await self._fit_workspace()
        presence.gone.set()

    async def _fit_workspace(self) -> None:
        """Hold the largest workspace of the models that are here or coming."""
        async with self._workspace_lock:
            plans = [p.plan for p in self._present.values() if p.plan is not None]
            wanted = max((plan.workspace_bytes for plan in plans), default=0)
            held = self._workspace.size
            if wanted and not held:
                self._workspace.size = wanted
                try:
                    await self._workspace.start()
                except BaseException:
                    self._workspace.size = 0
                    raise
            elif not wanted and held:
                await self._workspace.end()
                self._workspace.size = 0
            elif wanted != held:
                await self._workspace.resize(wanted)

    def close(self) -> None:
        """Cancel every job and load; the models then unload."""
        for model in self._models.values():
            model.leave(cancel_jobs=True)
        self._nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class _Presence:
    """A model that is here, or coming."""

    plan: LoadPlan | None = None
    gone: trio.Event = attrs.field(factory=trio.Event)


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
        on_step: called on the trio thread with a `StepReport` after each step and load.

    Raises:
        ManagerAlreadyOpen: a manager is open in this process.
        MLXNotInstalled: MLX cannot be imported; the message names what to install.
    """
    policy = WiredSumPolicy() if policy is None else policy
    engine = MlxEngine() if engine is None else engine
    granted = _Granted()
    await engine.open(granted, on_step)
    try:
        async with (
            open_manager_with(
                configuration,
                lambda guard: engine.limit_backend(guard) if backend is None else backend,
                pool_bytes=engine.pool_bytes,
            ) as manager,
            open_bare_nursery() as nursery,
        ):
            granted.manager = manager
            runtime = Runtime(manager, engine, policy, nursery)
            try:
                yield runtime
            finally:
                runtime.close()
    finally:
        await engine.close()


class _Granted:
    """What the ledger has granted, for the engine's reports; readable from any thread."""

    def __init__(self) -> None:
        self.manager: WiredMemoryManager | None = None

    def __call__(self) -> int:
        return self.manager.granted_bytes if self.manager is not None else 0
