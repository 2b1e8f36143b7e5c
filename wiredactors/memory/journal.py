"""The journal: numbers the events, and collects the effects of the commands being taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wiredactors.memory import messages as m
from wiredactors.memory.book import Book
from wiredactors.memory.events import EventDraft, EventKind
from wiredactors.memory.holding import Holding
from wiredactors.memory.queue import WaitQueue

_NOTHING: Mapping[str, Any] = {}


class Journal:
    """See the module.

    Attributes:
        sequence: the number of the last event.
        now: the time of the command being taken.
        listening: whether anybody reads events; without, they are numbered and not made.
        tickets_started: how many tickets have been let in.
    """

    def __init__(self, book: Book, queue: WaitQueue):
        self.sequence = 0
        self.now = 0.0
        self.listening = True
        self.tickets_started = 0
        self._book = book
        self._queue = queue
        self._effects: list[m.Effect] = []

    def take(self) -> list[m.Effect]:
        """What has been collected since the last time."""
        taken = self._effects
        if taken:
            self._effects = []
        return taken

    def effect(self, effect: m.Effect) -> None:
        """Something to be carried out, after all that was collected before."""
        self._effects.append(effect)

    def refuse(self, reply: m.Reply, error: Exception) -> None:
        """The answer to `reply` is `error`."""
        self._effects.append(m.Refuse(reply, error))

    def emit(self, kind: EventKind, **fields: Any) -> None:
        """An event; `fields` as in `WiredMemoryEvent`."""
        self.sequence += 1
        if not self.listening:
            return
        fields.setdefault("baseline", self._book.baseline)
        draft = EventDraft(
            kind=kind,
            sequence=self.sequence,
            timestamp=self.now,
            active_count=len(self._book.holdings),
            waiter_count=len(self._queue.by_id),
            **fields,
        )
        self._effects.append(draft.frozen())

    def emit_ticket(
        self,
        kind: EventKind,
        holding: Holding,
        *,
        size: int | None = None,
        error: str | None = None,
        details: Mapping[str, Any] = _NOTHING,
        more: Mapping[str, Any] = _NOTHING,
    ) -> None:
        """An event about a ticket, of `size` bytes where that is not what it holds.

        `details` stand for what the ticket is, `more` beside it.
        """
        self.sequence += 1
        if not self.listening:
            return
        draft = EventDraft(
            kind=kind,
            sequence=self.sequence,
            timestamp=self.now,
            ticket_id=holding.ticket_id,
            size=holding.size if size is None else size,
            ticket_kind=holding.kind,
            priority=holding.priority,
            policy=holding.group.label,
            baseline=self._book.baseline,
            active_count=len(self._book.holdings),
            waiter_count=len(self._queue.by_id),
            error=error,
            details=details or ({**_traits_of(holding), **more} if more else _traits_of(holding)),
        )
        self._effects.append(draft.frozen())


def _traits_of(holding: Holding) -> Mapping[str, Any]:
    """What a ticket is besides its kind; most are nothing."""
    if not (holding.pinned or holding.yields or holding.requires):  # who shares stands on that
        return _NOTHING
    share = holding.share
    traits = {
        "pinned": holding.pinned,
        "reclaimable": holding.reclaimable,
        "evictable": holding.evictable,
        "requires": holding.requires,
        "shares": share and share.ticket_id,
        "share_size": share and share.size,
        "share_margin": share and share.margin,
    }
    return {name: value for name, value in traits.items() if value}
