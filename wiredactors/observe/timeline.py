"""What happened over time: the limit, the tickets and the memory that was really used."""

from __future__ import annotations

import attrs

from wiredactors.memory.events import EventKind, WiredMemoryEvent
from wiredactors.observe.holdings import Holdings
from wiredactors.scheduling.requests import StepReport


@attrs.define
class Span:
    """One life of a ticket. Its size is the last one; times are seconds, None where not come to.

    A job's begins when it is queued, also where its ticket can ask for nothing before its model is
    there.
    """

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
    """Feed it every event and every step report; read the lists."""

    def __init__(self) -> None:
        self.limits: list[tuple[float, int]] = []
        self.granted: list[tuple[float, int]] = []
        self.reserved: list[tuple[float, int]] = []  # of `granted`, what reservations hold
        self.spans: list[Span] = []
        self.samples: list[MemorySample] = []
        self._holdings = Holdings()
        self._alive: dict[str, Span] = {}  # those that have not ended, by ticket

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
                        self._asks(held.ticket_id, held.kind, held.since)
                        self._starts(held.ticket_id, held.size, held.since)
            case EventKind.LIMIT_APPLIED:
                self.limits.append((now, event.applied_limit or 0))
            case EventKind.JOB_QUEUED:
                self._asks(ticket, "active", now)
            case EventKind.ADMISSION_WAIT:
                self._asks(ticket, event.ticket_kind or "", now).size = size
            case EventKind.TICKET_STARTED:
                self._asks(ticket, event.ticket_kind or "", now)
                self._starts(ticket, size, now)
            case EventKind.TICKET_RESIZED if ticket in self._alive:
                self._alive[ticket].size = size
            case (
                EventKind.TICKET_ENDED
                | EventKind.ADMISSION_CANCELLED
                | EventKind.ADMISSION_REFUSED
                | EventKind.JOB_CANCELLED
                | EventKind.JOB_FAILED
            ) if ticket in self._alive:
                self._alive.pop(ticket).ended = now

    def _asks(self, ticket: str, kind: str, now: float) -> Span:
        span = self._alive.get(ticket)
        if span is None:
            span = self._alive[ticket] = Span(ticket, 0, kind, now)
            self.spans.append(span)
        return span

    def _starts(self, ticket: str, size: int, now: float) -> None:
        span = self._alive[ticket]
        span.size, span.admitted = size, now

    @property
    def worst_sample(self) -> MemorySample | None:
        """The step whose peak went furthest beyond what was granted (or came closest to it)."""
        return max(self.samples, key=lambda sample: sample.over_bytes, default=None)
