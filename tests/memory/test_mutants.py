"""Tests of the tests: the state machine finds a ledger that breaks a promise.

Each mutant changes one method, and breaks one promise by it. A machine that lets one live would
be worth little; that it lets the ledger itself live is seen with the same settings.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.memory import test_eviction as eviction
from tests.memory import test_eviction_shares as shares
from tests.memory import test_eviction_turns as turns
from tests.memory.conftest import Driver
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
from wiredactors.memory.shares import Shares
from wiredactors.memory.switches import Switches
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


def a_model_goes_for_work_that_waits_for_other_work(patch: Patch) -> None:
    patch(Plans, "_models_yield_to", lambda _original: lambda self, waiter: True)


def models_go_before_caches(patch: Patch) -> None:
    def change(original):
        def caches(self, *, models):
            return original(self, models=models) if not models else self._idle()

        return caches

    def models_first(original):
        def idle(self):
            asked = self._book.reservations.asked.values()
            yield from (holding for holding in asked if not holding.in_use)
            for holding in self._book.reservations.evictable.values():
                if not (holding.asked or holding.in_use or holding.pinned):
                    yield holding
            yield from (h for h in self._book.reservations.reclaimable.values() if not h.asked)

        return idle

    patch(Plans, "_caches", change)
    patch(Plans, "_idle", models_first)


def one_in_use_goes_as_if_it_were_idle(patch: Patch) -> None:
    def change(original):
        def idle(self):
            yield from original(self)
            for holding in self._book.reservations.evictable.values():
                if not (holding.asked or holding.pinned) and holding.in_use:
                    yield holding

        return idle

    patch(Plans, "_idle", change)


def a_pinned_model_is_asked(patch: Patch) -> None:
    def change(original):
        def idle(self):
            yield from original(self)
            for holding in self._book.reservations.evictable.values():
                if holding.pinned and not (holding.asked or holding.in_use):
                    yield holding

        return idle

    patch(Plans, "_idle", change)


def the_most_recently_used_model_is_asked_first(patch: Patch) -> None:
    def change(original):
        def used(self, holding):
            original(self, holding)
            if holding.evictable:
                self.evictable = {holding.ticket_id: holding} | self.evictable

        return used

    patch(Reservations, "used", change)


def a_model_that_was_used_keeps_its_place(patch: Patch) -> None:
    patch(Reservations, "used", lambda _original: lambda self, holding: None)


def models_take_turns_without_end(patch: Patch) -> None:
    patch(Switches, "allowed_at", lambda _original: lambda self: 0.0)


def models_in_use_do_not_have_their_turn(patch: Patch) -> None:
    def change(original):
        def drain(self, *arguments):
            self._turn_seconds = 0.0
            return original(self, *arguments)

        return drain

    patch(Pressure, "_drain", change)


def models_in_use_never_yield(patch: Patch) -> None:
    patch(Pressure, "_drain", lambda _original: lambda self, waiter, *_: self._waits(waiter))


def models_that_stall_each_other_wait_for_their_turn(patch: Patch) -> None:
    patch(Pressure, "_is_stalled", lambda _original: lambda self, model, waiter: False)


def every_model_in_use_counts_as_stalled(patch: Patch) -> None:
    patch(Pressure, "_is_stalled", lambda _original: lambda self, model, waiter: True)


def another_is_asked_while_one_drains(patch: Patch) -> None:
    patch(Plan, "drains", lambda _original: property(lambda self: False))


def nobody_looks_again_when_time_has_passed(patch: Patch) -> None:
    def change(original):
        def look(self):
            original(self)

        return look

    patch(Pressure, "look", change)


def what_models_share_does_not_shrink(patch: Patch) -> None:
    patch(Shares, "shrink", lambda _original: lambda self, shared, gone: 0)


def what_others_share_is_held_against_all(patch: Patch) -> None:
    patch(Shares, "floor", lambda _original: lambda self, shared, stays, holding: shared.size)


def one_that_is_pinned_refuses_nobody(patch: Patch) -> None:
    patch(Admission, "doubt", lambda _original: lambda self: None)


def one_that_is_pinned_is_asked_all_the_same(patch: Patch) -> None:
    patch(Reservations, "release", lambda _original: lambda self, holding: None)


def a_turn_counts_from_the_start(patch: Patch) -> None:
    def change(original):
        def let_in(self, holding):
            original(self, holding)
            holding.served_since = self._journal.now

        return let_in

    patch(Desk, "_let_in", change)


def a_turn_begins_with_each_work(patch: Patch) -> None:
    def change(original):
        def use(self, command):
            original(self, command)
            holding = self._book.holdings.get(command.ticket_id)
            if holding is not None and command.in_use:
                holding.served_since = self._journal.now

        return use

    patch(Desk, "use", change)


def a_touch_makes_it_serve(patch: Patch) -> None:
    def change(original):
        def use(self, command):
            original(
                self, command if command.in_use is not None else attrs.evolve(command, in_use=True)
            )

        return use

    patch(Desk, "use", change)


def those_that_go_with_their_model_make_others_go(patch: Patch) -> None:
    patch(Admission, "goes_with_its_model", lambda _original: lambda self, waiter: False)


def what_grows_on_a_model_that_drains_goes_with_it(patch: Patch) -> None:
    def change(_original):
        def goes_with_its_model(self, waiter):
            asked = self._book.reservations.asked
            return any(id in asked and asked[id].evictable for id in waiter.holding.requires)

        return goes_with_its_model

    patch(Admission, "goes_with_its_model", change)


def a_model_comes_back_with_its_own_priority(patch: Patch) -> None:
    patch(Admission, "stand_behind", lambda _original: lambda self, holding: None)


def a_model_passes_those_it_went_for(patch: Patch) -> None:
    patch(Admission, "_comes_after", lambda _original: lambda self, waiter: None)


def so_many_switches_are_allowed_at_once(patch: Patch) -> None:
    """In any minute, as it was; each counts from the one so many before it."""

    times: dict[int, list[float]] = {}

    def change(original):
        def note(self, now):
            noted = times.setdefault(id(self), [])
            noted.append(now)
            original(self, now)
            if len(noted) < self.per_minute:
                self.last = -math.inf

        return note

    patch(Switches, "note", change)


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
    one_in_use_goes_as_if_it_were_idle,
    models_take_turns_without_end,
    models_in_use_do_not_have_their_turn,
    models_in_use_never_yield,
    every_model_in_use_counts_as_stalled,
    nobody_looks_again_when_time_has_passed,
    one_that_is_pinned_is_asked_all_the_same,
    an_event_skips_a_number,
    one_that_waits_for_a_write_has_no_answer,
    a_turn_counts_from_the_start,
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


def what_waited_elsewhere_waits_anew(patch: Patch) -> None:
    def change(original):
        def holding_for(self, command, group):
            return original(self, attrs.evolve(command, since=None), group)

        return holding_for

    patch(Desk, "_holding_for", change)


def room_is_kept_for_what_needs_models_in_use(patch: Patch) -> None:
    patch(Admission, "_needs_busy_models", lambda _original: lambda self, waiter: False)


def what_is_due_counts_for_nothing(patch: Patch) -> None:
    patch(Shares, "due", lambda _original: property(lambda self: iter(())))


def the_workspace_shrinks_for_each_plan_anew(patch: Patch) -> None:
    def change(original):
        def take(self, waiter, plan):
            original(self, waiter, plan)
            self._shrunk.clear()

        return take

    patch(Plans, "take", change)


#: Where the machine seldom comes, and the tests that come there.
RARE = [
    (
        models_go_before_caches,
        eviction.TestIdleModels.test_caches_yield_before_models,
    ),
    (
        a_pinned_model_is_asked,
        eviction.TestPinning.test_unpinned_it_yields_to_those_who_wait,
    ),
    (
        one_that_is_pinned_refuses_nobody,
        eviction.TestPinning.test_those_who_become_impossible_are_refused,
    ),
    (
        a_model_goes_for_work_that_waits_for_other_work,
        eviction.TestIdleModels.test_a_job_that_waits_for_other_jobs_evicts_nobody,
    ),
    (
        what_others_share_is_held_against_all,
        shares.TestNeverFits.test_nor_against_a_job_of_one,
    ),
    (
        a_model_that_was_used_keeps_its_place,
        eviction.TestUse.test_both_put_it_last_of_those_that_yield,
    ),
    (
        models_that_stall_each_other_wait_for_their_turn,
        turns.TestBusyModels.test_work_that_waits_behind_on_a_stalled_model_does_not_wedge,
    ),
    (
        what_models_share_does_not_shrink,
        shares.TestShares.test_what_the_workspace_shrinks_by_counts,
    ),
    (
        room_is_kept_for_what_needs_models_in_use,
        turns.TestBusyModels.test_meanwhile_work_of_others_takes_the_room_that_is_free,
    ),
    (
        the_most_recently_used_model_is_asked_first,
        eviction.TestIdleModels.test_a_load_asks_the_least_recently_used_and_no_more_than_are_needed,
    ),
    (
        another_is_asked_while_one_drains,
        turns.TestBusyModels.test_while_one_drains_no_other_is_asked_for_the_same,
    ),
    (
        what_waited_elsewhere_waits_anew,
        turns.TestBusyModels.test_work_that_waited_for_its_model_stands_as_if_it_had_waited_here,
    ),
    (
        what_is_due_counts_for_nothing,
        shares.TestShares.test_what_the_workspace_shrinks_by_counts,
    ),
    (
        the_workspace_shrinks_for_each_plan_anew,
        shares.TestShares.test_the_second_plan_does_not_count_it_again,
    ),
    (
        a_turn_counts_from_the_start,
        turns.TestServing.test_one_that_is_loaded_yet_is_not_stalled,
    ),
    (
        a_turn_begins_with_each_work,
        turns.TestServing.test_work_that_follows_other_work_begins_no_turn,
    ),
    (
        a_touch_makes_it_serve,
        turns.TestServing.test_a_touch_does_not_make_it_serve,
    ),
    (
        those_that_go_with_their_model_make_others_go,
        turns.TestThoseThatGoWithTheirModel.test_they_make_no_other_go,
    ),
    (
        those_that_go_with_their_model_make_others_go,
        turns.TestThoseThatGoWithTheirModel.test_nothing_is_kept_for_them,
    ),
    (
        what_grows_on_a_model_that_drains_goes_with_it,
        turns.TestThoseThatGoWithTheirModel.test_what_runs_on_one_that_drains_and_wants_to_grow_has_its_room,
    ),
    (
        a_model_comes_back_with_its_own_priority,
        turns.TestComingBack.test_it_stands_behind_those_it_went_for,
    ),
    (
        a_model_passes_those_it_went_for,
        turns.TestComingBack.test_it_stands_behind_those_it_went_for,
    ),
    (
        so_many_switches_are_allowed_at_once,
        turns.TestTheRate.test_they_keep_even_distances,
    ),
]


@pytest.mark.parametrize(("mutant", "test"), RARE, ids=lambda each: each.__name__)
def test_the_test_finds(mutant, test, patch):
    test(None, Driver)
    mutant(patch)
    with pytest.raises(AssertionError):
        test(None, Driver)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_machine_finds(mutant, patch):
    mutant(patch)
    with pytest.raises(AssertionError) as caught:
        run_state_machine_as_test(LedgerMachine, settings=QUICK)
    raised_in = traceback.extract_tb(caught.value.__traceback__)[-1]
    by_the_machine = raised_in.filename.endswith(CHECKS)
    assert by_the_machine, f"by accident, in {raised_in.name}"
