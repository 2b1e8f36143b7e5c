"""The model actor: one loaded model, from its reservation's start to its end."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import trio

from wiredactors.actors.job import Job
from wiredactors.actors.nursery import open_bare_nursery
from wiredactors.actors.protocol import Engine, EngineModel
from wiredactors.actors.workspace import Workspace
from wiredactors.memory.errors import ModelNotLoaded, PromptTooLong, WiredMemoryError
from wiredactors.memory.events import EventKind
from wiredactors.memory.policies import WiredMemoryPolicy
from wiredactors.memory.tickets import TicketManager, WiredMemoryTicket
from wiredactors.scheduling.requests import (
    LoadOptions,
    LoadPlan,
    Prompt,
    RowRequest,
    SamplingParameters,
)


class Model:
    """A model that jobs run on. Made by `Runtime.load`.

    Attributes:
        name: its name in the runtime.
        weight_bytes: bytes of its weights in memory.
        context_length: tokens of prompt and answer together that it can hold.
    """

    def __init__(
        self,
        name: str,
        policy: WiredMemoryPolicy,
        manager: TicketManager,
        note: Callable[..., None],
        job_numbers: itertools.count[int],
        workspace: Workspace,
    ):
        self.name = name
        self._policy = policy
        self._manager = manager
        self._note = note
        self._job_numbers = job_numbers
        self._workspace = workspace
        self._weights: WiredMemoryTicket | None = None
        self._loaded: EngineModel | None = None
        self._jobs: set[Job] = set()
        self._leaving = trio.Event()
        self._idle = trio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        return f"<Model {self.name}>"

    @property
    def weight_bytes(self) -> int:
        return self._ready.weight_bytes

    @property
    def context_length(self) -> int:
        return self._ready.context_length

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs under way, waiting ones too."""
        return tuple(self._jobs)

    # -- for people

    def ticket_size(self, prompt: Prompt, max_tokens: int = 128) -> int:
        """Bytes that a job of this prompt is charged: its cache as it will be allocated.

        Raises:
            PromptTooLong, ValueError: as `generate`.
        """
        return self._row_bytes(self._request("", prompt, max_tokens, SamplingParameters()))

    @contextlib.asynccontextmanager
    async def generate(
        self,
        prompt: Prompt,
        max_tokens: int = 128,
        temperature: float = 0.0,
        wired_memory_ticket: WiredMemoryTicket | None = None,
        priority: int = 0,
        *,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        seed: int | None = None,
        stop: str | Iterable[str] = (),
        repetition_penalty: float = 0.0,
        repetition_context_size: int = 20,
    ) -> AsyncIterator[Job]:
        """Run one generation; iterate over the job for its chunks.

        Entering does not wait for admission: a refusal or a failure is raised at the first read,
        or at leaving if nothing was read. Leaving before the end cancels the job, and returns
        when its memory is back and its ticket has ended; `job.result` is set by then.

        Args:
            prompt: text, or chat messages ({"role": ..., "content": ...}).
            max_tokens: tokens to generate at most; cut to what the context leaves.
            wired_memory_ticket: a ticket of your own, which the job starts and ends; left out,
                the job sizes one itself. One smaller than that is honoured, and an event says by
                how much.
            priority: larger goes first among the tickets that wait.
            temperature, top_p, top_k, min_p, seed, stop, repetition_penalty,
                repetition_context_size: see `SamplingParameters`.

        Raises:
            ValueError: an argument is out of its range, or the prompt is empty.
            PromptTooLong: the prompt alone fills the context.
            ModelNotLoaded: the model is being unloaded.
            And from reading or leaving: what `WiredMemoryTicket.start` raises, GenerationError.
        """
        sampling = SamplingParameters(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            seed=seed,
            stop=stop if isinstance(stop, str) else tuple(stop),
            repetition_penalty=repetition_penalty,
            repetition_context_size=repetition_context_size,
        )
        job = self._make_job(prompt, max_tokens, sampling, wired_memory_ticket, priority)
        async with open_bare_nursery() as nursery:
            self._jobs.add(job)
            self._idle = trio.Event()
            nursery.start_soon(self._run_job, job)
            try:
                yield job
            finally:
                job.cancel()
        job.raise_error()

    @trio.lowlevel.enable_ki_protection
    async def _run_job(self, job: Job) -> None:
        try:
            await job.run()
        finally:
            self._jobs.discard(job)
            if not self._jobs:
                self._idle.set()

    def _make_job(
        self,
        prompt: Prompt,
        max_tokens: int,
        sampling: SamplingParameters,
        ticket: WiredMemoryTicket | None,
        priority: int,
    ) -> Job:
        loaded = self._ready
        job_id = f"job-{next(self._job_numbers)}"
        request = self._request(job_id, prompt, max_tokens, sampling)
        estimate = self._row_bytes(request)
        stands_on = (self._weights_ticket, self._workspace.ticket)
        if ticket is None:
            ticket = WiredMemoryTicket(
                size=estimate,
                policy=self._policy,
                manager=self._manager,
                priority=priority,
                requires=stands_on,
                id=job_id,
            )
        elif ticket.kind != "active":
            raise ValueError(
                f"a job's ticket must be active, and {ticket.id} is a {ticket.kind}: "
                "that would not keep the limit raised while it runs"
            )
        else:
            ticket.require(stands_on)
        return Job(self.name, loaded, request, ticket, estimate, self._note)

    def _request(
        self, row_id: str, prompt: Prompt, max_tokens: int, sampling: SamplingParameters
    ) -> RowRequest:
        loaded = self._ready
        tokens = loaded.encode(prompt)
        room = loaded.context_length - len(tokens)
        if room < 1:
            raise PromptTooLong(len(tokens), loaded.context_length)
        request = RowRequest(
            row_id=row_id, prompt=tuple(tokens), max_tokens=max_tokens, sampling=sampling
        )
        return request.shortened(room)

    def _row_bytes(self, request: RowRequest) -> int:
        return self._ready.cache_cost.row_bytes(request.total_tokens)

    @property
    def _ready(self) -> EngineModel:
        if self._loaded is None:
            raise ModelNotLoaded(f"model {self.name!r} is not loaded: load it first")
        if self._leaving.is_set():
            raise ModelNotLoaded(f"model {self.name!r} is being unloaded: it takes no more jobs")
        return self._loaded

    @property
    def _weights_ticket(self) -> WiredMemoryTicket:
        assert self._weights is not None
        return self._weights

    # -- for the runtime

    def leave(self, *, cancel_jobs: bool) -> None:
        """Take no more jobs, and unload when those under way have ended."""
        self._leaving.set()
        if cancel_jobs:
            for job in self._jobs:
                job.cancel()

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
            await self._hold_and_serve(engine, plan, serve)
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
                await self._workspace.forget(self.name)

    async def _hold_and_serve(
        self, engine: Engine, plan: LoadPlan, ready: Callable[[], object]
    ) -> None:
        """The reservation is admitted before anything is loaded, and holds the load's peak; what
        only the peak needed is given back when the weights stand.
        """
        margin = plan.margin_bytes
        new_workspace = await self._workspace.expect(self.name, plan.workspace_bytes, margin)
        self._weights = WiredMemoryTicket(
            size=plan.peak_bytes + new_workspace,
            policy=self._policy,
            kind="reservation",
            manager=self._manager,
            requires=(self._workspace.ticket,),
            id=f"weights/{self.name}",
        )
        self._tell(EventKind.MODEL_LOADING, size=self._weights.size, source=plan.source)
        await self._weights.start()
        try:
            await self._workspace.grow(self.name, self._weights, plan.peak_bytes, margin)
            self._loaded = await engine.load(self.name, plan, self._progress)
            if self._loaded.weight_bytes != self._weights.size:
                await self._weights.resize(self._loaded.weight_bytes)
            self._tell(EventKind.MODEL_READY, size=self._loaded.weight_bytes)
            ready()
            await self._leaving.wait()
        except trio.Cancelled:
            self.leave(cancel_jobs=True)
            raise
        finally:
            with trio.CancelScope(shield=True):
                await self._let_go()

    async def _let_go(self) -> None:
        """The weights go when nobody uses them any more, and the reservation after them."""
        await self._idle.wait()
        loaded, self._loaded = self._loaded, None
        try:
            if loaded is not None:
                await loaded.unload()
        finally:
            await self._weights_ticket.end()

    def _progress(self, done: int, total: int) -> None:
        self._tell(EventKind.MODEL_PROGRESS, done_bytes=done, total_bytes=total)

    def _tell(
        self, kind: EventKind, *, size: int | None = None, error: str | None = None, **details: Any
    ) -> None:
        ticket_id = self._weights.id if self._weights is not None else None
        self._note(
            kind, model=self.name, ticket_id=ticket_id, size=size, error=error, details=details
        )


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, WiredMemoryError) else repr(error)
