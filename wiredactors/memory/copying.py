"""A second set of the same tickets, to try things on."""

from __future__ import annotations

import attrs

from wiredactors.memory.admission import Admission
from wiredactors.memory.book import Book
from wiredactors.memory.group import Group
from wiredactors.memory.holding import Holding
from wiredactors.memory.lane import Waiter


def copy_tickets(book: Book, admission: Admission, *, into: tuple[Book, Admission]) -> None:
    """Fill a book and an admission that hold nothing with copies of all that live and wait.

    They are in the same order, and were passed as often. Whoever waits for an answer waits for
    the original; a copy has a reply of its own. It costs O(n).
    """
    new_book, new_admission = into
    copies = _Copies()
    new_book.baseline, new_book.excess = book.baseline, book.excess
    for holding in book.holdings.values():
        new_book.add(copies.of(holding))
    reservations = book.reservations
    for ticket_id in [*reservations.reclaimable, *reservations.evictable]:  # in the order of use
        new_book.reservations.used(new_book.holdings[ticket_id])
    for ticket_id in book.reservations.asked:
        new_book.reservations.ask(new_book.holdings[ticket_id])
    new_admission.queue.copy_from(
        admission.queue,
        lambda waiter: copies.of_waiter(waiter, copies.of(waiter.holding)),
        copies.of_group,
    )
    for waiter in new_admission.queue.by_id.values():
        new_book.await_ticket(waiter.holding)
    new_admission.growers.copy_from(
        admission.growers,
        lambda grower: copies.of_waiter(grower, new_book.holdings[grower.ticket_id]),
        copies.of_group,
    )
    new_book.shares.copy_past(book.shares)


class _Copies:
    """Copies of holdings and waiters, those of one group in one copied group."""

    def __init__(self) -> None:
        self._groups: dict[Group, Group] = {}

    def of(self, holding: Holding) -> Holding:
        group = self.of_group(holding.group)
        return attrs.evolve(holding, group=group, reply=object(), started_again=())

    def of_group(self, group: Group) -> Group:
        if group not in self._groups:
            self._groups[group] = group.emptied()
        return self._groups[group]

    def of_waiter(self, waiter: Waiter, holding: Holding) -> Waiter:
        return attrs.evolve(waiter, holding=holding, reply=object(), lane=None)
