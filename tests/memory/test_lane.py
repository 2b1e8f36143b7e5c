"""A lane is a list that is quicker: random histories of both."""

from __future__ import annotations

import math

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from wiredactors.memory.group import Group
from wiredactors.memory.holding import Holding
from wiredactors.memory.lane import Lane, Waiter
from wiredactors.memory.policies import WiredMaxPolicy

GROUP = Group(WiredMaxPolicy())
SIZES = st.integers(0, 12)


def waiter(place: int, wants: int, held: int | None = None) -> Waiter:
    """One that waits to start, or to grow from what it holds."""
    grows = held is not None
    size = wants if held is None else held
    holding = Holding(f"t{place}", size, "active", GROUP, 0, False, False, (), 0.0)
    return Waiter(holding, None, wants, 0.0, grows=grows, key=(float(place), place))


class LaneMachine(RuleBasedStateMachine):
    """The list holds, for each waiter, how often it was passed."""

    @initialize()
    def open(self):
        self.lane = Lane(GROUP, 3)
        self.waiters: list[Waiter] = []
        self.passed: dict[Waiter, int] = {}
        self.places = 0

    # -- rules

    @rule(sizes=st.lists(st.tuples(SIZES, st.none() | st.integers(0, 5)), min_size=1, max_size=20))
    def append(self, sizes):
        for more, held in sizes:
            self.places += 2  # between two there is a place for a key of another lane
            added = waiter(self.places, more + (held or 0), held)
            self.lane.append(added)
            self.waiters.append(added)
            self.passed[added] = 0
            assert added.lane is self.lane

    @precondition(lambda self: self.waiters)
    @rule(data=st.data(), count=st.integers(1, 12), where=st.sampled_from(["first", "last", "any"]))
    def remove(self, data, count, where):
        for _ in range(min(count, len(self.waiters))):
            last = len(self.waiters) - 1
            place = {"first": 0, "last": last}.get(where)
            if place is None:
                place = data.draw(st.integers(0, last))
            gone = self.waiters.pop(place)
            del self.passed[gone]
            self.lane.remove(gone)
            assert gone.lane is None
            assert gone.passed == 0

    @precondition(lambda self: self.waiters)
    @rule(data=st.data(), wants=SIZES)
    def ask_for_another_size(self, data, wants):
        changed = data.draw(st.sampled_from(self.waiters))
        changed.wants = wants + (changed.holding.size if changed.grows else 0)
        self.lane.update(changed)

    @rule(data=st.data(), times=st.integers(1, 3))
    def note_pass(self, data, times):
        place = data.draw(st.integers(0, self.places + 2))
        key = (float(place), place)
        for _ in range(times if self.waiters else 0):
            self.lane.note_pass(key)
            for each in self.waiters:
                self.passed[each] += each.key < key

    # -- what must hold

    @invariant()
    def it_holds_the_same_in_the_same_order(self):
        assert list(self.lane) == self.waiters
        assert len(self.lane) == self.lane.count == len(self.waiters)
        assert (self.lane.group, self.lane.priority) == (GROUP, 3)
        if self.waiters:
            assert self.lane.head is self.waiters[0]

    @invariant()
    def each_was_passed_as_often(self):
        for each in self.waiters:
            assert self.lane.passed(each) == each.passed == self.passed[each]
        if self.waiters:
            assert self.lane.head_passed == self.passed[self.waiters[0]]
            assert self.lane.head_passed == max(self.passed.values())

    @invariant()
    def the_first_that_fits_is_found(self):
        assert self.lane.least == min((each.more for each in self.waiters), default=math.inf)
        for room in (-1, *range(13), 1 << 62):
            first = next((each for each in self.waiters if each.more <= room), None)
            assert self.lane.first_within(room) is first


LaneMachine.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestLane = LaneMachine.TestCase


def test_the_gaps_are_closed_and_the_slots_do_not_grow_for_ever():
    lane = Lane(GROUP)
    waiting = [waiter(place, place % 7) for place in range(5)]
    for each in waiting:
        lane.append(each)
    for place in range(5, 5000):
        waiting.append(waiter(place, place % 7))
        lane.append(waiting[-1])
        lane.note_pass((place, place))
        lane.remove(waiting.pop(place % 5))
        assert len(lane._slots) <= 32
    assert list(lane) == waiting
    assert lane.first_within(3) is next(each for each in waiting if each.more <= 3)
