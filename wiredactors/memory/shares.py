"""Shares, as the ledger sees them: who has what part in which reservation, and what it shrinks by.

A shared reservation (the workspace) holds the largest part of those who share it, and the sum of
their margins. Its owner resizes it, after one of them has gone; that is counted on here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from wiredactors.memory.holding import Holding


class Shares:
    """The sharers of each shared reservation, by its id. Sizes are bytes."""

    def __init__(self) -> None:
        self._live: dict[str, dict[str, Holding]] = {}
        self._waiting: dict[str, dict[str, Holding]] = {}
        # Of those that the owner has not resized since a sharer ended: the margins to give back.
        self._due: dict[str, int] = {}
        self._shared: set[str] = set()  # for good: what nobody shares now may be given back

    # -- changing

    def add(self, holding: Holding) -> None:
        """One with a share has come in."""
        self._put(self._live, holding)

    def remove(self, holding: Holding) -> None:
        """It has ended."""
        _drop(self._live, holding)
        assert holding.share is not None
        ticket_id = holding.share.ticket_id
        self._due[ticket_id] = self._due.get(ticket_id, 0) + holding.share.margin

    def wait(self, holding: Holding) -> None:
        """One with a share begins to wait."""
        self._put(self._waiting, holding)

    def leave(self, holding: Holding) -> None:
        """It waits no more."""
        _drop(self._waiting, holding)

    def settled(self, ticket_id: str) -> None:
        """A reservation was resized or has ended: nothing of it is due any more."""
        self._due.pop(ticket_id, None)

    def copy_past(self, other: Shares) -> None:
        """Know what `other` knows of those that have ended."""
        self._due, self._shared = dict(other._due), set(other._shared)

    def _put(self, where: dict[str, dict[str, Holding]], holding: Holding) -> None:
        assert holding.share is not None
        self._shared.add(holding.share.ticket_id)
        where.setdefault(holding.share.ticket_id, {})[holding.ticket_id] = holding

    # -- looking

    @property
    def due(self) -> Iterator[str]:
        """The shared reservations that have not been resized since a sharer ended."""
        return iter(self._due)

    def is_shared(self, ticket_id: str) -> bool:
        """Whether anybody shares it, or did."""
        return ticket_id in self._shared

    def shared(self) -> Iterator[str]:
        """The reservations that any live ticket shares, or did until just now."""
        yield from self._live
        yield from (ticket_id for ticket_id in self._due if ticket_id not in self._live)

    def shrink(self, shared: Holding, gone: Collection[str]) -> int:
        """What its owner gives back of `shared` once the sharers `gone` have ended.

        It costs O(sharers).
        """
        live = self._live.get(shared.ticket_id, {})
        if shared.ticket_id not in self._due and not any(key in live for key in gone):
            return 0
        return max(0, shared.size - self.wanted(shared, gone))

    def wanted(self, shared: Holding, gone: Collection[str] = ()) -> int:
        """What those who share it want of it, with those that wait and without `gone`.

        The margins of those that wait do not count: their own sizes tell what it must grow by.
        """
        ticket_id = shared.ticket_id
        live = self._live.get(ticket_id, {}).items()
        staying = [other.share for key, other in live if other.share and key not in gone]
        waiting = [other.share for other in self._waiting.get(ticket_id, {}).values()]
        largest = max((share.size for share in [*staying, *waiting] if share), default=0)
        return largest + sum(share.margin for share in staying)

    def floor(self, shared: Holding, stays: Collection[str], holding: Holding) -> int:
        """What must be left of `shared` beside `holding`, if of its sharers only `stays` do.

        It is no more when a sharer has ended: margins that are due are not held once.
        """
        ticket_id = shared.ticket_id
        live = self._live.get(ticket_id, {})
        own = holding.share
        shares_it = own is not None and own.ticket_id == ticket_id
        if not shares_it and ticket_id not in self._shared:
            return shared.size
        margins = sum(other.share.margin for other in live.values() if other.share)
        held_once = shared.size - margins - self._due.get(ticket_id, 0)
        staying = [
            other.share
            for key, other in live.items()
            if other.share and (key in stays or other is holding)
        ]
        sizes = [share.size for share in staying]
        if own is not None and shares_it:
            sizes.append(own.size)
        largest = min(max(0, held_once), max(sizes, default=0))
        return largest + sum(share.margin for share in staying)


def _drop(where: dict[str, dict[str, Holding]], holding: Holding) -> None:
    assert holding.share is not None
    sharers = where[holding.share.ticket_id]
    del sharers[holding.ticket_id]
    if not sharers:
        del where[holding.share.ticket_id]
