"""A model that is built and not loaded: its weights have shapes and no numbers.

Where there are weight files mlx-lm's own loader reads their headers and decides what is quantized,
lazily; so what a model will be is asked of the code that will make it so. From a config alone it is
built as mlx-lm's converter would leave it, which is approximate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from wiredactors.engine.devices import device
from wiredactors.engine.gguf import read_gguf_header
from wiredactors.engine.gguf_layout import gguf_config
from wiredactors.engine.gguf_model import empty_model
from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.engine.modules import resident_table_bytes
from wiredactors.engine.quantization import quantize
from wiredactors.engine.weights import WeightFile, hollow_copy, weight_files
from wiredactors.memory.errors import ModelLoadError

#: What a config says of numbers, unless it says nothing.
_USUAL_DTYPE = "bfloat16"

_ADVICE = "take the whole config.json of the model"


def in_short(error: Exception) -> str:
    """What somebody else's error says, on one line: mlx-lm's may name each array of a model."""
    return textwrap.shorten(str(error), 300, placeholder=" ...")


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


@contextlib.contextmanager
def _random_kept() -> Iterator[None]:
    """A model that is built draws its first weights, and never looks at them: nobody shall notice.

    MLX's random key can be read and not be set, but a seed is the key's own 64 bits.
    """
    mx = import_mlx()
    high, low = mx.random.state[0].tolist()
    try:
        yield
    finally:
        mx.random.seed(high << 32 | low)


def draw_directory(path: Path) -> Blueprint:
    """The blueprint of a model directory in Hugging Face layout, from its headers and its config.

    Without any weight file it is as `draw_config` draws it.

    Raises:
        ModelLoadError: the config or a header cannot be read, or mlx-lm cannot make a model of
            them; the message says why.
    """
    files = weight_files(path)
    if not files:
        return draw_config(read_config(path))
    missing = [file.name for file in files if not file.is_whole]
    why = f"data is missing in {', '.join(missing)}; sizes are those of the headers"
    return draw_files(path, files, str(path), why if missing else None)


@_random_kept()
def draw_files(
    configs: Path, files: Sequence[WeightFile], called: str, approximate: str | None = None
) -> Blueprint:
    """The blueprint of a model of which the headers are known, and a folder with its config files.

    Args:
        configs: the folder; the weight files lie there too, if all of them are whole.
        files: their headers.
        called: how messages name the model.
        approximate: as in the blueprint.

    Raises:
        ModelLoadError: as `draw_directory`.
    """
    read_config(configs)
    # Where all data is there it is left to the loader: a few models look at some of it (signs).
    whole = all(file.is_whole for file in files)
    with contextlib.nullcontext(configs) if whole else hollow_copy(configs, files) as folder:
        try:
            model, config = import_mlx_lm("utils").load_model(folder, lazy=True)
        except Exception as error:
            raise ModelLoadError(
                f"{called}: mlx-lm makes no model of its weight files and its config "
                f"({in_short(error)}): download it again, or convert it with mlx_lm.convert"
            ) from error
        return _emptied(model, config, approximate)


@_random_kept()
def draw_gguf(path: Path, *, dequantize: bool, dtype: str) -> Blueprint:
    """The blueprint of a GGUF file, as `load_gguf` will make it.

    Raises:
        ModelLoadError: as `read_gguf_header` and `gguf_config`.
    """
    config = gguf_config(read_gguf_header(path), dequantize)
    model = empty_model(config)
    _cast(model, dtype)
    return _emptied(model, config, None)


@_random_kept()
def draw_config(config: Mapping[str, Any]) -> Blueprint:
    """The blueprint of a model of which only the config is known.

    Numbers are of the config's `torch_dtype` or `dtype` (bfloat16 if it has none). With an entry
    `quantization` those layers are packed that mlx-lm's converter would choose, with one
    `quantization_config` those that its loader expects; that is why it is approximate: weight
    files may hold others.

    Raises:
        ModelLoadError: a key is missing or wrong, or mlx-lm does not know the architecture or
            cannot load weights that were packed so.
    """
    own: dict[str, Any] = json.loads(json.dumps(dict(config)))  # some models write into theirs
    model = _build(own)
    _cast(model, _dtype_of(own))
    _tie(model, own)
    why = ["only the config is known, no weight file", quantize(model, own)]
    return _emptied(model, own, "; ".join(filter(None, why)))


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
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}: download it again") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelLoadError(f"{file} names no model_type: it is no model's config")
    _classes(config)
    return config


def _classes(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """mlx-lm's classes of the model and of its arguments."""
    name = config.get("model_type")
    if not isinstance(name, str):
        raise ModelLoadError("the config names no model_type: it is no model's config")
    if config.get("model_file") is not None:
        raise ModelLoadError(
            f"the config of a {name} asks for code of its own ({config['model_file']!r}), which is "
            "not run: take another model"
        )
    utils, printed = import_mlx_lm("utils"), io.StringIO()
    try:
        # olmo's module prints what it lacks, and exits.
        with contextlib.redirect_stdout(printed):
            classes: tuple[Any, Any] = utils._get_classes(dict(config))
    except (Exception, SystemExit) as error:
        said = printed.getvalue().strip() or error
        raise ModelLoadError(
            f"mlx-lm knows no architecture {name!r} ({said}): take another model, or a newer mlx-lm"
        ) from error
    print(printed.getvalue(), end="")
    return classes


def _build(config: dict[str, Any]) -> Any:
    model_class, arguments_class = _classes(config)
    _check_values(config, arguments_class)
    try:
        return model_class(arguments_class.from_dict(dict(config)))
    except Exception as error:  # whatever the model's own code trips over
        raise ModelLoadError(
            f"the config of a {config['model_type']} is incomplete or wrong ({error!r}): {_ADVICE}"
        ) from error


def _check_values(config: Mapping[str, Any], arguments_class: Any) -> None:
    """Name what is missing, and what is no number though it must be one."""
    fields = dataclasses.fields(arguments_class)
    none = dataclasses.MISSING
    lacks = [
        field.name
        for field in fields
        if field.default is none and field.default_factory is none and field.name not in config
    ]
    if lacks:
        raise ModelLoadError(
            f"the config of a {config['model_type']} lacks {', '.join(lacks)}: {_ADVICE}"
        )
    for field in fields:
        value = config.get(field.name, field.default)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if field.type in (int, float) and not number and value not in (None, field.default):
            raise ModelLoadError(
                f"the config of a {config['model_type']} says {field.name}: {value!r}, which is no "
                f"number: {_ADVICE}"
            )


def _dtype_of(config: Mapping[str, Any]) -> str:
    text = config.get("text_config")
    texts = [config, text if isinstance(text, Mapping) else {}]
    said = [entry.get(key) for entry in texts for key in ("torch_dtype", "dtype")]
    return str(next(filter(None, said), _USUAL_DTYPE)).removeprefix("torch.")


def _cast(model: Any, dtype: str) -> None:
    """Give floating-point weights the dtype, save those that mlx-lm's converter leaves alone."""
    mx = import_mlx()
    wanted = getattr(mx, dtype, None)
    if not isinstance(wanted, mx.Dtype) or not mx.issubdtype(wanted, mx.floating):
        raise ModelLoadError(
            f"the config's dtype {dtype!r} is none of MLX's: say float32, float16 or bfloat16"
        )
    chosen = getattr(model, "cast_predicate", lambda path: True)

    def cast(path: str, array: Any) -> Any:
        floating = mx.issubdtype(array.dtype, mx.floating)
        return array.astype(wanted) if floating and chosen(path) else array

    utils = importlib.import_module("mlx.utils")
    model.update(utils.tree_map_with_path(cast, model.parameters()))


def _tie(model: Any, config: Mapping[str, Any]) -> None:
    """Drop the output layer of models that find only in their weights that it is the embedding.

    A config that says nothing of it means that it is (transformers' default); most models know of
    it by their arguments.
    """
    text = config.get("text_config")
    said = text if isinstance(text, Mapping) else {}
    if not config.get("tie_word_embeddings", said.get("tie_word_embeddings", True)):
        return
    weights = dict(_flatten(model.parameters()))
    heads = [name for name in weights if name.endswith("lm_head.weight")]
    if heads and hasattr(model, "sanitize"):
        for name in heads:
            del weights[name]
        with contextlib.suppress(Exception):  # not made for weights that it has seen before
            model.sanitize(weights)


def _emptied(model: Any, config: Mapping[str, Any], approximate: str | None) -> Blueprint:
    """Let go of how the weights would have been made."""
    mx = import_mlx()
    utils = importlib.import_module("mlx.utils")
    weights = {id(array): array for _, array in _flatten(model.parameters())}
    allocated = device().allocated
    hollow = {key: mx.zeros(array.shape, array.dtype) for key, array in weights.items()}
    model.update(utils.tree_map(lambda array: hollow[id(array)], model.parameters()))
    return Blueprint(
        model=model,
        config=config,
        weight_bytes=sum(allocated(array.nbytes) for array in weights.values())
        + resident_table_bytes(model),
        approximate=approximate,
    )


def _flatten(tree: Any) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = importlib.import_module("mlx.utils").tree_flatten(tree)
    return flat
