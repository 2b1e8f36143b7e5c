"""Holding a ticket round a body, whatever happens to the task."""

from __future__ import annotations

from types import TracebackType

import trio

from wiredactors.memory.tickets import TicketManager, WiredMemoryTicket


class TicketHold:
    """See `WiredMemoryTicket.wired_limit`.

    A Ctrl-C that comes amid the start or the end goes to the main task at its next checkpoint:
    between the start and the body it would lose the bytes. Amid the body it comes at once.
    """

    __slots__ = ("_manager", "_ticket")

    def __init__(self, manager: TicketManager, ticket: WiredMemoryTicket):
        self._manager = manager
        self._ticket = ticket

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> int:
        return await self._manager.start_ticket(self._ticket, exclusive=True)

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error_type is not None:
            self._manager.end_ticket_nowait(self._ticket)
        else:
            await self._manager.end_ticket(self._ticket)
