"""Whom the ledger owes an answer.

An answer is the limit in force, so it waits: for the turn to be settled, and where that brings a
write, for the outcome of the write.
"""

from __future__ import annotations

from wiredactors.memory.holding import Holding
from wiredactors.memory.messages import Reply

#: Replies in the order in which they were owed, and the ticket that each starts.
_Lot = dict[Reply, Holding | None]


class Answers:
    """Replies by identity, in two lots; each operation but the takes costs O(1)."""

    def __init__(self) -> None:
        self._of_turn: _Lot = {}
        self._of_write: _Lot = {}

    def owe(self, reply: Reply, starts: Holding | None = None) -> None:
        """Answer `reply` when the turn is settled; `starts` is the ticket that it starts."""
        self._of_turn[reply] = starts
        if starts is not None:
            starts.starts.append(reply)

    def forget(self, reply: Reply) -> None:
        """Nobody waits for `reply` any more, if anybody did."""
        for lot in (self._of_turn, self._of_write):
            starts = lot.pop(reply, None)
            if starts is not None:
                starts.starts.remove(reply)

    def take_starts_of(self, holding: Holding) -> list[Reply]:
        """The starts of a ticket that have no answer yet, which they get elsewhere."""
        starts = list(holding.starts)
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
        return _replies(taken)

    def take_of_turn(self) -> list[Reply]:
        """Those whose turn has been settled without a write."""
        if not self._of_turn:
            return []
        taken, self._of_turn = self._of_turn, {}
        return _replies(taken)


def _replies(lot: _Lot) -> list[Reply]:
    for reply, starts in lot.items():
        if starts is not None:
            starts.starts.remove(reply)
    return list(lot)
