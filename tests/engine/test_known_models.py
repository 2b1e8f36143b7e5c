"""Real models by their public configs, against numbers that others have published of them.

The configs in `known/` are the publishers', without what has no part in sizes. Parameter counts
are those of the model pages on the Hugging Face hub (the "safetensors" entry of its API) or, where
said, of the publisher; bytes of packed models are those of MLX conversions on the hub.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from wiredactors.engine.blueprint import Blueprint, draw_config
from wiredactors.engine.estimating import estimate
from wiredactors.engine.modules import resident_table_bytes
from wiredactors.engine.sizing import LOGITS_BYTES, measure_cache

KNOWN = Path(__file__).parent / "known"

#: mlx-lm's converter with its defaults.
FOUR_BITS = {"group_size": 64, "bits": 4}
#: What 4 bits take with a scale and a bias of 16 bits for each 64 numbers.
PACKED_BYTES = 0.5 + 4 / 64

PARAMETERS = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen3-4b": 4_022_468_096,
    "qwen3-30b-a3b": 30_532_122_624,
    # The language model alone, as llama.cpp counts it; with its eyes it is 27,432,406,640.
    "gemma-3-27b": 27_009_346_304,
    # The main model; "671B" in the publisher's README. The hub adds a layer that predicts ahead.
    "deepseek-v3": 671_026_419_200,
    # Those of Qwen3-Coder-Next, whose config is the same; Instruct's page adds such a layer, too.
    "qwen3-next-80b-a3b": 79_674_391_296,
    "mistral-small-24b": 23_572_403_200,
    # "20.9B" in the publisher's model card.
    "gpt-oss-20b": 20_914_757_184,
}

#: Of what is not 16 bits wide: DeepSeek's routing biases are 32 (58 layers of 256 experts).
WIDER_BYTES = {"deepseek-v3": 58 * 256 * 2}


@functools.cache
def config_text(name: str) -> str:
    return (KNOWN / f"{name}.json").read_text()


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    """A known config; a change to None removes the entry."""
    config = {**json.loads(config_text(name)), **changes}
    return {key: value for key, value in config.items() if value is not None}


def dense(name: str) -> dict[str, Any]:
    return config_of(name, quantization_config=None)


def weights_of(config: dict[str, Any]) -> int:
    """Bytes of the weights alone, without the few hundred that tables of rotations take."""
    blueprint = draw_config(config)
    tables = resident_table_bytes(blueprint.model)
    assert tables < 4096
    return blueprint.weight_bytes - tables


def parameters_of(blueprint: Blueprint) -> dict[str, Any]:
    from mlx.utils import tree_flatten

    return dict(tree_flatten(blueprint.model.parameters()))


# -- weights


@pytest.mark.parametrize("name", PARAMETERS)
def test_two_bytes_for_each_published_parameter(name):
    assert weights_of(dense(name)) == 2 * PARAMETERS[name] + WIDER_BYTES.get(name, 0)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("llama-3.1-8b", 4_517_404_672),  # mlx-community/Llama-3.1-8B-Instruct-4bit
        ("llama-3.1-70b", 39_688_355_840),  # mlx-community/Llama-3.3-70B-Instruct-4bit, same config
        ("qwen3-4b", 2_262_920_192),  # the embedding with its padding, 151,936 words
        ("qwen3-30b-a3b", 17_180_913_664),  # mlx-community/Qwen3-Coder-30B-A3B-Instruct-4bit
        # mlx-community/Qwen3-Next-80B-A3B-Instruct-4bit, and Qwen3-Coder-Next-4bit
        ("qwen3-next-80b-a3b", 44_844_060_160),
    ],
)
def test_published_bytes_of_four_bit_conversions(name, published):
    assert weights_of({**dense(name), "quantization": FOUR_BITS}) == published


def test_a_smaller_vocabulary_is_that_much_smaller():
    # Published of a 4-bit Qwen3-4B whose embedding was cut to the 151,669 words it knows.
    packed = config_of("qwen3-4b", quantization=FOUR_BITS, vocab_size=151_669)
    assert weights_of(packed) == 2_262_535_712
    assert (151_936 - 151_669) * 2560 * PACKED_BYTES == 2_262_920_192 - 2_262_535_712


@pytest.mark.parametrize(
    ("name", "layers", "hidden"),
    [("llama-3.1-8b", 32, 4096), ("llama-3.1-70b", 80, 8192), ("mistral-small-24b", 40, 5120)],
)
def test_four_bit_weights_by_hand(name, layers, hidden):
    norms = (2 * layers + 1) * hidden
    matrices = PARAMETERS[name] - norms
    assert weights_of({**dense(name), "quantization": FOUR_BITS}) == (
        matrices * PACKED_BYTES + norms * 2
    )


def test_what_is_published_as_mxfp4_is_left_packed():
    # total_size in the index of openai/gpt-oss-20b's weight files
    assert weights_of(config_of("gpt-oss-20b")) == 13_761_264_768


def test_layers_that_a_config_packs_in_their_own_way():
    # mlx-community/gpt-oss-20b-MXFP4-Q8: experts as published, everything else in 8 bits
    eight = {"group_size": 64, "bits": 8, "mode": "affine"}
    own = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    names = [f"model.layers.{layer}.{name}" for layer in range(24) for name in (*own, "mlp.router")]
    overrides = dict.fromkeys([*names, "model.embed_tokens", "lm_head"], eight)
    usual = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    packed = {**dense("gpt-oss-20b"), "quantization": {**usual, **overrides}}
    assert weights_of(packed) == 12_076_119_168


def test_what_fp8_weights_become_when_they_are_loaded():
    blueprint = draw_config(config_of("deepseek-v3"))
    assert "fp8 weights are counted in 16 bits" in blueprint.approximate
    assert blueprint.weight_bytes == draw_config(dense("deepseek-v3")).weight_bytes
    biases = [key for key in parameters_of(blueprint) if key.endswith("e_score_correction_bias")]
    assert len(biases) == 58


# -- keys and values


@pytest.mark.parametrize(
    ("name", "token_bytes"),
    [
        # layers x (keys and values) x heads x width of a head x bytes of a number
        ("llama-3.1-8b", 32 * 2 * 8 * 128 * 2),
        ("llama-3.1-70b", 80 * 2 * 8 * 128 * 2),
        ("qwen3-4b", 36 * 2 * 8 * 128 * 2),
        ("qwen3-30b-a3b", 48 * 2 * 4 * 128 * 2),
        ("mistral-small-24b", 40 * 2 * 8 * 128 * 2),
        # layers x (latent and its rotated part) x bytes
        ("deepseek-v3", 61 * (512 + 64) * 2),
    ],
)
def test_keys_and_values_of_a_token(name, token_bytes):
    measurement = estimate(dense(name), 512, 512)
    assert measurement.kv_bytes == 512 * token_bytes
    assert measurement.weight_bytes >= 2 * PARAMETERS[name]
    assert measurement.cache_cost.step_bytes == 256 * token_bytes


@pytest.mark.parametrize(
    ("name", "full_layers", "window_layers", "layer_bytes", "window"),
    [
        ("gemma-3-27b", 10, 52, 2 * 16 * 128 * 2, 1024),  # every sixth of 62 layers is full
        ("gpt-oss-20b", 12, 12, 2 * 8 * 64 * 2, 128),
    ],
)
def test_sliding_windows(name, full_layers, window_layers, layer_bytes, window):
    # A window is kept for the first token of the last chunk, too: window + chunk - 1 tokens.
    measurement = estimate(dense(name), 1536, 512)
    assert measurement.kv_bytes == layer_bytes * (
        full_layers * 1536 + window_layers * (window + 512 - 1)
    )


def test_a_hybrid_keeps_states_and_every_fourth_layers_keys():
    cost = measure_cache(draw_config(dense("qwen3-next-80b-a3b")).model, 16)
    assert cost.step_bytes == 256 * 12 * 2 * 2 * 256 * 2
    # Of 36 layers, and of one more that is copied when rows join: a matrix of 32 bits for each of
    # 32 heads, and the last 3 tokens of the convolution.
    state = 32 * 128 * 128 * 4 + 3 * (2 * 16 * 128 + 32 * 128) * 2
    known = 37 * state + LOGITS_BYTES * 151_936
    assert known <= cost.fixed_bytes <= known + 1024
