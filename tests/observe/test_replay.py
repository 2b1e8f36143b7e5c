"""A snapshot and the events after it give the next snapshot, exactly."""

from __future__ import annotations

import contextlib
import random

import attrs
import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from trio.testing import wait_all_tasks_blocked

import wiredactors as wa
from tests.memory.conftest import Driver
from wiredactors.memory import messages as m
from wiredactors.memory.events import EventKind, Snapshot, WiredMemoryEvent
from wiredactors.memory.share import Share
from wiredactors.memory.tickets import WiredMemoryTicket

CEILING = 100
SUM100 = wa.WiredSumPolicy(cap=100)
BUDGET = wa.WiredBudgetPolicy(base_bytes=15, cap=80, id="budget")


class Moody(wa.WiredMemoryPolicy):
    """A user's own that fails for some sizes; the others must not hear of it."""

    id = "moody"

    def limit(self, baseline, active_sizes):
        if len(active_sizes) == 2:
            raise ValueError("not two")
        return baseline + 2 * sum(active_sizes)

    def can_admit(self, baseline, active_sizes, new_size):
        return len(active_sizes) < 3


POLICIES = [
    wa.WiredSumPolicy(),
    SUM100,
    wa.WiredSumPolicy(cap=60),
    wa.WiredMaxPolicy(),
    BUDGET,
    wa.WiredBudgetPolicy(base_bytes=5, cap=80, id="budget"),  # in conflict with the one before
    Moody(),
]
TICKETS = [f"t{n}" for n in range(8)]


#: Where it lives, some models share it.
WORKSPACE = WiredMemoryTicket(0, SUM100, "reservation", id="t0")


class ReplayMachine(RuleBasedStateMachine):
    """Random histories of the pure ledger: each settled moment is replayed from the first."""

    @initialize(
        ceiling=st.sampled_from([CEILING, CEILING, None]),
        writes=st.sampled_from([True, True, False]),
        previous=st.sampled_from([0, 10, None, CEILING]),
        refuses_over=st.sampled_from([None, None, 40]),
        deferred=st.booleans(),
        baseline_override=st.sampled_from([None, None, 12]),
        wired_mode=st.sampled_from(["policy", "policy", "fit", "off"]),
        max_waiters=st.sampled_from([None, None, 2]),
        overtake_count=st.sampled_from([0, 3]),
        aging_seconds=st.sampled_from([1, 5.0, 60.0]),
    )
    def open(self, **how):
        self.driver = Driver(**how)
        self.states = [self.driver.ledger.snapshot()]
        self.starts, self.resizes = [], []
        self.unsettled = 0

    def after(self, command, *arguments, **named):
        """Send a command; several are one turn after `together`."""
        driver = self.driver
        self.unsettled -= self.unsettled > 0
        driver._together = self.unsettled > 0
        return command(*arguments, **named)

    @rule(
        count=st.integers(1, 4),
        size=st.sampled_from([0, 10, 20, 35, 50, 90, 110]),
        policy=st.sampled_from(POLICIES),
        kind=st.sampled_from(["active", "active", "cache", "model", "pinned", "reservation"]),
        priority=st.integers(0, 2),
        requires=st.sampled_from([(), ("t0",), ("t1", "t2")]),
    )
    def start(self, count, size, policy, kind, priority, requires):
        state = self.driver.ledger.snapshot()
        live = {ticket.ticket_id for ticket in state.tickets + state.waiters}
        for ticket in [ticket for ticket in TICKETS if ticket not in live][:count]:
            reply = self.after(
                self.driver.start,
                ticket,
                size,
                policy,
                kind="active" if kind == "active" else "reservation",
                priority=priority,
                pinned=kind == "pinned",
                reclaimable=kind == "cache",
                evictable=kind == "model",
                share=Share(WORKSPACE, 5, 3) if kind == "model" and requires == ("t0",) else None,
                requires=requires,
            )
            self.starts.append(reply)

    @rule(ticket=st.sampled_from(TICKETS), exclusive=st.booleans())
    def start_again(self, ticket, exclusive):
        reply = self.after(self.driver.start, ticket, 10, POLICIES[0], exclusive=exclusive)
        self.starts.append(reply)

    @rule(ticket=st.sampled_from(TICKETS))
    def end(self, ticket):
        self.after(self.driver.end, ticket)

    @rule(data=st.data())
    def cancel_a_start(self, data):
        if self.starts:
            self.after(self.driver.cancel, data.draw(st.sampled_from(self.starts)))

    @rule(ticket=st.sampled_from(TICKETS), size=st.sampled_from([0, 5, 15, 30, 45, 70, 120]))
    def resize(self, ticket, size):
        self.resizes.append(self.after(self.driver.resize, ticket, size))

    @rule(data=st.data())
    def cancel_a_resize(self, data):
        waiting = [resize for resize in self.resizes if not resize.answered]
        if waiting:
            self.after(self.driver.cancel_resize, data.draw(st.sampled_from(waiting)))

    @rule(by=st.sampled_from([15, 40]))
    def everyone_asks_for_more(self, by):
        for ticket in self.driver.ledger.snapshot().tickets:
            resize = self.after(self.driver.resize, ticket.ticket_id, ticket.size + by)
            self.resizes.append(resize)

    @rule(data=st.data())
    def touch(self, data):
        tickets = self.driver.ledger.snapshot().tickets
        caches = [ticket.ticket_id for ticket in tickets if ticket.reclaimable]
        self.after(self.driver.touch, data.draw(st.sampled_from([*caches, "t0"])))

    @rule(ticket=st.sampled_from(TICKETS), in_use=st.booleans())
    def use(self, ticket, in_use):
        self.after(self.driver.use, ticket, in_use=in_use)

    @rule(ticket=st.sampled_from(TICKETS), pinned=st.booleans())
    def pin(self, ticket, pinned):
        self.after(self.driver.pin, ticket, pinned)

    @rule(size=st.sampled_from([30, 60]), more=st.sampled_from([50, 80]), idle=st.booleans())
    def a_model_and_another_that_wants_its_room(self, size, more, idle):
        self.start(1, size, SUM100, "model", 0, ("t0",))
        if idle:
            for ticket in self.driver.ledger.snapshot().tickets:
                self.use(ticket.ticket_id, in_use=False)
        self.start(1, more, SUM100, "model", 0, ())

    @rule(priority=st.integers(0, 2))
    def models_that_were_asked_go_and_come_again(self, priority):
        for ticket in self.driver.ledger.snapshot().tickets:
            if ticket.asked and ticket.evictable:
                self.end(ticket.ticket_id)
                more = {"evictable": True, "priority": priority}
                name, size = ticket.ticket_id, ticket.size
                self.starts.append(self.after(self.driver.reserve, name, size, SUM100, **more))

    @rule(size=st.sampled_from([30, 60]), more=st.sampled_from([50, 80]))
    def a_cache_and_work_that_wants_its_room(self, size, more):
        self.start(1, size, SUM100, "cache", 0, ())
        self.start(1, more, SUM100, "active", 0, ())

    @rule(available=st.sampled_from([0, 20, 60, 1000]), footprint=st.sampled_from([0, 50]))
    def observe(self, available, footprint):
        self.after(self.driver.observe, available, footprint)

    @rule(size=st.sampled_from([0, 10, 30]))
    def a_cache_that_is_asked_gives_a_part(self, size):
        for ticket in self.driver.ledger.snapshot().tickets:
            if ticket.asked:
                self.after(self.driver.resize, ticket.ticket_id, size)

    @rule()
    def observe_nothing(self):
        self.after(self.driver.send, m.Observe(None, "OSError: no"))

    @rule(
        ceiling=st.sampled_from([80, 100, None]),
        baseline_override=st.sampled_from([None, 12, 20]),
        aging_seconds=st.sampled_from([1, 5.0, 60.0]),
        wired_mode=st.sampled_from(["policy", "policy", "fit", "off"]),
    )
    def configure(self, **changes):
        self.after(self.driver.configure, **changes)

    @rule(
        refuses_over=st.sampled_from([None, None, 0, 40, 80]),
        deferred=st.sampled_from([False, True]),
    )
    def backend_changes(self, refuses_over, deferred):
        self.driver.refuses_over, self.driver.deferred = refuses_over, deferred

    @rule(error=st.sampled_from([None, None, "ValueError: no"]))
    def outcome(self, error):
        if self.driver.under_way:
            self.after(self.driver.outcome, error)

    @rule(others=st.sampled_from([0, 77]))
    def foreign_write(self, others):
        """One that the guard saw, or another writer's that it did not."""
        if self.driver.device is not None:
            self.driver.device = others
        self.after(self.driver.send, m.ForeignWrite(77))

    @rule()
    def a_job_says_something(self):
        self.after(self.driver.send, m.Note(EventKind.JOB_QUEUED, ticket_id="t0", size=10, job="j"))

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0, 5.0, 70.0]))
    def advance(self, seconds):
        self.turn_ends()
        self.driver.advance(seconds)

    @rule(count=st.integers(2, 5))
    def together(self, count):
        self.turn_ends()
        self.unsettled = count

    def turn_ends(self):
        self.unsettled = 0
        if self.driver._together:
            self.driver._together = False
            self.driver.settle()

    @invariant()
    def the_events_give_the_next_snapshot(self):
        if self.driver._together:
            return
        state = self.driver.ledger.snapshot()
        for first in (self.states[0], self.states[-1]):
            assert wa.replay(first, self.driver.events) == state
        if state != self.states[-1]:
            self.states.append(state)

    def teardown(self):
        if not hasattr(self, "driver"):
            return
        self.turn_ends()
        self.the_events_give_the_next_snapshot()
        self.driver.close()
        while self.driver.under_way:
            self.driver.outcome()
        state = self.driver.ledger.snapshot()
        assert state.tickets == state.waiters == ()
        for middle in self.states[:: max(1, len(self.states) // 10)]:
            assert wa.replay(middle, self.driver.events) == state


ReplayMachine.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestReplay = ReplayMachine.TestCase


# -- each by itself


def history(**how) -> tuple[Driver, Snapshot]:
    driver = Driver(ceiling=CEILING, **how)
    return driver, driver.ledger.snapshot()


def test_nothing_after_a_snapshot_gives_that_snapshot():
    driver, _ = history()
    driver.start("a", 60)
    driver.start("b", 50)
    state = driver.ledger.snapshot()
    assert wa.replay(state, []) == state


def test_what_is_no_snapshot_is_an_error():
    with pytest.raises(TypeError, match="replay goes on from a Snapshot, not None"):
        wa.replay(None, [])


def test_what_is_given_is_left_as_it_was():
    driver, first = history()
    driver.start("a", 60)
    before, events = attrs.evolve(first), list(driver.events)
    wa.replay(first, events)
    wa.replay(first, events)
    assert (first, events) == (before, driver.events)


def test_waiters_stand_in_the_order_of_the_queue_not_of_their_coming():
    driver, first = history(aging_seconds=5.0)
    driver.start("runs", 100)
    driver.start("early", 10)
    driver.advance(5.0)
    driver.start("as_early", 10, priority=1)  # the same key: the first to come stays before it
    driver.start("late", 10)
    driver.start("urgent", 10, priority=2)
    driver.resize("early", 15)
    assert driver.waiting == ["urgent", "early", "as_early", "late"]
    assert wa.replay(first, driver.events) == driver.ledger.snapshot()


def test_a_change_of_aging_orders_those_that_come_after_it():
    driver, first = history(aging_seconds=60.0)
    driver.configure(ceiling=CEILING, aging_seconds=1.0)
    driver.start("runs", 100)
    driver.start("early", 10)
    driver.advance(2.0)
    driver.start("urgent", 10, priority=1)
    assert driver.waiting == ["early", "urgent"]
    state = wa.replay(first, driver.events)
    assert state == driver.ledger.snapshot()
    assert state.aging_seconds == 1.0


def test_a_waiting_reservation_has_not_been_used():
    driver, first = history()
    driver.advance(1.0)
    driver.start("runs", 60)
    driver.reserve("cache", 50, reclaimable=True)
    (waiter,) = driver.ledger.snapshot().waiters
    assert (waiter.reclaimable, waiter.used_at, waiter.since) == (True, None, 1.0)
    driver.advance(1.0)
    driver.end("runs")
    state = wa.replay(first, driver.events)
    assert [ticket.used_at for ticket in state.tickets] == [2.0]
    assert state == driver.ledger.snapshot()


def test_a_cache_that_was_asked_and_gave_a_part_may_be_asked_again():
    driver, first = history()
    driver.reserve("cache", 80, reclaimable=True)
    driver.start("waits", 60)
    asked = wa.replay(first, driver.events)
    assert [ticket.asked for ticket in asked.tickets] == [True]
    driver.cancel(driver.start("other", 90))
    driver.resize("cache", 40)
    state = wa.replay(asked, driver.events)
    assert [ticket.asked for ticket in state.tickets] == [False, False]
    assert state == driver.ledger.snapshot()


def test_one_that_waits_to_grow_keeps_its_place_until_it_has_grown_or_not():
    driver, first = history()
    driver.start("a", 40)
    driver.start("b", 40)
    for ends_by in ("cancelled", "refused", "grown"):
        resize = driver.resize("a", 65)
        state = wa.replay(first, driver.events)
        assert [ticket.wants_size for ticket in state.tickets] == [65, None]
        if ends_by == "cancelled":
            driver.cancel_resize(resize)
        elif ends_by == "refused":
            driver.resize("b", 65)  # both wait to grow, so the last to ask is refused
            driver.cancel_resize(resize)
        else:
            driver.resize("b", 30)
        state = wa.replay(first, driver.events)
        assert [ticket.ticket_id for ticket in state.tickets] == ["a", "b"]
        assert [ticket.wants_size for ticket in state.tickets] == [None, None]
        assert state == driver.ledger.snapshot()


def test_one_that_waited_to_grow_and_has_become_impossible_waits_no_more():
    driver, first = history(deferred=True, previous=20)
    driver.start("a", 40)
    driver.start("b", 10)
    driver.resize("a", 95)
    assert [ticket.wants_size for ticket in wa.replay(first, driver.events).tickets] == [95, None]
    driver.outcome()  # a baseline of 20 is learned, which leaves 80
    assert "resize_refused" in driver.kinds
    assert wa.replay(first, driver.events) == driver.ledger.snapshot()


def test_amid_a_turn_what_is_asked_for_is_what_was_decided_last():
    driver, first = history()
    driver.start("a", 60)
    driver.start("b", 30)
    driver.end("a")
    number = driver.last("ticket_ended").sequence
    assert wa.replay(first, driver.events[:number]).desired_limit == 90
    assert wa.replay(first, driver.events).desired_limit == 30


def test_events_that_the_snapshot_includes_are_skipped():
    driver, _ = history()
    driver.start("a", 60)
    middle = driver.ledger.snapshot()
    driver.end("a")
    assert wa.replay(middle, driver.events) == driver.ledger.snapshot()
    assert wa.replay(middle, driver.events + driver.events) == driver.ledger.snapshot()


@pytest.mark.parametrize(
    ("left_out", "said"), [([3], "event 3 is missing"), ([2, 3, 4], "events 2 to 4 are missing")]
)
def test_a_gap_says_which_numbers_are_missing(left_out, said):
    driver, first = history()
    driver.start("a", 60)
    events = [event for event in driver.events if event.sequence not in left_out]
    with pytest.raises(ValueError, match=said):
        wa.replay(first, events)


def record(kind: EventKind, sequence: int, **fields) -> WiredMemoryEvent:
    return WiredMemoryEvent(kind=kind, sequence=sequence, timestamp=0.0, **fields)


def test_a_missed_record_says_which_numbers_are_missing():
    driver, first = history()
    driver.start("a", 60)
    missed = record(EventKind.MISSED, 3, missed=2)
    events = [driver.events[0], missed, *driver.events[3:]]
    with pytest.raises(ValueError, match="events 2 to 3 are missing"):
        wa.replay(first, events)
    with pytest.raises(ValueError, match="events 2 to 3 are missing"):
        wa.replay(first, [driver.events[0], missed])
    middle = wa.replay(first, driver.events[:3])  # they are in the snapshot: nothing is missing
    assert wa.replay(middle, events) == driver.ledger.snapshot()


def test_a_snapshot_record_is_compared_where_its_number_was_reached():
    driver, first = history()
    driver.start("a", 60)
    state = driver.ledger.snapshot()
    number = state.sequence
    older = record(EventKind.SNAPSHOT, 0, snapshot=first)
    same = record(EventKind.SNAPSHOT, number, snapshot=state)
    assert wa.replay(first, [older, *driver.events, same, older]) == state
    other = attrs.evolve(state, baseline=5, ceiling=7)
    with pytest.raises(ValueError, match=f"number {number} has other baseline, ceiling than"):
        wa.replay(first, [*driver.events, attrs.evolve(same, snapshot=other)])
    with pytest.raises(ValueError, match=f"events 1 to {number} are missing"):
        wa.replay(first, [same])


@pytest.mark.parametrize("kind", ["ticket_ended", "ticket_resized", "admission_cancelled"])
def test_an_event_of_a_ticket_that_is_not_there_is_of_another_manager(kind):
    _, first = history()
    event = record(EventKind(kind), 1, ticket_id="x", size=5)
    with pytest.raises(ValueError, match=f"event 1, {kind}: ticket x is not in the state"):
        wa.replay(first, [event])


def test_models_and_jobs_only_bring_the_number_forward():
    driver, first = history()
    driver.send(m.Note(EventKind.MODEL_READY, model="chat", ticket_id="w", size=5))
    assert wa.replay(first, driver.events) == attrs.evolve(first, sequence=1)


# -- what is counted


def test_every_write_that_has_its_outcome_counts():
    driver, _ = history(refuses_over=50)
    assert driver.ledger.snapshot().writes_per_thousand_tickets == 0.0
    driver.start("a", 60)  # refused
    driver.start("b", 0)  # as it was tried already
    driver.resize("a", 40)
    driver.end("a")
    state = driver.ledger.snapshot()
    assert (state.tickets_started, state.limit_writes) == (2, len(driver.tried))
    assert state.writes_per_thousand_tickets == 500.0 * len(driver.tried)


def test_a_write_under_way_does_not_count_yet():
    driver, _ = history(deferred=True)
    driver.start("a", 60)
    assert driver.ledger.snapshot().limit_writes == 0
    driver.outcome()
    assert driver.ledger.snapshot().limit_writes == 1


def test_without_a_limit_to_write_decisions_count_and_off_has_none():
    policy_only, _ = history(writes=False)
    off, _ = history(wired_mode="off")
    for driver in (policy_only, off):
        driver.start("a", 60)
        driver.end("a")
    assert policy_only.ledger.snapshot().writes_per_thousand_tickets == 2000.0
    assert off.ledger.snapshot().writes_per_thousand_tickets == 0.0
    assert off.ledger.snapshot().current_limit is None


def test_they_are_counted_though_nobody_listens():
    driver, _ = history()
    driver.ledger.listen(False)
    driver.start("a", 60)
    state = driver.ledger.snapshot()
    assert (driver.events, state.tickets_started, state.limit_writes) == ([], 1, 1)


# -- a subscriber of the live manager


class Unreliable:
    """It refuses some writes, and where there is a nursery it takes its time for them."""

    supported = True

    def __init__(self, rng: random.Random):
        self.rng, self.limit = rng, 7

    def recommended_working_set_bytes(self):
        return CEILING

    def set_wired_limit(self, limit):
        if self.rng.random() < 0.1:
            raise ValueError("no")
        previous, self.limit = self.limit, limit
        return previous


class UnreliableAndLate(Unreliable):
    def __init__(self, rng: random.Random, nursery: trio.Nursery):
        super().__init__(rng)
        self.nursery = nursery

    def write_wired_limit(self, limit, done):
        async def later():
            await trio.sleep(self.rng.random())
            try:
                done(self.set_wired_limit(limit), None)
            except ValueError as error:
                done(None, error)

        self.nursery.start_soon(later)


class Load:
    """Tasks that come and go at random, with caches, resizes, cancels and outside pressure."""

    def __init__(self, manager: wa.WiredMemoryManager, rng: random.Random):
        self.manager, self.rng = manager, rng
        self.ended = 0

    async def run(self, tasks: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(self.one)

    async def one(self) -> None:
        rng = self.rng
        await trio.sleep(rng.uniform(0, 100))
        work = rng.choice([self.job, self.job, self.cache, self.grower, self.machine])
        with contextlib.suppress(wa.WiredMemoryError), trio.move_on_after(rng.choice([2, 9, 99])):
            await work()
        self.ended += 1

    def ticket(self, *kind, **more) -> wa.WiredMemoryTicket:
        policy = self.rng.choice([SUM100, wa.WiredMaxPolicy(), BUDGET])
        return policy.ticket(self.rng.randrange(60), *kind, priority=self.rng.randrange(3), **more)

    async def job(self) -> None:
        async with self.ticket().wired_limit():
            await trio.sleep(self.rng.uniform(0, 6))

    async def grower(self) -> None:
        ticket = self.ticket(self.rng.choice(["active", "reservation"]))
        async with ticket.wired_limit():
            for _ in range(3):
                await ticket.resize(self.rng.randrange(70))
                await trio.sleep(self.rng.uniform(0, 2))

    async def cache(self) -> None:
        ticket = self.ticket("reservation", reclaimable=True)
        async with ticket.wired_limit():
            ticket.touch()
            await ticket.wait_for_reclaim()
            await trio.sleep(self.rng.uniform(0, 2))  # to free it

    async def machine(self) -> None:
        reading = wa.MemoryReading(1000, self.rng.choice([0, 50, 900]), 0)
        self.manager.report_memory(reading)
        await self.manager.update_configuration(aging_seconds=self.rng.choice([1.0, 30.0]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("late", [False, True])
async def test_a_late_subscriber_can_follow_the_live_manager(
    autojump_clock, nursery, shuffle, seed, late
):
    shuffle(seed + 1)
    rng = random.Random(seed)
    backend = UnreliableAndLate(rng, nursery) if late else Unreliable(rng)
    configuration = wa.WiredMemoryConfiguration(watch_seconds=0, aging_seconds=3.0)
    compared = waited = asked = 0

    async def follow():
        nonlocal compared, waited, asked
        await trio.sleep(rng.uniform(0, 60))
        read = []
        async with manager.events() as stream:
            for _ in range(60):
                await trio.sleep(rng.uniform(0, 2))
                if rng.random() < 0.5:
                    await wait_all_tasks_blocked()
                with contextlib.suppress(trio.WouldBlock):
                    while True:
                        read.append(stream.receive_nowait())
                state = manager.snapshot()
                assert wa.replay(read[0].snapshot, read) == state
                compared += 1
                waited += bool(state.waiters)
                asked += any(ticket.asked for ticket in state.tickets)
                if rng.random() < 0.2:  # go on from here, and from nothing before
                    read = [record(EventKind.SNAPSHOT, state.sequence, snapshot=state)]

    async with wa.open_manager(configuration, backend) as manager, trio.open_nursery() as tasks:
        load = Load(manager, rng)
        tasks.start_soon(load.run, 400)
        for _ in range(4):
            tasks.start_soon(follow)
    assert load.ended == 400
    assert compared == 240
    assert waited > 100
    assert asked > 0


async def test_a_stream_from_its_beginning_to_the_close(autojump_clock):
    read = []
    async with trio.open_nursery() as readers:

        async def follow(task_status):
            async with manager.events() as events:
                task_status.started()
                read.extend([event async for event in events])

        rng = random.Random(1)
        async with wa.open_manager(backend=Unreliable(rng)) as manager:
            await SUM100.ticket(10).start()
            await readers.start(follow)
            with trio.move_on_after(50):
                await Load(manager, rng).run(100)
            await SUM100.ticket(10, "reservation").start()
    state = wa.replay(read[0].snapshot, read)
    assert state == manager.snapshot()
    assert state.tickets == ()
    assert state.tickets_started > 20
