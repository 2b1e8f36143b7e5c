"""mlx-lm's own cache grows as `grown_tokens` says: an mlx-lm that changes that is noticed here."""

from __future__ import annotations

import random

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from wiredactors.memory.cache_cost import grown_tokens


def allocated(prompt_tokens: int, max_tokens: int, prefill_step_size: int) -> int:
    cache = KVCache()
    whole, rest = divmod(prompt_tokens, prefill_step_size)
    chunks = [prefill_step_size] * whole + [rest] * (rest > 0)
    for chunk in chunks + [1] * max_tokens:
        tokens = mx.zeros((1, 1, chunk, 1))
        cache.update_and_fetch(tokens, tokens)  # shapes only: nothing is evaluated
    return int(cache.keys.shape[2])


def test_mlx_lms_own_cache_has_the_room_that_is_predicted() -> None:
    chance = random.Random(0)
    cases = [(1000, 0, 300), (1152, 0, 384), (2048, 3, 512)]
    for _ in range(100):
        prompt, answer = chance.randint(1, 2000), chance.choice([0, 1, 5, 260])
        cases.append((prompt, answer, chance.randint(30, 1000)))
    assert [grown_tokens(*case) for case in cases] == [allocated(*case) for case in cases]
