"""The configuration refuses what makes no sense, and says what the ceiling is."""

from __future__ import annotations

import math

import pytest

from wiredactors.memory.configuration import WiredMemoryConfiguration, ceiling_of, reserve_bytes
from wiredactors.memory.units import GIB


def test_the_defaults_are_those_of_the_words():
    configuration = WiredMemoryConfiguration()
    assert configuration.shrink_threshold_ratio == 0.25
    assert configuration.shrink_cooldown == 1.0
    assert configuration.policy_only_when_unsupported is True
    assert configuration.use_recommended_working_set_when_unsupported is True
    assert configuration.baseline_override is None
    assert configuration.admission_ceiling is None
    assert configuration.max_waiters is None
    assert configuration.wired_mode == "policy"
    assert configuration.debug_events is True
    assert configuration.watch_seconds == 5.0
    assert configuration.overtake_count <= 1000
    assert configuration.overtake_seconds <= 60
    assert configuration.aging_seconds <= 300


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shrink_threshold_ratio", -0.1),
        ("shrink_threshold_ratio", 1.1),
        ("shrink_threshold_ratio", math.nan),
        ("shrink_threshold_ratio", "0.5"),
        ("shrink_cooldown", -1.0),
        ("shrink_cooldown", math.inf),
        ("shrink_cooldown", None),
        ("overtake_seconds", -1.0),
        ("aging_seconds", 0),
        ("watch_seconds", -1.0),
        ("watch_seconds", math.nan),
        ("watch_seconds", None),
        ("overtake_count", -1),
        ("overtake_count", 1.5),
        ("overtake_count", None),
        ("max_waiters", -1),
        ("max_waiters", 1.5),
        ("event_buffer", 999),
        ("event_buffer", 2000.0),
        ("baseline_override", -1),
        ("admission_ceiling", -1),
        ("wired_mode", "sometimes"),
        ("wired_mode", ["fit"]),
        ("shrink_threshold_ratio", True),
        ("overtake_seconds", True),
        ("aging_seconds", True),
        ("overtake_count", True),
        ("max_waiters", False),
        ("event_buffer", True),
        ("debug_events", "no"),
        ("policy_only_when_unsupported", 1),
        ("use_recommended_working_set_when_unsupported", None),
    ],
)
def test_a_value_out_of_its_range_is_a_value_error_that_names_it(name, value):
    with pytest.raises(ValueError, match=name):
        WiredMemoryConfiguration(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("wired_mode", "fits", "wired_mode must be 'policy', 'off' or 'fit', not 'fits'"),
        ("watch_seconds", -1, "watch_seconds must be a number of seconds from 0, not -1"),
        ("debug_events", "no", "debug_events must be True or False, not 'no'"),
    ],
)
def test_the_message_says_what_would_do(name, value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        WiredMemoryConfiguration(**{name: value})


def test_the_watch_can_be_off():
    assert WiredMemoryConfiguration(watch_seconds=0).watch_seconds == 0


@pytest.mark.parametrize("name", ["baseline_override", "admission_ceiling"])
@pytest.mark.parametrize("value", [1.5, "1", True])
def test_bytes_that_are_no_integer_are_a_type_error(name, value):
    with pytest.raises(TypeError, match=name):
        WiredMemoryConfiguration(**{name: value})


@pytest.mark.parametrize(
    ("total", "reserve"), [(8, 4), (16, 8), (20, 8), (32, 11.2), (64, 22.4), (128, 44.8)]
)
def test_the_reserve_is_at_least_8_gib_or_35_percent_and_at_most_half(total, reserve):
    assert reserve_bytes(total * GIB) == int(reserve * GIB)


def ceiling(supported=True, recommended=None, total=32 * GIB, pool=0, **more):
    return ceiling_of(
        WiredMemoryConfiguration(**more),
        supported=supported,
        recommended_bytes=recommended,
        total_memory=total,
        pool_bytes=pool,
    )


def test_the_ceiling_is_what_the_device_recommends():
    assert ceiling(recommended=100) == 100


def test_where_it_recommends_nothing_it_is_total_memory_less_a_reserve():
    for supported in (True, False):
        assert ceiling(supported) == 32 * GIB - reserve_bytes(32 * GIB)


def test_off_the_limit_there_is_none_if_one_says_so():
    assert ceiling(False, 100, use_recommended_working_set_when_unsupported=False) is None
    assert ceiling(True, 100, use_recommended_working_set_when_unsupported=False) == 100


def test_one_that_is_given_is_taken_everywhere():
    for supported in (True, False):
        assert (
            ceiling(
                supported,
                100,
                admission_ceiling=7,
                use_recommended_working_set_when_unsupported=False,
            )
            == 7
        )


def test_the_allocators_pool_is_taken_off_it():
    assert ceiling(recommended=100, pool=30) == 70
    assert ceiling(recommended=100, pool=130) == 0
