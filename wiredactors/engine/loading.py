"""From a source to a model in memory: find it, plan its bytes, load it piece by piece.

A source is a GGUF file, a directory in Hugging Face layout, or a hub id.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from wiredactors.engine.gguf import read_gguf_header
from wiredactors.engine.gguf_model import (
    gguf_config,
    gguf_load_peak_bytes,
    gguf_weight_bytes,
    load_gguf,
)
from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.engine.sizing import context_length, margin_bytes, workspace_bytes
from wiredactors.memory.errors import ModelLoadError, WiredMemoryError
from wiredactors.memory.units import MIB
from wiredactors.scheduling.requests import LoadOptions, LoadPlan

#: Called with bytes done and in all; raising out of it ends the load.
Progress = Callable[[int, int], None]

#: A safetensors header larger than this is no header (the format's own bound is 100 MB).
_MAX_HEADER_BYTES = 100_000_000

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


def plan_load(path: Path, options: LoadOptions, *, on_cpu: bool) -> LoadPlan:
    """What loading `path` will take, from headers and config alone.

    Raises:
        ModelLoadError: the files are missing, truncated, corrupted, or of an unknown architecture.
    """
    options = attrs.evolve(
        options,
        dtype=options.dtype or ("float32" if on_cpu else "float16"),
        prefill_step_size=options.prefill_step_size or (64 if on_cpu else 512),
    )
    if path.is_dir():
        if options.dequantize:
            raise ModelLoadError(f"{path} is a directory: only GGUF files can be dequantized")
        config = _directory_config(path)
        weights = _directory_weight_bytes(path)
        peak = weights + max(_LOAD_SLACK_BYTES, weights // 20)
    else:
        header = read_gguf_header(path)
        assert options.dtype is not None
        config = gguf_config(header, options.dequantize)
        weights = gguf_weight_bytes(header, options.dequantize, options.dtype)
        peak = gguf_load_peak_bytes(header, options.dequantize, options.dtype)
    assert options.prefill_step_size is not None
    margin = margin_bytes(weights) if options.margin_bytes is None else options.margin_bytes
    workspace = workspace_bytes(
        config,
        prefill_step_size=options.prefill_step_size,
        rows=options.max_batch_size,
        fused_attention=not on_cpu,
    )
    return LoadPlan(
        source=str(path),
        options=options,
        weight_bytes=weights,
        peak_bytes=peak,
        workspace_bytes=workspace,
        margin_bytes=margin,
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


def _directory_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        raise ModelLoadError(
            f"{path} has no config.json: give a model directory in Hugging Face layout"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}: download it again") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelLoadError(f"{file} names no model_type: it is no model's config")
    try:
        import_mlx_lm("utils")._get_classes(config)
    except (ValueError, SystemExit) as error:  # one of mlx-lm's modules exits when imported
        raise ModelLoadError(
            f"{file}: mlx-lm knows no architecture {config['model_type']!r} ({error})"
        ) from error
    return config


def _directory_weight_bytes(path: Path) -> int:
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise ModelLoadError(f"{path} has no model*.safetensors: its weights are missing")
    return sum(_safetensors_bytes(file) for file in files)


def _safetensors_bytes(file: Path) -> int:
    """Bytes of all tensors in a safetensors file, checked against its size.

    Format: a little-endian 64-bit header length, a JSON header with each tensor's data offsets
    (relative to the header's end), then the data.
    """
    again = "it is truncated or corrupted: download it again"
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise ModelLoadError(f"{file} has no whole header ({size} bytes in all): {again}")
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"] for name, entry in header.items() if name[:2] != "__"]
            total = sum(end - begin for begin, end in ends)
            last = max((end for _, end in ends), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelLoadError(f"{file} has an unreadable header ({error}): {again}") from error
    if size < 8 + length + last:
        raise ModelLoadError(f"{file} ends after {size} bytes of {8 + length + last}: {again}")
    return int(total)


def _load_directory(path: Path, progress: Progress) -> tuple[Any, Any, Mapping[str, Any]]:
    """Through mlx-lm's own loader, lazily; then one parameter at a time is made real."""
    mx = import_mlx()
    utils = import_mlx_lm("utils")
    model, config = utils.load_model(path, lazy=True)
    tokenizer = utils.load_tokenizer(path, eos_token_ids=config.get("eos_token_id"))
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
