"""Where a model is in its life, with the events that say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from wiredactors.memory.errors import WiredMemoryError
from wiredactors.memory.events import EventKind
from wiredactors.memory.tickets import WiredMemoryTicket
from wiredactors.scheduling.lifecycle import (
    LIFE,
    ModelEvent,
    ModelState,
    OnRequest,
    back_off,
    next_state,
)

_WORDS = {
    ModelState.ABSENT: "nothing of it is in memory until it is used",
    ModelState.QUEUED: "what it will take is being found out",
    ModelState.LOADING: "its weights are being read",
    ModelState.READY: "it serves",
    ModelState.DRAINING: "it goes when what runs on it has ended",
    ModelState.UNLOADING: "its memory is being given back",
}


class Life:
    """Moves as `scheduling.lifecycle` has it, and in no other way.

    Attributes:
        state: where the model is.
        weights: its reservation, while it has one: events are tied to it.
        retry_at: when one that has failed may be tried again.
    """

    def __init__(self, name: str, note: Callable[..., None]):
        self.state = ModelState.ABSENT
        self.weights: WiredMemoryTicket | None = None
        self.retry_at = 0.0
        self._name = name
        self._note = note
        self._failures = 0  # in a row
        self._failure = ""  # the last one, in words

    @property
    def on_request(self) -> OnRequest:
        """What becomes of a request that comes now."""
        return LIFE[self.state].on_request

    @property
    def is_coming(self) -> bool:
        """Whether its load can still be abandoned."""
        return ModelEvent.ABANDONED in LIFE[self.state].moves

    @property
    def in_words(self) -> str:
        """What it waits for, or does."""
        if self.state is ModelState.FAILED:
            return f"it is not tried again before {self.retry_at:.1f} s; it failed: {self._failure}"
        return _WORDS[self.state]

    def move(self, event: ModelEvent) -> None:
        self.state = next_state(self.state, event)

    def load(self) -> None:
        self.move(ModelEvent.LOADED)
        self._failures = 0

    def fail(self, error: Exception) -> None:
        """Whatever it was about to become: it is tried again after a back-off."""
        self.move(ModelEvent.FAILED)
        self._failures += 1
        self.retry_at = trio.current_time() + back_off(self._failures)
        self._failure = str(error) if isinstance(error, WiredMemoryError) else repr(error)
        self.tell(EventKind.MODEL_FAILED, error=self._failure, retry_at=self.retry_at)

    def tell(
        self, kind: EventKind, *, size: int | None = None, error: str | None = None, **details: Any
    ) -> None:
        """Put an event into the stream."""
        ticket_id = None if self.weights is None else self.weights.id
        self._note(
            kind, model=self._name, ticket_id=ticket_id, size=size, error=error, details=details
        )
