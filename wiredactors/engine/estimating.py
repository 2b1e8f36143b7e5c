"""`estimate`: what a model will take, with nothing loaded, for any architecture that mlx-lm knows.

There is no table of formulas. The model is built without numbers (`blueprint`), its prefill is
thought through chunk by chunk as mlx-lm would run it (`tracing`), and bytes are read off buffers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from wiredactors.engine.blueprint import Blueprint, draw_config, draw_directory, draw_gguf
from wiredactors.engine.imports import import_mlx
from wiredactors.engine.loading import local_path
from wiredactors.engine.rehearsal import Rehearsal
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement


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
    rehearsal = Rehearsal(blueprint, parameters)
    found = rehearsal.run()
    reasons = [why for why in (blueprint.approximate, found.approximate) if why]
    weights = blueprint.weight_bytes
    return WiredMemoryMeasurement(
        weight_bytes=weights,
        kv_bytes=found.kv_bytes,
        workspace_bytes=found.workspace_bytes,
        peak_active_bytes=weights + found.peak_bytes,
        cache_cost=rehearsal.row_cost(),
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
