"""A row alone takes no more than it is charged, however its cache is kept, and little less."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from tests.engine import tiny
from tests.engine.architectures import CONFIGS
from tests.engine.test_kept import QWEN, built, prompt_of
from wiredactors.engine.blueprint import draw_config
from wiredactors.engine.kept import make_caches, quantize
from wiredactors.engine.row_costs import measure_rows
from wiredactors.engine.sizing import LOGITS_BYTES, measure_cache, step_workspace
from wiredactors.memory.cache_cost import CacheCost
from wiredactors.scheduling.requests import CacheOptions

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

ALL = {**CONFIGS, **tiny.CONFIGS, "qwen": QWEN, "half": QWEN}

PLAIN = CacheOptions()


@pytest.fixture(autouse=True)
def no_pool() -> Iterator[None]:
    before = mx.set_cache_limit(0)
    yield
    mx.set_cache_limit(before)


def model_of(name: str) -> Any:
    model = built(ALL[name])
    if name == "half":
        model.set_dtype(mx.float16)
        mx.eval(model.parameters())
    return model


@attrs.define
class Taken:
    """Bytes of a row alone: the most that it kept after a step, at its end, and at its peak."""

    most: int = 0
    last: int = 0
    peak: int = 0


def run(model: Any, options: CacheOptions, prompt: int, answer: int, step: int) -> Taken:
    taken = Taken()
    gc.collect()
    before = mx.get_active_memory()
    caches = make_caches(model, options)
    tokens = prompt_of(prompt)
    chunks = [tokens[begin : begin + step] for begin in range(0, prompt, step)]
    for chunk in [*chunks, *([[7]] * (answer - 1))]:
        mx.reset_peak_memory()
        logits = model(mx.array([chunk]), cache=caches)[:, -1]
        quantize(caches, options)
        mx.eval(mx.argmax(logits, axis=-1), [cache.state for cache in caches])
        del logits
        taken.last = mx.get_active_memory() - before
        taken.most = max(taken.most, taken.last)
        taken.peak = max(taken.peak, mx.get_peak_memory() - before)
    return taken


@pytest.mark.parametrize("step", [64, 512])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen", CacheOptions(kv_bits=8)),
        ("qwen", CacheOptions(kv_bits=4)),
        ("qwen", CacheOptions(kv_bits=3, kv_group_size=32)),
        ("qwen", CacheOptions(kv_bits=2, kv_group_size=128)),
        ("half", CacheOptions(kv_bits=4)),
        ("half", CacheOptions(kv_bits=6, kv_group_size=32)),
        ("llama", CacheOptions(kv_bits=4)),
        ("hybrid", CacheOptions(kv_bits=8)),
        ("qwen", CacheOptions(max_kv_size=100)),
        ("qwen", CacheOptions(max_kv_size=700)),
        ("phi3", CacheOptions(max_kv_size=60)),
    ],
    ids=str,
)
def test_a_row_takes_no_more_than_it_is_charged(
    name: str, options: CacheOptions, step: int
) -> None:
    model = model_of(name)
    costs = measure_rows(model, step)
    cost = costs.of(options)
    run(model, options, 2, 2, step)  # what modules make when they first run
    workspace = step_workspace(model, prefill_step_size=step, rows=1, context=1100)
    lengths = [(1, 1), (1, 8), (100, 5), (256, 3), (760, 12), (1099, 1)]
    for prompt, answer in lengths[: 3 if name == "half" else None]:  # which is slow on a CPU
        total = prompt + answer
        charged = cost.row_bytes(total) - LOGITS_BYTES * 512
        taken = run(model, options, prompt, answer, step)
        assert taken.most <= charged, (prompt, answer)
        assert taken.peak <= charged + workspace, (prompt, answer)
        if options.kv_bits is not None and total > 256:
            assert charged <= taken.last + spare(costs, cost, options, total), (prompt, answer)


def spare(costs: Any, cost: CacheCost, options: CacheOptions, total: int) -> int:
    """A step, the first chunk, a copy of each state, and what its attention takes for a moment."""
    first = cost.fixed_bytes - LOGITS_BYTES * 512
    return int(cost.step_bytes + first + -(-total // 256) * cost.copy_bytes)


def test_plain_rows_cost_what_they_cost_in_a_batch() -> None:
    model = draw_config(tiny.CONFIGS["llama"]).model
    assert measure_rows(model, 64).of(PLAIN) == measure_cache(model, 64)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("llama", {"max_kv_size": 64}, "max_kv_size=64 would have no effect: mlx_lm.models.llama"),
        ("long_window", {"kv_bits": 4}, r"kv_bits=4: mlx-lm cannot quantize.*RotatingKVCache"),
        ("state_space", {"kv_bits": 6}, r"kv_bits=6: mlx-lm cannot quantize.*ArraysCache"),
        ("deepseek_v3", {"kv_bits": 4}, "kv_bits=4: this model cannot use a quantized cache"),
        ("llama", {"kv_bits": 4, "kv_group_size": 128}, "kv_group_size=128 does not divide"),
    ],
)
def test_what_cannot_be_kept_so_is_said_without_the_model(
    name: str, options: dict[str, int], message: str
) -> None:
    costs = measure_rows(draw_config(ALL[name]).model, 64)
    with pytest.raises(ValueError, match=message):
        costs.of(CacheOptions(**options))


def test_packed_bytes_are_far_fewer() -> None:
    costs = measure_rows(draw_config(QWEN).model, 64)
    plain, four = costs.of(PLAIN), costs.of(CacheOptions(kv_bits=4))
    assert four.step_bytes * 3 < plain.step_bytes


def test_it_is_known_of_every_kind_of_cache() -> None:
    for name in ("dbrx", "llama4", "deepseek_v41", "nemotron-nas", "qwen3_next", "gemma4_text"):
        costs = measure_rows(draw_config(ALL[name]).model, 64)
        assert costs.of(PLAIN).row_bytes(256) > 0
        with contextlib.suppress(ValueError):
            quantized = costs.of(CacheOptions(kv_bits=4, kv_group_size=32))
            assert quantized.step_bytes <= costs.of(PLAIN).step_bytes
