"""Waiting until the manager has taken what was sent to it before.

A cancelled `start()` returns at once; its withdrawal is still in the manager's mailbox then.
"""

from __future__ import annotations

import contextlib

from wiredactors.memory.errors import ManagerClosed
from wiredactors.memory.policies import WiredSumPolicy
from wiredactors.memory.tickets import TicketManager, WiredMemoryTicket


async def catch_up(manager: TicketManager) -> None:
    """Returns when the manager has dealt with all earlier messages, and the limit follows them."""
    # It answers in order, and the resize of a ticket that never started changes nothing.
    with contextlib.suppress(ManagerClosed):  # it has ended all that there was
        await manager.resize_ticket(WiredMemoryTicket(0, WiredSumPolicy(), id="fence"), 0)
