"""A model that is built and not loaded: its weights have shapes and no numbers.

Where there are weight files mlx-lm's own loader reads their headers and decides what is quantized,
lazily; so what a model will be is asked of the code that will make it so. From a config alone it is
built as mlx-lm's converter would leave it, which is approximate.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from wiredactors.engine.gguf import read_gguf_header
from wiredactors.engine.gguf_layout import gguf_config
from wiredactors.engine.gguf_model import empty_model
from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.engine.tracing import resident_table_bytes
from wiredactors.engine.weights import hollow_copy, weight_files
from wiredactors.memory.errors import ModelLoadError

#: What a config says of numbers, unless it says nothing.
_USUAL_DTYPE = "bfloat16"


@attrs.frozen(kw_only=True)
class Blueprint:
    """A model without its numbers. On the thread that made it.

    Attributes:
        model: mlx-lm's, its weights never evaluated.
        config: its config.
        weight_bytes: what its weights take once they are loaded.
        approximate: why that may differ from the truth, in words; None where it is exact.
    """

    model: Any
    config: Mapping[str, Any]
    weight_bytes: int
    approximate: str | None = None


def draw_directory(path: Path) -> Blueprint:
    """The blueprint of a model directory in Hugging Face layout, from its headers and its config.

    Raises:
        ModelLoadError: the config or a header cannot be read, or mlx-lm cannot make a model of
            them; the message says why.
    """
    config = read_config(path)
    files = weight_files(path)
    if not files:
        return draw_config(config)
    missing = [file.name for file in files if not file.is_whole]
    with hollow_copy(path, files) as hollow:
        try:
            model, config = import_mlx_lm("utils").load_model(hollow, lazy=True)
        except Exception as error:
            raise ModelLoadError(
                f"{path}: mlx-lm makes no model of its weight files and its config ({error}): "
                "download it again, or convert it with mlx_lm.convert"
            ) from error
        return _emptied(
            model,
            config,
            f"data is missing in {', '.join(missing)}; sizes are those of the headers"
            if missing
            else None,
        )


def draw_gguf(path: Path, *, dequantize: bool, dtype: str) -> Blueprint:
    """The blueprint of a GGUF file, as `load_gguf` will make it.

    Raises:
        ModelLoadError: as `read_gguf_header` and `gguf_config`.
    """
    config = gguf_config(read_gguf_header(path), dequantize)
    model = empty_model(config)
    _cast(model, dtype)
    return _emptied(model, config, None)


def draw_config(config: Mapping[str, Any]) -> Blueprint:
    """The blueprint of a model of which only the config is known.

    Numbers are of the config's `torch_dtype` or `dtype` (bfloat16 if it has none). With an entry
    `quantization` those layers are quantized that mlx-lm's converter would choose; that is why it
    is approximate: weight files may hold others.

    Raises:
        ModelLoadError: a key is missing, or mlx-lm does not know the architecture.
    """
    config = json.loads(json.dumps(dict(config)))  # some models write into theirs
    model = _build(dict(config))
    dtype = config.get("torch_dtype") or config.get("dtype")
    dtype = dtype or config.get("text_config", {}).get("dtype") or _USUAL_DTYPE
    _cast(model, str(dtype).removeprefix("torch."))
    why = "only the config is known, no weight file"
    quantization = config.get("quantization") or config.get("quantization_config")
    if quantization:
        _quantize(model, quantization)
    return _emptied(model, config, why)


def read_config(path: Path) -> dict[str, Any]:
    """The config of a model directory, of an architecture that mlx-lm knows.

    Raises:
        ModelLoadError: it is missing, unreadable, or names no architecture that mlx-lm knows.
    """
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(
            f"{path} has no config.json: give a model directory in Hugging Face layout"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}: download it again") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelLoadError(f"{file} names no model_type: it is no model's config")
    _classes(config)
    return config


def _classes(config: Mapping[str, Any]) -> tuple[Any, Any]:
    name = config.get("model_type")
    if not isinstance(name, str):
        raise ModelLoadError("the config names no model_type: it is no model's config")
    try:
        classes: tuple[Any, Any] = import_mlx_lm("utils")._get_classes(dict(config))
    except (ValueError, ImportError, SystemExit) as error:  # olmo's module exits when imported
        raise ModelLoadError(
            f"mlx-lm knows no architecture {name!r} ({error}): take another model, or a newer "
            "mlx-lm"
        ) from error
    return classes


def _build(config: dict[str, Any]) -> Any:
    model_class, arguments_class = _classes(config)
    try:
        return model_class(arguments_class.from_dict(config))
    except (TypeError, KeyError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ModelLoadError(
            f"the config of a {config['model_type']} is incomplete or wrong ({error}): take the "
            "whole config.json of the model"
        ) from error


def _cast(model: Any, dtype: str) -> None:
    """Give floating-point weights the dtype, save those that mlx-lm's converter leaves alone."""
    mx = import_mlx()
    if not isinstance(getattr(mx, dtype, None), mx.Dtype):
        raise ModelLoadError(f"the config's dtype {dtype!r} is unknown: say float16 or bfloat16")
    chosen = getattr(model, "cast_predicate", lambda path: True)

    def cast(path: str, array: Any) -> Any:
        floating = mx.issubdtype(array.dtype, mx.floating)
        return array.astype(getattr(mx, dtype)) if floating and chosen(path) else array

    utils = importlib.import_module("mlx.utils")
    model.update(utils.tree_map_with_path(cast, model.parameters()))


def _quantize(model: Any, quantization: Mapping[str, Any]) -> None:
    nn = importlib.import_module("mlx.nn")
    method = quantization.get("quant_method")
    mode = method if method in ("mxfp4", "mxfp8", "nvfp4") else quantization.get("mode", "affine")
    usual = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}
    group_size, bits = usual.get(mode, (64, 4))
    group_size = quantization.get("group_size", group_size)
    bits = quantization.get("bits", bits)
    skipped = tuple(quantization.get("modules_to_not_convert") or ())
    chosen = getattr(model, "quant_predicate", None)

    def choose(path: str, module: Any) -> Any:
        if path in quantization:
            return quantization[path]
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % group_size:
            return False
        if any(_matches(path, pattern) for pattern in skipped):
            return False
        return True if chosen is None else chosen(path, module)

    nn.quantize(model, group_size, bits, mode=mode, class_predicate=choose)


def _matches(path: str, pattern: str) -> bool:
    """Whether a module's path is one that a Hugging Face config leaves unquantized."""
    parts = [part for part in pattern.split(".") if part not in ("*", "model")]
    return all(part in path.split(".") for part in parts)


def _emptied(model: Any, config: Mapping[str, Any], approximate: str | None) -> Blueprint:
    """Let go of how the weights would have been made."""
    mx = import_mlx()
    utils = importlib.import_module("mlx.utils")
    model.update(utils.tree_map(lambda a: mx.zeros(a.shape, a.dtype), model.parameters()))
    weights = {id(a): a.nbytes for _, a in utils.tree_flatten(model.parameters())}
    return Blueprint(
        model=model,
        config=config,
        weight_bytes=sum(weights.values()) + resident_table_bytes(model),
        approximate=approximate,
    )
