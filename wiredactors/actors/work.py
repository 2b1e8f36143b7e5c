"""What runs on one loaded model: its jobs and measurements, each under a ticket of its own."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator

import trio

from wiredactors.actors.charge import Charge
from wiredactors.actors.job import Job
from wiredactors.actors.protocol import EngineModel
from wiredactors.memory.errors import ModelNotLoaded, PromptTooLong
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.memory.policies import WiredMemoryPolicy
from wiredactors.memory.tickets import TicketManager, WiredMemoryTicket
from wiredactors.scheduling.requests import (
    CacheOptions,
    LoadPlan,
    Prompt,
    RowRequest,
    SamplingParameters,
)


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
        note: Callable[..., None],
        nursery: trio.Nursery,
    ):
        """`stands_on` are the reservations of the model, which was loaded by `plan`;
        `new_id("job")` names a job; jobs run in the `nursery`."""
        self.jobs: dict[Job, None] = {}
        self._measurements: set[trio.CancelScope] = set()
        self._name = name
        self.loaded = loaded
        self._policy = policy
        self._manager = manager
        self._stands_on = stands_on
        self._plan = plan
        self._new_id = new_id
        self._note = note
        self._nursery = nursery
        self._started: deque[Job] = deque()  # those whose task has not begun
        self._idle = trio.Event()
        self._idle.set()

    @property
    def prefill_step_size(self) -> int:
        """Prompt tokens in one step, with the device's default filled in."""
        size = self._plan.options.prefill_step_size
        assert size is not None
        return size

    # -- jobs

    def ticket_size(self, prompt: Prompt, max_tokens: int, cache: CacheOptions) -> int:
        """Bytes that a job of this prompt is charged."""
        request = self._request("", prompt, max_tokens, SamplingParameters(), cache)
        return Charge.of(self.loaded, request).size

    @trio.lowlevel.enable_ki_protection  # a job that is counted and does not run would never end
    def start_job(
        self,
        prompt: Prompt,
        max_tokens: int,
        sampling: SamplingParameters,
        cache: CacheOptions,
        ticket: WiredMemoryTicket | None,
        priority: int,
    ) -> Job:
        """A new job, under way from here on; see `Model.start_generation`."""
        job_id = self._new_id("job")
        request = self._request(job_id, prompt, max_tokens, sampling, cache)
        charge = Charge.of(self.loaded, request)
        if ticket is None:
            ticket = self._ticket(job_id, charge.size, priority)
        elif ticket.kind != "active":
            raise ValueError(
                f"a job's ticket must be active, and {ticket.id} is a {ticket.kind}: "
                "that would not keep the limit raised while it runs"
            )
        else:
            ticket.require(self._stands_on)
        job = Job(self._name, self.loaded, request, ticket, charge, self._note)
        self.jobs[job] = None
        self._idle = trio.Event()
        self._started.append(job)
        self._nursery.start_soon(self._run_job)
        return job

    @trio.lowlevel.enable_ki_protection
    async def _run_job(self) -> None:
        # Not a job of its own: trio begins the tasks of one turn in any order, and jobs ask for
        # memory in the order in which they were started.
        job = self._started.popleft()
        try:
            await job.run()
        finally:
            del self.jobs[job]
            self._see_if_idle()

    def _request(
        self,
        row_id: str,
        prompt: Prompt,
        max_tokens: int,
        sampling: SamplingParameters,
        cache: CacheOptions,
    ) -> RowRequest:
        tokens = self.loaded.encode(prompt)
        room = self.loaded.context_length - len(tokens)
        if room < 1:
            raise PromptTooLong(len(tokens), self.loaded.context_length)
        request = RowRequest(
            row_id=row_id,
            prompt=tuple(tokens),
            max_tokens=max_tokens,
            sampling=sampling,
            cache=cache,
        )
        return request.shortened(room)

    # -- measurements

    @trio.lowlevel.enable_ki_protection  # what it holds must end
    async def measure(
        self, parameters: TuneParameters, *, remeasure: bool
    ) -> WiredMemoryMeasurement:
        """Run the model as `parameters` say; see `Model.tune`."""
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
            async with ticket.wired_limit():
                measurement = await self.loaded.tune(parameters, remeasure=remeasure)
        if measurement is None:
            raise ModelNotLoaded(f"model {self._name!r} was unloaded while it was measured")
        return measurement

    @contextlib.contextmanager
    def _measuring(self) -> Iterator[None]:
        """A measurement is under way, until `cancel` at the latest."""
        scope = trio.CancelScope()
        self._measurements.add(scope)
        self._idle = trio.Event()
        try:
            with scope:
                yield
        finally:
            self._measurements.discard(scope)
            self._see_if_idle()

    # -- all of it

    def cancel(self) -> None:
        """Stop all that is under way, at its next step."""
        for job in self.jobs:
            job.cancel()
        for scope in self._measurements:
            scope.cancel()

    async def wait_idle(self) -> None:
        """Wait until nothing is under way; its tickets have ended then."""
        await self._idle.wait()

    def _see_if_idle(self) -> None:
        if not self.jobs and not self._measurements:
            self._idle.set()

    def _ticket(self, id: str, size: int, priority: int = 0) -> WiredMemoryTicket:
        return WiredMemoryTicket(
            size=size,
            policy=self._policy,
            manager=self._manager,
            priority=priority,
            requires=self._stands_on,
            id=id,
        )
