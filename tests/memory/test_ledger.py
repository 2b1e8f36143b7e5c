"""What the ledger decides, command by command. Sizes are small numbers of bytes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from wiredactors.memory import messages as m
from wiredactors.memory.errors import (
    ManagerBusy,
    ManagerClosed,
    PolicyConflict,
    PolicyError,
    QueueFull,
    TicketInUse,
    TicketTooLarge,
    TicketWithdrawn,
)
from wiredactors.memory.policies import (
    WiredBudgetPolicy,
    WiredFixedPolicy,
    WiredMaxPolicy,
    WiredMemoryPolicy,
    WiredSumPolicy,
)

SUM100 = WiredSumPolicy(cap=100)


class Own(WiredMemoryPolicy):
    """A user's policy that does what the test says."""

    def __init__(self, limit: Any = None, can_admit: Any = None):
        self.limit_answer = limit
        self.admit_answer = can_admit

    def limit(self, baseline, active_sizes):
        answer = self.limit_answer
        if callable(answer):
            return answer(baseline, active_sizes)
        return baseline + sum(active_sizes) if answer is None else answer

    def can_admit(self, baseline, active_sizes, new_size):
        answer = self.admit_answer
        if callable(answer):
            return answer(baseline, active_sizes, new_size)
        return True if answer is None else answer


def boom(*_: object) -> Any:
    raise RuntimeError("boom")


class TestStarting:
    def test_a_start_is_answered_with_the_limit_in_force(self, driver):
        d = driver()
        a = d.start("a", 60)
        assert a.answer == 60
        assert d.written == [60]

    def test_several_starts_of_one_turn_make_one_write(self, driver):
        d = driver()
        replies = d.together(*[lambda n=n: d.start(f"t{n}", 10) for n in range(100)])
        assert d.written == [1000]
        assert {reply.answer for reply in replies} == {1000}

    def test_a_start_and_an_end_in_one_turn_write_nothing(self, driver):
        d = driver()
        start, end = d.together(lambda: d.start("a", 60), lambda: d.end("a"))
        assert d.tried == []
        assert isinstance(start.error, TicketWithdrawn)
        assert end.answer == 0

    def test_a_ticket_may_start_again_after_its_end(self, driver):
        d = driver()
        d.start("a", 60)
        d.end("a")
        assert d.start("a", 50).answer == 50
        assert d.written == [60, 0, 50]

    def test_a_second_start_of_a_running_ticket_is_ignored_and_answered(self, driver):
        d = driver()
        d.start("a", 60)
        assert d.start("a", 60).answer == 60
        assert d.kinds[-1] == "ticket_start_ignored"
        assert d.running == ["a"]

    def test_an_exclusive_start_of_a_running_ticket_is_refused(self, driver):
        d = driver()
        d.start("a", 60)
        assert isinstance(d.start("a", 60, exclusive=True).error, TicketInUse)

    def test_a_second_start_of_a_waiting_ticket_is_refused_and_the_first_still_waits(self, driver):
        d = driver()
        d.start("a", 100, SUM100)
        b = d.start("b", 50, SUM100)
        assert isinstance(d.start("b", 50, SUM100).error, TicketInUse)
        d.end("a")
        assert b.answered
        assert d.running == ["b"]

    def test_an_end_in_the_same_turn_withdraws_every_start_that_has_not_returned(self, driver):
        d = driver()
        first, second, end = d.together(
            lambda: d.start("a", 60), lambda: d.start("a", 60), lambda: d.end("a")
        )
        assert isinstance(first.error, TicketWithdrawn)
        assert isinstance(second.error, TicketWithdrawn)
        assert end.answer == 0

    def test_a_start_after_closing_is_refused(self, driver):
        d = driver()
        d.close()
        assert isinstance(d.start("a", 1).error, ManagerClosed)


class TestCancelling:
    def test_a_cancelled_waiter_leaves_and_those_behind_it_move_up(self, driver):
        d = driver(overtake_count=0)
        d.start("a", 50, SUM100)
        b = d.start("b", 60, SUM100)
        c = d.start("c", 50, SUM100)
        assert d.waiting == ["b", "c"]
        d.cancel(b)
        assert c.answer == 100
        assert not b.answered
        assert "admission_cancelled" in d.kinds

    def test_cancelled_between_admission_and_answer_it_is_ended(self, driver):
        d = driver(deferred=True)
        a = d.start("a", 60)
        d.cancel(a)
        d.outcome()
        d.outcome()
        assert d.running == []
        assert d.limit == 0
        assert not a.answered

    def test_cancelled_though_its_answer_was_on_the_way_it_is_ended_all_the_same(self, driver):
        # The task was cancelled first and answered second, before it ran again: its start()
        # raises Cancelled, so nobody would ever end the ticket.
        d = driver()
        a = d.start("a", 60)
        assert a.answered
        d.cancel(a)
        assert d.running == []
        assert d.limit == 0

    def test_a_late_cancel_does_not_touch_a_newer_start_of_the_same_ticket(self, driver):
        d = driver()
        first = d.start("a", 60)
        d.end("a")
        d.start("a", 60)
        d.cancel(first)
        assert d.running == ["a"]

    def test_the_cancel_of_an_ignored_second_start_leaves_the_first_alone(self, driver):
        d = driver(deferred=True)
        first = d.start("a", 60)
        second = d.start("a", 60)
        d.cancel(second)
        d.outcome()
        assert first.answer == 60
        assert not second.answered
        assert d.running == ["a"]


class TestEnding:
    def test_the_end_of_a_waiting_ticket_withdraws_it(self, driver):
        d = driver()
        d.start("a", 100, SUM100)
        b = d.start("b", 50, SUM100)
        end = d.end("b")
        assert isinstance(b.error, TicketWithdrawn)
        assert end.answer == 100
        assert d.waiting == []

    def test_the_end_of_an_admitted_ticket_whose_write_is_in_flight_withdraws_it(self, driver):
        d = driver(deferred=True)
        a = d.start("a", 60)
        end = d.end("a")
        assert isinstance(a.error, TicketWithdrawn)
        assert not end.answered
        d.outcome()
        d.outcome()
        assert end.answer == 0
        assert d.written == [60, 0]

    def test_a_second_end_is_ignored_and_says_so(self, driver):
        d = driver()
        d.start("a", 60)
        d.end("a")
        assert d.end("a").answer == 0
        assert d.kinds[-1] == "ticket_end_ignored"

    def test_the_end_of_the_last_and_a_waiter_of_the_same_turn_go_straight_to_the_new_demand(
        self, driver
    ):
        d = driver()
        d.start("a", 100, SUM100)
        b = d.start("b", 50, SUM100)
        d.end("a")
        assert b.answer == 100  # the shrink waits for the cooldown
        d.advance(1.0)
        assert d.written == [100, 50]
        assert "baseline_restored" not in d.kinds

    def test_the_end_of_a_ticket_that_waits_to_grow_refuses_the_growing(self, driver):
        d = driver()
        d.start("a", 50, SUM100)
        d.start("b", 50, SUM100)
        grow = d.resize("a", 60)
        d.end("a")
        assert isinstance(grow.error, TicketWithdrawn)
        assert d.running == ["b"]


class TestNeverFits:
    def refused(self, reply) -> tuple[int, int | None, int, int]:
        error = reply.error
        assert isinstance(error, TicketTooLarge)
        return error.need, error.cap, error.pinned_bytes, error.largest_possible

    def test_the_cap_of_the_policy(self, driver):
        d = driver()
        assert self.refused(d.start("a", 101, SUM100)) == (101, 100, 0, 100)
        assert d.kinds[-1] == "admission_refused"
        assert d.running == d.waiting == []

    def test_the_ceiling_where_it_is_smaller(self, driver):
        d = driver(ceiling=80)
        assert self.refused(d.start("a", 81, SUM100)) == (81, 80, 0, 80)

    def test_baseline_and_base_bytes_count(self, driver):
        d = driver(ceiling=100, baseline_override=10)
        policy = WiredBudgetPolicy(base_bytes=30, id="x")
        assert self.refused(d.start("a", 61, policy)) == (61, 100, 0, 60)
        assert d.start("a", 60, policy).answer == 100

    def test_pinned_reservations_stay_and_others_may_go(self, driver):
        d = driver(ceiling=100)
        d.reserve("pinned", 30, pinned=True)
        d.reserve("free", 20)
        assert self.refused(d.start("a", 71)) == (71, 100, 30, 70)
        d.start("b", 70)
        assert d.waiting == ["b"]

    def test_what_a_ticket_stands_on_stays(self, driver):
        d = driver(ceiling=100)
        d.reserve("weights", 40)
        assert self.refused(d.start("a", 61, requires=("weights",))) == (61, 100, 40, 60)
        d.start("b", 61)
        assert d.waiting == ["b"]

    def test_the_largest_that_a_users_policy_admits_is_found(self, driver):
        policy = Own(can_admit=lambda baseline, sizes, new: new <= 37)
        d = driver(ceiling=1 << 40)
        assert self.refused(d.start("a", 38, policy)) == (38, 1 << 40, 0, 37)
        assert self.refused(driver().start("a", 38, policy)) == (38, None, 0, 37)

    def test_a_waiter_that_a_new_pinned_ticket_makes_impossible_is_refused(self, driver):
        d = driver(ceiling=100)
        d.start("a", 50)
        big = d.start("big", 90)
        d.reserve("pinned", 20, pinned=True)
        assert self.refused(big) == (90, 100, 20, 80)

    def test_one_refused_so_keeps_no_room_free_any_more(self, driver):
        # `big` has been passed enough: its group is kept free for it. A pinned ticket of another
        # group comes in after it in the same pass and makes it impossible.
        group = WiredSumPolicy(cap=90)
        other = WiredBudgetPolicy(base_bytes=0, id="other")
        d = driver(ceiling=100, overtake_count=0)
        d.start("a", 40, group)
        d.start("b", 50, other)
        big = d.start("big", 85, group)
        d.reserve("pinned", 20, other, pinned=True)
        small = d.start("small", 10, group)
        assert d.waiting == ["big", "pinned", "small"]
        d.end("b")
        assert isinstance(big.error, TicketTooLarge)
        assert small.answered
        assert d.waiting == []

    def test_waiters_behind_a_pinned_ticket_are_each_looked_at_once(self, driver):
        d = driver(ceiling=100)
        d.start("a", 90)
        d.reserve("pinned", 20, pinned=True, priority=1)
        waiters = [d.start(f"w{n}", 85) for n in range(3)]
        d.end("a")
        assert all(isinstance(w.error, TicketTooLarge) for w in waiters)
        assert d.running == ["pinned"]

    def test_a_grower_that_a_new_pinned_ticket_makes_impossible_is_refused(self, driver):
        d = driver(ceiling=120)
        d.reserve("r", 10, SUM100)
        d.start("b", 40, SUM100)
        grow = d.resize("r", 90)
        assert not grow.answered
        d.reserve("pinned", 35, WiredMaxPolicy(), pinned=True)
        assert self.refused(grow) == (90, 100, 35, 85)

    def test_a_waiter_that_a_growing_pinned_ticket_makes_impossible_is_refused(self, driver):
        d = driver(ceiling=100)
        d.reserve("pinned", 10, pinned=True)
        d.start("a", 50)
        big = d.start("big", 90)
        d.resize("pinned", 20)
        assert self.refused(big) == (90, 100, 20, 80)

    def test_a_waiter_is_refused_when_what_it_stands_on_has_outgrown_it(self, driver):
        d = driver(ceiling=100)
        d.reserve("weights", 10)
        d.start("a", 50)
        big = d.start("big", 90, requires=("weights",))
        d.resize("weights", 20)
        assert self.refused(big) == (90, 100, 20, 80)

    def test_a_waiter_that_a_late_baseline_makes_impossible_is_refused(self, driver):
        d = driver(ceiling=100, previous=10)
        a, big, _ = d.together(
            lambda: d.start("a", 60), lambda: d.start("big", 95), lambda: d.start("small", 85)
        )
        assert a.answer == 70
        assert self.refused(big) == (95, 100, 0, 90)
        assert d.waiting == ["small"]


class TestOrder:
    def test_a_later_one_may_pass_as_often_as_the_configuration_says(self, driver):
        d = driver(overtake_count=2)
        d.start("a", 60, SUM100)
        d.start("big", 80, SUM100)
        for n in range(2):
            assert d.start(f"s{n}", 10, SUM100).answered
        d.start("s2", 10, SUM100)
        assert d.waiting == ["big", "s2"]

    def test_a_later_one_may_pass_for_so_long(self, driver):
        d = driver(overtake_seconds=30.0)
        d.start("a", 60, SUM100)
        d.start("big", 80, SUM100)
        d.advance(29.0)
        assert d.start("s0", 10, SUM100).answered
        d.advance(1.0)
        d.start("s1", 10, SUM100)
        assert d.waiting == ["big", "s1"]

    def test_the_place_kept_in_one_group_is_not_kept_in_another(self, driver):
        d = driver(overtake_count=0)
        d.start("a", 60, SUM100)
        d.start("big", 80, SUM100)
        assert d.start("other", 10, WiredMaxPolicy()).answered

    def test_the_room_kept_under_the_ceiling_is_kept_from_every_group(self, driver):
        d = driver(ceiling=100, overtake_count=0)
        d.start("a", 60)
        d.start("big", 80)
        d.start("other", 10, WiredMaxPolicy())
        assert d.waiting == ["big", "other"]
        assert d.ledger.explain("other", d.now).blocked_by == "order"

    def test_a_higher_priority_goes_first_and_arrival_decides_among_equals(self, driver):
        d = driver()
        d.start("a", 100, SUM100)
        d.start("low", 100, SUM100)
        d.start("high", 100, SUM100, priority=1)
        d.start("high2", 100, SUM100, priority=1)
        assert d.waiting == ["high", "high2", "low"]

    def test_waiting_raises_the_priority(self, driver):
        d = driver(aging_seconds=10.0)
        d.start("a", 100, SUM100)
        d.start("old", 100, SUM100)
        d.advance(10.5)
        d.start("new", 100, SUM100, priority=1)
        assert d.waiting == ["old", "new"]

    def test_a_full_queue_refuses_with_numbers(self, driver):
        d = driver(max_waiters=1)
        d.start("a", 100, SUM100)
        b = d.start("b", 50, SUM100)
        error = d.start("c", 50, SUM100).error
        assert isinstance(error, QueueFull)
        assert (error.waiting, error.bound) == (1, 1)
        assert not b.answered
        assert d.waiting == ["b"]

    def test_one_that_is_admitted_at_once_needs_no_place_in_the_queue(self, driver):
        d = driver(max_waiters=0)
        assert d.start("a", 60, SUM100).answer == 60
        assert isinstance(d.start("b", 60, SUM100).error, QueueFull)
        assert d.start("c", 40, SUM100).answer == 100

    def test_nor_does_one_whose_priority_lets_it_go_before_those_that_keep_room_free(self, driver):
        d = driver(max_waiters=1, overtake_count=0)
        d.start("a", 60, SUM100)
        d.start("big", 80, SUM100)
        assert d.start("urgent", 10, SUM100, priority=1).answer == 70

    def test_one_that_the_order_keeps_out_of_a_full_queue_is_refused(self, driver):
        d = driver(max_waiters=1, overtake_count=0)
        d.start("a", 60, SUM100)
        d.start("big", 80, SUM100)
        assert isinstance(d.start("small", 10, SUM100).error, QueueFull)


class TestResizing:
    def test_shrinking_lets_a_waiter_in(self, driver):
        d = driver()
        d.start("a", 80, SUM100)
        b = d.start("b", 60, SUM100)
        assert d.resize("a", 40).answer == 100
        assert b.answer == 100

    def test_growing_raises_the_limit_before_it_is_answered(self, driver):
        d = driver()
        d.start("a", 40, SUM100)
        assert d.resize("a", 90).answer == 90
        assert d.written == [40, 90]

    def test_growing_waits_until_there_is_room(self, driver):
        d = driver()
        d.start("a", 40, SUM100)
        d.start("b", 40, SUM100)
        grow = d.resize("a", 70)
        assert not grow.answered
        assert d.ledger.snapshot().tickets[0].wants_size == 70
        assert d.ledger.explain("a", d.now).state == "growing"
        d.end("b")
        assert grow.answered
        assert d.ledger.size_of("a") == 70

    def test_growing_goes_before_new_admissions(self, driver):
        d = driver()
        d.start("a", 40, SUM100)
        d.start("b", 40, SUM100)
        grow = d.resize("a", 90)
        c = d.start("c", 10, SUM100)
        assert not c.answered
        d.end("b")
        assert grow.answered
        assert c.answered

    def test_growers_pass_each_other(self, driver):
        d = driver()
        d.start("a", 40, SUM100)
        d.start("b", 40, SUM100)
        first = d.resize("a", 90)
        assert d.resize("b", 50).answered
        assert not first.answered

    def test_when_every_active_ticket_waits_to_grow_the_last_is_refused(self, driver):
        d = driver(ceiling=90)
        d.start("a", 40, SUM100)
        d.start("b", 40, SUM100)
        first = d.resize("a", 60)
        second = d.resize("b", 55)
        assert not first.answered
        error = second.error
        assert isinstance(error, TicketTooLarge)
        assert (error.need, error.cap, error.pinned_bytes) == (55, 90, 40)
        assert error.largest_possible == 50
        d.end("b")
        assert first.answered

    def test_a_grower_alone_is_refused_and_keeps_no_room_free(self, driver):
        d = driver(ceiling=100)
        d.reserve("r", 30)
        d.start("a", 40)
        assert isinstance(d.resize("a", 80).error, TicketTooLarge)
        assert d.start("small", 30).answered

    def test_a_grower_that_becomes_stuck_frees_its_room_in_the_same_turn(self, driver):
        d = driver(ceiling=100)
        d.reserve("r", 30)
        d.start("a", 30)
        d.start("b", 30)
        d.resize("a", 80)
        kept_out = d.start("small", 10)
        assert not kept_out.answered
        d.end("b")  # now a alone is active, and would wait for r
        assert kept_out.answered
        assert d.ledger.size_of("a") == 30

    def test_a_users_policy_that_cannot_say_how_it_blocks_a_stuck_grower_refuses_it(self, driver):
        def can_admit(baseline, sizes, new):
            return sum(sizes) + new <= 100 if new != 0 else boom()

        policy = Own(can_admit=can_admit)
        d = driver()
        d.start("a", 40, policy)
        d.start("b", 40, policy)
        d.resize("a", 80)
        assert isinstance(d.resize("b", 70).error, PolicyError)

    def test_growing_that_can_never_fit_is_refused_and_the_size_stays(self, driver):
        d = driver()
        d.start("a", 40, SUM100)
        error = d.resize("a", 101).error
        assert isinstance(error, TicketTooLarge)
        assert (error.need, error.largest_possible) == (101, 100)
        assert d.ledger.size_of("a") == 40

    def test_shrinking_is_never_refused(self, driver):
        d = driver(ceiling=100, previous=10)
        d.start("a", 100)  # the baseline becomes known only now
        assert d.ledger.snapshot().baseline == 10
        assert d.resize("a", 95).answered
        assert d.ledger.size_of("a") == 95

    def test_a_reservation_grows_without_raising_the_limit(self, driver):
        d = driver(ceiling=100)
        d.reserve("r", 40)
        assert d.resize("r", 60).answer == 0
        assert d.tried == []
        assert d.start("a", 40).answer == 100

    def test_a_waiting_ticket_takes_its_new_size_and_keeps_its_place(self, driver):
        d = driver()
        d.start("a", 60, SUM100)
        b = d.start("b", 60, SUM100)
        assert d.resize("b", 40).answer == 100
        assert b.answer == 100

    def test_a_waiting_ticket_that_could_never_come_in_so_keeps_its_old_size(self, driver):
        d = driver()
        d.start("a", 60, SUM100)
        b = d.start("b", 60, SUM100)
        assert isinstance(d.resize("b", 101).error, TicketTooLarge)
        d.end("a")
        assert b.answered
        assert d.ledger.size_of("b") == 60

    def test_a_cancelled_resize_keeps_no_room_free(self, driver):
        d = driver()
        d.start("a", 40, SUM100)
        d.start("b", 40, SUM100)
        grow = d.resize("a", 90)
        c = d.start("c", 20, SUM100)
        d.cancel_resize(grow)
        assert c.answered
        assert not grow.answered
        assert "resize_cancelled" in d.kinds
        assert d.ledger.size_of("a") == 40

    def test_a_resize_cancelled_after_it_took_effect_stays_in_effect(self, driver):
        d = driver(deferred=True)
        d.start("a", 40)
        d.outcome()
        grow = d.resize("a", 60)
        d.cancel_resize(grow)
        d.outcome()
        assert not grow.answered
        assert d.ledger.size_of("a") == 60

    def test_a_second_resize_while_one_waits_is_refused(self, driver):
        d = driver()
        d.start("a", 40, SUM100)
        d.start("b", 40, SUM100)
        d.resize("a", 90)
        assert isinstance(d.resize("a", 91).error, TicketInUse)

    def test_a_resize_of_a_ticket_that_neither_runs_nor_waits_is_answered(self, driver):
        assert driver().resize("a", 10).answer == 0

    def test_a_users_policy_that_fails_for_the_new_size_refuses_the_resize(self, driver):
        policy = Own(limit=lambda b, sizes: boom() if sum(sizes) > 50 else sum(sizes))
        d = driver()
        d.start("a", 40, policy)
        assert isinstance(d.resize("a", 60).error, PolicyError)
        assert d.ledger.size_of("a") == 40


class TestPolicies:
    def test_equal_policies_are_one_group(self, driver):
        d = driver()
        d.start("a", 60, WiredSumPolicy(cap=100))
        d.start("b", 60, WiredSumPolicy(cap=100))
        assert d.waiting == ["b"]

    def test_the_limit_is_the_maximum_over_the_groups(self, driver):
        d = driver()
        d.start("a", 60, WiredSumPolicy())
        d.start("b", 50, WiredMaxPolicy())
        d.start("c", 50, WiredFixedPolicy(limit=70))
        assert d.written == [60, 70]

    def test_an_id_with_other_parameters_is_a_conflict_while_a_ticket_of_the_first_lives(
        self, driver
    ):
        d = driver()
        d.start("a", 10, WiredBudgetPolicy(base_bytes=1, id="x"))
        b = d.start("b", 10, WiredBudgetPolicy(base_bytes=2, id="x"))
        assert isinstance(b.error, PolicyConflict)
        d.end("a")
        assert d.start("b", 10, WiredBudgetPolicy(base_bytes=2, id="x")).answer == 12

    def test_or_while_one_waits(self, driver):
        d = driver(ceiling=100)
        d.start("a", 100)
        waiter = d.start("w", 10, WiredBudgetPolicy(base_bytes=1, id="x"))
        assert isinstance(
            d.start("b", 1, WiredBudgetPolicy(base_bytes=2, id="x")).error, PolicyConflict
        )
        d.cancel(waiter)
        assert not isinstance(
            d.start("b", 1, WiredBudgetPolicy(base_bytes=2, id="x")).error, PolicyConflict
        )

    def test_a_users_own_class_with_an_id_conflicts_by_its_attributes(self, driver):
        class Named(Own):
            id = "named"

        d = driver()
        d.start("a", 10, Named(limit=5))
        assert d.start("b", 10, Named(limit=5)).answered
        assert isinstance(d.start("c", 10, Named(limit=6)).error, PolicyConflict)

    def test_a_users_classes_of_one_id_conflict(self, driver):
        class One(Own):
            id = "shared"

        class Two(Own):
            id = "shared"

        d = driver()
        d.start("a", 10, One())
        assert isinstance(d.start("b", 10, Two()).error, PolicyConflict)

    def test_a_policy_without_a_usable_id_is_refused(self, driver):
        class Unhashable(Own):
            id: Any = []  # noqa: RUF012 - just that is the fault

        class Raises(Own):
            @property
            def id(self):
                raise RuntimeError("boom")

        class Awkward:
            def __bool__(self):
                raise ValueError("ambiguous")

            def __eq__(self, other):
                return self

            __hash__ = object.__hash__

        class Incomparable(Own):
            id = "incomparable"
            parameters = property(lambda self: Awkward())

        d = driver()
        assert isinstance(d.start("a", 1, Unhashable()).error, PolicyError)
        assert isinstance(d.start("b", 1, Raises()).error, PolicyError)
        d.start("c", 1, Incomparable())
        assert isinstance(d.start("d", 1, Incomparable()).error, PolicyError)

    @pytest.mark.parametrize("base_bytes", [-1, 1.5, "1", None])
    def test_a_policy_whose_base_bytes_are_no_size_is_refused(self, driver, base_bytes):
        policy = Own()
        policy.base_bytes = base_bytes
        assert isinstance(driver().start("a", 1, policy).error, PolicyError)

    def test_base_bytes_that_change_while_tickets_live_do_not_unbalance_the_book(self, driver):
        policy = Own()
        policy.base_bytes = 10
        d = driver(ceiling=100)
        d.start("a", 50, policy)
        policy.base_bytes = 1000
        d.end("a")
        assert d.start("b", 100).answered

    @pytest.mark.parametrize("answer", [boom, None, "yes", 2, 0.5, [], -1])
    def test_a_policy_whose_can_admit_is_nonsense_refuses_the_ticket(self, driver, answer):
        d = driver()
        d.start("good", 10)
        policy = Own(can_admit=(lambda *_: None) if answer is None else answer)
        error = d.start("a", 1, policy).error
        assert isinstance(error, PolicyError)
        assert d.running == ["good"]

    @pytest.mark.parametrize("answer", [boom, -1, 0.5, "1", True, []])
    def test_a_policy_whose_limit_is_nonsense_refuses_the_ticket_that_asks(self, driver, answer):
        d = driver()
        d.start("good", 10)
        assert isinstance(d.start("a", 1, Own(limit=answer)).error, PolicyError)
        assert d.running == ["good"]
        assert d.limit == 10

    def test_a_policy_that_fails_while_its_ticket_waits_refuses_it_then(self, driver):
        policy = Own(can_admit=lambda b, sizes, new: sum(sizes) + new <= 100)
        d = driver()
        d.start("a", 60, policy)
        b = d.start("b", 60, policy)
        policy.admit_answer = boom
        d.start("other", 1)
        assert isinstance(b.error, PolicyError)
        assert sorted(d.running) == ["a", "other"]

    def test_a_policy_that_fails_when_another_ticket_ends_keeps_its_last_limit(self, driver):
        policy = Own()
        d = driver(shrink_cooldown=0.0, shrink_threshold_ratio=0.0)
        d.start("a", 60, policy)
        d.start("b", 30, policy)
        policy.limit_answer = boom
        assert d.end("b").answer == 90
        assert d.last("policy_failed").error is not None
        policy.limit_answer = None
        d.start("c", 10, policy)
        assert d.limit == 70
        d.end("a")
        d.end("c")
        assert d.limit == 0

    def test_a_policy_that_answers_otherwise_each_time_does_not_write_without_end(self, driver):
        answers = iter(range(1, 10_000))
        d = driver()
        d.start("a", 1, Own(limit=lambda *_: next(answers)))
        assert len(d.tried) == 1

    def test_a_policy_that_takes_its_list_apart_harms_nobody(self, driver):
        def takes_apart(baseline, sizes):
            total = sum(sizes)
            sizes.clear()
            return baseline + total

        d = driver()
        policy = Own(limit=takes_apart)
        d.start("a", 60, policy)
        d.start("b", 30, policy)
        assert d.limit == 90

    def test_a_policy_whose_repr_raises_is_named_by_its_type(self, driver):
        class Mute(Own):
            id = "mute"

            def __repr__(self):
                raise RuntimeError("boom")

        d = driver()
        d.start("a", 10, Mute(limit=5))
        assert isinstance(d.start("b", 10, Mute(limit=6)).error, PolicyConflict)

    def test_a_policy_whose_error_cannot_be_shown_is_named_by_its_type(self, driver):
        class Mute(Exception):
            def __repr__(self):
                raise RuntimeError("boom")

        def raises(*_: object) -> bool:
            raise Mute

        assert isinstance(driver().start("a", 10, Own(can_admit=raises)).error, PolicyError)


class TestBaseline:
    def test_it_is_what_the_first_write_returned(self, driver):
        d = driver(previous=7)
        assert d.start("a", 60).answer == 67
        assert d.written == [60, 67]
        assert d.kinds.count("baseline_captured") == 2
        assert d.end("a").answer == 7
        assert d.start("b", 10).answer == 17

    def test_what_is_at_or_above_the_ceiling_is_a_leftover(self, driver):
        for previous in (100, 120):
            d = driver(ceiling=100, previous=previous)
            assert d.start("a", 60).answer == 60
            assert d.last("foreign_limit_write").desired_limit == previous
            assert d.end("a").answer == 0

    def test_an_override_is_taken_instead(self, driver):
        d = driver(previous=7, baseline_override=20)
        assert d.start("a", 60).answer == 80
        assert d.end("a").answer == 20
        assert d.written == [80, 20]

    def test_an_override_taken_away_later_brings_back_what_was_there_before(self, driver):
        d = driver(previous=7, baseline_override=20)
        d.start("a", 60)
        d.end("a")
        d.configure(baseline_override=None)
        assert d.start("a", 60).answer == 67
        assert d.end("a").answer == 7

    def test_a_backend_that_does_not_tell_leaves_it_at_zero(self, driver):
        d = driver(previous=None)
        d.start("a", 60)
        assert d.end("a").answer == 0

    def test_another_value_later_is_foreign_and_changes_nothing(self, driver):
        d = driver()
        d.start("a", 60)
        d.device = 500
        d.start("b", 10)
        assert d.last("foreign_limit_write").desired_limit == 500
        d.end("a")
        d.end("b")
        assert d.limit == 0

    @pytest.mark.parametrize("policy", [WiredSumPolicy(), WiredBudgetPolicy(base_bytes=0)])
    def test_the_limit_of_an_uncapped_sum_stays_under_the_ceiling_though_it_is_learned_late(
        self, driver, policy
    ):
        d = driver(ceiling=180, previous=100)
        d.together(lambda: d.start("a", 50, policy), lambda: d.start("b", 100, policy))
        assert d.limit == 180

    def test_reservations_alone_leave_the_limit_alone(self, driver):
        d = driver(baseline_override=20)
        d.reserve("r", 60)
        d.end("r")
        assert d.tried == []


class TestWriting:
    def test_a_refused_write_refuses_nobody(self, driver):
        d = driver(refuses_over=100)
        d.start("a", 60)
        b = d.start("b", 60)
        assert b.answer == 60
        failed = d.last("limit_apply_failed")
        assert (failed.desired_limit, failed.applied_limit) == (120, 60)
        assert failed.error is not None

    def test_a_refused_write_is_tried_again_at_growing_intervals_of_at_most_a_minute(self, driver):
        d = driver(refuses_over=100)
        d.start("a", 120)
        moments = [0.0]
        while len(moments) < 12:
            tried = len(d.tried)
            d.advance(d.ledger.deadline - d.now)
            assert len(d.tried) == tried + 1
            moments.append(d.now)
        gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
        assert gaps[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
        assert set(gaps[6:]) == {60.0}
        d.refuses_over = None
        d.advance(60.0)
        assert d.limit == 120
        assert d.ledger.deadline is None

    def test_another_demand_is_tried_at_once_and_begins_again(self, driver):
        d = driver(refuses_over=100)
        d.start("a", 120)
        d.advance(10.0)
        tried = len(d.tried)
        d.start("b", 10)
        assert d.tried[tried:] == [130]
        d.advance(1.0)
        assert d.tried[tried:] == [130, 130]

    def test_a_refused_restore_is_tried_again(self, driver):
        d = driver()
        d.start("a", 60)
        d.refuses_over = -1
        assert d.end("a").answer == 60
        assert "baseline_restored" not in d.kinds
        d.refuses_over = None
        d.advance(1.0)
        assert d.limit == 0
        assert d.kinds[-1] == "baseline_restored"

    def test_a_start_is_answered_with_the_outcome_of_its_own_write(self, driver):
        d = driver(deferred=True)
        a = d.start("a", 10)
        d.outcome()
        assert a.answer == 10
        b = d.start("b", 10)
        c = d.start("c", 10)  # comes while b's is in flight
        d.outcome()
        assert b.answer == 20
        assert not c.answered
        d.start("d", 10)
        d.outcome()
        assert c.answer == 30

    def test_the_refusal_of_its_write_is_an_answer_too(self, driver):
        d = driver(deferred=True)
        a = d.start("a", 10)
        d.start("b", 10)
        d.outcome(error="ValueError: no")
        assert a.answer == 0

    def test_a_baseline_learned_from_its_write_is_waited_for(self, driver):
        d = driver(deferred=True, previous=5)
        a = d.start("a", 10)
        d.outcome()
        assert not a.answered
        d.outcome()
        assert a.answer == 15

    def test_without_a_limit_to_write_the_same_is_decided_and_nothing_written(self, driver):
        d = driver(writes=False, baseline_override=5)
        assert d.start("a", 60).answer == 65
        assert d.end("a").answer == 5
        assert d.tried == []
        assert d.kinds.count("limit_applied") == 2

    def test_mode_off_writes_nothing(self, driver):
        d = driver(wired_mode="off", baseline_override=5)
        assert d.start("a", 60).answer == 5
        assert d.ledger.snapshot().current_limit is None
        assert d.ledger.snapshot().desired_limit == 65
        assert d.end("a").answer == 5
        assert d.tried == []
        assert "limit_computed" in d.kinds
        assert "limit_applied" not in d.kinds
        assert "baseline_restored" not in d.kinds

    def test_mode_off_without_a_limit_to_write_decides_as_ever(self, driver):
        d = driver(wired_mode="off", writes=False)
        assert d.start("a", 60).answer == 60
        assert d.kinds.count("limit_applied") == 1

    def test_the_mode_can_change_while_nothing_is_active(self, driver):
        d = driver()
        d.configure(wired_mode="off")
        d.start("a", 60)
        d.end("a")
        assert d.tried == []
        d.configure(wired_mode="policy")
        d.start("a", 60)
        assert d.tried == [60]

    def test_mode_fit_writes_the_bytes_of_all_tickets_whatever_the_policies_say(self, driver):
        d = driver(wired_mode="fit", baseline_override=5)
        d.reserve("r", 20, WiredMaxPolicy())
        assert d.start("a", 60, WiredFixedPolicy(limit=1000)).answer == 85

    def test_mode_fit_stays_under_the_ceiling(self, driver):
        d = driver(wired_mode="fit", ceiling=100, previous=10)
        d.start("a", 95)
        assert d.limit == 100

    def test_the_limit_is_never_below_the_baseline(self, driver):
        d = driver(baseline_override=50)
        assert d.start("a", 5, WiredFixedPolicy(limit=10)).answer == 50


class TestConfiguring:
    def test_it_is_refused_while_tickets_are_active_or_wait(self, driver):
        d = driver()
        d.start("a", 100, SUM100)
        d.start("b", 100, SUM100)
        error = d.configure(shrink_cooldown=0.0).error
        assert isinstance(error, ManagerBusy)
        assert (error.active, error.waiting) == (1, 1)

    def test_reservations_do_not_hinder_it(self, driver):
        d = driver()
        d.reserve("r", 10)
        assert d.configure(shrink_cooldown=0.0).answered
        assert d.ledger.configuration.shrink_cooldown == 0.0

    def test_a_higher_ceiling_lets_a_reservation_grow_that_waited_for_it(self, driver):
        d = driver(ceiling=100)
        d.reserve("r", 50)
        d.reserve("s", 50)
        grow = d.resize("r", 80)
        assert not grow.answered
        d.configure(ceiling=200)
        assert grow.answered

    def test_a_lower_ceiling_refuses_one_that_waits_and_can_never_grow_now(self, driver):
        d = driver(ceiling=100)
        d.reserve("r", 50)
        d.reserve("s", 50)
        grow = d.resize("r", 80)
        d.configure(ceiling=70)
        assert isinstance(grow.error, TicketTooLarge)

    def test_a_new_override_is_the_baseline_from_then_on(self, driver):
        d = driver()
        d.reserve("r", 10)
        d.configure(baseline_override=30)
        assert d.ledger.snapshot().baseline == 30
        assert d.start("a", 5).answer == 45


class TestClosing:
    def test_everything_in_flight_is_refused_ended_and_restored(self, driver):
        d = driver(deferred=True)
        d.start("a", 60, SUM100)
        d.outcome()
        d.reserve("r", 10, SUM100)
        d.outcome()
        waiter = d.start("w", 60, SUM100)
        grow = d.resize("r", 50)
        granted = d.start("g", 20, WiredMaxPolicy(), priority=5)
        limit_under_way = list(d.under_way)
        d.close()
        assert isinstance(waiter.error, ManagerClosed)
        assert isinstance(grow.error, ManagerClosed)
        assert granted.answered
        assert limit_under_way == []
        d.outcome()
        assert d.ledger.finished
        assert d.running == d.waiting == []
        assert d.limit == 0

    def test_a_granted_start_that_has_not_returned_is_refused(self, driver):
        d = driver(deferred=True)
        a = d.start("a", 60)
        d.close()
        assert isinstance(a.error, ManagerClosed)
        assert not d.ledger.finished
        d.outcome()
        d.outcome()
        assert d.ledger.finished
        assert d.limit == 0

    def test_a_refused_restore_is_tried_twice_more_and_then_left(self, driver):
        d = driver()
        d.start("a", 60)
        d.refuses_over = -1
        d.end("a")
        d.close()
        assert d.tried == [60, 0, 0, 0]
        assert d.ledger.finished

    def test_ends_after_it_are_answered(self, driver):
        d = driver()
        d.start("a", 60)
        _, end, resize = d.together(d.close, lambda: d.end("a"), lambda: d.resize("a", 70))
        assert end.answer == 0
        assert resize.answer == 0


class TestNotes:
    def test_they_are_numbered_like_all_others(self, driver):
        d = driver()
        d.start("a", 60)
        d.send(m.Note("job_finished", job="j", details={"tokens": 3}))
        assert [event.sequence for event in d.events] == list(range(1, len(d.events) + 1))
        assert d.events[-1].job == "j"
        assert d.events[-1].details == {"tokens": 3}
