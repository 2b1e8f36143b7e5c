"""`estimate`: what a model will take, with nothing loaded, for any architecture that mlx-lm knows.

There is no table of formulas. The model is built without numbers (`blueprint`), its prefill is
thought through chunk by chunk as mlx-lm would run it (`tracing`), and bytes are read off buffers.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from wiredactors.engine.blueprint import Blueprint, draw_config, draw_directory, draw_gguf
from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.engine.liveness import CPU
from wiredactors.engine.loading import local_path
from wiredactors.engine.sizing import cache_cost, measure_cache, rough_workspace, workspace_at
from wiredactors.engine.tracing import Tracer, key_value_parts
from wiredactors.engine.tuning import cache_maker
from wiredactors.memory.cache_cost import STEP_TOKENS, CacheCost, grown_tokens
from wiredactors.memory.errors import ModelLoadError
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement

#: Of a long prompt the first chunk and so many at the end are thought through whole.
_WHOLE_CHUNKS = 2

#: MLX's words where a model's code wants to see what has not been evaluated.
_ASKS_FOR_NUMBERS = "Attempting to eval an array"

#: Where a model works token by token, a prompt of more operations is not thought through whole
#: (about three seconds), ...
_MOST_OPERATIONS = 60_000
#: ... but so many tokens of it, and sizes go on in a straight line from there.
_SHORT = (16, 32)


def estimate(
    source: str | Path | Mapping[str, Any],
    token_count: int = 2048,
    prefill_step_size: int = 2048,
    batch_size: int = 1,
    kv_bits: int | None = None,
    *,
    kv_group_size: int = 64,
    max_kv_size: int | None = None,
    decode_tokens: int = 0,
    dtype: str | None = None,
    dequantize: bool = False,
    draft: str | Path | Mapping[str, Any] | None = None,
) -> WiredMemoryMeasurement:
    """Predict what a model takes, with nothing loaded: weights, cache and workspace in bytes.

    It reads the config and the headers of the weight files; of a hub id those are all that is
    fetched. Nothing is evaluated: a 70B takes less than a second. The caches are those after
    exactly `token_count` tokens of each row, in chunks of at most `prefill_step_size`, the rest as
    the last chunk. On the caller's thread, and it needs no tokenizer.

    Weights and caches are exact to the byte against MLX's active memory on a CPU (on a GPU each
    array is rounded up to MLX's pages). The workspace is that of the device that is MLX's default:
    what its evaluation holds at most when the device is slow; see docs/sizing.md for the measured
    errors.

    Args:
        source: a model directory in Hugging Face layout, a GGUF file, a hub id, or a config. From
            a config alone the weights are approximate.
        token_count, prefill_step_size, batch_size, kv_bits, kv_group_size, max_kv_size,
            decode_tokens: see `TuneParameters`.
        dtype: of activations and unpacked weights of a GGUF file; None is the device's own
            (float32 on a CPU, else float16). Directories keep theirs.
        dequantize: whether a GGUF's packed weights become plain numbers.
        draft: a second, smaller model for speculative decoding. Weights and caches of both add up,
            the workspace is the larger one, since their steps take turns.

    Raises:
        ModelLoadError: the source cannot be read, or mlx-lm cannot make a model of it.
        ValueError: a number is out of its range, or the model's cache does not go with `kv_bits`
            or `max_kv_size`.
    """
    parameters = TuneParameters(
        token_count=token_count,
        prefill_step_size=prefill_step_size,
        batch_size=batch_size,
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        max_kv_size=max_kv_size,
        decode_tokens=decode_tokens,
    )
    draw_it = functools.partial(draw, dtype=dtype, dequantize=dequantize)
    measurement = estimate_blueprint(draw_it(source), parameters)
    if draft is None:
        return measurement
    return _together(measurement, estimate_blueprint(draw_it(draft), parameters))


def draw(
    source: str | Path | Mapping[str, Any], *, dtype: str | None = None, dequantize: bool = False
) -> Blueprint:
    """The blueprint of a source; see `estimate`.

    Raises:
        ModelLoadError: it cannot be read, or mlx-lm cannot make a model of it.
    """
    if isinstance(source, Mapping):
        return draw_config(source)
    path = local_path(source)
    if path is None:
        from wiredactors.engine.hub import draw_hub

        return draw_hub(str(source))
    if path.is_dir():
        return draw_directory(path)
    if dtype is None:
        mx = import_mlx()
        dtype = "float32" if mx.default_device() == mx.cpu else "float16"
    return draw_gguf(path, dequantize=dequantize, dtype=dtype)


def estimate_blueprint(blueprint: Blueprint, parameters: TuneParameters) -> WiredMemoryMeasurement:
    """What a model of this blueprint takes; see `estimate`.

    Raises:
        ValueError: the model's cache does not go with `kv_bits` or `max_kv_size`.
    """
    prefill = _Prefill(blueprint, parameters)
    found = prefill.run()
    reasons = [why for why in (blueprint.approximate, found.approximate) if why]
    weights = blueprint.weight_bytes
    return WiredMemoryMeasurement(
        weight_bytes=weights,
        kv_bytes=found.kv_bytes,
        workspace_bytes=found.workspace_bytes,
        peak_active_bytes=weights + found.peak_bytes,
        cache_cost=prefill.row_cost(),
        token_count=parameters.token_count,
        prefill_step_size=parameters.prefill_step_size,
        batch_size=parameters.batch_size,
        kv_bits=parameters.kv_bits,
        max_kv_size=parameters.max_kv_size,
        decode_tokens=parameters.decode_tokens,
        approximate="; ".join(reasons) or None,
    )


def _together(
    target: WiredMemoryMeasurement, draft: WiredMemoryMeasurement
) -> WiredMemoryMeasurement:
    """A model and its draft: both stay, and one of them steps."""
    kv_bytes = target.kv_bytes + draft.kv_bytes
    workspace = max(target.workspace_bytes, draft.workspace_bytes)
    weights = target.weight_bytes + draft.weight_bytes
    return attrs.evolve(
        target,
        weight_bytes=weights,
        kv_bytes=kv_bytes,
        workspace_bytes=workspace,
        peak_active_bytes=weights + kv_bytes + workspace,
        cache_cost=target.cache_cost + draft.cache_cost,
        approximate="; ".join(filter(None, (target.approximate, draft.approximate))) or None,
    )


@attrs.frozen(kw_only=True)
class _Found:
    """Bytes of a prefill: the caches at its end, the largest step, the worst moment."""

    kv_bytes: int
    workspace_bytes: int
    peak_bytes: int
    approximate: str | None = None


class _Prefill:
    """A prefill thought through, as `tuning` runs it."""

    def __init__(self, blueprint: Blueprint, parameters: TuneParameters):
        self._blueprint = blueprint
        self._model = blueprint.model
        self._parameters = parameters
        self._make_cache = cache_maker(self._model, parameters, import_mlx_lm("models.cache"))
        self._tracer = self._new_tracer()
        self._step_tokens = parameters.prefill_step_size  # of a step that is thought through

    def run(self) -> _Found:
        parameters = self._parameters
        whole, rest = divmod(parameters.token_count, parameters.prefill_step_size)
        chunks = [parameters.prefill_step_size] * whole + [rest] * (rest > 0)
        try:
            if self._operations(chunks) > _MOST_OPERATIONS:
                self._step_tokens = _SHORT[-1]
                return self._extrapolated(chunks)
            return self._thought_through(chunks)
        except Exception as error:
            return self._roughly(chunks, error)

    def row_cost(self) -> CacheCost:
        """What any other row takes; after `run`."""
        parameters = self._parameters
        if parameters.kv_bits is None and parameters.max_kv_size is None:
            with contextlib.suppress(Exception):  # its caches cannot be shared, or not be traced
                return measure_cache(self._model, self._step_tokens)
        return cache_cost(
            self._tracer,
            rows=parameters.batch_size,
            prefill_step_size=parameters.prefill_step_size,
        )

    def _new_tracer(self) -> Tracer:
        return Tracer(self._model, self._make_cache(), CPU, self._quantize)

    def _quantize(self, caches: list[Any]) -> None:
        import_mlx_lm("generate").maybe_quantize_kv_cache(
            caches,
            quantized_kv_start=0,
            kv_group_size=self._parameters.kv_group_size,
            kv_bits=self._parameters.kv_bits,
        )

    def _thought_through(self, chunks: list[int]) -> _Found:
        tracer, rows = self._tracer, self._parameters.batch_size
        tracer.step(rows, chunks[0])
        rest = chunks[1:]
        if len(rest) > _WHOLE_CHUNKS and tracer.can_grow:
            # The chunks between change nothing but the length, and later ones take more.
            for chunk in rest[:-_WHOLE_CHUNKS]:
                tracer.grow(chunk)
                tracer.steps.pop()
            rest = rest[-_WHOLE_CHUNKS:]
        for chunk in rest:
            tracer.step(rows, chunk)
        if self._parameters.decode_tokens:
            self._decode(tracer)
        return _found(tracer)

    def _decode(self, tracer: Tracer) -> None:
        """Then single tokens: those count alone for the workspace."""
        tracer.steps.clear()
        parameters = self._parameters
        room = grown_tokens(parameters.token_count, 0, parameters.prefill_step_size)
        for done in range(parameters.decode_tokens):
            full = (parameters.token_count + done - room) % STEP_TOKENS == 0
            if tracer.can_grow and 0 < done < parameters.decode_tokens - 1 and not full:
                tracer.grow(1)
                tracer.steps.pop()
            else:
                tracer.step(parameters.batch_size, 1, logits=True)

    def _operations(self, chunks: list[int]) -> int:
        """Operations of the whole prompt, if there are more of them the more tokens there are."""
        if len(key_value_parts(self._tracer.caches)) == len(self._tracer.caches):
            return 0  # attention alone is one graph, however long the prompt
        counts = []
        for tokens in _SHORT:
            tracer = self._new_tracer()
            tracer.step(1, tokens)
            counts.append(tracer.operations)
        each_token = (counts[1] - counts[0]) // (_SHORT[1] - _SHORT[0])
        return each_token * sum(chunks)

    def _extrapolated(self, chunks: list[int]) -> _Found:
        """From steps of few tokens: each more token takes as much as the one before."""
        parameters, rows = self._parameters, self._parameters.batch_size
        states, workspaces = [], []
        for tokens in _SHORT:
            tracer = self._new_tracer()
            tracer.step(rows, tokens)
            keys = sum(tracer.bytes_of(part) for part in key_value_parts(tracer.caches))
            states.append(tracer.cache_bytes - keys)
            tracer = self._new_tracer()
            workspaces.append(
                workspace_at(tracer, rows=rows, tokens=tokens, context=parameters.token_count)
            )
        self._tracer = tracer
        alone = self._new_tracer()
        alone.fed = tracer.fed
        for chunk in chunks:
            alone.grow(chunk)
        kv_bytes = alone.cache_bytes + _at(chunks[-1], states)
        # A state may keep its whole step's activations alive, so that of the largest step counts.
        peak = alone.cache_bytes + _at(chunks[0], states) + _at(chunks[0], workspaces)
        return _Found(
            kv_bytes=kv_bytes,
            workspace_bytes=peak - kv_bytes,
            peak_bytes=peak,
            approximate=f"it works token by token: its states and its workspace are extrapolated "
            f"from steps of {_SHORT[0]} to {_SHORT[-1]} tokens",
        )

    def _roughly(self, chunks: list[int], error: Exception) -> _Found:
        """Where the model's own code asks for numbers that are not there.

        It has mostly shown by then what its first layer keeps, and the others are taken to be
        alike.

        Raises:
            ValueError: it is the quantized cache that the model cannot use.
            ModelLoadError: nothing is known of its caches.
        """
        parameters = self._parameters
        if parameters.kv_bits is not None and _ASKS_FOR_NUMBERS not in str(error):
            raise ValueError(
                f"kv_bits={parameters.kv_bits}: this model cannot use a quantized cache "
                f"({error}). Leave kv_bits out"
            ) from error
        tracer = self._new_tracer()
        fed = next(iter(self._tracer.fed.values()), None)
        places = len(key_value_parts(tracer.caches))
        tracer.fed = {} if fed is None else dict.fromkeys(range(places), fed)
        if not tracer.can_grow:
            raise ModelLoadError(
                f"this model cannot be thought through ({error!r}): measure it with tune"
            ) from error
        for chunk in chunks:
            tracer.grow(chunk)
        self._tracer = tracer
        workspace = rough_workspace(
            self._blueprint.config, parameters.batch_size * chunks[0], parameters.token_count
        )
        return _Found(
            kv_bytes=tracer.cache_bytes,
            workspace_bytes=workspace,
            peak_bytes=tracer.cache_bytes + workspace,
            approximate="its code asks for numbers that only running it gives, so all layers are "
            "taken to be like the first, and the workspace is a rough guess",
        )


def _found(tracer: Tracer) -> _Found:
    return _Found(
        kv_bytes=tracer.cache_bytes,
        workspace_bytes=tracer.workspace_bytes,
        peak_bytes=max(step.peak_bytes for step in tracer.steps),
    )


def _at(tokens: int, sizes: list[int]) -> int:
    """The value at `tokens` of the line through `sizes` at `_SHORT`, never below the last."""
    slope = max(0, sizes[1] - sizes[0]) / (_SHORT[1] - _SHORT[0])
    return sizes[1] + math.ceil(slope * max(0, tokens - _SHORT[1]))
