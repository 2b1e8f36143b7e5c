"""Holdings: the tickets in the ledger."""

from __future__ import annotations

from typing import Any

import attrs

from wiredactors.memory.group import Group


@attrs.define(eq=False)
class Holding:
    """One ticket in the ledger, waiting or running.

    Attributes:
        since: when it was admitted, or began to wait.
        reply: of the start that it was made by.
        started_again: replies of starts that it ignores, which have not been answered yet.
        used_at: when a reclaimable one was last used.
        asked: its owner has been asked to give it up, and has not yet.
    """

    ticket_id: str
    size: int
    kind: str
    group: Group
    priority: int
    pinned: bool
    reclaimable: bool
    requires: tuple[str, ...]
    since: float
    reply: Any = None
    started_again: tuple[Any, ...] = ()
    used_at: float = 0.0
    asked: bool = False

    @property
    def active(self) -> bool:
        return self.kind == "active"
