"""What the state machine of the ledger stands on: what is asked, and two states beside its own.

`Replica` is what the events tell, `Twin` what the naive rules decide.
"""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis.stateful import RuleBasedStateMachine

from tests.memory.naive import Decision, Naive, Ticket, limit_of
from wiredactors.memory import messages as m
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.events import TicketSnapshot, WiredMemoryEvent
from wiredactors.memory.ledger import Ledger
from wiredactors.memory.outside import MemoryReading
from wiredactors.memory.policies import (
    WiredBudgetPolicy,
    WiredFixedPolicy,
    WiredMaxPolicy,
    WiredMemoryPolicy,
    WiredSumPolicy,
    policy_label,
)

CEILING = 100


@attrs.frozen
class AtMostThree(WiredMemoryPolicy):
    """A user's own: three tickets at a time, whatever their bytes."""

    def limit(self, baseline, active_sizes):
        return baseline + 2 * sum(active_sizes)

    def can_admit(self, baseline, active_sizes, new_size):
        return len(active_sizes) < 3


class OtherBudget(WiredBudgetPolicy):
    """A type of its own, so that events name it by another label."""


POLICIES: list[WiredMemoryPolicy] = [
    WiredSumPolicy(),
    WiredSumPolicy(cap=60),
    WiredMaxPolicy(),
    WiredFixedPolicy(limit=40),
    WiredBudgetPolicy(base_bytes=15, cap=80, id="budget"),
    WiredBudgetPolicy(base_bytes=5, id="uncapped"),
    OtherBudget(base_bytes=6, cap=80, id="budget"),  # in conflict with the first of its id
    AtMostThree(),
]
BY_LABEL = {policy_label(policy): policy for policy in POLICIES}


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
    """The state of the ledger, rebuilt from its events alone.

    Attributes:
        tickets, waiters: records as in a snapshot, by id.
        fit: whether the limit is that of the tickets' bytes; no event tells that.
    """

    def __init__(self, ceiling: int | None, *, fit: bool) -> None:
        self.tickets: dict[str, dict[str, Any]] = {}
        self.waiters: dict[str, dict[str, Any]] = {}
        self.baseline = 0
        self.sequence = 0
        self.excess: int | None = 0
        self.ceiling = ceiling
        self.fit = fit
        self.current_limit: int | None = None

    def take(self, event: WiredMemoryEvent) -> None:
        self.sequence += 1
        assert event.sequence == self.sequence, "a number is missing"
        assert event.baseline is not None
        self.baseline = event.baseline
        ticket = event.ticket_id
        match event.kind:
            case "admission_wait":
                self.waiters[ticket] = _record(event)
            case "admission_granted" | "admission_cancelled" | "admission_refused":
                self.waiters.pop(ticket, None)
            case "ticket_started":
                self.tickets[ticket] = record = _record(event)
                if record["reclaimable"] or record["evictable"]:
                    record["used_at"] = event.timestamp
                record["in_use"] = record["evictable"]
            case "ticket_used":
                self.tickets[ticket]["used_at"] = event.timestamp
                if "in_use" in event.details:
                    self.tickets[ticket]["in_use"] = event.details["in_use"]
            case "ticket_pinned":
                record = self.tickets.get(ticket) or self.waiters[ticket]
                record["pinned"] = event.details["pinned"]
                record["asked"] = record["asked"] and not record["pinned"]
            case "reclaim_requested":
                self.tickets[ticket]["asked"] = True
            case "ticket_ended":
                del self.tickets[ticket]
            case "ticket_resized":
                record = self.tickets.get(ticket) or self.waiters[ticket]
                gave = event.size < record["size"] and record["reclaimable"]
                asked = record["asked"] and not gave
                record.update(size=event.size, wants_size=None, asked=asked)
            case "resize_wait":
                self.tickets[ticket]["wants_size"] = event.size
            case "resize_refused" | "resize_cancelled":
                record = self.tickets.get(ticket) or self.waiters[ticket]
                record["wants_size"] = None
            case "limit_computed":
                assert event.desired_limit == self.limit()
            case "limit_applied":
                self.current_limit = event.applied_limit
            case "outside_pressure":
                self.excess = event.size
            case "configuration_updated":
                self.ceiling = event.details["ceiling"]
        assert event.active_count == len(self.tickets)
        # A waiter is announced only after the pass in which it could have come in.
        assert event.waiter_count >= len(self.waiters)

    def limit(self) -> int:
        """The limit that the tickets ask for, by the naive rules."""
        tickets = [
            Ticket(
                id=record["ticket_id"],
                size=record["size"],
                kind=record["kind"],
                policy=BY_LABEL[record["policy"]],
                priority=record["priority"],
                pinned=record["pinned"],
                requires=record["requires"],
                since=record["since"],
                arrival=place,
                wants=record["size"],
            )
            for place, record in enumerate(self.tickets.values())
        ]
        ceiling = float("inf") if self.ceiling is None else self.ceiling
        return limit_of(tickets, self.baseline, ceiling, fit=self.fit)

    @property
    def running(self) -> list[TicketSnapshot]:
        return [TicketSnapshot(**record) for record in self.tickets.values()]

    @property
    def waiting(self) -> dict[str, TicketSnapshot]:
        return {ticket: TicketSnapshot(**record) for ticket, record in self.waiters.items()}


def _record(event: WiredMemoryEvent) -> dict[str, Any]:
    return {
        "ticket_id": event.ticket_id,
        "size": event.size,
        "kind": event.ticket_kind,
        "priority": event.priority,
        "policy": event.policy,
        "pinned": event.details.get("pinned", False),
        "since": event.details.get("since", event.timestamp),
        "reclaimable": event.details.get("reclaimable", False),
        "requires": event.details.get("requires", ()),
        "wants_size": None,
        "used_at": None,
        "asked": False,
        "evictable": event.details.get("evictable", False),
        "in_use": False,
        "shares": event.details.get("shares"),
        "share_size": event.details.get("share_size", 0),
        "share_margin": event.details.get("share_margin", 0),
    }


#: The events that are decisions of admission, and what the naive rules call them.
DECISIONS = {
    "ticket_started": "admitted",
    "ticket_resized": "grown",
    "admission_refused": "refused",
    "resize_refused": "resize_refused",
    "admission_wait": "waits",
    "resize_wait": "resize_waits",
}


def decisions_in(effects: list[m.Effect]) -> list[Decision]:
    events = [effect for effect in effects if isinstance(effect, WiredMemoryEvent)]
    return [(DECISIONS[e.kind], str(e.ticket_id)) for e in events if e.kind in DECISIONS]


class Twin:
    """The naive rules, given the same commands as a ledger."""

    def __init__(self, configuration: WiredMemoryConfiguration, ceiling: int | None):
        self.naive = Naive(configuration, ceiling)
        self._asked: dict[str, Any] = {}  # the reply of the start that made each ticket
        self._grows: dict[str, Any] = {}  # and of the resize that it waits for
        self._reading: MemoryReading | None = None
        self._claimed = 0
        self._wrote = self._closed = False

    def receive(self, command: m.Command, now: float) -> list[Decision]:
        """What the rules decide."""
        naive = self.naive
        match command:
            case m.Start(ticket=ticket) if not self._closed and not naive.knows(ticket.id):
                self._asked[ticket.id] = command.reply
                decided = naive.start(
                    ticket.id,
                    ticket.size,
                    ticket.kind,
                    ticket.policy,
                    ticket.priority,
                    ticket.pinned,
                    ticket.requires,
                    now,
                    reclaimable=ticket.reclaimable,
                    evictable=ticket.evictable,
                    share=ticket.share,
                )
                waits = naive.excess and ticket.id in naive.waiting
                if waits and (claimed := naive.claimed(ticket.id)):
                    self._claimed += claimed
                    decided += naive.press(min(self._excess(), naive.excess), now)
                return decided
            case m.End(id) if naive.knows(id):
                return naive.end(id, now)
            case m.CancelStart(id, reply) if naive.knows(id) and self._asked[id] is reply:
                return naive.end(id, now)
            case m.Resize(id, size, reply) if naive.knows(id):
                if id not in dict(naive.growing):
                    self._grows[id] = reply
                return naive.resize(id, size, now)
            case m.CancelResize(id, reply) if id in dict(naive.growing):
                return naive.cancel_resize(id, now) if self._grows[id] is reply else []
            case m.Use(id, in_use) if naive.knows(id):
                return naive.use(id, in_use, now)
            case m.Pin(id, pinned) if naive.knows(id):
                return naive.pin(id, pinned, now)
            case m.LimitWritten(previous=previous) if not self._wrote:
                self._wrote = True
                return self._learn(previous or 0, now)
            case m.Observe(reading):
                self._reading, self._claimed = reading, naive.claimed()
                return naive.press(self._excess(), now)
            case m.Configure():
                return naive.configure(command.configuration, command.ceiling, now)
            case m.Close():
                self._closed = True
                return naive.close()
        return []

    def _learn(self, previous: int, now: float) -> list[Decision]:
        if 0 < previous >= self.naive.ceiling:  # a leftover of another's
            return []
        return self.naive.learn_baseline(previous, now)

    def _excess(self) -> int:
        reading = self._reading
        if reading is None or self.naive.ceiling >= reading.total_bytes:
            return 0
        free = reading.available_bytes + min(reading.footprint_bytes, self._claimed)
        return max(0, int(self.naive.ceiling) - free)

    def compare(self, ledger: Ledger) -> None:
        """See that the ledger's state is that of the rules."""
        naive = self.naive
        holdings = ledger._book.holdings.values()
        assert [(holding.ticket_id, holding.size) for holding in holdings] == naive.running
        assert ledger.granted_bytes == sum(size for _, size in naive.running)
        assert [waiter.ticket_id for waiter in ledger._queue] == naive.waiting
        assert {waiter.ticket_id: waiter.passed for waiter in ledger._queue} == naive.passed
        assert [(grower.ticket_id, grower.wants) for grower in ledger._growers] == naive.growing
        assert not naive.running or ledger.baseline == naive.baseline


class Host(RuleBasedStateMachine):
    """A ledger in the hands of one that carries its effects out, with a backend.

    Attributes:
        under_way: the limit whose write has no outcome yet.
        deferring, refusing: how the backend takes a write.
        learned: what the first write that it took said of the limit before.
        unsettled: how many commands more belong to this turn.
    """

    unsettled = 0

    def open_ledger(
        self,
        configuration: WiredMemoryConfiguration,
        *,
        ceiling: int | None,
        supported: bool,
        device: int | None,
    ) -> None:
        self.configuration = configuration
        self.ceiling = ceiling
        self.supported = supported
        self.ledger = Ledger(configuration, ceiling=ceiling, writes=supported)
        self.replica = Replica(ceiling, fit=configuration.wired_mode == "fit")
        self.twin = Twin(configuration, ceiling)
        self.now = 0.0
        self.backend_limit = device
        self.requests: list[Request] = []
        self.under_way: int | None = None
        self.learned: int | None = None
        self.refusing = self.deferring = False
        self.settled = True

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
        """The ledger decides what the naive rules decide."""
        effects = self.ledger.receive(command, self.now)
        assert decisions_in(effects) == self.twin.receive(command, self.now)
        self.twin.compare(self.ledger)
        self.after_command()
        return effects

    def settle(self) -> None:
        self.unsettled = 0
        self.settled = True
        self.carry_out(self.ledger.settle(self.now))

    def carry_out(self, effects: list[m.Effect]) -> None:
        for effect in effects:
            match effect:
                case WiredMemoryEvent():
                    self.before_event(effect)
                    self.replica.take(effect)
                    if effect.kind == "pressure":
                        for asked in effect.details["asked"]:
                            self.twin.naive.ask(asked, for_id=str(effect.ticket_id))
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
                case m.Reclaim(ticket):
                    assert self.ledger.is_asked(ticket)
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

    def after_command(self) -> None:
        """Look at the state between two commands."""

    def before_event(self, event: WiredMemoryEvent) -> None:
        """Look at an event beside what went before it."""
