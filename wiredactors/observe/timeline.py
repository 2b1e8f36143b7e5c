"""What happened over time: the limit, the tickets and the memory that was really used."""

from __future__ import annotations

import attrs

from wiredactors.memory.events import EventKind, WiredMemoryEvent
from wiredactors.scheduling.requests import StepReport


@attrs.define
class Span:
    """A ticket's life. Times are seconds; None where it has not come to that."""

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
        self._held: dict[str, int] = {}

    def take_step(self, report: StepReport, now: float) -> None:
        """Note the memory of one step."""
        self.samples.append(
            MemorySample(now, report.active_bytes, report.peak_bytes, report.granted_bytes)
        )

    def take(self, event: WiredMemoryEvent) -> None:
        """Note an event."""
        now, ticket, size = event.timestamp, event.ticket_id or "", event.size or 0
        match event.kind:
            case EventKind.SNAPSHOT | EventKind.LIMIT_APPLIED:
                self.limits.append((now, event.applied_limit or 0))
            case EventKind.ADMISSION_WAIT:
                self.spans[ticket] = Span(ticket, size, event.ticket_kind or "", now)
            case EventKind.TICKET_STARTED:
                span = self.spans.setdefault(
                    ticket, Span(ticket, size, event.ticket_kind or "", now)
                )
                span.admitted = now
                self._hold(now, ticket, size)
            case EventKind.TICKET_RESIZED if ticket in self._held:
                self._hold(now, ticket, size)
            case EventKind.TICKET_ENDED | EventKind.ADMISSION_CANCELLED:
                if ticket in self.spans:
                    self.spans[ticket].ended = now
                self._hold(now, ticket, 0)

    @property
    def worst_sample(self) -> MemorySample | None:
        """The step whose peak went furthest beyond what was granted (or came closest to it)."""
        return max(self.samples, key=lambda sample: sample.over_bytes, default=None)

    def _hold(self, now: float, ticket: str, size: int) -> None:
        self._held[ticket] = size
        self.granted.append((now, sum(self._held.values())))
        kept = [
            held
            for name, held in self._held.items()
            if name in self.spans and self.spans[name].kind == "reservation"
        ]
        self.reserved.append((now, sum(kept)))
