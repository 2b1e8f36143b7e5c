"""Whom the ledger owes an answer, and when it is due."""

from __future__ import annotations

from wiredactors.memory.answers import Answers
from wiredactors.memory.group import Group
from wiredactors.memory.holding import Holding
from wiredactors.memory.policies import WiredMaxPolicy


def holding(ticket_id: str) -> Holding:
    group = Group(WiredMaxPolicy())
    return Holding(ticket_id, 1, "active", group, 0, False, False, (), 0.0)


def test_a_turn_without_a_write_is_answered_at_once_and_in_order():
    answers = Answers()
    answers.owe("a")
    answers.owe("b")
    assert answers.take_of_turn() == ["a", "b"]
    assert answers.take_of_turn() == []


def test_a_write_is_awaited_by_those_who_came_before_it_only():
    answers = Answers()
    answers.owe("a")
    answers.await_write()
    answers.owe("b")
    assert answers.take_of_write() == ["a"]
    assert answers.take_of_turn() == ["b"]


def test_those_of_a_write_can_be_made_to_wait_for_another():
    answers = Answers()
    answers.owe("a")
    answers.await_write()
    answers.owe("b")
    answers.await_another()
    assert answers.take_of_write() == []
    assert answers.take_of_turn() == ["a", "b"]


def test_the_starts_of_a_ticket_can_be_taken_out_wherever_they_wait():
    answers, t = Answers(), holding("t")
    t.reply = "first"
    answers.owe("first")
    answers.owe("other")
    answers.await_write()
    answers.owe_again("second", t)
    assert answers.take_starts_of(t) == ["first", "second"]
    assert answers.take_starts_of(t) == []
    assert answers.take_of_write() == ["other"]
    assert answers.take_of_turn() == []


def test_what_is_forgotten_is_never_answered():
    answers, t = Answers(), holding("t")
    answers.owe_again("a", t)
    assert answers.forget("a")
    assert not answers.forget("nobody")
    assert answers.take_of_turn() == []
    assert answers.take_starts_of(t) == []


def test_a_start_that_was_answered_is_taken_out_no_more():
    answers, t = Answers(), holding("t")
    t.reply = "a"
    answers.owe("a")
    answers.owe_again("b", t)
    assert answers.take_of_turn() == ["a", "b"]
    assert answers.take_starts_of(t) == []
    assert t.started_again == ()
