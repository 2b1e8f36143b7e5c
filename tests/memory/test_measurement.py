"""Measurements: their checks and sums, and tickets that hold what mlx-lm's caches really allocate.

The rule of growth is replayed as mlx-lm writes it down, a call of the cache at a time; that mlx-lm
still does so is checked on its own cache in tests/engine/test_cache.py.
"""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wiredactors.memory.cache_cost import CacheCost, grown_tokens
from wiredactors.memory.measurement import (
    TuneParameters,
    WiredMemoryMeasurement,
    default_margin,
)
from wiredactors.memory.policies import WiredBudgetPolicy
from wiredactors.memory.units import GIB, MIB

TOKEN = 1000  # bytes of a token in the cache
COST = CacheCost(fixed_bytes=7, step_bytes=256 * TOKEN, copy_bytes=256 * 100)
MEASURED = WiredMemoryMeasurement(
    weight_bytes=2 * GIB,
    kv_bytes=30 * MIB,
    workspace_bytes=50 * MIB,
    peak_active_bytes=2 * GIB + 80 * MIB,
    token_count=2048,
    prefill_step_size=512,
    cache_cost=COST,
)


class NaiveCache:
    """`KVCache` of mlx-lm 0.32.2, with the length of its arrays for the arrays."""

    def __init__(self) -> None:
        self.length: int | None = None
        self.offset = 0

    def update(self, tokens: int) -> None:
        if self.length is None or self.offset + tokens > self.length:
            new = (256 + tokens - 1) // 256 * 256
            if self.length is None:
                self.length = new
            else:
                if self.offset % 256 != 0:
                    self.length = self.offset
                self.length += new
        self.offset += tokens


def replayed(prompt_tokens: int, max_tokens: int, prefill_step_size: int) -> int:
    cache = NaiveCache()
    rest = prompt_tokens
    while rest:
        chunk = min(prefill_step_size, rest)
        cache.update(chunk)
        rest -= chunk
    for _ in range(max_tokens):
        cache.update(1)
    assert cache.length is not None
    return cache.length


PROMPTS, ANSWERS, STEPS = st.integers(1, 3000), st.integers(0, 700), st.integers(1, 1200)


class TestGrowth:
    @given(PROMPTS, ANSWERS, STEPS)
    @example(1000, 0, 300)  # 512, 812, 1112
    @example(1152, 0, 384)  # at a whole step the cache is not cut back: 512, 896, 1408
    @example(256, 1, 256)
    @example(257, 0, 512)
    @example(1, 0, 1)
    def test_room_is_what_mlx_lms_cache_allocates(
        self, prompt_tokens: int, max_tokens: int, prefill_step_size: int
    ) -> None:
        grown = grown_tokens(prompt_tokens, max_tokens, prefill_step_size)
        assert grown == replayed(prompt_tokens, max_tokens, prefill_step_size)

    @given(PROMPTS, ANSWERS, st.sampled_from([1, 2, 32, 64, 128, 256, 512, 1024, 2048]))
    def test_with_steps_that_fit_256_it_is_whole_steps(
        self, prompt_tokens: int, max_tokens: int, prefill_step_size: int
    ) -> None:
        total = prompt_tokens + max_tokens
        assert grown_tokens(prompt_tokens, max_tokens, prefill_step_size) == -(-total // 256) * 256


class TestTicketSize:
    @given(PROMPTS, ANSWERS, STEPS)
    def test_a_ticket_holds_the_cache_as_it_is_allocated(
        self, prompt_tokens: int, max_tokens: int, prefill_step_size: int
    ) -> None:
        measured = attrs.evolve(MEASURED, prefill_step_size=prefill_step_size)
        steps = -(-replayed(prompt_tokens, max_tokens, prefill_step_size) // 256)
        size = measured.ticket_size(prompt_tokens, max_tokens)
        assert size == 7 + steps * 256 * (TOKEN + 100)

    def test_it_counts_the_prompt_and_the_answer(self) -> None:
        sizes = [MEASURED.ticket_size(*tokens) for tokens in ((256, 0), (200, 56), (200, 57))]
        assert sizes[0] == sizes[1] == sizes[2] - COST.step_bytes - COST.copy_bytes

    @pytest.mark.parametrize(
        ("tokens", "name"),
        [((0, 1), "prompt_tokens"), ((1, -1), "max_tokens"), ((1.0, 1), "prompt_tokens")],
    )
    def test_numbers_out_of_their_range_are_refused(
        self, tokens: tuple[Any, Any], name: str
    ) -> None:
        with pytest.raises(ValueError, match=f"{name} must be an integer from"):
            MEASURED.ticket_size(*tokens)


class TestMargin:
    @pytest.mark.parametrize(
        ("total", "margin"),
        [
            (0, 16 * MIB),
            (800 * MIB - 1, 16 * MIB),
            (800 * MIB + 50, 16 * MIB + 1),
            (5 * GIB, GIB // 10),
        ],
    )
    def test_it_is_two_percent_and_at_least_16_mib(self, total: int, margin: int) -> None:
        assert default_margin(total) == margin

    def test_a_measurements_margin_is_of_its_total(self) -> None:
        assert MEASURED.total_bytes == 2 * GIB + 80 * MIB
        assert MEASURED.margin_bytes == (2 * GIB + 80 * MIB) // 50


class TestBudgetPolicy:
    def test_weights_workspace_and_margin_are_in_the_base_and_caches_are_not(self) -> None:
        base = 2 * GIB + 50 * MIB + MEASURED.margin_bytes
        policy = MEASURED.budget_policy()
        assert (policy.base_bytes, policy.cap) == (base, None)

    def test_a_margin_a_cap_and_an_id_may_be_given(self) -> None:
        for margin in (0, 5):
            policy = MEASURED.budget_policy(margin, cap=3 * GIB, id="chat")
            wanted = WiredBudgetPolicy(
                base_bytes=2 * GIB + 50 * MIB + margin, cap=3 * GIB, id="chat"
            )
            assert policy == wanted
            assert policy.limit(0, [100]) == 2 * GIB + 50 * MIB + margin + 100

    def test_a_negative_margin_is_refused(self) -> None:
        with pytest.raises(ValueError, match="margin must be an integer from 0"):
            MEASURED.budget_policy(-1)


class TestParameters:
    def test_the_defaults_are_a_plain_prefill(self) -> None:
        assert TuneParameters() == TuneParameters(
            token_count=2048,
            prefill_step_size=512,
            batch_size=1,
            kv_bits=None,
            kv_group_size=64,
            max_kv_size=None,
            decode_tokens=0,
        )

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *((name, 0) for name in ("token_count", "prefill_step_size", "batch_size")),
            *((name, 0) for name in ("kv_group_size", "max_kv_size")),
            ("decode_tokens", -1),
            ("token_count", 1.5),
            ("token_count", True),
            ("batch_size", "2"),
            ("max_kv_size", False),
            *(("kv_bits", bits) for bits in (0, 1, 7, 16)),
        ],
    )
    def test_numbers_out_of_their_range_are_refused(self, name: str, value: Any) -> None:
        with pytest.raises(ValueError, match=f"{name} must be .*not {value!r}"):
            TuneParameters(**{name: value})

    def test_the_least_and_the_greatest_are_taken(self) -> None:
        TuneParameters(
            token_count=1, prefill_step_size=1, kv_bits=8, max_kv_size=1, decode_tokens=0
        )
