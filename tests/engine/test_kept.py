"""A row alone writes what mlx-lm's `generate_step` writes, however its caches are kept."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import tiny
from tests.engine.architectures import CANNOT, CONFIGS, make_architecture
from wiredactors.engine.blueprint import draw_config
from wiredactors.engine.imports import import_mlx_lm
from wiredactors.engine.kept import can_share, check_cache_options, make_caches, quantize
from wiredactors.scheduling.requests import CacheOptions

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

#: Wide heads, for every group size and packing, and no caches of its own.
QWEN = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "vocab_size": tiny.VOCABULARY,
    "max_position_embeddings": tiny.CONTEXT,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

#: Models whose rows run alone.
ALONE = {
    "afm7",  # it takes a place in the cache for a position
    "deepseek_v41",  # its cache cannot be merged
    "gemma2",  # it takes the rows of a mask for heads
    "gpt_bigcode",  # it takes one position for all rows
    "llama4",  # its cache cannot be merged
    "minimax_m3_vl",  # it cuts blocks at places in the cache
    "nemotron-nas",  # a cache of it stays empty
    "phi3small",  # it takes rows for a part of the width
}


def built(config: dict[str, Any], *, seed: int = 7) -> Any:
    """A model with random weights, large enough that its text does not repeat one token."""
    mx.random.seed(seed)
    model_class, arguments_class = import_mlx_lm("utils")._get_classes(config)
    model = model_class(arguments_class.from_dict(config))
    model.apply(lambda value: 3 * value if value.ndim > 1 else value)
    mx.eval(model.parameters())
    return model


@pytest.fixture(scope="module")
def qwen() -> Any:
    return built(QWEN)


@pytest.fixture
def no_pool() -> Iterator[None]:
    before = mx.set_cache_limit(0)
    yield
    mx.set_cache_limit(before)


def prompt_of(tokens: int) -> list[int]:
    return [(7 * place + place // 5) % tiny.VOCABULARY for place in range(tokens)]


def run_alone(model: Any, prompt: list[int], count: int, options: CacheOptions, step: int) -> Any:
    """As the engine runs a row alone: chunks of all but the last token, then token by token."""
    caches = make_caches(model, options)
    for begin in range(0, len(prompt) - 1, step):
        chunk = prompt[begin : min(begin + step, len(prompt) - 1)]
        model(mx.array([chunk]), cache=caches)
        quantize(caches, options)
        mx.eval([cache.state for cache in caches])
    tokens = [prompt[-1]]
    for _ in range(count):
        logits = model(mx.array([tokens[-1:]]), cache=caches)[:, -1]
        quantize(caches, options)
        tokens.append(mx.argmax(logits, axis=-1).item())
    return tokens[1:], caches


def run_mlx_lm(model: Any, prompt: list[int], count: int, options: CacheOptions, step: int) -> Any:
    generate_step = import_mlx_lm("generate").generate_step
    steps = generate_step(
        mx.array(prompt),
        model,
        max_tokens=count,
        kv_bits=options.kv_bits,
        kv_group_size=options.kv_group_size,
        quantized_kv_start=0,
        max_kv_size=options.max_kv_size,
        prefill_step_size=step,
    )
    return [token for token, _ in steps]


@pytest.mark.parametrize("tokens", [1, 2, 65, 300])
@pytest.mark.parametrize(
    "options",
    [
        *(CacheOptions(kv_bits=bits) for bits in (2, 3, 4, 5, 6, 8)),
        CacheOptions(kv_bits=4, kv_group_size=128),
        CacheOptions(kv_bits=8, kv_group_size=32),
        CacheOptions(max_kv_size=40),
        CacheOptions(max_kv_size=100),
        CacheOptions(),
    ],
    ids=str,
)
def test_the_tokens_are_those_of_generate_step(
    qwen: Any, options: CacheOptions, tokens: int
) -> None:
    check_cache_options(qwen, options)
    prompt = prompt_of(tokens)
    written, caches = run_alone(qwen, prompt, 12, options, 64)
    assert written == run_mlx_lm(qwen, prompt, 12, options, 64)
    quantized = {hasattr(cache, "bits") for cache in caches}
    assert quantized == {options.kv_bits is not None}
    assert len(set(written)) > 3


@pytest.mark.parametrize("name", ["llama4", "long_window", "hybrid"])
def test_nor_do_other_kinds_of_cache_change_them(name: str) -> None:
    model = built({**CONFIGS, **tiny.CONFIGS}[name])
    prompt = prompt_of(300)
    written, _ = run_alone(model, prompt, 8, CacheOptions(), 64)
    assert written == run_mlx_lm(model, prompt, 8, CacheOptions(), 64)


def test_a_layer_is_quantized_before_many_others_are_made(no_pool: None) -> None:
    options = CacheOptions(kv_bits=4)
    whole = 2 * 2 * 128 * 256 * 4  # a layer's keys and values
    beside = []
    for layers in (12, 36):
        model = built(
            {**QWEN, "num_hidden_layers": layers, "hidden_size": 16, "intermediate_size": 16}
        )
        caches = make_caches(model, options)
        gc.collect()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        model(mx.array([prompt_of(256)]), cache=caches)
        quantize(caches, options)
        packed = mx.get_array_buffer_size([cache.state for cache in caches])
        beside.append(mx.get_peak_memory() - before - packed)
    assert beside[1] < min(beside[0] + whole, 9 * whole)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (tiny.CONFIGS["llama"], {"max_kv_size": 64}, "max_kv_size=64 would have no effect"),
        (tiny.CONFIGS["long_window"], {"kv_bits": 4}, r"kv_bits=4.*RotatingKVCache"),
        (tiny.CONFIGS["state_space"], {"kv_bits": 4}, r"kv_bits=4.*ArraysCache.*Leave kv_bits out"),
        (tiny.CONFIGS["llama"], {"kv_bits": 4, "kv_group_size": 128}, "kv_bits=4: this model"),
        (CONFIGS["gpt_oss"], {"kv_bits": 8}, "kv_bits=8"),
    ],
)
def test_what_would_have_no_effect_or_cannot_work_is_said_early(
    config: dict[str, Any], options: dict[str, int], message: str
) -> None:
    model = draw_config(config).model
    check_cache_options(model, CacheOptions())
    with pytest.raises(ValueError, match=message):
        check_cache_options(model, CacheOptions(**options))


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - CANNOT.keys()))
def test_who_can_share_steps_is_known_of_every_architecture(name: str) -> None:
    assert can_share(draw_config(CONFIGS[name]).model) == (name not in ALONE)


@pytest.mark.parametrize("name", ["dbrx", "llama4", "qwen3_next"])
def test_a_loaded_model_says_the_same_and_stays_as_it_was(name: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = make_architecture(Path(directory), name)
        model, _ = import_mlx_lm("utils").load_model(path)
        gc.collect()
        before = mx.get_active_memory()
        assert can_share(model) == (name not in ALONE)
        gc.collect()
        assert mx.get_active_memory() <= before + 64 or name == "dbrx"


def test_what_cannot_even_be_tried_runs_alone() -> None:
    class Model:
        layers = ()

        def modules(self) -> list[Any]:
            return []

        def make_cache(self) -> list[object]:
            return [object()]

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            raise RuntimeError("no")

    assert not can_share(Model())
