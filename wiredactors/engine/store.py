"""What was measured, kept in files, so that the next start measures nothing.

One file an entry, named by the hash of what it depends on: two processes do not lose each other's.
An entry that cannot be read, or is not what its name says, is reported to the log and replaced when
it has been measured anew; nothing here is ever fatal.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import platformdirs
import structlog

from wiredactors.engine.gguf import read_gguf_header
from wiredactors.engine.imports import import_mlx
from wiredactors.memory.cache_cost import CacheCost, WindowCost
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement

#: Names another folder than the user's cache directory.
FOLDER_VARIABLE = "WIREDACTORS_CACHE_DIR"

#: Of the files' form; another one is not read.
_FORMAT = 1

_ADVICE = {
    "measurement_unreadable": "it counts as missing and is replaced; if that fails, delete it",
    "measurement_not_stored": "make room, make the folder writable, or name another one in the "
    f"environment's {FOLDER_VARIABLE}",
}

_logger = structlog.get_logger(__name__)


@attrs.frozen(kw_only=True)
class StoreKey:
    """What an entry depends on.

    Attributes:
        weights: a hash that tells the weights' shapes and types, see `weights_identity`.
        options: how the model was loaded, as far as it matters.
        parameters: of the measurement; None for a correction.
        device: what it runs on.
        versions: of mlx, mlx-lm and wiredactors.
    """

    weights: str
    options: Mapping[str, Any]
    device: str
    versions: Mapping[str, str]
    parameters: TuneParameters | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return attrs.asdict(self)


class MeasurementStore:
    """Measurements and corrections in a folder.

    Args:
        folder: None is WIREDACTORS_CACHE_DIR, or else the user's cache directory.
    """

    def __init__(self, folder: Path | None = None):
        named = os.environ.get(FOLDER_VARIABLE)
        self.folder = (
            folder or (Path(named) if named else platformdirs.user_cache_path("wiredactors"))
        ) / "measurements"

    def get(self, key: StoreKey) -> WiredMemoryMeasurement | None:
        """The measurement of that key, with `stored` set; None where there is none to be read."""
        value = self._read(key)
        if value is None:
            return None
        try:
            return attrs.evolve(measurement_from_dict(value), stored=True)
        except ValueError as error:
            self._tell("measurement_unreadable", key, error)
            return None

    def put(self, key: StoreKey, measurement: WiredMemoryMeasurement) -> None:
        """Keep a measurement."""
        self._write(key, measurement_to_dict(measurement))

    def get_correction(self, key: StoreKey) -> dict[str, Any] | None:
        """What was kept of a `Correction`, as its `to_dict` gave it; None where there is none."""
        return self._read(key)

    def put_correction(self, key: StoreKey, value: Mapping[str, Any]) -> bool:
        """Keep a `Correction`'s `to_dict`; whether that went well."""
        return self._write(key, dict(value))

    def tell_unreadable(self, key: StoreKey, error: Exception) -> None:
        """Report an entry whose value made no sense to whoever asked for it."""
        self._tell("measurement_unreadable", key, error)

    def _path(self, key: StoreKey) -> Path:
        return self.folder / f"{_hash(_canonical(key.to_dict()))}.json"

    def _read(self, key: StoreKey) -> dict[str, Any] | None:
        try:
            entry = json.loads(self._path(key).read_text(encoding="utf-8"))
            if not isinstance(entry, dict) or entry.get("format") != _FORMAT:
                raise ValueError(f"it is not of format {_FORMAT}")
            if _canonical(entry.get("key")) != _canonical(key.to_dict()):
                raise ValueError("it belongs to another key")
            if not isinstance(entry.get("value"), dict):
                raise ValueError("it has no value")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            self._tell("measurement_unreadable", key, error)
            return None
        value: dict[str, Any] = entry["value"]
        return value

    def _write(self, key: StoreKey, value: dict[str, Any]) -> bool:
        text = json.dumps({"format": _FORMAT, "key": key.to_dict(), "value": value}, indent=1)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Whoever reads meanwhile sees the old entry or the new one, whole.
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
            try:
                with open(handle, "w", encoding="utf-8") as file:
                    file.write(text + "\n")
                os.replace(name, self._path(key))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
        except OSError as error:
            self._tell("measurement_not_stored", key, error)
            return False
        return True

    def _tell(self, what: str, key: StoreKey, error: Exception) -> None:
        reason = str(error) or repr(error)
        _logger.warning(what, file=str(self._path(key)), reason=reason, advice=_ADVICE[what])


def model_key(path: Path, options: Mapping[str, Any]) -> StoreKey:
    """The key of a model's entries. On the device thread.

    Raises:
        OSError, ModelLoadError: its files cannot be read.
    """
    return StoreKey(
        weights=weights_identity(path),
        options=options,
        device=_device(),
        versions={name: _version(name) for name in ("mlx", "mlx-lm", "wiredactors")},
    )


def weights_identity(path: Path) -> str:
    """A hash of everything about a model's files that memory depends on.

    That is the config, code that comes with it, and each weight file's name, size and header, which
    has the tensors' types and shapes; not the gigabytes themselves, and no times.

    Raises:
        OSError, ModelLoadError: the files cannot be read.
    """
    if path.is_dir():
        facts = [_hash((path / "config.json").read_bytes())]
        # A model may bring its own code.
        facts += [_hash(file.read_bytes()) for file in sorted(path.glob("*.py"))]
        for file in sorted(path.glob("model*.safetensors")):
            facts += [file.name, str(file.stat().st_size), _hash(_safetensors_header(file))]
    else:
        header = read_gguf_header(path)
        with path.open("rb") as stream:
            facts = [str(header.file_size), _hash(stream.read(header.data_offset))]
    return _hash("\n".join(facts))


def measurement_to_dict(measurement: WiredMemoryMeasurement) -> dict[str, Any]:
    """A measurement as plain values; where it came from is left out."""
    value = attrs.asdict(measurement)
    del value["stored"]
    value["cache_cost"]["windows"] = list(value["cache_cost"]["windows"])
    return value


def measurement_from_dict(value: Mapping[str, Any]) -> WiredMemoryMeasurement:
    """The measurement that `measurement_to_dict` was given.

    Raises:
        ValueError: a field is missing, unknown, or of another type.
    """
    fields = dict(value)
    try:
        cost = dict(fields.pop("cache_cost"))
        windows = tuple(_checked(WindowCost, each) for each in cost.pop("windows"))
        approximate = fields.pop("approximate")
        measured = fields.pop("measured")
        optional = {name: fields.pop(name) for name in ("kv_bits", "max_kv_size")}
        for name, size in optional.items():
            if size is not None:
                _check_size(name, size)
        if not isinstance(measured, bool) or not isinstance(approximate, (str, type(None))):
            raise ValueError(f"measured={measured!r}, approximate={approximate!r}")
        measurement: WiredMemoryMeasurement = _checked(
            WiredMemoryMeasurement,
            fields,
            cache_cost=_checked(CacheCost, cost, windows=windows),
            measured=measured,
            approximate=approximate,
            **optional,
        )
        return measurement
    except (KeyError, TypeError) as error:
        raise ValueError(f"a field is missing or unknown: {error}") from error


def _checked(kind: type[Any], sizes: Mapping[str, Any], **others: Any) -> Any:
    """`kind` of sizes and other things; every field must be there."""
    missing = {field.name for field in attrs.fields(kind)} - {"stored", *sizes, *others}
    if missing:
        raise ValueError(f"{', '.join(sorted(missing))} is missing")
    for name, size in sizes.items():
        _check_size(name, size)
    return kind(**sizes, **others)


def _check_size(name: str, size: object) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ValueError(f"{name} is {size!r}")


def _safetensors_header(file: Path) -> bytes:
    """A little-endian 64-bit length, and so many bytes of JSON; they were checked at the load."""
    with file.open("rb") as stream:
        return stream.read(int.from_bytes(stream.read(8), "little"))


def _device() -> str:
    mx = import_mlx()
    device = mx.default_device()
    return f"{device.type} {mx.device_info(device).get('device_name', '')}"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # run from a tree that was never installed
        return "unknown"


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _hash(data: str | bytes) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()
