"""Architectures around another one: the language part of multimodal models, and repacked ones."""

from __future__ import annotations

from typing import Any

from tests.engine.architectures import attention, latents, mixtures, recurrent, windows
from tests.engine.architectures.bases import VOCABULARY, WINDOW, Config, dense, experts, latent


def _around(model_type: str, text: Config, **keys: Any) -> Config:
    return {"text_config": {"model_type": model_type, **text}, **keys}


def _hadamard() -> Config:
    """A qwen3_5 of which every matrix is packed to two bits, its input rotated in blocks."""
    text = {**recurrent.QWEN3_5, "hidden_size": 512, "intermediate_size": 512, "head_dim": 128}
    mlp = [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    linear = [f"linear_attn.{part}" for part in ("in_proj_qkv", "in_proj_z", "out_proj")]
    full = [f"self_attn.{part}_proj" for part in "qkvo"]
    paths = ["model.embed_tokens", "lm_head"]
    for layer in range(4):
        paths += [f"model.layers.{layer}.{part}" for part in (full if layer == 3 else linear) + mlp]
    return _around(
        "qwen3_5_text",
        text,
        schema_version=2,
        tensor_namespace="mlx-vlm-qwen3_5",
        quantization={"bits": 2, "group_size": 128, "mode": "affine"},
        modules=[
            {
                "path": path,
                "embedding": path.endswith("embed_tokens"),
                "dtype": "float16",
                "block": 0 if path.endswith("out_proj") else 512,
            }
            for path in paths
        ],
    )


CONFIGS: dict[str, Config] = {
    "gemma3": _around("gemma3_text", windows.CONFIGS["gemma3_text"], vocab_size=VOCABULARY),
    "gemma3n": _around("gemma3n_text", windows.GEMMA3N),
    "gemma4": _around("gemma4_text", windows.CONFIGS["gemma4_text"], vocab_size=VOCABULARY),
    "kimi_k25": _around("deepseek_v3", latents.CONFIGS["deepseek_v3"]),
    "kimi_k3": _around(
        "kimi_linear",
        latent(
            num_hidden_layers=4,
            linear_attn_config={**recurrent.KIMI_LINEAR, "gate_lower_bound": -5.0},
            attn_res_block_size=2,
            mla_use_output_gate=True,
            num_experts=4,
            num_experts_per_token=2,
            num_shared_experts=1,
            routed_expert_hidden_size=128,
            latent_moe_use_norm=True,
        ),
    ),
    "kimi_vl": _around("deepseek_v3", latents.CONFIGS["deepseek_v3"]),
    "lfm2-vl": _around("lfm2", recurrent.CONFIGS["lfm2"]),
    "llama4": _around(
        "llama4_text",
        experts(
            num_hidden_layers=4,
            head_dim=64,
            attention_chunk_size=WINDOW,
            interleave_moe_layer_step=2,
            intermediate_size_mlp=192,
            num_local_experts=4,
            num_experts_per_tok=1,
            rope_scaling=None,
            use_qk_norm=True,
        ),
    ),
    "minimax_m3_vl": _around(
        "minimax_m3",
        experts(
            num_hidden_layers=3,
            dense_intermediate_size=192,
            shared_intermediate_size=96,
            num_local_experts=4,
            head_dim=64,
            mlp_layer_types=["dense", "sparse", "sparse"],
            layer_types=["full_attention", "sparse_attention", "sparse_attention"],
            index_n_heads=2,
            index_head_dim=64,
            index_block_size=16,
            index_topk_blocks=4,
        ),
    ),
    "mistral3": _around("ministral3", windows.CONFIGS["ministral3"]),
    "pixtral": _around("mistral", attention.CONFIGS["llama"]),
    "prism_hadamard_qwen35": _hadamard(),
    "qwen2_vl": _around("qwen2", attention.CONFIGS["qwen2"]),
    "qwen3_5": _around("qwen3_5_text", recurrent.QWEN3_5),
    "qwen3_5_moe": _around("qwen3_5_moe_text", recurrent.QWEN3_5_EXPERTS),
    "qwen3_vl": _around("qwen3_vl_text", attention.CONFIGS["qwen3"]),
    "qwen3_vl_moe": _around("qwen3_vl_moe_text", mixtures.CONFIGS["qwen3_moe"]),
}

MUSE_SPARK: Config = _around(
    "muse_spark_text",
    dense(
        num_hidden_layers=4,
        head_dim=64,
        post_norm_eps=1e-8,
        rope_parameters={"rope_theta": 10000.0},
        layer_rope_theta=[10000.0, 10000.0, 10000.0, 0.0],
        layer_types=windows.CONFIGS["muse_glimmer"]["layer_types"],
        sliding_window=WINDOW,
        final_logit_softcapping=20.0,
        output_multiplier=0.2,
        num_local_experts=4,
        num_experts_per_tok=2,
        moe_hidden_size=128,
        moe_intermediate_size=96,
    ),
)
