"""A model of the hub, from its config and the headers of its weight files: no weight is fetched.

A header is the first few kilobytes of a file; huggingface_hub asks for 100 kB of each, and for more
where the header is longer.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import struct
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from wiredactors.engine.blueprint import Blueprint, draw_directory, draw_files
from wiredactors.engine.weights import CONFIG_FILES, WEIGHT_PATTERN, WeightFile, parse_weight_file
from wiredactors.memory.errors import ModelLoadError, WiredMemoryError

#: Headers that are asked for at once.
_REQUESTS = 8

#: The hub is taken for unreachable after so long without an answer.
_TIMEOUT_SECONDS = 10.0


def draw_hub(hub_id: str) -> Blueprint:
    """The blueprint of a model of the hub ("organization/model").

    A model that lies whole in the local cache is taken from there, and nothing is asked of the hub.
    Otherwise the config and the headers of the weight files are fetched, and nothing is kept.

    Raises:
        ModelLoadError: the hub does not have it or cannot be reached, it has no config or no
            weights in safetensors, or mlx-lm cannot make a model of it.
    """
    hub = importlib.import_module("huggingface_hub")
    try:
        snapshot = cached_snapshot(hub_id)
        if snapshot is not None:
            return draw_directory(snapshot)
        with tempfile.TemporaryDirectory(prefix="wiredactors-") as folder:
            files = _fetch(hub, hub_id, Path(folder))
            return draw_files(Path(folder), files, hub_id)
    except WiredMemoryError:
        raise
    except Exception as error:
        raise ModelLoadError(_explain(hub_id, error)) from error


def cached_snapshot(hub_id: str) -> Path | None:
    """The directory of a model in huggingface_hub's cache; None unless all its weights are there.

    Raises:
        ValueError: it is no hub id (huggingface_hub's own).
    """
    hub = importlib.import_module("huggingface_hub")
    config = hub.try_to_load_from_cache(hub_id, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.exists():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
    return folder if all((folder / name).is_file() for name in names) else None


def _fetch(hub: Any, hub_id: str, folder: Path) -> list[WeightFile]:
    """Put the config files into the folder; returns the headers."""
    api = hub.HfApi()
    info = api.model_info(hub_id, timeout=_TIMEOUT_SECONDS)
    names = [sibling.rfilename for sibling in info.siblings or ()]
    if "config.json" not in names:
        raise ModelLoadError(f"{hub_id} has no config.json on the hub: {_instead(names)}")
    weights = sorted(fnmatch.filter((name for name in names if "/" not in name), WEIGHT_PATTERN))
    if not weights:
        raise ModelLoadError(
            f"{hub_id} has no {WEIGHT_PATTERN} on the hub, from which mlx-lm loads: "
            f"{_instead(names)}"
        )
    for name in CONFIG_FILES:
        if name in names:
            api.hf_hub_download(
                hub_id, name, revision=info.sha, local_dir=folder, tqdm_class=_silent()
            )

    def header(name: str) -> WeightFile:
        metadata = api.parse_safetensors_file_metadata(hub_id, name, revision=info.sha)
        return parse_weight_file(name, _head(metadata))

    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(header, weights))


def _instead(names: list[str]) -> str:
    if any(name.endswith(".gguf") for name in names):
        return "download one of its GGUF files and give that file"
    return "take a model in safetensors, or convert this one with mlx_lm.convert"


def _head(metadata: Any) -> bytes:
    """The tensors of a header as they stand in a file; huggingface_hub shows them parsed."""
    header = {
        name: {"dtype": info.dtype, "shape": info.shape, "data_offsets": info.data_offsets}
        for name, info in metadata.tensors.items()
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def _silent() -> Any:
    """A progress bar that is not shown: config files are small."""
    utils: Any = importlib.import_module("huggingface_hub.utils")

    class Silent(utils.tqdm):  # type: ignore[misc]  # imported when it is used
        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(*arguments, **{**options, "disable": True})

    return Silent


def _explain(hub_id: str, error: Exception) -> str:
    """What went wrong at the hub, and what to do."""
    errors: Any = importlib.import_module("huggingface_hub.errors")
    said = str(error).strip().partition("\n")[0]
    match error:
        case errors.HFValidationError():
            return f"{hub_id!r} is no hub id, which looks like 'organization/model': {said}"
        case errors.OfflineModeIsEnabled():
            return (
                f"{hub_id} is not whole in the local cache, and HF_HUB_OFFLINE is set: unset it, "
                "or download the model first"
            )
        case errors.GatedRepoError():
            return (
                f"{hub_id} is gated: accept its terms on its page on the hub, then log in with "
                "`hf auth login`"
            )
        case errors.RepositoryNotFoundError():
            return (
                f"the hub has no model {hub_id}, or it is private: check the spelling, or log in "
                "with `hf auth login`"
            )
        case errors.SafetensorsParsingError() | errors.NotASafetensorsRepoError():
            return f"{hub_id} has a weight file without a whole header: {said}"
        case errors.HfHubHTTPError():
            return f"the hub refuses {hub_id}: {said}"
    return (
        f"there is no {hub_id!r} here, the hub cannot be reached ({said or type(error).__name__}), "
        "and the local cache does not hold all of it: check the path, or the connection"
    )
