"""Pressure: which reservations must go so that those who wait fit, and who is asked to yield.

Looked at are those who wait to grow, and the first in each lane of those who wait to start unless
another's room bars it, all in the order of the ledger. For each of them:

- Where enough reclaimable reservations would make it fit, their owners are asked for them, the
  least recently used first; all or nothing. It comes in when they really have ended.
- Where its own group keeps it out, and room there is kept for it already, caches of its group are
  asked though the ceiling would not let it in yet. Else others would fill up the ceiling again and
  again, which nobody keeps free for one that its group keeps out.
- Where it would not fit though all active work and all that is reclaimable had ended, it waits for
  reservations that nobody here can ask for (idle models): an event says how many bytes.

What is asked for one, the next ones cannot count on.
"""

from __future__ import annotations

from wiredactors.memory import messages as m
from wiredactors.memory.admission import Admission
from wiredactors.memory.book import Book
from wiredactors.memory.events import EventKind
from wiredactors.memory.holding import Holding
from wiredactors.memory.journal import Journal
from wiredactors.memory.lane import Waiter
from wiredactors.memory.yielding import Plans


class Pressure:
    """Looks once a turn while any wait; it costs O(lanes + growers + what is asked for)."""

    def __init__(self, book: Book, admission: Admission, journal: Journal):
        self._book = book
        self._admission = admission
        self._journal = journal

    def look(self) -> None:
        """Ask for what is needed, and say what cannot be asked for."""
        reservations = self._book.reservations
        if self._admission.idle or not (reservations.reclaimable or reservations.kept_bytes):
            return
        plans = Plans(self._book)
        for waiter in self._admission.next_in_line(self._journal.now):
            yielding = plans.for_waiter(waiter)
            if yielding is None and self._admission.keeps_room(waiter, self._journal.now):
                yielding = plans.for_waiter(waiter, in_group_only=True)
            if yielding is None:
                self._say(waiter, needs_idle_bytes(self._book, waiter), [])
                continue
            new = [holding for holding in yielding if not holding.asked]
            if new:
                self._say(waiter, _missing_bytes(self._book, waiter), new)
                for holding in new:
                    self._ask(holding)

    def _say(self, waiter: Waiter, needed_bytes: int, asked: list[Holding]) -> None:
        if asked or (needed_bytes and needed_bytes != waiter.said_to_need):
            details = {
                "needed_bytes": needed_bytes,
                "asked": [holding.ticket_id for holding in asked],
            }
            self._journal.emit_ticket(EventKind.PRESSURE, waiter.holding, details=details)
        waiter.said_to_need = needed_bytes

    def _ask(self, holding: Holding) -> None:
        self._book.reservations.ask(holding)
        self._journal.emit_ticket(EventKind.RECLAIM_REQUESTED, holding)
        self._journal.effect(m.Reclaim(holding.ticket_id))


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
    group, holding = waiter.holding.group, waiter.holding
    reservations = book.reservations
    kept_itself = waiter.grows and not (holding.active or holding.reclaimable)
    need = waiter.wants - (holding.size if kept_itself else 0)
    missing: float = 0
    if book.ceiling is not None:
        bases = reservations.kept_base_bytes(group)
        missing = need - (book.ceiling - book.baseline - bases - reservations.kept_bytes)
    if group.bound is not None:
        room_in_group = group.bound - book.baseline - reservations.kept_in(group)
        missing = max(missing, need - room_in_group)
    return max(0, int(missing))
