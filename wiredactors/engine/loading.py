"""From a source to a model in memory: find it, plan its bytes, load it piece by piece.

A source is a GGUF file, a directory in Hugging Face layout, or a hub id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from wiredactors.engine.blueprint import draw_directory, draw_gguf, in_short, read_config
from wiredactors.engine.gguf import read_gguf_header
from wiredactors.engine.gguf_model import gguf_load_peak_bytes, load_gguf
from wiredactors.engine.graph import Unrecordable
from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.engine.sizing import (
    context_length,
    measure_cache,
    rough_workspace,
    step_workspace,
)
from wiredactors.engine.weights import weight_files
from wiredactors.memory.errors import ModelLoadError, WiredMemoryError
from wiredactors.memory.measurement import default_margin
from wiredactors.memory.units import MIB
from wiredactors.scheduling.requests import LoadOptions, LoadPlan

#: Called with bytes done and in all; raising out of it ends the load.
Progress = Callable[[int, int], None]

#: While a directory is loaded, so much may be alive besides the weights that are done: the largest
#: tensors twice (read, and converted by the model's own `sanitize`).
_LOAD_SLACK_BYTES = 32 * MIB


@attrs.frozen(kw_only=True)
class LoadedModel:
    """A model in memory; it lives on the device thread."""

    model: Any
    tokenizer: Any
    config: Mapping[str, Any]
    options: LoadOptions

    @property
    def context_length(self) -> int:
        return context_length(self.config)


def local_path(source: str | Path) -> Path | None:
    """The path of a source that is here; None for a hub id, which is to be downloaded.

    Raises:
        ModelLoadError: it is not here, and looks like no hub id.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    text = str(source)
    # A mistyped path into a folder that is here is no hub id, though it looks like one.
    looks_local = text.startswith((".", "/", "~")) or text.endswith(".gguf")
    if text.count("/") != 1 or looks_local or path.parent.is_dir():
        raise ModelLoadError(
            f"there is no file or directory {text!r}: give the path of a GGUF file, of a model "
            "directory, or a hub id such as 'organization/model'"
        )
    return None


def download(hub_id: str) -> Path:
    """The local path of a model of the hub, fetched with mlx-lm's own means.

    It may take long: not on the trio thread, and not on the device thread.

    Raises:
        ModelLoadError: the hub does not have it, or cannot be reached.
    """
    try:
        found: Path = import_mlx_lm("utils")._download(hub_id)
    except Exception as error:
        raise ModelLoadError(
            f"{hub_id!r} is neither a path here nor could it be had from the hub: {error}"
        ) from error
    return found


def _chunk_tokens(on_cpu: bool) -> int:
    """Prompt tokens of a step, so that it takes some tens of milliseconds where it can."""
    if on_cpu:
        return 64
    return 2048 if import_mlx().cuda.is_available() else 512


def plan_load(path: Path, options: LoadOptions, *, on_cpu: bool) -> LoadPlan:
    """What loading `path` will take, from headers and config alone.

    Weights, caches and workspace are those of the model's blueprint; the default margin is 2 % of
    weights, workspace and one row of 2,048 tokens (or what the context holds), and at least 16 MiB.

    Raises:
        ModelLoadError: the files are missing, truncated, corrupted, or of an unknown architecture,
            or its step cannot be predicted.
    """
    options = attrs.evolve(
        options,
        dtype=options.dtype or ("float32" if on_cpu else "float16"),
        prefill_step_size=options.prefill_step_size or _chunk_tokens(on_cpu),
    )
    assert options.dtype is not None
    assert options.prefill_step_size is not None
    if path.is_dir():
        if options.dequantize:
            raise ModelLoadError(f"{path} is a directory: only GGUF files can be dequantized")
        read_config(path)
        _check_whole(path)
        blueprint = draw_directory(path)
        weights = blueprint.weight_bytes
        peak = weights + max(_LOAD_SLACK_BYTES, weights // 20)
    else:
        blueprint = draw_gguf(path, dequantize=options.dequantize, dtype=options.dtype)
        weights = blueprint.weight_bytes
        peak = gguf_load_peak_bytes(read_gguf_header(path), options.dequantize, options.dtype)
    context = context_length(blueprint.config)
    cost = measure_cache(blueprint.model, options.prefill_step_size)
    try:
        workspace = step_workspace(
            blueprint.model,
            prefill_step_size=options.prefill_step_size,
            rows=options.max_batch_size,
            context=context,
        )
    except Unrecordable:
        largest = max(options.prefill_step_size, options.max_batch_size)
        workspace = rough_workspace(blueprint.config, largest, context)
    margin = options.margin_bytes
    if margin is None:
        margin = default_margin(weights + workspace + cost.row_bytes(min(context, 2048)))
    return LoadPlan(
        source=str(path),
        options=options,
        weight_bytes=weights,
        peak_bytes=peak,
        workspace_bytes=workspace,
        margin_bytes=margin,
    )


def _check_whole(path: Path) -> None:
    files = weight_files(path)
    if not files:
        raise ModelLoadError(f"{path} has no model*.safetensors: its weights are missing")
    for file in files:
        if not file.is_whole:
            raise ModelLoadError(
                f"{path / file.name} ends before its {file.size} bytes: it is truncated: download "
                "it again"
            )


def load(plan: LoadPlan, progress: Progress) -> LoadedModel:
    """Load what was planned. On the device thread.

    Raises:
        ModelLoadError: it could not be loaded; nothing is kept.
    """
    path = Path(plan.source)
    try:
        if path.is_dir():
            model, tokenizer, config = _load_directory(path, progress)
        else:
            assert plan.options.dtype is not None
            model, tokenizer, config = load_gguf(
                path,
                read_gguf_header(path),
                dequantize=plan.options.dequantize,
                dtype=plan.options.dtype,
                progress=progress,
            )
    except (WiredMemoryError, LoadAborted):
        raise
    except Exception as error:
        raise ModelLoadError(f"{path} could not be loaded: {error!r}") from error
    return LoadedModel(model=model, tokenizer=tokenizer, config=config, options=plan.options)


class LoadAborted(Exception):
    """Raised out of the progress of a load that nobody wants any more."""


def _load_directory(path: Path, progress: Progress) -> tuple[Any, Any, Mapping[str, Any]]:
    """Through mlx-lm's own loader, lazily; then one parameter at a time is made real."""
    mx = import_mlx()
    utils = import_mlx_lm("utils")
    model, config = utils.load_model(path, lazy=True)
    try:
        tokenizer = utils.load_tokenizer(path, eos_token_ids=config.get("eos_token_id"))
    except Exception as error:
        raise ModelLoadError(
            f"{path} could not be loaded: its tokenizer is missing or broken ({in_short(error)}): "
            "download it again, with tokenizer.json and tokenizer_config.json"
        ) from error
    parameters = [value for _, value in _flatten(model.parameters())]
    total = sum(value.nbytes for value in parameters)
    done = 0
    for value in parameters:
        mx.eval(value)
        done += value.nbytes
        progress(done, total)
    return model, tokenizer, config


def _flatten(tree: Any) -> list[tuple[str, Any]]:
    from mlx.utils import tree_flatten

    flat: Any = tree_flatten(tree)
    return list(flat)
