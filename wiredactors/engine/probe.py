"""MLX's memory while something is measured: a quiet process, and what each step held."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

from wiredactors.engine.device import is_taken, without_locals
from wiredactors.engine.imports import import_mlx
from wiredactors.memory.cache_cost import CacheCost
from wiredactors.memory.errors import WiredMemoryError
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement


class TuneError(WiredMemoryError):
    """The model cannot be measured as asked, through its caller's fault.

    Its tokenizer makes no prompt, its input is wrong, or a runtime uses MLX meanwhile: the message
    says what to give, or to close, instead.
    """


class Probe:
    """MLX's active memory, step by step, against where it began."""

    def __init__(self, mx: Any):
        self._mx = mx
        self._before = 0
        self._steps: list[tuple[int, int]] = []  # the peak, and what was left after it

    def begin(self) -> None:
        """From here on it counts."""
        gc.collect()
        self._mx.synchronize()
        self._before = self._mx.get_active_memory()
        self._steps = []

    def step(self, run: Callable[[], None]) -> None:
        """Run a step that is evaluated when it returns."""
        self._mx.reset_peak_memory()
        begin = self._mx.get_active_memory()
        run()
        self._mx.synchronize()
        # A reset sets the peak to 0, and only allocations raise it again.
        peak = max(begin, self._mx.get_peak_memory())
        self._steps.append((peak - self._before, self.grown_bytes))

    def forget_steps(self) -> None:
        """Only the steps from here on count for workspace and peak."""
        self._steps = []

    @property
    def grown_bytes(self) -> int:
        """What active memory has grown by since the beginning."""
        return int(self._mx.get_active_memory() - self._before)

    def measurement(
        self, parameters: TuneParameters, *, weight_bytes: int, kv_bytes: int, cost: CacheCost
    ) -> WiredMemoryMeasurement:
        """What the steps came to.

        The workspace of a step is what it held beyond the cache that it left, or beyond the cache
        at the end where that is smaller (a window that has shrunk), so that weights, cache and
        workspace together are never below the peak.
        """
        return WiredMemoryMeasurement(
            weight_bytes=weight_bytes,
            kv_bytes=kv_bytes,
            workspace_bytes=max(peak - min(left, kv_bytes) for peak, left in self._steps),
            peak_active_bytes=weight_bytes + max(peak for peak, _ in self._steps),
            token_count=parameters.token_count,
            prefill_step_size=parameters.prefill_step_size,
            cache_cost=cost,
            batch_size=parameters.batch_size,
            kv_bits=parameters.kv_bits,
            max_kv_size=parameters.max_kv_size,
            decode_tokens=parameters.decode_tokens,
            measured=True,
        )


@contextlib.contextmanager
def open_probe(stream: Any) -> Iterator[Probe]:
    """Measure on a stream in a quiet process: nothing under way, and MLX's pool off.

    Raises:
        TuneError: a runtime is open, and this is not its thread.
    """
    if is_taken():
        raise TuneError(
            "a runtime is open in this process, and nothing else may use MLX while a pair is "
            "measured: load the model with runtime.load(...) and tune that, or close it first"
        )
    mx = import_mlx()
    mx.synchronize(stream)  # a batch runs a step ahead
    mx.synchronize()
    pool_bytes = mx.set_cache_limit(0)
    try:
        mx.clear_cache()
        with mx.stream(stream):
            yield Probe(mx)
    except BaseException as error:
        without_locals(error)  # it may be kept for long
        raise
    finally:
        gc.collect()
        mx.clear_cache()
        mx.set_cache_limit(pool_bytes)
