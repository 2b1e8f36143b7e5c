"""The memory of one model: from its reservation's start, through its load, to its end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import trio

from wiredactors.actors.life import Life
from wiredactors.actors.protocol import Engine, EngineModel
from wiredactors.actors.workspace import Workspace
from wiredactors.memory.events import EventKind
from wiredactors.memory.policies import WiredMemoryPolicy
from wiredactors.memory.share import Share
from wiredactors.memory.tickets import TicketManager, WiredMemoryTicket
from wiredactors.scheduling.lifecycle import ModelEvent
from wiredactors.scheduling.requests import LoadPlan


class Residence:
    """Where a model lives during one stay. Sizes are bytes.

    Attributes:
        weights: its reservation; None before it is known what the load will take.
        leftover_bytes: of its memory, what did not come back when it went.
    """

    def __init__(
        self,
        name: str,
        policy: WiredMemoryPolicy,
        manager: TicketManager,
        workspace: Workspace,
    ):
        self.weights: WiredMemoryTicket | None = None
        self.leftover_bytes = 0
        self._name = name
        self._policy = policy
        self._manager = manager
        self._workspace = workspace
        self._pinned: Callable[[], bool] | None = None

    @property
    def reservations(self) -> tuple[WiredMemoryTicket, ...]:
        """What all work on the model stands on."""
        assert self.weights is not None
        return self.weights, self._workspace.ticket

    @contextlib.asynccontextmanager
    async def hold(
        self,
        engine: Engine,
        plan: LoadPlan,
        life: Life,
        *,
        priority: int,
        since: float,
        pinned: Callable[[], bool],
        settle: Callable[[], object],
    ) -> AsyncIterator[EngineModel]:
        """Load the model as planned and hold its memory while the body runs; then let it go.

        The reservation is admitted before anything is loaded, and holds the load's peak; what only
        the peak needed is given back when the weights stand. It ends after they have gone, and
        after `settle()`, which lets the manager see what is free by then.
        """
        margin = plan.margin_bytes
        added = await self._workspace.expect(self._name, plan.workspace_bytes, margin)
        weights = self.weights = WiredMemoryTicket(
            size=plan.peak_bytes + added,
            policy=self._policy,
            kind="reservation",
            manager=self._manager,
            priority=priority,
            evictable=True,
            share=Share(self._workspace.ticket, plan.workspace_bytes, margin),
            id=f"weights/{self._name}",
        )
        life.weights = weights
        life.tell(EventKind.MODEL_QUEUED, size=weights.size, source=plan.source)
        await weights.bind().start_ticket(weights, since=since)
        try:
            life.move(ModelEvent.ADMITTED)
            life.tell(EventKind.MODEL_LOADING, size=weights.size)
            await self._workspace.grow(self._name, weights, plan.peak_bytes, margin)
            # Not before: what is pinned leaves no room, and this held its workspace's as well.
            self._pinned = pinned
            self.pin()
            async with self._loaded(engine, plan, life) as loaded:
                if loaded.weight_bytes != weights.size:
                    await weights.resize(loaded.weight_bytes)
                yield loaded
        finally:
            with trio.CancelScope(shield=True):
                try:
                    settle()
                finally:
                    await weights.end()

    def pin(self) -> None:
        """Have the reservation pinned, or not, as it should be now, once it is there."""
        if self.weights is not None and self._pinned is not None:
            pinned = self._pinned()
            if pinned is not self.weights.pinned:
                self._manager.pin_ticket(self.weights, pinned)

    async def leave(self) -> None:
        """Give up its part of the workspace, when it is no longer held, or never was."""
        await self._workspace.forget(self._name)

    @contextlib.asynccontextmanager
    async def _loaded(
        self, engine: Engine, plan: LoadPlan, life: Life
    ) -> AsyncIterator[EngineModel]:
        def progress(done: int, total: int) -> None:
            life.tell(EventKind.MODEL_PROGRESS, done_bytes=done, total_bytes=total)

        loaded = await engine.load(self._name, plan, progress)
        try:
            yield loaded
        finally:
            with trio.CancelScope(shield=True):
                self.leftover_bytes = await loaded.unload()
