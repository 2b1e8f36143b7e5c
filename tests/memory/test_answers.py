"""Whom the ledger owes an answer, and when it is due."""

from __future__ import annotations

from wiredactors.memory.answers import Answers


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
    answers = Answers()
    answers.owe("first", start_of="t")
    answers.owe("other", start_of="u")
    answers.await_write()
    answers.owe("second", start_of="t")
    assert answers.take_starts_of("t") == ["first", "second"]
    assert answers.take_starts_of("t") == []
    assert answers.take_of_write() == ["other"]
    assert answers.take_of_turn() == []


def test_what_is_forgotten_is_never_answered():
    answers = Answers()
    answers.owe("a", start_of="t")
    answers.forget("a")
    answers.forget("nobody")
    assert answers.take_of_turn() == []
    assert answers.take_starts_of("t") == []
