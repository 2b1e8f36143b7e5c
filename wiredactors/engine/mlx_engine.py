"""The real engine: MLX models on the device thread, behind the actors' protocol."""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import trio

from wiredactors.engine.backend import DeviceMemory, QuietLimitBackend, device_memory
from wiredactors.engine.blueprint import Blueprint
from wiredactors.engine.device import DeviceThread, without_locals
from wiredactors.engine.estimating import estimate_blueprint
from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.engine.knowledge import Knowledge
from wiredactors.engine.loading import (
    LoadAborted,
    LoadedModel,
    download,
    load,
    local_path,
    plan_load,
)
from wiredactors.engine.meter import Meter
from wiredactors.engine.mlx_model import MlxModel
from wiredactors.engine.remembered import Remembered, files_of
from wiredactors.engine.row_costs import RowCosts, measure_rows
from wiredactors.engine.serving import Serving
from wiredactors.engine.store import MeasurementStore
from wiredactors.engine.tuning import run_prefill
from wiredactors.memory.errors import GenerationError, ModelNotLoaded
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.memory.units import MIB
from wiredactors.scheduling.requests import (
    LoadOptions,
    LoadPlan,
    RowOutput,
    RowRequest,
    StepReport,
)
from wiredactors.scheduling.schedule import Schedule

#: What MLX may keep of freed buffers, unless the engine is told otherwise.
DEFAULT_POOL_BYTES = 128 * MIB

#: A little more than half of the time, so that running jobs keep half of their token rate: a step
#: is a few per cent slower after a chunk than after another step.
DEFAULT_DECODE_SHARE = 0.55

#: Less than this may be missing after an unload: MLX gives a request a freed buffer that is up to
#: two pages larger, and a step of the other models keeps a few small arrays.
_LEFT_TOLERANCE_BYTES = 4 * MIB

#: After these pauses, a second in all, an unload looks again for what did not come back: an error
#: or a cycle of another thread may hold it a moment longer.
_LOOK_AGAIN_SECONDS = (0.05, 0.1, 0.2, 0.3, 0.35)

#: Clients that get their answers in one step and ask again do so within a few milliseconds, also
#: over HTTP. Measured with eight of them, two models that do not fit together, and switches hardly
#: bounded (600 a minute): with 10 ms the models were loaded 13 times instead of 37.
IDLE_SECONDS = 0.02


class MlxEngine:
    """Serves several MLX models from one thread. See the protocol for what each method does.

    `pool_bytes` bounds MLX's pool of freed buffers, which no ticket holds. `store` keeps what was
    measured; None is the one in the user's cache directory. `decode_share` is the part of a
    model's time that its running jobs keep while it reads prompts.
    """

    def __init__(
        self,
        pool_bytes: int = DEFAULT_POOL_BYTES,
        store: MeasurementStore | None = None,
        *,
        decode_share: float = DEFAULT_DECODE_SHARE,
    ):
        self.pool_bytes = pool_bytes
        self.idle_seconds = IDLE_SECONDS
        self._knowledge = Knowledge(MeasurementStore() if store is None else store)
        self.device: DeviceThread  # while it is open
        self._plans: Remembered[LoadPlan] = Remembered()
        self._costs: Remembered[RowCosts] = Remembered()
        self._models: dict[str, LoadedModel] = {}
        self._serving: dict[str, Serving] = {}
        self._schedule = Schedule(decode_share)
        self._delivers: dict[str, Callable[[RowOutput], object]] = {}  # on the trio thread
        self._granted: Callable[[], int] = lambda: 0
        self._on_step: Callable[[StepReport], object] | None = None
        self._on_cpu = True
        self._memory = DeviceMemory(None, 0)
        self._pool_before: int | None = None

    # -- life

    async def open(
        self, granted: Callable[[], int], on_step: Callable[[StepReport], object] | None
    ) -> None:
        self._granted, self._on_step = granted, on_step
        self.device = DeviceThread(self._step)
        self.device.start()
        try:
            await self.device.run(self._open)
        except BaseException:
            await self.close()
            raise

    def _open(self) -> None:
        self._mx = import_mlx()
        self._meter = Meter(self._mx, self._granted)
        self._generation_stream = import_mlx_lm("generate").generation_stream
        self._on_cpu = self._mx.default_device() == self._mx.cpu
        self._memory = device_memory()
        self._pool_before = self._mx.set_cache_limit(self.pool_bytes)

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            try:
                await self.device.run(self._close)
            finally:
                await self.device.stop()

    def _close(self) -> None:
        for name in list(self._models):
            self._unload(name)
        if self._pool_before is not None:
            self._mx.set_cache_limit(self._pool_before)
            self._pool_before = None

    def limit_backend(self, guard: Any) -> QuietLimitBackend:
        return QuietLimitBackend(self._memory, guard.write, self.device, self._synchronize)

    def _synchronize(self) -> None:
        self._mx.synchronize(self._generation_stream)
        self._mx.synchronize()

    # -- models

    async def plan(self, source: str, options: LoadOptions) -> LoadPlan:
        path = local_path(source)
        if path is None:
            # A download is left to itself when nobody waits for it any more.
            path = await trio.to_thread.run_sync(download, str(source), abandon_on_cancel=True)
        return await self.device.run(functools.partial(self._plan, path, options))

    def _plan(self, path: Path, options: LoadOptions) -> LoadPlan:
        # Models come and go; thinking one through takes longer than reading a small one.
        return self._plans.get(
            (path, options, self._on_cpu),
            files_of(path),
            functools.partial(plan_load, path, options, on_cpu=self._on_cpu),
        )

    async def load(
        self, name: str, plan: LoadPlan, progress: Callable[[int, int], object]
    ) -> MlxModel:
        aborted = False

        def abort() -> None:
            nonlocal aborted
            aborted = True

        percent = 0

        def advance(done: int, total: int) -> None:
            nonlocal percent
            if aborted:
                raise LoadAborted
            # Hundreds of small tensors are no news, each percent is.
            if 100 * done // max(1, total) > percent:
                percent = 100 * done // max(1, total)
                self.device.deliver(progress, done, total)
                self.device.deliver(self._hand_over, [], self._meter.report(name, "load"))
                self._meter.start()

        try:
            return await self.device.run(
                functools.partial(self._load, name, plan, advance), abort=abort
            )
        except BaseException:  # it failed, or was cancelled when it had already succeeded
            await self.unload(name)
            raise

    def _load(self, name: str, plan: LoadPlan, advance: Callable[[int, int], None]) -> MlxModel:
        assert plan.options.prefill_step_size is not None
        with self._reported(name, "load"):
            files = files_of(Path(plan.source))
            loaded = load(plan, advance)
            costs = self._costs.get(
                (plan.source, plan.options, self._on_cpu),
                files,
                functools.partial(measure_rows, loaded.model, plan.options.prefill_step_size),
            )
            weights = self._weight_bytes(loaded)
            self._mx.clear_cache()
        model = MlxModel(
            self,
            name,
            tokenizer=loaded.tokenizer,
            context_length=loaded.context_length,
            row_costs=costs,
            weight_bytes=weights,
            correction=self._knowledge.remember(name, plan, self.device.post),
        )
        self._models[name] = loaded
        # Half of it, since the device may still work on a step of another model.
        self._serving[name] = Serving(loaded, costs.of, plan.workspace_bytes // 2)
        return model

    async def unload(self, name: str) -> int:
        with trio.CancelScope(shield=True):
            left = await self.device.run(functools.partial(self._unload, name))
            for seconds in _LOOK_AGAIN_SECONDS:
                if left is None:
                    return 0
                # Not on the device thread: the others' steps go on meanwhile.
                await trio.sleep(seconds)
                left = await self.device.run(functools.partial(self._look_again, left))
        return 0 if left is None else left.size

    def _unload(self, name: str) -> _Leftover | None:
        """Let a model go; what has not come back of its weights, if that is worth a word."""
        serving = self._serving.pop(name, None)
        if serving is not None:
            self._hand_over_later(serving.close())
        self._synchronize()  # so that nothing but the weights changes between the two readings
        before = self._mx.get_active_memory()
        loaded = self._models.pop(name, None)
        weights = 0 if loaded is None else self._weight_bytes(loaded)
        del serving, loaded
        self._knowledge.forget(name)
        self._collect()
        size = weights - (before - self._mx.get_active_memory())
        if size <= _LEFT_TOLERANCE_BYTES:
            return None
        return _Leftover(size, beside=self._unaccounted() - size)

    def _look_again(self, left: _Leftover) -> _Leftover | None:
        self._collect()
        size = self._unaccounted() - left.beside
        return None if size <= _LEFT_TOLERANCE_BYTES else _Leftover(size, left.beside)

    def _collect(self) -> None:
        gc.collect()
        self._mx.clear_cache()

    def _unaccounted(self) -> int:
        """Active memory that belongs to no loaded model, and to none of its rows."""
        for serving in self._serving.values():
            self._hand_over_later(serving.wait())
        self._synchronize()
        caches = sum(serving.held_bytes for serving in self._serving.values())
        weights = sum(map(self._weight_bytes, self._models.values()))
        return int(self._mx.get_active_memory()) - caches - weights

    def _weight_bytes(self, loaded: LoadedModel) -> int:
        return int(self._mx.get_array_buffer_size(loaded.model.parameters()))

    # -- measuring

    async def recall(self, name: str, parameters: TuneParameters) -> WiredMemoryMeasurement | None:
        return await self.device.run(
            functools.partial(self._knowledge.measurement, name, parameters)
        )

    async def predict(self, name: str, parameters: TuneParameters) -> WiredMemoryMeasurement:
        return await self.device.run(functools.partial(self._predict, name, parameters))

    def _predict(self, name: str, parameters: TuneParameters) -> WiredMemoryMeasurement:
        loaded = self._models[name]
        blueprint = Blueprint(
            model=loaded.model, config=loaded.config, weight_bytes=self._weight_bytes(loaded)
        )
        return estimate_blueprint(blueprint, parameters)

    async def tune(
        self, name: str, parameters: TuneParameters, *, remeasure: bool
    ) -> WiredMemoryMeasurement:
        aborted = False

        def abort() -> None:
            nonlocal aborted
            aborted = True

        def check() -> None:
            if aborted:
                raise TuneAborted
            # What came before the step: another step, or getting ready.
            self.device.deliver(self._hand_over, [], self._meter.report(name, "tune"))
            self._meter.start()

        def tune() -> WiredMemoryMeasurement:
            if aborted:  # while another was measured
                raise TuneAborted
            return self._tune(name, parameters, check, remeasure)

        # One call, so that no batch steps meanwhile.
        return await self.device.run(tune, abort=abort)

    def _tune(
        self, name: str, parameters: TuneParameters, check: Callable[[], None], remeasure: bool
    ) -> WiredMemoryMeasurement:
        known = None if remeasure else self._knowledge.measurement(name, parameters)
        if known is not None:
            return known
        # Everyone gets a turn: calls go before steps, and one measurement may follow another.
        for _ in range(sum(serving.pieces for serving in self._serving.values())):
            self._step()
        loaded = self._models[name]
        with self._reported(name, "tune"):
            measured = run_prefill(loaded.model, loaded.tokenizer, parameters, check=check)
        self._knowledge.keep(name, parameters, measured)
        return measured

    # -- rows

    def submit(
        self, name: str, request: RowRequest, deliver: Callable[[RowOutput], object]
    ) -> None:
        self._delivers[request.row_id] = deliver
        self.device.post(functools.partial(self._insert, name, request))

    def _insert(self, name: str, request: RowRequest) -> None:
        try:
            if name not in self._serving:
                raise ModelNotLoaded(f"{name} was unloaded")
            self._serving[name].insert(request)
        except Exception as error:
            failure = GenerationError(f"row {request.row_id} could not join: {error!r}")
            failure.__cause__ = without_locals(error)
            self._hand_over_later([RowOutput(row_id=request.row_id, error=failure)])

    async def remove(self, name: str, row_id: str) -> int:
        with trio.CancelScope(shield=True):
            share = await self.device.run(functools.partial(self._remove, name, row_id))
        self._delivers.pop(row_id, None)
        return share

    def _remove(self, name: str, row_id: str) -> int:
        if name not in self._serving:
            return 0
        share, outputs = self._serving[name].remove(row_id)
        self._hand_over_later(outputs)
        return share

    # -- steps

    def _step(self) -> bool:
        """The step of whoever's turn it is; whether there was one."""
        step = self._schedule.choose(self._serving)
        if step is None:
            return False
        serving = self._serving[step.model]
        decodes = serving.decodes
        what = "prefill" if step.prompts else "step"
        if step.prompts:
            # The workspace is held once: a chunk has the device to itself.
            for each in self._serving.values():
                self._hand_over_later(each.wait())
        began = time.perf_counter()
        with self._reported(step.model, what) as report:
            report.outputs = serving.read(step.prompts) if step.prompts else serving.step()
        self._schedule.record(step, time.perf_counter() - began, decodes=decodes)
        return True

    @contextlib.contextmanager
    def _reported(self, model: str, what: str) -> Any:
        """Hand over the outputs of a piece of work, once, with the report of it if somebody asks.

        A report takes a dozen calls of MLX, and the next step waits for them.
        """
        work = _Work()
        if self._on_step is None:
            try:
                yield work
            finally:
                self._hand_over_later(work.outputs)
            return
        self._meter.start()
        try:
            yield work
        finally:
            rows = len({output.row_id for output in work.outputs})
            report = self._meter.report(model, what, rows)
            self.device.deliver(self._hand_over, work.outputs, report)

    def _hand_over_later(self, outputs: list[RowOutput]) -> None:
        """From the device thread: what became of rows, without a report."""
        if outputs:
            self.device.deliver(self._hand_over, outputs, None)

    def _hand_over(self, outputs: list[RowOutput], report: StepReport | None) -> None:
        """On the trio thread: everyone gets what is theirs."""
        if report is not None and self._on_step is not None:
            self._on_step(report)
        for output in outputs:
            deliver = self._delivers.get(output.row_id)
            if output.last:
                self._delivers.pop(output.row_id, None)
            if deliver is not None:
                deliver(output)


@attrs.frozen
class _Leftover:
    """What has not come back of an unloaded model. Sizes are bytes.

    `beside`: what else no loaded model accounts for, such as arrays of the user's.
    """

    size: int
    beside: int


class TuneAborted(Exception):
    """Raised in a measurement that nobody wants any more."""


class _Work:
    def __init__(self) -> None:
        self.outputs: list[RowOutput] = []
