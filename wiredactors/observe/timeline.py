"""What happened over time: the limit, the tickets and the memory that was really used."""

from __future__ import annotations

import attrs

from wiredactors.memory.events import EventKind, WiredMemoryEvent
from wiredactors.observe.holdings import Holdings
from wiredactors.scheduling.requests import StepReport


@attrs.define
class Span:
    """A ticket's life. Its size is the last one; times are seconds, None where not come to."""

    ticket_id: str
    size: int
    kind: str
    asked: float
    admitted: float | None = None
    ended: float | None = None


@attrs.frozen
class MemorySample:
    """MLX's memory round one step, and what had been granted when it began. Bytes."""

    time: float
    active_bytes: int
    peak_bytes: int
    granted_bytes: int

    @property
    def over_bytes(self) -> int:
        """What the peak had beyond the grant; negative where it stayed inside."""
        return self.peak_bytes - self.granted_bytes


class Timeline:
    """Feed it every event and every step report; read `limits`, `spans` and `samples`."""

    def __init__(self) -> None:
        self.limits: list[tuple[float, int]] = []
        self.granted: list[tuple[float, int]] = []
        self.reserved: list[tuple[float, int]] = []  # of `granted`, what reservations hold
        self.spans: dict[str, Span] = {}
        self.samples: list[MemorySample] = []
        self._holdings = Holdings()

    def take_step(self, report: StepReport, now: float) -> None:
        """Note the memory of one step."""
        self.samples.append(
            MemorySample(now, report.active_bytes, report.peak_bytes, report.granted_bytes)
        )

    def take(self, event: WiredMemoryEvent) -> None:
        """Note an event."""
        now, ticket, size = event.timestamp, event.ticket_id or "", event.size or 0
        if self._holdings.take(event):
            self.granted.append((now, self._holdings.total))
            self.reserved.append((now, self._holdings.reserved))
        match event.kind:
            case EventKind.SNAPSHOT:
                self.limits.append((now, event.applied_limit or 0))
                if event.snapshot is not None:
                    for held in event.snapshot.tickets:
                        self.spans[held.ticket_id] = Span(
                            held.ticket_id, held.size, held.kind, held.since, held.since
                        )
            case EventKind.LIMIT_APPLIED:
                self.limits.append((now, event.applied_limit or 0))
            case EventKind.ADMISSION_WAIT:
                self.spans[ticket] = Span(ticket, size, event.ticket_kind or "", now)
            case EventKind.TICKET_STARTED:
                self._began(ticket, size, event.ticket_kind or "", now)
            case EventKind.TICKET_RESIZED if ticket in self.spans:
                self.spans[ticket].size = size
            case (
                EventKind.TICKET_ENDED | EventKind.ADMISSION_CANCELLED | EventKind.ADMISSION_REFUSED
            ) if ticket in self.spans:
                self.spans[ticket].ended = now

    def _began(self, ticket: str, size: int, kind: str, now: float) -> None:
        waiting = self.spans.get(ticket)
        if waiting is None or waiting.ended is not None:  # it did not wait, or this is a new life
            waiting = self.spans[ticket] = Span(ticket, size, kind, now)
        waiting.admitted = now

    @property
    def worst_sample(self) -> MemorySample | None:
        """The step whose peak went furthest beyond what was granted (or came closest to it)."""
        return max(self.samples, key=lambda sample: sample.over_bytes, default=None)
