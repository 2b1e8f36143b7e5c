"""A loaded model, as people use it: what it takes, its jobs, its measurements."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import attrs

from wiredactors.actors.block import block_round
from wiredactors.actors.job import Job
from wiredactors.actors.service import Service
from wiredactors.actors.work import Postponed, Work
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.memory.tickets import WiredMemoryTicket
from wiredactors.scheduling.lifecycle import ModelState
from wiredactors.scheduling.requests import (
    CacheOptions,
    GenerationRequest,
    Prompt,
    SamplingParameters,
)


class Model:
    """A model that jobs run on. Made by `Runtime.add` and `Runtime.load`.

    A request for it waits until it is in memory. What is read off the loaded model (`weight_bytes`,
    `context_length`, `correction`, `prediction_error`, `ticket_size`, `count_tokens`) raises
    `ModelNotLoaded` while it is not ready; `load` makes it so.

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

    def __init__(self, service: Service):
        self.name = service.name
        self._service = service

    def __repr__(self) -> str:
        return f"<Model {self.name}>"

    def is_of(self, service: Service) -> bool:
        """Whether it is this one, and not an older one of the same name."""
        return self._service is service

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
        """The jobs under way, waiting ones too, in the order in which they were started."""
        return self._service.jobs

    # -- its life

    @property
    def state(self) -> ModelState:
        """Where it is in its life: "absent", "queued", "loading", "ready", "draining", "unloading"
        or "failed"."""
        return self._service.state

    @property
    def pinned(self) -> bool:
        """Whether it stays in memory once it is there; see `pin`."""
        return self._service.pinned

    @property
    def keep_alive(self) -> float | None:
        """Seconds after its last use for which it stays at most; None: until others need room."""
        return self._service.keep_alive

    def pin(self) -> None:
        """Do not let it yield, or go by its `keep_alive`, from now on. It need not be there yet.

        What can never fit beside it is refused, also what waits already (`TicketTooLarge`).
        """
        self._service.pin(True)

    def unpin(self) -> None:
        """Let it yield again when others need the room, and go by its `keep_alive`."""
        self._service.pin(False)

    async def load(self) -> None:
        """Load it ahead of its first use; returns when it is ready.

        Raises:
            ModelLoadError, TicketTooLarge: it cannot be loaded, or never fits. The next attempt
                comes after a back-off, from a second to a minute.
            ModelNotLoaded: it was removed, or unloaded where `Runtime.load` had brought it.
            ManagerClosed: the runtime has closed, or closes meanwhile.
        """
        await self._service.ready()

    # -- its jobs

    def ticket_size(
        self,
        prompt: Prompt,
        max_tokens: int = 128,
        *,
        kv_bits: int | None = None,
        kv_group_size: int = 64,
        max_kv_size: int | None = None,
    ) -> int:
        """Bytes that a job of this prompt is charged: its cache as it will be allocated.

        More than that where finished jobs took more than predicted; see `correction`.

        Raises:
            ModelNotLoaded: the model is not in memory, or is about to leave it.
            PromptTooLong, ValueError: as `generate`.
        """
        cache = CacheOptions(kv_bits=kv_bits, kv_group_size=kv_group_size, max_kv_size=max_kv_size)
        request = GenerationRequest(prompt=prompt, max_tokens=max_tokens, cache=cache)
        return self._ready.row("", request).charge.size

    def count_tokens(self, prompt: Prompt) -> int:
        """Tokens of a prompt as `generate` would encode it.

        Raises:
            ModelNotLoaded: the model is not in memory, or is about to leave it.
            ValueError: the prompt is empty.
        """
        return len(self._ready.loaded.encode(prompt))

    def start_generation(
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
        logit_bias: Mapping[int, float] | None = None,
        logits_processors: Iterable[Callable[..., Any]] | None = None,
        sampler: Callable[[Any], Any] | None = None,
        logprobs: bool = False,
        top_logprobs: int = 0,
        kv_bits: int | None = None,
        kv_group_size: int = 64,
        max_kv_size: int | None = None,
    ) -> Job:
        """Start one generation, which runs by itself until it ends or is cancelled.

        It outlives the scope that starts it: `unload` waits for it, and closing the runtime lets
        it go on for `drain_seconds` and then cancels it. It waits here neither for the model, which
        it has loaded where need be, nor for admission: a refusal is raised by the job, as a failure
        is; see `Job`.

        Args:
            prompt: text, or chat messages ({"role": ..., "content": ...}).
            max_tokens: tokens to generate at most; cut to what the context leaves.
            wired_memory_ticket: a ticket of your own, which the job starts and ends; left out,
                the job sizes one itself. One smaller than that is honoured, and an event says by
                how much.
            priority: larger goes first among the tickets that wait.
            temperature, top_p, top_k, min_p, seed, stop, repetition_penalty,
                repetition_context_size, logit_bias, logits_processors, sampler, logprobs,
                top_logprobs: see `SamplingParameters`. Functions run on the device thread.
            kv_bits, kv_group_size, max_kv_size: see `CacheOptions`.

        Raises:
            ValueError: an argument is out of its range, the prompt is empty, or the model's own
                cache cannot be kept so.
            PromptTooLong: the prompt alone fills the context.
            ModelNotLoaded: it was removed, or unloaded where `Runtime.load` had brought it.
            ManagerClosed: the runtime has closed.
            And from the job: what `WiredMemoryTicket.start` raises, GenerationError; where the
            model was not ready at the call, what `load` raises, and of the above what is wrong with
            the prompt or the cache.
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
            logit_bias=logit_bias,
            logits_processors=logits_processors,
            sampler=sampler,
            logprobs=logprobs,
            top_logprobs=top_logprobs,
        )
        cache = CacheOptions(kv_bits=kv_bits, kv_group_size=kv_group_size, max_kv_size=max_kv_size)
        request = GenerationRequest(
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            cache=cache,
            priority=priority,
        )
        return self._service.start_job(request, wired_memory_ticket)

    @block_round(start_generation)
    async def generate(self, *arguments: Any, **options: Any) -> AsyncIterator[Job]:
        """Run one generation in a block; iterate over the job for its chunks.

        It takes the arguments of `start_generation`, and raises the same at entering.

        Entering does not wait for admission: a refusal or a failure is raised at the first read,
        or at leaving if nothing was read. Leaving before the end cancels the job, and returns
        when its memory is back and its ticket has ended; `job.result` is set by then.
        """
        async with self.start_generation(*arguments, **options) as job:
            yield job

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

        It loads the model where need be. It holds a ticket for its caches while it runs, as a job
        does, and may wait for it. Jobs under way wait for the device meanwhile. What the engine has
        kept is answered at once.

        Args:
            token_count: tokens of each row's prompt.
            prefill_step_size: prompt tokens in one step at most; None is the model's own.
            batch_size, kv_bits, kv_group_size, max_kv_size, decode_tokens: see `TuneParameters`.
            remeasure: run it though the engine has kept the same measurement.

        Raises:
            ValueError: an argument is out of its range.
            PromptTooLong: prompt and decoded tokens go beyond the context.
            ModelNotLoaded: the runtime closed before it had ended.
            And what `load` and `WiredMemoryTicket.start` raise.
        """
        parameters = TuneParameters(  # checked before anything is loaded for them
            token_count=token_count,
            prefill_step_size=1 if prefill_step_size is None else prefill_step_size,
            batch_size=batch_size,
            kv_bits=kv_bits,
            kv_group_size=kv_group_size,
            max_kv_size=max_kv_size,
            decode_tokens=decode_tokens,
        )
        while True:
            work = await self._service.ready()
            if prefill_step_size is None:
                parameters = attrs.evolve(parameters, prefill_step_size=work.prefill_step_size)
            with contextlib.suppress(Postponed):
                return await work.measure(parameters, remeasure=remeasure)

    @property
    def _ready(self) -> Work:
        return self._service.work
