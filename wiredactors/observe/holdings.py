"""Which ticket holds what, rebuilt from the events alone."""

from __future__ import annotations

from wiredactors.memory.events import EventKind, WiredMemoryEvent


class Holdings:
    """Feed it every event with `take`. Sizes are bytes.

    Attributes:
        total: of all tickets that hold any.
        reserved: of those, what reservations hold.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[int, str]] = {}  # size and kind by ticket
        self.total = 0
        self.reserved = 0

    def of(self, ticket_id: str) -> int:
        """What one ticket holds; 0 for one that does not run."""
        return self._held.get(ticket_id, (0, ""))[0]

    def take(self, event: WiredMemoryEvent) -> bool:
        """Bring it up to date; whether anything has changed."""
        ticket, size = event.ticket_id or "", event.size or 0
        match event.kind:
            case EventKind.SNAPSHOT if event.snapshot is not None:
                for held in event.snapshot.tickets:
                    self._hold(held.ticket_id, held.size, held.kind)
            case EventKind.TICKET_STARTED:
                self._hold(ticket, size, event.ticket_kind or "")
            # The resize of a ticket that still waits changes what it asks for, not what it holds.
            case EventKind.TICKET_RESIZED if ticket in self._held:
                self._hold(ticket, size, self._held[ticket][1])
            case EventKind.TICKET_ENDED if ticket in self._held:
                self._let_go(ticket)
            case _:
                return False
        return True

    def _hold(self, ticket: str, size: int, kind: str) -> None:
        self._let_go(ticket)
        self._held[ticket] = (size, kind)
        self._count(size, kind)

    def _let_go(self, ticket: str) -> None:
        size, kind = self._held.pop(ticket, (0, ""))
        self._count(-size, kind)

    def _count(self, change: int, kind: str) -> None:
        self.total += change
        if kind == "reservation":
            self.reserved += change
