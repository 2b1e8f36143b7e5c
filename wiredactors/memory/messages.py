"""What goes into the ledger (commands) and what comes out (effects).

`reply` is whatever the sender wants back with the answer; the ledger does not look at it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.events import EventKind, WiredMemoryEvent
from wiredactors.memory.policies import WiredMemoryPolicy

Reply = Any


@attrs.frozen
class Start:
    """Admit a ticket. `exclusive`: a ticket that runs already is an error, not ignored."""

    ticket_id: str
    size: int
    kind: str
    policy: WiredMemoryPolicy
    reply: Reply
    priority: int = 0
    pinned: bool = False
    reclaimable: bool = False
    requires: tuple[str, ...] = ()
    exclusive: bool = False


@attrs.frozen
class CancelStart:
    """The task that waits in `start()` was cancelled."""

    ticket_id: str
    reply: Reply


@attrs.frozen
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
    | LimitWritten
    | LimitRefused
    | ForeignWrite
    | Configure
    | Note
    | Close
)


#: Commands whose sender waits for an answer.
Asking = Start | End | Resize | Configure


@attrs.frozen
class Emit:
    event: WiredMemoryEvent


@attrs.frozen
class WriteLimit:
    """Set the wired limit; the outcome must come back as `LimitWritten` or `LimitRefused`."""

    limit: int


@attrs.frozen
class Answer:
    reply: Reply
    limit: int


@attrs.frozen
class Refuse:
    reply: Reply
    error: Exception


Effect = Emit | WriteLimit | Answer | Refuse
