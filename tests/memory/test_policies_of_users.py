"""Policies of a user's own, whatever they inherit from, answer and do: the ledger goes on."""

from __future__ import annotations

import dataclasses
import functools
import sys

import attrs
import pytest

from wiredactors.memory.errors import PolicyError
from wiredactors.memory.policies import (
    WiredFixedPolicy,
    WiredMaxPolicy,
    WiredMemoryPolicy,
    WiredSumPolicy,
)


class OneAtATime:
    def can_admit(self, baseline, active_sizes, new_size):
        return len(active_sizes) < 1


class Mixed(OneAtATime, WiredSumPolicy):
    """What it says comes from beside the built-in policy that it starts from."""


@attrs.frozen
class HalfOfIt(WiredMaxPolicy):
    def can_admit(self, baseline, active_sizes, new_size):
        return sum(active_sizes) + new_size <= 50


@pytest.mark.parametrize("policy", [Mixed(), HalfOfIt()])
def test_one_made_from_a_built_in_policy_is_asked(driver, policy):
    d = driver(ceiling=1000)
    assert d.start("a", 40, policy).answered
    assert not d.start("b", 40, policy).answered
    d.end("a")
    assert d.running == ["b"]


class Flaky(WiredFixedPolicy):
    broken = False

    @property
    def limit_bytes(self):
        if self.broken:
            raise RuntimeError("boom")
        return 70

    def __init__(self):
        pass

    def __hash__(self):
        return 1

    def __eq__(self, other):
        return self is other


def test_one_whose_parameters_fail_later_harms_nobody(driver, monkeypatch):
    d = driver(ceiling=1000)
    policy = Flaky()
    assert d.start("a", 10, policy).answer == 70
    monkeypatch.setattr(Flaky, "broken", True)
    assert d.start("b", 20, WiredSumPolicy()).answer == 70
    assert "policy_failed" in d.kinds
    assert isinstance(d.start("c", 10, policy).error, PolicyError)
    d.end("a")
    d.advance(2)
    assert d.limit == 20


class Unhashable(WiredMemoryPolicy):
    """Its hash fails from the second time on."""

    hashes = 0

    def limit(self, baseline, active_sizes):
        return baseline + sum(active_sizes)

    def __hash__(self):
        self.hashes += 1
        if self.hashes > 1:
            raise RuntimeError("boom")
        return 7

    def __eq__(self, other):
        return self is other


def test_an_id_is_hashed_once_for_a_ticket(driver):
    d = driver()
    policy = Unhashable()
    first = d.start("a", 10, policy)
    assert isinstance(first.error, PolicyError) or first.answered
    d.end("a")
    assert d.running == []
    assert d.ledger._book.groups == {}


@dataclasses.dataclass(unsafe_hash=True)
class Changing(WiredMemoryPolicy):
    factor: int = 1

    def limit(self, baseline, active_sizes):
        return baseline + self.factor * sum(active_sizes)


def test_one_that_changes_while_its_ticket_lives_leaves_no_group_behind(driver):
    d = driver()
    policy = Changing()
    d.start("a", 10, policy)
    policy.factor = 2
    d.end("a")
    assert d.ledger._book.groups == {}


@dataclasses.dataclass(frozen=True)
class Computing(WiredMemoryPolicy):
    factor: int = 1

    @functools.cached_property
    def doubled(self):
        return 2 * self.factor

    @property
    def id(self):
        return "computing"

    def limit(self, baseline, active_sizes):
        return baseline + self.doubled * sum(active_sizes)


def test_what_equal_ones_have_computed_meanwhile_is_no_conflict(driver):
    d = driver()
    assert d.start("a", 10, Computing()).answer == 20
    assert d.start("b", 10, Computing()).answer == 40


def test_a_limit_that_was_only_tried_is_not_kept(driver):
    class Failing(WiredMemoryPolicy):
        fails = False

        def limit(self, baseline, active_sizes):
            if self.fails:
                raise RuntimeError("boom")
            return baseline + sum(active_sizes)

    d = driver(ceiling=100)
    policy = Failing()
    d.start("a", 10, policy)
    d.ledger._book.check_limit_with(d.ledger._book.group_for(policy), 65)
    policy.fails = True
    d.start("b", 5, WiredSumPolicy())
    assert d.limit == 10


def test_without_aging_a_low_priority_comes_in_all_the_same(driver):
    d = driver(ceiling=100, aging_seconds=sys.float_info.max)
    busy = d.start("busy", 100)
    low = d.start("low", 50, priority=-2)
    assert busy.answered
    assert not low.answered
    d.end("busy")
    assert low.answered


class TestLettingGoOfTheLimit:
    def test_what_could_not_be_restored_is_before_the_limit_is_left_alone(self, driver):
        d = driver()
        d.start("a", 60)
        d.refuses_over = -1
        d.end("a")
        d.refuses_over = None
        d.configure(wired_mode="off")
        d.advance(60)
        assert d.written[-1] == 0
        written = len(d.written)
        d.start("b", 40)
        assert len(d.written) == written

    def test_everybody_is_refused_with_an_error_of_its_own(self, driver):
        d = driver(ceiling=10)
        d.start("a", 10)
        waiting = [d.start(f"w{n}", 5) for n in range(3)]
        d.close()
        assert len({id(w.error) for w in waiting}) == 3
