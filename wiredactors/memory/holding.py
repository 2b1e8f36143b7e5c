"""Holdings: the tickets in the ledger."""

from __future__ import annotations

from typing import Any

import attrs

from wiredactors.memory.group import Group
from wiredactors.memory.share import Share


@attrs.define(eq=False)
class Holding:
    """One ticket in the ledger, waiting or running.

    Attributes:
        since: when it was admitted, or began to wait.
        reply: of the start that it was made by.
        started_again: replies of starts that it ignores, which have not been answered yet.
        evictable: of a model: it yields when asked, after those that are reclaimable.
        share: what it wants of a reservation that others want of too.
        used_at: when a reclaimable or evictable one was last used.
        asked: its owner has been asked to give it up, and has not yet.
        in_use: an evictable one is in use.
        served_since: since when an evictable one has served; None while its model is
            still being loaded.
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
    evictable: bool = False
    share: Share | None = None
    started_again: tuple[Any, ...] = ()
    used_at: float = 0.0
    asked: bool = False
    in_use: bool = False
    served_since: float | None = None

    @property
    def active(self) -> bool:
        return self.kind == "active"

    @property
    def loading(self) -> bool:
        """Its model is still being loaded."""
        return self.evictable and self.served_since is None

    @property
    def yields(self) -> bool:
        """Its owner can be asked for it."""
        return self.reclaimable or self.evictable
