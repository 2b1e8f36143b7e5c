"""A tiny random model of every architecture that mlx-lm ships, with its true structure.

Several layers each, so that every kind of layer appears. No tokenizers: they are for what happens
to memory, not for text.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.engine.architectures import attention, latents, mixtures, recurrent, windows, wrappers
from tests.engine.architectures.bases import Config
from wiredactors.engine.imports import import_mlx, import_mlx_lm

_FAMILIES = (attention, windows, mixtures, latents, recurrent, wrappers)

#: By the name of its module in `mlx_lm.models`.
CONFIGS: dict[str, Config] = {
    name: {"model_type": name, **config}
    for family in _FAMILIES
    for name, config in family.CONFIGS.items()
}

#: Those that can be made and loaded anywhere, and run on Metal alone.
METAL_CONFIGS: dict[str, Config] = {
    "bitnet": {"model_type": "bitnet", **attention.BITNET},
    "muse_spark": {"model_type": "muse_spark", **wrappers.MUSE_SPARK},
}

#: Those of which nothing can be measured here, and why.
CANNOT: dict[str, str] = {
    "bitnet": "its linear layers are one Metal kernel: RuntimeError without Metal",
    "muse_spark": "its attention begins with a Metal kernel: RuntimeError without Metal",
    "olmo": "its import ends the process (SystemExit) where the package ai2-olmo is missing",
}


def make_architecture(directory: Path, name: str, *, seed: int = 7) -> Path:
    """Save the tiny model of architecture `name` in `directory`, made anew; returns its path."""
    mx = import_mlx()
    utils = import_mlx_lm("utils")
    path = directory / name
    path.mkdir(parents=True)
    # As text and back: some classes write into the config they are given.
    text = json.dumps((CONFIGS | METAL_CONFIGS)[name])
    config = json.loads(text)
    mx.random.seed(seed)
    model_class, arguments_class = utils._get_classes(config)
    model = model_class(arguments_class.from_dict(config))
    weights = dict(utils.tree_flatten(model.parameters()))
    mx.eval(weights)
    mx.save_safetensors(str(path / "model.safetensors"), weights, metadata={"format": "mlx"})
    (path / "config.json").write_text(text)
    return path
