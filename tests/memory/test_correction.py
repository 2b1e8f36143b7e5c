"""What is learned from finished jobs: it never charges less, and more where it was too little."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiredactors.memory.correction import Correction

SIZES = st.integers(1, 1 << 50)
PAIRS = st.lists(st.tuples(SIZES, SIZES), max_size=300)


def learned(*pairs: tuple[int, int]) -> Correction:
    correction = Correction()
    for predicted, observed in pairs:
        correction.record(predicted, observed)
    return correction


def naive_factor(ratios: list[float]) -> float:
    """The least of the ratios that 99 % of the others do not exceed, at least one."""
    others = len(ratios) - 1
    enough = [
        ratio
        for ratio in ratios
        if sum(other <= ratio for other in ratios) - 1 >= Fraction(99, 100) * others
    ]
    return min(4.0, max(1.0, min(enough, default=1.0)))


def test_before_any_job_it_changes_nothing() -> None:
    correction = Correction()
    assert (correction.factor, correction.corrected(12345), correction.count) == (1.0, 12345, 0)
    assert correction.median_error is None
    assert correction.recorded == 0


def test_jobs_that_took_less_than_predicted_do_not_lower_the_charge() -> None:
    correction = learned(*[(1000, 400)] * 300)
    assert (correction.factor, correction.corrected(1000)) == (1.0, 1000)
    assert correction.median_error == pytest.approx(-0.6)


def test_a_job_that_took_more_raises_the_charge_rounded_up() -> None:
    correction = learned((1000, 1250))
    assert correction.factor == 1.25
    assert [correction.corrected(size) for size in (0, 1, 4, 5, 1000)] == [0, 2, 5, 7, 1250]
    assert correction.median_error == 0.25


@pytest.mark.parametrize(
    ("bad", "of", "factor"), [(1, 1, 2), (1, 100, 2), (1, 101, 1), (2, 200, 2), (2, 201, 1)]
)
def test_one_job_in_a_hundred_may_exceed_it(bad: int, of: int, factor: float) -> None:
    correction = learned(*[(10, 20)] * bad, *[(10, 5)] * (of - bad))
    assert correction.factor == factor


def test_an_absurd_observation_does_not_make_every_later_job_impossible() -> None:
    correction = learned((10, 10**12))
    assert (correction.factor, correction.corrected(10)) == (4.0, 40)
    assert Correction.from_dict({"ratios": [1e300]}).factor == 4.0


def test_only_the_last_256_jobs_count() -> None:
    correction = learned(*[(10, 30)] * 256, *[(10, 5)] * 253)
    assert (correction.factor, correction.count) == (3.0, 256)
    correction.record(10, 5)  # two are left
    assert correction.factor == 1.0
    assert len(correction.to_dict()["ratios"]) == 256


@given(PAIRS)
def test_it_is_the_naive_quantile_and_never_below_one(pairs: list[tuple[int, int]]) -> None:
    correction = learned(*pairs)
    ratios = [observed / predicted for predicted, observed in pairs[-256:]]
    assert correction.factor == naive_factor(ratios) >= 1


@given(PAIRS.filter(bool), SIZES)
def test_a_charge_is_the_least_whole_number_that_covers_the_factor(
    pairs: list[tuple[int, int]], size: int
) -> None:
    correction = learned(*pairs)
    charged, exact = correction.corrected(size), Fraction(correction.factor) * size
    assert charged - 1 < exact <= charged
    assert charged >= size


@given(PAIRS)
def test_it_can_be_kept_as_json_and_goes_on_from_there(pairs: list[tuple[int, int]]) -> None:
    correction = learned(*pairs)
    assert correction.recorded == len(pairs)
    again = Correction.from_dict(json.loads(json.dumps(correction.to_dict())))
    assert again.recorded == 0
    assert again.to_dict() == correction.to_dict()
    for each in (correction, again):
        each.record(10, 11)
    assert (again.factor, again.median_error) == (correction.factor, correction.median_error)


def test_whoever_keeps_it_is_told_and_can_join_what_is_new() -> None:
    told = []
    correction = Correction([0.5])
    correction.on_record = lambda: told.append(correction.factor)
    correction.record(10, 20)
    correction.record(10, 30)
    assert (told, correction.recorded) == ([2.0, 3.0], 2)
    kept = Correction([0.75])
    assert kept.joined(correction, 2).to_dict() == {"ratios": [0.75, 2.0, 3.0]}
    assert kept.joined(correction, 0).to_dict() == {"ratios": [0.75]}
    assert kept.joined(correction, 300).count == 4


def test_more_kept_ratios_than_count_are_the_oldest_to_go() -> None:
    assert Correction.from_dict({"ratios": [3.0] * 10 + [0.5] * 256}).factor == 1.0


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({}, "a list 'ratios'"),
        ([], "a list 'ratios'"),
        (None, "a list 'ratios'"),
        ({"ratios": 3}, "a list 'ratios'"),
        ({"ratios": "12"}, "a list 'ratios'"),
        ({"ratios": [1.0, "2"]}, "cannot be '2'"),
        ({"ratios": [True]}, "cannot be True"),
        ({"ratios": [0.0]}, r"cannot be 0\.0"),
        ({"ratios": [-1]}, "cannot be -1"),
        ({"ratios": [float("nan")]}, "cannot be nan"),
        ({"ratios": [float("inf")]}, "cannot be inf"),
        ({"ratios": [10**400]}, "cannot be 1000"),
        ({"ratios": [[1.0]]}, r"cannot be \[1\.0\]"),
    ],
)
def test_data_that_is_no_correction_says_what_is_wrong(data: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Correction.from_dict(data)


@pytest.mark.parametrize("pair", [(0, 1), (1, 0), (-1, 1), (1, -1), (1.0, 1), (1, True)])
def test_what_is_no_observation_is_refused(pair: tuple[Any, Any]) -> None:
    correction = Correction()
    with pytest.raises(ValueError, match="must be a number of bytes from 1"):
        correction.record(*pair)
    assert (correction.count, correction.recorded) == (0, 0)


def test_it_says_what_it_is() -> None:
    assert repr(learned((4, 5), (1, 1))) == "<Correction 1.25 of 2 jobs>"
