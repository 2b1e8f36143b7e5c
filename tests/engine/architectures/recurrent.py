"""Architectures with state: state space, linear attention, convolution; alone or with attention."""

from __future__ import annotations

from tests.engine.architectures.bases import (
    GRANITE,
    THREE_LINEAR,
    VOCABULARY,
    WINDOW,
    Config,
    dense,
    experts,
    latent,
)

#: Kimi counts its layers from one.
KIMI_LINEAR: Config = {
    "kda_layers": [1, 2, 3],
    "full_attn_layers": [4],
    "num_heads": 4,
    "head_dim": 64,
    "short_conv_kernel_size": 4,
}

_GATED_DELTA: Config = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
}

_LFM2: Config = {
    "num_hidden_layers": 4,
    "layer_types": ["conv", "conv", "full_attention", "conv"],
    "conv_bias": False,
    "conv_L_cache": 3,
}

_BAILING: Config = {
    "num_hidden_layers": 4,
    "num_experts": 4,
    "num_shared_experts": 1,
    "layer_group_size": 2,
    "group_norm_size": 2,
    "head_dim": 64,
}

QWEN3_5: Config = dense(**_GATED_DELTA, num_hidden_layers=4, full_attention_interval=4, head_dim=64)

_NEXT_EXPERTS: Config = {
    "num_experts": 4,
    "shared_expert_intermediate_size": 96,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}

QWEN3_5_EXPERTS: Config = experts(**{**QWEN3_5, **_NEXT_EXPERTS})

CONFIGS: dict[str, Config] = {
    "baichuan_m1": dense(  # each layer has a convolution beside its attention
        sliding_window=WINDOW, sliding_window_layers=[1], conv_window=2
    ),
    "bailing_hybrid": latent(**_BAILING),
    "bailing_moe_linear": experts(**_BAILING),
    "bailing_moe_v3": latent(
        **_BAILING,
        model_type="bailing_hybrid",  # the architecture below tells it from that one
        architectures=["BailingMoeV3ForCausalLM"],
        moe_shared_expert_intermediate_size=96,
    ),
    "falcon_h1": dense(  # attention and state space side by side in each layer
        head_dim=64, mamba_d_ssm=128, mamba_d_head=32, mamba_n_heads=4, mamba_d_state=16
    ),
    "gear": dense(
        num_hidden_layers=3,
        head_dim=64,
        layer_types=["conv_mixer", "sliding_attention", "full_attention"],
        sliding_window=WINDOW,
    ),
    "granitemoehybrid": experts(
        **GRANITE,
        num_hidden_layers=4,
        layer_types=["mamba", "attention", "mamba", "attention"],
        num_local_experts=4,
        shared_intermediate_size=96,
        mamba_n_heads=4,
        mamba_d_head=32,
        mamba_proj_bias=False,
        mamba_d_state=16,
        mamba_d_conv=4,
        mamba_n_groups=1,
        mamba_conv_bias=True,
    ),
    "jamba": experts(
        num_hidden_layers=4,
        attn_layer_offset=1,
        attn_layer_period=4,
        expert_layer_offset=1,
        expert_layer_period=2,
        mamba_d_conv=4,
        mamba_d_state=16,
        mamba_expand=1,
        num_experts=4,
    ),
    "kimi_linear": latent(
        num_hidden_layers=4,
        head_dim=64,
        linear_attn_config=KIMI_LINEAR,
        model_max_length=2048,
        num_experts=4,
        num_experts_per_token=2,
        num_shared_experts=1,
        q_lora_rank=None,
    ),
    "lfm2": dense(
        **_LFM2,
        block_dim=256,
        block_ff_dim=192,
        block_multiple_of=64,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=False,
    ),
    "lfm2_moe": experts(**_LFM2, num_experts=4, num_dense_layers=1, use_expert_bias=True),
    "mamba": dense(
        intermediate_size=512,
        state_size=16,
        conv_kernel=4,
        use_bias=False,
        use_conv_bias=True,
        time_step_rank=16,
    ),
    "mamba2": dense(
        num_heads=4,
        head_dim=128,
        intermediate_size=512,
        state_size=16,
        conv_kernel=4,
        n_groups=1,
        use_bias=False,
        use_conv_bias=True,
        time_step_limit=[0.001, 100.0],
        time_step_rank="auto",
    ),
    "nemotron_h": experts(
        hybrid_override_pattern=["M", "-", "*", "E", "M"],
        head_dim=64,
        mamba_num_heads=4,
        mamba_head_dim=32,
        mamba_proj_bias=False,
        ssm_state_size=16,
        conv_kernel=4,
        n_groups=1,
        use_bias=False,
        use_conv_bias=True,
        n_routed_experts=4,
        n_shared_experts=1,
        moe_shared_expert_intermediate_size=96,
    ),
    "olmo_hybrid": dense(
        **{**_GATED_DELTA, "linear_num_key_heads": 4},
        num_hidden_layers=4,
        layer_types=THREE_LINEAR,
        linear_allow_neg_eigval=True,
    ),
    "plamo2": dense(
        num_hidden_layers=4,
        hidden_size_per_head=64,
        attention_window_size=WINDOW,
        mamba_d_state=16,
        mamba_num_heads=4,
        mamba_step=2,
        tie_word_embeddings=True,
    ),
    "qwen3_next": experts(**{**QWEN3_5, **_NEXT_EXPERTS}, partial_rotary_factor=0.25),
    "recurrent_gemma": dense(
        num_hidden_layers=3,
        num_key_value_heads=1,
        conv1d_width=4,
        logits_soft_cap=30.0,
        attention_window_size=WINDOW,
        block_types=["recurrent", "recurrent", "attention"],
    ),
    "rwkv7": {
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "norm_eps": 1e-5,
        "head_dim": 64,
        "a_low_rank_dim": 32,
        "v_low_rank_dim": 16,
        "gate_low_rank_dim": 64,
        "decay_low_rank_dim": 32,
    },
}
