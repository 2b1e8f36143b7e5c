"""Architectures that cache a latent (multi-head latent attention), some with a sparse index."""

from __future__ import annotations

from tests.engine.architectures.bases import (
    LONG_ROPE,
    MISTRAL_ROPE,
    WINDOW,
    YARN,
    Config,
    dense,
    latent,
)

_INDEX: Config = {"index_head_dim": 64, "index_n_heads": 2, "index_topk": 64}

_LONGCAT: Config = latent(
    attention_method="MLA",
    zero_expert_type="identity",
    ffn_hidden_size=192,
    expert_ffn_hidden_size=96,
    moe_topk=2,
    zero_expert_num=2,
    num_layers=2,
    mla_scale_q_lora=True,
    mla_scale_kv_lora=True,
)

CONFIGS: dict[str, Config] = {
    "deepseek_v2": latent(n_group=2, topk_method="group_limited_greedy", rope_scaling=YARN),
    "deepseek_v3": latent(),
    "deepseek_v32": latent(**_INDEX),
    "deepseek_v41": latent(  # a window in each layer, compressed groups shared between some
        num_hidden_layers=4,
        head_dim=128,
        o_groups=2,
        o_lora_rank=64,
        scoring_func="sqrtsoftplus",
        sliding_window=WINDOW,
        compress_ratios=[0, 4, 4, 4],
        kv_source_layer_ids=[1, 3],
        index_source_layer_ids=[1, 3],
        candidate_source_layer_id=1,
        candidate_topk_blocks=4,
        hc_sinkhorn_iters=4,
        **{**_INDEX, "index_topk": 16},
    ),
    "glm4_moe_lite": latent(),
    "glm_moe_dsa": latent(
        **_INDEX, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}
    ),
    "longcat_flash": _LONGCAT,
    "longcat_flash_ngram": {
        **_LONGCAT,
        "ngram_vocab_size_ratio": 2,
        "emb_neighbor_num": 3,
        "emb_split_num": 2,
    },
    "minicpm3": dense(
        num_key_value_heads=4,
        dim_model_base=64,
        scale_depth=1.4,
        scale_emb=12.0,
        q_lora_rank=96,
        kv_lora_rank=128,
        qk_rope_head_dim=64,
        qk_nope_head_dim=64,
        rope_scaling=LONG_ROPE,
    ),
    "mistral4": latent(rope_parameters=MISTRAL_ROPE),
    "youtu_llm": latent(),
}
