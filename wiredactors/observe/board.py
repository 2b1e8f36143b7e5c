"""What is going on now, rebuilt from the events alone: models, jobs, and the limit."""

from __future__ import annotations

from typing import Any

import attrs

from wiredactors.memory.events import EventKind, WiredMemoryEvent
from wiredactors.observe.holdings import Holdings


@attrs.define
class ModelLine:
    """A model as the events tell of it. `share` of its load is done, 0 to 1."""

    name: str
    state: str = "queued"
    share: float = 0.0
    bytes: int = 0


@attrs.define
class JobLine:
    """A job as the events tell of it; `numbers` are those of its last event."""

    name: str
    model: str
    ticket_id: str
    size: int
    state: str = "waiting"
    since: float = 0.0
    numbers: dict[str, Any] = attrs.field(factory=dict)
    error: str | None = None


_MODEL_STATES = {
    EventKind.MODEL_QUEUED: "queued",
    EventKind.MODEL_LOADING: "loading",
    EventKind.MODEL_READY: "ready",
    EventKind.MODEL_DRAINING: "draining",
    EventKind.MODEL_FAILED: "failed",
    EventKind.MODEL_UNLOADED: "unloaded",
}
_JOB_STATES = {
    EventKind.JOB_QUEUED: "waiting",
    EventKind.JOB_ADMITTED: "reading",
    EventKind.JOB_FIRST_TOKEN: "writing",
    EventKind.JOB_FINISHED: "done",
    EventKind.JOB_CANCELLED: "cancelled",
    EventKind.JOB_FAILED: "failed",
}


class Board:
    """Feed it every event with `take`; read `models`, `jobs` and the numbers."""

    def __init__(self) -> None:
        self.models: dict[str, ModelLine] = {}
        self.jobs: dict[str, JobLine] = {}
        self.holdings = Holdings()
        self.limit = 0
        self.baseline = 0
        self.waiting = 0
        self.now = 0.0

    def take(self, event: WiredMemoryEvent) -> None:
        """Bring the board up to date."""
        self.now = event.timestamp
        self.waiting = event.waiter_count
        self.holdings.take(event)
        if event.baseline is not None:
            self.baseline = event.baseline
        if event.applied_limit is not None:
            self.limit = event.applied_limit
        match event.kind:
            case EventKind.MODEL_PROGRESS:
                model = self._model(event)
                model.share = event.details["done_bytes"] / max(1, event.details["total_bytes"])
            case kind if kind in _MODEL_STATES:
                self._take_model(event)
            case kind if kind in _JOB_STATES:
                self._take_job(event)

    def _model(self, event: WiredMemoryEvent) -> ModelLine:
        name = event.model or ""
        return self.models.setdefault(name, ModelLine(name))

    def _take_model(self, event: WiredMemoryEvent) -> None:
        model = self._model(event)
        model.state = _MODEL_STATES[event.kind]
        if event.size is not None:
            model.bytes = event.size
        match event.kind:
            case EventKind.MODEL_QUEUED:
                model.share = 0.0  # it may come again
            case EventKind.MODEL_READY:
                model.share = 1.0

    def _take_job(self, event: WiredMemoryEvent) -> None:
        name = event.job or ""
        job = self.jobs.get(name)
        if job is None:
            job = self.jobs[name] = JobLine(
                name, event.model or "", event.ticket_id or "", event.size or 0
            )
        refused = event.kind is EventKind.JOB_FAILED and job.state == "waiting"
        job.state = "refused" if refused else _JOB_STATES[event.kind]
        job.size = event.size or job.size  # not known before its model is there
        job.since = event.timestamp
        job.numbers |= event.details
        job.error = event.error
