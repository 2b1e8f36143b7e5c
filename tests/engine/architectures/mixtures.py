"""Architectures of full attention and mixtures of experts."""

from __future__ import annotations

from tests.engine.architectures.bases import (
    CONTEXT,
    GRANITE,
    LONG_ROPE,
    VOCABULARY,
    Config,
    experts,
)

_FIRST_DENSE: Config = {"decoder_sparse_step": 1, "mlp_only_layers": [0]}

CONFIGS: dict[str, Config] = {
    "Klear": experts(**_FIRST_DENSE, num_experts=4, n_shared_experts=1),
    "bailing_moe": experts(num_experts=4, num_shared_experts=1),
    "dbrx": {
        "vocab_size": VOCABULARY,
        "d_model": 256,
        "n_layers": 2,
        "n_heads": 4,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek": experts(n_routed_experts=4, n_shared_experts=1),
    "dots1": experts(n_routed_experts=4, n_shared_experts=1),
    "ernie4_5_moe": experts(
        use_bias=False,
        moe_num_experts=4,
        moe_k=2,
        moe_layer_start_index=1,
        moe_num_shared_experts=1,
    ),
    "glm4_moe": experts(
        n_routed_experts=4,
        n_shared_experts=1,
        head_dim=64,
        rope_scaling=None,
        use_qk_norm=True,
        partial_rotary_factor=0.5,
    ),
    "granitemoe": experts(**GRANITE, num_local_experts=4),
    "hunyuan": experts(  # every second layer reads the keys and values of the one before
        num_hidden_layers=4,
        num_experts=4,
        moe_topk=2,
        num_shared_expert=1,
        use_mixed_mlp_moe=True,
        use_qk_norm=True,
        use_cla=True,
        cla_share_factor=2,
        rope_scaling={"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
    ),
    "minimax": experts(num_local_experts=4, shared_intermediate_size=0, rotary_dim=32, head_dim=64),
    "mixtral": experts(num_local_experts=4),
    "olmoe": experts(num_experts=4),
    "phimoe": experts(
        num_local_experts=4,
        original_max_position_embeddings=CONTEXT // 2,
        rope_scaling=LONG_ROPE,
    ),
    "phixtral": {
        "num_vocab": VOCABULARY,
        "model_dim": 256,
        "num_heads": 4,
        "num_layers": 2,
        "rotary_dim": 32,
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
    },
    "qwen2_moe": experts(num_experts=4, shared_expert_intermediate_size=96),
    "qwen3_moe": experts(**_FIRST_DENSE, num_experts=4, head_dim=64),
    "solar_open": experts(
        n_routed_experts=4, n_shared_experts=1, head_dim=64, partial_rotary_factor=1.0
    ),
}
