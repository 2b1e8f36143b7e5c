"""A run as plain lines, for a terminal that is none."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from wiredactors.actors.runtime import Runtime
from wiredactors.memory.events import EventKind, WiredMemoryEvent
from wiredactors.memory.units import format_bytes

#: Why a model goes, where that is news.
_WHY = {
    "pressure": "since others need the room",
    "keep_alive": "since nobody has used it for long enough",
    "unload": "since it was told to go",
}


class PlainView:
    """Prints a line for each thing that a person would want to know."""

    def __init__(self, title: str):
        self._title = title
        self._begin: float | None = None
        self._quarters: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def open(self, runtime: Runtime) -> AsyncIterator[None]:
        """Nothing to set up: the lines come with the events."""
        print(self._title, flush=True)
        yield

    def take(self, event: WiredMemoryEvent) -> None:
        """Print what the event says, if it is worth a line."""
        if self._begin is None:
            self._begin = event.timestamp
        line = self._line(event)
        if line is not None:
            print(f"{event.timestamp - self._begin:7.2f} s  {line}", flush=True)

    def _line(self, event: WiredMemoryEvent) -> str | None:
        size = format_bytes(event.size or 0)
        numbers = event.details
        match event.kind:
            case EventKind.MODEL_LOADING:
                return f"model {event.model}: loading, holds {size} for the peak of the load"
            case EventKind.MODEL_PROGRESS:
                return self._progress(event)
            case EventKind.MODEL_READY:
                return f"model {event.model}: ready, weights hold {size}"
            case EventKind.MODEL_FAILED:
                return f"model {event.model}: failed: {event.error}"
            case EventKind.MODEL_DRAINING if numbers["reason"] in _WHY:
                return f"model {event.model}: takes no more work, {_WHY[numbers['reason']]}"
            case EventKind.JOB_QUEUED if "prompt_tokens" not in numbers:
                return f"{event.job} waits for model {event.model}"
            case EventKind.MODEL_UNLOADED:
                return f"model {event.model}: unloaded"
            case EventKind.ADMISSION_WAIT:
                return f"{event.ticket_id} waits for {size} ({event.waiter_count} waiting)"
            case EventKind.JOB_ADMITTED:
                waited = numbers["waited"]
                after = f" after {waited:.1f} s" if waited >= 0.05 else ""
                return f"{event.job} ({event.model}) admitted{after}, holds {size}"
            case EventKind.ADMISSION_REFUSED:
                return f"{event.ticket_id} refused: {event.error}"
            case EventKind.JOB_FINISHED:
                return (
                    f"{event.job} ({event.model}) finished ({numbers['finish_reason']}), "
                    f"{numbers['generation_tokens']} tokens; {size} given back"
                )
            case EventKind.JOB_CANCELLED:
                return (
                    f"{event.job} ({event.model}) cancelled after "
                    f"{numbers['generation_tokens']} tokens; {size} given back"
                )
            case EventKind.LIMIT_APPLIED:
                return f"limit {format_bytes(event.applied_limit or 0)}"
            case EventKind.FOREIGN_LIMIT_WRITE | EventKind.LIMIT_APPLY_FAILED:
                return f"{event.kind}: {format_bytes(event.desired_limit or 0)} {event.error or ''}"
        return None

    def _progress(self, event: WiredMemoryEvent) -> str | None:
        quarter = 4 * event.details["done_bytes"] // max(1, event.details["total_bytes"])
        name = event.model or ""
        if quarter in (0, 4) or self._quarters.get(name) == quarter:
            return None
        self._quarters[name] = quarter
        return f"model {name}: {25 * quarter} % loaded"
