"""Which layers of a model are packed, as far as its config tells.

Where there are weight files mlx-lm packs what they hold packed; of a config alone this does as its
converter would (an entry `quantization`), or as its loader treats the formats of others (an entry
`quantization_config`, mlx-lm 0.32.2's `utils.load_model`).
"""

from __future__ import annotations

import fnmatch
import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from wiredactors.engine.imports import import_mlx_lm
from wiredactors.memory.errors import ModelLoadError

#: mlx-lm's default group size and bits of each mode (`utils.quantize_model`).
_USUAL = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}

#: Where the formats of others name what they leave alone.
_LEFT_ALONE = ("modules_to_not_convert", "ignore", "exclude_modules")


def quantize(model: Any, config: Mapping[str, Any]) -> str | None:
    """Pack the layers that the config says are packed; nothing is computed.

    Returns what is uncertain about it, in words, or None.

    Raises:
        ModelLoadError: mlx-lm cannot load such weights, or the entry makes no sense.
    """
    text = config.get("text_config")
    inner = text.get("quantization_config") if isinstance(text, Mapping) else None
    own, foreign = config.get("quantization"), config.get("quantization_config") or inner
    entry = own or foreign
    if not entry:
        return None
    name = "quantization" if own else "quantization_config"
    if not isinstance(entry, Mapping):
        raise ModelLoadError(f"the config's {name} must be an object, not {entry!r}")
    try:
        return _pack_own(model, entry) if own else _pack_foreign(model, entry)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ModelLoadError(
            f"the config's {name} cannot be carried out ({_said(error)}): take the whole "
            "config.json of the model, or convert it with mlx_lm.convert"
        ) from error


def _said(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def _pack_own(model: Any, entry: Mapping[str, Any]) -> str | None:
    mode = entry.get("mode", "affine")
    if mode not in _USUAL:
        raise ValueError(f"its mode {mode!r} is none of {', '.join(_USUAL)}")
    usual_group, usual_bits = _USUAL[mode]
    group_size = entry.get("group_size") or usual_group
    predicate = getattr(model, "quant_predicate", None)

    def choose(path: str, module: Any) -> Any:
        if path in entry:  # a layer of its own kind, or one that was left alone
            return entry[path]
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % group_size:
            return False
        return True if predicate is None else predicate(path, module)

    _nn().quantize(
        model, group_size, entry.get("bits") or usual_bits, mode=mode, class_predicate=choose
    )
    return None


def _pack_foreign(model: Any, entry: Mapping[str, Any]) -> str | None:
    method = entry["quant_method"]
    if method == "bitnet":
        import_mlx_lm("models.bitlinear_layers").bitnet_quantize(model, dict(entry))
        return None
    if method == "fp8" and not _is_mxfp8(entry):
        return "its fp8 weights are counted in 16 bits, to which mlx-lm unpacks them if it can"
    kind = _foreign_kind(method, entry)
    _nn().quantize(
        model,
        kind["group_size"],
        kind["bits"],
        mode=kind.get("mode", "affine"),
        class_predicate=_chooser(entry, kind["group_size"]),
    )
    return f"which layers {method} has packed is known from the weight files alone"


def _is_mxfp8(entry: Mapping[str, Any]) -> bool:
    blocks = list(entry.get("weight_block_size") or ())
    return entry.get("scale_fmt") == "ue8m0" and blocks == [32, 32]


def _foreign_kind(method: object, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Group size, bits and mode that mlx-lm loads such weights with."""
    match method:
        case "mxfp4":
            return {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        case "mxfp8" | "fp8":
            return {"group_size": 32, "bits": 8, "mode": "mxfp8"}
        case "compressed-tensors":
            kind: dict[str, Any] = import_mlx_lm("utils")._compressed_tensors_quantization(entry)
            groups = [
                group.get("weights") or {} for group in entry.get("config_groups", {}).values()
            ]
            if kind["mode"] == "affine" and groups:
                kind = {**kind, "group_size": groups[0].get("group_size") or kind["group_size"]}
            return kind
        case "modelopt":
            settings = entry.get("quantization", entry)
            if settings["quant_algo"] != "NVFP4":
                raise ValueError(f"mlx-lm cannot load modelopt's {settings['quant_algo']}")
            return {"group_size": settings.get("group_size", 16), "bits": 4, "mode": "nvfp4"}
        case "awq" | "gptq":
            if entry.get("bits", 4) != 4:
                raise ValueError(f"mlx-lm loads {method} weights of 4 bits, not {entry['bits']}")
            return {"group_size": entry.get("group_size", 128), "bits": 4}
    raise ValueError(f"mlx-lm cannot load weights that {method} has packed")


def _chooser(entry: Mapping[str, Any], group_size: int) -> Callable[[str, Any], bool]:
    """Linear layers, save the last one and those that the entry leaves alone."""
    patterns = [pattern for key in _LEFT_ALONE for pattern in entry.get(key) or ()]
    embedding = _nn().Embedding

    def choose(path: str, module: Any) -> bool:
        if isinstance(module, embedding) or path.endswith("lm_head"):
            return False
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % group_size:
            return False
        return not any(_covers(pattern, path) for pattern in patterns)

    return choose


def _covers(pattern: str, path: str) -> bool:
    """Whether a pattern of theirs ("model.layers.*.self_attn", "re:.*gate") means this module."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], path) is not None
    wanted, parts = pattern.removeprefix("model.").split("."), path.split(".")
    return any(
        all(map(fnmatch.fnmatchcase, parts[at : at + len(wanted)], wanted))
        for at in range(len(parts) - len(wanted) + 1)
    )


def _nn() -> Any:
    return importlib.import_module("mlx.nn")
