"""What a GGUF file has, in mlx-lm's words: the configuration, and where each tensor goes.

All of it from the header. Only the architecture llama.

Sources: the metadata keys are those under "LLM" and "LLaMA" in docs/gguf.md of
github.com/ggml-org/ggml; the tensor names those of `TENSOR_NAMES` in gguf-py/gguf/constants.py of
github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import isfinite, prod
from typing import Any

from attrs import frozen

from wiredactors.engine.gguf import GGUFHeader, GGUFTensor
from wiredactors.engine.gguf_tokenizer import gguf_eos_token_ids
from wiredactors.memory.errors import ModelLoadError

GROUP = 32
"""Values that share a scale, in the packed types as in MLX."""

PACKED_BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
"""Tensor types that MLX can hold as they are, and the bits of a code."""

DENSE_TYPES = ("F32", "F16", "BF16")
"""Tensor types that are plain numbers."""

_BLOCK_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@frozen
class Placement:
    """Where one tensor of the file goes.

    Attributes:
        tensor: of the file.
        module: of mlx-lm's model, "model.layers.0.self_attn.q_proj"; the tensor is its weight.
        bits: of a code, where the module stays quantized; None where it is plain numbers.
        head_dim: rows of a head, where the file has each head's rows in another order; else None.
    """

    tensor: GGUFTensor
    module: str
    bits: int | None
    head_dim: int | None

    @property
    def rows(self) -> int:
        """Rows of the matrix; 1 for a vector."""
        return prod(self.tensor.shape[1:])

    @property
    def columns(self) -> int:
        """Values in a row."""
        return self.tensor.shape[0]


def gguf_config(header: GGUFHeader, dequantize: bool) -> dict[str, Any]:
    """The configuration that mlx-lm would find in a config.json, for `model_type` "llama".

    Everything that loading needs is checked: that each tensor of the architecture is there, with
    the shape that the metadata says and of a type that can be loaded, and no other.

    Args:
        header: from `read_gguf_header`.
        dequantize: whether packed tensors become plain numbers; else there is a "quantization",
            for the commonest bits of a code, with entries by module for those that differ.

    Raises:
        ModelLoadError: another architecture, a key or tensor that is missing or makes no sense, or
            something that mlx-lm's llama does not do.
    """
    llama = _Llama(header)
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": llama.hidden,
        "num_hidden_layers": llama.layers,
        "intermediate_size": llama.feed_forward,
        "num_attention_heads": llama.heads,
        "num_key_value_heads": llama.kv_heads,
        "head_dim": llama.head_dim,
        "vocab_size": llama.vocabulary,
        "max_position_embeddings": llama.context,
        "rms_norm_eps": llama.positive_float("attention.layer_norm_rms_epsilon"),
        "rope_theta": llama.positive_float("rope.freq_base", 10000.0),
        "rope_traditional": False,
        "rope_scaling": llama.rope_scaling(),
        "tie_word_embeddings": llama.tied,
        "eos_token_id": list(gguf_eos_token_ids(header)),
    }
    if quantization := _quantization(llama.placements(dequantize)):
        config["quantization"] = quantization
    return config


def gguf_placements(header: GGUFHeader, dequantize: bool) -> tuple[Placement, ...]:
    """Where each tensor goes, in the order of the architecture; args and errors as `gguf_config`.

    Raises:
        ModelLoadError: as there.
    """
    return tuple(_Llama(header).placements(dequantize))


class _Llama:
    """The numbers of a llama model, from the metadata, and its tensors by name."""

    def __init__(self, header: GGUFHeader):
        architecture = header.metadata.get("general.architecture")
        self._path = header.path
        self._metadata = header.metadata
        self._tensors = {tensor.name: tensor for tensor in header.tensors}
        if architecture != "llama":
            raise self._refused(
                f"the architecture is {architecture!r}, and only llama is supported"
            )
        if self._metadata.get("llama.expert_count", 0) != 0:
            raise self._refused("it is a mixture of experts, which is not supported")
        self.hidden = self._positive("embedding_length")
        self.layers = self._positive("block_count")
        self.feed_forward = self._positive("feed_forward_length")
        self.context = self._positive("context_length")
        self.heads = self._positive("attention.head_count")
        self.kv_heads = self._positive("attention.head_count_kv", self.heads)
        self.head_dim = self._positive("attention.key_length", self.hidden // self.heads)
        self.vocabulary = self._tensor("token_embd.weight").shape[-1]
        self.tied = "output.weight" not in self._tensors
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise self._refused(
                f"{self.heads} heads, {self.kv_heads} heads of keys and values and {self.head_dim} "
                "values in a head do not fit together"
            )
        for key in ("attention.value_length", "rope.dimension_count"):
            if (length := self._positive(key, self.head_dim)) != self.head_dim:
                raise self._refused(
                    f"llama.{key} is {length} and a head has {self.head_dim} values, which is not "
                    "supported"
                )

    def positive_float(self, key: str, default: float | None = None) -> float:
        """The value of `llama.<key>`, a finite number above 0."""
        value = self._value(key, default)
        if not isinstance(value, (int, float)) or not isfinite(value) or value <= 0:
            raise self._refused(f"llama.{key} is {value!r} and not a number above 0")
        return float(value)

    def rope_scaling(self) -> dict[str, Any] | None:
        """mlx-lm's `rope_scaling`; None for the positions as they are."""
        kind = self._metadata.get("llama.rope.scaling.type", "none")
        if "llama.rope.scale_linear" in self._metadata:  # older files
            return {"type": "linear", "factor": self.positive_float("rope.scale_linear")}
        if kind == "linear":
            return {"type": "linear", "factor": self.positive_float("rope.scaling.factor")}
        if kind != "none":
            raise self._refused(f"llama.rope.scaling.type is {kind!r}, which is not supported")
        return None

    def placements(self, dequantize: bool) -> list[Placement]:
        """Where each tensor goes; every one that must be there is, and no other."""
        found = []
        for name, module, shape, head_dim in self._expected():
            tensor = self._tensor(name)
            if tensor.shape != shape:
                raise self._refused(
                    f"the tensor {name!r} has the shape {tensor.shape} and should have {shape}"
                )
            bits = PACKED_BITS.get(tensor.type)
            if bits is None and tensor.type not in DENSE_TYPES:
                known = ", ".join([*PACKED_BITS, *DENSE_TYPES])
                raise self._refused(
                    f"the tensor {name!r} is of type {tensor.type}, and only {known} can be loaded"
                )
            if dequantize or len(shape) == 1:
                bits = None
            found.append(Placement(tensor, module, bits, head_dim))
        unknown = self._tensors.keys() - {each.tensor.name for each in found}
        if "rope_freqs.weight" in unknown:
            raise self._refused(
                "it scales the frequencies of its positions one by one (rope_freqs.weight, as in "
                "Llama 3.1 and later), which is not supported"
            )
        if unknown:
            raise self._refused(
                f"mlx-lm's llama has no place for the tensor {min(unknown)!r}"
                + (f" and {len(unknown) - 1} others" if len(unknown) > 1 else "")
            )
        return found

    def _expected(self) -> Iterator[tuple[str, str, tuple[int, ...], int | None]]:
        """Each tensor's name, its module, its shape as GGUF has it, and `Placement.head_dim`."""
        hidden = self.hidden
        queries = self.heads * self.head_dim
        keys = self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "attn_norm": (hidden,),
            "attn_q": (hidden, queries),
            "attn_k": (hidden, keys),
            "attn_v": (hidden, keys),
            "attn_output": (queries, hidden),
            "ffn_norm": (hidden,),
            "ffn_gate": (hidden, self.feed_forward),
            "ffn_up": (hidden, self.feed_forward),
            "ffn_down": (self.feed_forward, hidden),
        }
        yield "token_embd.weight", "model.embed_tokens", (hidden, self.vocabulary), None
        # One that is missing ends this before a wrong number of layers could make it long.
        for layer in range(self.layers):
            for part, module in _BLOCK_MODULES.items():
                head_dim = self.head_dim if part in ("attn_q", "attn_k") else None
                place = f"model.layers.{layer}.{module}"
                yield f"blk.{layer}.{part}.weight", place, shapes[part], head_dim
        yield "output_norm.weight", "model.norm", (hidden,), None
        if not self.tied:
            yield "output.weight", "lm_head", (hidden, self.vocabulary), None

    def _tensor(self, name: str) -> GGUFTensor:
        if name not in self._tensors:
            raise self._refused(f"the tensor {name!r} is missing")
        return self._tensors[name]

    def _positive(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._refused(f"llama.{key} is {value!r} and not a whole number above 0")
        return value

    def _value(self, key: str, default: Any) -> Any:
        value = self._metadata.get(f"llama.{key}", default)
        if value is None:
            raise self._refused(f"the metadata key 'llama.{key}' is missing")
        return value

    def _refused(self, problem: str) -> ModelLoadError:
        return ModelLoadError(
            f"{self._path}: {problem}: take another file of the model, or load it from its Hugging "
            "Face directory"
        )


def _quantization(placements: list[Placement]) -> dict[str, Any] | None:
    """mlx-lm's "quantization", or None where nothing is quantized."""
    commonest = Counter(each.bits for each in placements if each.bits is not None).most_common(1)
    if not commonest:
        return None
    usual = commonest[0][0]
    quantization: dict[str, Any] = {"group_size": GROUP, "bits": usual, "mode": "affine"}
    for placement in placements:
        if len(placement.tensor.shape) > 1 and placement.bits != usual:
            quantization[placement.module] = placement.bits is not None and {
                "group_size": GROUP,
                "bits": placement.bits,
                "mode": "affine",
            }
    return quantization
