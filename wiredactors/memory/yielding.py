"""Yielding: which reservations would have to go for those who wait.

Caches (reclaimable) yield before models (evictable), and an idle model before one that is in use.
Of each kind the least recently used goes first. A model goes only for a reservation (another model
that is loaded, or the workspace that grows), or where a job would not fit though all active work
had ended: no model goes for one that merely waits for other jobs.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator

from wiredactors.memory.book import Book
from wiredactors.memory.errors import PolicyError
from wiredactors.memory.group import Group
from wiredactors.memory.holding import Holding
from wiredactors.memory.lane import Waiter
from wiredactors.memory.room import Plan, Room, RoomAfterWork


class Plans:
    """Plans one waiter's room after another's; each is made as if those taken had come in.

    A plan costs O(reservations in it, and those that are asked already), and O(models squared)
    where models may yield.
    """

    def __init__(self, book: Book):
        self._book = book
        self._gone: set[str] = set()  # by the plans taken
        self._shrunk: Counter[str] = Counter()  # bytes of shared reservations, by these
        self._now = Room(book)
        self._after_work = RoomAfterWork(book)

    # -- plans, not taken yet

    def for_waiter(self, waiter: Waiter, *, in_group_only: bool = False) -> Plan | None:
        """Which must go before it fits beside all active work: caches, and idle models too where
        those do not suffice. None where that is not enough, or nothing need go.

        `in_group_only`: before its own policy lets it in, whatever the ceiling does.
        """
        if waiter.grows and waiter.holding.asked:  # it is to yield itself
            return None
        models = bool(self._book.reservations.evictable) and self._models_yield_to(waiter)
        plan = self._find(waiter, self._caches(models=models), in_group_only=in_group_only)
        if plan is None and models:
            plan = self._find(waiter, self._idle(), in_group_only=in_group_only)
        return plan if plan is not None and (plan.yielding or plan.shrinking) else None

    def after_work(self, waiter: Waiter, busy: Callable[[Holding], bool]) -> Plan | None:
        """Which models must go before it fits once all active work has ended: those that have been
        asked, idle ones, and then of those in use such as `busy` names.

        None where that is not enough; an empty one where nothing need go.
        """
        if waiter.grows and waiter.holding.asked:
            return None
        reservations = self._book.reservations
        willing = [
            holding
            for holding in reservations.evictable.values()
            if not (holding.asked or holding.pinned)
        ]
        idle = (holding for holding in willing if not holding.in_use)
        in_use = (holding for holding in willing if holding.in_use and busy(holding))
        asked = (holding for holding in reservations.asked.values() if holding.evictable)
        return self._find(waiter, itertools.chain(asked, idle, in_use), after_work=True)

    def is_short_after_work(self, waiter: Waiter) -> bool:
        """Whether it would not fit though all active work and all caches had gone."""
        return self._find(waiter, iter(()), after_work=True) is None

    def needs_busy_models(self, waiter: Waiter) -> bool:
        """Whether it would not fit though all active work, all that was asked, and all idle models
        had gone: it needs models in use to go, or others that wait to want less of what is shared.
        """
        if not (self._book.reservations.evictable or waiter.holding.evictable):
            return False
        return self.after_work(waiter, lambda model: False) is None

    def is_hopeless(self, waiter: Waiter) -> bool:
        """Whether it would not fit now though all active work and all models had gone."""
        return self.after_work(waiter, lambda model: True) is None

    def take(self, waiter: Waiter, plan: Plan) -> None:
        """What goes by this plan later ones cannot count on."""
        self._now.take(waiter, plan)
        self._after_work.take(waiter, plan)
        self._gone.update(holding.ticket_id for holding in plan.yielding)
        for shared, less in plan.shrinking.items():
            self._shrunk[shared.ticket_id] += less
        if waiter.grows:
            self._gone.add(waiter.ticket_id)  # nobody asks it for what it comes to need

    # -- who may be asked

    def _models_yield_to(self, waiter: Waiter) -> bool:
        loads = not (waiter.holding.active or waiter.holding.reclaimable)
        return loads or self.is_short_after_work(waiter)

    def _caches(self, *, models: bool) -> Iterator[Holding]:
        """Those that are asked already, which will go in any case, and then all other caches."""
        reservations = self._book.reservations
        for holding in reservations.asked.values():
            # A model that is in use goes when its work has ended, which may be long.
            if holding.reclaimable or (models and not holding.in_use):
                yield holding
        yield from (h for h in reservations.reclaimable.values() if not h.asked)

    def _idle(self) -> Iterator[Holding]:
        """The same, and then models that are idle."""
        yield from self._caches(models=True)
        for holding in self._book.reservations.evictable.values():
            if not (holding.asked or holding.in_use or holding.pinned):
                yield holding

    # -- finding

    def _find(
        self,
        waiter: Waiter,
        candidates: Iterator[Holding],
        *,
        in_group_only: bool = False,
        after_work: bool = False,
    ) -> Plan | None:
        """The first candidates that suffice, in their order; None where all of them do not."""
        room = self._after_work if after_work else self._now
        missing = 0 if in_group_only else room.missing(waiter)
        if missing > self._most():
            return None  # at once, whatever their number
        plan, gone, planned = Plan(), set(self._gone), Counter[Group]()
        try:
            for ticket_id in self._book.shares.due:
                missing -= self._shrink(ticket_id, waiter, plan, gone)
            for holding in candidates:
                blocked = room.blocks(waiter, plan)
                if missing <= 0 and not blocked:
                    return plan
                if self._may_go(holding, waiter) and (
                    missing > 0 or self._book.frees_in(holding, waiter.holding.group)
                ):
                    plan.add(holding)
                    gone.add(holding.ticket_id)
                    planned[holding.group] += 1
                    missing -= holding.size
                    missing -= room.base_freed_by(holding, waiter, planned[holding.group])
                    if holding.share is not None:
                        missing -= self._shrink(holding.share.ticket_id, waiter, plan, gone)
            return None if missing > 0 or room.blocks(waiter, plan) else plan
        except PolicyError:
            return None

    def _most(self) -> int:
        """No plan frees more bytes than that."""
        book = self._book
        reservations, held = book.reservations, book.holdings
        shared = sum(held[id].size for id in book.shares.shared() if id in held)
        return (
            reservations.reclaimable_bytes + reservations.evictable_bytes + shared + book.base_total
        )

    def _may_go(self, holding: Holding, waiter: Waiter) -> bool:
        return (
            (holding.size > 0 or holding.share is not None)
            and holding.ticket_id not in self._gone
            and holding is not waiter.holding
            and holding.ticket_id not in waiter.holding.requires
        )

    def _shrink(self, ticket_id: str, waiter: Waiter, plan: Plan, gone: set[str]) -> int:
        """Add to the plan what a shared reservation gives back besides, with `gone` gone."""
        shared = self._book.holdings.get(ticket_id)
        if shared is None or shared is waiter.holding:  # that asks for what it will need
            return 0
        counted = self._shrunk[ticket_id] + plan.shrinking.get(shared, 0)
        more = self._book.shares.shrink(shared, gone) - counted
        if more <= 0:
            return 0
        plan.shrink(shared, more)
        return more
