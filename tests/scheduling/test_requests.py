"""Requests are checked where they are made, before anything is admitted."""

from __future__ import annotations

import math
from typing import Any

import pytest

from wiredactors.scheduling.requests import (
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
    ],
)
def test_a_sampling_parameter_out_of_its_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingParameters(**wrong)


def test_one_stop_text_may_stand_alone() -> None:
    assert SamplingParameters(stop="end").stop == ("end",)
    assert SamplingParameters(stop=["a", "b"]).stop == ("a", "b")


@pytest.mark.parametrize("max_tokens", [0, -1, "5", True, 2.0, None])
def test_max_tokens_is_an_integer_from_one(max_tokens: Any) -> None:
    with pytest.raises(ValueError, match="max_tokens"):
        row(max_tokens)


def test_a_request_is_cut_to_the_room_that_is_left() -> None:
    assert row(10).total_tokens == 13
    assert row(10).shortened(4).max_tokens == 4
    assert row(10).shortened(40).max_tokens == 10


def row(max_tokens: int) -> RowRequest:
    return RowRequest(
        row_id="a", prompt=(1, 2, 3), max_tokens=max_tokens, sampling=SamplingParameters()
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


@pytest.mark.parametrize("wrong", [{"dtype": "int8"}, {"max_batch_size": 0}])
def test_a_load_option_out_of_its_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LoadOptions(**wrong)
