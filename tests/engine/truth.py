"""What a model really takes: it is loaded and run, and active memory is read.

MLX's pool is off meanwhile, so that each buffer is as large as was asked; nothing else may use MLX
in the process. Everything is freed again before the figures are given out.

All figures are exact and repeat, but for the peak. On the CPU the thread that hands out the work
runs ahead of the one that does it, by a hundred operations or so, and allocates for all of them;
how far is chance. Three runs of one tiny model differ by two per cent of its workspace at the
median of the architectures, by twenty at worst; and that workspace is three times (one to seven)
what it is under a memory limit of 0, where MLX waits for the work before it allocates more.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from wiredactors.engine.imports import import_mlx, import_mlx_lm


@attrs.frozen(kw_only=True)
class Truth:
    """Bytes of active memory that one model took, over what there was before it.

    Attributes:
        weight_bytes: after the load, before the first token.
        constant_bytes: what the first token added to the model itself: tables that are made when
            it is built and evaluated only now (frequencies of rotary positions, scales of norms).
            Below zero where what they were made of was larger.
        kv_bytes: what went when the cache went.
        peak_bytes: the most at any moment of the steps that were watched.
    """

    weight_bytes: int
    constant_bytes: int
    kv_bytes: int
    peak_bytes: int

    @property
    def workspace_bytes(self) -> int:
        """What the largest step took beside weights and cache, the constants among it."""
        return self.peak_bytes - self.weight_bytes - self.kv_bytes


def measure(
    path: Path,
    *,
    token_count: int,
    prefill_step_size: int,
    batch_size: int = 1,
    kv_bits: int | None = None,
    max_kv_size: int | None = None,
) -> Truth:
    """Load the model and let it read a prompt, a chunk at a time, as mlx-lm's generation does."""
    with _no_pool():
        run = _Run(path, tokens=(batch_size, token_count), max_kv_size=max_kv_size)
        run.watch()
        run.prefill(token_count, prefill_step_size, kv_bits)
        return run.end()


def measure_decode(
    path: Path,
    *,
    token_count: int,
    prefill_step_size: int,
    steps: int,
    batch_size: int = 1,
    kv_bits: int | None = None,
    max_kv_size: int | None = None,
) -> Truth:
    """The same, then `steps` steps of one token a row: the peak is theirs alone."""
    with _no_pool():
        run = _Run(path, tokens=(batch_size, token_count + steps), max_kv_size=max_kv_size)
        run.prefill(token_count, prefill_step_size, kv_bits)
        run.watch()
        run.decode(steps, kv_bits)
        return run.end()


#: A compiled function keeps the scalars of its first call as long as the process lives.
_MOST_SCALARS = 128


class _Run:
    def __init__(self, path: Path, *, tokens: tuple[int, int], max_kv_size: int | None):
        self._mx = mx = import_mlx()
        self._quantize = import_mlx_lm("generate").maybe_quantize_kv_cache
        rows, length = tokens
        # The prompt and the random key, which the initial weights need, belong to nobody here.
        mx.random.seed(0)
        self._tokens = mx.broadcast_to(mx.arange(length, dtype=mx.int32) % 251, (rows, length))
        mx.eval(self._tokens)
        self._read = 0
        self._before = self._active()
        self._model, _ = import_mlx_lm("utils").load_model(path)
        self._loaded = self._active()
        make_cache = import_mlx_lm("models.cache").make_prompt_cache
        self._cache: list[Any] = make_cache(self._model, max_kv_size)

    def watch(self) -> None:
        self._active()
        self._mx.reset_peak_memory()

    def prefill(self, token_count: int, step_size: int, kv_bits: int | None) -> None:
        while self._read < token_count:
            self._step(min(step_size, token_count - self._read), kv_bits)

    def decode(self, steps: int, kv_bits: int | None) -> None:
        for _ in range(steps):
            self._step(1, kv_bits, wants_logits=True)

    def _step(self, count: int, kv_bits: int | None, *, wants_logits: bool = False) -> None:
        chunk = self._tokens[:, self._read : self._read + count]
        self._read += count
        logits = self._model(chunk, cache=self._cache)
        wanted = [logits[:, -1]] if wants_logits else []
        del logits
        self._quantize(self._cache, quantized_kv_start=0, kv_group_size=64, kv_bits=kv_bits)
        self._mx.eval(wanted, [cache.state for cache in self._cache])

    def end(self) -> Truth:
        with_cache = self._active()
        peak = max(self._mx.get_peak_memory(), with_cache)
        del self._cache
        without = self._active()
        del self._model
        left = self._active() - self._before
        assert 0 <= left <= _MOST_SCALARS, f"{left} bytes stayed when the model had gone"
        return Truth(
            weight_bytes=self._loaded - self._before,
            constant_bytes=without - self._loaded - left,
            kv_bytes=with_cache - without,
            peak_bytes=peak - self._before,
        )

    def _active(self) -> int:
        # A stream's thread may still hold a step's arrays when the evaluation has returned.
        self._mx.synchronize()
        gc.collect()
        return int(self._mx.get_active_memory())


@contextmanager
def _no_pool() -> Iterator[None]:
    mx = import_mlx()
    gc.collect()
    gc.freeze()  # the collections to come have the model only to look at
    before = mx.set_cache_limit(0)
    mx.clear_cache()
    try:
        yield
    finally:
        gc.unfreeze()
        mx.set_cache_limit(before)
        mx.random.seed(0)
