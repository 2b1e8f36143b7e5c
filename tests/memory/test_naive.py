"""The naive model of admission: each rule by an example, then random histories of it alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.memory.naive import Decision, Naive
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.policies import (
    WiredBudgetPolicy,
    WiredFixedPolicy,
    WiredMaxPolicy,
    WiredMemoryPolicy,
    WiredSumPolicy,
)

ALL = WiredSumPolicy()
OTHER = WiredMaxPolicy()  # a second group, which admits everything
SMALL = WiredSumPolicy(cap=60)


class Story:
    """A model under a clock that stands still unless it is moved."""

    def __init__(self, ceiling: int | None = 100, **configuration: Any):
        self.naive = Naive(WiredMemoryConfiguration(**configuration), ceiling)
        self.now = 0.0

    def start(
        self,
        ticket_id: str,
        size: int,
        policy: WiredMemoryPolicy = ALL,
        kind: str = "active",
        priority: int = 0,
        pinned: bool = False,
        requires: tuple[str, ...] = (),
    ) -> list[Decision]:
        return self.naive.start(ticket_id, size, kind, policy, priority, pinned, requires, self.now)

    def reserve(self, ticket_id: str, size: int, policy=ALL, **more: Any) -> list[Decision]:
        return self.start(ticket_id, size, policy, "reservation", **more)

    def end(self, ticket_id: str) -> list[Decision]:
        return self.naive.end(ticket_id, self.now)

    def cancel(self, ticket_id: str) -> list[Decision]:
        return self.naive.cancel(ticket_id, self.now)

    def resize(self, ticket_id: str, size: int) -> list[Decision]:
        return self.naive.resize(ticket_id, size, self.now)

    def cancel_resize(self, ticket_id: str) -> list[Decision]:
        return self.naive.cancel_resize(ticket_id, self.now)

    def learn(self, baseline: int) -> list[Decision]:
        return self.naive.learn_baseline(baseline, self.now)


# -- room


def test_the_ceiling_bounds_baseline_tickets_and_each_live_base_once():
    budget = WiredBudgetPolicy(base_bytes=20, id="b")
    story = Story(baseline_override=10)
    assert story.start("a", 30, budget) == [("admitted", "a")]
    assert story.start("b", 20, budget) == [("admitted", "b")]
    assert story.start("c", 21) == [("waits", "c")]
    assert story.start("d", 20) == [("admitted", "d")]
    assert story.naive.running == [("a", 30), ("b", 20), ("d", 20)]
    assert story.naive.limit() == 10 + 20 + 30 + 20


def test_a_newcomer_to_an_empty_group_brings_its_base():
    story = Story()
    story.start("a", 50)
    assert story.start("b", 40, WiredBudgetPolicy(base_bytes=11, id="b")) == [("waits", "b")]
    assert story.start("c", 39, WiredBudgetPolicy(base_bytes=11, id="c")) == [("admitted", "c")]


def test_a_cap_bounds_its_own_group_only():
    story = Story()
    assert story.start("a", 50, SMALL) == [("admitted", "a")]
    assert story.start("b", 20, SMALL) == [("waits", "b")]
    assert story.start("c", 20) == [("admitted", "c")]
    assert story.end("a") == [("admitted", "b")]


@pytest.mark.parametrize(("mode", "limit"), [("policy", 70), ("fit", 65)])
def test_the_limit_is_the_largest_that_a_group_asks_for(mode, limit):
    story = Story(wired_mode=mode, baseline_override=5)
    story.start("a", 40)
    assert story.naive.limit() == 45
    story.reserve("b", 20, WiredFixedPolicy(limit=70))
    assert story.naive.limit() == limit
    story.end("a")
    assert story.naive.limit() == 5, "a reservation alone does not raise it"


def test_the_ceiling_is_the_cap_of_a_sum_that_has_none():
    story = Story()
    story.start("a", 90)
    story.learn(30)
    assert story.naive.limit() == 100


# -- order


def test_more_priority_goes_first_and_waiting_makes_up_for_it():
    story = Story(aging_seconds=60.0)
    story.start("a", 100)
    story.start("old", 100)
    story.now = 59.0
    story.start("urgent", 100, priority=1)
    story.now = 60.0
    story.start("equal", 100, priority=1)
    story.now = 61.0
    story.start("late", 100, priority=1)
    assert story.naive.waiting == ["urgent", "old", "equal", "late"]


def test_a_cancelled_waiter_leaves_what_was_kept_for_it():
    story = Story(overtake_count=0)
    story.start("a", 50)
    story.start("big", 60)
    story.start("small", 50)
    assert story.naive.waiting == ["big", "small"]
    assert story.cancel("big") == [("admitted", "small")]


def test_one_that_ends_while_it_waits_is_withdrawn():
    story = Story()
    story.start("a", 50)
    story.start("big", 60)
    assert story.end("big") == []
    assert story.naive.waiting == []


def test_no_more_than_max_waiters_wait():
    story = Story(max_waiters=1, overtake_count=0)
    story.start("a", 50)
    story.start("b", 60)
    assert story.start("c", 20) == [("refused", "c")]
    assert story.start("d", 60, priority=1) == [("refused", "d")]
    assert story.naive.waiting == ["b"]


# -- overtaking


def test_a_waiter_is_passed_overtake_count_times_at_most():
    story = Story(overtake_count=2)
    story.start("a", 50)
    story.start("big", 60)
    assert story.start("b", 10) == [("admitted", "b")], "a newcomer counts"
    assert story.start("c", 10) == [("admitted", "c")]
    assert story.naive.passed == {"big": 2}
    assert story.start("d", 10) == [("waits", "d")]


def test_the_count_is_exact_within_one_change():
    story = Story(overtake_count=2)
    story.start("a", 90)
    story.start("big", 100)
    for name in "bcd":
        story.start(name, 20)
    story.reserve("rest", 10)
    assert story.naive.passed["big"] == 1
    assert story.end("a") == [("admitted", "b")]
    assert story.naive.waiting == ["big", "c", "d"]


def test_nobody_passes_where_the_count_is_0():
    story = Story(overtake_count=0)
    story.start("a", 50)
    story.start("big", 60)
    assert story.start("b", 10) == [("waits", "b")]


def test_a_waiter_is_passed_for_overtake_seconds_at_most():
    story = Story(overtake_seconds=30.0)
    story.start("a", 50)
    story.start("big", 60)
    story.now = 29.0
    assert story.start("b", 10) == [("admitted", "b")]
    story.now = 30.0
    assert story.start("c", 10) == [("waits", "c")]


def test_one_that_its_group_blocks_keeps_only_its_group():
    story = Story(overtake_count=0)
    story.start("a", 50, SMALL)
    story.start("big", 20, SMALL)
    assert story.start("b", 10, SMALL) == [("waits", "b")]
    assert story.start("c", 10, OTHER) == [("admitted", "c")]


def test_one_that_the_ceiling_blocks_keeps_everything():
    story = Story(overtake_count=0)
    story.start("a", 50)
    story.start("big", 60)
    assert story.start("b", 10, OTHER) == [("waits", "b")]


def test_one_that_is_barred_itself_keeps_nothing_more():
    story = Story(overtake_count=0)
    story.start("a", 30, SMALL)
    story.start("o", 50, OTHER)
    story.start("big", 50, SMALL)  # its group blocks it
    story.start("b", 25, SMALL)  # the ceiling would
    assert story.start("c", 20, OTHER) == [("admitted", "c")]


def test_another_group_counts_where_the_first_of_its_own_waits_for_the_ceiling():
    story = Story()
    story.start("a", 45, SMALL)
    story.start("o", 40, OTHER)
    story.start("ceiling", 16, OTHER)
    story.start("group", 20, SMALL)
    assert story.start("b", 5, OTHER) == [("admitted", "b")]
    assert story.naive.passed == {"ceiling": 1, "group": 0}
    assert story.start("c", 5, SMALL) == [("admitted", "c")]
    assert story.naive.passed == {"ceiling": 2, "group": 1}


def test_the_first_of_a_group_and_priority_speaks_for_those_behind_it():
    story = Story()
    story.start("a", 40, SMALL)
    story.start("o", 45, OTHER)
    story.start("first", 21, SMALL)  # its group blocks it
    story.start("same", 20, SMALL)  # the ceiling would, were it first
    assert story.start("b", 5, OTHER) == [("admitted", "b")]
    assert story.naive.passed == {"first": 0, "same": 0}
    story.start("urgent", 15, SMALL, priority=1)  # first of its priority: the ceiling blocks it
    assert story.start("c", 5, OTHER) == [("admitted", "c")]
    assert story.naive.passed == {"urgent": 1, "first": 0, "same": 0}


def test_one_that_is_barred_is_not_passed_over_the_ceiling():
    story = Story(overtake_count=1, overtake_seconds=0.0)
    story.start("a", 30, SMALL)
    story.start("o", 50, OTHER)
    story.start("urgent", 50, SMALL, priority=1)  # keeps its group
    story.start("b", 25, SMALL)  # the ceiling blocks it too
    assert story.start("c", 5, OTHER) == [("admitted", "c")]
    assert story.start("d", 5, OTHER) == [("admitted", "d")]
    assert story.naive.passed == {"urgent": 0, "b": 0}


# -- growing


def test_a_grower_goes_before_those_that_wait_longer():
    story = Story()
    story.start("a", 50)
    story.start("b", 40)
    story.start("c", 20)
    assert story.resize("a", 60) == [("grown", "a")]
    assert story.resize("a", 80) == [("resize_waits", "a")]
    assert story.naive.growing == [("a", 80)]
    assert story.end("b") == [("grown", "a"), ("admitted", "c")]


def test_nobody_new_comes_in_where_a_grower_waits():
    story = Story()
    story.start("a", 40, SMALL)
    story.start("b", 10, SMALL)
    assert story.resize("a", 55) == [("resize_waits", "a")]
    assert story.start("c", 5, SMALL) == [("waits", "c")]
    assert story.start("d", 5, OTHER) == [("admitted", "d")], "the cap blocks it, so its group"
    assert story.cancel_resize("a") == [("admitted", "c")]
    story.start("e", 20, OTHER)
    assert story.resize("e", 50) == [("resize_waits", "e")]
    assert story.start("f", 1, OTHER) == [("waits", "f")]
    assert story.start("g", 1, SMALL) == [("waits", "g")], "the ceiling blocks it, so everybody"


def test_growers_pass_each_other():
    story = Story()
    story.start("a", 30)
    story.start("b", 30)
    story.start("c", 30)
    story.resize("a", 70)
    assert story.resize("b", 40) == [("grown", "b")]
    assert story.naive.growing == [("a", 70)]


def test_the_last_to_ask_is_refused_if_every_active_ticket_waits_to_grow():
    story = Story()
    story.start("a", 50)
    story.reserve("r", 10)
    story.start("b", 40)
    assert story.resize("b", 60) == [("resize_waits", "b")]
    assert story.resize("r", 30) == [("resize_waits", "r")]
    assert story.resize("a", 80) == [("resize_refused", "a")]
    assert story.naive.growing == [("b", 60), ("r", 30)]
    assert story.end("a") == [("grown", "b"), ("grown", "r")]


def test_an_end_may_leave_nobody_but_growers():
    story = Story()
    for name in "abc":
        story.start(name, 30)
    story.resize("a", 80)
    story.resize("b", 75)
    assert story.end("c") == [("resize_refused", "b")]
    assert story.end("a") == [("resize_refused", "a")]


def test_one_that_became_impossible_is_refused_before_the_growers_are_counted():
    story = Story()
    story.reserve("pinned", 10, pinned=True)
    for name, size in (("b", 20), ("c", 20), ("d", 35)):
        story.start(name, size)
    story.resize("pinned", 30)
    story.resize("b", 75)
    story.resize("c", 60)
    assert story.end("d") == [("grown", "pinned"), ("resize_refused", "b")]
    assert story.naive.growing == [("c", 60)], "b may end, so it does not wait for nothing"


def test_a_smaller_size_is_taken_at_once_and_serves_the_queue():
    story = Story()
    story.start("a", 80)
    story.start("b", 30)
    assert story.resize("a", 70) == [("grown", "a"), ("admitted", "b")]


def test_a_waiter_keeps_its_place_when_it_asks_for_another_size():
    story = Story(overtake_count=0)
    story.start("a", 80)
    story.start("b", 30)
    story.start("c", 20)
    assert story.resize("b", 101) == [("resize_refused", "b")]
    assert story.resize("b", 40) == [("grown", "b")]
    assert story.naive.waiting == ["b", "c"]
    assert story.resize("b", 10) == [("grown", "b"), ("admitted", "b")]


# -- never fits


def test_what_never_fits_beside_pinned_and_required_ones_is_refused_at_once():
    story = Story()
    story.reserve("pinned", 20, pinned=True)
    story.reserve("weights", 30)
    assert story.start("a", 81) == [("refused", "a")]
    assert story.start("b", 51, requires=("weights",)) == [("refused", "b")]
    assert story.start("c", 51, requires=("unknown",)) == [("waits", "c")]
    assert story.start("d", 50, requires=("weights",)) == [("admitted", "d")]
    assert story.resize("weights", 81) == [("resize_refused", "weights")]
    assert story.resize("pinned", 50) == [("resize_waits", "pinned")], "it does not bar itself"


def test_a_waiter_that_a_new_pinned_one_makes_impossible_is_refused_first():
    story = Story(overtake_count=0)
    story.start("a", 50)
    story.start("big", 95)
    story.start("small", 30)
    assert story.reserve("pinned", 10, priority=1, pinned=True) == [
        ("admitted", "pinned"),
        ("refused", "big"),
        ("admitted", "small"),
    ]


def test_a_waiter_is_refused_when_one_that_it_requires_comes_or_grows():
    story = Story()
    story.start("a", 50)
    story.start("b", 95, requires=("weights",))
    story.start("c", 90, requires=("weights",))
    assert story.reserve("weights", 10) == [("admitted", "weights"), ("refused", "b")]
    assert story.resize("weights", 15) == [("grown", "weights"), ("refused", "c")]


def test_a_baseline_that_is_learned_refuses_waiters_and_growers():
    story = Story()
    story.start("a", 20)
    story.start("b", 20)
    story.resize("a", 95)
    story.start("c", 95)
    story.start("d", 40)
    assert story.learn(10) == [
        ("resize_refused", "a"),
        ("refused", "c"),
        ("admitted", "d"),
    ]


# -- the rest


def test_an_override_is_the_baseline_whatever_is_learned():
    story = Story(baseline_override=12)
    assert story.naive.baseline == 0, "nobody has come yet"
    story.start("a", 10)
    story.learn(30)
    assert story.naive.baseline == 12
    story.end("a")
    story.naive.configure(WiredMemoryConfiguration(), 100, story.now)
    assert story.naive.baseline == 12, "it is captured when the next one comes"
    story.reserve("b", 10)
    assert story.naive.baseline == 30


def test_other_rules_are_taken_while_nothing_works_or_waits():
    story = Story()
    story.reserve("r", 40)
    story.reserve("s", 50)
    story.resize("r", 60)
    story.naive.configure(WiredMemoryConfiguration(), 90, story.now)
    assert story.naive.ceiling == 90
    raised = story.naive.configure(WiredMemoryConfiguration(), 110, story.now)
    assert raised == [("grown", "r")]
    story.start("a", 0)
    assert story.naive.configure(WiredMemoryConfiguration(), 200, story.now) == []
    assert story.naive.ceiling == 110


def test_one_id_is_one_policy():
    story = Story()
    story.start("a", 10, WiredBudgetPolicy(base_bytes=1, id="b"))
    assert story.start("b", 10, WiredBudgetPolicy(base_bytes=2, id="b")) == [("refused", "b")]


def test_what_keeps_one_out():
    story = Story(overtake_count=0)
    story.start("a", 45, SMALL)
    story.start("b", 20, SMALL)
    story.start("c", 10, SMALL)
    story.start("d", 60, OTHER)
    assert [story.naive.blocked_by(t, story.now) for t in "bcd"] == ["group", "order", "ceiling"]


def test_the_end_of_all():
    story = Story()
    story.start("a", 60)
    story.start("b", 10)
    story.resize("b", 70)
    story.start("c", 50)
    assert story.naive.close() == [("refused", "c"), ("resize_refused", "b")]
    assert not story.naive.knows("a")


# -- random histories

POLICIES: list[WiredMemoryPolicy] = [
    ALL,
    SMALL,
    OTHER,
    WiredFixedPolicy(limit=40),
    WiredBudgetPolicy(base_bytes=15, cap=80, id="budget"),
    WiredBudgetPolicy(base_bytes=5, id="uncapped"),
]
SIZES = st.sampled_from([0, 5, 10, 15, 20, 30, 40, 50, 60, 90, 110])


class NaiveMachine(RuleBasedStateMachine):
    """What must hold of any ledger, told of this one from its outside: its lists and answers."""

    @initialize(
        ceiling=st.sampled_from([100, 100, None]),
        overtake_count=st.sampled_from([0, 1, 3]),
        overtake_seconds=st.sampled_from([20.0, 1e6]),
        max_waiters=st.sampled_from([None, None, 2]),
    )
    def open(self, ceiling, overtake_count, overtake_seconds, max_waiters):
        self.configuration = WiredMemoryConfiguration(
            overtake_count=overtake_count,
            overtake_seconds=overtake_seconds,
            max_waiters=max_waiters,
            aging_seconds=10.0,
        )
        self.ceiling = ceiling
        self.naive = Naive(self.configuration, ceiling)
        self.now = 0.0
        self.asked: dict[str, tuple[WiredMemoryPolicy, str, bool, tuple[str, ...]]] = {}
        self.wants: dict[str, int] = {}
        self.held: dict[object, int] = {}

    # -- rules

    @rule(
        asked=st.lists(
            st.tuples(
                st.sampled_from([5, 10, 15, 20, 30, 45, 60]),
                st.sampled_from(POLICIES[:3]),
                st.sampled_from([0, 0, 1]),
            ),
            min_size=2,
            max_size=6,
        )
    )
    def start_several(self, asked):
        """Work of a few kinds, some of which will have to wait."""
        for size, policy, priority in asked:
            self.ask(size, policy, "active", priority)

    @rule(
        data=st.data(),
        size=SIZES,
        policy=st.sampled_from(POLICIES),
        kind=st.sampled_from(["active", "active", "reservation"]),
        priority=st.integers(0, 2),
        pinned=st.booleans(),
    )
    def start(self, data, size, policy, kind, priority, pinned):
        pinned = pinned and kind == "reservation" and size < 40
        live = [*self.running, *self.naive.waiting]
        required = data.draw(st.sampled_from([None, *live])) if live else None
        requires = () if required is None else (required,)
        self.ask(size, policy, kind, priority, pinned, requires)

    def ask(self, size, policy, kind, priority, pinned=False, requires=()):
        ticket = f"t{len(self.asked)}"
        self.asked[ticket] = policy, kind, pinned, requires
        self.wants[ticket] = size
        decided = self.naive.start(ticket, size, kind, policy, priority, pinned, requires, self.now)
        self.check(decided)
        there = [decision for decision in decided if decision[1] == ticket]
        assert len(there) == 1, "it is admitted, waits or is refused"

    @rule(data=st.data())
    @precondition(lambda self: self.running or self.naive.waiting)
    def end(self, data):
        ticket = data.draw(st.sampled_from([*self.running, *self.naive.waiting]))
        self.check(self.naive.end(ticket, self.now))
        assert ticket not in [*self.running, *self.naive.waiting]

    @rule(data=st.data())
    @precondition(lambda self: self.naive.waiting)
    def cancel(self, data):
        ticket = data.draw(st.sampled_from(self.naive.waiting))
        self.check(self.naive.cancel(ticket, self.now))

    @rule(data=st.data(), size=SIZES)
    @precondition(lambda self: self.running or self.naive.waiting)
    def resize(self, data, size):
        ticket = data.draw(st.sampled_from([*self.running, *self.naive.waiting]))
        if ticket in dict(self.naive.growing):
            assert self.naive.resize(ticket, size, self.now) == []
            return
        waits, before = ticket in self.naive.waiting, self.wants[ticket]
        decided = self.naive.resize(ticket, size, self.now)
        if waits and decided[0] == ("grown", ticket):
            self.wants[ticket] = size
        elif not waits and ("resize_refused", ticket) in decided:
            assert dict(self.naive.running)[ticket] == before, "it keeps its size"
        self.check(decided)

    @rule(data=st.data())
    @precondition(lambda self: self.naive.growing)
    def cancel_resize(self, data):
        ticket = data.draw(st.sampled_from([ticket for ticket, _ in self.naive.growing]))
        self.check(self.naive.cancel_resize(ticket, self.now))

    @rule(baseline=st.sampled_from([0, 10, 30]))
    def learn_baseline(self, baseline):
        self.check(self.naive.learn_baseline(baseline, self.now))

    @rule(seconds=st.sampled_from([0.5, 5.0, 25.0]))
    def pass_time(self, seconds):
        self.now += seconds

    def check(self, decided: list[Decision]) -> None:
        for word, ticket in decided:
            if word in ("admitted", "waits", "refused"):
                assert (ticket in self.running) == (word == "admitted")
                assert (ticket in self.naive.waiting) == (word == "waits")
        self.wants |= dict(self.naive.running)

    # -- invariants

    @invariant()
    def nothing_is_above_a_cap_or_the_ceiling(self):
        # A baseline that is learned may leave too little for what lives: then it only shrinks.
        held: dict[object, int] = {}
        for policy in {self.policy(ticket).id: self.policy(ticket) for ticket in self.running}:
            one = next(p for p in POLICIES if p.id == policy)
            sizes = [size for t, size in self.naive.running if self.policy(t).id == policy]
            held[policy] = one.base_bytes + sum(sizes)
            if one.cap is not None:
                room = one.cap - self.naive.baseline
                assert held[policy] <= max(room, self.held.get(policy, 0))
        total = sum(held.values())
        if self.ceiling is not None:
            assert total <= max(self.ceiling - self.naive.baseline, self.held.get("all", 0))
        self.held = held | {"all": total}

    @invariant()
    def nobody_waits_who_is_first_and_fits(self):
        growers = self.naive.growing
        blocks = [(self.policy(t), self.blocked_by(t, size)) for t, size in growers]
        assert all(block is not None for _, block in blocks), "a grower could grow"
        if any(block == "ceiling" for _, block in blocks):
            return
        free = [t for t in self.naive.waiting if all(self.policy(t).id != p.id for p, _ in blocks)]
        if free:
            assert self.blocked_by(free[0], self.wants[free[0]]) is not None

    @invariant()
    def nobody_waits_for_nothing(self):
        active = [ticket for ticket in self.running if self.asked[ticket][1] == "active"]
        growing = dict(self.naive.growing)
        assert not active or any(ticket not in growing for ticket in active)
        assert self.running or not self.naive.waiting

    @invariant()
    def nobody_waits_who_never_comes_in(self):
        waiting = [(ticket, self.wants[ticket]) for ticket in self.naive.waiting]
        for ticket, size in [*self.naive.growing, *waiting]:
            requires = self.asked[ticket][3]
            stays = [other for other in self.running if self.asked[other][2] or other in requires]
            assert self.blocked_by(ticket, size, stays) is None

    @invariant()
    def nobody_is_passed_too_often(self):
        passed = self.naive.passed.values()
        assert max(passed, default=0) <= self.configuration.overtake_count

    @invariant()
    def the_queue_is_bounded(self):
        bound = self.configuration.max_waiters
        assert bound is None or len(self.naive.waiting) <= bound

    # -- looking

    @property
    def running(self) -> list[str]:
        return [ticket for ticket, _ in self.naive.running]

    def policy(self, ticket: str) -> WiredMemoryPolicy:
        return self.asked[ticket][0]

    def blocked_by(self, ticket: str, size: int, beside: list[str] | None = None) -> str | None:
        held = dict(self.naive.running)
        others = [t for t in (self.running if beside is None else beside) if t != ticket]
        policy = self.policy(ticket)
        sizes = [held[other] for other in others if self.policy(other).id == policy.id]
        if not policy.can_admit(self.naive.baseline, sizes, size):
            return "group"
        live = {self.policy(other).id: self.policy(other) for other in [*others, ticket]}
        total = self.naive.baseline + sum(held[other] for other in others) + size
        total += sum(policy.base_bytes for policy in live.values())
        return "ceiling" if self.ceiling is not None and total > self.ceiling else None


NaiveMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestNaive = NaiveMachine.TestCase
