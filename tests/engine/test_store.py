"""What was measured is found again, and a file that is not what it should be harms nobody."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog

from tests.engine import gguf_files
from wiredactors.engine import store as store_module
from wiredactors.engine.store import (
    MeasurementStore,
    StoreKey,
    measurement_from_dict,
    measurement_to_dict,
    model_key,
    weights_identity,
)
from wiredactors.memory.cache_cost import CacheCost, WindowCost
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement

MEASURED = WiredMemoryMeasurement(
    weight_bytes=1000,
    kv_bytes=200,
    workspace_bytes=30,
    peak_active_bytes=1230,
    token_count=7,
    prefill_step_size=4,
    batch_size=2,
    max_kv_size=5,
    measured=True,
    cache_cost=CacheCost(
        fixed_bytes=1,
        step_bytes=2,
        copy_bytes=3,
        windows=(WindowCost(most_tokens=4, token_bytes=5, copy_bytes=6),),
    ),
)
KEY = StoreKey(
    weights="w",
    options={"dtype": "float32"},
    device="cpu",
    versions={"mlx": "1"},
    parameters=TuneParameters(),
)


@pytest.fixture
def store(tmp_path: Path) -> MeasurementStore:
    return MeasurementStore(tmp_path)


def the_file(store: MeasurementStore) -> Path:
    [file] = store.folder.iterdir()
    return file


def test_what_is_put_is_got_again_and_says_that_it_was_kept(store):
    assert store.get(KEY) is None
    store.put(KEY, MEASURED)
    found = store.get(KEY)
    assert found == MEASURED
    assert found.stored
    assert not MEASURED.stored
    assert MeasurementStore(store.folder.parent).get(KEY) == MEASURED


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "x"},
        {"options": {"dtype": "float16"}},
        {"device": "gpu"},
        {"versions": {"mlx": "2"}},
        {"parameters": TuneParameters(token_count=2049)},
        {"parameters": TuneParameters(kv_bits=4)},
        {"parameters": TuneParameters(kv_bits=4, kv_group_size=32)},
        {"parameters": None},
    ],
)
def test_another_key_finds_nothing(store, change):
    store.put(KEY, MEASURED)
    assert store.get(attrs.evolve(KEY, **change)) is None


def test_a_correction_is_kept_beside_it(store):
    key = attrs.evolve(KEY, parameters=None)
    assert store.get_correction(key) is None
    store.put(KEY, MEASURED)
    store.put_correction(key, {"factor": 1.5})
    assert store.get_correction(key) == {"factor": 1.5}
    assert store.get(KEY) == MEASURED


def corrupt_text(text: str) -> str:
    return text[: len(text) // 2]


def changed(**changes: Any) -> Any:
    def change(text: str) -> str:
        entry = json.loads(text)
        for path, value in changes.items():
            *folders, name = path.split("__")
            target = entry
            for folder in folders:
                target = target[folder]
            if value is None:
                del target[name]
            else:
                target[name] = value
        return json.dumps(entry)

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        corrupt_text,
        lambda text: "[1]",
        lambda text: "[" * 100_000,
        lambda text: json.dumps({"format": 1}),
        changed(format=2),
        changed(key__weights="others"),
        changed(value=7),
        changed(value__surprise=1),
        changed(value__weight_bytes="1000"),
        changed(value__weight_bytes=-1),
        changed(value__measured=1),
        changed(value__approximate=1),
        changed(value__kv_bytes=None),
        changed(value__max_kv_size="x"),
        changed(value__batch_size=None),
        changed(value__cache_cost=3),
        changed(value__cache_cost__step_bytes=None),
        changed(value__cache_cost__windows=[{"most_tokens": 1}]),
        changed(value__cache_cost__windows=None),
    ],
)
def test_a_corrupted_or_foreign_file_is_reported_and_replaced(store, damage):
    store.put(KEY, MEASURED)
    file = the_file(store)
    file.write_text(damage(file.read_text()))
    with structlog.testing.capture_logs() as logs:
        assert store.get(KEY) is None
    [log] = logs
    assert (log["event"], log["log_level"]) == ("measurement_unreadable", "warning")
    assert log["file"] == str(file)
    assert log["reason"]
    assert "delete it" in log["advice"]
    store.put(KEY, MEASURED)
    assert store.get(KEY) == MEASURED


def test_bytes_that_are_no_text_are_no_entry(store):
    store.put(KEY, MEASURED)
    the_file(store).write_bytes(b"\xff\xfe\x00" * 20)
    with structlog.testing.capture_logs() as logs:
        assert store.get(KEY) is None
    assert len(logs) == 1


def test_a_folder_that_cannot_be_written_is_reported_and_no_more(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = MeasurementStore(tmp_path / "file")
    with structlog.testing.capture_logs() as logs:
        store.put(KEY, MEASURED)
        assert store.get(KEY) is None
    assert [log["event"] for log in logs] == ["measurement_not_stored", "measurement_unreadable"]
    assert "WIREDACTORS_CACHE_DIR" in logs[0]["advice"]


def test_an_entry_appears_whole_or_not_at_all(store, monkeypatch):
    store.put(KEY, MEASURED)
    before = the_file(store).read_text()

    def fail(source, target):
        assert Path(target).read_text() == before
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with structlog.testing.capture_logs():
        store.put(KEY, attrs.evolve(MEASURED, kv_bytes=1))
    assert the_file(store).read_text() == before  # and no other file is left


def test_the_folder_is_the_users_cache_unless_the_environment_names_one(
    monkeypatch, cache_folder, tmp_path
):
    assert MeasurementStore().folder == cache_folder / "measurements"
    monkeypatch.delenv("WIREDACTORS_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(store_module.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    assert MeasurementStore().folder == tmp_path / "wiredactors" / "measurements"


def test_plain_values_and_back():
    plain = json.loads(json.dumps(measurement_to_dict(MEASURED)))
    assert "stored" not in plain
    assert measurement_from_dict(plain) == MEASURED
    worded = attrs.evolve(MEASURED, approximate="in words", kv_bits=4, max_kv_size=None)
    assert measurement_from_dict(measurement_to_dict(worded)) == worded


def model_directory(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return path


def test_the_identity_is_of_shapes_and_types_and_not_of_times_or_values(tmp_path):
    path = model_directory(tmp_path / "model")
    identity = weights_identity(path)
    weights = path / "model.safetensors"
    os.utime(weights, (1, 1))
    weights.write_bytes(weights.read_bytes()[:-8] + b"\x01" * 8)
    (path / "README.md").write_text("about it")
    assert weights_identity(path) == identity
    assert weights_identity(shutil.copytree(path, tmp_path / "copy")) == identity


def grow(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"1")


def rename(path: Path) -> None:
    (path / "model.safetensors").rename(path / "model-1.safetensors")


def replace(name: str, old: bytes, new: bytes) -> Any:
    def change(path: Path) -> None:
        file = path / name
        assert old in file.read_bytes()
        file.write_bytes(file.read_bytes().replace(old, new))

    return change


@pytest.mark.parametrize(
    "change",
    [
        replace("config.json", b"llama", b"qwen3"),
        replace("model.safetensors", b"F32", b"I32"),
        grow,
        lambda path: (path / "own.py").write_text("class Model: ..."),
        rename,
    ],
)
def test_the_identity_changes_with_what_memory_depends_on(tmp_path, change):
    path = model_directory(tmp_path / "model")
    identity = weights_identity(path)
    change(path)
    assert weights_identity(path) != identity


def test_a_gguf_file_is_known_by_its_header_and_size(tmp_path):
    path = tmp_path / "a.gguf"

    def identity(file: bytes) -> str:
        path.write_bytes(file)
        return weights_identity(path)

    file = gguf_files.build(gguf_files.llama_entries(), gguf_files.llama_tensors())
    others = gguf_files.build(gguf_files.llama_entries(), gguf_files.llama_tensors(seed=1))
    dense = gguf_files.build(gguf_files.llama_entries(), gguf_files.llama_tensors("F32"))
    assert others != file
    assert identity(others) == identity(file)
    assert identity(file + b"0") != identity(file)
    assert identity(dense) != identity(file)


def test_a_models_key_names_device_and_versions(tmp_path):
    pytest.importorskip("mlx.core")
    key = model_key(model_directory(tmp_path / "model"), {"dtype": None})
    assert set(key.versions) == {"mlx", "mlx-lm", "wiredactors"}
    assert "cpu" in key.device or "gpu" in key.device
