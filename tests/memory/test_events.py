"""Events name what happened, and carry what one needs to follow the ledger."""

from __future__ import annotations

import attrs
import pytest

import wiredactors as wa
from wiredactors.memory.policies import WiredSumPolicy

POLICY = WiredSumPolicy(cap=100)


def test_a_kind_is_a_string():
    assert wa.EventKind.TICKET_STARTED == "ticket_started"
    assert str(wa.EventKind.SNAPSHOT) == "snapshot"


def test_they_are_frozen(driver):
    d = driver()
    d.start("a", 5)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        d.events[0].size = 7
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        d.ledger.snapshot().baseline = 7


def test_one_about_a_ticket_says_all_of_it(driver):
    d = driver(baseline_override=3)
    d.now = 12.5
    d.reserve("r", 40, POLICY, priority=2, pinned=True)
    event = d.last("ticket_started")
    assert (event.ticket_id, event.size, event.ticket_kind) == ("r", 40, "reservation")
    assert (event.priority, event.policy) == (2, "WiredSumPolicy(cap=100)")
    assert (event.timestamp, event.baseline) == (12.5, 3)
    assert (event.active_count, event.waiter_count) == (1, 0)  # reservations count
    assert event.details == {"pinned": True}


def test_their_counts_are_those_of_their_own_moment(driver):
    d = driver()
    d.start("a", 100, POLICY)
    d.start("b", 50, POLICY)
    d.take_events()
    d.end("a")
    assert [(e.kind.value, e.active_count, e.waiter_count) for e in d.events] == [
        ("ticket_ended", 0, 1),
        ("baseline_captured", 0, 1),
        ("admission_granted", 0, 0),
        ("ticket_started", 1, 0),
        ("limit_computed", 1, 0),
    ]


def test_a_refusal_says_why(driver):
    d = driver()
    d.start("a", 101, POLICY)
    event = d.last("admission_refused")
    assert (event.ticket_id, event.size) == ("a", 101)
    assert "can never fit" in event.error


def test_a_snapshot_lists_what_runs_and_what_waits_in_order(driver):
    d = driver(ceiling=100)
    d.start("a", 90)
    d.start("low", 50)
    d.start("high", 50, priority=1)
    state = d.ledger.snapshot()
    assert [t.ticket_id for t in state.tickets] == ["a"]
    assert [t.ticket_id for t in state.waiters] == ["high", "low"]
    assert (state.current_limit, state.desired_limit, state.ceiling) == (90, 90, 100)
    assert state.sequence == d.events[-1].sequence


def test_before_the_first_ticket_there_is_no_limit_in_force(driver):
    assert driver().limit is None
