"""What goes into the ledger (commands) and what comes out (effects).

`reply` is whatever the sender wants back with the answer, each a hashable object of its own; the
ledger does not look at it.

Nothing here is changed once it is made. Those that every ticket makes are not frozen by attrs all
the same: that would double the time it takes to make one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.events import EventKind, WiredMemoryEvent
from wiredactors.memory.outside import MemoryReading
from wiredactors.memory.tickets import WiredMemoryTicket

Reply = Any


@attrs.define(eq=False)
class Start:
    """Admit a ticket.

    Attributes:
        exclusive: a ticket that runs already is an error, not ignored.
        since: since when its owner has waited for something else before (a job for its model), on
            the ledger's clock: it stands in the queue as if it had waited here. None: it has not.
    """

    ticket: WiredMemoryTicket
    reply: Reply
    exclusive: bool = False
    since: float | None = None

    @property
    def ticket_id(self) -> str:
        return self.ticket.id


@attrs.frozen
class CancelStart:
    """The task that waits in `start()` was cancelled."""

    ticket_id: str
    reply: Reply


@attrs.define(eq=False)
class End:
    """Give a ticket's bytes back. `reply` None: nobody waits for the answer."""

    ticket_id: str
    reply: Reply = None


@attrs.frozen
class Resize:
    ticket_id: str
    size: int
    reply: Reply


@attrs.frozen
class CancelResize:
    """The task that waits in `resize()` was cancelled."""

    ticket_id: str
    reply: Reply


@attrs.frozen
class Use:
    """A reclaimable or evictable reservation was used: of those like it, it yields last.

    `in_use`: whether an evictable one is in use from now on; None leaves that as it is.
    """

    ticket_id: str
    in_use: bool | None = None


@attrs.frozen
class Pin:
    """A ticket that runs or waits will not go away any more, or may again."""

    ticket_id: str
    pinned: bool


@attrs.frozen
class Observe:
    """What the machine's memory is; `reading` None where that is not known, `error` why."""

    reading: MemoryReading | None
    error: str | None = None


@attrs.frozen
class LimitWritten:
    """The backend took the limit; `previous` is the one before, where it says so."""

    limit: int
    previous: int | None


@attrs.frozen
class LimitRefused:
    """The backend raised instead."""

    limit: int
    error: str


@attrs.frozen
class ForeignWrite:
    """Other code in the process tried to set the limit, and was kept from it."""

    limit: int


@attrs.frozen
class Configure:
    configuration: WiredMemoryConfiguration
    ceiling: int | None
    reply: Reply


@attrs.frozen
class Note:
    """Number an event of a model or a job in the ledger's sequence."""

    kind: EventKind
    model: str | None = None
    job: str | None = None
    ticket_id: str | None = None
    size: int | None = None
    error: str | None = None
    details: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class Close:
    """End everything: waiters are refused, tickets ended, the baseline restored."""


Command = (
    Start
    | CancelStart
    | End
    | Resize
    | CancelResize
    | Use
    | Pin
    | Observe
    | LimitWritten
    | LimitRefused
    | ForeignWrite
    | Configure
    | Note
    | Close
)


#: Commands whose sender waits for an answer.
Asking = Start | End | Resize | Configure
#: What one of these sends when it gives up.
Undoing = CancelStart | CancelResize


@attrs.frozen
class WriteLimit:
    """Set the wired limit; the outcome must come back as `LimitWritten` or `LimitRefused`."""

    limit: int


@attrs.define(eq=False)
class Answer:
    """What was asked for has taken effect, all of it in one turn; `limit` is in force."""

    replies: Sequence[Reply]
    limit: int


@attrs.frozen
class Refuse:
    reply: Reply
    error: Exception


@attrs.frozen
class Reclaim:
    """Ask the owner of a reservation to give it up; its bytes count until it has ended."""

    ticket_id: str


#: An event is to be told to whoever listens.
Effect = WiredMemoryEvent | WriteLimit | Answer | Refuse | Reclaim
