"""Requests: what a task asks of the manager, and waits for."""

from __future__ import annotations

import trio

from wiredactors.memory.tickets import WiredMemoryTicket


class Request:
    """A question to the manager, whose sender parks itself until the answer comes.

    Nobody else runs between the question and the wait, so no answer can come before it.

    Attributes:
        sender: the task that waits for the answer, if it does.
        taken_back: the manager has dealt with the sender's giving up; there once it has given up.
    """

    __slots__ = ("_error", "_limit", "new_size", "sender", "taken_back", "ticket")

    def __init__(self, ticket: WiredMemoryTicket | None = None, new_size: int | None = None):
        self.ticket = ticket
        self.new_size = new_size
        self.taken_back: trio.Event | None = None
        self.sender: trio.lowlevel.Task | None = None
        self._limit = -1  # no answer yet
        self._error: Exception | None = None

    @property
    def answered(self) -> bool:
        """Whether the manager has said yes or no, also where the sender does not know of it yet."""
        return self._limit >= 0

    def leave(self, _: object) -> trio.lowlevel.Abort:
        """The sender is cancelled, and waits no more."""
        self.sender = None
        return trio.lowlevel.Abort.SUCCEEDED

    def answer(self, limit: int) -> None:
        """It has taken effect, and `limit` is in force."""
        self._limit = limit
        sender, self.sender = self.sender, None
        if sender is not None:
            trio.lowlevel.reschedule(sender)

    def refuse(self, error: Exception) -> None:
        """It has not, for the reason that `error` gives."""
        self._error = error
        self.answer(0)

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
        """The limit, once it is answered; raises the refusal."""
        if self._error is not None:
            self.raise_refusal()
        return self._limit
