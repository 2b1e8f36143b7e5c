"""The model actor: one loaded model, from its reservation's start to its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from wiredactors.actors.job import Job
from wiredactors.actors.nursery import open_bare_nursery
from wiredactors.actors.protocol import Engine, EngineModel
from wiredactors.actors.residence import Residence
from wiredactors.actors.work import Work
from wiredactors.actors.workspace import Workspace
from wiredactors.memory.errors import ModelNotLoaded, WiredMemoryError
from wiredactors.memory.events import EventKind
from wiredactors.memory.policies import WiredMemoryPolicy
from wiredactors.memory.tickets import TicketManager
from wiredactors.scheduling.requests import LoadOptions, LoadPlan


class Service:
    """What is behind a `Model`: it holds its memory, loads it, and runs its jobs in a nursery.

    Attributes:
        name: its name in the runtime.
    """

    def __init__(
        self,
        name: str,
        policy: WiredMemoryPolicy,
        manager: TicketManager,
        note: Callable[..., None],
        new_id: Callable[[str], str],
        workspace: Workspace,
    ):
        self.name = name
        self._policy = policy
        self._manager = manager
        self._note = note
        self._new_id = new_id
        self._residence = Residence(name, policy, manager, workspace)
        self._work: Work | None = None
        self._leaving = trio.Event()

    @property
    def work(self) -> Work:
        """Its jobs and measurements.

        Raises:
            ModelNotLoaded: it is not loaded, or is being unloaded.
        """
        if self._work is None:
            raise ModelNotLoaded(f"model {self.name!r} is not loaded: load it first")
        if self._leaving.is_set():
            raise ModelNotLoaded(f"model {self.name!r} is being unloaded: it takes no more jobs")
        return self._work

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs under way."""
        return () if self._work is None else tuple(self._work.jobs)

    def leave(self, *, cancel_jobs: bool) -> None:
        """Take no more jobs, and unload when those under way have ended, measurements too."""
        self._leaving.set()
        if cancel_jobs and self._work is not None:
            self._work.cancel()

    @trio.lowlevel.enable_ki_protection
    async def run(
        self, engine: Engine, source: str, options: LoadOptions, ready: Callable[[], object]
    ) -> None:
        """Be the model: hold its memory, load, serve until told to leave or cancelled, unload."""
        served = False

        def serve() -> None:
            nonlocal served
            served = True
            ready()

        try:
            plan = await engine.plan(source, options)
            async with self._residence.hold(engine, plan, self._tell) as loaded:
                await self._serve(loaded, plan, serve)
        except trio.Cancelled:
            if served:
                self._tell(EventKind.MODEL_UNLOADED)
            else:
                self._tell(EventKind.MODEL_FAILED, error="cancelled")
            raise
        except Exception as error:
            self._tell(EventKind.MODEL_FAILED, error=_in_words(error))
            raise
        else:
            self._tell(EventKind.MODEL_UNLOADED)
        finally:
            with trio.CancelScope(shield=True):
                await self._residence.leave()

    async def _serve(
        self, loaded: EngineModel, plan: LoadPlan, ready: Callable[[], object]
    ) -> None:
        """Returns when nobody uses the model any more."""
        async with open_bare_nursery() as nursery:
            self._work = work = Work(
                self.name,
                loaded,
                self._policy,
                self._manager,
                self._residence.reservations,
                plan,
                self._new_id,
                self._note,
                nursery,
            )
            self._tell(EventKind.MODEL_READY, size=loaded.weight_bytes)
            ready()
            try:
                await self._leaving.wait()
            except trio.Cancelled:
                self.leave(cancel_jobs=True)
                raise
            finally:
                with trio.CancelScope(shield=True):
                    await work.wait_idle()
                self._work = None

    def _tell(
        self, kind: EventKind, *, size: int | None = None, error: str | None = None, **details: Any
    ) -> None:
        weights = self._residence.weights
        ticket_id = weights.id if weights is not None else None
        self._note(
            kind, model=self.name, ticket_id=ticket_id, size=size, error=error, details=details
        )


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, WiredMemoryError) else repr(error)
