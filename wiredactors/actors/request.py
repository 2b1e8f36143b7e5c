"""Requests: what a task asks of the manager, and waits for."""

from __future__ import annotations

import trio

from wiredactors.memory.tickets import WiredMemoryTicket


class Request:
    """A question to the manager whose sender waits for the answer.

    Attributes:
        answered: the manager has decided.
        taken_back: the manager has dealt with the sender's giving up.
    """

    __slots__ = ("_error", "_limit", "answered", "new_size", "taken_back", "ticket")

    def __init__(self, ticket: WiredMemoryTicket | None = None, new_size: int | None = None):
        self.ticket = ticket
        self.new_size = new_size
        self.answered = trio.Event()
        self.taken_back = trio.Event()
        self._limit = 0
        self._error: Exception | None = None

    def answer(self, limit: int) -> None:
        self._limit = limit
        self.answered.set()

    def refuse(self, error: Exception) -> None:
        self._error = error
        self.answered.set()

    def raise_refusal(self) -> None:
        """Raise the refusal if there is one, once."""
        error, self._error = self._error, None
        if error is None:
            return
        try:
            raise error
        finally:
            # Nothing that its traceback reaches leads back to it: the frames of the caller, and
            # the arrays in them, go with the error and not at a garbage collection.
            del error

    def outcome(self) -> int:
        self.raise_refusal()
        return self._limit
