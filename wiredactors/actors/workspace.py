"""The workspace: transient memory of steps, held once, as the largest of the loaded models'.

One step runs at a time on the device, so the models share it. Each model's safety margin lies
beside it: what a prediction misses may stay, so margins add up. Both are one reservation that
grows and shrinks as models come and go, and ends with the last one.

A model that comes asks for its own part together with its weights, in one ticket, and moves it over
here once that is admitted. So a load waits for its memory once and for all of it, holds nothing
while it waits, and one that can never fit is refused before anything waits.
"""

from __future__ import annotations

import trio

from wiredactors.actors.nursery import open_bare_nursery
from wiredactors.memory.policies import WiredMemoryPolicy
from wiredactors.memory.tickets import TicketManager, WiredMemoryTicket


class Workspace:
    """See the module. Sizes are bytes.

    Attributes:
        ticket: the reservation; jobs and weights stand on it.
    """

    def __init__(self, policy: WiredMemoryPolicy, manager: TicketManager):
        self.ticket = WiredMemoryTicket(
            size=0, policy=policy, kind="reservation", manager=manager, id="workspace"
        )
        self._wanted: dict[str, int] = {}  # to be shared, by the models that are here or coming
        self._margins: dict[str, int] = {}  # of those that have brought their part
        self._runs = False
        # Whoever changes the ticket holds it, and mends it at the end: nobody waits to shrink it.
        self._lock = trio.Lock()

    async def expect(self, model: str, size: int, margin: int = 0) -> int:
        """A model comes that wants `size` and its `margin`; returns how much more than now that is.

        From here on what is shared does not shrink below what the model wants, until `forget`.
        """
        self._wanted[model] = size
        async with self._lock:
            if not self._runs:
                try:
                    await self.ticket.start()
                    self._runs = True
                finally:
                    await self._mend()
        return max(0, size - self._shared) + margin

    async def grow(
        self, model: str, weights: WiredMemoryTicket, rest: int, margin: int = 0
    ) -> None:
        """Move the model's part out of its weights' ticket, which keeps `rest`."""
        async with self._lock:
            try:
                # More than is wanted now may be shared: one that comes has counted on it.
                shared = max(self._shared, self._wanted[model])
                size = shared + sum(self._margins.values()) + margin
                # Asked for first, since tickets that grow go before those that wait to start:
                # nobody takes the room when the other shrinks.
                async with open_bare_nursery() as nursery:
                    if rest < weights.size:
                        nursery.start_soon(weights.resize, rest)
                    if size > self.ticket.size:
                        await self.ticket.resize(size)
                self._margins[model] = margin
            finally:
                await self._mend()

    async def forget(self, model: str) -> None:
        """The model has gone, or does not come."""
        self._wanted.pop(model, None)
        self._margins.pop(model, None)
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            return
        try:
            await self._mend()
        finally:
            self._lock.release()

    @property
    def _shared(self) -> int:
        return self.ticket.size - sum(self._margins.values())

    async def _mend(self) -> None:
        """Give back what nobody wants any more; never waits for memory."""
        with trio.CancelScope(shield=True):
            while self._runs:
                wanted = max(self._wanted.values(), default=0) + sum(self._margins.values())
                if not self._wanted:
                    await self.ticket.end()
                    self._runs = False
                    self.ticket.size = 0
                elif wanted < self.ticket.size:
                    await self.ticket.resize(wanted)
                else:
                    break
