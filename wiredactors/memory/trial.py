"""A dry run: what would happen if some tickets asked now, and what would have to yield for them.

It is the ledger itself that answers, run on a copy (O(n) in the tickets that live and wait), so a
dry run cannot differ from what a start would do. Nothing of it is seen from outside: no event, no
number, nobody passed.

What would have to yield is said of each ticket that would wait, in the order in which they ask:

- The reservations whose owners the ledger would ask for it now, or later, where only time keeps
  it from asking: caches (reclaimable) and models (evictable).
- Where it would ask for none: the reservations beside which it would not fit though all active
  work had ended, and all that has been asked to yield had gone. Reclaimable ones are named first,
  then models that are idle, then models in use, of each the least recently used before others; then
  those that were started longest ago. None that could stay is named. They are reckoned as if the
  reservations that ask before it had come in; whom it waits behind besides does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from wiredactors.memory import messages as m
from wiredactors.memory.copying import copy_tickets
from wiredactors.memory.events import EventKind, Explanation, WiredMemoryEvent
from wiredactors.memory.explaining import explain
from wiredactors.memory.idle_room import IdleRoom
from wiredactors.memory.ledger import Ledger
from wiredactors.memory.policies import WiredMemoryPolicy, policy_label
from wiredactors.memory.tickets import WiredMemoryTicket

#: What a dry run can be asked about.
Asking = WiredMemoryTicket | tuple[int, WiredMemoryPolicy]


@attrs.frozen(kw_only=True)
class DryRunTicket:
    """What would become of one ticket. Sizes are bytes.

    Attributes:
        ticket_id: its id; a pair has one that no other ticket has.
        size: what it asks for.
        policy: as events name it.
        outcome: "admitted", "waits" or "refused".
        reason: the same in a sentence.
        blocked_by, behind, missing: of one that waits, as in `Explanation`.
        error: what its `start()` would raise; None where it would not.
        would_yield: the ids of reservations that would have to go for it to fit; empty where it
            only waits for what ends by itself, or where all of them would not be enough (memory
            that others of the machine hold).
    """

    ticket_id: str
    size: int
    policy: str
    outcome: str
    reason: str
    blocked_by: str | None = None
    behind: tuple[str, ...] = ()
    missing: int = 0
    error: Exception | None = None
    would_yield: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class DryRun:
    """What would become of tickets that asked now, one after the other.

    Attributes:
        tickets: one record for each, in the order given.
    """

    tickets: tuple[DryRunTicket, ...]

    @property
    def admitted(self) -> bool:
        """Whether all of them would be let in at once."""
        return all(ticket.outcome == "admitted" for ticket in self.tickets)

    @property
    def would_yield(self) -> tuple[str, ...]:
        """The ids of all reservations that would have to go, each once."""
        return tuple(dict.fromkeys(id for ticket in self.tickets for id in ticket.would_yield))


def dry_run(ledger: Ledger, asking: Iterable[Asking], now: float) -> DryRun:
    """Start tickets on a copy of the ledger, each once more if it runs, and read off the rest."""
    starts = [m.Start(ticket, object(), exclusive=True) for ticket in _tickets(asking)]
    scratch = _Scratch(ledger)
    effects = [effect for start in starts for effect in scratch.receive(start, now)]
    effects += scratch.settle(now)
    errors = {effect.reply: effect.error for effect in effects if isinstance(effect, m.Refuse)}
    asked_for = _asked_for(effects)
    asked_now = frozenset(id for asked in asked_for.values() for id in asked)
    for start in starts:
        if later := scratch.would_ask_for(start.ticket_id, now):
            asked_for[start.ticket_id] = later
    records = [_record(scratch, start, errors.get(start.reply), now, asked_now) for start in starts]
    yielding = scratch.yielding(  # it is the end of the scratch ledger
        [record.ticket_id for record in records if record.outcome != "refused"], asked_for
    )
    return DryRun(
        tickets=tuple(
            attrs.evolve(record, would_yield=tuple(yielding[record.ticket_id]))
            if record.outcome == "waits"
            else record
            for record in records
        )
    )


def all_admitted(asking: Iterable[Asking]) -> DryRun:
    """The answer of a manager whose tickets do nothing."""
    return DryRun(tickets=tuple(_admitted(ticket) for ticket in _tickets(asking)))


def _tickets(asking: Iterable[Asking]) -> list[WiredMemoryTicket]:
    match asking:  # one alone, where several are taken
        case WiredMemoryTicket():
            raise _unusable("a single ticket: put it into a list, [ticket]")
        case (int(), WiredMemoryPolicy()):
            raise _unusable("a single pair: put it into a list, [(size, policy)]")
        case _ if not isinstance(asking, Iterable):
            raise _unusable(repr(asking))
    return [_ticket(each) for each in asking]


def _ticket(each: object) -> WiredMemoryTicket:
    match each:
        case WiredMemoryTicket():
            return each
        case (size, WiredMemoryPolicy() as policy):
            return policy.ticket(size)  # type: ignore[arg-type]  # it checks the size itself
    raise _unusable(repr(each))


def _unusable(what: str) -> TypeError:
    return TypeError(f"a dry run takes several tickets or (size, policy) pairs, not {what}")


# -- what became of each


def _record(
    scratch: _Scratch,
    start: m.Start,
    error: Exception | None,
    now: float,
    asked_now: frozenset[str],
) -> DryRunTicket:
    ticket = start.ticket
    if error is not None:
        return attrs.evolve(_admitted(ticket), outcome="refused", reason=str(error), error=error)
    why = scratch.explain_trial(ticket.id, now, asked_now)
    if why.state != "waiting":
        return _admitted(ticket)
    return attrs.evolve(
        _admitted(ticket),
        outcome="waits",
        reason=why.reason,
        blocked_by=why.blocked_by,
        behind=why.behind,
        missing=why.missing,
    )


def _admitted(ticket: WiredMemoryTicket) -> DryRunTicket:
    return DryRunTicket(
        ticket_id=ticket.id,
        size=ticket.size,
        policy=policy_label(ticket.policy),
        outcome="admitted",
        reason="it fits now",
    )


# -- what would have to yield


def _asked_for(effects: Sequence[m.Effect]) -> dict[str, list[str]]:
    """The reservations that the ledger asks for, by the ticket that it asks them for."""
    return {
        effect.ticket_id: effect.details["asked"]
        for effect in effects
        if isinstance(effect, WiredMemoryEvent)
        and effect.kind is EventKind.PRESSURE
        and effect.ticket_id is not None
        and effect.details["asked"]
    }


class _Scratch(Ledger):
    """A ledger in the same state as another, which nobody hears of."""

    def __init__(self, original: Ledger):
        super().__init__(original.configuration, ceiling=original._book.ceiling, writes=False)
        copy_tickets(original._book, original._admission, into=(self._book, self._admission))
        self._settlement.copy_baseline(original._settlement)
        self._pressure.copy_switches(original._pressure)
        self._desk.closed = original._desk.closed

    def explain_trial(self, ticket_id: str, now: float, asked_now: frozenset[str]) -> Explanation:
        """As `explain`; nobody was really asked to yield by this dry run."""
        return explain(self._book, self._admission, self._pressure, ticket_id, now, asked_now)

    def would_ask_for(self, ticket_id: str, now: float) -> list[str]:
        """The models that it would be asked for when the time has come."""
        waiter = self._queue.by_id.get(ticket_id)
        return [] if waiter is None else [*self._pressure.outlook_of(waiter, now).would_yield]

    def yielding(
        self, asking: Sequence[str], asked_for: dict[str, list[str]]
    ) -> dict[str, list[str]]:
        """Which reservations would have to go for each of `asking` that waits.

        It takes them out of the book, with all active work, so use the ledger no more.
        """
        found: dict[str, list[str]] = {}
        room = IdleRoom(self._book, asking)
        for grower in self._growers:
            room.grow(grower)
        for ticket_id in asking:
            waiter = self._queue.by_id.get(ticket_id)
            if waiter is not None:
                found[ticket_id] = asked_for.get(ticket_id) or room.take_for(waiter)
                room.let_in(waiter.holding)
        return found
