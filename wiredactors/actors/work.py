"""What runs on one loaded model: its jobs and measurements, each under a ticket of its own."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator

import trio

from wiredactors.actors.charge import Charge
from wiredactors.actors.job import Job, Row
from wiredactors.actors.protocol import EngineModel
from wiredactors.memory.errors import ModelNotLoaded, PromptTooLong
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.memory.policies import WiredMemoryPolicy
from wiredactors.memory.tickets import TicketManager, WiredMemoryTicket
from wiredactors.scheduling.requests import GenerationRequest, LoadPlan, RowRequest


class Postponed(Exception):
    """What has no memory yet must wait until the model comes again."""


class Work:
    """Makes a model's jobs, runs its measurements, and knows which are under way.

    Attributes:
        loaded: the model.
        jobs: the keys are those under way, waiting ones too, in the order of their starts.
    """

    def __init__(
        self,
        name: str,
        loaded: EngineModel,
        policy: WiredMemoryPolicy,
        manager: TicketManager,
        stands_on: tuple[WiredMemoryTicket, ...],
        plan: LoadPlan,
        new_id: Callable[[str], str],
        nursery: trio.Nursery,
        on_return: Callable[[Job], object],
    ):
        """`stands_on` are the reservations of the model, its own first, which was loaded by `plan`;
        `new_id("tune")` names a measurement's ticket; jobs run in the `nursery`; a job that was
        postponed goes to `on_return`."""
        self.jobs: dict[Job, None] = {}
        self.loaded = loaded
        self._measurements: set[trio.CancelScope] = set()
        self._asking: set[trio.CancelScope] = set()  # measurements that have no memory yet
        self._name = name
        self._policy = policy
        self._manager = manager
        self._stands_on = stands_on
        self._plan = plan
        self._new_id = new_id
        self._nursery = nursery
        self._on_return = on_return
        self._started: deque[Job] = deque()  # those whose task has not begun
        self._idle = trio.Event()
        self._busy = trio.Event()
        self._idle.set()
        self._told_in_use: bool | None = None  # None: that it serves at all

    @property
    def prefill_step_size(self) -> int:
        """Prompt tokens in one step, with the device's default filled in."""
        size = self._plan.options.prefill_step_size
        assert size is not None
        return size

    # -- jobs

    def row(self, row_id: str, request: GenerationRequest) -> Row:
        """What such a job would be on the model.

        Raises:
            PromptTooLong: the prompt alone fills the context.
            ValueError: the prompt is empty, or the model's own cache cannot be kept so.
        """
        tokens = self.loaded.encode(request.prompt)
        room = self.loaded.context_length - len(tokens)
        if room < 1:
            raise PromptTooLong(len(tokens), self.loaded.context_length)
        row = RowRequest(
            row_id=row_id,
            prompt=tuple(tokens),
            max_tokens=min(request.max_tokens, room),
            sampling=request.sampling,
            cache=request.cache,
        )
        return Row(self.loaded, row, Charge.of(self.loaded, row))

    @trio.lowlevel.enable_ki_protection  # a job that is counted and does not run would never end
    def start(self, job: Job, row: Row) -> None:
        """The job is under way from here on."""
        job.ticket.require(self._stands_on)
        job.give_row(row)
        self.jobs[job] = None
        self._see_if_used()
        self._started.append(job)
        self._nursery.start_soon(self._run_job)

    @trio.lowlevel.enable_ki_protection
    async def _run_job(self) -> None:
        # Not a job of its own: trio begins the tasks of one turn in any order, and jobs ask for
        # memory in the order in which they were started.
        job = self._started.popleft()
        ended = True
        try:
            ended = await job.run()
        finally:
            del self.jobs[job]
            if not ended:
                self._on_return(job)
            self._see_if_used()

    # -- measurements

    @trio.lowlevel.enable_ki_protection  # what it holds must end
    async def measure(
        self, parameters: TuneParameters, *, remeasure: bool
    ) -> WiredMemoryMeasurement:
        """Run the model as `parameters` say; see `Model.tune`.

        Raises:
            Postponed: the model must go first.
            And what `Model.tune` raises.
        """
        tokens = parameters.token_count + parameters.decode_tokens
        if tokens > self.loaded.context_length:
            raise PromptTooLong(tokens, self.loaded.context_length)
        measurement = None
        with self._measuring():
            if not remeasure and (known := await self.loaded.recall(parameters)) is not None:
                return known
            predicted = await self.loaded.predict(parameters)
            # Its steps may be larger than those for which the workspace is held.
            more = max(0, predicted.workspace_bytes - self._plan.workspace_bytes)
            ticket = self._ticket(self._new_id("tune"), predicted.kv_bytes + more)
            await self._start(ticket)
            try:
                measurement = await self.loaded.tune(parameters, remeasure=remeasure)
            finally:
                with trio.CancelScope(shield=True):
                    await ticket.end()
        if measurement is None:
            raise ModelNotLoaded(f"model {self._name!r} was unloaded while it was measured")
        return measurement

    async def _start(self, ticket: WiredMemoryTicket) -> None:
        """Raises Postponed where the model must go before it is admitted."""
        with trio.CancelScope() as asking:
            self._asking.add(asking)
            try:
                await ticket.bind().start_ticket(ticket, exclusive=True)
            finally:
                self._asking.discard(asking)
        if asking.cancelled_caught:
            raise Postponed

    @contextlib.contextmanager
    def _measuring(self) -> Iterator[None]:
        """A measurement is under way, until `cancel` at the latest."""
        scope = trio.CancelScope()
        self._measurements.add(scope)
        self._see_if_used()
        try:
            with scope:
                yield
        finally:
            self._measurements.discard(scope)
            self._see_if_used()

    # -- all of it

    def cancel(self) -> None:
        """Stop all that is under way, at its next step."""
        for job in self.jobs:
            job.cancel()
        for scope in self._measurements:
            scope.cancel()

    def postpone(self) -> None:
        """Send back those who have no memory yet."""
        for job in self.jobs:
            job.postpone()
        for asking in self._asking:
            asking.cancel()

    async def wait_idle(self) -> None:
        """Wait until nothing is under way; its tickets have ended then."""
        await self._idle.wait()

    async def wait_busy(self) -> None:
        """Wait until something is."""
        await self._busy.wait()

    @property
    def is_idle(self) -> bool:
        return not self.jobs and not self._measurements

    def _see_if_used(self) -> None:
        """Tell those who wait for it, and at once the manager if it is in use (again)."""
        if self.is_idle == self._idle.is_set():
            return
        if self.is_idle:
            self._idle.set()
            self._busy = trio.Event()
        else:
            self._busy.set()
            self._idle = trio.Event()
        if not (self.is_idle or self._told_in_use):
            self._tell_use(True)

    def tell_idle(self) -> None:
        """Tell the manager that it may let the model yield, if it is idle still."""
        if self.is_idle and self._told_in_use is not False:
            self._tell_use(False)

    def _tell_use(self, in_use: bool) -> None:
        self._told_in_use = in_use
        self._manager.use_ticket(self._stands_on[0], in_use=in_use)

    def _ticket(self, id: str, size: int) -> WiredMemoryTicket:
        return WiredMemoryTicket(
            size=size,
            policy=self._policy,
            manager=self._manager,
            requires=self._stands_on,
            id=id,
        )
