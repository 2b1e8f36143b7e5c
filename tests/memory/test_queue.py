"""The queue keeps one order: priority, raised by waiting, then arrival."""

from __future__ import annotations

from wiredactors.memory.group import Group
from wiredactors.memory.holding import Holding
from wiredactors.memory.lane import Waiter
from wiredactors.memory.policies import WiredMaxPolicy
from wiredactors.memory.queue import WaitQueue

GROUP = Group(WiredMaxPolicy())


def waiter(ticket_id: str, priority: int = 0, since: float = 0.0) -> Waiter:
    holding = Holding(ticket_id, 1, "active", GROUP, priority, False, False, (), since)
    return Waiter(holding, None, 1, since)


def order(*waiters: Waiter, aging_seconds: float = 60.0) -> str:
    queue = WaitQueue(aging_seconds)
    for each in waiters:
        queue.add(each)
    return " ".join(w.ticket_id for w in queue)


def test_arrival_decides_among_equals():
    assert order(waiter("a"), waiter("b"), waiter("c")) == "a b c"


def test_the_larger_priority_goes_first():
    assert order(waiter("a"), waiter("b", 1), waiter("c", -1), waiter("d", 2)) == "d b a c"


def test_one_step_of_priority_is_worth_the_aging_time():
    assert order(waiter("old"), waiter("new", 1, since=59.0)) == "new old"
    assert order(waiter("old"), waiter("new", 1, since=61.0)) == "old new"


def test_at_exactly_that_time_the_earlier_goes_first():
    assert order(waiter("old"), waiter("new", 1, since=60.0)) == "old new"


def test_one_that_leaves_is_found_no_more():
    queue = WaitQueue(60.0)
    a, b, c = waiter("a"), waiter("b"), waiter("c")
    for each in (a, b, c):
        queue.add(each)
    assert [w.ticket_id for w in queue.before(c)] == ["a", "b"]
    queue.remove(b)
    assert "b" not in queue.by_id
    assert queue.by_id["c"] is c
    assert len(queue) == 2
    assert [w.ticket_id for w in queue.before(c)] == ["a"]
