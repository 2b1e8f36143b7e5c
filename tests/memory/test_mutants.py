"""Tests of the tests: the state machine finds a ledger that breaks a promise.

Each mutant changes one method, and breaks one promise by it. A machine that lets one live would
be worth little; that it lets the ledger itself live is seen with the same settings.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.memory.test_ledger_machine import LedgerMachine
from wiredactors.memory.admission import Admission
from wiredactors.memory.answers import Answers
from wiredactors.memory.book import Book
from wiredactors.memory.desk import Desk
from wiredactors.memory.journal import Journal
from wiredactors.memory.lane import Lane
from wiredactors.memory.limit import LimitControl
from wiredactors.memory.outside import OutsidePressure
from wiredactors.memory.pressure import Pressure
from wiredactors.memory.queue import WaitQueue
from wiredactors.memory.reservations import Reservations
from wiredactors.memory.room import Plan
from wiredactors.memory.yielding import Plans

#: Replaces one method by what is made of it.
Patch = Callable[[type, str, Callable[[Any], Any]], None]


@pytest.fixture
def patch(monkeypatch) -> Patch:
    def patch(cls: type, name: str, change: Callable[[Any], Any]) -> None:
        monkeypatch.setattr(cls, name, change(getattr(cls, name)))

    return patch


def the_ceiling_counts_the_own_group_only(patch: Patch) -> None:
    def change(_original):
        def fits(self, group, size):
            room = float("inf") if self.ceiling is None else self.ceiling
            room -= self.baseline + group.base_bytes + group.sizes.total
            return group.admits(self.baseline, group.sizes, size) and size <= room

        return fits

    patch(Book, "fits", change)


def an_ended_ticket_leaves_its_bytes_in_the_sum(patch: Patch) -> None:
    def change(original):
        def remove(self, holding):
            original(self, holding)
            self.total += holding.size

        return remove

    patch(Book, "remove", change)


def the_base_of_a_group_is_never_given_back(patch: Patch) -> None:
    def change(original):
        def remove(self, holding):
            before = self.base_total
            original(self, holding)
            self.base_total = before

        return remove

    patch(Book, "remove", change)


def a_pass_is_not_noted(patch: Patch) -> None:
    patch(Admission, "_note_passes", lambda _original: lambda self, newcomer, barriers: None)


def a_pass_counts_for_the_last_passed_only(patch: Patch) -> None:
    def change(original):
        def note_pass(self, key):
            last = [waiter for waiter in self if waiter.key < key][-1]
            if last is self.head:
                original(self, key)

        return note_pass

    patch(Lane, "note_pass", change)


def the_last_that_fits_goes_first(patch: Patch) -> None:
    def change(_original):
        def first_within(self, room):
            return next((w for w in reversed(list(self)) if w.more <= room), None)

        return first_within

    patch(Lane, "first_within", change)


def priority_is_ignored(patch: Patch) -> None:
    def change(original):
        def add(self, waiter):
            self._by_priority = False
            original(self, waiter)

        return add

    patch(WaitQueue, "add", change)


def nothing_is_kept_for_one_that_was_passed_too_often(patch: Patch) -> None:
    patch(Admission, "_passed_enough", lambda _original: lambda self, lane, now: False)


def nothing_is_kept_for_those_who_grow(patch: Patch) -> None:
    patch(Admission, "_competes_for_growing", lambda _original: lambda self, lane: iter(()))


def all_may_wait_to_grow_for_ever(patch: Patch) -> None:
    patch(Admission, "_stuck_grower", lambda _original: lambda self: None)


def one_that_became_impossible_waits_on(patch: Patch) -> None:
    patch(Admission, "_impossible", lambda _original: lambda self: iter(()))


def nobody_follows_one_that_gives_up(patch: Patch) -> None:
    def change(_original):
        def leave_queue(self, waiter, kind, error=None):
            self._queue.remove(waiter)
            self._book.await_no_more(waiter.holding)
            self._journal.emit_ticket(kind, waiter.holding, error=error)

        return leave_queue

    patch(Desk, "_leave_queue", change)


def a_cancelled_start_keeps_its_bytes(patch: Patch) -> None:
    def change(original):
        def cancel_start(self, command):
            if command.ticket_id in self._queue.by_id:
                original(self, command)
            else:
                self._answers.forget(command.reply)

        return cancel_start

    patch(Desk, "cancel_start", change)


def the_baseline_does_not_come_back(patch: Patch) -> None:
    def change(original):
        def next_write(self, desired, *, working, now):
            limit = original(self, desired, working=working, now=now)
            return limit if working else None

        return next_write

    patch(LimitControl, "next_write", change)


def nobody_is_asked_to_yield(patch: Patch) -> None:
    patch(Pressure, "look", lambda _original: lambda self: None)


def the_most_recently_used_is_asked_first(patch: Patch) -> None:
    def change(original):
        def add(self, holding):
            original(self, holding)
            if holding.reclaimable:
                self.reclaimable = {holding.ticket_id: holding} | self.reclaimable

        return add

    patch(Reservations, "add", change)


def those_who_yield_too_little_are_asked_all_the_same(patch: Patch) -> None:
    def change(original):
        def for_waiter(self, waiter, **more):
            plan = original(self, waiter, **more)
            return plan or Plan(list(self._caches(models=False))[:1])

        return for_waiter

    patch(Plans, "for_waiter", change)


def others_are_not_reckoned_with(patch: Patch) -> None:
    patch(OutsidePressure, "observe", lambda _original: lambda self, *_, **__: False)


def an_event_skips_a_number(patch: Patch) -> None:
    def change(original):
        def emit(self, kind, **fields):
            self.sequence += kind == "baseline_restored"
            original(self, kind, **fields)

        return emit

    patch(Journal, "emit", change)


def one_that_waits_for_a_write_has_no_answer(patch: Patch) -> None:
    patch(Answers, "take_of_write", lambda original: lambda self: original(self)[1:])


MUTANTS = [
    the_ceiling_counts_the_own_group_only,
    an_ended_ticket_leaves_its_bytes_in_the_sum,
    the_base_of_a_group_is_never_given_back,
    a_pass_is_not_noted,
    a_pass_counts_for_the_last_passed_only,
    the_last_that_fits_goes_first,
    priority_is_ignored,
    nothing_is_kept_for_one_that_was_passed_too_often,
    nothing_is_kept_for_those_who_grow,
    all_may_wait_to_grow_for_ever,
    one_that_became_impossible_waits_on,
    nobody_follows_one_that_gives_up,
    a_cancelled_start_keeps_its_bytes,
    the_baseline_does_not_come_back,
    nobody_is_asked_to_yield,
    the_most_recently_used_is_asked_first,
    those_who_yield_too_little_are_asked_all_the_same,
    others_are_not_reckoned_with,
    an_event_skips_a_number,
    one_that_waits_for_a_write_has_no_answer,
]

#: Where an assertion may fail: in the machine, what it carries out, and the naive model beside it.
CHECKS = ("test_ledger_machine.py", "machine_support.py", "naive.py")

QUICK = settings(
    max_examples=300,
    stateful_step_count=40,
    phases=[Phase.generate],  # it is enough to see it fail
    report_multiple_bugs=False,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_the_ledger_itself_passes():
    run_state_machine_as_test(LedgerMachine, settings=QUICK)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_machine_finds(mutant, patch):
    mutant(patch)
    with pytest.raises(AssertionError) as caught:
        run_state_machine_as_test(LedgerMachine, settings=QUICK)
    raised_in = traceback.extract_tb(caught.value.__traceback__)[-1]
    by_the_machine = raised_in.filename.endswith(CHECKS)
    assert by_the_machine, f"by accident, in {raised_in.name}"
