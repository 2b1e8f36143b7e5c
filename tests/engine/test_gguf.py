"""A GGUF header is read as it is, and whatever is wrong with it is a clear error."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine import gguf_files as files
from wiredactors.engine import gguf_bytes
from wiredactors.engine.gguf import GGUFHeader, GGUFTensor, read_gguf_header
from wiredactors.engine.gguf_layout import gguf_config
from wiredactors.memory.errors import ModelLoadError

ENTRIES = [*files.llama_entries(), *files.tokenizer_entries()]
TENSORS = files.llama_tensors()
GOOD = files.build(ENTRIES, TENSORS)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], GGUFHeader]:
    """Reads the header of a file with the bytes that it is given."""

    def reading(content: bytes) -> GGUFHeader:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return read_gguf_header(path)

    return reading


def error_of(read: Callable[[bytes], GGUFHeader], content: bytes) -> str:
    with pytest.raises(ModelLoadError) as caught:
        read(content)
    return str(caught.value)


def one_tensor(shape: tuple[int, ...] = (32,), kind: str = "F32", **wrong: int) -> bytes:
    return files.build([], [files.Tensor("a", shape, kind, bytes(128), **wrong)])


def test_a_header_comes_back_as_it_was_written(tmp_path):
    """Version, metadata of every type, tensors, alignment and offsets are those of the file."""
    numbers = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 10: "Q", 11: "q"}
    metadata = [
        files.entry(f"number.{kind}", kind, struct.pack(f"<{letter}", 7))
        for kind, letter in numbers.items()
    ]
    metadata += [
        files.entry("float", files.FLOAT32, struct.pack("<f", 0.5)),
        files.entry("double", files.FLOAT64, struct.pack("<d", 0.1)),
        files.entry("yes", files.BOOL, b"\1"),
        files.string("text", "naïve 日本"),
        files.string("no text", ""),
        files.strings("texts", ["a", "", "ß"]),
        files.entry("numbers", files.ARRAY, struct.pack("<IQ3i", files.INT32, 3, -1, 0, 2**31 - 1)),
        files.entry("flags", files.ARRAY, struct.pack("<IQ2B", files.BOOL, 2, 0, 1)),
        files.entry("nothing", files.ARRAY, struct.pack("<IQ", files.UINT8, 0)),
        files.uint32("general.alignment", 64),
    ]
    tensors = [
        files.Tensor("plain", (3, 5, 2, 7)),
        files.Tensor("packed", (64, 3), "Q4_1"),
        files.Tensor("eight", (32,), "Q8_0"),
    ]
    content = files.build(metadata, tensors, alignment=64)
    path = tmp_path / "any.gguf"
    path.write_bytes(content)
    header = read_gguf_header(str(path))
    data = len(content) - 896 - 128 - 64  # each tensor's data, rounded up to 64 bytes
    assert header == GGUFHeader(
        path=str(path),
        version=3,
        metadata={
            **{f"number.{kind}": 7 for kind in numbers},
            "float": 0.5,
            "double": 0.1,
            "yes": True,
            "text": "naïve 日本",
            "no text": "",
            "texts": ("a", "", "ß"),
            "numbers": (-1, 0, 2**31 - 1),
            "flags": (False, True),
            "nothing": (),
            "general.alignment": 64,
        },
        tensors=(
            GGUFTensor("plain", (3, 5, 2, 7), "F32", data, 840),
            GGUFTensor("packed", (64, 3), "Q4_1", data + 896, 120),
            GGUFTensor("eight", (32,), "Q8_0", data + 896 + 128, 34),
        ),
        alignment=64,
        data_offset=data,
        file_size=len(content),
    )
    assert header.metadata["yes"] is True


@pytest.mark.parametrize("version", [2, 3])
def test_versions_2_and_3_are_read(read, version):
    """The two differ in what may be big-endian, not in what is written."""
    header = read(files.build(ENTRIES, TENSORS, version=version))
    assert header.version == version
    assert len(header.tensors) == len(TENSORS)


def test_a_header_without_tensors_is_valid(read):
    """A file can have a vocabulary only; then data that is not there may begin past its end."""
    assert read(files.build([files.string("a", "b")])[:-3]).tensors == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["ends at byte 0", "the magic"]),
        (files.build(ENTRIES, magic=b"GGML"), ["b'GGML'", "b'GGUF'", "byte 0"]),
        (b"<!DOCTYPE html><html>", ["b'<!DO'", "no GGUF file"]),
        (files.build([], version=1), ["version is 1", "byte 4", "not supported"]),
        (files.build([], version=4), ["version is 4", "not supported"]),
        (files.build([], version=3 << 24), ["big-endian", "not supported"]),
        (files.build(ENTRIES, TENSORS, tensor_count=1 << 60), [f"{1 << 60} tensors", "byte 8"]),
        (files.build(ENTRIES, TENSORS, tensor_count=2000), ["2000 tensors"]),
        (files.build(ENTRIES, entry_count=1 << 60), [f"{1 << 60} metadata entries", "byte 16"]),
        (files.build([struct.pack("<Q", 1 << 50) + b"k"]), [f"string of {1 << 50}", "byte 24"]),
        (files.build([files.string("", "v")]), ["a metadata key is not 1 to 65535 bytes"]),
        (files.build([files.string("k" * 70000, "v")]), ["not 1 to 65535 bytes"]),
        (files.build([files.entry("k", 13, b"")]), ["'k' has the unknown type 13"]),
        (files.build([files.entry("k", files.BOOL, b"\2")]), ["neither 0 nor 1"]),
        (
            files.build([files.entry("k", files.STRING, struct.pack("<Q", 1 << 63))]),
            ["the value of 'k' has a string of"],
        ),
        (
            files.build([files.entry("k", files.STRING, struct.pack("<Q", 2) + b"\xc3\x28")]),
            ["the value of 'k'", "not UTF-8"],
        ),
        (
            files.build([files.entry("k", files.ARRAY, struct.pack("<IQ", 5, 1 << 40))]),
            [f"{1 << 40} elements of 'k' of at least 4 bytes"],
        ),
        (
            files.build([files.entry("k", files.ARRAY, struct.pack("<IQ", 8, 1 << 40))]),
            [f"{1 << 40} elements of 'k' of at least 8 bytes"],
        ),
        (
            files.build([files.entry("k", files.ARRAY, struct.pack("<IQIQ", 9, 1, 4, 0))]),
            ["'k' is an array of arrays", "not supported"],
        ),
        (
            files.build([files.entry("k", files.ARRAY, struct.pack("<IQ", 99, 0))]),
            ["array of the unknown type 99"],
        ),
        (files.build([files.string("k", "a"), files.string("k", "a")]), ["key 'k' is there twice"]),
        (files.build([files.uint32("general.alignment", 0)]), ["alignment is 0", "multiple of 8"]),
        (files.build([files.uint32("general.alignment", 12)]), ["alignment is 12"]),
        (files.build([files.string("general.alignment", "32")]), ["alignment is '32'"]),
        (one_tensor(()), ["'a' has 0 dimensions and not 1 to 4"]),
        (one_tensor((1, 1, 1, 1, 1)), ["5 dimensions"]),
        (one_tensor((32, 0)), ["a dimension of 0"]),
        (one_tensor((1 << 40, 1 << 40)), ["'a' with dimensions", "bytes and the file has"]),
        (one_tensor((33, 32), "Q4_1"), ["rows of 33 values", "blocks of 32", "Q4_1"]),
        (one_tensor((128, 2), "Q4_K"), ["rows of 128 values", "blocks of 256"]),
        (files.build([], [files.Tensor("a", (32,), kind=4)]), ["unknown type 4", "not supported"]),
        (files.build([], [files.Tensor("a", (32,), kind=99)]), ["unknown type 99"]),
        (files.build([], [files.Tensor("a" * 65, (32,))]), ["name is not 1 to 64 bytes"]),
        (files.build([], [files.Tensor("", (32,))]), ["name is not 1 to 64 bytes"]),
        (one_tensor(offset=1 << 63), ["'a' would end at byte"]),
        (one_tensor(offset=32), ["'a' would end at byte"]),
        (one_tensor(offset=4), ["'a', at offset 4, is not aligned to 32"]),
        (
            files.build([], [files.Tensor("a", (64,)), files.Tensor("b", (64,), offset=224)]),
            ["tensors 'a' and 'b' overlap"],
        ),
        (
            files.build([], [files.Tensor("a", (64,)), files.Tensor("a", (64,))]),
            ["tensor 'a' is there twice"],
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "file",
)
def test_what_is_wrong_is_said(read, tmp_path, content, words):
    """Each kind of damage has its words, the file's name, the byte, and what to do."""
    message = error_of(read, content)
    for word in [*words, str(tmp_path / "model.gguf"), "at byte", "again"]:
        assert word in message


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.03, 0.05, 0.07, 0.08, 0.5, 0.99, 0.9999])
def test_a_truncated_file_is_noticed(read, share):
    """Wherever it ends, in the metadata, the tensor table or the data."""
    message = error_of(read, GOOD[: int(len(GOOD) * share)])
    assert "truncated or corrupted" in message
    assert "download it again" in message


def test_every_shorter_header_is_noticed(read):
    """A small file is cut at each of its bytes."""
    content = files.build(
        [files.string("k", "value"), files.strings("ks", ["a", "b"])], [files.Tensor("a", (4,))]
    )
    for end in range(len(content) - 16):  # 16 bytes are the padding behind the tensor
        assert "truncated or corrupted" in error_of(read, content[:end]), end
    read(content[: len(content) - 16])


def test_what_cannot_be_opened_is_said(tmp_path):
    """A missing file, a directory and a pipe are the caller's mistake, and named."""
    missing = tmp_path / "missing.gguf"
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    for path, words in [
        (missing, "No such file"),
        (tmp_path, "is not a file"),
        (pipe, "is not a file"),
    ]:
        with pytest.raises(ModelLoadError, match=words) as caught:
            read_gguf_header(path)
        assert str(path) in str(caught.value)
        assert "path" in str(caught.value)


def test_a_header_that_never_ends_is_not_read_into_memory(read, monkeypatch):
    """A length that fits a huge file by chance must not fill the memory."""
    monkeypatch.setattr(gguf_bytes, "_LONGEST_HEADER", 1000)
    content = files.build([files.string("k", "v" * 2000)])
    assert "goes on beyond 1000 B with the value of 'k'" in error_of(read, content)


def test_a_large_vocabulary_takes_no_time(read):
    """50,000 tokens and as many merges, as small real models have.

    0.15 s when this was written; the bound leaves room for coverage, and none for copying what was
    read already for each string.
    """
    names = [f"token{number}" for number in range(50_000)]
    content = files.build([files.strings("tokens", names), files.strings("merges", names)])
    start = time.process_time()
    header = read(content)
    assert time.process_time() - start < 5
    assert header.metadata["tokens"] == tuple(names)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_a_damaged_header_is_an_error_or_still_safe(data, tmp_path_factory):
    """Bytes changed, lost or added: `ModelLoadError`, or each tensor lies inside the file.

    What is then said of the model is an error of the same kind, or an answer.
    """
    content = bytearray(files.build(ENTRIES[:11], TENSORS))
    header_size = len(content) - sum(-(-len(each.content()) // 32) * 32 for each in TENSORS)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, header_size - 1)) % max(len(content), 1)
        match data.draw(st.sampled_from(["change", "number", "insert", "remove", "cut"])):
            case "change":
                content[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "number":
                value = data.draw(st.sampled_from([0, 1, 31, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
                content[at : at + 8] = struct.pack("<Q", value)
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=40))
            case "remove":
                del content[at : at + data.draw(st.integers(1, 40))]
            case "cut":
                del content[at:]
    path = tmp_path_factory.mktemp("damaged") / "model.gguf"
    path.write_bytes(content)
    with contextlib.suppress(ModelLoadError):
        header = read_gguf_header(path)
        end = header.data_offset
        for tensor in sorted(header.tensors, key=lambda each: each.offset):
            assert tensor.offset >= end
            assert tensor.byte_size > 0
            end = tensor.offset + tensor.byte_size
        assert not header.tensors or end <= len(content)
        assert gguf_config(header, dequantize=False)["num_hidden_layers"] == 2


# What the header says of the model


def config_of(read: Callable[[bytes], GGUFHeader], content: bytes) -> dict[str, object]:
    return gguf_config(read(content), dequantize=False)


def test_the_configuration_is_mlx_lms(read):
    """The numbers of the metadata under the names of a config.json, quantization by module."""
    assert config_of(read, GOOD) == {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 264,
        "max_position_embeddings": 128,
        "rms_norm_eps": pytest.approx(1e-5),
        "rope_theta": 10000.0,
        "rope_traditional": False,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "eos_token_id": [files.END],
        "quantization": {
            "group_size": 32,
            "bits": 4,
            "mode": "affine",
            "model.embed_tokens": {"group_size": 32, "bits": 8, "mode": "affine"},
        },
    }
    assert "quantization" not in gguf_config(read(GOOD), dequantize=True)


def test_modules_that_are_plain_numbers_are_named(read):
    """In a quantized file they are exceptions; in a file without packed tensors nothing is said."""
    config = config_of(read, files.build(ENTRIES, files.llama_tensors("Q8_0", "F16", tied=False)))
    assert config["quantization"] == {
        "group_size": 32,
        "bits": 8,
        "mode": "affine",
        "model.embed_tokens": False,
    }
    assert config["tie_word_embeddings"] is False
    assert "quantization" not in config_of(
        read, files.build(ENTRIES, files.llama_tensors("F32", "F32"))
    )


def test_what_may_be_missing_has_its_default(read):
    """Heads of keys and values as many as heads, the base 10,000, no tokenizer's ids."""
    optional = ("head_count_kv", "freq_base", "rope.dimension")
    entries = [
        each
        for each in files.llama_entries()
        if not any(name.encode() in each for name in optional)
    ]
    tensors = files.llama_tensors("F32", "F32")
    for tensor in tensors:
        if "attn_k" in tensor.name or "attn_v" in tensor.name:
            tensor.shape, tensor.data = (64, 64), None
    config = config_of(read, files.build(entries, tensors))
    assert config["num_key_value_heads"] == 4
    assert config["rope_theta"] == 10000.0
    assert config["eos_token_id"] == []


@pytest.mark.parametrize(
    "key",
    [
        "llama.context_length",
        "llama.embedding_length",
        "llama.block_count",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
    ],
)
def test_a_missing_key_is_named(read, key):
    """Each key without which there is no model."""
    entries = [each for each in ENTRIES if not each.startswith(files.text(key))]
    with pytest.raises(ModelLoadError, match=f"the metadata key '{key}' is missing"):
        config_of(read, files.build(entries, TENSORS))


def test_another_architecture_is_named(read):
    """It cannot be guessed from the tensors."""
    content = files.build([*files.llama_entries("gemma3"), *files.tokenizer_entries()], TENSORS)
    with pytest.raises(ModelLoadError, match="architecture is 'gemma3', and only llama"):
        config_of(read, content)
    with pytest.raises(ModelLoadError, match="architecture is None, and only llama"):
        config_of(read, files.build([], TENSORS))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([files.uint32("llama.expert_count", 8)], "mixture of experts"),
        ([files.string("llama.rope.scaling.type", "yarn")], "'yarn', which is not supported"),
        ([files.string("llama.rope.scaling.type", "linear")], "'llama.rope.scaling.factor' is"),
        (
            [files.uint32("llama.attention.value_length", 32)],
            "value_length is 32 and a head",
        ),
        ([files.uint32("llama.attention.key_length", 15)], "15 values in a head do not fit"),
        ([files.uint32("llama.attention.key_length", 32)], "dimension_count is 16 and a head has"),
        ([files.uint32("tokenizer.ggml.eot_token_id", 264)], "264 and the vocabulary has 264"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_what_mlx_lms_llama_does_not_do_is_refused(read, entries, words):
    """Loading it all the same would give a model that talks nonsense."""
    with pytest.raises(ModelLoadError, match=words):
        config_of(read, files.build([*ENTRIES, *entries], TENSORS))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("llama.block_count", 0, "llama.block_count is 0"),
        ("llama.block_count", 4_000_000_000, "'blk.2.attn_norm.weight' is missing"),
        ("llama.block_count", 1, "no place for the tensor 'blk.1.attn_k.weight' and 8 others"),
        ("llama.embedding_length", 65, "'token_embd.weight' has the shape \\(64, 264\\)"),
        ("llama.attention.head_count", 3, "do not fit together"),
        ("llama.attention.head_count", 100, "key_length is 0"),
        ("llama.attention.head_count", 8, "dimension_count is 16 and a head has 8"),
        ("llama.feed_forward_length", 64, "'blk.0.ffn_gate.weight' has the shape \\(64, 96\\)"),
    ],
)
def test_numbers_that_do_not_fit_the_tensors_are_refused(read, key, value, words):
    """The tensors' shapes are the truth; a wrong number of layers takes no time either."""
    entries = [each for each in ENTRIES if not each.startswith(files.text(key))]
    with pytest.raises(ModelLoadError, match=words):
        config_of(read, files.build([*entries, files.uint32(key, value)], TENSORS))


def test_linear_scaling_is_mlx_lms(read):
    """Under its newer and its older key."""
    factor = struct.pack("<f", 4)
    newer = [
        files.string("llama.rope.scaling.type", "linear"),
        files.entry("llama.rope.scaling.factor", files.FLOAT32, factor),
    ]
    older = [files.entry("llama.rope.scale_linear", files.FLOAT32, factor)]
    for entries in (newer, older):
        config = config_of(read, files.build([*ENTRIES, *entries], TENSORS))
        assert config["rope_scaling"] == {"type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": (96, 64)}, "'blk.0.attn_q.weight' has the shape \\(96, 64\\)"),
        ({"name": "blk.0.attn_qkv.weight"}, "'blk.0.attn_q.weight' is missing"),
        ({"type": "Q4_K", "shape": (256, 16)}, "has the shape \\(256, 16\\)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(read, change, words):
    """By its name in the file."""
    tensors = files.llama_tensors()
    for attribute, value in {"data": None, **change}.items():
        setattr(tensors[2], attribute, value)
    with pytest.raises(ModelLoadError, match=words):
        config_of(read, files.build(ENTRIES, tensors))


def test_a_tensor_without_a_place_is_named(read):
    """Biases, and frequencies of Llama 3.1, would be left out otherwise."""
    bias = files.Tensor("blk.0.attn_q.bias", (64,))
    with pytest.raises(ModelLoadError, match=r"no place for the tensor 'blk.0.attn_q.bias'"):
        config_of(read, files.build(ENTRIES, [*TENSORS, bias]))
    frequencies = files.Tensor("rope_freqs.weight", (8,))
    with pytest.raises(ModelLoadError, match=r"rope_freqs.weight.*not supported"):
        config_of(read, files.build(ENTRIES, [*TENSORS, frequencies]))


def test_a_type_that_cannot_be_loaded_is_named(read):
    """With those that can."""
    tensors = files.llama_tensors("F32", "F32")
    entries = [each for each in ENTRIES if b"feed_forward" not in each]
    for tensor in tensors:
        if "ffn_" in tensor.name and len(tensor.shape) == 2:
            tensor.shape = tuple(256 if length == 96 else length for length in tensor.shape)
            tensor.data = None
            tensor.type = "Q4_K" if "down" in tensor.name else "F32"
    content = files.build([*entries, files.uint32("llama.feed_forward_length", 256)], tensors)
    words = "'blk.0.ffn_down.weight' is of type Q4_K, and only Q4_0, Q4_1, Q8_0, F32, F16, BF16"
    with pytest.raises(ModelLoadError, match=words):
        config_of(read, content)
