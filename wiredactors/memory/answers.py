"""Whom the ledger owes an answer.

An answer is the limit in force, so it waits: for the turn to be settled, and where that brings a
write, for the outcome of the write.
"""

from __future__ import annotations

import attrs

from wiredactors.memory.messages import Reply


@attrs.frozen(eq=False)
class _Owed:
    reply: Reply
    start_of: str | None  # the ticket whose start it is


class Answers:
    """Replies by identity, in two lots; each operation but the takes costs O(1)."""

    def __init__(self) -> None:
        self._of_turn: dict[int, _Owed] = {}  # by id() of the reply, which is kept alive here
        self._of_write: dict[int, _Owed] = {}
        self._starts: dict[str, list[Reply]] = {}

    def owe(self, reply: Reply, start_of: str | None = None) -> None:
        """Answer `reply` when the turn is settled; `start_of` is the ticket that it starts."""
        self._of_turn[id(reply)] = _Owed(reply, start_of)
        if start_of is not None:
            self._starts.setdefault(start_of, []).append(reply)

    def forget(self, reply: Reply) -> None:
        """Nobody waits for `reply` any more, if anybody did."""
        for lot in (self._of_turn, self._of_write):
            owed = lot.pop(id(reply), None)
            if owed is not None:
                self._forget_start(owed)

    def take_starts_of(self, ticket_id: str) -> list[Reply]:
        """The starts of a ticket that have no answer yet, which they get elsewhere."""
        starts = list(self._starts.get(ticket_id, ()))
        for reply in starts:
            self.forget(reply)
        return starts

    def await_write(self) -> None:
        """A write is under way that was decided after all of this turn."""
        self._of_write |= self._of_turn
        self._of_turn = {}

    def await_another(self) -> None:
        """The write has its outcome, and yet its lot must wait for what this turn brings."""
        self._of_turn = self._of_write | self._of_turn
        self._of_write = {}

    def take_of_write(self) -> list[Reply]:
        """Those whose write has its outcome."""
        taken, self._of_write = self._of_write, {}
        return self._replies(taken)

    def take_of_turn(self) -> list[Reply]:
        """Those whose turn has been settled without a write."""
        taken, self._of_turn = self._of_turn, {}
        return self._replies(taken)

    def _replies(self, taken: dict[int, _Owed]) -> list[Reply]:
        for owed in taken.values():
            self._forget_start(owed)
        return [owed.reply for owed in taken.values()]

    def _forget_start(self, owed: _Owed) -> None:
        if owed.start_of is None:
            return
        starts = [reply for reply in self._starts[owed.start_of] if reply is not owed.reply]
        if starts:
            self._starts[owed.start_of] = starts
        else:
            del self._starts[owed.start_of]
