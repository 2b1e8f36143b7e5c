"""Tiny random models, made with mlx-lm's own classes and saved as Hugging Face directories.

Their key-value caches are wide for their size (8 KiB a token), so that a batch that holds more than
it was charged stands out from the noise.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wiredactors.engine.imports import import_mlx, import_mlx_lm

VOCABULARY = 512
CONTEXT = 2048

_LLAMA = {
    "model_type": "llama",
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
}

#: More words than anything else of it takes bytes: a row's log-probabilities are 2 x 512 KiB, its
#: cache 64 KiB for 256 tokens. Its tokenizer knows the first few words only.
WIDE_VOCABULARY = {
    **_LLAMA,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 1 << 17,
    "tie_word_embeddings": True,
}
_SLIDING = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]

#: By name: the config of each kind of cache and of network.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "short_window": {**_LLAMA, "layer_types": _SLIDING, "sliding_window": 40},
    "long_window": {**_LLAMA, "layer_types": _SLIDING, "sliding_window": 700},
    "experts": {
        **_LLAMA,
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 32,
        "rope_theta": 10000.0,
        "norm_topk_prob": True,
    },
    "hybrid": {
        **_LLAMA,
        "model_type": "granitemoehybrid",
        "hidden_size": 256,  # it has no head_dim of its own
        "attention_bias": False,
        "embedding_multiplier": 1.0,
        "attention_multiplier": 0.125,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "mamba_n_heads": 16,
        "mamba_d_head": 32,
        "mamba_proj_bias": False,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_conv_bias": True,
    },
    "parallel_hybrid": {  # attention and state space side by side: a list of caches in each layer
        **_LLAMA,
        "model_type": "falcon_h1",
        "mamba_d_ssm": 64,
        "mamba_d_head": 16,
        "mamba_n_heads": 4,
        "mamba_d_state": 16,
    },
    "state_space": {
        "model_type": "mamba2",
        "num_heads": 8,
        "head_dim": 32,
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 256,
        "state_size": 64,
        "num_hidden_layers": 3,
        "layer_norm_epsilon": 1e-5,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": True,
        "time_step_limit": [0.001, 100.0],
        "time_step_rank": "auto",
        "max_position_embeddings": CONTEXT,
    },
}

_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def make_model(directory: Path, name: str, *, seed: int = 7, template: bool = True) -> Path:
    """Save the tiny model `name` in `directory`; returns its path.

    Its weights are random but large enough that its greedy text does not repeat one token for
    ever, and its tokenizer has no end-of-sequence token.
    """
    mx = import_mlx()
    utils = import_mlx_lm("utils")
    path = directory / f"{name}-{seed}"
    path.mkdir(parents=True)
    config = WIDE_VOCABULARY if name == "wide_vocabulary" else CONFIGS[name]
    mx.random.seed(seed)
    model_class, arguments_class = utils._get_classes(config)
    model = model_class(arguments_class.from_dict(config))
    parameters = {
        key: value * _scale(key) if value.ndim > 1 else value
        for key, value in _flatten(model.parameters())
    }
    mx.eval(parameters)
    mx.save_safetensors(str(path / "model.safetensors"), parameters, metadata={"format": "mlx"})
    (path / "config.json").write_text(json.dumps(config))
    save_tokenizer(path, template=template)
    return path


def _scale(key: str) -> float:
    return 0.02 if "embed" in key else 3.0


def save_tokenizer(path: Path, *, template: bool = True) -> None:
    (path / "tokenizer.json").write_text(_trained())
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if template:
        settings["chat_template"] = _TEMPLATE
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


@functools.cache
def _trained() -> str:
    """A byte-level BPE of VOCABULARY tokens, trained on a few lines."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = Path(__file__).read_text().splitlines()
    tokenizer.train_from_iterator([*lines, *(str(number**3) for number in range(2000))], trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return str(tokenizer.to_str())


def prompt_of(tokens: int, salt: int = 0) -> str:
    """A text of exactly so many tokens: one byte each, none of which joins the next."""
    alphabet = "~^`|{}@#$%&*?!"
    return "".join(alphabet[(salt + 5 * i + i // 7) % len(alphabet)] for i in range(tokens))


def _flatten(tree: Any) -> list[tuple[str, Any]]:
    from mlx.utils import tree_flatten

    flat: list[tuple[str, Any]] = tree_flatten(tree)
    return flat


#: Makes a model once in a test session and says where it lies.
TinyModels = Callable[[str], Path]
