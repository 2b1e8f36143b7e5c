"""What models share: it shrinks as they go, and only what stays keeps others out."""

from __future__ import annotations

from tests.memory.evictables import OTHER, SUM, World, ticket
from wiredactors.memory.errors import TicketTooLarge


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
