"""Pressure: which reservations must go so that those who wait fit, and who is asked to yield.

Looked at are those who wait to grow, and the first in each lane of those who wait to start unless
another's room bars it, all in the order of the ledger. For each of them:

- Where enough reclaimable reservations would make it fit, their owners are asked for them, the
  least recently used first; all or nothing. It comes in when they really have ended.
- Where those do not suffice, idle models (evictable reservations) are asked besides: see `yielding`
  on whom models yield to.
- Where its own group keeps it out, and room there is kept for it already, those of its group are
  asked though the ceiling would not let it in yet. Else others would fill up the ceiling again and
  again, which nobody keeps free for one that its group keeps out.
- Where it would not fit though all idle models had gone and all active work had ended, models in
  use are asked to finish, once it has waited `turn_seconds` and they have served as long; or at
  once where nothing runs on them and what waits for them stands behind it, as nothing would ever
  end by itself then. Idle ones follow when that makes it fit. One that is still being loaded is
  not asked.
- Where that is not enough either, it waits for reservations that nobody here can ask for: an event
  says how many bytes.
- One whose own model has been asked to yield asks nobody: its turn comes with that again.

Each time that models are asked is one switch, of which `switches_per_minute` are allowed. What is
asked for one, the next ones cannot count on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import attrs

from wiredactors.memory import messages as m
from wiredactors.memory.admission import Admission
from wiredactors.memory.book import Book
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.events import EventKind
from wiredactors.memory.holding import Holding
from wiredactors.memory.journal import Journal
from wiredactors.memory.lane import Waiter
from wiredactors.memory.room import Plan, RoomAfterWork
from wiredactors.memory.switches import Switches, turn_ends_at
from wiredactors.memory.yielding import Plans


@attrs.frozen
class Outlook:
    """What can be done for one that waits.

    Attributes:
        asks: the reservations to ask for now.
        needed_bytes: what an event says that it lacks; None where it says nothing new.
        limited_by: the parameter that keeps models from being asked yet.
        limited_until: until when, in seconds on the clock; None where that is not known.
        limit: its value.
        would_yield: the models that would be asked then.
        look_again: when to see, whether or not that will be the time.
    """

    waiter: Waiter
    asks: list[Holding] = attrs.field(factory=list)
    needed_bytes: int | None = None
    limited_by: Literal["switches_per_minute", "turn_seconds"] | None = None
    limited_until: float | None = None
    limit: float = 0
    would_yield: tuple[str, ...] = ()
    look_again: float | None = None


class Pressure:
    """Looks once a turn while any wait.

    It costs O(lanes + growers + what is asked for), and O(models squared) for each looked at that
    models may yield to.
    """

    def __init__(
        self,
        book: Book,
        admission: Admission,
        journal: Journal,
        configuration: WiredMemoryConfiguration,
    ):
        self._book = book
        self._admission = admission
        self._journal = journal
        self._switches = Switches(configuration.switches_per_minute)
        self._turn_seconds = configuration.turn_seconds

    def configure(self, configuration: WiredMemoryConfiguration) -> None:
        self._switches.per_minute = configuration.switches_per_minute
        self._turn_seconds = configuration.turn_seconds

    def copy_switches(self, other: Pressure) -> None:
        """As many were made as `other` has made."""
        self._switches = other._switches.copy()

    def look(self) -> float | None:
        """Ask for what is needed, and say what cannot be asked for.

        Returns when to look again if nothing happens before.
        """
        again: float | None = None
        for outlook in self._outlooks(self._journal.now, self._switches):
            if outlook.needed_bytes is not None:
                self._say(outlook.waiter, outlook.needed_bytes, outlook.asks)
            for holding in outlook.asks:
                self._ask(holding, outlook.waiter)
            until = outlook.look_again
            if until is not None and (again is None or until < again):
                again = until
        return again

    def outlook_of(self, waiter: Waiter, now: float) -> Outlook:
        """What a look would find for one waiter; nobody is asked."""
        for outlook in self._outlooks(now, self._switches.copy()):
            if outlook.waiter is waiter:
                return outlook
        return Outlook(waiter)

    def _say(self, waiter: Waiter, needed_bytes: int, asked: list[Holding]) -> None:
        if asked or (needed_bytes and needed_bytes != waiter.said_to_need):
            details = {
                "needed_bytes": needed_bytes,
                "asked": [holding.ticket_id for holding in asked],
            }
            self._journal.emit_ticket(EventKind.PRESSURE, waiter.holding, details=details)
        waiter.said_to_need = needed_bytes

    def _ask(self, holding: Holding, waiter: Waiter) -> None:
        self._book.reservations.ask(holding)
        if holding.evictable:
            waiter.made_go |= {holding.ticket_id}
        self._journal.emit_ticket(EventKind.RECLAIM_REQUESTED, holding)
        self._journal.effect(m.Reclaim(holding.ticket_id))

    # -- what can be done

    def _outlooks(self, now: float, switches: Switches) -> Iterator[Outlook]:
        """One for each that is looked at; a switch is noted in `switches`."""
        reservations = self._book.reservations
        if self._admission.idle or not (reservations.reclaimable or reservations.kept_bytes):
            return
        plans = Plans(self._book)
        for waiter in self._admission.next_in_line(now):
            if self._admission.goes_with_its_model(waiter):
                continue
            plan = plans.for_waiter(waiter)
            if plan is None and self._admission.keeps_room(waiter, now):
                plan = plans.for_waiter(waiter, in_group_only=True)
            if plan is not None:
                missing = _missing_bytes(self._book, waiter)
                yield self._switch(waiter, plans, plan, plan.new, missing, now, switches)
            elif reservations.evictable:
                yield self._drain(waiter, plans, now, switches)
            else:
                yield self._waits(waiter)

    def _waits(self, waiter: Waiter) -> Outlook:
        return Outlook(waiter, needed_bytes=needs_idle_bytes(self._book, waiter))

    def _switch(
        self,
        waiter: Waiter,
        plans: Plans,
        plan: Plan,
        asks: list[Holding],
        needed_bytes: int,
        now: float,
        switches: Switches,
    ) -> Outlook:
        """Make a plan, if no model must be asked for it or that is allowed now."""
        models = [holding for holding in asks if holding.evictable]
        allowed_at = switches.allowed_at()
        if models and now < allowed_at:
            return self._later(
                waiter, "switches_per_minute", switches.per_minute, allowed_at, models
            )
        plans.take(waiter, plan)
        if models:
            switches.note(now)
        return Outlook(waiter, asks, needed_bytes if asks else None)

    def _later(
        self,
        waiter: Waiter,
        limited_by: Literal["switches_per_minute", "turn_seconds"],
        limit: float,
        until: float,
        models: list[Holding],
    ) -> Outlook:
        return attrs.evolve(
            self._waits(waiter),
            limited_by=limited_by,
            limited_until=until if until < math.inf else None,
            limit=limit,
            look_again=until if until < math.inf else None,
            would_yield=tuple(holding.ticket_id for holding in models),
        )

    def _drain(self, waiter: Waiter, plans: Plans, now: float, switches: Switches) -> Outlook:
        """Ask models in use to finish, if it would not fit otherwise and its turn has come."""
        plan = plans.after_work(waiter, lambda model: False)
        whole = plan or plans.after_work(waiter, lambda model: True)
        if whole is None:
            return self._waits(waiter)
        if whole.drains:  # that is waited for before any other in use is asked
            plans.take(waiter, whole)
            return Outlook(waiter)
        if plan is not None:
            return self._waits(waiter)

        def asked_at(model: Holding) -> float:
            return max(waiter.since + self._turn_seconds, turn_ends_at(model, self._turn_seconds))

        ready = plans.after_work(waiter, lambda model: self._is_stalled(model, waiter))
        if ready is None:
            ready = plans.after_work(waiter, lambda model: asked_at(model) <= now)
        if ready is not None:
            needed = needs_idle_bytes(self._book, waiter)
            return self._switch(waiter, plans, ready, _in_use(ready), needed, now, switches)
        models = _in_use(whole)
        until = max(map(asked_at, models))
        later = self._later(waiter, "turn_seconds", self._turn_seconds, until, models)
        busy = self._book.reservations.evictable.values()
        soon = [at for model in busy if model.in_use and (at := asked_at(model)) > now]
        first = min(soon, default=until)
        return attrs.evolve(later, look_again=first if first < math.inf else None)

    def _is_stalled(self, model: Holding, waiter: Waiter) -> bool:
        """Whether nothing runs on a model in use, and its work waits behind `waiter`."""
        ticket_id, queue = model.ticket_id, self._admission.queue
        if model.served_since is None:  # that it is loaded is what its work waits for
            return False
        if self._book.works_on(ticket_id) or ticket_id not in queue.required:
            return False
        return any(
            ticket_id in other.holding.requires and (waiter.grows or waiter.key < other.key)
            for other in queue.by_id.values()
        )


def _in_use(plan: Plan) -> list[Holding]:
    return [holding for holding in plan.new if holding.in_use]


def _missing_bytes(book: Book, waiter: Waiter) -> int:
    """The bytes that must come free before the waiter fits, where they can be reckoned."""
    group = waiter.holding.group
    missing: float = waiter.more - book.ceiling_room(group)
    if group.bound is not None:
        missing = max(missing, waiter.more - book.group_room(group))
    return max(0, int(missing))


def needs_idle_bytes(book: Book, waiter: Waiter) -> int:
    """The bytes of reservations, not reclaimable ones, that must go before the waiter fits.

    0 where it only waits for active work to end, for caches to be given up, and for outside
    pressure to pass.
    """
    return RoomAfterWork(book).missing_bytes(waiter)
