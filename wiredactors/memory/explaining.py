"""Why a ticket waits, read off the book and the queue."""

from __future__ import annotations

import attrs

from wiredactors.memory.admission import Admission
from wiredactors.memory.book import Book
from wiredactors.memory.errors import PolicyError
from wiredactors.memory.events import Explanation, Snapshot, TicketSnapshot
from wiredactors.memory.holding import Holding
from wiredactors.memory.journal import Journal
from wiredactors.memory.lane import Waiter
from wiredactors.memory.pressure import needs_idle_bytes
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
                used_at=holding.used_at if holding.reclaimable else None,
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
    )


def explain(book: Book, admission: Admission, ticket_id: str, now: float) -> Explanation:
    """The explanation for one ticket, waiting, growing, running or unknown."""
    for queue in (admission.queue, admission.growers):
        waiter = queue.by_id.get(ticket_id)
        if waiter is not None:
            behind = tuple(other.ticket_id for other in queue.before(waiter))
            return _explain_waiter(book, admission, waiter, behind, now)
    holding = book.holdings.get(ticket_id)
    if holding is None:
        return Explanation(
            ticket_id=ticket_id, state="unknown", reason="it neither runs nor waits here"
        )
    return Explanation(
        ticket_id=ticket_id,
        state="running",
        reason=f"it holds {format_bytes(holding.size)}",
        since=holding.since,
        size=holding.size,
    )


def _explain_waiter(
    book: Book, admission: Admission, waiter: Waiter, behind: tuple[str, ...], now: float
) -> Explanation:
    holding = waiter.holding
    growing = holding if waiter.grows else None
    kept_for = admission.kept_for(waiter, now)
    try:
        available = book.available(holding.group, growing)
        blocked_by = book.blocked_by(holding.group, waiter.wants, growing)
    except PolicyError:
        available, blocked_by = 0, "group"
    reclaimable = book.reservations.reclaimable.values()
    explanation = Explanation(
        ticket_id=waiter.ticket_id,
        state="growing" if waiter.grows else "waiting",
        reason="",
        since=waiter.since,
        waited=now - waiter.since,
        size=waiter.wants,
        blocked_by="order" if kept_for is not None else blocked_by or "order",
        behind=behind,
        available=available,
        missing=max(0, waiter.wants - available),
        kept_for=None if kept_for is None else kept_for.ticket_id,
        passed=waiter.passed,
        overtake_count=None if waiter.grows else admission.overtake_count,
        overtake_at=None if waiter.grows else waiter.since + admission.overtake_seconds,
        asked=tuple(other.ticket_id for other in reclaimable if other.asked),
        needs_idle_bytes=needs_idle_bytes(book, waiter),
    )
    return attrs.evolve(explanation, reason=_reason(explanation, book, holding))


def _reason(found: Explanation, book: Book, holding: Holding) -> str:
    what = f"the policy {holding.group.label}"
    if found.blocked_by == "ceiling":
        what = "the ceiling over all tickets"
        if book.excess:
            what += f", of which others on this machine hold {format_bytes(book.excess)}"
    elif found.blocked_by == "order":
        what = f"what is kept free for {found.kept_for or 'one before it'}"
    clauses = [
        f"it needs {format_bytes(found.size or 0)}, "
        f"{format_bytes(found.available or 0)} is free under {what}",
        _before(len(found.behind)),
    ]
    if found.missing:
        clauses.append(f"it fits when {format_bytes(found.missing)} more are given back")
    if found.asked:
        clauses.append(f"{', '.join(found.asked)} asked to yield")
    if found.needs_idle_bytes:
        idle = format_bytes(found.needs_idle_bytes)
        clauses.append(f"{idle} of it by reservations, which must be given up (idle models)")
    if found.passed:
        clauses.append(f"passed {found.passed} of at most {found.overtake_count} times")
    return "; ".join(clauses)


def _before(count: int) -> str:
    if count == 0:
        return "nobody waits before it"
    return f"{count} wait{'s' if count == 1 else ''} before it"
