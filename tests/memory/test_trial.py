"""A dry run says what a start would do, by doing it on a copy."""

from __future__ import annotations

import random
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wiredactors as wa
from tests.memory.machine_support import POLICIES
from wiredactors.memory import messages as m
from wiredactors.memory.errors import (
    ManagerClosed,
    PolicyConflict,
    PolicyError,
    QueueFull,
    TicketInUse,
    TicketTooLarge,
)
from wiredactors.memory.policies import (
    WiredBudgetPolicy,
    WiredMaxPolicy,
    WiredMemoryPolicy,
    WiredSumPolicy,
)
from wiredactors.memory.tickets import WiredMemoryTicket
from wiredactors.memory.trial import DryRun, _Scratch, all_admitted, dry_run

SUM = WiredSumPolicy(cap=100)
OTHER = WiredBudgetPolicy(base_bytes=10, cap=1000, id="other")


def ticket(ticket_id: str, size: int, policy: WiredMemoryPolicy = SUM, **more: Any):
    requires = more.pop("requires", ())
    made = WiredMemoryTicket(size, policy, id=ticket_id, **more)
    made.requires = requires
    return made


def would_admit(driver: Any, *asking: Any) -> DryRun:
    return dry_run(driver.ledger, asking, driver.now)


def outcomes(run: DryRun) -> list[str]:
    return [each.outcome for each in run.tickets]


# -- the outcome


def test_those_that_fit_would_be_admitted_one_after_the_other(driver):
    d = driver(ceiling=100)
    run = would_admit(d, (60, SUM), (30, SUM), (20, SUM))
    assert outcomes(run) == ["admitted", "admitted", "waits"]
    assert not run.admitted
    assert would_admit(d, (60, SUM), (30, SUM)).admitted
    assert would_admit(d).admitted


def test_nothing_happens_to_the_ledger(driver):
    d = driver(ceiling=100)
    d.start("a", 60, SUM)
    d.start("b", 50, SUM)
    before = d.ledger.snapshot(), d.ledger.explain("b", 5.0), d.ledger.deadline
    would_admit(d, (30, SUM), (30, SUM), (200, SUM))
    assert before == (d.ledger.snapshot(), d.ledger.explain("b", 5.0), d.ledger.deadline)
    d.end("a")
    assert d.running == ["b"]


def test_lanes_are_copied_as_they_are(driver):
    d = driver(ceiling=100)
    d.start("running", 95, SUM)
    d.advance(2)
    for n in range(9):
        d.start(f"w{n}", 50, SUM)
    d.advance(1)
    for name, since in (("x", 0.5), ("y", 0.25), ("z", 0.25)):
        d.start(name, 40, SUM, since=since)
    assert outcomes(would_admit(d, *[(3, SUM)] * 3)) == ["admitted", "waits", "waits"]
    d.end("w8")  # after it the last of its lane has left: who may stand there is as before
    d.start("v", 40, SUM, since=1.0)
    scratch = _Scratch(d.ledger)
    assert lanes_of(scratch) == lanes_of(d.ledger)
    for ledger in (scratch, d.ledger):
        late = m.Start(ticket("late", 30), object(), exclusive=True, since=2.5)
        ledger.receive(late, d.now)
    assert lanes_of(scratch) == lanes_of(d.ledger)


def lanes_of(ledger: Any) -> Any:
    """Those that wait in each, with their places and how often they were passed."""
    return [
        (lane.number, [(w.ticket_id, w.key, w.passed) for w in lane])
        for lane in ledger._queue.lanes
    ]


def test_a_record_says_what_it_is_about(driver):
    d = driver(ceiling=100)
    (record,) = would_admit(d, ticket("t", 60, OTHER)).tickets
    assert (record.ticket_id, record.size) == ("t", 60)
    assert record.policy == "WiredBudgetPolicy#id=other"
    assert (record.reason, record.error) == ("it fits now", None)


def test_one_that_waits_says_why_as_an_explanation_does(driver):
    d = driver(ceiling=100)
    d.start("running", 60, SUM)
    d.start("before", 50, SUM)
    (record,) = would_admit(d, ticket("t", 45)).tickets
    d.start("t", 45, SUM)
    why = d.ledger.explain("t", d.now)
    assert (record.outcome, record.blocked_by) == ("waits", "group")
    assert record.behind == why.behind == ("before",)
    assert record.missing == why.missing == 5
    assert record.reason == why.reason
    assert record.error is None


def test_one_that_never_fits_is_refused_with_the_numbers(driver):
    d = driver(ceiling=100)
    d.reserve("pinned", 30, SUM, pinned=True)
    (record,) = would_admit(d, (80, SUM)).tickets
    assert record.outcome == "refused"
    assert isinstance(record.error, TicketTooLarge)
    assert (record.error.need, record.error.largest_possible) == (80, 70)
    assert record.reason == str(record.error)


def test_a_full_queue_refuses(driver):
    d = driver(ceiling=100, max_waiters=1)
    d.start("running", 90, SUM)
    run = would_admit(d, (50, SUM), (50, SUM))
    assert outcomes(run) == ["waits", "refused"]
    assert isinstance(run.tickets[1].error, QueueFull)


def test_a_later_one_may_make_an_earlier_one_impossible(driver):
    d = driver(ceiling=100)
    d.start("running", 50, SUM)
    pinned = ticket("p", 40, kind="reservation", pinned=True)
    assert outcomes(would_admit(d, (70, SUM), pinned)) == ["refused", "admitted"]


@pytest.mark.parametrize("size", [10, 60])
def test_a_ticket_that_runs_or_waits_is_in_use(driver, size):
    d = driver(ceiling=100)
    d.start("first", 50, SUM)
    d.start("t", size, SUM)
    (record,) = would_admit(d, ticket("t", size)).tickets
    assert record.outcome == "refused"
    assert isinstance(record.error, TicketInUse)


def test_the_same_ticket_twice_is_in_use_the_second_time(driver):
    twice = ticket("t", 10)
    run = would_admit(driver(ceiling=100), twice, twice)
    assert outcomes(run) == ["admitted", "refused"]
    twice = ticket("t", 60)
    d = driver(ceiling=100)
    d.start("first", 50, SUM)
    assert outcomes(would_admit(d, twice, twice)) == ["waits", "refused"]


def test_the_same_id_with_other_parameters_is_a_conflict(driver):
    d = driver(ceiling=100)
    d.reserve("a", 10, OTHER)
    (record,) = would_admit(d, (1, WiredBudgetPolicy(base_bytes=11, cap=1000, id="other"))).tickets
    assert isinstance(record.error, PolicyConflict)


def test_a_policy_that_fails_fails_its_ticket_only(driver):
    class Broken(WiredMemoryPolicy):
        def limit(self, baseline, active_sizes):
            return baseline

        def can_admit(self, baseline, active_sizes, new_size):
            raise ZeroDivisionError

    run = would_admit(driver(ceiling=100), (10, Broken()), (10, SUM))
    assert outcomes(run) == ["refused", "admitted"]
    assert isinstance(run.tickets[0].error, PolicyError)


def test_after_closing_nothing_is_admitted(driver):
    d = driver(ceiling=100)
    d.close()
    assert isinstance(would_admit(d, (1, SUM)).tickets[0].error, ManagerClosed)


def test_what_is_kept_free_for_one_that_was_passed_stays_free(driver):
    d = driver(ceiling=100, overtake_count=2)
    d.start("running", 60, SUM)
    d.start("large", 90, SUM)
    d.start("a", 10, SUM)
    assert would_admit(d, (10, SUM)).admitted
    d.start("b", 10, SUM)
    (record,) = would_admit(d, (10, SUM)).tickets
    assert (record.outcome, record.blocked_by) == ("waits", "order")


def test_a_tightening_in_force_holds_for_a_dry_run(driver):
    d = driver(ceiling=100)
    d.start("running", 20, WiredMaxPolicy())
    assert would_admit(d, (60, WiredMaxPolicy())).admitted
    d.observe(available=30, total=1000)
    assert not would_admit(d, (60, WiredMaxPolicy())).admitted


@pytest.mark.parametrize(
    "asking", [5, [5], [(5,)], [(5, 5)], (5, SUM), ["ab"], [(5, SUM, "active")], [None]]
)
def test_what_is_no_ticket_is_an_error_that_says_what_is_taken(driver, asking):
    with pytest.raises(TypeError, match=r"takes several tickets or \(size, policy\) pairs, not"):
        dry_run(driver().ledger, asking, 0.0)


@pytest.mark.parametrize(
    ("one", "advice"),
    [
        ((5, SUM), r"pair: put it into a list, \[\(size, policy\)\]"),
        ([5, SUM], r"pair: put it into a list, \[\(size, policy\)\]"),
        (ticket("t", 5), r"ticket: put it into a list, \[ticket\]"),
    ],
)
def test_one_alone_is_to_be_put_into_a_list(driver, one, advice):
    with pytest.raises(TypeError, match=f"not a single {advice}$"):
        dry_run(driver().ledger, one, 0.0)


def test_a_size_that_is_none_is_an_error(driver):
    with pytest.raises(TypeError, match="must be an integer"):
        would_admit(driver(), (5.5, SUM))
    with pytest.raises(ValueError, match="must not be negative"):
        would_admit(driver(), (-5, SUM))


def test_where_tickets_do_nothing_all_are_admitted():
    run = all_admitted([(10**15, SUM), ticket("t", 5)])
    assert run.admitted
    assert [each.size for each in run.tickets] == [10**15, 5]
    with pytest.raises(TypeError):
        all_admitted([5])


# -- through a manager


async def test_a_manager_answers_at_once_and_nothing_is_registered():
    async with wa.open_manager(wa.WiredMemoryConfiguration(admission_ceiling=100)) as manager:
        await ticket("running", 60).start()
        before = manager.snapshot()
        assert outcomes(manager.would_admit([(40, SUM), (1, SUM)])) == ["admitted", "waits"]
        assert manager.snapshot() == before


async def test_a_manager_whose_tickets_do_nothing_admits_all():
    backend = Unsupported()
    configuration = wa.WiredMemoryConfiguration(policy_only_when_unsupported=False)
    async with wa.open_manager(configuration, backend) as manager:
        assert manager.would_admit([(10**18, SUM)]).admitted


class Unsupported:
    supported = False

    def recommended_working_set_bytes(self):
        return None

    def set_wired_limit(self, limit):
        raise AssertionError


# -- what would have to yield


def test_nothing_has_to_yield_to_one_that_waits_for_work_to_end(driver):
    d = driver(ceiling=100)
    d.reserve("weights", 30, SUM)
    d.start("running", 60, SUM)
    assert would_admit(d, (70, SUM)).would_yield == ()


def test_reclaimable_reservations_that_would_be_asked_have_to_yield(driver):
    d = driver(ceiling=100)
    d.reserve("old", 20, SUM, reclaimable=True)
    d.reserve("new", 20, SUM, reclaimable=True)
    d.touch("old")
    d.start("running", 50, SUM)
    run = would_admit(d, (30, SUM))
    assert run.tickets[0].would_yield == ("new",)
    assert d.asked == []
    assert would_admit(d, (50, SUM)).would_yield == ("new", "old")


def test_those_that_were_asked_already_go_in_any_case(driver):
    d = driver(ceiling=100)
    d.reserve("cache", 60, SUM, reclaimable=True)
    d.reserve("weights", 40, SUM)
    d.start("waiting", 50, SUM)
    assert d.asked == ["cache"]
    assert would_admit(d, (10, SUM)).would_yield == ()


def test_else_idle_reservations_the_oldest_first_and_none_that_could_stay(driver):
    d = driver(ceiling=100)
    for ticket_id, size in (("a", 10), ("b", 30), ("c", 30), ("d", 5)):
        d.reserve(ticket_id, size, SUM)
    d.start("running", 25, SUM)
    assert would_admit(d, (50, SUM)).would_yield == ("b",)
    assert would_admit(d, (60, SUM)).would_yield == ("a", "b")
    assert would_admit(d, (70, SUM)).would_yield == ("b", "c")
    assert would_admit(d, (100, SUM)).would_yield == ("a", "b", "c", "d")


def test_pinned_ones_and_those_that_it_stands_on_stay(driver):
    d = driver(ceiling=100)
    d.reserve("pinned", 20, SUM, pinned=True)
    d.reserve("own", 20, SUM)
    d.reserve("idle", 20, SUM)
    assert would_admit(d, ticket("t", 60, requires=("own",))).would_yield == ("idle",)


def test_the_cap_of_a_group_is_freed_by_that_group_only(driver):
    d = driver(ceiling=1000)
    d.reserve("elsewhere", 500, OTHER)
    d.reserve("here", 60, SUM)
    assert would_admit(d, (50, SUM)).would_yield == ("here",)


def test_cap_and_ceiling_are_freed_together(driver):
    d = driver(ceiling=150)
    d.reserve("elsewhere", 60, OTHER)
    d.reserve("here", 60, SUM)
    assert would_admit(d, (90, SUM)).would_yield == ("here", "elsewhere")


def test_reservations_that_ask_together_need_room_for_all_of_them(driver):
    d = driver(ceiling=100)
    d.reserve("a", 45, SUM)
    d.reserve("b", 45, SUM)
    new = [ticket(name, 40, kind="reservation") for name in ("x", "y")]
    run = would_admit(d, *new)
    assert [each.would_yield for each in run.tickets] == [("a",), ("b",)]
    assert run.would_yield == ("a", "b")


def test_nothing_is_named_where_all_of_it_would_not_be_enough(driver):
    d = driver(ceiling=100)
    d.reserve("idle", 40, SUM)
    d.observe(available=0)
    assert would_admit(d, (70, SUM)).would_yield == ()


def test_those_that_ask_now_yield_to_each_other_only_where_nothing_else_can(driver):
    d = driver(ceiling=100)
    d.reserve("idle", 40, SUM)
    new = ticket("new", 50, kind="reservation")
    assert would_admit(d, new, (60, SUM)).would_yield == ("new",)
    assert would_admit(d, new, (50, SUM)).would_yield == ("idle",)


def test_a_policy_of_ones_own_is_asked(driver):
    d = driver(ceiling=100)
    three = POLICIES[-1]
    for ticket_id in "abc":
        d.reserve(ticket_id, 1, three)
    assert would_admit(d, (1, three)).would_yield == ("a",)


# -- against what really happens

SIZES = [10, 15, 20, 30, 5, 45, 60, 0, 90, 110]
IDS = [f"t{n}" for n in range(12)]


def _shape(rng: random.Random) -> tuple[Any, ...]:
    kind = rng.choice(["active", "reservation"])
    pinned = kind == "reservation" and rng.random() < 0.1
    more = {
        "kind": kind,
        "priority": rng.choice([0, 0, 1, 2]),
        "pinned": pinned,
        "reclaimable": kind == "reservation" and not pinned and rng.random() < 0.5,
        "requires": tuple(rng.sample(IDS, rng.choice([0, 0, 1]))),
    }
    policies = [SUM, SUM, WiredSumPolicy(), WiredSumPolicy(), *POLICIES]
    return rng.choice(SIZES), rng.choice(policies), more


_rng = random.Random(11)
#: To choose one of many is much less work than to draw each of its traits.
SHAPES = [_shape(_rng) for _ in range(300)]


def tickets(ids: list[str]) -> st.SearchStrategy[WiredMemoryTicket]:
    return st.builds(
        lambda ticket_id, shape: ticket(ticket_id, *shape[:2], **shape[2]),
        st.sampled_from(ids),
        st.sampled_from(SHAPES),
    )


MOVES = st.one_of(
    tickets(IDS),
    tickets(IDS),
    tickets(IDS),
    st.tuples(st.just("end"), st.sampled_from(IDS)),
    st.tuples(st.just("resize"), st.sampled_from(IDS), st.sampled_from(SIZES)),
    st.tuples(st.just("touch"), st.sampled_from(IDS)),
    st.tuples(st.just("advance"), st.sampled_from([0.5, 5.0, 40.0])),
    st.just(("outcome",)),
)
OUTSIDE = st.tuples(st.just("observe"), st.sampled_from([0, 20, 60, 1000]))


@attrs.define(eq=False)
class Reply:
    """What the driver writes an answer into."""

    answer: int | None = None
    error: Exception | None = None
    answered = False


def play(d: Any, moves: list[Any]) -> None:
    for move in moves:
        match move:
            case WiredMemoryTicket():
                d.send(m.Start(move, Reply()))
            case ("outcome",):
                if d.under_way:
                    d.outcome()
            case (name, *arguments):
                getattr(d, name)(*arguments)


def state_of(ledger: Any, now: float) -> Any:
    return (
        ledger.snapshot(),
        [ledger.explain(ticket_id, now) for ticket_id in IDS],
        [ledger.is_asked(ticket_id) for ticket_id in IDS],
        ledger.deadline,
    )


HISTORIES = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=200,
)


@HISTORIES
@given(
    data=st.data(),
    moves=st.lists(MOVES | OUTSIDE, min_size=20, max_size=40),
    asking=st.lists(tickets([*IDS, *(f"u{n}" for n in range(12))]), max_size=5),
)
def test_what_it_says_is_what_then_happens(driver, data, moves, asking):
    d = driver(
        ceiling=data.draw(st.sampled_from([100, 100, None])),
        previous=data.draw(st.sampled_from([0, 10])),
        deferred=data.draw(st.booleans()),
        overtake_count=data.draw(st.sampled_from([0, 1, 3])),
        max_waiters=data.draw(st.sampled_from([None, None, 3])),
    )
    play(d, moves)
    ledger, now = d.ledger, d.now
    before = state_of(ledger, now)
    run = dry_run(ledger, asking, now)
    assert state_of(ledger, now) == before

    replies = [object() for _ in asking]
    effects = []
    for each, reply in zip(asking, replies, strict=True):
        effects += ledger.receive(m.Start(each, reply, exclusive=True), now)
    effects += ledger.settle(now)
    errors = {effect.reply: effect.error for effect in effects if isinstance(effect, m.Refuse)}
    asked = {
        effect.ticket_id: tuple(effect.details["asked"])
        for effect in effects
        if getattr(effect, "kind", None) == "pressure"
    }
    for each, reply, record in zip(asking, replies, run.tickets, strict=True):
        error = errors.get(reply)
        assert (type(record.error), str(record.error)) == (type(error), str(error))
        if error is not None:
            assert record.outcome == "refused"
            continue
        why = ledger.explain(each.id, now)
        assert record.outcome == {"running": "admitted", "waiting": "waits"}[why.state]
        assert (record.blocked_by, record.behind) == (why.blocked_by, why.behind)
        assert record.missing == why.missing
        if asked.get(each.id):
            assert record.would_yield == asked[each.id]


@HISTORIES
@given(moves=st.lists(MOVES, min_size=20, max_size=40), asking=tickets(["u"]))
def test_with_what_would_have_to_yield_gone_it_comes_in_and_not_without(driver, moves, asking):
    d = driver(ceiling=100)
    play(d, moves)
    for grower in list(d.ledger._growers):  # it would take what becomes free
        d.cancel_resize(grower.reply)
    (record,) = would_admit(d, asking).tickets
    if record.outcome != "waits":
        assert record.would_yield == ()
        return
    asked_before = {ticket_id for ticket_id in IDS if d.ledger.is_asked(ticket_id)}
    d.send(m.Start(asking, Reply()))
    asked = {ticket_id for ticket_id in IDS if d.ledger.is_asked(ticket_id)}
    if asked - asked_before:  # they go while active work goes on
        assert set(record.would_yield) <= asked - asked_before
        return
    holdings = d.ledger._book.holdings.values()
    ending = {h.ticket_id for h in holdings if h.active and not h.pinned} | asked
    ending -= set(asking.requires)
    waiting = [ticket_id for ticket_id in d.waiting if ticket_id != "u"]

    def without(gone: set[str]) -> str:
        scratch = _Scratch(d.ledger)
        for ticket_id in [*reversed(waiting), *ending, *gone]:
            scratch.receive(m.End(ticket_id), d.now)
        return scratch.explain("u", d.now).state

    yielding = set(record.would_yield)
    assert without(yielding) == "running"
    for ticket_id in yielding:
        assert without(yielding - {ticket_id}) == "waiting", f"{ticket_id} could stay"
