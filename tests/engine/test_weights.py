"""Headers of weight files: what they say, what is wrong with them, and copies without data."""

from __future__ import annotations

import json
import os
import struct

import pytest

from wiredactors.engine.imports import import_mlx
from wiredactors.engine.weights import (
    hollow_copy,
    parse_weight_file,
    read_weight_file,
    weight_files,
)
from wiredactors.memory.errors import ModelLoadError


def head_of(header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def tensor(begin, end):
    return {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}


@pytest.fixture
def file(tmp_path):
    mx = import_mlx()
    path = tmp_path / "model.safetensors"
    mx.save_safetensors(str(path), {"a": mx.zeros((100, 7)), "b": mx.zeros((3,), mx.bfloat16)})
    return path


def test_a_header_tells_the_size_of_the_file(file):
    weights = read_weight_file(file)
    assert weights.name == "model.safetensors"
    assert weights.size == file.stat().st_size
    assert weights.is_whole
    assert file.read_bytes().startswith(weights.head)
    assert len(weights.head) == weights.size - 2806


def test_data_that_is_not_here(file):
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    weights = read_weight_file(file)
    assert not weights.is_whole
    assert weights.size == len(content)
    assert not parse_weight_file("far/model.safetensors", weights.head).is_whole
    assert parse_weight_file("far/model.safetensors", weights.head).name == "model.safetensors"


def test_the_files_that_mlx_lm_loads_in_order(tmp_path, file):
    (tmp_path / "model-2.safetensors").write_bytes(head_of({}))
    (tmp_path / "adapters.safetensors").write_bytes(b"")
    names = [weights.name for weights in weight_files(tmp_path)]
    assert names == ["model-2.safetensors", "model.safetensors"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        struct.pack("<Q", 1000) + b"{}",
        struct.pack("<Q", 1 << 62) + b"{}",
        head_of({"a": tensor(0, 40)})[:-3],
    ],
    ids=["nothing", "a byte", "cut", "a giant", "cut in the header"],
)
def test_no_whole_header(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"has no whole header.*download it again"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        {"a": []},
        {"a": {"dtype": "F32"}},
        {"a": {"data_offsets": [0]}},
        {"a": {"data_offsets": [0, 1, 2]}},
        {"a": {"data_offsets": [0, "4"]}},
        {"a": {"data_offsets": [0, 4.5]}},
        {"a": tensor(40, 0)},
        {"a": tensor(-40, 0)},
        {"a": tensor(0, 1 << 60)},
    ],
    ids=str,
)
def test_headers_that_make_no_sense(header):
    with pytest.raises(ModelLoadError, match=r"some\.safetensors has an unreadable header"):
        parse_weight_file("some.safetensors", head_of(header))


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "model-1.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        weight_files(tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    (tmp_path / "model-1.safetensors").mkdir()
    with pytest.raises(ModelLoadError, match="cannot be read"):
        weight_files(tmp_path)


def test_a_hollow_copy_has_headers_and_configs_and_takes_no_room(tmp_path):
    head = head_of({"__metadata__": {"format": "mlx"}, "a": tensor(0, 1 << 30)})
    weights = parse_weight_file("model.safetensors", head)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "hf_quant_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with hollow_copy(tmp_path, [weights]) as hollow:
        names = sorted(file.name for file in hollow.iterdir())
        assert names == ["config.json", "hf_quant_config.json", "model.safetensors"]
        stat = os.stat(hollow / "model.safetensors")
        assert stat.st_size == len(head) + (1 << 30)
        assert stat.st_blocks * 512 < 1 << 20
        arrays = import_mlx().load(str(hollow / "model.safetensors"))
        assert arrays["a"].nbytes == 1 << 30
    assert not hollow.exists()
