"""One stay of a model in memory: it asks for its memory, loads, serves, drains, and unloads."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import trio

from wiredactors.actors.job import Job
from wiredactors.actors.life import Life
from wiredactors.actors.manager import WiredMemoryManager
from wiredactors.actors.nursery import open_bare_nursery
from wiredactors.actors.protocol import Engine, EngineModel
from wiredactors.actors.residence import Residence
from wiredactors.actors.work import Work
from wiredactors.actors.workspace import Workspace
from wiredactors.memory.events import EventKind
from wiredactors.memory.policies import WiredMemoryPolicy
from wiredactors.memory.tickets import WiredMemoryTicket
from wiredactors.scheduling.lifecycle import ModelEvent, ModelState
from wiredactors.scheduling.requests import LoadOptions, LoadPlan


@attrs.frozen(kw_only=True)
class Host:
    """What all models of a runtime share.

    Attributes:
        settle: has the manager see what is free, when a model has gone and before the next ticket
            is admitted.
        new_id: `new_id("job")` is a name that nothing else has.
    """

    engine: Engine
    policy: WiredMemoryPolicy
    manager: WiredMemoryManager
    workspace: Workspace
    settle: Callable[[], object]
    new_id: Callable[[str], str]


class Stay:
    """From the first who wants the model until it has gone; each stay is a new one.

    Attributes:
        work: its jobs and measurements, while it is there.
        gone: set when nothing of it is held any more.
        error: what it failed of, and `was_ready`: whether that was afterwards, when it left.
    """

    def __init__(
        self,
        name: str,
        life: Life,
        host: Host,
        *,
        on_ready: Callable[[Work], object],
        on_return: Callable[[Job], object],
        keep_alive: Callable[[], float | None],
    ):
        """`on_ready` gives it the work that waits; a job that it sends back goes to `on_return`;
        `keep_alive()` is asked whenever it is idle, None is for ever."""
        self.work: Work | None = None
        self.gone = trio.Event()
        self.error: Exception | None = None
        self.was_ready = False
        self._name = name
        self._life = life
        self._host = host
        self._on_ready = on_ready
        self._on_return = on_return
        self._keep_alive = keep_alive
        self._residence = Residence(name, host.policy, host.manager, host.workspace)
        self._loading = trio.CancelScope()
        self._leaving = trio.Event()
        self._unused = trio.CancelScope()  # while nobody uses it
        self._reason = ""  # why it leaves

    # -- for the model

    def abandon(self) -> None:
        """Nobody waits for it any more: it need not come, if it is not there yet."""
        if self._life.is_coming:
            self._loading.cancel()

    def leave(self, reason: str) -> None:
        """Go when what runs has ended, if it is there and stays."""
        if self._life.state is ModelState.READY:
            self._reason = reason
            self._life.move(ModelEvent.LEAVE)
            self._life.tell(EventKind.MODEL_DRAINING, reason=reason)
            self._residence.pin()  # it goes, so it is not pinned: else another would go instead
            self._leaving.set()

    @property
    def _leaves(self) -> bool:
        return self._life.state in (ModelState.DRAINING, ModelState.UNLOADING)

    def reconsider(self) -> None:
        """`pinned()` and `keep_alive()` answer otherwise now."""
        self._residence.pin()
        self._unused.cancel()

    async def run(
        self,
        source: str,
        options: LoadOptions,
        *,
        priority: int,
        since: float,
        pinned: Callable[[], bool],
    ) -> None:
        """Be in memory; returns when nothing of it is held, also where it has failed.

        `priority` is that of its reservation, which stands in the queue as if it waited `since`.
        """
        host = self._host
        self._life.move(ModelEvent.WANTED)
        try:
            with self._loading:
                plan = await host.engine.plan(source, options)
                async with self._residence.hold(
                    host.engine,
                    plan,
                    self._life,
                    priority=priority,
                    since=since,
                    pinned=lambda: pinned() and not self._leaves,
                    settle=host.settle,
                ) as loaded:
                    await self._serve(loaded, plan)
        except Exception as error:
            self.error = error
        finally:
            self._conclude()
            with trio.CancelScope(shield=True):
                await self._residence.leave()
            self.gone.set()

    def _conclude(self) -> None:
        if self.error is not None:
            self._life.fail(self.error)
        elif self._life.state is ModelState.UNLOADING:
            leftover_bytes = self._residence.leftover_bytes
            self._life.move(ModelEvent.GONE)
            self._life.tell(
                EventKind.MODEL_UNLOADED, reason=self._reason, leftover_bytes=leftover_bytes
            )
        else:
            self._life.move(ModelEvent.ABANDONED)
            self._life.tell(EventKind.MODEL_FAILED, error="cancelled")
        self._life.weights = None

    # -- while it is there

    async def _serve(self, loaded: EngineModel, plan: LoadPlan) -> None:
        """Returns when it must go and nobody uses it any more."""
        await trio.lowlevel.checkpoint_if_cancelled()  # abandoned, in the last moment
        weights, workspace = self._residence.reservations
        async with open_bare_nursery() as nursery:
            self.work = work = Work(
                self._name,
                loaded,
                self._host.policy,
                self._host.manager,
                (weights, workspace),
                plan,
                self._host.new_id,
                nursery,
                self._on_return,
            )
            try:
                self._life.load()
                self.was_ready = True
                self._life.tell(EventKind.MODEL_READY, size=weights.size)
                self._on_ready(work)
                await self._stay(work, weights)
            except BaseException:  # cancelled, maybe in a group
                work.cancel()
                raise
            finally:
                self.leave("close")
                with trio.CancelScope(shield=True):
                    await work.wait_idle()
                self.work = None
                self._life.move(ModelEvent.DRAINED)

    async def _stay(self, work: Work, weights: WiredMemoryTicket) -> None:
        """Returns when it must go and nothing runs on it."""
        async with open_bare_nursery() as watchers:
            watchers.start_soon(self._tell_idleness, work)
            watchers.start_soon(self._leave_when_asked, work, weights)
            watchers.start_soon(self._leave_when_unused, work)
            await self._leaving.wait()
            await work.wait_idle()
            watchers.cancel_scope.cancel()

    async def _tell_idleness(self, work: Work) -> None:
        """A moment without work is not idleness yet: those who had their answers may ask again."""
        while True:
            await work.wait_idle()
            with trio.move_on_after(self._host.engine.idle_seconds):
                await work.wait_busy()
            work.tell_idle()
            await work.wait_busy()

    async def _leave_when_asked(self, work: Work, weights: WiredMemoryTicket) -> None:
        """Others need the room, also where it goes already: what has no memory yet comes later."""
        if await weights.wait_for_reclaim():
            self.leave("pressure")
            work.postpone()

    async def _leave_when_unused(self, work: Work) -> None:
        while True:
            await work.wait_idle()
            idle_since = trio.current_time()
            while work.is_idle:
                keep_alive = self._keep_alive()
                over = math.inf if keep_alive is None else idle_since + keep_alive
                if trio.current_time() >= over:
                    self.leave("keep_alive")
                    return
                with trio.CancelScope(deadline=over) as self._unused:
                    await work.wait_busy()
                    break
