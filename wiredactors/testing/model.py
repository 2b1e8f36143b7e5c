"""The models that a modelled engine can load: numbers instead of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from wiredactors.memory.cache_cost import (
    STEP_TOKENS,
    CacheCost,
    WindowCost,
    bucket_tokens,
    grown_tokens,
)
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.memory.units import KIB, MIB
from wiredactors.scheduling.requests import CacheOptions, Prompt

_LETTERS = 26


@attrs.frozen(kw_only=True)
class ModelledModel:
    """What a source stands for. Sizes are bytes, times seconds.

    A prompt has one token for each of its bytes. The answer is a letter a token, and depends on
    nothing but the prompt.

    Attributes:
        weight_bytes: the weights, as planned.
        peak_bytes: at the peak of the load; None is the weights alone.
        loaded_bytes: the weights as they turn out to be; None is as planned.
        workspace_bytes: transient memory of a step.
        margin_bytes: the safety margin of a load that gives none.
        kv_bytes_per_token: a row's cache, allocated in steps of 256 tokens.
        unpredicted_bytes: what each row's cache takes besides, and no prediction knows of.
        context_length: tokens of prompt and answer together.
        load_seconds: how long a load takes.
        load_error: what a load raises, at its end.
        load_errors: the same for the first loads of a source, one entry each, None for one that
            succeeds: `(error, None)` fails once. Later loads go by `load_error`.
        plan_error: what asking for the plan of a load raises.
        unload_seconds: how long the device takes to let the weights go.
        leftover_bytes: what does not come back when it is unloaded.
        prefill_tokens_per_second: how fast prompts are read.
        prefill_step_size: prompt tokens in one step.
        step_seconds: one step of a batch, however many rows it has.
        answer_tokens: after so many tokens an answer stops by itself; None: at `max_tokens` only.
        flushed_text: text that comes after the last token.
    """

    weight_bytes: int = 100 * MIB
    peak_bytes: int | None = None
    loaded_bytes: int | None = None
    workspace_bytes: int = 10 * MIB
    margin_bytes: int = 0
    kv_bytes_per_token: int = 4 * KIB
    unpredicted_bytes: int = 0
    context_length: int = 4096
    load_seconds: float = 1.0
    load_error: Exception | None = None
    load_errors: tuple[Exception | None, ...] = ()
    plan_error: Exception | None = None
    unload_seconds: float = 0.0
    leftover_bytes: int = 0
    prefill_tokens_per_second: float = 1000.0
    prefill_step_size: int = 256
    step_seconds: float = 0.05
    answer_tokens: int | None = None
    flushed_text: str = ""

    @property
    def weights_in_memory(self) -> int:
        return self.weight_bytes if self.loaded_bytes is None else self.loaded_bytes

    @property
    def load_peak(self) -> int:
        return self.weight_bytes if self.peak_bytes is None else self.peak_bytes

    @property
    def cache_cost(self) -> CacheCost:
        return self.row_cost(CacheOptions())

    def row_cost(self, options: CacheOptions) -> CacheCost:
        """What a row is charged whose cache is kept so."""
        token_bytes = self._token_bytes(options)
        if options.max_kv_size is None:
            step_bytes = STEP_TOKENS * token_bytes
            return CacheCost(fixed_bytes=0, step_bytes=step_bytes, copy_bytes=0)
        window = WindowCost(most_tokens=options.max_kv_size, token_bytes=token_bytes, copy_bytes=0)
        return CacheCost(fixed_bytes=0, step_bytes=0, copy_bytes=0, windows=(window,))

    def cache_bytes(self, tokens: int, options: CacheOptions) -> int:
        """What the cache of a row of so many tokens really takes."""
        if not tokens:
            return 0
        room = bucket_tokens(tokens)
        if options.max_kv_size is not None:
            room = min(room, options.max_kv_size)
        return room * self._token_bytes(options) + self.unpredicted_bytes

    def _token_bytes(self, options: CacheOptions) -> int:
        """Quantized numbers take their bits, of 16; what they share is not modelled."""
        bits = 16 if options.kv_bits is None else options.kv_bits
        return -(-self.kv_bytes_per_token * bits // 16)

    def measured_steps(self, parameters: TuneParameters) -> Iterator[float]:
        """How long each step of a measurement takes."""
        rest, rows = parameters.token_count, parameters.batch_size
        while rest > 0:
            yield min(parameters.prefill_step_size, rest) * rows / self.prefill_tokens_per_second
            rest -= parameters.prefill_step_size
        for _ in range(parameters.decode_tokens):
            yield self.step_seconds

    def prediction(self, parameters: TuneParameters) -> WiredMemoryMeasurement:
        """What a measurement is expected to find; quantized and rotating caches are not modelled.

        The workspace is that of the model for a step as long as its own, and grows with the step.
        """
        room = grown_tokens(
            parameters.token_count, parameters.decode_tokens, parameters.prefill_step_size
        )
        kv_bytes = parameters.batch_size * room * self.kv_bytes_per_token
        step = parameters.batch_size * min(parameters.prefill_step_size, parameters.token_count)
        workspace = self.workspace_bytes * step // self.prefill_step_size
        return WiredMemoryMeasurement(
            weight_bytes=self.weights_in_memory,
            kv_bytes=kv_bytes,
            workspace_bytes=workspace,
            peak_active_bytes=self.weights_in_memory + kv_bytes + workspace,
            token_count=parameters.token_count,
            prefill_step_size=parameters.prefill_step_size,
            cache_cost=self.cache_cost,
            batch_size=parameters.batch_size,
            kv_bits=parameters.kv_bits,
            max_kv_size=parameters.max_kv_size,
            decode_tokens=parameters.decode_tokens,
        )

    def measurement(self, parameters: TuneParameters) -> WiredMemoryMeasurement:
        """What a measurement finds: the prediction, and `unpredicted_bytes` for each row."""
        predicted = self.prediction(parameters)
        more = parameters.batch_size * self.unpredicted_bytes
        return attrs.evolve(
            predicted,
            kv_bytes=predicted.kv_bytes + more,
            peak_active_bytes=predicted.peak_active_bytes + more,
            measured=True,
        )

    def encode(self, prompt: Prompt) -> list[int]:
        """One token for each byte; of messages, for each byte of `role: content` lines.

        Raises:
            ValueError: it is empty.
        """
        if not isinstance(prompt, str):
            prompt = "".join(f"{message['role']}: {message['content']}\n" for message in prompt)
        if not prompt:
            raise ValueError("the prompt is empty")
        return list(prompt.encode())

    def token(self, prompt: Sequence[int], number: int) -> int:
        """The token number `number` (from 0) of the answer."""
        return ord("a") + (sum(prompt) + number) % _LETTERS

    def answer(self, prompt: Prompt, max_tokens: int) -> str:
        """The whole answer that a job of this prompt will give."""
        tokens = self.encode(prompt)
        count = max_tokens if self.answer_tokens is None else min(max_tokens, self.answer_tokens)
        return "".join(chr(self.token(tokens, n)) for n in range(count)) + self.flushed_text
