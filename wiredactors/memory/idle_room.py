"""The idle room: which reservations a dry run would take away for those who wait."""

from __future__ import annotations

from collections.abc import Sequence

from wiredactors.memory.book import Book
from wiredactors.memory.errors import PolicyError
from wiredactors.memory.holding import Holding
from wiredactors.memory.lane import Waiter


class IdleRoom:
    """The book of a dry run without all that ends or yields by itself: active work, and the
    reservations that have been asked for.

    Reservations that are shared are as small in it as their owners make them when models go.
    """

    def __init__(self, book: Book, asking: Sequence[str]):
        """`asking` ask for room now: they yield it to each other last."""
        self._book = book
        self._gone: dict[str, Holding] = {}
        for holding in list(book.holdings.values()):
            if holding.asked or (holding.active and not holding.pinned):
                self._gone[holding.ticket_id] = holding
                book.remove(holding)
        self._held_before: dict[str, int] = {}  # by shared ones that have shrunk
        self._shrink()
        reservations = book.reservations
        models = sorted(reservations.evictable.values(), key=lambda model: model.in_use)
        others = [h for h in book.holdings.values() if not (h.active or h.yields)]
        under_pinned = set(book.under_pinned())
        idle = [
            holding
            for holding in (*reservations.reclaimable.values(), *models, *others)
            if not (holding.pinned or holding.ticket_id in under_pinned)
        ]
        newcomers = frozenset(asking)
        self._order = sorted(idle, key=lambda holding: holding.ticket_id in newcomers)

    def grow(self, grower: Waiter) -> None:
        """A reservation that waits to grow goes before those that wait to start."""
        holding = grower.holding
        if holding.ticket_id in self._book.holdings and not self._blocked_by(grower):
            self._book.resize(holding, grower.wants)
            if holding.ticket_id in self._held_before:
                self._held_before[holding.ticket_id] = grower.wants

    def let_in(self, holding: Holding) -> None:
        """One that waited comes in. If it is active it ends by itself."""
        if not holding.active or holding.pinned:
            self._book.add(holding)
        if not (holding.active or holding.pinned):
            self._order.append(holding)

    def take_for(self, waiter: Waiter) -> list[str]:
        """Take away the reservations that must go before it fits: none that could stay."""
        required = waiter.holding.requires
        back = [self._gone[id] for id in required if id in self._gone]
        for holding in back:
            self._book.add(holding)
        taken = self._needed_by(waiter, self._take_until_it_fits(waiter))
        for holding in back:
            self._book.remove(holding)
        return [holding.ticket_id for holding in taken]

    def _take_until_it_fits(self, waiter: Waiter) -> list[Holding]:
        book, holding = self._book, waiter.holding
        idle = [other for other in self._order if other.ticket_id not in holding.requires]
        in_group = [other for other in idle if book.frees_in(other, holding.group)]
        taken: list[Holding] = []
        for what, candidates in (("group", in_group), ("ceiling", idle)):
            for other in candidates:
                if self._blocked_by(waiter) != what:
                    break
                if other.ticket_id in book.holdings:
                    self._remove(other)
                    taken.append(other)
        return taken

    def _needed_by(self, waiter: Waiter, taken: list[Holding]) -> list[Holding]:
        """Put back what can stay, which is all of it where all is not enough."""
        needed: list[Holding] = []
        fits = self._blocked_by(waiter) is None
        for other in reversed(taken):
            self._put_back(other)
            if fits and self._blocked_by(waiter) is not None:
                self._remove(other)
                needed.insert(0, other)
        return needed

    def _remove(self, holding: Holding) -> None:
        self._book.remove(holding)
        if holding.share is not None:
            self._shrink()

    def _put_back(self, holding: Holding) -> None:
        self._book.add(holding)
        if holding.share is not None:
            self._shrink()

    def _shrink(self) -> None:
        """Those that are shared hold what is wanted of them by those that are left."""
        book = self._book
        for ticket_id in book.shares.due:
            if ticket_id in book.holdings:
                self._held_before.setdefault(ticket_id, book.holdings[ticket_id].size)
        for ticket_id, before in self._held_before.items():
            shared = book.holdings.get(ticket_id)
            if shared is not None:  # else it has been taken away itself
                book.resize(shared, min(before, book.shares.wanted(shared)))

    def _blocked_by(self, waiter: Waiter) -> str | None:
        try:
            return self._book.blocked_by(
                waiter.holding.group, waiter.wants, waiter.holding if waiter.grows else None
            )
        except PolicyError:
            return "group"
