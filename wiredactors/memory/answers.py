"""Whom the ledger owes an answer.

An answer is the limit in force, so it waits: for the turn to be settled, and where that brings a
write, for the outcome of the write.
"""

from __future__ import annotations

from wiredactors.memory.holding import Holding
from wiredactors.memory.messages import Reply

#: Replies in the order in which they were owed; with the ticket, of one that starts it again.
_Lot = dict[Reply, Holding | None]


class Answers:
    """Replies by identity, in two lots; each operation but the takes costs O(1)."""

    def __init__(self) -> None:
        self._of_turn: _Lot = {}
        self._of_write: _Lot = {}

    def owe(self, reply: Reply) -> None:
        """Answer `reply` when the turn is settled."""
        self._of_turn[reply] = None

    def owe_again(self, reply: Reply, holding: Holding) -> None:
        """The same of a start of a ticket that runs already."""
        self._of_turn[reply] = holding
        holding.started_again += (reply,)

    def forget(self, reply: Reply) -> bool:
        """Nobody waits for `reply` any more; whether anybody did."""
        for lot in (self._of_turn, self._of_write):
            if reply in lot:
                again = lot.pop(reply)
                if again is not None:
                    _forget_start(again, reply)
                return True
        return False

    def take_starts_of(self, holding: Holding) -> list[Reply]:
        """The starts of a ticket that have no answer yet, which they get elsewhere."""
        first = holding.reply
        if not (first in self._of_turn or first in self._of_write or holding.started_again):
            return []
        starts = [first, *holding.started_again]
        return [reply for reply in starts if self.forget(reply)]

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
        taken, self._of_turn = self._of_turn, {}
        return _replies(taken)


def _replies(lot: _Lot) -> list[Reply]:
    for reply, again in lot.items():
        if again is not None:
            _forget_start(again, reply)
    return list(lot)


def _forget_start(holding: Holding, reply: Reply) -> None:
    holding.started_again = tuple(r for r in holding.started_again if r is not reply)
