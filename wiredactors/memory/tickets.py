"""Tickets: one unit of memory demand each. A ticket only calls its manager."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from wiredactors.memory.errors import NoManager
from wiredactors.memory.share import Share
from wiredactors.memory.units import checked_size

if TYPE_CHECKING:
    from wiredactors.memory.policies import WiredMemoryPolicy

TicketKind = Literal["active", "reservation"]

_KINDS = get_args(TicketKind)
_HIGHEST_PRIORITY = 1_000_000_000
_numbers = itertools.count(1)


class TicketManager(Protocol):
    """What a ticket asks of its manager; see `WiredMemoryManager`."""

    async def start_ticket(
        self, ticket: WiredMemoryTicket, *, exclusive: bool = False, since: float | None = None
    ) -> int: ...
    async def end_ticket(self, ticket: WiredMemoryTicket) -> int: ...
    def end_ticket_nowait(self, ticket: WiredMemoryTicket) -> None: ...
    def hold_ticket(self, ticket: WiredMemoryTicket) -> AbstractAsyncContextManager[int, None]: ...
    async def resize_ticket(self, ticket: WiredMemoryTicket, size: int) -> int: ...
    def touch_ticket(self, ticket: WiredMemoryTicket) -> None: ...
    def use_ticket(self, ticket: WiredMemoryTicket, *, in_use: bool) -> None: ...
    def pin_ticket(self, ticket: WiredMemoryTicket, pinned: bool) -> None: ...
    async def wait_for_reclaim(self, ticket: WiredMemoryTicket) -> bool: ...


class OpenManager:
    """The slot for the manager that is open in this process; the actors fill and empty it.

    Attributes:
        claim: held by whoever opens, serves or closes a manager, on whichever thread.
    """

    def __init__(self) -> None:
        self.manager: TicketManager | None = None
        self.claim = threading.Lock()


#: There is one wired limit in a process, hence one slot.
open_manager_slot = OpenManager()


class WiredMemoryTicket:
    """A demand of `size` bytes under a policy. Make one with `policy.ticket(size)`.

    It holds nothing until `start()` has returned, and holds its bytes until `end()`. After its
    end it may start again.
    """

    def __init__(
        self,
        size: int,
        policy: WiredMemoryPolicy,
        kind: str = "active",
        manager: TicketManager | None = None,
        priority: int = 0,
        pinned: bool = False,
        reclaimable: bool = False,
        requires: Iterable[WiredMemoryTicket] = (),
        id: str | None = None,
        evictable: bool = False,
        share: Share | None = None,
    ):
        """See `WiredMemoryPolicy.ticket` for the arguments that it takes too.

        Args:
            id: names it in events; left out, it is numbered.
            evictable: a reservation (a model's weights) whose owner gives it up when asked to, as
                a reclaimable one does, but only when those do not suffice, and while it is idle
                unless those who wait have waited long (see `WiredMemoryConfiguration`). Its owner
                tells the manager when it is in use (`use_ticket`). A pinned one is not asked.
            share: what it wants of a reservation that it has in common with others, which it then
                stands on.

        Raises:
            TypeError: an argument is of another type.
            ValueError: one is out of its range, or they do not go together.
        """
        if kind not in _KINDS:
            raise ValueError(f"a ticket's kind is 'active' or 'reservation', not {kind!r}")
        self.size = checked_size(size, "a ticket's size")
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise TypeError(f"a ticket's priority must be an integer, not {priority!r}")
        if abs(priority) > _HIGHEST_PRIORITY:  # it is reckoned with in floats
            raise ValueError(f"a ticket's priority must lie within {_HIGHEST_PRIORITY:,} of 0")
        if pinned is not False or reclaimable is not False:
            _check_traits(kind, pinned, reclaimable)
        if evictable is not False:
            _check_evictable(kind, evictable, reclaimable)
        if share is not None and not isinstance(share, Share):
            raise TypeError(f"share must be a Share, not {share!r}")
        self.policy = policy
        self.kind = kind
        self.priority = priority
        self.pinned = pinned
        self.reclaimable = reclaimable
        self.evictable = evictable
        self.share = share
        self.id: str = id if id is not None else f"ticket-{next(_numbers)}"
        self.requires: tuple[str, ...] = _ids_of(requires, "requires") if requires else ()
        self._manager = manager

    def __repr__(self) -> str:
        return f"<WiredMemoryTicket {self.id} {self.kind} {self.size} bytes>"

    @property
    def manager(self) -> TicketManager:
        """The manager that admits this ticket.

        Raises:
            NoManager: it names none and none is open.
        """
        manager = self._manager or open_manager_slot.manager
        if manager is None:
            raise NoManager(
                f"ticket {self.id} names no manager and none is open: "
                "use it inside `async with open_manager()`"
            )
        return manager

    async def start(self) -> int:
        """Wait until admitted, and until the limit is in force; returns that limit in bytes.

        It returns admitted or raises; a cancelled start leaves nothing behind. Starting a
        ticket that runs is ignored and returns the limit.

        Raises:
            TicketTooLarge: it can never fit.
            QueueFull: as many wait as may.
            TicketInUse: the same ticket waits already.
            TicketWithdrawn: it was ended meanwhile.
            PolicyConflict, PolicyError: its policy is at fault.
            NoManager, ManagerClosed: there is nobody to admit it.
        """
        return await self.bind().start_ticket(self)

    async def end(self) -> int:
        """Give the bytes back; returns the limit in bytes then.

        It takes effect also in a cancelled scope. The end of a waiting ticket withdraws it; of
        one that does not run is ignored. The work must have stopped by now.

        Raises:
            NoManager: it never started, and nobody is there to ignore its end.
        """
        return await (self._manager_in_use or self.manager).end_ticket(self)

    def end_nowait(self) -> None:
        """As `end`, at once and without waiting for the limit: for a `finally`, it never raises."""
        manager = self._manager_in_use or self._manager or open_manager_slot.manager
        if manager is not None:
            manager.end_ticket_nowait(self)

    def wired_limit(self) -> AbstractAsyncContextManager[int, None]:
        """Hold the ticket round a body, which gets the limit in bytes.

        Raises:
            TicketInUse: the ticket waits or runs already: make one for each piece of work.
            And all that `start` raises; the body then never runs.
        """
        return self.bind().hold_ticket(self)

    async def resize(self, size: int) -> int:
        """Change the size in bytes; returns the limit then. Growing may wait.

        A ticket that has not started just takes the new size (and the answer is 0).

        Raises:
            TicketTooLarge: it can never grow so far, or only if others that wait to grow went
                away; the ticket keeps its size.
            TypeError, ValueError: `size` is no size.
        """
        size = checked_size(size, "a ticket's size")
        if self._manager_in_use is None:
            self.size = size
            return 0
        return await self._manager_in_use.resize_ticket(self, size)

    def touch(self) -> None:
        """Say that what a reclaimable reservation holds was used just now.

        Under pressure the one that was not used for longest yields first. It takes effect at the
        manager's next turn, and means nothing for a ticket that is not reclaimable or does not run.
        """
        if self._manager_in_use is not None:
            self._manager_in_use.touch_ticket(self)

    async def wait_for_reclaim(self) -> bool:
        """Wait until a reservation is asked for; False if it has ended instead.

        It must be reclaimable or evictable. An evictable one that is in use when it is asked takes
        no more work, and is given up when what runs has ended.

        Start it first: of one that does not run it returns False at once.
        Its owner then gives the memory up and ends the ticket (or resizes it to what is left).
        Nobody else is admitted to the bytes before that.

            async def keep(cache, ticket):
                if await ticket.wait_for_reclaim():
                    cache.clear()
                    await ticket.end()

        Raises:
            ValueError: it is neither.
            NoManager: it never started, and nobody is there who could ask.
        """
        if not (self.reclaimable or self.evictable):
            raise ValueError(f"{self.id} is not reclaimable, so nobody will ask for it")
        return await (self._manager_in_use or self.manager).wait_for_reclaim(self)

    def require(self, tickets: Iterable[WiredMemoryTicket]) -> None:
        """Name tickets that this one stands on, from its next start on (see `requires=`)."""
        new = [id for id in _ids_of(tickets, "require") if id not in self.requires]
        self.requires = (*self.requires, *new)

    def bind(self) -> TicketManager:
        """Choose the manager for this life of the ticket; `end` and `resize` then reach it too.

        Who admitted the ticket must also end it, though another manager may be open by then.

        Raises:
            NoManager: it names none and none is open.
        """
        manager = self._manager_in_use = self._manager or open_manager_slot.manager or self.manager
        return manager

    _manager_in_use: TicketManager | None = None


def _check_traits(kind: str, pinned: object, reclaimable: object) -> None:
    for name, value in (("pinned", pinned), ("reclaimable", reclaimable)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, not {value!r}")
    if reclaimable and (pinned or kind == "active"):
        advice = "pinned=False" if pinned else "kind='reservation'"
        raise ValueError(
            f"a reclaimable ticket must be a reservation, and not pinned: pass {advice}"
        )


def _check_evictable(kind: str, evictable: object, reclaimable: bool) -> None:
    if not isinstance(evictable, bool):
        raise TypeError(f"evictable must be True or False, not {evictable!r}")
    if kind == "active" or reclaimable:
        advice = "reclaimable=False" if reclaimable else "kind='reservation'"
        raise ValueError(
            f"an evictable ticket must be a reservation, and not reclaimable: pass {advice}"
        )


def _ids_of(tickets: Any, what: str) -> tuple[str, ...]:
    if hasattr(tickets, "__iter__"):
        listed = list(tickets)
        ids = [ticket.id for ticket in listed if isinstance(ticket, WiredMemoryTicket)]
        if len(ids) == len(listed):
            return tuple(ids)
    raise TypeError(f"{what} takes a list of tickets, not {tickets!r}")
