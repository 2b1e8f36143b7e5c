"""What a row takes, however its cache is kept: measured at load, then a matter of arithmetic."""

from __future__ import annotations

import contextlib
from typing import Any

import attrs

from wiredactors.engine.devices import device
from wiredactors.engine.graph import Unrecordable
from wiredactors.engine.kept import check_cache_options, make_caches
from wiredactors.engine.sizing import measure_cache, thinking_through
from wiredactors.engine.tracing import Tracer
from wiredactors.memory.cache_cost import STEP_TOKENS, CacheCost, WindowCost, bucket_tokens
from wiredactors.scheduling.requests import CacheOptions

#: A chunk is quantized a layer at a time; so many are alive at once as they were.
_LAYERS_AT_ONCE = 2

#: Attention over a quantized cache is never fused: scores, and their softmax.
_SCORES_AT_ONCE = 2


@attrs.frozen(kw_only=True)
class Layer:
    """Keys and values of a layer that mlx-lm can quantize: heads, width and bytes of a number."""

    heads: tuple[int, int]
    widths: tuple[int, int]
    item_bytes: int

    @property
    def token_bytes(self) -> int:
        return sum(h * w for h, w in zip(self.heads, self.widths, strict=True)) * self.item_bytes

    def packed_bytes(self, bits: int, group: int) -> int:
        """For each token: the packed numbers, and a scale and a bias of each group."""
        return sum(
            heads * (width * bits // 8 + 2 * self.item_bytes * (width // group))
            for heads, width in zip(self.heads, self.widths, strict=True)
        )


@attrs.frozen(kw_only=True)
class RowCosts:
    """The cost of a row of one model, by its options. It needs no MLX.

    Attributes:
        plain: of a cache as the model makes it.
        layers: those that can be quantized; None where only running the model would tell.
        prefill_step_size: tokens that are held unquantized at first.
        bounded: of a cache of `max_kv_size` tokens, with what each token takes, or the model's
            module where it makes its own caches.
        unquantizable: why there can be no quantized cache, if so.
        query_heads: of each token so many heads look at the cache.
    """

    plain: CacheCost
    layers: tuple[Layer, ...] | None
    prefill_step_size: int
    bounded: CacheCost | str
    unquantizable: str | None
    query_heads: int

    def of(self, options: CacheOptions) -> CacheCost:
        """What a row takes whose cache is kept so.

        Raises:
            ValueError: mlx-lm would ignore an option, or the model cannot work with it.
        """
        if options.plain:
            return self.plain
        if options.max_kv_size is not None:
            return self._bounded(options.max_kv_size)
        assert options.kv_bits is not None
        return self._quantized(options.kv_bits, options.kv_group_size)

    def _bounded(self, most: int) -> CacheCost:
        if isinstance(self.bounded, str):
            raise ValueError(
                f"max_kv_size={most} would have no effect: {self.bounded} makes its own cache. "
                "Leave it out"
            )
        windows = (
            # While a prompt is read it keeps so many for the first token of a chunk, too.
            attrs.evolve(window, most_tokens=most + self.prefill_step_size - 1)
            for window in self.bounded.windows
        )
        return attrs.evolve(self.bounded, windows=tuple(windows))

    def _quantized(self, bits: int, group: int) -> CacheCost:
        if self.unquantizable is not None:
            raise ValueError(f"kv_bits={bits}: {self.unquantizable}")
        plain = self.plain
        if self.layers is None:  # at most what it takes as it is
            return attrs.evolve(plain, copy_bytes=_LAYERS_AT_ONCE * plain.copy_bytes)
        for layer in self.layers:
            if any(width % group for width in layer.widths):
                raise ValueError(
                    f"kv_group_size={group} does not divide the width of this model's keys or "
                    f"values ({layer.widths[0]} and {layer.widths[1]}): take a smaller one or "
                    "leave kv_bits out"
                )
        saved = sum(layer.token_bytes - layer.packed_bytes(bits, group) for layer in self.layers)
        largest = max(layer.token_bytes for layer in self.layers)
        first = bucket_tokens(self.prefill_step_size) * largest
        # For a moment: one layer's cache anew and as it was, and the scores of a chunk.
        copies = 2 * max(layer.packed_bytes(bits, group) for layer in self.layers)
        numbers = _SCORES_AT_ONCE * self.query_heads * self.prefill_step_size
        copies += numbers * max(layer.item_bytes for layer in self.layers)
        return attrs.evolve(
            plain,
            fixed_bytes=plain.fixed_bytes + _LAYERS_AT_ONCE * first,
            step_bytes=plain.step_bytes - STEP_TOKENS * saved,
            copy_bytes=STEP_TOKENS * copies,
            windows=tuple(attrs.evolve(window, copy_bytes=0) for window in plain.windows),
        )


def measure_rows(model: Any, prefill_step_size: int) -> RowCosts:
    """Think through what rows of the model take. Nothing is evaluated.

    Raises:
        ModelLoadError: nothing is known of the model's cache, or something went wrong.
    """
    plain = measure_cache(model, prefill_step_size)
    layers: tuple[Layer, ...] | None = None
    with contextlib.suppress(Unrecordable):
        layers = _layers(model)
    unquantizable = None
    try:
        check_cache_options(model, CacheOptions(kv_bits=8, kv_group_size=_largest_group(layers)))
    except ValueError as error:
        unquantizable = str(error).removeprefix("kv_bits=8: ")
    return RowCosts(
        plain=plain,
        layers=layers,
        prefill_step_size=prefill_step_size,
        bounded=_bounded(model, plain, prefill_step_size),
        unquantizable=unquantizable,
        query_heads=_query_heads(model, layers),
    )


def _layers(model: Any) -> tuple[Layer, ...]:
    tracer = Tracer(model, make_caches(model, CacheOptions()), device())
    with thinking_through(model):
        tracer.step(1, 1)
    return tuple(
        Layer(
            heads=(cache.keys.shape[1], cache.values.shape[1]),
            widths=(cache.keys.shape[3], cache.values.shape[3]),
            item_bytes=cache.keys.dtype.size,
        )
        for cache in tracer.caches
        if hasattr(cache, "to_quantized") and cache.keys is not None
    )


def _largest_group(layers: tuple[Layer, ...] | None) -> int:
    widths = [width for layer in layers or () for width in layer.widths]
    return next((group for group in (64, 32) if not any(width % group for width in widths)), 32)


def _query_heads(model: Any, layers: tuple[Layer, ...] | None) -> int:
    """What the model's arguments call so; else a guess that is high."""
    for owner in (model, getattr(model, "language_model", None)):
        arguments = getattr(owner, "args", None)
        for name in ("num_attention_heads", "n_heads", "n_head", "num_heads"):
            heads = getattr(arguments, name, None)
            if isinstance(heads, int) and heads > 0:
                return heads
    return 16 * max((max(layer.heads) for layer in layers or ()), default=1)


def _bounded(model: Any, plain: CacheCost, prefill_step_size: int) -> CacheCost | str:
    """The cost with one window for all; its length is yet to be filled in."""
    if hasattr(model, "make_cache"):
        return type(model).__module__
    token = plain.step_bytes // STEP_TOKENS
    apart = 0
    with contextlib.suppress(Unrecordable):
        bound = CacheOptions(max_kv_size=8 + prefill_step_size)
        tracer = Tracer(model, make_caches(model, bound), device())
        with thinking_through(model):
            tracer.step(1, max(2, prefill_step_size))
        # It keeps the first chunk as it is, which may be cut from something larger.
        apart = max(0, tracer.cache_bytes - token * max(2, prefill_step_size))
    window = WindowCost(most_tokens=prefill_step_size, token_bytes=token, copy_bytes=0)
    fixed = plain.fixed_bytes + apart
    return CacheCost(fixed_bytes=fixed, step_bytes=0, copy_bytes=0, windows=(window,))
