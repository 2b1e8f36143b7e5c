"""What the actors ask of a backend and of an engine. The actors know no more of MLX than this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from wiredactors.memory.cache_cost import CacheCost
from wiredactors.memory.correction import Correction
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


class LimitBackend(Protocol):
    """Who sets the wired limit. `supported` and the working set are read once, at opening."""

    @property
    def supported(self) -> bool:
        """Whether there is a limit to set; without one the manager decides and applies nothing."""

    def recommended_working_set_bytes(self) -> int | None:
        """The device's recommended working set in bytes, None where it reports none."""

    def set_wired_limit(self, limit: int) -> int | None:
        """Set the limit in bytes; may return the previous one; may raise. Must not block."""


@runtime_checkable
class DeferredLimitBackend(Protocol):
    """What a backend has besides that sets the limit at a quiet point of its own thread."""

    def write_wired_limit(
        self, limit: int, done: Callable[[int | None, BaseException | None], object]
    ) -> None:
        """Set the limit soon; then call `done(previous, error)` on the trio thread."""


class Guard(Protocol):
    """What keeps all others off the wired limit; an engine writes through it."""

    def write(self, limit: int) -> int | None:
        """The owner's own write, in bytes; returns the previous limit."""


class EngineModel(Protocol):
    """A loaded model, as the trio side sees it."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights in memory."""

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together that it can hold."""

    @property
    def correction(self) -> Correction:
        """What finished jobs have taught; the engine keeps it, the actors record into it."""

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: text as the tokenizer's defaults have it, messages through the
        chat template."""

    def row_cost(self, options: CacheOptions) -> CacheCost:
        """What a row takes whose cache is kept so.

        Raises ValueError where the model makes caches of its own, which ignore the options.
        """

    def submit(self, request: RowRequest, deliver: Callable[[RowOutput], object]) -> None:
        """Put a row into a batch; `deliver` gets its outputs on the trio thread, in order.

        They are one for each of its tokens, at most `max_tokens`, and at most one for text that is
        flushed and one that is only the last. Its cache has been let go when the last one comes.
        """

    async def remove(self, row_id: str) -> int:
        """Take a row out; returns when its cache has been let go. Not cancellable.

        Returns its share of the batch's cache in bytes until then, 0 if it never decoded: the
        batch's rows share it, padding too, in proportion to what they were charged.
        """

    async def recall(self, parameters: TuneParameters) -> WiredMemoryMeasurement | None:
        """What was measured of it in this way earlier; None where that was not kept."""

    async def predict(self, parameters: TuneParameters) -> WiredMemoryMeasurement:
        """What `tune` is going to find, without running anything. Raises ValueError."""

    async def tune(
        self, parameters: TuneParameters, *, remeasure: bool = False
    ) -> WiredMemoryMeasurement:
        """Run a prefill as they say, with the device to itself; what it took.

        An engine that has kept an earlier measurement may answer with that, unless `remeasure`.
        What it made has been freed when it returns. Cancellable between two chunks.
        """

    async def unload(self) -> int:
        """Let the weights go; returns how many of their bytes did not come back. Not cancellable.

        That is 0 normally. Otherwise somebody still holds arrays of it, and the engine has looked
        again for about a second, while other models went on with their steps. Rows that are still
        there end with a `GenerationError`, and so does one that is submitted afterwards.
        """


class Engine(Protocol):
    """Loads models and steps their rows, on a device that it has to itself."""

    @property
    def pool_bytes(self) -> int:
        """What its allocator's pool of freed buffers may hold besides all tickets."""

    @property
    def idle_seconds(self) -> float:
        """How long a model must have had nothing to do before it counts as idle.

        Jobs that share a batch end in one step, and whoever asked may ask again at once.
        """

    def limit_backend(self, guard: Guard) -> LimitBackend | None:
        """Who sets the wired limit at this engine's quiet points; after `open`."""

    async def open(
        self, granted: Callable[[], int], on_step: Callable[[StepReport], object] | None
    ) -> None:
        """Get ready. `granted()` is what the ledger has granted in bytes, readable from any
        thread; `on_step` hears of each step on the trio thread."""

    async def close(self) -> None:
        """Give everything back. Not cancellable."""

    async def plan(self, source: str, options: LoadOptions) -> LoadPlan:
        """What a load will take, before anything is loaded, with all of the options filled in
        that the device decides. Raises ModelLoadError.

        Asked again for the same it answers quickly, unless the source has changed.
        """

    async def load(
        self, name: str, plan: LoadPlan, progress: Callable[[int, int], object]
    ) -> EngineModel:
        """Load as planned; `progress(done, total)` in bytes comes on the trio thread.

        When it raises, or is cancelled, nothing of the model is left. The name is free: it was
        never loaded, or `unload` has returned. Raises ModelLoadError.
        """
