"""Random models of real shapes, saved as Hugging Face directories and made once.

Their answers are nonsense, but a step of one costs what a step of a trained model of its shape
costs. They have no end-of-sequence token, so every job writes as many tokens as it may.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class Shape:
    """What a llama is made of."""

    hidden: int
    layers: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    dtype: str
    tied: bool = True
    head: int = 64

    def config(self) -> dict[str, Any]:
        """As config.json has it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.inner,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 16384,
            "tie_word_embeddings": self.tied,
            "torch_dtype": self.dtype,
        }


#: "tiny", whose cache is wide for its size, is for tests; "slim", "small", "wordy", which has as
#: words as SmolLM2, and "wordier", with those of Llama 3, are for CPUs; "1b" and "8b" for GPUs.
SHAPES = {
    "tiny": Shape(hidden=64, layers=4, inner=128, heads=4, kv_heads=4,
                  vocabulary=512, dtype="float32"),
    "slim": Shape(hidden=128, layers=4, inner=352, heads=2, kv_heads=2,
                  vocabulary=2048, dtype="float32"),
    "wordy": Shape(hidden=128, layers=4, inner=352, heads=2, kv_heads=2,
                   vocabulary=49152, dtype="float32"),
    "wordier": Shape(hidden=64, layers=4, inner=176, heads=1, kv_heads=1,
                     vocabulary=128256, dtype="float32"),
    "small": Shape(hidden=256, layers=8, inner=704, heads=4, kv_heads=4,
                   vocabulary=2048, dtype="float32"),
    "1b": Shape(hidden=2048, layers=16, inner=8192, heads=32, kv_heads=8,
                vocabulary=128256, dtype="bfloat16"),
    "8b": Shape(hidden=4096, layers=32, inner=14336, heads=32, kv_heads=8,
                vocabulary=128256, dtype="bfloat16", tied=False, head=128),
}  # fmt: skip

#: Those that want a GPU, longer prompts and longer answers.
LARGE = ("1b", "8b")

#: Which one of the two that a benchmark serves is the smaller.
SMALLER = {
    "tiny": "tiny",
    "slim": "tiny",
    "small": "slim",
    "wordy": "slim",
    "wordier": "wordy",
    "1b": "small",
    "8b": "1b",
}

LAYERS_IN_A_SHARD = 4
_LETTERS = "~^`|{}@#$%&*?!"
_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def make_model(name: str, folder: Path | None = None, seed: int = 7) -> Path:
    """The directory of the random model `name`, which is written if it is not there yet.

    Use it before a runtime is open.
    """
    folder = Path(tempfile.gettempdir(), "wiredactors-models") if folder is None else folder
    path = folder / f"{name}-{seed}"
    if path.is_dir():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    # Under its own name only when it is whole; another process may be making it too.
    part = Path(tempfile.mkdtemp(prefix=f"{name}-{seed}.", dir=folder))
    _write(part, SHAPES[name], seed)
    try:
        part.rename(path)
    except OSError:
        if not path.is_dir():
            raise
        for file in part.iterdir():
            file.unlink()
        part.rmdir()
    return path


def prompt_of(tokens: int, salt: int = 0) -> str:
    """A text of exactly so many tokens: one byte each, none of which joins the next.

    Texts of different salts differ from their first letters on, so that no cache of prompts helps.
    """
    number = [salt // len(_LETTERS) ** place % len(_LETTERS) for place in range(4)]
    rest = ((salt + 5 * i + i // 7) % len(_LETTERS) for i in range(tokens))
    return "".join(_LETTERS[i] for i in [*number, *rest][:tokens])


def _write(path: Path, shape: Shape, seed: int) -> None:
    import mlx.core as mx

    mx.random.seed(seed)
    files: dict[str, str] = {}
    total = 0
    shards = list(_shards(shape))
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        arrays = {key: _random(key, size, shape) for key, size in shard.items()}
        mx.eval(arrays)
        mx.save_safetensors(str(path / name), arrays, metadata={"format": "mlx"})
        files |= dict.fromkeys(arrays, name)
        total += sum(array.nbytes for array in arrays.values())
        del arrays
        mx.clear_cache()
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text(json.dumps(shape.config()))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": _TEMPLATE}
    (path / "tokenizer.json").write_text(_tokenizer(shape.vocabulary))
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


def _shards(shape: Shape) -> Iterator[Mapping[str, tuple[int, ...]]]:
    """The sizes of the arrays of one file after the other."""
    hidden, inner = shape.hidden, shape.inner
    query, kv = shape.heads * shape.head, shape.kv_heads * shape.head
    whole = (shape.vocabulary, hidden)
    head = {} if shape.tied else {"lm_head.weight": whole}
    yield {"model.embed_tokens.weight": whole, "model.norm.weight": (hidden,), **head}
    layer = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    for first in range(0, shape.layers, LAYERS_IN_A_SHARD):
        numbers = range(first, min(first + LAYERS_IN_A_SHARD, shape.layers))
        yield {
            f"model.layers.{n}.{part}.weight": size for n in numbers for part, size in layer.items()
        }


def _random(key: str, size: tuple[int, ...], shape: Shape) -> Any:
    """Large enough that a greedy text does not repeat one token for ever."""
    import mlx.core as mx

    dtype = getattr(mx, shape.dtype)
    if len(size) == 1:
        return mx.ones(size, dtype=dtype)
    scale = 0.02 if "embed" in key or "lm_head" in key else 1.7 * size[1] ** -0.5
    return mx.random.normal(size, dtype=dtype, scale=scale)


def _tokenizer(vocabulary: int) -> str:
    """A byte-level BPE of `vocabulary` tokens: trained ones, and words that no text becomes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=min(vocabulary, 512),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((str(number**3) for number in range(2000)), trainer)
    described = json.loads(tokenizer.to_str())
    words = described["model"]["vocab"]
    for number in range(len(words), vocabulary):
        words[f"w{number}."] = number
    return json.dumps(described)
