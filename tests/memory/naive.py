"""The rules of admission once more, in plain lists and loops: what the fast ledger must agree with.

It models who is admitted, grows, waits or is refused, and what limit that asks for, and nothing
else: no writes, replies or events, and no policies that fail. Everything is computed anew from the
tickets whenever it is asked for, and after each decision the whole of the rules starts again from
the top.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs

from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.policies import WiredMemoryPolicy
from wiredactors.memory.share import Share

#: What was decided, and for which ticket.
Decision = tuple[str, str]

_CEILING = "ceiling"


@attrs.define(eq=False)
class Ticket:
    """One ticket. `wants` is its size while it waits to start, what it would grow to later."""

    id: str
    size: int
    kind: str
    policy: WiredMemoryPolicy
    priority: int
    pinned: bool
    requires: tuple[str, ...]
    since: float
    arrival: int
    wants: int
    passed: int = 0
    reclaimable: bool = False
    evictable: bool = False
    in_use: bool = False
    asked: bool = False  # which the rules are told: they do not decide it
    made_go: set[str] = attrs.field(factory=set)  # models asked for it while it waits, as told
    served_since: float | None = None
    share: Share | None = None

    @property
    def lane(self) -> tuple[object, int]:
        """Those who wait in one line."""
        return self.policy.id, self.priority

    @property
    def loading(self) -> bool:
        """A model that does not serve yet."""
        return self.evictable and self.served_since is None

    @property
    def kept(self) -> bool:
        """Neither work nor a cache: what is left of itself when these have gone."""
        return self.kind != "active" and not self.reclaimable


class Naive:
    """See the module.

    Each method returns what was decided, in order: `("admitted", id)`, `("grown", id)` (a resize
    took effect, a smaller size or one of a waiter too), `("refused", id)` (a start),
    `("resize_refused", id)`, and at the end `("waits", id)` or `("resize_waits", id)` for a
    request that was neither granted nor refused at once.
    """

    def __init__(self, configuration: WiredMemoryConfiguration, ceiling: int | None):
        self.configuration = configuration
        self.ceiling = math.inf if ceiling is None else ceiling
        self.excess = 0  # taken off the ceiling by others, for admission
        self.baseline = 0  # until the first ticket comes
        self._learned = 0
        self._live: list[Ticket] = []  # in the order of admission
        self._queue: list[Ticket] = []  # as they came
        self._growers: list[Ticket] = []  # live ones, in the order in which they asked
        self._arrivals = 0
        # Margins to be given back, of shared ones not resized since one who shared them ended.
        self._due: dict[str, int] = {}
        self._shared: set[str] = set()  # ever

    # -- looking

    @property
    def running(self) -> list[tuple[str, int]]:
        """Ids and sizes, in the order of admission."""
        return [(ticket.id, ticket.size) for ticket in self._live]

    @property
    def waiting(self) -> list[str]:
        """Ids, in the order of the queue."""
        return [ticket.id for ticket in self._ordered()]

    @property
    def growing(self) -> list[tuple[str, int]]:
        """Ids and the sizes that they would have, in the order in which they asked."""
        return [(ticket.id, ticket.wants) for ticket in self._growers]

    @property
    def passed(self) -> dict[str, int]:
        """How often each that waits was passed."""
        return {ticket.id: ticket.passed for ticket in self._ordered()}

    def knows(self, ticket_id: str) -> bool:
        """Whether it lives or waits."""
        return any(ticket.id == ticket_id for ticket in [*self._live, *self._queue])

    def may_yield_to(self, ticket_id: str, *, first: bool = True) -> list[str]:
        """The live reservations that may be asked to go for one that waits, while work goes on.

        Where it is not the first, those before it may leave it too little even without all work.
        """
        models = not first or self.models_yield_to(ticket_id)
        return [
            other.id
            for other in self._could_yield_to(ticket_id)
            if other.reclaimable or (models and not other.in_use)
        ]

    def _could_yield_to(self, ticket_id: str) -> list[Ticket]:
        ticket = _find([*self._growers, *self._queue], ticket_id)
        return [
            other
            for other in self._live
            if (other.reclaimable or other.evictable)
            and not other.pinned
            and (other.size or other.share)
            and other is not ticket
            and other.id not in ticket.requires
        ]

    def models_yield_to(self, ticket_id: str) -> bool:
        """Whether models are asked for it: a load, or one that no work's end would make fit."""
        ticket = _find([*self._growers, *self._queue], ticket_id)
        return ticket.kept or not self.fits_after_work(ticket_id, ())

    def fits_after_work(self, ticket_id: str, gone: Iterable[str]) -> bool:
        """Whether one that waits would fit without these, all work, all caches, and others' use."""
        ticket = _find([*self._growers, *self._queue], ticket_id)
        left = [other for other in self._after(gone) if other.kept and other.id != ticket_id]
        return self._lacks_beside(left, ticket, self.ceiling) is None

    def idle_models(self, ticket_id: str) -> list[str]:
        """Those that may be asked for it."""
        could = self._could_yield_to(ticket_id)
        return [other.id for other in could if other.evictable and not other.in_use]

    def busy_models(self, ticket_id: str) -> list[str]:
        """Those that may be asked to finish for it: not while they are loaded yet."""
        could = self._could_yield_to(ticket_id)
        served = [other for other in could if other.served_since is not None]
        return [other.id for other in served if other.evictable and other.in_use]

    def turn_ends_at(self, model_id: str) -> float:
        """When a live model has had its turn."""
        served_since = _find(self._live, model_id).served_since
        turn = max(1.0, self.configuration.turn_seconds)
        return math.inf if served_since is None else served_since + turn

    def goes_with_its_model(self, ticket_id: str) -> bool:
        """Whether it waits to start on a model that has been asked to go."""
        ticket = _find([*self._growers, *self._queue], ticket_id)
        required = [other for other in self._live if other.id in ticket.requires]
        return ticket in self._queue and any(t.evictable and t.asked for t in required)

    def came_back_before(self, ticket_id: str) -> list[str]:
        """The models that went for one that waits, and stand before it now."""
        order = self._ordered()
        before = order[: order.index(_find(order, ticket_id))]
        made_go = _find(order, ticket_id).made_go
        return [other.id for other in before if other.evictable and other.id in made_go]

    def is_stalled(self, model_id: str, ticket_id: str) -> bool:
        """Whether no work runs on a model that serves, and some stands behind one that waits."""
        if _find(self._live, model_id).served_since is None:
            return False
        if any(t.kind == "active" and model_id in t.requires for t in self._live):
            return False
        order = [*self._growers, *self._ordered()]
        behind = order[order.index(_find(order, ticket_id)) + 1 :]
        return any(model_id in t.requires for t in behind if t in self._queue)

    def waited(self, ticket_id: str) -> Ticket:
        """One that waits."""
        return _find([*self._growers, *self._queue], ticket_id)

    def _after(self, gone: Iterable[str]) -> list[Ticket]:
        """The live tickets without these, the shared ones as small as their owners make them."""
        gone = set(gone)
        left = []
        for ticket in self._live:
            sharers = [t for t in self._live if t.share and t.share.ticket_id == ticket.id]
            staying = [t.share for t in sharers if t.share and t.id not in gone]
            if len(staying) < len(sharers) or ticket.id in self._due:
                waiting = [t.share for t in self._queue]
                sizes = [s.size for s in waiting if s and s.ticket_id == ticket.id]
                wanted = max([*sizes, *(s.size for s in staying)], default=0)
                wanted += sum(s.margin for s in staying)
                if wanted < ticket.size:
                    ticket = attrs.evolve(ticket, size=wanted)
            if ticket.id not in gone:
                left.append(ticket)
        return left

    def fits_without(
        self, ticket_id: str, gone: Iterable[str], *, in_group_only: bool = False
    ) -> bool:
        """Whether one that waits would fit if these had ended; or its group would let it in."""
        ticket = _find([*self._growers, *self._queue], ticket_id)
        left = [other for other in self._after(gone) if other.id != ticket_id]
        ceiling = math.inf if in_group_only else self.ceiling - self.excess
        return self._lacks_beside(left, ticket, ceiling) is None

    def keeps_room(self, ticket_id: str, now: float) -> bool:
        """Whether one that waits is over its bounds; one that waits to grow always is."""
        ticket = _find([*self._growers, *self._queue], ticket_id)
        return ticket in self._growers or self._is_over(ticket, now)

    def _is_over(self, ticket: Ticket, now: float) -> bool:
        return (
            ticket.passed >= self.configuration.overtake_count
            or now - ticket.since >= self.configuration.overtake_seconds
        )

    def barred(self, now: float) -> list[str]:
        """Those for whom nothing is free, because it is kept for others."""
        return [ticket.id for ticket in self._barred(now)]

    def limit(self) -> int:
        """The limit that the live tickets ask for."""
        fit = self.configuration.wired_mode == "fit"
        return limit_of(self._live, self.baseline, self.ceiling, fit=fit)

    def blocked_by(self, ticket_id: str, now: float) -> str:
        """What keeps one out that waits: "group", "ceiling", or "order"."""
        ticket = _find([*self._growers, *self._queue], ticket_id)
        barred = [] if ticket in self._growers else self._barred(now)
        kept_out = ticket in barred or self._comes_after_others(ticket)
        return "order" if kept_out else self._blocked_by(ticket) or "order"

    # -- what happens

    def start(
        self,
        ticket_id: str,
        size: int,
        kind: str,
        policy: WiredMemoryPolicy,
        priority: int,
        pinned: bool,
        requires: tuple[str, ...],
        now: float,
        *,
        reclaimable: bool = False,
        evictable: bool = False,
        share: Share | None = None,
    ) -> list[Decision]:
        """A ticket, neither live nor waiting, asks to come in."""
        ticket = Ticket(
            ticket_id, size, kind, policy, priority, pinned, requires, now, self._arrivals, size
        )
        ticket.reclaimable, ticket.evictable, ticket.share = reclaimable, evictable, share
        if share is not None:
            ticket.requires = (*requires, share.ticket_id)
        self._arrivals += 1
        if self._is_in_conflict(ticket):
            return [("refused", ticket_id)]
        if not self._live:
            self._capture_baseline()
        if self._is_impossible(ticket):
            return [("refused", ticket_id)]
        if evictable:
            waiting = [*self._queue, *self._growers]
            others = [other.priority for other in waiting if ticket_id in other.made_go]
            ticket.priority = min([priority, *others])
        self._queue.append(ticket)
        if share is not None:
            self._shared.add(share.ticket_id)
        decided = self._serve(now)
        if ticket not in self._queue:
            return decided
        bound = self.configuration.max_waiters
        if bound is not None and len(self._queue) > bound:
            self._queue.remove(ticket)
            return [*decided, ("refused", ticket_id), *self._serve(now)]
        return [*decided, ("waits", ticket_id)]

    def cancel(self, ticket_id: str, now: float) -> list[Decision]:
        """A waiting start gives up."""
        self._queue.remove(_find(self._queue, ticket_id))
        return self._serve(now)

    def end(self, ticket_id: str, now: float) -> list[Decision]:
        """A live ticket ends, or a waiting one is withdrawn. A live one that waits to grow is
        told that it will not."""
        ticket = _find([*self._queue, *self._live], ticket_id)
        if ticket in self._queue:
            return self.cancel(ticket_id, now)
        decided = []
        if ticket in self._growers:
            self._growers.remove(ticket)
            decided.append(("resize_refused", ticket_id))
        self._live.remove(ticket)
        self._due.pop(ticket_id, None)
        if ticket.share is not None:
            due = self._due.get(ticket.share.ticket_id, 0)
            self._due[ticket.share.ticket_id] = due + ticket.share.margin
        return decided + self._serve(now)

    def use(self, ticket_id: str, in_use: bool | None, now: float) -> list[Decision]:
        """A model comes into use, or is idle: perhaps the last hope of those who wait to grow."""
        for ticket in self._live:
            if ticket.id == ticket_id and ticket.evictable and in_use is not None:
                ticket.in_use = in_use
                if ticket.served_since is None:
                    ticket.served_since = now
        return self._serve(now)

    def ask(self, ticket_id: str, for_id: str) -> None:
        """The owner of a live one has been asked for it, for one that waits."""
        asked = _find(self._live, ticket_id)
        asked.asked = True
        if asked.evictable:
            _find([*self._growers, *self._queue], for_id).made_go.add(ticket_id)

    def pin(self, ticket_id: str, pinned: bool, now: float) -> list[Decision]:
        """A ticket comes to stay, or may go away again."""
        ticket = _find([*self._queue, *self._live], ticket_id)
        if not ticket.reclaimable:
            ticket.pinned = pinned
            ticket.asked = ticket.asked and not pinned
        return self._serve(now)

    def resize(self, ticket_id: str, size: int, now: float) -> list[Decision]:
        """A waiting ticket asks for another size, or a live one that does not wait to grow."""
        ticket = _find([*self._queue, *self._live], ticket_id)
        if ticket in self._growers:
            return []
        ticket.wants = size
        if size > ticket.size and self._is_impossible(ticket):
            ticket.wants = ticket.size
            return [("resize_refused", ticket_id)]
        if ticket in self._queue or size <= ticket.size:
            ticket.size = size
            if ticket in self._live:
                self._due.pop(ticket_id, None)
            return [("grown", ticket_id), *self._serve(now)]
        ticket.made_go = set()
        self._growers.append(ticket)
        decided = self._serve(now)
        return [*decided, ("resize_waits", ticket_id)] if ticket in self._growers else decided

    def cancel_resize(self, ticket_id: str, now: float) -> list[Decision]:
        """A live ticket that waits to grow gives that up."""
        ticket = _find(self._growers, ticket_id)
        self._growers.remove(ticket)
        ticket.wants = ticket.size
        return self._serve(now)

    def learn_baseline(self, baseline: int, now: float) -> list[Decision]:
        """The first write tells the limit before it; whether to believe it is the caller's affair.
        An override goes before."""
        self._learned = baseline
        self._capture_baseline()
        return self._serve(now)

    def claimed(self, ticket_id: str | None = None) -> int:
        """What tickets claim of the memory in use: those that hold it with their policies' bases,
        and reservations that wait. Or what this one that waits adds to that."""
        waiting = self._queue
        bases = {policy: policy.base_bytes for policy in _policies([*self._live, *waiting])}
        if ticket_id is None:
            idle = [ticket.size for ticket in waiting if ticket.kind == "reservation"]
            return sum(ticket.size for ticket in self._live) + sum(bases.values()) + sum(idle)
        ticket = _find(waiting, ticket_id)
        others = _policies([*self._live, *(t for t in waiting if t is not ticket)])
        own = ticket.size if ticket.kind == "reservation" else 0
        return own + (0 if ticket.policy in others else ticket.policy.base_bytes)

    def press(self, excess: int, now: float) -> list[Decision]:
        """Others take so much of what the ceiling allows."""
        self.excess = excess
        return self._serve(now)

    def configure(
        self, configuration: WiredMemoryConfiguration, ceiling: int | None, now: float
    ) -> list[Decision]:
        """Other rules from here on, but not while anything works or waits."""
        if self._queue or any(ticket.kind == "active" for ticket in self._live):
            return []
        self.configuration = configuration
        self.ceiling = math.inf if ceiling is None else ceiling
        if self._live:
            self._capture_baseline()
        return self._serve(now)

    def close(self) -> list[Decision]:
        """Refuse all that wait, and end all that live."""
        decided = [self._refuse(ticket) for ticket in [*self._ordered(), *self._growers]]
        self._live.clear()
        return decided

    # -- the rules

    def _serve(self, now: float) -> list[Decision]:
        decided: list[Decision] = []
        while True:
            more = self._refuse_impossible() or self._grow() or self._admit(now)
            if not more:
                return decided
            decided += more

    def _refuse_impossible(self) -> list[Decision]:
        waiting = [*self._growers, *self._ordered()]
        return [self._refuse(ticket) for ticket in waiting if self._is_impossible(ticket)]

    def _grow(self) -> list[Decision]:
        for ticket in self._growers:
            if self._blocked_by(ticket) is None:
                self._growers.remove(ticket)
                ticket.size = ticket.wants
                self._due.pop(ticket.id, None)
                return [("grown", ticket.id)]
        busy = [ticket for ticket in self._live if ticket.kind == "active" or ticket.loading]
        growing = [ticket for ticket in busy if ticket in self._growers]
        stuck = growing and len(growing) == len(busy)  # none of them would ever end or serve
        if stuck and not any(self._may_yet_grow(ticket) for ticket in growing):
            return [self._refuse(max(growing, key=self._growers.index))]
        return []

    def _may_yet_grow(self, ticket: Ticket) -> bool:
        """Whether others can make room for it, though all work and all loads wait to grow."""
        if ticket.asked:
            return False
        if self.fits_without(ticket.id, self.may_yield_to(ticket.id)):
            return True
        if any(other.kind == "active" for other in self._live):
            return False
        models = self._could_yield_to(ticket.id)
        going = [t.id for t in models if t.evictable and (t.asked or not t.in_use or not t.loading)]
        return self.fits_after_work(ticket.id, going)

    def _admit(self, now: float) -> list[Decision]:
        """Let in the first whom the order lets in."""
        barred = self._barred(now)
        ordered = self._ordered()
        for place, ticket in enumerate(ordered):
            if ticket in barred or self._comes_after_others(ticket):
                continue
            if self._blocked_by(ticket) is None:
                for other in ordered[:place]:
                    other.passed += self._is_passed(other, ticket, barred)
                self._queue.remove(ticket)
                self._live.append(ticket)
                ticket.in_use = ticket.evictable
                ticket.since = now
                return [("admitted", ticket.id)]
        return []

    def _barred(self, now: float) -> list[Ticket]:
        """Those for whom nothing is free, because it is kept for others."""
        kept = [self._competes_for(grower) for grower in self._growers]
        barred: list[Ticket] = []
        for ticket in self._ordered():
            if ticket.policy.id in kept or _CEILING in kept:
                barred.append(ticket)
            elif (
                self._blocked_by(ticket) is not None
                and self._is_over(ticket, now)
                and not self.goes_with_its_model(self._first_in_lane(ticket).id)
                and not self._needs_busy_models(ticket)
            ):
                kept.append(self._competes_for(ticket))
        return barred

    def _comes_after_others(self, ticket: Ticket) -> bool:
        """Whether it is a model, and one that it went for still waits before it."""
        if ticket in self._growers or not ticket.evictable:
            return False
        ordered = self._ordered()
        before = [*self._growers, *ordered[: ordered.index(ticket)]]
        return any(ticket.id in other.made_go for other in before)

    def _needs_busy_models(self, ticket: Ticket) -> bool:
        """Whether models must go that are in use and have not been asked yet.

        The first of a group and priority speaks for those behind it.
        """
        ticket = self._first_in_lane(ticket)
        models = [t for t in self._live if t.evictable]
        going = {t.id for t in models if t.asked and t.id not in ticket.requires}
        going |= set(self.idle_models(ticket.id))
        return bool(models or ticket.evictable) and not self.fits_after_work(ticket.id, going)

    def _is_passed(self, other: Ticket, by: Ticket, barred: list[Ticket]) -> bool:
        """Whether `by`, which is about to come in, counts as passing `other`.

        Over the ceiling the first of a group and priority speaks for those behind it, and one
        whose room is kept for another is not passed: it could not take it.
        """
        if other.policy.id == by.policy.id:
            return True
        first = self._first_in_lane(other)
        return first not in barred and self._blocked_by(first) == _CEILING

    def _first_in_lane(self, ticket: Ticket) -> Ticket:
        return next(t for t in self._ordered() if t.lane == ticket.lane)

    def _refuse(self, ticket: Ticket) -> Decision:
        if ticket in self._growers:
            self._growers.remove(ticket)
            ticket.wants = ticket.size
            return "resize_refused", ticket.id
        self._queue.remove(ticket)
        return "refused", ticket.id

    def _ordered(self) -> list[Ticket]:
        aging = self.configuration.aging_seconds
        return sorted(self._queue, key=lambda t: (t.since - t.priority * aging, t.arrival))

    def _competes_for(self, ticket: Ticket) -> object:
        return _CEILING if self._blocked_by(ticket) == _CEILING else ticket.policy.id

    def _capture_baseline(self) -> None:
        override = self.configuration.baseline_override
        self.baseline = self._learned if override is None else override

    # -- what fits

    def _is_in_conflict(self, ticket: Ticket) -> bool:
        """Whether its policy's id belongs to another."""
        policies = [other.policy for other in [*self._live, *self._queue]]
        same_id = [policy for policy in policies if policy.id == ticket.policy.id]
        return any(policy.parameters != ticket.policy.parameters for policy in same_id)

    def _blocked_by(self, ticket: Ticket) -> str | None:
        """What keeps it from the size that it wants."""
        return self._lacks_beside(self._live, ticket, self.ceiling - self.excess)

    def _is_impossible(self, ticket: Ticket) -> bool:
        """Whether it would not fit though all had ended that may end."""
        stays = [
            attrs.evolve(other, size=self._floor(other, ticket))
            for other in self._live
            if other is not ticket and self._stays_beside(other, ticket)
        ]
        return self._lacks_beside(stays, ticket, self.ceiling) is not None

    def _stays_beside(self, other: Ticket, ticket: Ticket) -> bool:
        """Whether a live one cannot go away for the ticket: it is pinned, or this or a pinned one
        stands on it."""
        stand = [ticket, *(t for t in self._live if t.pinned)]
        return other.pinned or any(other.id in each.requires for each in stand)

    def _floor(self, shared: Ticket, ticket: Ticket) -> int:
        """What is left of a live one beside a ticket, if of those who share it none may stay but
        the pinned and what is required."""
        all_sharers = [t for t in [*self._live, *self._queue, ticket] if t.share]
        all_sharers = [t for t in all_sharers if t.share and t.share.ticket_id == shared.id]
        if not all_sharers and shared.id not in self._shared:
            return shared.size
        live = [t for t in self._live if t in all_sharers]
        margins = sum(t.share.margin for t in live if t.share)
        stay = [t for t in live if t is ticket or self._stays_beside(t, ticket)]
        sizes = [t.share.size for t in {*stay, ticket} if t.share and t in all_sharers]
        held_once = max(0, shared.size - margins - self._due.get(shared.id, 0))
        largest = min(held_once, max(sizes, default=0))
        return largest + sum(t.share.margin for t in stay if t.share)

    def _lacks_beside(self, others: list[Ticket], ticket: Ticket, ceiling: float) -> str | None:
        """What keeps it from the size that it wants, if it were alone with `others`."""
        others = [other for other in others if other is not ticket]
        if not ticket.policy.can_admit(self.baseline, _sizes(others, ticket.policy), ticket.wants):
            return "group"
        held = self.baseline + sum(other.size for other in others)
        bases = sum(policy.base_bytes for policy in _policies([*others, ticket]))
        return None if held + bases + ticket.wants <= ceiling else _CEILING


def limit_of(tickets: list[Ticket], baseline: int, ceiling: float, *, fit: bool) -> int:
    """The limit that live tickets ask for; `fit`: exactly their bytes."""
    if all(ticket.kind != "active" for ticket in tickets):
        return baseline
    if fit:
        total = baseline + sum(ticket.size for ticket in tickets)
        return max(baseline, int(min(total, ceiling)))
    wanted = [baseline]
    for policy in _policies(tickets):
        limit = policy.limit(baseline, _sizes(tickets, policy))
        bounded = policy.cap_is_ceiling and policy.cap is None
        wanted.append(int(min(limit, ceiling)) if bounded else limit)
    return max(wanted)


def _sizes(tickets: list[Ticket], policy: WiredMemoryPolicy) -> list[int]:
    return [ticket.size for ticket in tickets if ticket.policy.id == policy.id]


def _policies(tickets: list[Ticket]) -> list[WiredMemoryPolicy]:
    """One of each group."""
    return list({ticket.policy.id: ticket.policy for ticket in reversed(tickets)}.values())


def _find(tickets: list[Ticket], ticket_id: str) -> Ticket:
    found = [ticket for ticket in tickets if ticket.id == ticket_id]
    assert found, f"no {ticket_id} there"
    return found[0]
