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
        if self._error is not None:
            raise self._error

    def outcome(self) -> int:
        self.raise_refusal()
        return self._limit
