"""The model actor: one registered model, with the line of those who wait for it."""

from __future__ import annotations

import attrs
import trio

from wiredactors.actors.errors import likeness
from wiredactors.actors.job import Job
from wiredactors.actors.life import Life
from wiredactors.actors.line import Caller, Line
from wiredactors.actors.stay import Host, Stay
from wiredactors.actors.work import Work
from wiredactors.memory.errors import ManagerClosed, ModelLoadError, ModelNotLoaded
from wiredactors.memory.events import Explanation
from wiredactors.memory.tickets import WiredMemoryTicket
from wiredactors.scheduling.lifecycle import ModelState, OnRequest
from wiredactors.scheduling.requests import GenerationRequest, LoadOptions, StayOptions


class Service:
    """What is behind a `Model`. It is in memory as often as somebody wants it.

    Attributes:
        name, source: its name in the runtime, and where it comes from.
        lasting: it stays registered when it is unloaded.
        pinned: it stays in memory once it is there; `pin` changes it.
        keep_alive: seconds after its last use for which it stays; None: until others need the room.
        refusal: what whoever still comes is told; None while it takes requests.
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
        self.lasting = lasting
        self.pinned = stay.pinned
        self.keep_alive = stay.keep_alive
        self.refusal: Exception | None = None
        self.parted = trio.Event()
        self._options = options
        self._host = host
        self._line = Line()
        self._arrivals = 0
        self._life = Life(name, host.manager.note)
        self._stay: Stay | None = None
        self._resting = trio.CancelScope()  # while nobody wants it
        self._parts = False
        self._unload_error: Exception | None = None

    @property
    def state(self) -> ModelState:
        """Where it is in its life."""
        return self._life.state

    # -- requests

    @property
    def serves(self) -> bool:
        """Whether a request that comes now runs at once."""
        return self._life.on_request is OnRequest.RUNS

    @property
    def work(self) -> Work:
        """Its jobs and measurements.

        Raises:
            ModelNotLoaded: it is not in memory, or must go.
        """
        work = None if self._stay is None else self._stay.work
        if work is not None and self.serves:
            return work
        self._check_open()
        raise ModelNotLoaded(
            f"model {self.name!r} is not loaded, but {self.state}: use it, or load it ahead"
        )

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Those under way, and those in the line."""
        work = None if self._stay is None else self._stay.work
        waiting = [each for each in self._line if isinstance(each, Job)]
        return (*(() if work is None else work.jobs), *waiting)

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
        row = self.work.row(job_id, request) if self.serves else None
        job = Job(
            job_id,
            self._new_arrival(),
            self.name,
            request,
            self._own_ticket(job_id, request.priority) if ticket is None else ticket,
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

    def _own_ticket(self, job_id: str, priority: int) -> WiredMemoryTicket:
        """A job's own, whose size is known when it has its row."""
        host = self._host
        return WiredMemoryTicket(
            size=0, policy=host.policy, manager=host.manager, priority=priority, id=job_id
        )

    async def ready(self) -> Work:
        """Wait in the line until it is in memory, where the next turn may send it away again.

        Raises:
            What it failed of, if it fails.
        """
        self._check_open()
        while not self.serves:
            caller = Caller(self._new_arrival())
            self._line.join(caller)
            try:
                await caller.wait()
            finally:
                self._withdraw(caller)
            if self.refusal is not None and not self.serves:
                raise likeness(self.refusal)
        return self.work

    def _withdraw(self, waiting: Job | Caller) -> None:
        """Somebody leaves the line, and the load stops if nobody else stands in it."""
        if self._line.leave(waiting):
            if isinstance(waiting, Job):
                waiting.end()
            if not self._line and self._stay is not None:
                self._stay.abandon()

    def _new_arrival(self) -> int:
        self._arrivals += 1
        return self._arrivals

    def _check_open(self) -> None:
        if self.refusal is not None:
            raise likeness(self.refusal)

    # -- from outside

    def check_alike(self, options: LoadOptions, stay: StayOptions) -> None:
        """See that it was registered with these, where they are not the defaults.

        Raises:
            ModelLoadError: it was not.
        """
        own = StayOptions(pinned=self.pinned, keep_alive=self.keep_alive)
        if options not in (LoadOptions(), self._options) or stay not in (StayOptions(), own):
            raise ModelLoadError(
                f"model {self.name!r} is registered with other options: load it without any"
            )

    def explain(self, job: Job | None = None) -> Explanation:
        """Why the model waits, or one of its jobs does."""
        manager = self._host.manager
        if job is not None and job not in self._line:
            return manager.explain(job.ticket)
        weights = self._life.weights
        ticket_id = f"weights/{self.name}" if weights is None else weights.id
        found = manager.explain(ticket_id)
        if found.state != "waiting":
            found = Explanation(ticket_id=ticket_id, state=self.state, reason=self._life.in_words)
        if job is None:
            return found
        return attrs.evolve(
            found,
            ticket_id=job.ticket.id,
            state="waiting",
            since=job.since,
            waited=trio.current_time() - job.since,
            size=None,
            overtake_at=None,
            reason=f"it waits for model {self.name!r}, which is {self.state}: {found.reason}",
        )

    def pin(self, pinned: bool) -> None:
        """Whether it stays in memory once it is there, from now on."""
        self.pinned = pinned
        if self._stay is not None:
            self._stay.reconsider()

    async def unload(self) -> None:
        """Go, when what runs on it has ended; it may be loaded again.

        Raises:
            ModelNotLoaded: it is not in memory.
            And what the engine raises where it cannot let it go.
        """
        if self._stay is None or self._life.is_coming:
            raise ModelNotLoaded(f"model {self.name!r} is not loaded, but {self.state}")
        self._stay.leave("unload")
        await self._stay.gone.wait()
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

    def part(self, refusal: Exception, *, cancel_jobs: bool) -> None:
        """Take no more requests, for which `refusal` is raised, and end when it has left.

        Those in the line fail of it, or are cancelled with the jobs that run.
        """
        self.refusal, self._parts = refusal, True
        self._call_line(refusal, cancel_jobs=cancel_jobs)
        self._resting.cancel()
        if self._stay is not None:
            self._stay.abandon()
            self._stay.leave("close" if cancel_jobs else "unload")
            if cancel_jobs and self._stay.work is not None:
                self._stay.work.cancel()

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
            if isinstance(self.refusal, ModelNotLoaded):
                self.refusal = ModelNotLoaded(
                    f"model {self.name!r} is not loaded any more: add or load it again"
                )
            self.parted.set()

    async def _is_wanted(self) -> bool:
        """Wait until somebody wants it, and a back-off is over; False when it parts."""
        if not self._parts:
            with trio.CancelScope() as self._resting:
                await self._line.wait()
                while self._life.on_request is OnRequest.RETRIES and (
                    trio.current_time() < self._life.retry_at
                ):
                    await trio.sleep_until(self._life.retry_at)
                    await self._line.wait()
        return not self._parts

    async def _live(self) -> None:
        """One stay in memory."""
        self._unload_error = None  # nobody asked what became of the last
        self._stay = stay = Stay(
            self.name,
            self._life,
            self._host,
            on_ready=self._open,
            on_return=self._take_back,
            keep_alive=lambda: None if self.pinned else self.keep_alive,
        )
        try:
            await stay.run(
                self.source,
                self._options,
                priority=self._line.priority,
                since=self._line.since,
                pinned=lambda: self.pinned,
            )
        finally:
            self._stay = None
        error, stay.error = stay.error, None  # what is kept there keeps frames
        if error is None:
            return
        if stay.was_ready:
            self._unload_error = error
        else:
            self._call_line(error)

    def _open(self, work: Work) -> None:
        """It is ready: whoever stands in the line comes first."""
        for waiting in self._line:
            self._line.leave(waiting)  # one by one: whatever happens, the others are not lost
            if isinstance(waiting, Caller):
                waiting.call()
                continue
            try:
                row = work.row(waiting.id, waiting.request)
            except Exception as error:  # its prompt, its options, or whatever a tokenizer raises
                waiting.end(error)
            else:
                work.start(waiting, row)

    def _take_back(self, job: Job) -> None:
        """A job was postponed: the model goes first."""
        if self.refusal is not None and self._parts:
            job.end(likeness(self.refusal))
            return
        job.stand_in_line()
        self._line.join(job)

    def _call_line(self, error: Exception, *, cancel_jobs: bool = False) -> None:
        """Nobody in it gets the model."""
        for waiting in self._line.take_all():
            if isinstance(waiting, Caller):
                waiting.call(likeness(error))
            else:
                waiting.end(None if cancel_jobs else likeness(error))
