"""GGUF files made by hand, right ones and wrong ones, for the tests of the reader and the loader.

Written from docs/gguf.md of github.com/ggml-org/ggml and not from the code under test.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

UINT8, INT32, UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, FLOAT64 = 0, 5, 4, 6, 7, 8, 9, 10, 12

# Number, values in a block, bytes of a block.
TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q8_0": (8, 32, 34),
    "Q4_K": (12, 256, 144),
    "BF16": (30, 1, 2),
}

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, LAYERS = 64, 4, 2, 16, 96, 2


def text(value: str) -> bytes:
    """A string of the format."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, payload: bytes) -> bytes:
    """A metadata entry."""
    return text(key) + struct.pack("<I", kind) + payload


def uint32(key: str, value: int) -> bytes:
    """A metadata entry with a number."""
    return entry(key, UINT32, struct.pack("<I", value))


def string(key: str, value: str) -> bytes:
    """A metadata entry with a string."""
    return entry(key, STRING, text(value))


def strings(key: str, values: Sequence[str]) -> bytes:
    """A metadata entry with an array of strings."""
    head = struct.pack("<IQ", STRING, len(values))
    return entry(key, ARRAY, head + b"".join(map(text, values)))


@dataclass
class Tensor:
    """A tensor of a file; `offset` and `kind` are set to give a wrong one."""

    name: str
    shape: tuple[int, ...]
    type: str = "F32"
    data: bytes | None = None
    offset: int | None = None
    kind: int | None = None

    def content(self) -> bytes:
        """The data, by default zeros, of the size that shape and type ask for."""
        if self.data is not None:
            return self.data
        _, block_values, block_bytes = TYPES[self.type]
        values = 1
        for length in self.shape:
            values *= length
        return bytes(values // block_values * block_bytes)


def build(
    entries: Sequence[bytes],
    tensors: Sequence[Tensor] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    entry_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; the counts are set to give wrong ones."""
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(entries) if entry_count is None else entry_count,
    )
    head += b"".join(entries)
    data = b""
    for tensor in tensors:
        offset = len(data) if tensor.offset is None else tensor.offset
        head += text(tensor.name) + struct.pack("<I", len(tensor.shape))
        head += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
        kind = TYPES[tensor.type][0] if tensor.kind is None else tensor.kind
        head += struct.pack("<IQ", kind, offset)
        data += tensor.content()
        data += bytes(-len(data) % alignment)
    return head + bytes(-len(head) % alignment) + data


def random_rows(chance: random.Random, shape: tuple[int, ...], type_name: str) -> bytes:
    """Small random values in blocks of `type_name`, with scales as a real model has them."""
    _, block_values, block_bytes = TYPES[type_name]
    values = 1
    for length in shape:
        values *= length
    blocks = []
    for _ in range(values // block_values):
        match type_name:
            case "F32":
                blocks.append(struct.pack("<f", chance.gauss(0, 0.1)))
            case "BF16":
                blocks.append(struct.pack("<f", chance.gauss(0, 0.1))[2:])
            case "F16":
                blocks.append(struct.pack("<e", chance.gauss(0, 0.1)))
            case "Q8_0":
                scale = struct.pack("<e", chance.uniform(0.0005, 0.002))
                blocks.append(scale + chance.randbytes(block_bytes - 2))
            case "Q4_0":
                scale = struct.pack("<e", chance.uniform(-0.03, 0.03))
                blocks.append(scale + chance.randbytes(block_bytes - 2))
            case "Q4_1":
                scale = struct.pack("<ee", chance.uniform(0.005, 0.03), chance.uniform(-0.2, 0))
                blocks.append(scale + chance.randbytes(block_bytes - 4))
    return b"".join(blocks)


def values_of(raw: bytes, type_name: str) -> list[float]:
    """What the blocks mean, value by value, as ggml-quants.c of github.com/ggml-org/ggml says."""
    found: list[float] = []
    _, _, block_bytes = TYPES[type_name]
    for start in range(0, len(raw), block_bytes):
        block = raw[start : start + block_bytes]
        match type_name:
            case "F32":
                found += struct.unpack("<f", block)
            case "F16":
                found += struct.unpack("<e", block)
            case "BF16":
                found += struct.unpack("<f", b"\0\0" + block)
            case "Q8_0":
                (scale,) = struct.unpack("<e", block[:2])
                found += [scale * code for code in struct.unpack("<32b", block[2:])]
            case "Q4_0":
                (scale,) = struct.unpack("<e", block[:2])
                codes = [byte & 15 for byte in block[2:]] + [byte >> 4 for byte in block[2:]]
                found += [scale * (code - 8) for code in codes]
            case "Q4_1":
                scale, least = struct.unpack("<ee", block[:4])
                codes = [byte & 15 for byte in block[4:]] + [byte >> 4 for byte in block[4:]]
                found += [scale * code + least for code in codes]
    return found


def byte_alphabet() -> list[str]:
    """The 256 characters by which GPT-2's tokenizer shows bytes, in the order of the bytes."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown}
    letters.update({byte: chr(256 + index) for index, byte in enumerate(hidden)})
    return [letters[byte] for byte in range(256)]


TOKENS = [*byte_alphabet(), "he", "ll", "hell", "hello", "12", "<|end|>", "<|start|>", "<tool>"]
MERGES = ["h e", "l l", "he ll", "hell o", "1 2"]
END, START, TOOL = 261, 262, 263


def tokenizer_entries(pre: str = "smollm", merges: Sequence[str] = MERGES) -> list[bytes]:
    """The metadata of a tokenizer with 264 tokens, two of them control tokens."""
    kinds = [3 if token in ("<|end|>", "<|start|>") else 1 for token in TOKENS]
    kinds[TOOL] = 4
    packed = struct.pack(f"<IQ{len(kinds)}i", INT32, len(kinds), *kinds)
    return [
        string("tokenizer.ggml.model", "gpt2"),
        string("tokenizer.ggml.pre", pre),
        strings("tokenizer.ggml.tokens", TOKENS),
        entry("tokenizer.ggml.token_type", ARRAY, packed),
        strings("tokenizer.ggml.merges", merges),
        uint32("tokenizer.ggml.bos_token_id", START),
        uint32("tokenizer.ggml.eos_token_id", END),
        string("tokenizer.chat_template", "{% for m in messages %}{{ m['content'] }}{% endfor %}"),
    ]


def llama_entries(architecture: str = "llama") -> list[bytes]:
    """The metadata of a llama of two layers."""
    return [
        string("general.architecture", architecture),
        uint32("llama.context_length", 128),
        uint32("llama.embedding_length", HIDDEN),
        uint32("llama.block_count", LAYERS),
        uint32("llama.feed_forward_length", FEED_FORWARD),
        uint32("llama.attention.head_count", HEADS),
        uint32("llama.attention.head_count_kv", KV_HEADS),
        uint32("llama.rope.dimension_count", HEAD_DIM),
        entry("llama.rope.freq_base", FLOAT32, struct.pack("<f", 10000)),
        entry("llama.attention.layer_norm_rms_epsilon", FLOAT32, struct.pack("<f", 1e-5)),
    ]


def llama_tensors(
    matrices: str = "Q4_1", embedding: str = "Q8_0", *, tied: bool = True, seed: int = 0
) -> list[Tensor]:
    """The tensors of that llama, with random values; norms are F32."""
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    wanted: list[tuple[str, tuple[int, ...], str]] = [
        ("token_embd.weight", (HIDDEN, len(TOKENS)), embedding)
    ]
    for layer in range(LAYERS):
        wanted += [
            (f"blk.{layer}.{part}.weight", shape, matrices if len(shape) == 2 else "F32")
            for part, shape in {
                "attn_norm": (HIDDEN,),
                "attn_q": (HIDDEN, queries),
                "attn_k": (HIDDEN, keys),
                "attn_v": (HIDDEN, keys),
                "attn_output": (queries, HIDDEN),
                "ffn_norm": (HIDDEN,),
                "ffn_gate": (HIDDEN, FEED_FORWARD),
                "ffn_up": (HIDDEN, FEED_FORWARD),
                "ffn_down": (FEED_FORWARD, HIDDEN),
            }.items()
        ]
    wanted.append(("output_norm.weight", (HIDDEN,), "F32"))
    if not tied:
        wanted.append(("output.weight", (HIDDEN, len(TOKENS)), matrices))
    chance = random.Random(seed)
    return [
        Tensor(name, shape, kind, random_rows(chance, shape, kind)) for name, shape, kind in wanted
    ]
