"""What others take beyond their reserve tightens admission, and relaxes it when it passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiredactors.memory.outside import MemoryReading, OutsidePressure

TOTAL, CEILING = 1000, 800  # so 200 are reserved for everyone else


def reading(outside, own=0, footprint=None, total=TOTAL):
    """Others have taken `outside`, and our tickets have `own` in memory."""
    return MemoryReading(total, total - outside - own, own if footprint is None else footprint)


def watch(*readings, ceiling=CEILING, held=0):
    """What is in force after each reading, None where that was no news."""
    pressure = OutsidePressure()
    return [
        pressure.excess_bytes if pressure.observe(r, ceiling=ceiling, claimed_bytes=held) else None
        for r in readings
    ]


def test_at_first_there_is_none():
    assert OutsidePressure().excess_bytes == 0


def test_what_others_take_within_the_reserve_is_no_news():
    assert watch(reading(outside=0), reading(outside=200)) == [None, None]


def test_beyond_the_reserve_it_says_by_how_much_and_when_it_has_passed():
    assert watch(reading(outside=208), reading(outside=350), reading(outside=200)) == [8, 150, 0]


def test_what_our_tickets_have_in_memory_is_not_outside():
    assert watch(reading(outside=200, own=500), held=500) == [None]
    assert watch(reading(outside=250, own=500), held=500) == [50]


def test_a_footprint_beyond_the_tickets_is_outside_the_ledger():
    # As somebody's own arrays without a ticket: 500 in memory, 100 of them known.
    assert watch(reading(outside=0, own=500), held=100) == [200]


def test_tickets_that_are_not_in_memory_yet_take_nothing_from_what_is_free():
    # 700 are promised and 50 taken; the ledger counts the 700 against the ceiling already.
    assert watch(reading(outside=250, own=50), held=700) == [50]


def test_a_change_of_less_than_a_hundredth_of_the_ceiling_is_no_news():
    assert watch(*[reading(outside=n) for n in (300, 307, 293, 308, 301, 300)]) == [
        *(100, None, None, 108, None),
        100,
    ]


def test_small_steps_add_up():
    news = [n for n in watch(*[reading(outside=n) for n in range(300, 340)]) if n is not None]
    assert news == [100, 108, 116, 124, 132]


def test_a_machine_that_hovers_at_the_reserve_makes_no_noise():
    assert watch(*[reading(outside=n) for n in (201, 200, 205, 199, 207)]) == [None] * 5


def test_its_end_is_news_however_small_the_rest_was():
    assert watch(*[reading(outside=n) for n in (208, 201, 200)]) == [8, None, 0]


def test_with_a_small_ceiling_a_byte_is_the_least_step():
    assert watch(*[reading(10 + n, total=20) for n in (1, 2, 2)], ceiling=10) == [1, 2, None]


@pytest.mark.parametrize("ceiling", [None, TOTAL, TOTAL + 1])
def test_nothing_is_watched_without_a_ceiling_or_with_one_that_leaves_no_reserve(ceiling):
    assert watch(reading(outside=999), ceiling=ceiling) == [None]


@pytest.mark.parametrize("gone", [None, TOTAL])
def test_it_ends_when_the_ceiling_goes_away(gone):
    pressure = OutsidePressure()
    pressure.observe(reading(outside=300), ceiling=CEILING, claimed_bytes=0)
    assert pressure.observe(reading(outside=300), ceiling=gone, claimed_bytes=0)
    assert pressure.excess_bytes == 0


def test_it_ends_when_nothing_is_known_any_more():
    assert watch(None, reading(outside=300), None, None) == [None, 100, 0, None]


def test_more_available_than_there_is_is_an_error():
    with pytest.raises(ValueError, match=r"not be more than total_bytes, but are 1005 of 1000$"):
        MemoryReading(TOTAL, TOTAL + 5, 0)
    assert MemoryReading(TOTAL, TOTAL, TOTAL + 5).footprint_bytes == TOTAL + 5, "swapped out"


@pytest.mark.parametrize("name", ["total_bytes", "available_bytes", "footprint_bytes"])
@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (1.5, TypeError)])
def test_a_reading_is_in_whole_bytes_from_0(name, value, error):
    good = {"total_bytes": 1, "available_bytes": 1, "footprint_bytes": 1}
    with pytest.raises(error, match=name):
        MemoryReading(**{**good, name: value})


sizes = st.integers(0, 2000)
readings = st.builds(MemoryReading, st.just(TOTAL), st.integers(0, TOTAL), sizes)
ceilings = st.integers(0, TOTAL - 1)
histories = st.lists(st.tuples(readings, sizes), max_size=8)


def after(history, ceiling):
    pressure = OutsidePressure()
    for r, held in history:
        pressure.observe(r, ceiling=ceiling, claimed_bytes=held)
    return pressure


@given(histories, readings, ceilings, sizes)
def test_it_never_goes_below_what_tickets_hold_in_memory(history, last, ceiling, held):
    pressure = after(history, ceiling)
    pressure.observe(last, ceiling=ceiling, claimed_bytes=held)
    step = max(1, ceiling // 100)
    there = min(last.footprint_bytes, held)
    room = ceiling - pressure.excess_bytes
    # Less than a step below, as anything within a step is left as it was.
    assert room > min(ceiling, there + last.available_bytes) - step
    assert 0 <= pressure.excess_bytes <= ceiling


@given(histories, readings, ceilings, sizes)
def test_where_enough_is_free_it_relaxes_to_nothing(history, last, ceiling, held):
    pressure = after(history, ceiling)
    there = min(last.footprint_bytes, held)
    if last.available_bytes + there >= ceiling:
        pressure.observe(last, ceiling=ceiling, claimed_bytes=held)
        assert pressure.excess_bytes == 0


@given(histories, readings, ceilings, sizes)
def test_what_it_says_is_what_changed_and_by_a_step_at_least(history, last, ceiling, held):
    pressure = after(history, ceiling)
    before = pressure.excess_bytes
    said = pressure.observe(last, ceiling=ceiling, claimed_bytes=held)
    now = pressure.excess_bytes
    assert said == (now != before)
    if said and before and now:
        assert abs(now - before) >= max(1, ceiling // 100)


@given(histories, readings, ceilings, sizes)
def test_the_same_reading_again_is_no_news(history, last, ceiling, held):
    pressure = after([*history, (last, held)], ceiling)
    assert not pressure.observe(last, ceiling=ceiling, claimed_bytes=held)
