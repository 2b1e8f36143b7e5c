"""Nobody starves: a bound on how long a ticket waits, under any load.

The load may do what it likes, for ever: arrivals without end, of any size and group and of any
priority up to P, changes of size, cancelled starts. Only this is assumed: a ticket that was
admitted ends within H seconds of that, unless it is one of these, which may stay for ever:

- A pinned reservation; the ledger refuses at once whoever does not fit beside those.
- An idle one, neither pinned nor reclaimable, if each ticket that waits would fit beside it.
- A *cache*, a reclaimable reservation. It does not grow, it ends within H of being asked to, and
  its group has no cap: what keeps a ticket out of a group ends by itself.

Let a victim of priority p begin to wait at time t, and first let there be no caches.

1. The order is one key, and p waits `aging_seconds` for each step of priority. Whoever stands
   before the victim arrived by T0 = t + (P - p) * aging_seconds, and nobody joins those later.
   Let n of them be waiting still at a time from T0 on: they and the victim, the *elders*, have all
   later ones behind them.
2. By T1 = T0 + overtake_seconds every elder has waited so long that its room is kept. Take the
   first elder. From T1 on nobody new comes into its group: either it keeps the group, or it keeps
   all, or a ticket that grows keeps all. So at T1 + H at the latest, nothing but what stays is
   left of its group, it lacks nothing there, and nobody of its group is growing. Then it keeps
   all, or one that grows does: nobody comes in at all, and within H more nothing but what stays
   lives. It fits beside that, so it has come in. With one group only, H is enough: whatever keeps
   the group keeps all. So each elder comes in within 2 H of being the first (H with one group):

       the victim comes in by T0 + overtake_seconds + (n + 1) * 2 H.

3. Passing is bounded by number too, whatever `overtake_seconds` is. If the first elder is not
   passed for 2 H, it comes in: nobody of its group came in for H, so the group is empty, the
   ceiling alone keeps it out, and whoever came in after that would have passed it. After
   `overtake_count` passes its room is kept, so as in 2

       the victim comes in by T0 + (n + 1) * (overtake_count + 1) * 2 H.

4. Caches add H to each of these 2 H (or one). Where without them the first elder would have come
   in, only they keep it out, by the ceiling, and nobody passes it: it is the first for whom they
   are asked, they suffice, and they have ended H later.

`LEDGER_PROFILE=nightly` tries thousands of loads, other ones each time.

Where all have one priority T0 is t, and with `max_waiters` n is less than that: the bound then
follows from the configuration and H alone.
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections import Counter

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.memory.conftest import Driver, Reply
from wiredactors.memory.admission import Admission
from wiredactors.memory.policies import (
    WiredBudgetPolicy,
    WiredMaxPolicy,
    WiredMemoryPolicy,
    WiredSumPolicy,
)
from wiredactors.memory.pressure import Pressure
from wiredactors.memory.queue import WaitQueue

CEILING = 100
PINNED = 10
IDLE = 10
HOLD_SECONDS = 8.0  # H


@attrs.frozen
class TwoAtATime(WiredMemoryPolicy):
    """A user's own."""

    def limit(self, baseline, active_sizes):
        return baseline + sum(active_sizes)

    def can_admit(self, baseline, active_sizes, new_size):
        return len(active_sizes) < 2


ALL = WiredSumPolicy()
SMALL = WiredSumPolicy(cap=60)
OTHER = WiredMaxPolicy()
BUDGET = WiredBudgetPolicy(base_bytes=15, cap=80, id="budget")
TWO = TwoAtATime()
#: And the largest that fits beside the pinned one.
POLICIES: dict[WiredMemoryPolicy, int] = {ALL: 90, SMALL: 60, OTHER: 90, BUDGET: 65, TWO: 90}


@attrs.frozen(kw_only=True, eq=False)
class Stream:
    """Tickets of one kind, from `first` on one `every` so many seconds, and `backlog` that wait.

    Attributes:
        hold: seconds from admission to end.
        grows_to: what it asks for half way.
        patience: seconds after which one that waits gives up.
        asks_again: what it wants instead, after a second of waiting.
        caches: they are reclaimable reservations, and end `hold` seconds after being asked to.
    """

    size: int
    policy: WiredMemoryPolicy = ALL
    priority: int = 0
    kind: str = "active"
    every: float = 1.0
    first: float = 0.0
    backlog: int = 0
    hold: float = HOLD_SECONDS
    grows_to: int | None = None
    patience: float | None = None
    asks_again: int | None = None
    caches: bool = False


class Load:
    """A ledger under endless streams beside what stays, and one ticket that is watched.

    A pinned reservation stays, and with `idle` another one under that policy.

    Attributes:
        passed_in_group: how many of the victim's group came in that stood behind it.
    """

    def __init__(self, *streams: Stream, idle: WiredMemoryPolicy | None = None, **configuration):
        self.driver = Driver(ceiling=CEILING, writes=False, **configuration)
        self.configuration = self.driver.ledger.configuration
        self.passed_in_group = 0
        self._streams = streams
        self._agenda: list[tuple[float, int, str, str, Stream]] = []
        self._number = itertools.count()
        self._waiting: dict[str, tuple[Stream, Reply, tuple[float, int]]] = {}
        self._backlogs: Counter[int] = Counter()  # by place among the streams
        self._caches: dict[str, Stream] = {}
        self._victim: tuple[WiredMemoryPolicy, tuple[float, int]] | None = None
        self.driver.reserve("pinned", PINNED, pinned=True)
        if idle is not None:
            self.driver.reserve("idle", IDLE, idle)
        for stream in streams:
            self._plan(stream.first, "arrive", "", stream)

    def _plan(self, after: float, what: str, ticket: str, stream: Stream) -> None:
        entry = self.now + after, next(self._number), what, ticket, stream
        heapq.heappush(self._agenda, entry)

    @property
    def now(self) -> float:
        return self.driver.now

    def wait(self, size: int, policy: WiredMemoryPolicy, priority: int) -> Reply:
        """The victim begins to wait."""
        reply = self.driver.start("victim", size, policy, priority=priority)
        if reply.error is None:
            self._victim = policy, self._key(self.now, priority)
        self._see_who_is_asked()
        return reply

    @property
    def victim_waits(self) -> bool:
        return "victim" in self.driver.ledger._queue.by_id

    @property
    def elders(self) -> int:
        """How many wait before the victim."""
        return self.driver.waiting.index("victim")

    def run(self, until: float) -> None:
        """Let the load go on until then, or until the victim comes in."""
        while self._agenda and self._agenda[0][0] <= until:
            if self._victim is not None and not self.victim_waits:
                return
            at, _, what, ticket, stream = heapq.heappop(self._agenda)
            self.driver.now = at
            self._happen(what, ticket, stream)
        self.driver.now = until

    def _happen(self, what: str, ticket: str, stream: Stream) -> None:
        driver = self.driver
        match what:
            case "arrive":
                self._arrive(stream)
                self._plan(stream.every, "arrive", "", stream)
            case "end":
                driver.end(ticket)
            case "grow" if ticket in driver.ledger._book.holdings:
                driver.resize(ticket, stream.grows_to)
            case "ask again" if ticket in self._waiting:
                driver.resize(ticket, stream.asks_again)
            case "give up" if ticket in self._waiting:
                driver.cancel(self._waiting[ticket][1])
                self._leaves(ticket)
        self._see_who_came_in()
        for place, other in enumerate(self._streams):
            for _ in range(other.backlog - self._backlogs[place]):
                self._arrive(other)

    def _arrive(self, stream: Stream) -> None:
        ticket = f"t{next(self._number)}"
        kind = "reservation" if stream.caches else stream.kind
        more = {"kind": kind, "priority": stream.priority, "reclaimable": stream.caches}
        reply = self.driver.start(ticket, stream.size, stream.policy, **more)
        if reply.error is None:
            self._waiting[ticket] = stream, reply, self._key(self.now, stream.priority)
            self._backlogs[self._streams.index(stream)] += 1
            if stream.patience is not None:
                self._plan(stream.patience, "give up", ticket, stream)
            if stream.asks_again is not None:
                self._plan(1.0, "ask again", ticket, stream)
        self._see_who_came_in()

    def _key(self, since: float, priority: int) -> tuple[float, int]:
        return since - priority * self.configuration.aging_seconds, next(self._number)

    def _leaves(self, ticket: str) -> tuple[Stream, Reply, tuple[float, int]]:
        left = self._waiting.pop(ticket)
        self._backlogs[self._streams.index(left[0])] -= 1
        return left

    def _see_who_came_in(self) -> None:
        for event in self.driver.take_events():
            if event.kind == "ticket_started" and event.ticket_id in self._waiting:
                stream, _, key = self._leaves(event.ticket_id)
                if stream.caches:
                    self._caches[event.ticket_id] = stream
                else:
                    self._plan(stream.hold, "end", event.ticket_id, stream)
                    if stream.grows_to is not None:
                        self._plan(stream.hold / 2, "grow", event.ticket_id, stream)
                if self._victim is not None and self.victim_waits:
                    policy, its_key = self._victim
                    self.passed_in_group += stream.policy == policy and key > its_key
        self._see_who_is_asked()

    def _see_who_is_asked(self) -> None:
        while self.driver.asked:
            ticket = self.driver.asked.pop()
            stream = self._caches.pop(ticket)
            self._plan(stream.hold, "end", ticket, stream)


def starve(load: Load, size: int, policy: WiredMemoryPolicy = ALL, priority: int = 0) -> float:
    """See that one which comes now comes in by the bound, and say how many seconds before."""
    configuration, streams = load.configuration, load._streams
    highest = max([priority, *(stream.priority for stream in streams)])
    several_groups = any(stream.policy != policy for stream in streams)
    caches = any(stream.caches for stream in streams)
    drain = (1 + several_groups + caches) * HOLD_SECONDS
    if load.wait(size, policy, priority).error is not None:
        assert configuration.max_waiters is not None
        return 0.0
    load.run(load.now + (highest - priority) * configuration.aging_seconds)
    bound = load.now
    if load.victim_waits:
        bound += (load.elders + 1) * (configuration.overtake_count + 1) * drain
        kept_from = load.now + configuration.overtake_seconds
        if kept_from < bound:
            load.run(kept_from)
    if load.victim_waits:
        bound = min(bound, kept_from + (load.elders + 1) * drain)
        load.run(bound)
    assert not load.victim_waits, f"it waits at {load.now}, and should not after {bound}"
    assert load.passed_in_group <= configuration.overtake_count
    return bound - load.now


# -- loads that come close to the bound


def flood(policy: WiredMemoryPolicy, **more) -> Stream:
    """More than can ever come in."""
    return Stream(size=10, policy=policy, every=0.25, **more)


URGENT = Stream(size=30, priority=3, every=2.0)
STEADY = [Stream(size=10, every=1.0)]
FULL = WiredSumPolicy(cap=90)
IN_TURNS = [Stream(size=10, policy=FULL, every=1.0), flood(OTHER, first=29.5)]
BESIDE_A_CACHE = [Stream(size=10, every=2.0), Stream(size=40, every=1e6, caches=True)]


@pytest.mark.parametrize(
    "streams", [STEADY, IN_TURNS, BESIDE_A_CACHE], ids=["one group", "two groups", "a cache"]
)
def test_the_bound_is_reached_but_for_two_arrivals(streams):
    load = Load(*streams, overtake_count=10_000, overtake_seconds=30.0)
    load.run(0.0)
    assert 0 <= starve(load, 90, streams[0].policy) <= 2.0


@pytest.mark.parametrize("streams", [STEADY, IN_TURNS], ids=["one group", "two groups"])
def test_one_is_passed_so_often_and_no_oftener(streams):
    load = Load(*streams, overtake_count=5, overtake_seconds=1e6)
    load.run(0.0)
    starve(load, 90, streams[0].policy)
    assert load.passed_in_group == 5


def test_a_flood_of_a_higher_priority_keeps_it_out_until_it_has_aged():
    load = Load(URGENT, overtake_seconds=5.0, aging_seconds=20.0)
    load.run(20.0)
    since = load.now
    starve(load, 30)
    assert load.now - since > 60.0


def test_a_cache_in_its_own_group_keeps_nobody_out_for_ever():
    # The first in line keeps its group's room, not the ceiling's, which others take again and
    # again. Its cache alone would not be enough, and is asked for all the same.
    load = Load(
        Stream(size=20, policy=SMALL, every=1e6, caches=True),
        Stream(size=10, policy=OTHER, every=1.6),
        overtake_seconds=5.0,
    )
    load.run(20.0)
    starve(load, 60, SMALL)


# -- any load

SECONDS = st.sampled_from([0.25, 0.5, 1.0, 2.0, 5.0, HOLD_SECONDS])
SIZES = st.sampled_from([5, 10, 15, 20, 35, 50, 80])
STREAMS = st.builds(
    Stream,
    size=SIZES,
    policy=st.sampled_from(list(POLICIES)),
    priority=st.sampled_from([0, 0, 1, 2]),
    kind=st.sampled_from(["active", "active", "active", "reservation"]),
    every=st.sampled_from([0.5, 1.0, 2.5, 8.0]),
    backlog=st.sampled_from([0, 0, 1, 3]),
    hold=SECONDS,
    grows_to=st.none() | SIZES,
    patience=st.none() | SECONDS,
    asks_again=st.none() | SIZES,
)
CACHES = st.builds(
    Stream,
    size=SIZES,
    policy=st.sampled_from([ALL, OTHER]),
    priority=st.sampled_from([0, 0, 1, 2]),
    every=st.sampled_from([2.5, 8.0, 40.0]),
    backlog=st.sampled_from([0, 0, 1]),
    hold=SECONDS,
    patience=st.none() | SECONDS,
    caches=st.just(True),
)
LOADS = st.fixed_dictionaries(
    {
        "streams": st.lists(STREAMS | STREAMS | CACHES, min_size=1, max_size=4),
        "idle": st.sampled_from([None, None, ALL, SMALL, OTHER, TWO]),
        "overtake_count": st.sampled_from([0, 1, 5, 100]),
        "overtake_seconds": st.sampled_from([0.0, 5.0, 20.0, 1e6]),
        "aging_seconds": st.sampled_from([1.0, 5.0, 15.0]),
        "max_waiters": st.sampled_from([None, None, None, 8]),
    }
)
VICTIMS = st.sampled_from(list(POLICIES)).flatmap(
    lambda policy: st.tuples(
        st.sampled_from([5, 30, 60, 90]).map(lambda size: min(size, POLICIES[policy])),
        st.just(policy),
        st.sampled_from([0, 0, 1, 2]),
    )
)


_quick = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
_nightly = settings(_quick, max_examples=5000, derandomize=False)


@_nightly if os.environ.get("LEDGER_PROFILE") == "nightly" else _quick
@given(load=LOADS, victim=VICTIMS, comes_at=st.sampled_from([0.0, 6.25, 30.0]))
def test_nobody_starves_under_any_load(load, victim, comes_at):
    size, policy, priority = victim
    if load["idle"] is not None:
        size = min(size, POLICIES[policy] - IDLE)
    load = Load(*load.pop("streams"), **load)
    load.run(comes_at)
    starve(load, size, policy, priority)


def test_where_all_have_one_priority_the_configuration_says_how_long():
    large = Stream(size=50, policy=SMALL)
    load = Load(large, flood(OTHER, first=5.0), overtake_seconds=10.0, max_waiters=6)
    load.run(4.5)
    assert load.wait(60, SMALL, 0).error is None
    assert load.elders == 4
    load.run(load.now + 10.0 + 6 * 2 * HOLD_SECONDS)
    assert not load.victim_waits


# -- the property is one: it fails where its rule is broken


def test_it_fails_where_no_room_is_kept(monkeypatch):
    monkeypatch.setattr(Admission, "_passed_enough", lambda self, lane, now: False)
    load = Load(*STEADY, overtake_seconds=30.0)
    load.run(20.0)
    with pytest.raises(AssertionError, match="it waits at"):
        starve(load, 90)


def test_it_fails_where_nobody_ages(monkeypatch):
    def add(self, waiter):
        self.aging_seconds = 1e9
        original(self, waiter)

    original = WaitQueue.add
    monkeypatch.setattr(WaitQueue, "add", add)
    load = Load(URGENT, overtake_seconds=5.0, aging_seconds=20.0)
    load.run(20.0)
    with pytest.raises(AssertionError, match="it waits at"):
        starve(load, 30)


def test_it_fails_where_passes_are_not_counted(monkeypatch):
    monkeypatch.setattr(Admission, "_note_passes", lambda self, newcomer, barriers: None)
    load = Load(*STEADY, overtake_count=5, overtake_seconds=1e6)
    load.run(20.0)
    with pytest.raises(AssertionError, match="it waits at"):
        starve(load, 90)


def test_it_fails_where_no_cache_is_asked(monkeypatch):
    monkeypatch.setattr(Pressure, "look", lambda self: None)
    load = Load(*BESIDE_A_CACHE, overtake_seconds=30.0)
    load.run(20.0)
    with pytest.raises(AssertionError, match="it waits at"):
        starve(load, 90)
