"""Architectures some of whose layers see a window only."""

from __future__ import annotations

from tests.engine.architectures.bases import (
    FULL,
    MISTRAL_ROPE,
    SLIDING,
    WINDOW,
    Config,
    dense,
    sliding,
    sliding_experts,
)

#: The last two layers read the keys and values of the last of their kind before them.
_SHARED = [SLIDING, FULL, SLIDING, FULL]

CONFIGS: dict[str, Config] = {
    "afmoe": sliding_experts(num_experts=4, num_dense_layers=1),
    "cohere2": sliding(sliding_window_pattern=4),
    "exaone4": sliding(sliding_window_pattern="LLLG", rope_scaling=None),
    "exaone_moe": sliding_experts(
        num_experts=4, num_shared_experts=1, is_moe_layer=[False, True, True, True]
    ),
    "gemma3_text": sliding(sliding_window_pattern=4, query_pre_attn_scalar=64),
    "gemma4_text": sliding(
        num_hidden_layers=4,
        layer_types=_SHARED,
        num_kv_shared_layers=2,
        global_head_dim=128,
        vocab_size_per_layer_input=512,
        hidden_size_per_layer_input=32,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=96,
        tie_word_embeddings=True,
    ),
    "gpt_oss": sliding_experts(num_local_experts=4),
    "laguna": sliding_experts(
        num_experts=4,
        shared_expert_intermediate_size=96,
        num_attention_heads_per_layer=[8, 8, 8, 4],
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
        rope_parameters={
            FULL: {"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            SLIDING: {"rope_theta": 10000.0},
        },
    ),
    "mellum": sliding_experts(
        num_experts=4,
        rope_parameters={kind: {"rope_theta": 10000.0} for kind in (FULL, SLIDING)},
    ),
    "mimo_v2_flash": sliding_experts(
        num_hidden_layers=3,
        hybrid_layer_pattern=[0, 1, 1],
        moe_layer_freq=[0, 1, 1],
        add_swa_attention_sink_bias=True,
        add_full_attention_sink_bias=False,
        sliding_window_size=WINDOW,
        n_shared_experts=None,
        n_routed_experts=4,
        layernorm_epsilon=1e-5,
        swa_rope_theta=10000.0,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=4,
        head_dim=128,
        v_head_dim=64,
        swa_head_dim=128,
        swa_v_head_dim=64,
        partial_rotary_factor=0.5,
    ),
    "ministral3": sliding(rope_parameters=MISTRAL_ROPE),
    "muse_glimmer": sliding(),
    "olmo3": sliding(),
    "plamo3": sliding(sliding_window_pattern=4, window_size=WINDOW),
    "spark2_5": sliding(
        rope_parameters={
            FULL: {"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            SLIDING: {"rope_theta": 10000.0},
        }
    ),
    "step3p5": sliding_experts(
        num_attention_groups=2,
        attention_other_setting={"num_attention_heads": 8, "num_attention_groups": 4},
        moe_num_experts=4,
        moe_top_k=2,
        share_expert_dim=96,
        moe_layers_enum="1,2,3",
    ),
}

#: Keys of the text part of gemma3n, which exists only inside its wrapper.
GEMMA3N: Config = dense(
    num_hidden_layers=4,
    head_dim=64,
    layer_types=_SHARED,
    num_kv_shared_layers=2,
    vocab_size_per_layer_input=512,
    hidden_size_per_layer_input=32,
    sliding_window=WINDOW,
    rope_local_base_freq=10000.0,
    final_logit_softcapping=30.0,
    activation_sparsity_pattern=[0.95, 0.0, 0.0, 0.0],
    altup_num_inputs=4,
    altup_coef_clip=120.0,
    altup_correct_scale=True,
    altup_active_idx=0,
    laurel_rank=32,
)
