"""When a wanted limit is written, held back, and tried again."""

from __future__ import annotations

import pytest

from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.limit import LimitControl


def control(current: int | None = None, at: float = 0.0, **configuration) -> LimitControl:
    made = LimitControl(WiredMemoryConfiguration(**configuration))
    if current is not None:
        made.written(current, at)
    return made


def test_growing_is_always_allowed():
    assert control(100).next_write(101, working=True, now=0.0) == 101


def test_without_work_the_baseline_comes_back_at_once():
    assert control(100).next_write(99, working=False, now=0.0) == 99


def test_what_was_never_raised_is_not_restored():
    assert control().next_write(0, working=False, now=0.0) is None


def test_what_is_in_force_is_not_written_again():
    assert control(100).next_write(100, working=True, now=0.0) is None


def test_one_write_is_waited_for_before_the_next():
    made = control(100)
    made.in_flight = 150
    assert made.next_write(200, working=True, now=0.0) is None
    assert made.deadline is None


def test_a_drop_below_the_threshold_waits_for_a_larger_one_and_sets_no_timer():
    made = control(100)
    assert made.next_write(76, working=True, now=99.0) is None
    assert made.deadline is None
    assert made.next_write(75, working=True, now=99.0) == 75


@pytest.mark.parametrize("percent", range(1, 101))
def test_a_drop_of_exactly_the_threshold_is_allowed_as_the_ratio_is_written(percent):
    made = control(100, shrink_threshold_ratio=percent / 100)
    assert made.next_write(100 - percent, working=True, now=99.0) == 100 - percent
    assert made.next_write(101 - percent, working=True, now=99.0) is None


def test_a_large_drop_waits_for_the_cooldown_since_the_last_write_of_any_kind():
    made = control(100, at=10.0, shrink_cooldown=2.0)
    assert made.next_write(10, working=True, now=11.0) is None
    assert made.deadline == 12.0
    assert made.next_write(10, working=True, now=12.0) == 10


def test_growing_again_forgets_the_shrink_that_was_held_back():
    made = control(100, at=10.0)
    made.next_write(10, working=True, now=10.5)
    assert made.next_write(100, working=True, now=10.6) is None
    assert made.deadline is None


def test_a_refused_limit_waits_twice_as_long_each_time_up_to_a_minute():
    made = control(100)
    waits, now = [], 0.0
    for _ in range(2000):
        made.refused(200, now)
        assert made.next_write(200, working=True, now=now) is None
        waits.append(made.deadline - now)
        now = made.deadline
        assert made.next_write(200, working=True, now=now) == 200
    assert waits[:7] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
    assert set(waits[7:]) == {60.0}


@pytest.mark.parametrize("taken", [True, False])
def test_a_taken_one_or_the_old_demand_resets_the_waits(taken):
    made = control(100)
    for _ in range(5):
        made.refused(200, 0.0)
    if taken:
        made.written(150, 50.0)
    else:
        made.next_write(100, working=True, now=50.0)
    made.refused(200, 60.0)
    made.next_write(200, working=True, now=60.0)
    assert made.deadline == 61.0


def test_another_demand_is_tried_at_once():
    made = control(100)
    made.refused(200, 0.0)
    assert made.next_write(150, working=True, now=0.0) == 150


def test_it_can_be_told_to_try_now():
    made = control(100)
    made.refused(0, 0.0)
    assert made.next_write(0, working=False, now=0.0) is None
    made.retry_now()
    assert made.next_write(0, working=False, now=0.0) == 0
