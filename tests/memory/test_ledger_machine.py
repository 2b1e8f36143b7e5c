"""Random histories of the ledger, against what must hold at every moment.

`LEDGER_PROFILE=nightly` runs 2,000 histories of 100 steps instead of a few short ones.
"""

from __future__ import annotations

import os
from typing import Any

import attrs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from wiredactors.memory import messages as m
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.events import Snapshot, TicketSnapshot, WiredMemoryEvent
from wiredactors.memory.ledger import Ledger
from wiredactors.memory.policies import (
    WiredBudgetPolicy,
    WiredFixedPolicy,
    WiredMaxPolicy,
    WiredMemoryPolicy,
    WiredSumPolicy,
)
from wiredactors.memory.tickets import WiredMemoryTicket

CEILING = 100


@attrs.frozen
class AtMostThree(WiredMemoryPolicy):
    """A user's own: three tickets at a time, whatever their bytes."""

    def limit(self, baseline, active_sizes):
        return baseline + 2 * sum(active_sizes)

    def can_admit(self, baseline, active_sizes, new_size):
        return len(active_sizes) < 3


POLICIES: list[WiredMemoryPolicy] = [
    WiredSumPolicy(),
    WiredSumPolicy(cap=60),
    WiredMaxPolicy(),
    WiredFixedPolicy(limit=40),
    WiredBudgetPolicy(base_bytes=15, cap=80, id="budget"),
    WiredBudgetPolicy(base_bytes=5, id="uncapped"),
    WiredBudgetPolicy(base_bytes=6, cap=80, id="budget"),  # in conflict with the first of its id
    AtMostThree(),
]
SIZES = st.sampled_from([0, 5, 10, 20, 30, 40, 50, 60, 90, 110])
TICKETS = [f"t{n}" for n in range(9)]


@attrs.define(eq=False)
class Request:
    """A start, an end, a resize or a configuration, and how often it was answered."""

    command: m.Command | None = None
    answers: int = 0
    refusals: list[Exception] = attrs.field(factory=list)
    cancelled: bool = False

    @property
    def done(self) -> bool:
        return self.answers + len(self.refusals) > 0


class Replica:
    """The state of the ledger, rebuilt from its events alone."""

    def __init__(self) -> None:
        self.tickets: dict[str, dict[str, Any]] = {}
        self.waiters: dict[str, dict[str, Any]] = {}
        self.baseline = 0
        self.current_limit: int | None = None

    def take(self, event: WiredMemoryEvent) -> None:
        assert event.baseline is not None
        self.baseline = event.baseline
        ticket = event.ticket_id
        match event.kind:
            case "admission_wait":
                self.waiters[ticket] = _record(event)
            case "admission_granted" | "admission_cancelled" | "admission_refused":
                self.waiters.pop(ticket, None)
            case "ticket_started":
                self.tickets[ticket] = _record(event)
            case "ticket_ended":
                del self.tickets[ticket]
            case "ticket_resized":
                record = self.tickets.get(ticket) or self.waiters[ticket]
                record.update(size=event.size, wants_size=None)
            case "resize_wait":
                self.tickets[ticket]["wants_size"] = event.size
            case "resize_refused" | "resize_cancelled":
                record = self.tickets.get(ticket) or self.waiters[ticket]
                record["wants_size"] = None
            case "limit_applied":
                self.current_limit = event.applied_limit
        assert event.active_count == len(self.tickets)
        # A waiter is announced only after the pass in which it could have come in.
        assert event.waiter_count >= len(self.waiters)


def _record(event: WiredMemoryEvent) -> dict[str, Any]:
    return {
        "ticket_id": event.ticket_id,
        "size": event.size,
        "kind": event.ticket_kind,
        "priority": event.priority,
        "policy": event.policy,
        "pinned": event.details.get("pinned", False),
        "since": event.timestamp,
        "wants_size": None,
    }


class LedgerMachine(RuleBasedStateMachine):
    @initialize(
        supported=st.sampled_from([True, True, True, False]),
        ceiling=st.sampled_from([CEILING, CEILING, CEILING, None]),
        override=st.sampled_from([None, None, None, 12]),
        device=st.sampled_from([0, 10, 10, CEILING, None]),
        overtake_count=st.sampled_from([0, 1, 3]),
        max_waiters=st.sampled_from([None, None, 2]),
        mode=st.sampled_from(["policy", "policy", "policy", "off", "fit"]),
    )
    def open(self, supported, ceiling, override, device, overtake_count, max_waiters, mode):
        self.ceiling = ceiling
        self.supported = supported
        self.configuration = WiredMemoryConfiguration(
            baseline_override=override,
            overtake_count=overtake_count,
            overtake_seconds=20.0,
            max_waiters=max_waiters,
            wired_mode=mode,
        )
        self.ledger = Ledger(self.configuration, ceiling=ceiling, writes=supported)
        self.now = 0.0
        self.device = device
        self.backend_limit = device
        self.requests: list[Request] = []
        self.sequence = 0
        self.under_way: int | None = None
        self.learned: int | None = None  # from the first write that the backend took
        self.refusing = False
        self.deferring = False
        self.closed = False
        self.replica = Replica()
        self.settled = True
        self.total = 0
        self.asked_at: dict[int, float] = {}
        self.seen: tuple[tuple[int, bool], Snapshot] | None = None

    # -- rules

    @rule(data=st.data(), policy=st.sampled_from(POLICIES[:3]), count=st.integers(2, 5))
    def start_several(self, data, policy, count):
        """Work of one kind, some of which will have to wait."""
        for ticket in self.idle()[:count]:
            size = data.draw(st.sampled_from([10, 15, 20, 30, 45, 60]))
            self.start(ticket, size, policy)

    @rule(
        data=st.data(),
        size=SIZES,
        policy=st.sampled_from(POLICIES),
        kind=st.sampled_from(["active", "active", "reservation"]),
        priority=st.integers(0, 2),
        pinned=st.booleans(),
    )
    def start_one(self, data, size, policy, kind, priority, pinned):
        live = [*self.state.tickets, *self.state.waiters]
        live = [ticket for ticket in live if ticket.kind == "reservation"]
        required = data.draw(st.sampled_from([None, *live])) if live else None
        for ticket in self.idle()[:1]:
            self.start(
                ticket,
                size,
                policy,
                kind=kind,
                priority=priority,
                pinned=pinned and kind == "reservation" and size < 40,
                requires=() if required is None else (required.ticket_id,),
            )

    @rule(size=st.sampled_from([75, 85, 95]), policy=st.sampled_from(POLICIES[:3]))
    def start_a_large_one(self, size, policy):
        for ticket in self.idle()[:1]:
            self.start(ticket, size, policy)

    @rule(
        size=st.sampled_from([5, 10, 25]),
        policy=st.sampled_from(POLICIES[:3]),
        priority=st.sampled_from([0, 2]),
        pinned=st.booleans(),
    )
    def reserve(self, size, policy, priority, pinned):
        for ticket in self.idle()[:1]:
            self.start(ticket, size, policy, kind="reservation", priority=priority, pinned=pinned)

    @rule(data=st.data(), exclusive=st.booleans())
    def start_again(self, data, exclusive):
        for ticket in self.some_of(data, self.live()):
            self.start(ticket, 10, POLICIES[0], exclusive=exclusive)

    def start(self, ticket_id, size, policy, kind="active", requires=(), exclusive=False, **more):
        request = self.request()
        self.asked_at[id(request)] = self.now
        ticket = WiredMemoryTicket(size, policy, kind, id=ticket_id, **more)
        ticket.requires = requires
        request.command = m.Start(ticket, request, exclusive)
        self.send(request.command)

    @rule(data=st.data(), waits=st.booleans())
    def end(self, data, waits):
        for ticket in self.some_of(data, self.live()):
            self.send(m.End(ticket, self.request() if waits else None))
            assert ticket not in self.live()

    @rule(ends=st.booleans())
    def the_first_waiter_gives_up(self, ends):
        for waiter in list(self.ledger._queue)[:1]:
            if ends:
                self.send(m.End(waiter.ticket_id))
            else:
                waiter.reply.cancelled = True
                self.send(m.CancelStart(waiter.ticket_id, waiter.reply))

    @rule(ticket=st.sampled_from(TICKETS))
    def end_anyone(self, ticket):
        self.send(m.End(ticket, self.request()))

    @rule(data=st.data())
    def cancel_a_start(self, data):
        """Waiting, granted, or answered just before its task could say that it was cancelled."""
        for ticket in self.some_of(data, self.live()):
            for request in reversed(self.requests):
                command = request.command
                if isinstance(command, m.Start) and command.ticket_id == ticket:
                    if not request.cancelled and not request.refusals:
                        admitted_it = self.admitting(ticket) is request
                        request.cancelled = True
                        self.send(m.CancelStart(ticket, request))
                        assert (ticket in self.live()) != admitted_it
                    break

    def admitting(self, ticket):
        """The start that a live ticket waits in or was admitted by: the first not ignored."""
        ledger = self.ledger
        waiter = ledger._queue.by_id.get(ticket)
        return waiter.reply if waiter else ledger._book.holdings[ticket].reply

    @rule(data=st.data(), size=st.sampled_from([0, 10, 20, 30, 45, 60, 80, 100, 120]))
    def resize(self, data, size):
        for ticket in self.some_of(data, self.live()):
            request = self.request()
            request.command = m.Resize(ticket, size, request)
            self.send(request.command)

    @rule(by=st.sampled_from([15, 40]))
    def everyone_asks_for_more(self, by):
        for ticket in self.state.tickets:
            request = self.request()
            request.command = m.Resize(ticket.ticket_id, ticket.size + by, request)
            self.send(request.command)

    @rule(data=st.data())
    def cancel_a_resize(self, data):
        resizes = [
            request
            for request in self.requests
            if isinstance(request.command, m.Resize) and not request.done and not request.cancelled
        ]
        for request in self.some_of(data, resizes):
            request.cancelled = True
            self.send(m.CancelResize(request.command.ticket_id, request))

    def live(self):
        return [ticket.ticket_id for ticket in [*self.state.tickets, *self.state.waiters]]

    def idle(self):
        live = self.live()
        return [ticket for ticket in TICKETS if ticket not in live]

    def some_of(self, data, those):
        return [data.draw(st.sampled_from(those))] if those else []

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 5.0, 30.0, 70.0]))
    def advance(self, seconds):
        self.settle()
        until = self.now + seconds
        while (deadline := self.ledger.deadline) is not None and deadline <= until:
            assert deadline > self.now
            self.now = deadline
            self.settle()
        self.now = until

    @rule(count=st.integers(1, 4))
    def settle_later(self, count):
        """What comes next is one turn."""
        self.unsettled = count

    @rule(refusing=st.booleans(), deferring=st.booleans())
    def backend_changes(self, refusing, deferring):
        self.refusing, self.deferring = refusing, deferring

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def outcome(self):
        limit, self.under_way = self.under_way, None
        self.send(self.outcome_of(limit))

    @rule(cooldown=st.sampled_from([0.0, 1.0, 3.0]), ceiling=st.sampled_from([80, 100, 130]))
    def configure(self, cooldown, ceiling):
        request = self.request()
        ceiling = None if self.ceiling is None else ceiling
        changed = attrs.evolve(self.configuration, shrink_cooldown=cooldown)
        self.send(m.Configure(changed, ceiling, request))
        if not request.refusals:
            self.ceiling, self.configuration = ceiling, changed

    @rule()
    def foreign_write(self):
        self.send(m.ForeignWrite(77))

    # -- carrying out

    unsettled = 0

    def request(self) -> Request:
        request = Request()
        self.requests.append(request)
        return request

    def send(self, command: m.Command) -> None:
        if self.unsettled:
            self.unsettled -= 1
        self.settled = False
        self.carry_out(self.receive(command))
        if not self.unsettled:
            self.settle()

    def receive(self, command: m.Command) -> list[m.Effect]:
        """Nobody comes in past one that was before it and has its room kept free."""
        ledger = self.ledger
        before = set(self.ledger._book.holdings)
        growers = list(ledger._growers)
        waiters = [waiter for waiter in ledger._queue if self.keeps_room(waiter)]
        effects = ledger.receive(command, self.now)
        growers = [grower for grower in growers if grower in list(ledger._growers)]
        waiters = [waiter for waiter in waiters if waiter in list(ledger._queue)]
        newcomers = [
            effect
            for effect in effects
            if isinstance(effect, WiredMemoryEvent) and effect.kind == "ticket_started"
        ]
        for event in newcomers:
            holding = ledger._book.holdings.get(event.ticket_id)
            if holding is None or event.ticket_id in before:
                continue
            asked_at = self.asked_at[id(holding.reply)]
            place = asked_at - holding.priority * self.configuration.aging_seconds
            for other in growers + [w for w in waiters if w.key[0] < place]:
                assert ledger._admission.blocked_by(other, self.now) != "ceiling"
                assert other.holding.group is not holding.group
        return effects

    def keeps_room(self, waiter: Any) -> bool:
        return (
            waiter.passed >= self.configuration.overtake_count
            or self.now - waiter.since >= self.configuration.overtake_seconds
        )

    def settle(self) -> None:
        self.unsettled = 0
        self.settled = True
        self.carry_out(self.ledger.settle(self.now))

    def carry_out(self, effects: list[m.Effect]) -> None:
        for effect in effects:
            match effect:
                case WiredMemoryEvent():
                    self.sequence += 1
                    assert effect.sequence == self.sequence
                    self.replica.take(effect)
                case m.WriteLimit(limit):
                    assert self.supported
                    assert self.configuration.wired_mode != "off"
                    assert self.under_way is None
                    self.under_way = limit
                case m.Answer(requests, limit):
                    assert isinstance(limit, int)
                    for request in requests:
                        assert not request.cancelled
                        request.answers += 1
                        if isinstance(request.command, m.Start):
                            assert self.ledger.size_of(request.command.ticket_id) is not None
                case m.Refuse(request, error):
                    assert not request.cancelled
                    request.refusals.append(error)
        if self.under_way is not None and not self.deferring:
            limit, self.under_way = self.under_way, None
            self.carry_out(self.receive(self.outcome_of(limit)))
            self.settle()

    def outcome_of(self, limit: int) -> m.Command:
        if self.refusing:
            return m.LimitRefused(limit, "ValueError: no")
        previous = self.backend_limit
        if self.learned is None:
            leftover = previous is None or (self.ceiling is not None and previous >= self.ceiling)
            self.learned = 0 if leftover else previous
        if previous is not None:
            self.backend_limit = limit
        return m.LimitWritten(limit, previous)

    # -- what must hold

    @property
    def state(self) -> Snapshot:
        now = (self.ledger.sequence, self.settled)
        if self.seen is None or self.seen[0] != now:
            self.seen = now, self.ledger.snapshot()
        return self.seen[1]

    def sizes_by_group(self) -> dict[str, list[int]]:
        sizes: dict[str, list[int]] = {}
        for ticket in self.state.tickets:
            sizes.setdefault(ticket.policy, []).append(ticket.size)
        return sizes

    def policy_labelled(self, label: str) -> WiredMemoryPolicy:
        group = self.ledger._book.groups.values()
        return next(g.policy for g in group if g.label == label)

    @invariant()
    def every_request_is_answered_at_most_once(self):
        for request in self.requests:
            assert request.answers + len(request.refusals) <= 1

    @invariant()
    def the_events_tell_the_whole_state(self):
        state = self.state
        replica = self.replica
        assert state.sequence == self.sequence
        assert [TicketSnapshot(**t) for t in replica.tickets.values()] == list(state.tickets)
        waiters = {w.ticket_id: w for w in state.waiters}
        assert {t: TicketSnapshot(**w) for t, w in replica.waiters.items()} == waiters
        assert replica.current_limit == state.current_limit
        assert replica.baseline == state.baseline

    @invariant()
    def nobody_holds_more_than_a_cap_or_the_ceiling_allows(self):
        baseline = self.state.baseline
        learned_late = baseline > 0 and self.configuration.baseline_override is None
        allowance = baseline if learned_late else 0
        total = baseline
        for label, sizes in self.sizes_by_group().items():
            policy = self.policy_labelled(label)
            total += sum(sizes) + policy.base_bytes
            if policy.cap is not None:
                assert baseline + policy.base_bytes + sum(sizes) <= policy.cap + allowance
            if isinstance(policy, AtMostThree):
                assert len(sizes) <= 3
        if self.ceiling is not None:
            # A ceiling that was lowered over living reservations only stops what comes after.
            assert total <= max(self.ceiling + allowance, self.total)
        self.total = total

    @invariant()
    def the_wanted_limit_is_what_the_live_tickets_ask_for(self):
        if not self.settled:
            return
        state = self.state
        wanted = state.baseline
        if any(ticket.kind == "active" for ticket in state.tickets):
            if self.configuration.wired_mode == "fit":
                total = state.baseline + sum(ticket.size for ticket in state.tickets)
                wanted = max(wanted, total if self.ceiling is None else min(total, self.ceiling))
            else:
                for label, sizes in self.sizes_by_group().items():
                    policy = self.policy_labelled(label)
                    limit = policy.limit(state.baseline, sizes)
                    uncapped = isinstance(policy, WiredSumPolicy | WiredBudgetPolicy)
                    if uncapped and policy.cap is None and self.ceiling is not None:
                        limit = min(limit, self.ceiling)
                    wanted = max(wanted, limit)
        assert state.desired_limit == wanted

    @invariant()
    def the_limit_covers_the_work_unless_it_was_refused(self):
        if not self.settled or self.refusing or self.under_way is not None:
            return
        state = self.state
        if self.supported and self.configuration.wired_mode == "off":
            assert state.current_limit is None
            return
        if self.ledger._settlement._limit._refusal is not None:
            return
        if any(ticket.kind == "active" for ticket in state.tickets):
            assert state.current_limit >= state.desired_limit
        elif state.current_limit is not None:
            assert state.current_limit == state.baseline

    @invariant()
    def nobody_waits_whom_the_order_lets_in(self):
        state = self.state
        kept: set[str] = set()  # labels of groups, or "*"
        for ticket in state.tickets:
            if ticket.wants_size is not None:
                blocked_by = self.blocked_by(ticket, ticket.wants_size, own=ticket.size)
                assert blocked_by is not None, f"{ticket} could grow"
                kept.add("*" if blocked_by == "ceiling" else ticket.policy)
        for ticket in state.waiters:
            if ticket.policy in kept or "*" in kept:
                continue
            blocked_by = self.blocked_by(ticket, ticket.size)
            assert blocked_by is not None, f"{ticket} could come in"
            waiter = self.ledger._queue.by_id.get(ticket.ticket_id)
            if self.keeps_room(waiter):
                kept.add("*" if blocked_by == "ceiling" else ticket.policy)

    def blocked_by(self, ticket: TicketSnapshot, size: int, own: int | None = None) -> str | None:
        state = self.state
        groups = self.sizes_by_group()
        sizes = list(groups.get(ticket.policy, ()))
        if own is not None:
            sizes.remove(own)
        policy = self.policy_labelled(ticket.policy)
        if not policy.can_admit(state.baseline, sizes, size):
            return "group"
        bases = sum(self.policy_labelled(label).base_bytes for label in {*groups, ticket.policy})
        total = state.baseline + sum(t.size for t in state.tickets) + bases + size - (own or 0)
        return "ceiling" if self.ceiling is not None and total > self.ceiling else None

    @invariant()
    def nobody_waits_for_nothing(self):
        """An empty ledger has no waiters, and one active ticket at least can always end."""
        state = self.state
        if not state.tickets:
            assert state.waiters == ()
        active = [ticket for ticket in state.tickets if ticket.kind == "active"]
        growing = [ticket for ticket in active if ticket.wants_size is not None]
        assert not active or len(growing) < len(active)

    @invariant()
    def the_baseline_is_what_was_there_before(self):
        if self.learned is not None:
            override = self.configuration.baseline_override
            assert self.state.baseline == (self.learned if override is None else override)

    @invariant()
    def nobody_waits_who_can_never_come_in(self):
        book, state = self.ledger._book, self.state
        for waiter in [*self.ledger._queue, *self.ledger._growers]:
            stays = [
                holding
                for holding in book.holdings.values()
                if holding is not waiter.holding
                and (holding.pinned or holding.ticket_id in waiter.holding.requires)
            ]
            group = waiter.holding.group
            policy = group.policy
            held = [holding.size for holding in stays if holding.group is group]
            assert policy.can_admit(state.baseline, held, waiter.wants)
            bases = sum(g.policy.base_bytes for g in {group, *(h.group for h in stays)})
            total = state.baseline + sum(h.size for h in stays) + bases + waiter.wants
            assert self.ceiling is None or total <= self.ceiling

    @invariant()
    def the_explanation_of_a_waiter_names_what_blocks_it(self):
        for ticket in self.state.waiters:
            explanation = self.ledger.explain(ticket.ticket_id, self.now)
            assert explanation.state == "waiting"
            assert explanation.blocked_by in ("group", "ceiling", "order")

    def teardown(self):
        if not hasattr(self, "ledger"):
            return
        self.deferring = self.refusing = False
        if self.under_way is not None:
            self.outcome()
        self.settle()
        self.advance(100.0)  # over every back-off
        for ticket in [*self.state.waiters, *self.state.tickets]:
            self.send(m.End(ticket.ticket_id))
        self.settle()
        state = self.state
        assert state.tickets == state.waiters == ()
        assert state.current_limit in (None, state.baseline)
        for request in self.requests:
            assert request.done or request.cancelled
        self.send(m.Close())
        self.settle()
        assert self.ledger.finished
        if self.supported and self.backend_limit is not None and state.current_limit is not None:
            assert self.configuration.wired_mode == "off" or self.backend_limit == state.baseline


class ClosingMachine(LedgerMachine):
    """The same, closed with everything in flight."""

    def teardown(self):
        if not hasattr(self, "ledger"):
            return
        self.refusing = False  # a restore that is refused at the very end is left
        self.send(m.Close())
        self.settle()
        while self.under_way is not None:
            self.outcome()
        assert self.ledger.finished
        state = self.state
        assert state.tickets == state.waiters == ()
        assert state.current_limit in (None, state.baseline)
        for request in self.requests:
            assert request.done or request.cancelled


_quick = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
_nightly = settings(_quick, max_examples=2000, stateful_step_count=100, derandomize=False)
_profile = _nightly if os.environ.get("LEDGER_PROFILE") == "nightly" else _quick

LedgerMachine.TestCase.settings = _profile
ClosingMachine.TestCase.settings = _profile
TestLedger = LedgerMachine.TestCase
TestClosing = ClosingMachine.TestCase
