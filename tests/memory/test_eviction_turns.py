"""Models in use take turns: for whom they finish, how often, and who comes back."""

from __future__ import annotations

from tests.memory.evictables import OTHER, SUM, AtMostFour, cache, explain, model, pressures
from wiredactors.memory.errors import TicketTooLarge
from wiredactors.memory.policies import WiredSumPolicy
from wiredactors.memory.tickets import WiredMemoryTicket
from wiredactors.memory.trial import dry_run


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
