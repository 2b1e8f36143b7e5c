"""An engine that models time and memory instead of running MLX, for trio's mock clock.

It works as the real one does: one device, which a load or a step has to itself; whose step is next,
and which rows share one, is decided by the same code. It imports only trio and the pure scheduling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import attrs
import trio

from wiredactors.actors.protocol import Guard, LimitBackend
from wiredactors.memory.cache_cost import CacheCost
from wiredactors.memory.correction import Correction
from wiredactors.memory.errors import GenerationError, ModelLoadError
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.scheduling.requests import (
    CacheOptions,
    LoadOptions,
    LoadPlan,
    Prompt,
    RowOutput,
    RowRequest,
    StepReport,
)
from wiredactors.scheduling.schedule import Schedule
from wiredactors.testing.backend import QuietBackend
from wiredactors.testing.batches import Batches
from wiredactors.testing.memory import ModelledMemory
from wiredactors.testing.model import ModelledModel
from wiredactors.testing.record import EngineRecord, Recorder
from wiredactors.testing.rows import Row

#: A load looks so many times whether it was cancelled, and says as often how far it is.
_LOAD_PARTS = 4


class ModelledEngine:
    """Pass it to `open_runtime` as the engine. Sizes are bytes.

    Attributes:
        sources: what can be loaded, by source; change it as you like.
        pool_bytes: as if its allocator kept so much.
        idle_seconds: a model counts as idle so long after its last work.
        corrections: what was learned of each source; it outlives its models.
        records: what happened, in order.
        reports: every step's and load's report.
    """

    def __init__(
        self,
        sources: Mapping[str, ModelledModel] | None = None,
        *,
        pool_bytes: int = 0,
        decode_share: float = 0.5,
        backend: LimitBackend | None = None,
        open_error: Exception | None = None,
    ):
        """Without `sources` there is one, "model", with every default.

        `decode_share` is the part of a model's time that its rows keep while prompts are read.
        `backend` is written at quiet points, between two steps; None leaves it to `open_runtime`.
        """
        self.sources = dict({"model": ModelledModel()} if sources is None else sources)
        self.pool_bytes = pool_bytes
        self.idle_seconds = 0.0
        self.corrections: dict[str, Correction] = {}
        self._memory = ModelledMemory()
        self._recorder = Recorder(self._memory)
        self.records: list[EngineRecord] = self._recorder.records
        self.reports: list[StepReport] = self._recorder.reports
        self._quiet = None if backend is None else QuietBackend(backend, lambda: self._wake.set())
        self._open_error = open_error
        self._device = trio.Lock()
        self._is_open = False
        self._wake = trio.Event()
        self._closed = trio.Event()
        self._models = self._memory.models
        self._schedule = Schedule(decode_share)
        self._failures: dict[str, tuple[int, Exception]] = {}
        self._loads: Counter[tuple[str, ModelledModel]] = Counter()

    # -- for tests

    def fail_row(
        self, row_id: str, error: Exception | None = None, *, after_tokens: int = 0
    ) -> None:
        """Let the row (a job's `id`) fail at the step after its `after_tokens`-th token."""
        failure = GenerationError(f"row {row_id} fails, as the test has asked")
        self._failures[row_id] = (after_tokens, error or failure)

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that are loaded."""
        return frozenset(self._models)

    @property
    def rows(self) -> frozenset[str]:
        """The rows whose cache is held."""
        return frozenset(row.request.row_id for rows in self._models.values() for row in rows)

    @property
    def held_bytes(self) -> int:
        """Weights and caches, as padded in their batches, of a load its peak, and leftovers."""
        return self._memory.held_bytes

    @property
    def leftover_bytes(self) -> int:
        """What did not come back of models that were unloaded; set it to 0 to let it come back."""
        return self._memory.leftover_bytes

    @leftover_bytes.setter
    def leftover_bytes(self, size: int) -> None:
        self._memory.leftover_bytes = size

    @property
    def charged_bytes(self) -> int:
        """What the tickets of all that it holds should sum up to: each row at its longest."""
        return self._memory.charged_bytes

    # -- life

    async def open(
        self, granted: Callable[[], int], on_step: Callable[[StepReport], object] | None
    ) -> None:
        await trio.lowlevel.checkpoint()
        if self._open_error is not None:
            raise self._open_error
        self._recorder.granted, self._recorder.on_step = granted, on_step
        self._is_open, self._closed = True, trio.Event()
        trio.lowlevel.spawn_system_task(self._run, name="the modelled device")

    async def close(self) -> None:
        self._is_open = False
        self._wake.set()
        with trio.CancelScope(shield=True):
            await self._closed.wait()
        self._recorder.record("close", "")
        self._models.clear()
        self._memory.leftover_bytes = 0

    def limit_backend(self, guard: Guard) -> LimitBackend | None:
        return self._quiet

    async def _run(self) -> None:
        while self._is_open:
            self._wake = trio.Event()
            async with self._device:
                worked = self._write_limits() | await self._step()
            if not worked:
                await self._wake.wait()
        self._write_limits()
        self._closed.set()

    # -- models

    async def plan(self, source: str, options: LoadOptions) -> LoadPlan:
        await trio.lowlevel.checkpoint()
        model = self.sources.get(source)
        if model is None:
            raise ModelLoadError(f"there is no model {source!r}: {sorted(self.sources)} are")
        if model.plan_error is not None:
            raise model.plan_error
        margin = model.margin_bytes if options.margin_bytes is None else options.margin_bytes
        step = options.prefill_step_size or model.prefill_step_size
        return LoadPlan(
            source=source,
            options=attrs.evolve(options, prefill_step_size=step),
            weight_bytes=model.weight_bytes,
            peak_bytes=model.load_peak,
            workspace_bytes=model.workspace_bytes,
            margin_bytes=margin,
        )

    async def load(
        self, name: str, plan: LoadPlan, progress: Callable[[int, int], object]
    ) -> _LoadedModel:
        model = self.sources[plan.source]
        async with self._device:
            error = self._load_error(plan.source, model)
            granted = self._recorder.granted()
            began = trio.current_time()
            self._memory.loading[name] = model
            self._recorder.record("load", name)
            try:
                for part in range(1, _LOAD_PARTS + 1):
                    with trio.CancelScope(shield=True):
                        await trio.sleep(model.load_seconds / _LOAD_PARTS)
                    await trio.lowlevel.checkpoint_if_cancelled()
                    progress(model.weight_bytes * part // _LOAD_PARTS, model.weight_bytes)
                if error is not None:
                    raise error
                self._recorder.report(name, "load", 0, began, self.held_bytes, granted)
            finally:
                del self._memory.loading[name]
            self._models[name] = Batches(model, plan)
        correction = self.corrections.setdefault(plan.source, Correction())
        return _LoadedModel(self, name, model, correction)

    def _load_error(self, source: str, model: ModelledModel) -> Exception | None:
        """How the load ends that begins now."""
        number = self._loads[source, model]
        self._loads[source, model] += 1
        return model.load_errors[number] if number < len(model.load_errors) else model.load_error

    async def unload(self, name: str) -> int:
        with trio.CancelScope(shield=True):
            async with self._device:
                rows = self._models[name]
                for row in list(rows):
                    self._let_go(name, row)
                    row.deliver(_gone(name, row.request.row_id))
                await trio.sleep(rows.model.unload_seconds)
                self._recorder.record("unload", name)
                del self._models[name]
                self._memory.leftover_bytes += rows.model.leftover_bytes
        return rows.model.leftover_bytes

    async def tune(self, name: str, parameters: TuneParameters) -> WiredMemoryMeasurement:
        model = self._models[name].model
        async with self._device:
            measurement = self._memory.tuned = model.measurement(parameters)
            peak = self.held_bytes + measurement.workspace_bytes
            try:
                for seconds in model.measured_steps(parameters):
                    await trio.lowlevel.checkpoint_if_cancelled()
                    granted, began = self._recorder.granted(), trio.current_time()
                    with trio.CancelScope(shield=True):
                        await trio.sleep(seconds)
                    self._recorder.report(name, "tune", 0, began, peak, granted)
            finally:
                self._recorder.record("tune", name)
                self._memory.tuned = None
        return measurement

    # -- rows

    def submit(
        self, name: str, request: RowRequest, deliver: Callable[[RowOutput], object]
    ) -> None:
        if name not in self._models:
            deliver(_gone(name, request.row_id))
            return
        self._models[name].add(Row(request, deliver))
        self._recorder.record("submit", name, request.row_id)
        self._wake.set()

    async def remove(self, row_id: str) -> int:
        kv_bytes = 0
        with trio.CancelScope(shield=True):
            async with self._device:
                for name, rows in self._models.items():
                    for row in [row for row in rows if row.request.row_id == row_id]:
                        kv_bytes = rows.share(row)
                        self._let_go(name, row)
        return kv_bytes

    def _let_go(self, name: str, row: Row) -> None:
        self._recorder.record("let_go", name, row.request.row_id)
        self._models[name].let_go(row)

    # -- steps

    async def _step(self) -> bool:
        """The next step; whether there was one."""
        step = self._schedule.choose(self._models)
        if step is None:
            return False
        rows, began = self._models[step.model], trio.current_time()
        waiting = rows.decodes
        if step.prompts:
            await self._read(step.model, rows, step.prompts)
        else:
            await self._decode(step.model, rows)
        self._schedule.record(step, trio.current_time() - began, decodes=waiting)
        return True

    async def _read(self, name: str, rows: Batches, numbers: Sequence[int]) -> None:
        """A chunk of prompts."""
        granted, began = self._recorder.granted(), trio.current_time()
        await trio.sleep(rows.read(numbers) / rows.model.prefill_tokens_per_second)
        rows.mend()
        self._recorder.record("prefill", name)
        self._recorder.report(
            name, "prefill", 0, began, self.held_bytes + rows.model.workspace_bytes, granted
        )

    async def _decode(self, name: str, rows: Batches) -> None:
        """A token for each row of a batch."""
        granted, began = self._recorder.granted(), trio.current_time()
        batch = rows.turn()
        await trio.sleep(rows.model.step_seconds)
        outputs = [(row, output) for row in batch for output in self._outputs(rows.model, row)]
        self._recorder.record("step", name)
        peak = self.held_bytes + rows.model.workspace_bytes
        shares = {row: rows.share(row) for row, output in outputs if output.last}
        for row in shares:
            self._let_go(name, row)
        rows.mend()
        self._recorder.report(name, "step", len(batch), began, peak, granted)
        for row, output in outputs:
            row.deliver(attrs.evolve(output, kv_bytes=shares[row]) if output.last else output)

    def _outputs(self, model: ModelledModel, row: Row) -> list[RowOutput]:
        row_id = row.request.row_id
        after_tokens, error = self._failures.get(row_id, (-1, None))
        if error is None or row.generated != after_tokens:
            return row.step(model)
        del self._failures[row_id]
        return [RowOutput(row_id=row_id, error=error)]

    def _write_limits(self) -> bool:
        return self._quiet is not None and self._quiet.write_now()


def _gone(name: str, row_id: str) -> RowOutput:
    return RowOutput(row_id=row_id, error=GenerationError(f"{name} was unloaded under {row_id}"))


class _LoadedModel:
    """What the actors see of a loaded model; see the protocol."""

    def __init__(
        self, engine: ModelledEngine, name: str, model: ModelledModel, correction: Correction
    ):
        self._engine = engine
        self._name = name
        self._model = model
        self.weight_bytes = model.weights_in_memory
        self.context_length = model.context_length
        self.correction = correction

    def row_cost(self, options: CacheOptions) -> CacheCost:
        return self._model.row_cost(options)

    def encode(self, prompt: Prompt) -> list[int]:
        return self._model.encode(prompt)

    def submit(self, request: RowRequest, deliver: Callable[[RowOutput], object]) -> None:
        self._engine.submit(self._name, request, deliver)

    async def remove(self, row_id: str) -> int:
        return await self._engine.remove(row_id)

    async def recall(self, parameters: TuneParameters) -> WiredMemoryMeasurement | None:
        """It keeps no measurements."""
        await trio.lowlevel.checkpoint()
        return None

    async def predict(self, parameters: TuneParameters) -> WiredMemoryMeasurement:
        await trio.lowlevel.checkpoint()
        return self._model.prediction(parameters)

    async def tune(
        self, parameters: TuneParameters, *, remeasure: bool = False
    ) -> WiredMemoryMeasurement:
        """Each is run; see `recall`."""
        return await self._engine.tune(self._name, parameters)

    async def unload(self) -> int:
        return await self._engine.unload(self._name)
