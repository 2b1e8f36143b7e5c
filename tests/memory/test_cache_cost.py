"""What a row is charged: its bucket, and what is copied when rows come and go."""

from __future__ import annotations

import pytest

from wiredactors.memory.cache_cost import CacheCost, WindowCost, bucket_tokens


@pytest.mark.parametrize(
    ("tokens", "bucket"), [(0, 0), (1, 256), (255, 256), (256, 256), (257, 512), (4000, 4096)]
)
def test_a_bucket_is_the_length_in_whole_steps(tokens: int, bucket: int) -> None:
    assert bucket_tokens(tokens) == bucket


def test_a_row_is_charged_its_state_its_steps_and_a_copy_of_one_layer() -> None:
    cost = CacheCost(fixed_bytes=5, step_bytes=100, copy_bytes=10)
    assert cost.row_bytes(1) == 5 + 110
    assert cost.row_bytes(256) == 5 + 110
    assert cost.row_bytes(257) == 5 + 220


def test_a_window_is_charged_a_step_more_but_never_more_than_it_holds() -> None:
    window = WindowCost(most_tokens=1000, token_bytes=6, copy_bytes=2)
    cost = CacheCost(fixed_bytes=0, step_bytes=0, copy_bytes=0, windows=(window,))
    assert cost.row_bytes(100) == 512 * 8
    assert cost.row_bytes(900) == 1000 * 8
    assert cost.row_bytes(100_000) == 1000 * 8


def test_only_the_largest_layer_is_charged_as_a_copy() -> None:
    window = WindowCost(most_tokens=300, token_bytes=4, copy_bytes=4)
    cost = CacheCost(fixed_bytes=0, step_bytes=1024, copy_bytes=512, windows=(window,))
    assert cost.row_bytes(256) == 1024 + 300 * 4 + 300 * 4
    assert cost.row_bytes(1024) == 4 * 1024 + 300 * 4 + 4 * 512
