"""Who is asked to give memory up, and what is said of what cannot be asked for."""

from __future__ import annotations

import pytest

from wiredactors.memory import messages as m
from wiredactors.memory.errors import TicketTooLarge
from wiredactors.memory.policies import WiredBudgetPolicy, WiredMemoryPolicy, WiredSumPolicy

SUM100 = WiredSumPolicy(cap=100)
OTHER = WiredBudgetPolicy(base_bytes=0, cap=1000, id="other")


class TwoAtATime(WiredMemoryPolicy):
    """A user's own: what it says of fewer tickets cannot be reckoned."""

    def limit(self, baseline, active_sizes):
        return baseline + sum(active_sizes)

    def can_admit(self, baseline, active_sizes, new_size):
        return len(active_sizes) < 2


def cache(d, ticket_id, size, policy=SUM100, **more):
    d.reserve(ticket_id, size, policy, reclaimable=True, **more)


def test_the_least_recently_used_yield_first_and_no_more_than_are_needed(driver):
    d = driver(ceiling=100)
    for ticket_id in ("old", "older", "young"):
        cache(d, ticket_id, 30)
        d.advance(1)
    d.touch("old")
    d.start("job", 40, SUM100)
    assert d.asked == ["older"]
    assert d.kinds[-3:] == ["admission_wait", "pressure", "reclaim_requested"]
    pressure = d.last("pressure")
    assert (pressure.ticket_id, pressure.size) == ("job", 40)
    assert pressure.details == {"needed_bytes": 30, "asked": ["older"]}


def test_nobody_is_admitted_to_the_bytes_before_their_owner_has_freed_them(driver):
    d = driver(ceiling=100)
    cache(d, "cache", 60)
    job = d.start("job", 70, SUM100)
    assert d.asked == ["cache"]
    d.advance(10)
    assert not job.answered
    assert d.asked == ["cache"], "once is enough"
    d.end("cache")
    assert job.answered


def test_one_that_gives_a_part_up_may_be_asked_for_the_rest(driver):
    d = driver(ceiling=100)
    cache(d, "cache", 60)
    job = d.start("job", 70, SUM100)
    d.resize("cache", 50)
    assert d.asked == ["cache", "cache"]
    d.resize("cache", 30)
    assert job.answered


def test_nobody_is_asked_where_all_of_them_together_would_not_make_the_room(driver):
    d = driver(ceiling=100)
    cache(d, "cache", 30)
    d.start("busy", 60, SUM100)
    d.start("job", 90, SUM100)
    assert d.asked == []
    assert "pressure" not in d.kinds
    d.end("busy")
    assert d.asked == ["cache"]


def test_those_that_one_stands_on_are_not_taken_from_under_it(driver):
    d = driver(ceiling=100)
    cache(d, "own", 30)
    cache(d, "other", 30)
    d.start("job", 60, SUM100, requires=("own",))
    assert d.asked == ["other"]


def test_the_cap_of_a_group_asks_in_that_group_only(driver):
    d = driver(ceiling=1000)
    cache(d, "elsewhere", 50, OTHER)
    cache(d, "here", 50)
    d.start("job", 80, SUM100)
    assert d.asked == ["here"]


def test_the_ceiling_asks_in_every_group(driver):
    d = driver(ceiling=120)
    cache(d, "elsewhere", 50, OTHER)
    d.start("job", 80, SUM100)
    assert d.asked == ["elsewhere"]


def test_a_users_own_policy_is_asked_for_one_that_it_counts(driver):
    policy = TwoAtATime()
    d = driver(ceiling=1000)
    cache(d, "cache", 10, policy)
    d.start("busy", 10, policy)
    job = d.start("job", 10, policy)
    assert d.asked == ["cache"]
    d.end("cache")
    assert job.answered


def test_what_is_asked_for_one_the_next_cannot_count_on(driver):
    d = driver(ceiling=200)
    cache(d, "a", 50)
    cache(d, "b", 50, OTHER)
    d.start("first", 100, SUM100)
    assert d.asked == ["a"]
    d.start("second", 130, OTHER, priority=-1)
    assert d.asked == ["a"], "first takes what a leaves: b alone is not enough for 130"
    d.start("third", 100, OTHER, priority=-2)
    assert d.asked == ["a", "b"]


def test_a_ticket_that_wants_to_grow_asks_too(driver):
    d = driver(ceiling=100)
    cache(d, "cache", 50)
    d.start("job", 40, SUM100)
    grown = d.resize("job", 80)
    assert d.asked == ["cache"]
    d.end("cache")
    assert grown.answered


def test_each_that_wants_to_grow_is_looked_at_not_the_first_only(driver):
    d = driver(ceiling=100)
    cache(d, "cache", 30, WiredSumPolicy())
    d.start("a", 30)
    d.start("b", 30)
    d.resize("a", 95)
    b = d.resize("b", 55)
    assert d.asked == ["cache"], "not enough for a, but for b"
    d.end("cache")
    assert b.answered


def test_the_base_that_goes_with_the_last_of_a_group_counts(driver):
    d = driver(ceiling=100)
    policy = WiredBudgetPolicy(base_bytes=15, id="with a base")
    cache(d, "one", 30, policy)
    cache(d, "two", 30, policy)
    job = d.start("job", 90)
    assert d.asked == ["one", "two"]
    d.end("one")
    d.end("two")
    assert job.answered


def test_two_caches_that_want_to_grow_do_not_ask_each_other(driver):
    d = driver(ceiling=100)
    cache(d, "a", 20, WiredSumPolicy())
    cache(d, "b", 20, WiredSumPolicy())
    d.start("x", 60)
    d.resize("a", 35)
    d.resize("b", 35)
    assert d.asked == ["b"]


def test_one_that_gives_nothing_is_not_asked_again_and_again(driver):
    d = driver(ceiling=100)
    cache(d, "cache", 60)
    d.start("job", 70, SUM100)
    d.resize("cache", 60)
    d.resize("cache", 60)
    assert d.asked == ["cache"]


def test_one_that_gave_a_part_is_still_the_first_to_be_asked_for_more(driver):
    d = driver(ceiling=100)
    cache(d, "old", 40)
    cache(d, "young", 40)
    d.start("job", 50, SUM100)
    d.resize("old", 20)
    assert d.asked == ["old", "old"]


def test_one_that_wants_to_grow_beyond_what_they_hold_is_refused_and_they_are_kept(driver):
    d = driver(ceiling=100)
    d.reserve("model", 30, SUM100)
    cache(d, "cache", 30)
    d.start("job", 40, SUM100)
    grown = d.resize("job", 71)
    assert isinstance(grown.error, TicketTooLarge)
    assert d.asked == []


def test_one_that_fits_only_if_idle_models_went_waits_and_says_how_many_bytes(driver):
    d = driver(ceiling=100)
    d.reserve("model", 70, SUM100)
    cache(d, "cache", 10)
    job = d.start("job", 60, SUM100)
    assert not job.answered
    pressure = d.last("pressure")
    assert (pressure.ticket_id, pressure.size) == ("job", 60)
    assert pressure.details == {"needed_bytes": 30, "asked": []}
    assert d.asked == [], "the cache alone would not make the room"
    assert d.ledger.explain("job", d.now).needs_idle_bytes == 30
    d.take_events()
    d.advance(1)
    d.start("small", 5, SUM100)
    assert "pressure" not in d.kinds, "it was said already"
    d.end("small")
    d.end("model")
    assert job.answered


def test_what_a_larger_cache_has_to_give_is_what_is_missing(driver):
    d = driver(ceiling=100)
    cache(d, "cache", 60)
    d.start("job", 50, SUM100)
    assert d.last("pressure").details == {"needed_bytes": 10, "asked": ["cache"]}
    d.resize("cache", 50)
    assert d.ledger.explain("job", d.now).state == "running"


def test_what_others_take_is_not_asked_of_idle_models(driver):
    d = driver(ceiling=100)
    d.reserve("model", 5)
    d.observe(available=30, footprint=5)
    d.start("job", 90)
    assert "pressure" not in d.kinds
    assert d.ledger.explain("job", d.now).needs_idle_bytes == 0


def test_it_says_so_again_when_the_bytes_are_others(driver):
    d = driver(ceiling=100)
    d.reserve("model", 70, SUM100)
    d.start("job", 60, SUM100)
    d.resize("model", 65)
    assert d.last("pressure").details["needed_bytes"] == 25


def test_one_that_waits_for_work_only_presses_nobody(driver):
    d = driver(ceiling=100)
    d.reserve("model", 20, SUM100)
    d.start("busy", 60, SUM100)
    d.start("job", 70, SUM100)
    assert "pressure" not in d.kinds
    assert d.ledger.explain("job", d.now).needs_idle_bytes == 0


def test_a_pinned_model_is_not_pressed_its_rival_is_refused(driver):
    d = driver(ceiling=100)
    d.reserve("model", 70, SUM100, pinned=True)
    job = d.start("job", 60, SUM100)
    assert isinstance(job.error, TicketTooLarge)
    assert "pressure" not in d.kinds


@pytest.mark.parametrize("changes", [{"kind": "active"}, {"kind": "reservation", "pinned": True}])
def test_only_a_reservation_that_is_not_pinned_can_be_reclaimable(changes):
    with pytest.raises(ValueError, match="reservation, and not pinned"):
        SUM100.ticket(1, reclaimable=True, **changes)


class TestOutsidePressure:
    def test_admission_is_tightened_by_the_excess_and_relaxes_again(self, driver):
        d = driver(ceiling=600)
        d.start("a", 100)
        d.observe(available=300, footprint=100)
        event = d.last("outside_pressure")
        assert event.size == 200, "600 are promised; 300 are free and 100 are held already"
        assert event.details["available_bytes"] == 300
        assert d.ledger.snapshot().excess_bytes == 200
        b = d.start("b", 301)
        assert not b.answered
        assert d.ledger.explain("b", d.now).blocked_by == "ceiling"
        c = d.start("c", 300)
        assert c.answered
        d.end("c")
        d.observe(available=800, footprint=100)
        assert d.last("outside_pressure").size == 0
        assert b.answered

    def test_it_refuses_nobody(self, driver):
        d = driver(ceiling=600)
        d.observe(available=0)
        a = d.start("a", 600)
        assert not a.answered
        d.observe(available=1000)
        assert a.answered

    def test_small_moves_are_not_told(self, driver):
        d = driver(ceiling=600)
        d.observe(available=300)
        d.take_events()
        d.observe(available=303)
        assert d.events == []

    def test_a_source_that_fails_is_told_and_presses_no_more(self, driver):
        d = driver(ceiling=600)
        d.observe(available=300)
        d.send(m.Observe(None, "OSError: no /proc"))
        event = d.last("outside_pressure")
        assert (event.size, event.error) == (0, "OSError: no /proc")
        assert d.ledger.snapshot().excess_bytes == 0

    def test_the_limit_does_not_move_with_it(self, driver):
        d = driver(ceiling=600)
        d.start("a", 500, WiredSumPolicy())
        d.observe(available=10, footprint=500)
        assert d.limit == 500

    def test_a_base_for_weights_in_memory_is_not_outside(self, driver):
        d = driver(ceiling=600)
        policy = WiredBudgetPolicy(base_bytes=500, id="weights")
        d.observe(available=360, footprint=500, total=960)
        assert d.ledger.snapshot().excess_bytes == 240
        a = d.start("a", 20, policy)
        assert a.answered
        assert d.ledger.snapshot().excess_bytes == 0
        d.observe(available=360, footprint=500, total=960)
        assert d.ledger.snapshot().excess_bytes == 0
        assert d.start("b", 20, policy).answered

    def test_neither_are_weights_whose_reservation_starts_after_they_were_loaded(self, driver):
        d = driver(ceiling=600)
        d.observe(available=360, footprint=500, total=960)
        assert d.reserve("weights", 500).answered
        d.observe(available=360, footprint=500, total=960)
        assert d.ledger.snapshot().excess_bytes == 0

    def test_work_that_is_new_cannot_claim_what_no_ticket_tells_of(self, driver):
        d = driver(ceiling=600)
        d.observe(available=360, footprint=500, total=960)
        assert not d.start("job", 500).answered

    def test_one_that_waits_for_other_reasons_keeps_its_claim(self, driver):
        d = driver(ceiling=600)
        d.start("busy", 200)
        d.observe(available=360, footprint=400, total=960)
        weights = d.reserve("weights", 500)
        d.observe(available=360, footprint=400, total=960)
        d.end("busy")
        assert weights.answered

    def test_a_second_start_of_one_that_waits_claims_nothing_more(self, driver):
        d = driver(ceiling=600)
        d.start("busy", 60, SUM100)
        d.observe(available=100, footprint=500, total=960)
        excess = d.ledger.snapshot().excess_bytes
        d.reserve("weights", 50, SUM100)
        assert d.waiting == ["weights"]
        assert d.ledger.snapshot().excess_bytes == excess - 50
        d.reserve("weights", 50, SUM100)
        assert d.ledger.snapshot().excess_bytes == excess - 50
