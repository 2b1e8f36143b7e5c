"""What is said of models that yield: explanations, dry runs, and tickets."""

from __future__ import annotations

import pytest

import wiredactors as wa
from tests.memory.evictables import OTHER, SUM, World, explain, model
from wiredactors.memory import messages as m
from wiredactors.memory.policies import WiredSumPolicy
from wiredactors.memory.share import Share
from wiredactors.memory.tickets import WiredMemoryTicket
from wiredactors.memory.trial import dry_run


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
