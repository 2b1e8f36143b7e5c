"""Requests are checked where they are made, before anything is admitted."""

from __future__ import annotations

import math
from typing import Any

import pytest

from wiredactors.scheduling.requests import (
    CacheOptions,
    LoadOptions,
    RowOutput,
    RowRequest,
    SamplingParameters,
)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": "1"},
        {"temperature": True},
        {"top_p": 1.1},
        {"top_p": -0.1},
        {"min_p": 2},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_k": True},
        {"seed": 1.5},
        {"seed": True},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": [5]},
        {"repetition_penalty": -1},
        {"repetition_context_size": 0},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {"5": 1.0}},
        {"logit_bias": {True: 1.0}},
        {"logits_processors": [5]},
        {"sampler": 5},
        {"logprobs": 1},
        {"top_logprobs": -1},
        {"top_logprobs": True},
    ],
)
def test_a_sampling_parameter_out_of_its_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingParameters(**wrong)


def test_one_stop_text_may_stand_alone() -> None:
    assert SamplingParameters(stop="end").stop == ("end",)
    assert SamplingParameters(stop=["a", "b"]).stop == ("a", "b")


@pytest.mark.parametrize("bias", ["1", True, None, math.nan, math.inf])
def test_a_bias_is_a_number_and_may_forbid_a_token_but_not_force_it(bias: Any) -> None:
    assert SamplingParameters(logit_bias={7: -math.inf}).logit_bias == ((7, -math.inf),)
    with pytest.raises(ValueError, match="the bias of token 7"):
        SamplingParameters(logit_bias={7: bias})


def test_a_bias_is_a_mapping_or_its_pairs_and_may_be_left_out() -> None:
    pairs = SamplingParameters(logit_bias={5: 1, 7: -2.5}).logit_bias
    assert pairs == ((5, 1), (7, -2.5))
    assert SamplingParameters(logit_bias=pairs).logit_bias == pairs
    assert SamplingParameters(logit_bias=None).logit_bias == ()


def test_functions_that_choose_tokens_are_taken_as_they_are() -> None:
    chosen = SamplingParameters(logits_processors=iter([max, min]), sampler=sum)
    assert (chosen.logits_processors, chosen.sampler) == ((max, min), sum)
    assert SamplingParameters().logits_processors == ()
    assert SamplingParameters(logits_processors=None).logits_processors == ()


@pytest.mark.parametrize("bits", [None, 2, 3, 4, 5, 6, 8])
def test_a_cache_is_quantized_as_mlx_can(bits: int | None) -> None:
    options = CacheOptions(kv_bits=bits)
    assert (options.kv_bits, options.plain) == (bits, bits is None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kv_bits": 7},
        {"kv_bits": 4.0},
        {"kv_bits": "4"},
        {"kv_group_size": 48},
        {"kv_group_size": 64.0},
        {"max_kv_size": 0},
        {"max_kv_size": 512.0},
        # The first four are kept whatever comes: no room for what is new.
        {"max_kv_size": 4},
        # mlx-lm cannot quantize a cache that rotates.
        {"kv_bits": 4, "max_kv_size": 512},
    ],
)
def test_a_cache_option_out_of_its_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CacheOptions(**wrong)


def test_a_row_keeps_its_cache_as_the_model_does_unless_it_says_otherwise() -> None:
    assert row(10).cache.plain
    assert not CacheOptions(max_kv_size=5).plain
    assert row(10, CacheOptions(kv_bits=8)).cache == CacheOptions(kv_bits=8)


@pytest.mark.parametrize("max_tokens", [0, -1, "5", True, 2.0, None])
def test_max_tokens_is_an_integer_from_one(max_tokens: Any) -> None:
    with pytest.raises(ValueError, match="max_tokens"):
        row(max_tokens)


def test_a_row_is_as_long_as_its_prompt_and_all_that_it_may_add() -> None:
    assert row(10).total_tokens == 13


PLAIN = CacheOptions()


def row(max_tokens: int, cache: CacheOptions = PLAIN) -> RowRequest:
    return RowRequest(
        row_id="a",
        prompt=(1, 2, 3),
        max_tokens=max_tokens,
        sampling=SamplingParameters(),
        cache=cache,
    )


def test_an_output_is_the_last_when_it_says_why_it_ended() -> None:
    assert not RowOutput(row_id="a", text="b", token=1).last
    assert RowOutput(row_id="a", finish_reason="stop").last
    assert RowOutput(row_id="a", error=ValueError()).last


@pytest.mark.parametrize("size", [1, 64, 256, 512, 2048])
def test_a_prefill_step_fits_into_whole_steps_of_the_cache(size: int) -> None:
    assert LoadOptions(prefill_step_size=size).prefill_step_size == size


@pytest.mark.parametrize("size", [0, -64, 100, 300, 64.0, True])
def test_a_prefill_step_that_does_not_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match="prefill_step_size"):
        LoadOptions(prefill_step_size=size)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "int8"},
        {"max_batch_size": 0},
        {"weight": 0},
        {"weight": -1.0},
        {"weight": math.inf},
        {"weight": math.nan},
        {"weight": True},
        {"weight": "1"},
    ],
)
def test_a_load_option_out_of_its_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LoadOptions(**wrong)
