"""A second set of the same tickets, to try things on."""

from __future__ import annotations

import attrs

from wiredactors.memory.admission import Admission
from wiredactors.memory.book import Book
from wiredactors.memory.group import Group
from wiredactors.memory.holding import Holding
from wiredactors.memory.lane import Waiter
from wiredactors.memory.queue import WaitQueue


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
    for waiter in admission.queue:
        copy = copies.of_waiter(waiter, copies.of(waiter.holding))
        new_admission.queue.add(copy)
        new_book.await_ticket(copy.holding)
    for grower in admission.growers:
        copy = copies.of_waiter(grower, new_book.holdings[grower.ticket_id])
        new_admission.growers.add(copy)
    new_book.shares.copy_past(book.shares)
    _copy_passes(admission.queue, new_admission.queue)


class _Copies:
    """Copies of holdings and waiters, those of one group in one copied group."""

    def __init__(self) -> None:
        self._groups: dict[Group, Group] = {}

    def of(self, holding: Holding) -> Holding:
        group = self._groups.get(holding.group)
        if group is None:
            group = self._groups[holding.group] = holding.group.emptied()
        return attrs.evolve(holding, group=group, reply=object(), started_again=())

    def of_waiter(self, waiter: Waiter, holding: Holding) -> Waiter:
        return attrs.evolve(waiter, holding=holding, reply=object(), lane=None)


def _copy_passes(queue: WaitQueue, new_queue: WaitQueue) -> None:
    for lane in queue.lanes:
        new_lane = new_queue.by_id[lane.head.ticket_id].lane
        assert new_lane is not None
        new_lane.copy_passes(lane)
