"""Why a ticket waits, read off the book and the queue."""

from __future__ import annotations

from wiredactors.memory.admission import Admission
from wiredactors.memory.book import Book, Holding
from wiredactors.memory.errors import PolicyError
from wiredactors.memory.events import Explanation, Snapshot, TicketSnapshot
from wiredactors.memory.lane import Waiter
from wiredactors.memory.settlement import Settlement
from wiredactors.memory.units import format_bytes


def snapshot(book: Book, admission: Admission, settlement: Settlement, sequence: int) -> Snapshot:
    """The whole state, frozen."""
    growing = {grower.ticket_id: grower.wants for grower in admission.growers}
    return Snapshot(
        sequence=sequence,
        baseline=book.baseline,
        current_limit=settlement.current,
        desired_limit=settlement.desired,
        ceiling=book.ceiling,
        tickets=tuple(
            _ticket_snapshot(h, growing.get(h.ticket_id)) for h in book.holdings.values()
        ),
        waiters=tuple(_ticket_snapshot(w.holding, None) for w in admission.queue),
    )


def _ticket_snapshot(holding: Holding, wants: int | None) -> TicketSnapshot:
    return TicketSnapshot(
        ticket_id=holding.ticket_id,
        size=holding.size,
        kind=holding.kind,
        priority=holding.priority,
        policy=holding.group.label,
        pinned=holding.pinned,
        since=holding.since,
        wants_size=wants,
    )


def explain(book: Book, admission: Admission, ticket_id: str, now: float) -> Explanation:
    """The explanation for one ticket, waiting, growing, running or unknown."""
    for queue in (admission.queue, admission.growers):
        waiter = queue.by_id.get(ticket_id)
        if waiter is not None:
            behind = tuple(other.ticket_id for other in queue.before(waiter))
            blocked_by = admission.blocked_by(waiter, now)
            return _explain_waiter(book, waiter, behind, blocked_by, now)
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
    book: Book, waiter: Waiter, behind: tuple[str, ...], blocked_by: str, now: float
) -> Explanation:
    holding = waiter.holding
    try:
        available = book.available(holding.group, holding if waiter.grows else None)
    except PolicyError:
        available = 0
    missing = max(0, waiter.wants - available)
    what = {
        "ceiling": "the ceiling over all tickets",
        "group": f"the policy {holding.group.label}",
        "order": "room that is kept for one before it",
    }[blocked_by]
    return Explanation(
        ticket_id=waiter.ticket_id,
        state="growing" if waiter.grows else "waiting",
        reason=(
            f"it needs {format_bytes(waiter.wants)}, {format_bytes(available)} is free under "
            f"{what}, and {_before(len(behind))}: it fits when {format_bytes(missing)} more "
            "are given back"
        ),
        since=waiter.since,
        waited=now - waiter.since,
        size=waiter.wants,
        blocked_by=blocked_by,
        behind=behind,
        available=available,
        missing=missing,
        passed=waiter.passed,
    )


def _before(count: int) -> str:
    if count == 0:
        return "nobody waits before it"
    return f"{count} wait{'s' if count == 1 else ''} before it"
