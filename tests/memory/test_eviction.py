"""Evictable reservations: which models yield, to whom, and in which order."""

from __future__ import annotations

from tests.memory.evictables import OTHER, TwoAtATime, cache, model, pressures, ticket
from wiredactors.memory.errors import TicketTooLarge
from wiredactors.memory.policies import WiredSumPolicy


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
