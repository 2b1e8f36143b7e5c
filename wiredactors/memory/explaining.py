"""Why a ticket waits, read off the book and the queue."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import attrs

from wiredactors.memory.admission import Admission
from wiredactors.memory.book import Book
from wiredactors.memory.errors import PolicyError
from wiredactors.memory.events import Explanation, Snapshot, TicketSnapshot
from wiredactors.memory.group import Group
from wiredactors.memory.holding import Holding
from wiredactors.memory.journal import Journal
from wiredactors.memory.lane import Waiter
from wiredactors.memory.pressure import Outlook, Pressure, needs_idle_bytes
from wiredactors.memory.settlement import Settlement
from wiredactors.memory.units import format_bytes


def snapshot(
    book: Book, admission: Admission, settlement: Settlement, journal: Journal
) -> Snapshot:
    """The whole state, frozen."""
    growing = {grower.ticket_id: grower.wants for grower in admission.growers}
    return Snapshot(
        sequence=journal.sequence,
        baseline=book.baseline,
        current_limit=settlement.current,
        desired_limit=settlement.desired,
        ceiling=book.ceiling,
        tickets=tuple(
            _ticket_snapshot(
                holding,
                wants=growing.get(holding.ticket_id),
                used_at=holding.used_at if holding.yields else None,
            )
            for holding in book.holdings.values()
        ),
        waiters=tuple(_ticket_snapshot(waiter.holding) for waiter in admission.queue),
        excess_bytes=book.excess,
        aging_seconds=admission.queue.aging_seconds,
        tickets_started=journal.tickets_started,
        limit_writes=settlement.limit_writes,
    )


def _ticket_snapshot(
    holding: Holding, *, wants: int | None = None, used_at: float | None = None
) -> TicketSnapshot:
    share = holding.share
    return TicketSnapshot(
        ticket_id=holding.ticket_id,
        size=holding.size,
        kind=holding.kind,
        priority=holding.priority,
        policy=holding.group.label,
        pinned=holding.pinned,
        since=holding.since,
        reclaimable=holding.reclaimable,
        requires=holding.requires,
        wants_size=wants,
        used_at=used_at,
        asked=holding.asked,
        evictable=holding.evictable,
        in_use=holding.in_use,
        shares=None if share is None else share.ticket_id,
        share_size=0 if share is None else share.size,
        share_margin=0 if share is None else share.margin,
    )


def explain(
    book: Book,
    admission: Admission,
    pressure: Pressure,
    ticket_id: str,
    now: float,
    would_be_asked: Collection[str] = (),
) -> Explanation:
    """The explanation for one ticket, waiting, growing, running or unknown.

    `would_be_asked` are those of the asked that only a dry run has asked to yield.
    """
    for queue in (admission.queue, admission.growers):
        waiter = queue.by_id.get(ticket_id)
        if waiter is not None:
            before = [other.ticket_id for other in queue.before(waiter)]
            outlook = pressure.outlook_of(waiter, now)
            return _explain_waiter(book, admission, waiter, before, now, would_be_asked, outlook)
    holding = book.holdings.get(ticket_id)
    if holding is None:
        return Explanation(
            ticket_id=ticket_id, state="unknown", reason="it neither runs nor waits here"
        )
    asked = ", and has been asked to yield" if holding.asked else ""
    return Explanation(
        ticket_id=ticket_id,
        state="running",
        reason=f"it holds {format_bytes(holding.size)}{asked}",
        since=holding.since,
        size=holding.size,
    )


def _explain_waiter(
    book: Book,
    admission: Admission,
    waiter: Waiter,
    before: list[str],
    now: float,
    would_be_asked: Collection[str],
    outlook: Outlook,
) -> Explanation:
    holding = waiter.holding
    growing = holding if waiter.grows else None
    kept_for = admission.kept_for(waiter, now)
    if kept_for is not None and kept_for.grows:
        before.insert(0, kept_for.ticket_id)
    try:
        available = book.available(holding.group, growing)
        blocked_by = book.blocked_by(holding.group, waiter.wants, growing)
    except PolicyError:
        available, blocked_by = 0, "group"
    found = Explanation(
        ticket_id=waiter.ticket_id,
        state="growing" if waiter.grows else "waiting",
        reason="",
        since=waiter.since,
        waited=now - waiter.since,
        size=waiter.wants,
        blocked_by="order" if kept_for is not None else blocked_by or "order",
        behind=tuple(before),
        available=available,
        missing=_missing(book, waiter, available),
        kept_for=None if kept_for is None else kept_for.ticket_id,
        passed=waiter.passed,
        overtake_count=None if waiter.grows else admission.overtake_count,
        overtake_at=waiter.since + admission.overtake_seconds
        if not waiter.grows and admission.has_use_for_room(waiter)
        else None,
        asked=tuple(_asked_of_use(book, waiter)),
        needs_idle_bytes=needs_idle_bytes(book, waiter),
        limited_by=outlook.limited_by,
        limited_until=outlook.limited_until,
        would_yield=outlook.would_yield,
    )
    refused = blocked_by == "group" and holding.group.bound is None  # it tells of no bytes
    clauses = [
        *_room(found, book, holding, blocked_by, kept_for, refused=refused),
        *_to_come_free(found, refused=refused),
        *_to_yield(found, holding, would_be_asked),
        *_models_to_yield(outlook),
        *_order(found, admission, waiter),
    ]
    return attrs.evolve(found, reason="; ".join(clauses))


def _missing(book: Book, waiter: Waiter, available: int) -> int:
    """The bytes that must come free before it fits, more than it wants where all is overdrawn."""
    group = waiter.holding.group
    if group.bound is None:  # what it admits is all that is known
        missing_in_group: float = waiter.wants - available
    else:
        missing_in_group = waiter.more - book.group_room(group)
    return int(max(0, missing_in_group, waiter.more - book.ceiling_room(group)))


def _asked_of_use(book: Book, waiter: Waiter) -> Iterator[str]:
    """Those asked to yield whose bytes it lacks: in its group, or under the ceiling."""
    holding = waiter.holding
    under_ceiling = waiter.more > book.ceiling_room(holding.group)
    for other in book.reservations.asked.values():
        if (
            other is not holding
            and other.ticket_id not in holding.requires
            and (under_ceiling or other.group is holding.group)
        ):
            yield other.ticket_id


# -- the same in a sentence, clause by clause


def _room(
    found: Explanation,
    book: Book,
    holding: Holding,
    blocked_by: str | None,
    kept_for: Waiter | None,
    *,
    refused: bool,
) -> Iterator[str]:
    """What it asks for, and what there is."""
    wants = format_bytes(found.size or 0)
    grows = found.state == "growing"
    needs = f"it needs {wants}"
    if grows:
        needs = f"it holds {format_bytes(holding.size)} and wants {wants}"
    available = found.available or 0
    free = f"{format_bytes(available)} are free" if available else "nothing is free"
    if grows:
        more = available > holding.size
        free = f"it could have {format_bytes(available) if more else 'no more'} now"
    if refused:
        free = f"its policy {_policy_name(holding.group)} refuses it now"
    elif kept_for is None and blocked_by is None:
        free = "it fits now, and has it when anything changes"  # its policy was of another mind
    elif kept_for is None:
        free += f" under {_bound(book, holding, blocked_by)}"
    told = f"{needs}; {free}" if grows else f"{needs}, and {free}"
    if kept_for is None:
        yield told
        return
    name = kept_for.ticket_id
    who, done = f"{name}, which waits before it", "come in"
    if kept_for.grows:
        who, done = f"{name}, which runs, wants to grow and goes first", "grown"
    if refused or not available:
        yield told
        yield f"what comes free is kept for {who}"
    elif holding.group.bound is None and not found.missing:  # it tells of no bytes
        yield f"{needs}, which would fit, but room is kept for {who}"
    else:
        yield f"{told}, but kept for {who}"
    yield f"its turn comes once {name} has {done} or gone"


def _bound(book: Book, holding: Holding, blocked_by: str | None) -> str:
    if blocked_by == "group":
        return f"the policy {_policy_name(holding.group)}"
    if not book.excess:
        return "the ceiling"
    excess = format_bytes(book.excess)
    return f"the ceiling, lowered by {excess} for what is used outside the tickets"


def _policy_name(group: Group) -> str:
    """As events name it, but for a repr that says no more than where the policy lies."""
    policy = group.policy
    return type(policy).__name__ if group.label == object.__repr__(policy) else group.label


def _to_come_free(found: Explanation, *, refused: bool) -> Iterator[str]:
    idle = format_bytes(found.needs_idle_bytes)
    source = "reservations that stay until their owners end them, such as idle models"
    if found.would_yield:
        source = "reservations such as models"
    if found.missing and not refused:
        does = "grows" if found.state == "growing" else "fits"
        of_it = f", {idle} of it from {source}" if found.needs_idle_bytes else ""
        yield f"it {does} when {format_bytes(found.missing)} more are free{of_it}"
    elif found.needs_idle_bytes:
        yield f"{idle} must come from {source}"


def _to_yield(
    found: Explanation, holding: Holding, would_be_asked: Collection[str]
) -> Iterator[str]:
    asked = [name for name in found.asked if name not in would_be_asked]
    if asked:
        yield f"{', '.join(asked)} {'has' if len(asked) == 1 else 'have'} been asked to yield"
    would_be = [name for name in found.asked if name in would_be_asked]
    if would_be:
        yield f"{', '.join(would_be)} would be asked to yield"
    if holding.asked:
        yield "it has been asked to yield itself"


def _models_to_yield(outlook: Outlook) -> Iterator[str]:
    """Which models would be asked for it, what keeps that from happening yet, and until when."""
    names, several = ", ".join(outlook.would_yield), len(outlook.would_yield) > 1
    match outlook.limited_by:
        case "switches_per_minute":
            times = "once" if outlook.limit == 1 else f"{outlook.limit:g} times"
            yield (
                f"{names} could yield, but models are switched at most {times} a minute "
                f"(switches_per_minute): next at {outlook.limited_until:.1f} s"
            )
        case "turn_seconds":
            own = outlook.waiter.since + outlook.limit == outlook.limited_until
            has_had = "they have served" if several else "it has served"
            at = "" if outlook.limited_until is None else f", at {outlook.limited_until:.1f} s"
            yield (
                f"{names} {'are' if several else 'is'} in use: "
                f"{'they are' if several else 'it is'} asked to finish once "
                f"{'this has waited' if own else has_had} {outlook.limit:g} s (turn_seconds){at}"
            )


def _order(found: Explanation, admission: Admission, waiter: Waiter) -> Iterator[str]:
    """Who goes before it, and when its own room is kept."""
    before = len(found.behind)
    if waiter.grows:
        if before:
            yield f"{before} asked before it"
        return
    if not before:
        yield "nobody waits before it"
    elif found.behind != (found.kept_for,):
        yield f"{before} wait{'s' if before == 1 else ''} before it"
    # Only the first of a lane keeps room, and not while another's bars it.
    if found.kept_for is None and waiter.lane is not None and waiter.lane.head is waiter:
        if found.overtake_at is None:
            yield "no room is kept for it before a model has gone"
            return
        count, seconds = admission.overtake_count, admission.overtake_seconds
        if found.passed >= count or found.waited >= seconds:
            yield "its room is kept"
        else:
            so_far = f" ({found.passed} so far)" if found.passed else ""
            times = f"{count} time{'' if count == 1 else 's'}"
            yield f"its room is kept once it was passed {times}{so_far} or has waited {seconds:g} s"
