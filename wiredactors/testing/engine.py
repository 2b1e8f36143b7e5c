"""An engine that models time and memory instead of running MLX, for trio's mock clock.

It works as the real one does: one device, which a load or a step has to itself; rows of one model
and one bucket share steps; batches take turns; one prompt at a time is prefilled in chunks, beside
the rows that decode already. It imports only trio and the pure scheduling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import trio

from wiredactors.actors.protocol import Guard, LimitBackend
from wiredactors.memory.cache_cost import CacheCost, bucket_tokens
from wiredactors.memory.correction import Correction
from wiredactors.memory.errors import GenerationError, ModelLoadError
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.scheduling.requests import (
    LoadOptions,
    LoadPlan,
    Prompt,
    RowOutput,
    RowRequest,
    StepReport,
)
from wiredactors.scheduling.turns import Turns
from wiredactors.testing.backend import Done, QuietBackend
from wiredactors.testing.model import ModelledModel
from wiredactors.testing.record import EngineRecord
from wiredactors.testing.rows import Row

#: A load looks so many times whether it was cancelled, and says as often how far it is.
_LOAD_PARTS = 4

_Key = tuple[str, int]  # a batch: its model's name and its bucket


class ModelledEngine:
    """Pass it to `open_runtime` as the engine. Sizes are bytes.

    Attributes:
        sources: what can be loaded, by source; change it as you like.
        pool_bytes: as if its allocator kept so much.
        corrections: what was learned of each source; it outlives its models.
        records: what happened, in order.
        reports: every step's and load's report.
    """

    def __init__(
        self,
        sources: Mapping[str, ModelledModel] | None = None,
        *,
        pool_bytes: int = 0,
        backend: LimitBackend | None = None,
        open_error: Exception | None = None,
    ):
        """Without `sources` there is one, "model", with every default.

        `backend` is written at quiet points, between two steps; None leaves it to `open_runtime`.
        """
        self.sources = dict({"model": ModelledModel()} if sources is None else sources)
        self.pool_bytes = pool_bytes
        self.corrections: dict[str, Correction] = {}
        self.records: list[EngineRecord] = []
        self.reports: list[StepReport] = []
        self._backend = backend
        self._open_error = open_error
        self._granted: Callable[[], int] = lambda: 0
        self._on_step: Callable[[StepReport], object] | None = None
        self._device = trio.Lock()
        self._is_open = False
        self._wake = trio.Event()
        self._closed = trio.Event()
        self._writes: list[tuple[int, Done]] = []
        self._models: dict[str, ModelledModel] = {}
        self._loading: dict[str, ModelledModel] = {}
        self._plans: dict[str, LoadPlan] = {}
        self._batches: dict[_Key, list[Row]] = {}
        self._turns: Turns[_Key] = Turns()
        self._failures: dict[str, tuple[int, Exception]] = {}
        self._tuned: WiredMemoryMeasurement | None = None  # what is measured now

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
        return frozenset(row.request.row_id for batch in self._batches.values() for row in batch)

    @property
    def held_bytes(self) -> int:
        """Weights and caches, as padded in their batches, and of a load its peak."""
        held = sum(model.weights_in_memory for model in self._models.values())
        held += sum(model.load_peak for model in self._loading.values())
        for (name, _), batch in self._batches.items():
            longest = max((row.steps for row in batch), default=0)
            held += len(batch) * self._models[name].cache_bytes(longest)
        return held + (self._tuned.kv_bytes if self._tuned is not None else 0)

    @property
    def charged_bytes(self) -> int:
        """What the tickets of all that it holds should sum up to: each row at its longest."""
        charged = sum(model.weights_in_memory for model in self._models.values())
        charged += sum(model.load_peak for model in self._loading.values())
        charged += max((model.workspace_bytes for model in self._models.values()), default=0)
        charged += sum(self._plans[name].margin_bytes for name in self._models)
        if (tuned := self._tuned) is not None:
            own = max((model.workspace_bytes for model in self._models.values()), default=0)
            charged += tuned.kv_bytes + max(0, tuned.workspace_bytes - own)
        for (name, _), batch in self._batches.items():
            cost = self._models[name].cache_cost
            charged += sum(cost.row_bytes(row.request.total_tokens) for row in batch)
        return charged

    # -- life

    async def open(
        self, granted: Callable[[], int], on_step: Callable[[StepReport], object] | None
    ) -> None:
        await trio.lowlevel.checkpoint()
        if self._open_error is not None:
            raise self._open_error
        self._granted, self._on_step = granted, on_step
        self._is_open, self._closed = True, trio.Event()
        trio.lowlevel.spawn_system_task(self._run, name="the modelled device")

    async def close(self) -> None:
        self._is_open = False
        self._wake.set()
        with trio.CancelScope(shield=True):
            await self._closed.wait()
        self._record("close", "")
        self._batches.clear()
        self._models.clear()

    def limit_backend(self, guard: Guard) -> LimitBackend | None:
        return None if self._backend is None else QuietBackend(self._backend, self._ask_write)

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
            granted = self._granted()
            began = trio.current_time()
            self._loading[name] = model
            self._record("load", name)
            try:
                for part in range(1, _LOAD_PARTS + 1):
                    with trio.CancelScope(shield=True):
                        await trio.sleep(model.load_seconds / _LOAD_PARTS)
                    await trio.lowlevel.checkpoint_if_cancelled()
                    progress(model.weight_bytes * part // _LOAD_PARTS, model.weight_bytes)
                if model.load_error is not None:
                    raise model.load_error
                self._report(name, "load", 0, began, self.held_bytes, granted)
            finally:
                del self._loading[name]
            self._models[name], self._plans[name] = model, plan
        correction = self.corrections.setdefault(plan.source, Correction())
        return _LoadedModel(self, name, model, correction)

    async def unload(self, name: str) -> None:
        with trio.CancelScope(shield=True):
            async with self._device:
                self._record("unload", name)
                for key in [key for key in self._batches if key[0] == name]:
                    del self._batches[key]
                del self._models[name]

    async def tune(self, name: str, parameters: TuneParameters) -> WiredMemoryMeasurement:
        model = self._models[name]
        async with self._device:
            measurement = self._tuned = model.measurement(parameters)
            peak = self.held_bytes + measurement.workspace_bytes
            try:
                for seconds in model.measured_steps(parameters):
                    await trio.lowlevel.checkpoint_if_cancelled()
                    granted, began = self._granted(), trio.current_time()
                    with trio.CancelScope(shield=True):
                        await trio.sleep(seconds)
                    self._report(name, "tune", 0, began, peak, granted)
            finally:
                self._record("tune", name)
                self._tuned = None
        return measurement

    # -- rows

    def submit(
        self, name: str, request: RowRequest, deliver: Callable[[RowOutput], object]
    ) -> None:
        key = (name, bucket_tokens(request.total_tokens))
        self._batches.setdefault(key, []).append(Row(request, deliver))
        self._record("submit", name, request.row_id)
        self._wake.set()

    async def remove(self, row_id: str) -> int:
        kv_bytes = 0
        with trio.CancelScope(shield=True):
            async with self._device:
                for key, batch in list(self._batches.items()):
                    for row in [row for row in batch if row.request.row_id == row_id]:
                        if row.decodes:
                            kv_bytes = row.cache_bytes(self._models[key[0]])
                        self._let_go(key, row)
        return kv_bytes

    def _let_go(self, key: _Key, row: Row) -> None:
        self._record("let_go", key[0], row.request.row_id)
        self._batches[key].remove(row)
        if not self._batches[key]:
            del self._batches[key]

    # -- steps

    async def _step(self) -> bool:
        """One step of the batch whose turn it is; whether there was one."""
        key = self._turns.next(self._batches)
        if key is None:
            return False
        name = key[0]
        model, granted, began = self._models[name], self._granted(), trio.current_time()
        options = self._plans[name].options
        sharing = self._batches[key][: options.max_batch_size]
        decoding = [row for row in sharing if row.decodes]
        prefilling = next((row for row in sharing if not row.decodes), None)
        seconds = model.step_seconds if decoding else 0.0
        if prefilling is not None:
            assert options.prefill_step_size is not None
            chunk = min(options.prefill_step_size, prefilling.unread)
            seconds += chunk / model.prefill_tokens_per_second
            prefilling.prefilled += chunk
        await trio.sleep(seconds)
        outputs = [output for row in decoding for output in self._outputs(model, row)]
        self._record("step", name)
        peak = self.held_bytes + model.workspace_bytes
        delivers = {row.request.row_id: row.deliver for row in decoding}
        gone = {output.row_id for output in outputs if output.last}
        for row in decoding:
            if row.request.row_id in gone:
                self._let_go(key, row)
        self._report(name, "step", len(decoding), began, peak, granted)
        for output in outputs:
            delivers[output.row_id](output)
        return True

    def _outputs(self, model: ModelledModel, row: Row) -> list[RowOutput]:
        row_id = row.request.row_id
        after_tokens, error = self._failures.get(row_id, (-1, None))
        if error is None or row.generated != after_tokens:
            return row.step(model)
        del self._failures[row_id]
        return [RowOutput(row_id=row_id, error=error, kv_bytes=row.cache_bytes(model))]

    # -- records

    def _record(self, what: str, model: str, row_id: str | None = None) -> None:
        self.records.append(
            EngineRecord(
                time=trio.current_time(),
                what=what,
                model=model,
                row_id=row_id,
                held_bytes=self.held_bytes,
                charged_bytes=self.charged_bytes,
                granted_bytes=self._granted(),
            )
        )

    def _report(
        self, model: str, what: str, rows: int, began: float, peak: int, granted: int
    ) -> None:
        report = StepReport(
            model=model,
            what=what,
            rows=rows,
            seconds=trio.current_time() - began,
            active_bytes=self.held_bytes,
            peak_bytes=peak,
            granted_bytes=granted,
        )
        self.reports.append(report)
        if self._on_step is not None:
            self._on_step(report)

    # -- limits

    def _ask_write(self, limit: int, done: Done) -> None:
        self._writes.append((limit, done))
        self._wake.set()

    def _write_limits(self) -> bool:
        writes, self._writes = self._writes, []
        for limit, done in writes:
            assert self._backend is not None
            try:
                previous = self._backend.set_wired_limit(limit)
            except Exception as error:
                done(None, error)
            else:
                done(previous, None)
        return bool(writes)


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
        self.cache_cost: CacheCost = model.cache_cost
        self.correction = correction

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

    async def unload(self) -> None:
        await self._engine.unload(self._name)
