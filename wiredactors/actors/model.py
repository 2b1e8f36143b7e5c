"""The model actor: one loaded model, from its reservation's start to its end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
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
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.memory.policies import WiredMemoryPolicy
from wiredactors.memory.tickets import TicketManager, WiredMemoryTicket
from wiredactors.scheduling.requests import LoadOptions, LoadPlan, Prompt, SamplingParameters


class Model:
    """A model that jobs run on. Made by `Runtime.load`.

    Attributes:
        name: its name in the runtime.
        weight_bytes: bytes of its weights in memory.
        context_length: tokens of prompt and answer together that it can hold.
        correction: what predicted sizes are multiplied by, learned from finished jobs; at least
            1.0, and up to 4.0 where rows took more than predicted.
        prediction_error: the median of (observed - predicted) / predicted over the last finished
            jobs; None before any. It is usually well below 0, since a row is charged for the
            longest that it can become.
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
        self._prefill_step_size: int | None = None
        self._loaded: EngineModel | None = None
        self._work: Work | None = None
        self._leaving = trio.Event()

    def __repr__(self) -> str:
        return f"<Model {self.name}>"

    @property
    def weight_bytes(self) -> int:
        return self._ready.loaded.weight_bytes

    @property
    def context_length(self) -> int:
        return self._ready.loaded.context_length

    @property
    def correction(self) -> float:
        return self._ready.loaded.correction.factor

    @property
    def prediction_error(self) -> float | None:
        return self._ready.loaded.correction.median_error

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs under way, waiting ones too."""
        return () if self._work is None else tuple(self._work.jobs)

    # -- for people

    def ticket_size(self, prompt: Prompt, max_tokens: int = 128) -> int:
        """Bytes that a job of this prompt is charged: its cache as it will be allocated.

        More than that where finished jobs took more than predicted; see `correction`.

        Raises:
            PromptTooLong, ModelNotLoaded, ValueError: as `generate`.
        """
        return self._ready.ticket_size(prompt, max_tokens)

    def count_tokens(self, prompt: Prompt) -> int:
        """Tokens of a prompt as `generate` would encode it.

        Raises:
            ModelNotLoaded: the model is not there, or is being unloaded.
            ValueError: the prompt is empty.
        """
        return len(self._ready.loaded.encode(prompt))

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
        work = self._ready
        async with open_bare_nursery() as nursery:
            job = work.add_job(prompt, max_tokens, sampling, wired_memory_ticket, priority)
            nursery.start_soon(work.run_job, job)
            try:
                yield job
            finally:
                job.cancel()
        job.raise_error()

    async def tune(
        self,
        token_count: int = 2048,
        *,
        prefill_step_size: int | None = None,
        batch_size: int = 1,
        kv_bits: int | None = None,
        kv_group_size: int = 64,
        max_kv_size: int | None = None,
        decode_tokens: int = 0,
        remeasure: bool = False,
    ) -> WiredMemoryMeasurement:
        """Measure weights, cache and workspace by really running a prefill.

        It holds a ticket for its caches while it runs, as a job does, and may wait for it. Jobs
        under way wait for the device meanwhile. What the engine has kept is answered at once.

        Args:
            token_count: tokens of each row's prompt.
            prefill_step_size: prompt tokens in one step at most; None is the model's own.
            batch_size, kv_bits, kv_group_size, max_kv_size, decode_tokens: see `TuneParameters`.
            remeasure: run it though the engine has kept the same measurement.

        Raises:
            ValueError: an argument is out of its range.
            PromptTooLong: prompt and decoded tokens go beyond the context.
            ModelNotLoaded: the model is being unloaded, or was before it had ended.
            And what `WiredMemoryTicket.start` raises.
        """
        work = self._ready
        if prefill_step_size is None:
            prefill_step_size = self._prefill_step_size
        assert prefill_step_size is not None
        parameters = TuneParameters(
            token_count=token_count,
            prefill_step_size=prefill_step_size,
            batch_size=batch_size,
            kv_bits=kv_bits,
            kv_group_size=kv_group_size,
            max_kv_size=max_kv_size,
            decode_tokens=decode_tokens,
        )
        return await work.measure(parameters, remeasure=remeasure)

    @property
    def _ready(self) -> Work:
        if self._loaded is None or self._work is None:
            raise ModelNotLoaded(f"model {self.name!r} is not loaded: load it first")
        if self._leaving.is_set():
            raise ModelNotLoaded(f"model {self.name!r} is being unloaded: it takes no more jobs")
        return self._work

    # -- for the runtime

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
        self._loaded, self._prefill_step_size = loaded, plan.options.prefill_step_size
        self._work = work = Work(
            self.name,
            loaded,
            self._policy,
            self._manager,
            self._residence.reservations,
            plan.workspace_bytes,
            self._new_id,
            self._note,
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
            self._loaded = None

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
