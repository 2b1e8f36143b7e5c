"""Why a ticket waits, read off the book and the queue."""

from __future__ import annotations

from collections.abc import Sequence

from wiredactors.memory.book import Book
from wiredactors.memory.errors import PolicyError
from wiredactors.memory.events import Explanation
from wiredactors.memory.queue import Waiter, WaitQueue
from wiredactors.memory.units import format_bytes


def explain(
    book: Book, queue: WaitQueue, growers: Sequence[Waiter], ticket_id: str, now: float
) -> Explanation:
    """The explanation for one ticket, waiting, growing, running or unknown."""
    waiter = queue.get(ticket_id)
    growing = next((g for g in growers if g.ticket_id == ticket_id), None)
    if waiter is not None:
        return _explain_waiter(book, waiter, tuple(w.ticket_id for w in queue.before(waiter)), now)
    if growing is not None:
        earlier = tuple(g.ticket_id for g in growers[: growers.index(growing)])
        return _explain_waiter(book, growing, earlier, now)
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


def _explain_waiter(book: Book, waiter: Waiter, behind: tuple[str, ...], now: float) -> Explanation:
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
    }.get(waiter.blocked_by or "order", "")
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
        blocked_by=waiter.blocked_by,
        behind=behind,
        available=available,
        missing=missing,
        passed=waiter.passed,
    )


def _before(count: int) -> str:
    if count == 0:
        return "nobody waits before it"
    return f"{count} wait{'s' if count == 1 else ''} before it"
