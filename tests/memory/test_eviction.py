"""Models yield: idle ones to those who wait, busy ones in their turn, and none for nothing."""

from __future__ import annotations

import attrs
import pytest

import wiredactors as wa
from wiredactors.memory import messages as m
from wiredactors.memory.errors import TicketTooLarge
from wiredactors.memory.policies import WiredBudgetPolicy, WiredMemoryPolicy, WiredSumPolicy
from wiredactors.memory.share import Share
from wiredactors.memory.tickets import WiredMemoryTicket
from wiredactors.memory.trial import dry_run

SUM = WiredSumPolicy()
OTHER = WiredBudgetPolicy(base_bytes=0, id="other")


def model(d, ticket_id, size, *, idle=True, loaded=True, policy=SUM, **more):
    """A model's weights, which serves if it came in; a second passes, so that each is used later
    than the one before."""
    reply = d.reserve(ticket_id, size, policy, evictable=True, **more)
    if loaded:
        d.use(ticket_id, in_use=not idle)
    d.advance(1)
    return reply


def cache(d, ticket_id, size, **more):
    d.reserve(ticket_id, size, SUM, reclaimable=True, **more)


def pressures(d):
    return [(e.ticket_id, e.details) for e in d.events if e.kind == "pressure"]


def explain(d, ticket_id):
    return d.ledger.explain(ticket_id, d.now)


class TestIdleModels:
    def test_a_load_asks_the_least_recently_used_and_no_more_than_are_needed(self, driver):
        d = driver(ceiling=100)
        for name in ("a", "b", "c"):
            model(d, name, 30)
        d.use("a", in_use=True)
        d.use("a", in_use=False)
        d.take_events()
        load = model(d, "load", 40, idle=False)
        assert d.asked == ["b"]
        assert d.kinds == ["admission_wait", "pressure", "reclaim_requested"]
        assert pressures(d) == [("load", {"needed_bytes": 30, "asked": ["b"]})]
        assert not load.answered, "it comes in when the bytes are free"
        d.advance(120)
        assert d.asked == ["b"], "once is enough"
        d.end("b")
        assert load.answered

    def test_all_or_nothing_so_that_it_fits_beside_the_work(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 30)
        d.start("work", 60)
        model(d, "load", 50, idle=False)
        assert d.asked == [], "a alone is not enough while the work runs"
        d.end("work")
        assert d.waiting == []
        assert d.asked == [], "and is not needed now"

    def test_one_in_use_is_never_asked_where_waiting_for_work_would_do(self, driver):
        d = driver(ceiling=100)
        model(d, "busy", 30, idle=False)
        model(d, "idle", 30)
        d.start("work", 40, requires=("busy",))
        model(d, "load", 60, idle=False)
        d.advance(1000)
        assert d.asked == [], "with the work ended it fits beside busy"
        d.end("work")
        assert d.asked == ["idle"]

    def test_nothing_is_asked_for_what_would_not_fit_all_the_same(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 30)
        d.reserve("stays", 50)
        load = model(d, "load", 60, idle=False)
        d.advance(1000)
        assert d.asked == []
        assert not load.answered
        assert pressures(d) == [("load", {"needed_bytes": 40, "asked": []})]

    def test_what_never_fits_is_refused_and_nobody_asked(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 30)
        load = model(d, "load", 101, idle=False)
        assert isinstance(load.error, TicketTooLarge)
        assert d.asked == []

    def test_those_that_it_stands_on_and_pinned_ones_are_not_asked(self, driver):
        d = driver(ceiling=100)
        model(d, "pinned", 20, pinned=True)
        model(d, "own", 20)
        model(d, "other", 40)
        d.start("job", 40, requires=("own",))
        assert d.asked == ["other"]

    def test_caches_yield_before_models(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 40)
        cache(d, "c", 30)
        model(d, "load", 50, idle=False)
        assert d.asked == ["c"]

    def test_where_caches_do_not_suffice_models_follow_them(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 40)
        cache(d, "c", 30)
        model(d, "load", 65, idle=False)
        assert pressures(d) == [("load", {"needed_bytes": 35, "asked": ["c", "a"]})]

    def test_a_job_that_waits_for_other_jobs_evicts_nobody(self, driver):
        d = driver(ceiling=100)
        model(d, "idle", 30)
        d.start("work", 60)
        d.start("job", 40)
        d.advance(1000)
        assert d.asked == []
        assert "pressure" not in d.kinds

    def test_a_job_that_needs_more_than_work_can_free_does(self, driver):
        d = driver(ceiling=100)
        model(d, "idle", 30)
        job = d.start("job", 80)
        assert d.asked == ["idle"]
        d.end("idle")
        assert job.answered

    def test_neither_does_a_cache_that_wants_in(self, driver):
        d = driver(ceiling=100)
        model(d, "idle", 30)
        d.start("work", 60)
        cache(d, "c", 20)
        assert d.asked == []

    def test_a_reservation_that_grows_asks_them_and_not_itself(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 30)
        model(d, "b", 30)
        d.start("work", 30)
        grown = d.resize("a", 50)
        assert d.asked == ["b"]
        d.end("b")
        assert grown.answered

    def test_what_is_asked_for_one_the_next_cannot_count_on(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 50)
        model(d, "b", 50, policy=OTHER)
        model(d, "first", 50, idle=False)
        model(d, "second", 50, idle=False, policy=OTHER)
        assert pressures(d) == [
            ("first", {"needed_bytes": 50, "asked": ["a"]}),
            ("second", {"needed_bytes": 50, "asked": ["b"]}),
        ]

    def test_a_users_own_policy_is_asked_what_it_would_say(self, driver):
        policy = TwoAtATime()
        d = driver(ceiling=1000)
        model(d, "a", 10, policy=policy)
        model(d, "b", 10, policy=policy)
        job = d.start("job", 10, policy)
        assert d.asked == ["a"], "no work of its would make place for it"
        d.end("a")
        assert job.answered

    def test_room_that_is_kept_in_its_group_is_made_though_the_ceiling_is_full(self, driver):
        d = driver(ceiling=100, overtake_seconds=10.0)
        group = WiredSumPolicy(cap=50)
        model(d, "idle", 30, policy=group)
        d.start("filler", 70, OTHER)
        model(d, "load", 40, policy=group, idle=False)
        assert d.asked == [], "not yet: it may be in vain"
        d.advance(10)
        d.start("another", 100, OTHER)
        assert d.asked == ["idle"]

    def test_the_last_to_ask_for_more_is_not_refused_where_an_idle_model_would_yield(self, driver):
        d = driver(ceiling=100)
        model(d, "idle", 40)
        d.start("job", 40)
        grown = d.resize("job", 80)
        assert d.asked == ["idle"]
        d.end("idle")
        assert grown.answered


@attrs.frozen
class TwoAtATime(WiredMemoryPolicy):
    def limit(self, baseline, active_sizes):
        return baseline + sum(active_sizes)

    def can_admit(self, baseline, active_sizes, new_size):
        return len(active_sizes) < 2


@attrs.frozen
class AtMostFour(TwoAtATime):
    def can_admit(self, baseline, active_sizes, new_size):
        return len(active_sizes) < 4


class TestUse:
    def test_it_is_in_use_from_its_start_and_says_so_when_that_changes(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 30, loaded=False)
        assert ticket(d, "a").in_use
        assert ticket(d, "a").used_at == 0.0
        d.take_events()
        d.use("a", in_use=True)
        assert [(e.kind, e.details) for e in d.events] == [("ticket_used", {"in_use": True})]
        assert ticket(d, "a").used_at == 1.0, "it serves"
        d.take_events()
        d.advance(1)
        d.use("a", in_use=True)
        assert d.events == [], "nothing new"
        d.use("a", in_use=False)
        assert [(e.kind, e.details) for e in d.events] == [("ticket_used", {"in_use": False})]
        assert not ticket(d, "a").in_use
        assert ticket(d, "a").used_at == 2.0

    def test_both_put_it_last_of_those_that_yield(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 40)
        model(d, "b", 40)
        d.use("a", in_use=True)
        d.use("a", in_use=False)
        model(d, "load", 30, idle=False)
        assert d.asked == ["b"]

    def test_a_touch_puts_it_last_and_leaves_it_idle(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 40)
        model(d, "b", 40)
        d.touch("a")
        assert not ticket(d, "a").in_use
        model(d, "load", 30, idle=False)
        assert d.asked == ["b"]

    def test_one_that_becomes_idle_is_asked_by_those_who_wait_already(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 60, idle=False)
        model(d, "load", 50, idle=False)
        assert d.asked == []
        d.use("a", in_use=False)
        assert d.asked == ["a"]

    def test_it_means_nothing_to_others(self, driver):
        d = driver(ceiling=100)
        d.reserve("r", 10)
        d.start("job", 10)
        d.take_events()
        d.use("r", in_use=False)
        d.use("job", in_use=False)
        d.use("nobody", in_use=False)
        assert d.events == []

    def test_of_a_cache_it_is_a_touch(self, driver):
        d = driver(ceiling=100)
        cache(d, "c", 10)
        d.advance(1)
        d.use("c", in_use=True)
        assert ticket(d, "c").used_at == 1.0
        assert not ticket(d, "c").in_use

    def test_one_that_waits_is_not_in_use(self, driver):
        d = driver(ceiling=100)
        d.start("work", 90)
        model(d, "a", 30, idle=False)
        [waiter] = d.ledger.snapshot().waiters
        assert (waiter.evictable, waiter.in_use, waiter.used_at) == (True, False, None)


def ticket(d, ticket_id):
    return next(t for t in d.ledger.snapshot().tickets if t.ticket_id == ticket_id)


class TestTheRate:
    def test_they_keep_even_distances(self, driver):
        d = driver(ceiling=60, switches_per_minute=2)
        model(d, "a", 30)
        model(d, "b", 30)
        d.now = 11.0
        d.reserve("first", 30, SUM, evictable=True)
        d.end("a")
        d.advance(5)
        d.reserve("second", 30, SUM, evictable=True)
        assert d.ledger.deadline == 41.0
        d.advance(24.9)
        assert d.asked == ["a"]
        d.advance(0.1)
        assert d.asked == ["a", "b"]

    def test_two_in_one_turn_are_two(self, driver):
        d = driver(ceiling=60)
        model(d, "a", 30)
        model(d, "b", 30, policy=OTHER)
        d.together(
            lambda: d.reserve("first", 30, SUM, evictable=True),
            lambda: d.reserve("second", 30, OTHER, evictable=True),
        )
        assert d.asked == ["a"]
        d.advance(1)
        assert d.asked == ["a", "b"]

    def test_caches_are_not_counted(self, driver):
        d = driver(ceiling=100, switches_per_minute=1)
        for name in ("a", "b", "c"):
            cache(d, name, 30)
        d.start("job", 40)
        d.end("a")
        d.start("job2", 30)
        assert d.asked == ["a", "b"]

    def test_several_models_for_one_are_one_switch(self, driver):
        d = driver(ceiling=90)
        for name in ("a", "b", "c"):
            model(d, name, 30)
        load = model(d, "load", 60, idle=False)
        assert d.asked == ["a", "b"], "and a second has passed"
        d.end("a")
        d.end("b")
        assert load.answered
        model(d, "next", 30, idle=False)
        assert d.asked == ["a", "b", "c"]

    def test_one_that_must_wait_for_it_asks_no_caches_meanwhile(self, driver):
        d = driver(ceiling=100, switches_per_minute=1)
        model(d, "a", 60)
        model(d, "b", 30)
        load = model(d, "first", 70, idle=False)
        d.end("a")
        assert load.answered
        d.use("first", in_use=False)
        d.asked.clear()
        d.end("b")
        cache(d, "c", 20)
        model(d, "second", 90, idle=False)
        assert d.asked == []
        d.advance(60)
        assert d.asked == ["c", "first"]

    def test_nobody_looks_again_once_nobody_waits(self, driver):
        d = driver(ceiling=60, switches_per_minute=1)
        model(d, "a", 30)
        model(d, "b", 30)
        model(d, "first", 30, idle=False)
        d.end("a")
        model(d, "second", 30, idle=False)
        assert d.ledger.deadline is not None
        d.end("second")
        assert d.ledger.deadline is None

    def test_it_can_be_changed(self, driver):
        d = driver(ceiling=60, switches_per_minute=1)
        model(d, "a", 30)
        model(d, "b", 30)
        model(d, "first", 30, idle=False)
        d.end("a")
        d.configure(60, switches_per_minute=20, turn_seconds=5.0)
        d.reserve("second", 30, SUM, evictable=True)
        assert d.ledger.deadline == 5.0, "3 s after the last"
        d.advance(2)
        assert d.asked == ["a", "b"]


class TestBusyModels:
    def test_one_in_use_is_asked_when_the_waiter_has_had_its_turn_seconds(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 60, idle=False)
        d.start("work", 10, requires=("a",))
        load = model(d, "load", 50, idle=False)
        assert d.asked == []
        assert d.ledger.deadline == 31.0
        d.advance(28.9)
        assert d.asked == []
        d.take_events()
        d.advance(0.1)
        assert d.asked == ["a"]
        assert pressures(d) == [("load", {"needed_bytes": 10, "asked": ["a"]})]
        d.end("work")
        d.end("a")
        assert load.answered

    def test_once_it_is_in_use_nothing_is_kept_for_those_that_it_must_go_for(self, driver):
        d = driver(ceiling=100, overtake_seconds=5.0)
        model(d, "a", 40)
        d.start("filler", 40)
        model(d, "load", 70)
        d.advance(5)
        work = d.start("work", 10, OTHER)
        assert not work.answered, "it is kept for load"
        d.use("a", in_use=True)
        assert work.answered

    def test_it_may_be_at_once(self, driver):
        d = driver(ceiling=100, turn_seconds=0.0)
        model(d, "a", 60, idle=False)
        model(d, "load", 50, idle=False)
        assert d.asked == ["a"]

    def test_idle_ones_follow_when_it_is_enough_with_them(self, driver):
        d = driver(ceiling=100)
        model(d, "busy", 50, idle=False)
        d.start("work", 10, requires=("busy",))
        model(d, "idle", 30)
        load = model(d, "load", 90, idle=False)
        d.advance(30)
        assert d.asked == ["busy"]
        d.advance(1)
        d.end("work")
        assert d.asked == ["busy"], "it drains yet"
        d.end("busy")
        assert d.asked == ["busy", "idle"]
        d.end("idle")
        assert load.answered

    def test_all_or_nothing(self, driver):
        d = driver(ceiling=100)
        model(d, "busy", 50, idle=False)
        d.reserve("stays", 40)
        model(d, "load", 70, idle=False)
        d.advance(1000)
        assert d.asked == []

    def test_while_one_drains_no_other_is_asked_for_the_same(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 40, idle=False)
        model(d, "b", 40, idle=False)
        d.start("work", 10, requires=("a",))
        d.start("more work", 10, requires=("b",))
        load = model(d, "load", 50, idle=False)
        d.advance(30)
        assert d.asked == ["a"]
        d.resize("a", 5)
        d.resize("b", 60)
        d.advance(100)
        assert d.asked == ["a"], "it has not ended, though it will not be enough now"
        d.end("a")
        assert d.asked == ["a", "b"]
        d.end("b")
        d.end("work")
        d.end("more work")
        assert load.answered

    def test_idle_ones_that_it_counts_on_are_kept_for_it(self, driver):
        d = driver(ceiling=100)
        model(d, "busy", 50, idle=False)
        d.start("work", 10, requires=("busy",))
        model(d, "idle", 30)
        model(d, "load", 90, idle=False)
        d.advance(31)
        d.reserve("other", 30, OTHER, evictable=True)
        assert d.asked == ["busy"], "what idle frees is for load"

    def test_work_that_waits_behind_on_a_stalled_model_does_not_wedge(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 50, idle=False)
        model(d, "b", 50, idle=False)
        a = d.start("job of a", 20, requires=("a",))
        assert d.asked == [], "nothing says that b is stalled"
        d.start("job of b", 20, requires=("b",))
        assert d.asked == ["b"], "nothing would ever end by itself"
        d.end("job of b")
        d.end("b")
        assert a.answered

    def test_one_on_which_work_runs_is_not_stalled(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 50, idle=False)
        model(d, "b", 40, idle=False)
        d.start("runs on b", 10, requires=("b",))
        d.start("job of a", 20, requires=("a",))
        d.start("job of b", 20, requires=("b",))
        assert d.asked == []
        d.advance(30)
        assert d.asked == ["b"], "after its turn"

    def test_a_kept_cache_does_not_count_as_work(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 50, idle=False)
        model(d, "b", 45, idle=False)
        cache(d, "kept", 5, requires=("b",))
        d.start("job of a", 20, requires=("a",))
        d.start("job of b", 20, requires=("b",))
        assert d.asked == ["b"]

    def test_one_whose_work_waits_before_is_not_stalled(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 60, idle=False)
        model(d, "b", 40, idle=False)
        d.start("job of b", 20, requires=("b",), priority=1)
        d.start("job of a", 10, requires=("a",))
        assert d.asked == ["a"], "a is in the way of the first; b is not in that of the second"

    def test_a_model_that_has_just_come_in_has_its_turn_first(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 60, idle=False)
        model(d, "b", 50, idle=False)
        model(d, "c", 60, idle=False)
        d.advance(50)
        assert d.asked == ["a"]
        d.end("a")
        assert d.running == ["b"], "at 53 s"
        why = explain(d, "c")
        assert (why.limited_by, why.limited_until) == ("turn_seconds", None)
        assert why.would_yield == ("b",)
        sentence = "b is in use: it is asked to finish once it has served 30 s (turn_seconds)"
        assert f"{sentence};" in why.reason
        assert d.ledger.deadline is None
        d.advance(100)
        assert d.asked == ["a"], "it is being loaded yet"
        d.use("b", in_use=True)
        why = explain(d, "c")
        assert (why.limited_by, why.limited_until) == ("turn_seconds", 183.0)
        assert f"{sentence}, at 183.0 s" in why.reason
        d.advance(29)
        assert d.asked == ["a"]
        d.advance(1)
        assert d.asked == ["a", "b"]

    def test_work_that_waited_for_its_model_stands_as_if_it_had_waited_here(self, driver):
        d = driver(ceiling=100)
        model(d, "b", 50, idle=False)
        d.start("work of b", 40, requires=("b",))
        d.advance(20)
        model(d, "c", 90, idle=False)
        d.advance(20)
        d.start("late", 20, requires=("b",))
        d.start("early", 20, requires=("b",), since=10.0)
        d.start("earlier", 20, requires=("b",), since=5.0)
        assert d.waiting == ["earlier", "early", "c", "late"]
        assert explain(d, "early").since == 10.0
        assert d.last("admission_wait").details["since"] == 5.0

    def test_nobody_has_waited_since_a_time_to_come(self, driver):
        d = driver(ceiling=10)
        d.start("all", 10)
        d.start("first", 5)
        d.start("second", 5, since=1000.0)
        assert d.waiting == ["first", "second"]
        assert "since" not in d.last("admission_wait").details

    def test_one_that_went_for_another_stands_behind_it_however_long_it_waits(self, driver):
        d = driver(ceiling=100, turn_seconds=5.0, overtake_seconds=5.0)
        model(d, "a", 60)
        d.use("a", in_use=True)
        d.start("work", 35)
        d.advance(10)
        d.reserve("b", 70, SUM, evictable=True)
        d.advance(5)
        assert d.asked == ["a"]
        d.end("a")
        d.reserve("a", 40, SUM, evictable=True, since=0.0, priority=3)
        assert d.waiting == ["b", "a"]
        assert d.last("admission_wait").priority == 0

    def test_meanwhile_work_of_others_takes_the_room_that_is_free(self, driver):
        d = driver(ceiling=100, overtake_seconds=5.0)
        model(d, "a", 60, idle=False)
        d.start("work", 10, requires=("a",))
        load = model(d, "load", 50, idle=False)
        d.advance(28.5)
        assert d.start("more work", 10, requires=("a",)).answered, "a has had its turn"
        d.advance(0.5)
        assert d.asked == ["a"]
        assert not d.start("late work", 10, requires=("a",)).answered, "now it would be in the way"
        for job in ("work", "more work", "late work", "a"):
            d.end(job)
        assert load.answered

    def test_without_turn_seconds_a_second_is_left_to_it(self, driver):
        d = driver(ceiling=100, turn_seconds=0.0)
        model(d, "a", 60)
        model(d, "b", 60, idle=False)
        d.reserve("c", 60, SUM, evictable=True)
        d.end("a")
        d.advance(10)
        d.use("b", in_use=True)
        assert d.asked == ["a"]
        d.advance(0.9)
        assert d.asked == ["a"]
        d.advance(0.1)
        assert d.asked == ["a", "b"]

    def test_it_is_a_switch_like_any_other(self, driver):
        d = driver(ceiling=100, switches_per_minute=1, turn_seconds=5.0)
        model(d, "a", 50)
        model(d, "b", 50, idle=False)
        load = model(d, "load", 40, idle=False)
        d.end("a")
        assert load.answered
        model(d, "second", 60, idle=False)
        d.advance(57)
        assert d.asked == ["a"]
        d.advance(1)
        assert d.asked == ["a", "b"]


class TestLoadsThatGrow:
    """Models that turn out larger than planned while they are loaded."""

    def test_of_loads_that_all_wait_to_grow_the_last_to_ask_is_refused(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 50, loaded=False)
        model(d, "b", 50, loaded=False)
        first, last = d.resize("a", 65), d.resize("b", 65)
        assert not first.answered
        assert isinstance(last.error, TicketTooLarge)
        assert last.error.largest_possible == 50
        d.end("b")
        assert first.answer is not None

    def test_none_is_while_another_is_being_loaded(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 50, loaded=False)
        model(d, "b", 30, loaded=False)
        model(d, "c", 20, loaded=False)
        first, last = d.resize("a", 65), d.resize("b", 45)
        assert not last.answered
        d.use("c", in_use=True)
        assert not last.answered, "c serves now, and goes when it has had its turn"
        d.pin("c", True)
        assert not first.answered
        assert isinstance(last.error, TicketTooLarge)

    def test_nor_while_work_goes_on(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 60, loaded=False)
        d.start("work", 40)
        grown = d.resize("a", 70)
        assert not grown.answered
        d.end("work")
        assert grown.answer is not None

    def test_nor_where_an_idle_model_makes_room(self, driver):
        d = driver(ceiling=100)
        model(d, "idle", 20)
        model(d, "a", 80, loaded=False)
        grown = d.resize("a", 90)
        assert not grown.answered
        assert d.asked == ["idle"]
        d.end("idle")
        assert grown.answer is not None

    def test_a_load_and_a_job_that_wait_for_each_other(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 50, loaded=False)
        d.start("job", 50)
        first, last = d.resize("a", 60), d.resize("job", 60)
        assert not first.answered
        assert isinstance(last.error, TicketTooLarge)

    def test_one_that_only_others_of_the_machine_keep_out_waits(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 50, loaded=False)
        d.ledger._book.excess = 45
        grown = d.resize("a", 60)
        assert not grown.answered
        d.ledger._book.excess = 0
        d.start("any", 1)
        assert grown.answer is not None


class TestServing:
    """The turn of a model counts from when it serves, not from when it came in."""

    def test_one_that_is_loaded_yet_is_not_asked_though_it_would_be_in_its_turn(self, driver):
        d = driver(ceiling=100, turn_seconds=0.0)
        model(d, "a", 60, loaded=False)
        model(d, "load", 50)
        d.advance(1000)
        assert d.asked == []
        assert d.ledger.deadline is None
        assert explain(d, "load").limited_until is None
        d.use("a", in_use=True)
        assert d.ledger.deadline == d.now + 1.0
        d.advance(1)
        assert d.asked == ["a"]

    def test_once_it_is_idle_it_has_served(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 60, loaded=False)
        model(d, "load", 50)
        d.use("a", in_use=False)
        assert d.asked == ["a"]

    def test_work_that_follows_other_work_begins_no_turn(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 60, idle=False)
        model(d, "load", 50)
        d.advance(18)
        d.together(lambda: d.use("a", in_use=False), lambda: d.use("a", in_use=True))
        assert d.ledger.deadline == 31.0, "not 50 s"
        d.advance(11)
        assert d.asked == ["a"]

    def test_a_touch_does_not_make_it_serve(self, driver):
        d = driver(ceiling=100, turn_seconds=0.0)
        model(d, "a", 60, loaded=False)
        d.touch("a")
        model(d, "load", 50)
        d.advance(100)
        assert d.asked == []

    def test_one_that_is_loaded_yet_is_not_stalled(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 50, idle=False)
        model(d, "b", 50, loaded=False)
        d.start("job of a", 20, requires=("a",))
        d.start("job of b", 20, requires=("b",))
        assert d.asked == []
        d.use("b", in_use=True)
        assert d.asked == ["b"]


def crowd(driver):
    """Two models, of which one has been asked to go for a third."""
    d = driver(ceiling=100)
    model(d, "a", 20)
    model(d, "b", 30)
    d.reserve("stays", 20)
    d.advance(30)
    model(d, "load", 45)
    assert d.asked == ["a"]
    return d


class TestThoseThatGoWithTheirModel:
    def test_they_make_no_other_go(self, driver):
        d = crowd(driver)
        d.start("job of a", 35, OTHER, requires=("a",))
        assert d.waiting == ["load", "job of a"]
        d.advance(10)
        assert d.asked == ["a"]

    def test_others_do(self, driver):
        d = crowd(driver)
        d.start("job", 35, OTHER)
        d.advance(10)
        assert d.asked == ["a", "b"]

    def test_nothing_is_kept_for_them(self, driver):
        d = driver(ceiling=100, overtake_seconds=10.0)
        group = WiredSumPolicy(cap=60)
        model(d, "a", 40, policy=group)
        d.start("filler", 40, OTHER)
        d.start("job of a", 30, OTHER, requires=("a",))
        model(d, "load", 30, policy=group)
        assert d.asked == ["a"]
        d.advance(10)
        assert d.start("other", 20, OTHER).answered

    def test_what_runs_on_one_that_drains_and_wants_to_grow_has_its_room(self, driver):
        d = driver(ceiling=100, turn_seconds=0.0)
        model(d, "a", 40, idle=False)
        d.start("job of a", 40, requires=("a",))
        cache(d, "c", 20)
        load = model(d, "load", 70)
        assert d.asked == ["a"]
        grown = d.resize("job of a", 60)
        assert d.asked == ["a", "c"], "a goes when the job has ended"
        d.end("c")
        assert grown.answered
        d.end("job of a")
        d.end("a")
        assert load.answered

    def test_when_it_is_asked_no_more_they_wait_for_themselves(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 20)
        model(d, "b", 30)
        load = model(d, "load", 60)
        d.start("job of a", 70, requires=("a",))
        d.advance(10)
        assert d.asked == ["a"]
        d.cancel(load)
        d.pin("a", True)
        assert d.asked == ["a", "b"]


class TestComingBack:
    """A model that went for others does not come back before them."""

    def test_it_stands_behind_those_it_went_for(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 40, priority=5)
        model(d, "b", 40)
        load = model(d, "load", 70, priority=1)
        model(d, "later", 90)
        assert d.asked == ["a", "b"]
        d.end("a")
        again = model(d, "a", 40, priority=5)
        assert d.waiting == ["load", "a", "later"]
        assert d.last("admission_wait").priority == 1
        assert d.ledger.snapshot().waiters[1].priority == 1
        assert not again.answered, "though it would fit"
        why = explain(d, "a")
        assert (why.blocked_by, why.kept_for) == ("order", "load")
        assert "but kept for load, which waits before it" in why.reason
        d.end("b")
        assert load.answered
        assert d.asked == ["a", "b"], "and neither went in vain"

    def test_others_behind_it_pass_both(self, driver):
        d = driver(ceiling=100)
        for policy in (SUM, AtMostFour()):
            model(d, f"a of {policy.id}", 40, policy=policy)
            model(d, f"b of {policy.id}", 40, policy=policy)
            load = model(d, f"load of {policy.id}", 70, policy=policy)
            d.end(f"a of {policy.id}")
            model(d, f"a of {policy.id}", 40, policy=policy)
            assert d.start("job", 50, policy).answered
            assert d.waiting == [f"load of {policy.id}", f"a of {policy.id}"]
            d.end("job")
            d.end(f"b of {policy.id}")
            assert load.answered
            for ticket_id in [*d.waiting, *d.running]:
                d.end(ticket_id)

    def test_its_own_is_no_more_than_it_is(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 40, priority=-1)
        model(d, "b", 40)
        model(d, "load", 70, priority=3)
        d.end("a")
        model(d, "a", 40, priority=-1)
        assert d.last("admission_wait").priority == -1

    def test_after_them_it_has_its_own_again(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 40, priority=5)
        model(d, "b", 40)
        load = model(d, "load", 70)
        d.end("a")
        d.end("b")
        assert load.answered
        model(d, "a", 40, priority=5)
        assert d.last("admission_wait").priority == 5

    def test_those_who_grow_count_too(self, driver):
        d = driver(ceiling=100)
        d.reserve("workspace", 10, OTHER)
        model(d, "a", 30, priority=5, policy=WiredSumPolicy(cap=60))
        model(d, "b", 30)
        d.resize("workspace", 90)
        assert d.asked == ["a", "b"]
        d.end("a")
        model(d, "a", 30, priority=5)
        assert d.last("admission_wait").priority == 0

    def test_one_that_drains_and_grows_itself_has_its_room(self, driver):
        d = driver(ceiling=100, turn_seconds=0.0)
        d.reserve("workspace", 10)
        model(d, "a", 60, idle=False)
        d.resize("workspace", 80)
        d.advance(1)
        assert d.asked == ["a"]
        assert d.resize("a", 70).answered

    def test_others_and_caches_keep_theirs(self, driver):
        d = driver(ceiling=100)
        cache(d, "c", 40)
        model(d, "b", 40)
        model(d, "load", 70)
        assert d.asked == ["c", "b"]
        d.end("c")
        cache(d, "c", 90, priority=5)
        assert d.last("admission_wait").priority == 5
        d.start("job", 90, priority=4)
        assert d.last("admission_wait").priority == 4

    def test_a_dry_run_knows_of_it(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 40, priority=5)
        model(d, "b", 40)
        model(d, "load", 70)
        d.end("a")
        again = WiredMemoryTicket(40, SUM, "reservation", evictable=True, priority=5, id="a")
        [found] = dry_run(d.ledger, [again], d.now).tickets
        assert (found.outcome, found.behind) == ("waits", ("load",))


class TestPinning:
    def test_a_live_one_is_not_asked_any_more_until_it_is_unpinned(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 40)
        model(d, "b", 40)
        d.take_events()
        d.pin("a", True)
        [event] = d.events
        assert (event.kind, event.ticket_id, event.details) == (
            "ticket_pinned",
            "a",
            {"pinned": True},
        )
        assert ticket(d, "a").pinned
        model(d, "load", 50, idle=False)
        assert d.asked == ["b"]
        d.pin("a", True)
        assert d.kinds.count("ticket_pinned") == 1
        d.end("b")
        model(d, "second", 60, idle=False)
        assert d.asked == ["b"]
        d.end("load")

    def test_unpinned_it_yields_to_those_who_wait(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 40, pinned=True)
        d.reserve("b", 10)
        model(d, "load", 60, idle=False)
        assert d.asked == []
        d.pin("a", False)
        assert d.asked == ["a"]

    def test_those_who_become_impossible_are_refused(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 40, idle=False)
        load = model(d, "load", 70, idle=False)
        assert not load.answered
        d.pin("a", True)
        assert isinstance(load.error, TicketTooLarge)
        assert load.error.pinned_bytes == 40

    def test_one_that_was_asked_and_is_pinned_is_asked_no_more(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 40)
        model(d, "b", 40)
        model(d, "load", 50, idle=False)
        assert d.asked == ["a"]
        d.pin("a", True)
        assert not ticket(d, "a").asked
        assert d.ledger.is_asked("a") is False
        assert d.asked == ["a", "b"]

    def test_one_that_waits_is_pinned_when_it_comes_in(self, driver):
        d = driver(ceiling=100)
        d.start("work", 90)
        model(d, "a", 40, idle=False)
        load = d.reserve("load", 70)
        d.pin("a", True)
        assert not load.answered
        assert d.ledger.snapshot().waiters[0].pinned
        d.end("work")
        assert ticket(d, "a").pinned
        assert isinstance(load.error, TicketTooLarge)

    def test_a_cache_or_one_that_is_not_there_is_left_as_it_is(self, driver):
        d = driver(ceiling=100)
        cache(d, "c", 10)
        d.take_events()
        d.pin("c", True)
        d.pin("nobody", True)
        assert d.events == []


class World:
    """A workspace and models that share it, resized by its owner as they come and go."""

    def __init__(self, d, workspace=0):
        self.d = d
        self.workspace = WiredMemoryTicket(0, SUM, "reservation", id="workspace")
        self.sharers: dict[str, tuple[int, int]] = {}
        d.reserve("workspace", workspace)

    def load(self, name, weights, share, margin=0, *, idle=True, **more):
        size = weights + max(0, share - self._held_once()) + margin
        reply = self.ask(name, size, share, margin, **more)
        assert reply.answered
        self.sharers[name] = share, margin
        self.fit()
        self.d.resize(name, weights)
        self.d.use(name, in_use=not idle)
        self.d.advance(1)

    def ask(self, name, size, share, margin=0, **more):
        part = Share(self.workspace, share, margin)
        return self.d.reserve(name, size, SUM, evictable=True, share=part, **more)

    def go(self, name):
        self.d.end(name)
        del self.sharers[name]

    def fit(self):
        self.d.resize("workspace", self._held_once() + sum(m for _, m in self.sharers.values()))

    def _held_once(self):
        return max((share for share, _ in self.sharers.values()), default=0)


class TestShares:
    def test_one_with_a_share_stands_on_it(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("a", 20, 10, 2)
        a = ticket(d, "a")
        assert a.requires == ("workspace",)
        assert (a.shares, a.share_size, a.share_margin) == ("workspace", 10, 2)
        assert ticket(d, "workspace").size == 12

    def test_what_the_workspace_shrinks_by_counts(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("big", 30, 40, 5)
        world.load("small", 10, 5, 1)
        load = world.ask("load", 50, 10)
        assert d.asked == ["big"], "30 of it and 35 of the workspace"
        world.go("big")
        d.advance(1)
        assert not load.answered
        assert d.asked == ["big"], "the workspace is about to shrink"
        world.sharers["load"] = 10, 0
        world.fit()
        assert load.answered

    def test_a_share_that_others_want_too_does_not_come_free(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("a", 30, 40)
        world.load("b", 10, 40)
        assert not world.ask("load", 40, 10).answered
        assert d.asked == ["a"], "30 of it: enough with the 20 that are free"
        world.go("a")
        d.asked.clear()
        d.advance(1)
        world.ask("second", 41, 10)
        assert d.asked == ["b"]

    def test_one_that_waits_keeps_what_it_wants_of_it(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("a", 30, 40)
        world.ask("load", 65, 40)
        assert d.asked == [], "beside its own 40 nothing makes room for 65"

    def test_all_that_go_are_reckoned_together(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("a", 20, 40)
        world.load("b", 20, 40)
        world.ask("load", 95, 5)
        assert d.asked == ["a", "b"]
        world.go("a")
        world.go("b")
        d.resize("workspace", 5)
        assert d.waiting == []

    def test_the_second_plan_does_not_count_it_again(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("a", 20, 40)
        world.load("b", 20, 40)
        world.load("c", 10, 0)
        world.ask("first", 80, 5)
        assert d.asked == ["a", "b"]
        d.advance(1)
        d.reserve("second", 20, OTHER, evictable=True)
        assert d.asked == ["a", "b"], "what they all shrink by is for the first"

    def test_a_model_in_use_frees_its_share_when_it_is_drained(self, driver):
        d = driver(ceiling=100, turn_seconds=0.0)
        world = World(d)
        world.load("big", 20, 60, idle=False)
        world.ask("load", 80, 10)
        assert d.asked == ["big"]

    def test_the_last_to_ask_for_more_is_not_refused_while_it_is_about_to_shrink(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("a", 20, 40)
        world.load("b", 10, 10)
        d.start("job", 30)
        world.go("a")
        grown = d.resize("job", 60)
        assert not grown.answered
        world.fit()
        assert grown.answer is not None
        assert d.asked == []

    def test_what_it_is_about_to_shrink_by_is_for_the_first_that_waits(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("a", 20, 40)
        world.load("b", 10, 10)
        d.start("job", 30)
        world.go("a")
        first = d.reserve("first", 30, OTHER)
        second = d.reserve("second", 30, SUM)
        assert not first.answered
        assert d.asked == ["b"], "for the second"
        world.go("b")
        world.fit()
        assert first.answered
        assert second.answered

    def test_the_workspace_that_grows_does_not_count_on_its_own_shrinking(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("a", 20, 40, 10)
        d.resize("workspace", 90)
        assert d.asked == ["a"]


class TestNeverFits:
    def test_what_others_want_of_the_workspace_is_not_held_against_a_small_model(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("big", 30, 60)
        load = world.ask("small", 50, 10)
        assert load.error is None
        assert d.asked == ["big"]

    def test_nor_against_a_job_of_one(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("big", 20, 60)
        world.load("small", 10, 5)
        job = d.start("job", 60, requires=("small", "workspace"))
        assert job.error is None
        assert d.asked == ["big"]
        too_large = d.start("too large", 86, requires=("small", "workspace"))
        assert isinstance(too_large.error, TicketTooLarge)
        assert too_large.error.pinned_bytes == 10 + 5
        assert too_large.error.largest_possible == 85

    def test_pinned_ones_keep_their_part_and_their_margin(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("pinned", 10, 20, 3, pinned=True)
        world.load("big", 10, 50, 4)
        too_large = world.ask("small", 90, 5)
        assert isinstance(too_large.error, TicketTooLarge)
        assert too_large.error.pinned_bytes == 10 + 20 + 3
        assert too_large.error.largest_possible == 67

    def test_what_pinned_ones_stand_on_stays_too(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("pinned", 40, 20, 3, pinned=True)
        world.load("big", 5, 30, 2)
        too_large = d.start("job", 38)
        assert isinstance(too_large.error, TicketTooLarge)
        assert too_large.error.pinned_bytes == 40 + 20 + 3
        assert too_large.error.largest_possible == 37
        assert d.start("largest", 37).error is None

    def test_one_that_waits_is_refused_when_what_a_pinned_one_stands_on_grows(self, driver):
        d = driver(ceiling=100)
        d.reserve("under", 10)
        d.reserve("pinned", 30, pinned=True, requires=("under",))
        d.start("work", 50)
        waits = d.start("waits", 60)
        assert not waits.answered
        d.resize("under", 11)
        assert isinstance(waits.error, TicketTooLarge)

    def test_its_own_part_counts_as_far_as_the_workspace_has_it_already(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("big", 10, 50, 4)
        assert world.ask("possible", 60, 40).error is None
        assert isinstance(world.ask("impossible", 61, 40).error, TicketTooLarge)
        assert isinstance(world.ask("larger", 51, 90).error, TicketTooLarge)
        assert world.ask("the rest", 50, 90).error is None, "it asks for what is to be added"

    def test_one_that_nobody_shares_counts_as_it_is(self, driver):
        d = driver(ceiling=100)
        d.reserve("workspace", 60)
        job = d.start("job", 50, requires=("workspace",))
        assert isinstance(job.error, TicketTooLarge)
        assert job.error.pinned_bytes == 60

    def test_one_with_a_share_can_grow_beside_its_own_part_only(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("big", 20, 60)
        world.load("a", 10, 10, 2)
        grown = d.resize("a", 88)
        assert grown.error is None
        d.cancel_resize(grown)
        assert isinstance(d.resize("a", 89).error, TicketTooLarge)


class TestExplain:
    def test_the_rate(self, driver):
        d = driver(ceiling=60, switches_per_minute=1)
        model(d, "weights/a", 30)
        model(d, "weights/b", 30)
        d.now = 11.2
        model(d, "first", 30, idle=False)
        d.end("weights/a")
        model(d, "second", 30, idle=False)
        why = explain(d, "second")
        assert (why.limited_by, why.limited_until) == ("switches_per_minute", 71.2)
        assert why.would_yield == ("weights/b",)
        assert (
            "weights/b could yield, but models are switched at most once a minute "
            "(switches_per_minute): next at 71.2 s" in why.reason
        )

    def test_the_rate_of_several(self, driver):
        d = driver(ceiling=60, switches_per_minute=10)
        model(d, "a", 30)
        model(d, "b", 30)
        model(d, "first", 30, idle=False)
        d.end("a")
        model(d, "second", 30, idle=False)
        assert (
            "b could yield, but models are switched at most 10 times a minute "
            "(switches_per_minute): next at 8.0 s" in explain(d, "second").reason
        )

    def test_the_turn(self, driver):
        d = driver(ceiling=100)
        model(d, "weights/a", 60, idle=False)
        d.now = 11.0
        model(d, "load", 50, idle=False)
        why = explain(d, "load")
        assert (why.limited_by, why.limited_until) == ("turn_seconds", 41.0)
        assert why.would_yield == ("weights/a",)
        assert (
            "weights/a is in use: it is asked to finish once this has waited 30 s "
            "(turn_seconds), at 41.0 s" in why.reason
        )
        assert "until their owners end them" not in why.reason

    def test_of_room_that_is_not_kept_it_says_so(self, driver):
        d = driver(ceiling=100, overtake_seconds=5.0)
        model(d, "a", 60, idle=False)
        model(d, "load", 50, idle=False)
        d.advance(10)
        why = explain(d, "load")
        assert why.overtake_at is None
        assert "no room is kept for it before a model has gone" in why.reason
        assert "its room is kept" not in why.reason
        d.advance(20)
        assert d.asked == ["a"]
        assert explain(d, "load").overtake_at == 6.0
        assert "its room is kept" in explain(d, "load").reason

    def test_one_that_was_asked_is_named_as_asked(self, driver):
        d = driver(ceiling=100)
        model(d, "weights/a", 60)
        model(d, "load", 50, idle=False)
        why = explain(d, "load")
        assert (why.limited_by, why.would_yield, why.asked) == (None, (), ("weights/a",))
        assert "weights/a has been asked to yield" in why.reason

    def test_to_ask_why_changes_nothing(self, driver):
        d = driver(ceiling=60, switches_per_minute=1, turn_seconds=0.0)
        model(d, "a", 30, idle=False)
        model(d, "b", 30, idle=False)
        d.together(
            lambda: d.reserve("load", 30, SUM, evictable=True),
            lambda: explain(d, "load"),
            lambda: explain(d, "load"),
        )
        assert d.asked == ["a"]


class TestDryRun:
    def ask(self, d, size, **more):
        load = WiredMemoryTicket(size, SUM, "reservation", evictable=True, **more)
        return dry_run(d.ledger, [load], d.now).tickets[0]

    def test_it_names_idle_models(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 30)
        model(d, "b", 30)
        found = self.ask(d, 50)
        assert (found.outcome, found.would_yield) == ("waits", ("a",))
        assert d.asked == []

    def test_it_names_those_in_use_whose_turn_will_come(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 50, idle=False)
        model(d, "b", 30)
        d.start("work", 5, requires=("a",))
        found = self.ask(d, 90)
        assert found.would_yield == ("a",)
        assert "a is in use: it is asked to finish" in found.reason

    def test_it_knows_of_switches_before(self, driver):
        d = driver(ceiling=60, switches_per_minute=1)
        model(d, "a", 30)
        model(d, "b", 30)
        model(d, "first", 30, idle=False)
        d.end("a")
        found = self.ask(d, 30)
        assert found.would_yield == ("b",)
        assert "switches_per_minute" in found.reason
        d.advance(60)
        assert "switches_per_minute" not in self.ask(d, 30).reason

    def test_what_they_share_shrinks_in_it_too(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("big", 20, 60)
        world.load("b", 5, 5)
        d.start("work", 15)
        found = self.ask(d, 81, share=Share(world.workspace, 5))
        assert found.would_yield == ("big",), "once the work has ended"

    def test_what_they_share_may_have_to_go_with_them(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("a", 30, 40, idle=False)
        world.ask("waits", 50, 40)
        (found,) = dry_run(d.ledger, [(95, SUM)], d.now).tickets
        assert found.would_yield == ("a", "workspace"), "one that waits keeps it up"

    def test_what_a_pinned_one_stands_on_does_not_go(self, driver):
        d = driver(ceiling=100)
        world = World(d)
        world.load("pinned", 10, 10, pinned=True)
        world.load("a", 20, 40, idle=False)
        world.ask("waits", 35, 40)
        (found,) = dry_run(d.ledger, [(75, SUM)], d.now).tickets
        assert (found.outcome, found.would_yield) == ("waits", ())

    def test_models_go_for_what_shrinks_in_the_group_that_is_full(self, driver):
        d = driver(ceiling=100)
        workspace = WiredMemoryTicket(0, OTHER, "reservation", id="workspace")
        full = WiredSumPolicy(cap=50)
        d.reserve("workspace", 20, full)
        for name in ("a", "b"):
            model(d, name, 20, policy=OTHER, share=Share(workspace, 20))
        d.start("work", 30, full)
        (found,) = dry_run(d.ledger, [(45, full)], d.now).tickets
        assert found.would_yield == ("a", "b")

    def test_the_order_of_use_is_copied(self, driver):
        d = driver(ceiling=100)
        model(d, "a", 40)
        model(d, "b", 40)
        d.touch("a")
        assert self.ask(d, 50).would_yield == ("b",)


class TestTickets:
    @pytest.mark.parametrize(
        "traits", [{"kind": "active"}, {"kind": "reservation", "reclaimable": True}]
    )
    def test_only_a_reservation_that_is_not_reclaimable_can_be_evictable(self, traits):
        with pytest.raises(ValueError, match="reservation, and not reclaimable"):
            WiredMemoryTicket(1, SUM, evictable=True, **traits)

    def test_it_may_be_pinned(self):
        ticket = WiredMemoryTicket(1, SUM, "reservation", evictable=True, pinned=True)
        assert (ticket.evictable, ticket.pinned, ticket.share) == (True, True, None)

    def test_what_is_no_flag_or_share_is_an_error(self):
        with pytest.raises(TypeError, match="evictable must be"):
            WiredMemoryTicket(1, SUM, "reservation", evictable=1)
        with pytest.raises(TypeError, match="share must be a Share"):
            WiredMemoryTicket(1, SUM, "reservation", share=5)

    @pytest.mark.parametrize("sizes", [(-1, 0), (0, -1)])
    def test_a_share_is_in_bytes(self, sizes):
        with pytest.raises(ValueError, match="share's"):
            Share(WiredMemoryTicket(0, SUM, "reservation"), *sizes)

    def test_the_parameters_have_their_ranges(self):
        configuration = wa.WiredMemoryConfiguration()
        assert (configuration.switches_per_minute, configuration.turn_seconds) == (60, 30.0)
        for wrong in ({"switches_per_minute": 0}, {"turn_seconds": -1.0}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                wa.WiredMemoryConfiguration(**wrong)


def test_commands_tell_what_they_are_for():
    assert m.Use("a").in_use is None
    assert m.Pin("a", True).pinned
