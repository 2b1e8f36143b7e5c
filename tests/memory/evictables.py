"""Models and caches in a ledger, for its tests."""

from __future__ import annotations

import attrs

from wiredactors.memory.policies import WiredBudgetPolicy, WiredMemoryPolicy, WiredSumPolicy
from wiredactors.memory.share import Share
from wiredactors.memory.tickets import WiredMemoryTicket

SUM = WiredSumPolicy()
OTHER = WiredBudgetPolicy(base_bytes=0, id="other")


def model(d, ticket_id, size, *, idle=True, loaded=True, policy=SUM, **more):
    """A model's weights, which serves if it came in; a second passes, so that each is used later
    than the one before."""
    reply = d.reserve(ticket_id, size, policy, evictable=True, **more)
    if loaded:
        d.use(ticket_id, in_use=not idle)
    d.advance(1)
    return reply


def cache(d, ticket_id, size, **more):
    d.reserve(ticket_id, size, SUM, reclaimable=True, **more)


def pressures(d):
    return [(e.ticket_id, e.details) for e in d.events if e.kind == "pressure"]


def explain(d, ticket_id):
    return d.ledger.explain(ticket_id, d.now)


def ticket(d, ticket_id):
    return next(t for t in d.ledger.snapshot().tickets if t.ticket_id == ticket_id)


class World:
    """A workspace and models that share it, resized by its owner as they come and go."""

    def __init__(self, d, workspace=0):
        self.d = d
        self.workspace = WiredMemoryTicket(0, SUM, "reservation", id="workspace")
        self.sharers: dict[str, tuple[int, int]] = {}
        d.reserve("workspace", workspace)

    def load(self, name, weights, share, margin=0, *, idle=True, **more):
        size = weights + max(0, share - self._held_once()) + margin
        reply = self.ask(name, size, share, margin, **more)
        assert reply.answered
        self.sharers[name] = share, margin
        self.fit()
        self.d.resize(name, weights)
        self.d.use(name, in_use=not idle)
        self.d.advance(1)

    def ask(self, name, size, share, margin=0, **more):
        part = Share(self.workspace, share, margin)
        return self.d.reserve(name, size, SUM, evictable=True, share=part, **more)

    def go(self, name):
        self.d.end(name)
        del self.sharers[name]

    def fit(self):
        self.d.resize("workspace", self._held_once() + sum(m for _, m in self.sharers.values()))

    def _held_once(self):
        return max((share for share, _ in self.sharers.values()), default=0)


@attrs.frozen
class TwoAtATime(WiredMemoryPolicy):
    def limit(self, baseline, active_sizes):
        return baseline + sum(active_sizes)

    def can_admit(self, baseline, active_sizes, new_size):
        return len(active_sizes) < 2


@attrs.frozen
class AtMostFour(TwoAtATime):
    def can_admit(self, baseline, active_sizes, new_size):
        return len(active_sizes) < 4
