"""What the tiny configs have in common.

Sizes differ from one another where they can, so that no two dimensions can be mixed up unseen; each
head is 64 wide, the group of a quantized cache. Configs may hold keys that their architecture does
not know, as published ones do.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

VOCABULARY = 512
CONTEXT = 2048
#: Passed by a prompt of 300 tokens, and shorter than a chunk of it.
WINDOW = 40

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
THREE_SLIDING = [SLIDING, SLIDING, SLIDING, FULL]
THREE_LINEAR = [LINEAR, LINEAR, LINEAR, FULL]

_COMMON: Config = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}

_EXPERTS: Config = {
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "moe_layer_freq": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}

_LATENT: Config = {
    "num_key_value_heads": 4,
    "q_lora_rank": 96,
    "kv_lora_rank": 128,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
}


GRANITE: Config = {
    "logits_scaling": 8.0,
    "attention_multiplier": 0.125,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
}

#: Scalings of rotary positions that come with tables or with a scale of their own.
YARN: Config = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": CONTEXT // 4,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
LONG_ROPE: Config = {
    "type": "longrope",
    "original_max_position_embeddings": CONTEXT // 2,
    "long_factor": [1.0] * 32,
    "short_factor": [1.0] * 32,
    "long_mscale": 1.2,
    "short_mscale": 1.2,
}
#: Mistral's own keys; it also scales queries by their position.
MISTRAL_ROPE: Config = {
    "type": "default",
    "rope_theta": 10000.0,
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": CONTEXT // 4,
}


def dense(**keys: Any) -> Config:
    """A decoder of attention and one feed-forward network a layer."""
    return {**_COMMON, **keys}


def experts(**keys: Any) -> Config:
    """One whose layers are mixtures of experts, all but the first where the architecture can."""
    return {**_COMMON, **_EXPERTS, **keys}


def latent(**keys: Any) -> Config:
    """One that caches a latent from which keys and values are made, with experts."""
    return {**_COMMON, **_EXPERTS, **_LATENT, "n_routed_experts": 4, "n_shared_experts": 1, **keys}


def sliding(**keys: Any) -> Config:
    """A dense one of which three in four layers see a window only."""
    return dense(
        **{
            "num_hidden_layers": 4,
            "layer_types": THREE_SLIDING,
            "sliding_window": WINDOW,
            "head_dim": 64,
            **keys,
        }
    )


def sliding_experts(**keys: Any) -> Config:
    return {**experts(), **sliding(), **keys}
