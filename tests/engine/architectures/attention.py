"""Architectures whose layers are all alike: full attention, and one dense network."""

from __future__ import annotations

from tests.engine.architectures.bases import CONTEXT, GRANITE, VOCABULARY, WINDOW, Config, dense

_GPT: Config = {
    "vocab_size": VOCABULARY,
    "n_embd": 256,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": CONTEXT,
    "n_ctx": CONTEXT,
    "layer_norm_epsilon": 1e-5,
}

CONFIGS: dict[str, Config] = {
    "afm7": {  # the last layer reads the keys and values of the one before
        "vocab_size": VOCABULARY,
        "hidden_dim": 256,
        "num_layers": 3,
        "num_kv_reuse_layers": 1,
        "num_heads": 4,
        "num_kv_heads": 2,
        "hidden_dim_scale_factor": 0.75,
    },
    "apertus": dense(post_norm=True, qk_norm=True),
    "cohere": dense(logit_scale=0.0625, use_qk_norm=True),
    "ernie4_5": dense(use_bias=False, head_dim=64),
    "exaone": dense(num_layers=2),
    "gemma": dense(head_dim=64),
    "gemma2": dense(head_dim=64, query_pre_attn_scalar=64.0),
    "glm": dense(head_dim=64, attention_bias=True),
    "glm4": dense(head_dim=64, partial_rotary_factor=0.5, attention_bias=True),
    "gpt2": _GPT,
    "gpt_bigcode": {**_GPT, "n_inner": 192, "multi_query": True},
    "gpt_neox": dense(rotary_emb_base=10000, rotary_pct=0.25, num_key_value_heads=4),
    "gptj": {**_GPT, "rotary_dim": 32},
    "granite": dense(**GRANITE),
    "helium": dense(head_dim=64),
    "hunyuan_v1_dense": dense(
        head_dim=64, rope_scaling={"alpha": 1000.0, "factor": 1.0, "type": "dynamic"}
    ),
    "internlm2": dense(bias=False),
    "internlm3": dense(qkv_bias=False),
    "iquestloopcoder": dense(  # each layer runs twice: in full, then over a window
        head_dim=64, loop_num=2, loop_window_size=WINDOW
    ),
    "lille-130m": {
        **_GPT,
        "block_size": CONTEXT,
        "layer_norm_eps": 1e-5,
        "n_kv_heads": 2,
        "rope_theta": 10000.0,
    },
    "llama": dense(),
    "llama4_text": dense(
        num_hidden_layers=4,
        head_dim=64,
        intermediate_size_mlp=192,
        no_rope_layers=[1, 1, 1, 0],
        use_qk_norm=True,
    ),
    "mimo": dense(),
    "minicpm": dense(dim_model_base=64, scale_depth=1.4, scale_emb=12.0),
    "nanbeige": dense(num_loops=2),
    "nanochat": dense(),
    "nemotron": dense(hidden_act="relu2"),
    "nemotron-nas": dense(
        num_hidden_layers=4,
        block_configs=[
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 0.5}},
            {"attention": {"replace_with_linear": True}, "ffn": {"replace_with_linear": True}},
            {"attention": {"n_heads_in_group": 4}, "ffn": {"no_op": True}},
        ],
    ),
    "olmo2": dense(),
    "openelm": {  # wider from layer to layer
        "vocab_size": VOCABULARY,
        "model_dim": 256,
        "num_transformer_layers": 3,
        "head_dim": 64,
        "ffn_dim_divisor": 64,
        "num_query_heads": [4, 4, 8],
        "num_kv_heads": [1, 2, 4],
        "ffn_multipliers": [0.5, 0.75, 1.0],
    },
    "phi": dense(num_key_value_heads=4, partial_rotary_factor=0.5),
    "phi3": dense(),
    "phi3small": dense(
        vocab_size=100352,  # it writes to logits by number: out of bounds, were there fewer
        hidden_size=128,
        num_attention_heads=2,
        num_key_value_heads=1,
        dense_attention_every_n_layers=2,
        ff_intermediate_size=96,
        gegelu_limit=20.0,
        blocksparse_num_local_blocks=2,
        blocksparse_vert_stride=2,
    ),
    "plamo": dense(n_shared_head=2),
    "qwen": dense(kv_channels=64),
    "qwen2": dense(),
    "qwen3": dense(head_dim=64),
    "seed_oss": dense(head_dim=64, attention_bias=True),
    "smollm3": dense(num_hidden_layers=4, no_rope_layer_interval=4),
    "stablelm": dense(use_qkv_bias=False, partial_rotary_factor=0.25, qk_layernorm=True),
    "starcoder2": dense(norm_epsilon=1e-5),
    "talkie": dense(head_dim=64),
    "telechat3": dense(),
}

#: Ternary weights, four to a byte.
BITNET: Config = dense()
