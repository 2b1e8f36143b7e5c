"""The model actor: it carries out a model's life, as `scheduling.lifecycle` has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import trio

from wiredactors.actors.job import Job
from wiredactors.actors.line import Caller, Line
from wiredactors.actors.manager import WiredMemoryManager
from wiredactors.actors.nursery import open_bare_nursery
from wiredactors.actors.protocol import Engine, EngineModel
from wiredactors.actors.residence import Residence
from wiredactors.actors.work import Work
from wiredactors.actors.workspace import Workspace
from wiredactors.memory.errors import ManagerClosed, ModelNotLoaded, WiredMemoryError
from wiredactors.memory.events import EventKind
from wiredactors.memory.policies import WiredMemoryPolicy
from wiredactors.memory.tickets import WiredMemoryTicket
from wiredactors.scheduling.lifecycle import (
    LIFE,
    ModelEvent,
    ModelState,
    OnRequest,
    back_off,
    next_state,
)
from wiredactors.scheduling.requests import GenerationRequest, LoadOptions, LoadPlan, StayOptions


@attrs.frozen(kw_only=True)
class Host:
    """What all models of a runtime share.

    Attributes:
        settle: lets the manager see what is free, after a model has gone and before the next
            ticket is admitted.
        new_id: `new_id("job")` is a name that nothing else has.
    """

    engine: Engine
    policy: WiredMemoryPolicy
    manager: WiredMemoryManager
    workspace: Workspace
    settle: Callable[[], object]
    new_id: Callable[[str], str]


class Service:
    """What is behind a `Model`: its line, its life, and while it is in memory its work.

    Attributes:
        name, source: its name in the runtime, and where it comes from.
        lasting: it stays registered when it is unloaded.
        state: where it is in its life.
        pinned: it never yields; `pin` changes it.
        keep_alive: seconds after its last use for which it stays; None: until others need the room.
        refusal: what is raised for whoever still comes; None while it takes requests.
        parted: set when its task has ended.
    """

    def __init__(
        self,
        name: str,
        source: str,
        options: LoadOptions,
        host: Host,
        stay: StayOptions,
        *,
        lasting: bool,
    ):
        self.name = name
        self.source = source
        self.state = ModelState.ABSENT
        self.lasting = lasting
        self.pinned = stay.pinned
        self.keep_alive = stay.keep_alive
        self.refusal: Exception | None = None
        self.parted = trio.Event()
        self._options = options
        self._host = host
        self._line = Line()
        self._arrivals = 0
        self._residence: Residence | None = None
        self._work: Work | None = None
        self._resting = trio.CancelScope()  # while nobody wants it
        self._loading = trio.CancelScope()
        self._leaving = trio.Event()
        self._reason = ""  # why it leaves
        self._gone = trio.Event()
        self._unload_error: Exception | None = None
        self._failures = 0  # in a row
        self._retry_at = 0.0
        self._parts = False

    # -- requests

    @property
    def work(self) -> Work:
        """Its jobs and measurements.

        Raises:
            ModelNotLoaded: it is not in memory, or must go.
        """
        if self._work is not None and self.state is ModelState.READY:
            return self._work
        self._check_open()
        raise ModelNotLoaded(f"model {self.name!r} is not loaded, but {self.state}: load it first")

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Those under way, and those in the line."""
        waiting = [each for each in self._line if isinstance(each, Job)]
        return (*(() if self._work is None else self._work.jobs), *waiting)

    @trio.lowlevel.enable_ki_protection  # a job that nobody has, and that is in the line
    def start_job(self, request: GenerationRequest, ticket: WiredMemoryTicket | None) -> Job:
        """A new job, under way or in the line; see `Model.start_generation`."""
        self._check_open()
        if ticket is not None and ticket.kind != "active":
            raise ValueError(
                f"a job's ticket must be active, and {ticket.id} is a {ticket.kind}: "
                "that would not keep the limit raised while it runs"
            )
        job_id = self._host.new_id("job")
        runs = LIFE[self.state].on_request is OnRequest.RUNS
        row = self.work.row(job_id, request) if runs else None
        job = Job(
            job_id,
            self._new_arrival(),
            self.name,
            request,
            self._ticket(job_id, request.priority) if ticket is None else ticket,
            self._host.manager.note,
            self._withdraw,
            sizes_ticket=ticket is None,
        )
        if row is not None:
            self.work.start(job, row)
        else:
            job.stand_in_line()
            self._line.join(job)
        return job

    async def ready(self) -> Work:
        """Wait in the line until it is in memory. The next turn it may have to leave again.

        Raises:
            What it failed of, if it fails.
        """
        while True:
            self._check_open()
            if LIFE[self.state].on_request is OnRequest.RUNS:
                await trio.lowlevel.checkpoint_if_cancelled()
                return self.work
            caller = Caller(self._new_arrival())
            self._line.join(caller)
            try:
                await caller.wait()
            finally:
                self._withdraw(caller)

    def _ticket(self, job_id: str, priority: int) -> WiredMemoryTicket:
        """A job's own, whose size is known when it has its row."""
        host = self._host
        return WiredMemoryTicket(
            size=0, policy=host.policy, manager=host.manager, priority=priority, id=job_id
        )

    def _withdraw(self, waiting: Job | Caller) -> None:
        """Somebody leaves the line, and the load stops if nobody else stands in it."""
        if self._line.leave(waiting):
            if isinstance(waiting, Job):
                waiting.end()
            if not self._line:
                self._abandon()

    def _new_arrival(self) -> int:
        self._arrivals += 1
        return self._arrivals

    def _check_open(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    # -- from outside

    def pin(self, pinned: bool) -> None:
        """Whether it must stay in memory, from now on."""
        self.pinned = pinned
        weights = None if self._residence is None else self._residence.weights
        if weights is not None:
            self._host.manager.pin_ticket(weights, pinned)

    def leave(self, reason: str) -> bool:
        """Go, if it is in memory, when what runs on it has ended; whether it goes."""
        if self.state is ModelState.READY:
            self._reason = reason
            self._move(ModelEvent.LEAVE)
            self._leaving.set()
        return self.state in (ModelState.DRAINING, ModelState.UNLOADING)

    async def wait_gone(self) -> None:
        """Wait until it has left; raises what it could not be unloaded of."""
        await self._gone.wait()
        self.raise_unload_error()

    def raise_unload_error(self) -> None:
        """Raise what it could not be unloaded of, once."""
        error, self._unload_error = self._unload_error, None
        if error is None:
            return
        try:
            raise error
        finally:
            del error  # see `Request.raise_refusal`

    def part(self, error: Exception, *, cancel_jobs: bool) -> None:
        """Take no more requests, for which `error` is raised, and end when it has left.

        Those in the line fail of it, or are cancelled with the jobs that run.
        """
        self.refusal, self._parts = error, True
        self._fail_line(error, cancel_jobs=cancel_jobs)
        self._abandon()
        self._resting.cancel()
        self.leave("close" if cancel_jobs else "unload")
        if cancel_jobs and self._work is not None:
            self._work.cancel()

    def _abandon(self) -> None:
        if self.state in (ModelState.QUEUED, ModelState.LOADING):
            self._loading.cancel()

    # -- its life

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Be the model, as often as somebody wants it, until it parts or is cancelled."""
        try:
            while await self._is_wanted():
                await self._live()
        finally:
            closed = ManagerClosed(f"model {self.name!r} is not served any more")
            self.part(self.refusal or closed, cancel_jobs=True)
            self.parted.set()

    async def _is_wanted(self) -> bool:
        """Wait until somebody wants it, and a back-off is over; False when it parts."""
        if not self._parts:
            with trio.CancelScope() as self._resting:
                await self._line.wait()
                while LIFE[self.state].on_request is OnRequest.RETRIES:
                    await trio.sleep_until(self._retry_at)
                    await self._line.wait()
                    if trio.current_time() >= self._retry_at:
                        break
        return not self._parts

    async def _live(self) -> None:
        """One stay in memory, from the first who wants it until it has gone."""
        host = self._host
        residence = Residence(self.name, host.policy, host.manager, host.workspace)
        self._residence = residence
        self._leaving, self._gone = trio.Event(), trio.Event()
        self._move(ModelEvent.WANTED)
        error = None
        try:
            with trio.CancelScope() as self._loading:
                plan = await host.engine.plan(self.source, self._options)
                async with residence.hold(
                    host.engine,
                    plan,
                    self._tell,
                    priority=self._line.priority,
                    pinned=self.pinned,
                    admitted=lambda: self._move(ModelEvent.ADMITTED),
                    settle=host.settle,
                ) as loaded:
                    await self._serve(loaded, plan, residence)
        except Exception as failure:
            error = failure
        finally:
            with trio.CancelScope(shield=True):
                await residence.leave()
            self._end_stay(residence, error)
            del error  # see `Request.raise_refusal`

    async def _serve(self, loaded: EngineModel, plan: LoadPlan, residence: Residence) -> None:
        """Returns when it must go and nobody uses it any more."""
        await trio.lowlevel.checkpoint_if_cancelled()  # from here on its load cannot be abandoned
        async with open_bare_nursery() as nursery:
            self._work = work = Work(
                self.name,
                loaded,
                self._host.policy,
                self._host.manager,
                residence.reservations,
                plan,
                self._host.new_id,
                nursery,
                self._take_back,
            )
            try:
                self._open(work, residence.reservations[0])
                await self._stay(work, residence.reservations[0])
            except trio.Cancelled:
                work.cancel()
                raise
            finally:
                self.leave("close")
                with trio.CancelScope(shield=True):
                    await work.wait_idle()
                self._work = None
                self._move(ModelEvent.DRAINED)

    def _open(self, work: Work, weights: WiredMemoryTicket) -> None:
        """It is ready: whoever stands in the line comes first."""
        self._move(ModelEvent.LOADED)
        self._failures = 0
        self._tell(EventKind.MODEL_READY, size=weights.size)
        for waiting in self._line.take_all():
            if isinstance(waiting, Caller):
                waiting.call()
            else:
                self._start(waiting, work)
        if work.is_idle:
            self._host.manager.use_ticket(weights, in_use=False)

    def _start(self, job: Job, work: Work) -> None:
        try:
            row = work.row(job.id, job.request)
        except Exception as error:  # of its prompt or its options, or whatever the tokenizer raises
            job.end(error)
        else:
            work.start(job, row)

    async def _stay(self, work: Work, weights: WiredMemoryTicket) -> None:
        """Returns when it must go and nothing runs on it."""
        async with open_bare_nursery() as watchers:
            watchers.start_soon(self._yield_when_asked, work, weights)
            watchers.start_soon(self._leave_when_unused, work)
            await self._leaving.wait()
            await work.wait_idle()
            watchers.cancel_scope.cancel()

    async def _yield_when_asked(self, work: Work, weights: WiredMemoryTicket) -> None:
        """Others need the room: what has no memory yet need not run before."""
        if await weights.wait_for_reclaim():
            self.leave("pressure")
            work.postpone()

    async def _leave_when_unused(self, work: Work) -> None:
        if self.keep_alive is None:
            return
        while True:
            await work.wait_idle()
            with trio.move_on_after(self.keep_alive):
                await work.wait_busy()
            if work.is_idle and not self.pinned:
                self.leave("keep_alive")
                return
            await work.wait_busy()

    def _take_back(self, job: Job) -> None:
        """A job was postponed: the model goes first."""
        if self._parts:
            job.end(self.refusal)
            return
        job.stand_in_line()
        self._line.join(job)

    def _end_stay(self, residence: Residence, error: Exception | None) -> None:
        """Nothing of it is held any more."""
        loaded = self.state is ModelState.UNLOADING
        if error is not None:
            self._move(ModelEvent.FAILED)
            self._failures += 1
            self._retry_at = trio.current_time() + back_off(self._failures)
            self._tell(EventKind.MODEL_FAILED, error=_in_words(error), retry_at=self._retry_at)
            if loaded:
                self._unload_error = error
            else:
                self._fail_line(error)
        elif loaded:
            self._move(ModelEvent.GONE)
            leftover = {"leftover_bytes": residence.leftover_bytes}
            self._tell(EventKind.MODEL_UNLOADED, reason=self._reason, **leftover)
        else:
            self._move(ModelEvent.ABANDONED)
            self._tell(EventKind.MODEL_FAILED, error="cancelled")
        self._residence = None
        self._gone.set()

    def _fail_line(self, error: Exception, *, cancel_jobs: bool = False) -> None:
        for waiting in self._line.take_all():
            if isinstance(waiting, Caller):
                waiting.call(error)
            else:
                waiting.end(None if cancel_jobs else error)

    def _move(self, event: ModelEvent) -> None:
        self.state = next_state(self.state, event)
        if event is ModelEvent.LEAVE:
            self._tell(EventKind.MODEL_DRAINING, reason=self._reason)

    def _tell(
        self, kind: EventKind, *, size: int | None = None, error: str | None = None, **details: Any
    ) -> None:
        weights = None if self._residence is None else self._residence.weights
        self._host.manager.note(
            kind,
            model=self.name,
            ticket_id=None if weights is None else weights.id,
            size=size,
            error=error,
            details=details,
        )


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, WiredMemoryError) else repr(error)
