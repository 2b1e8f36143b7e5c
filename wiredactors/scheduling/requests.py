"""What a job asks of an engine, and what comes back: plain values, shared by both sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from wiredactors.scheduling import checks

#: A prompt: text, or chat messages ({"role": ..., "content": ...}).
Prompt = str | Sequence[Mapping[str, Any]]

#: Tokens at the start of a prompt that mlx-lm's rotating caches never drop.
KEPT_FIRST = 4


@attrs.frozen(kw_only=True)
class SamplingParameters:
    """How tokens are chosen; the names are those of mlx-lm's server.

    Attributes:
        temperature: 0 takes the likeliest token (greedy).
        top_p: the likeliest tokens whose probabilities sum to this much; 1 and 0 are off.
        top_k: at most so many tokens; 0 is off.
        min_p: tokens at least this share as likely as the likeliest; 0 is off.
        seed: the same seed gives the same choice, whoever shares the batch; None is random.
        stop: texts that end the answer; they are not part of it.
        repetition_penalty: divides the score of recent tokens; 1 and 0 are off.
        repetition_context_size: how many tokens are recent.
        logit_bias: what is added to the scores of these tokens, by their ids; minus infinity
            forbids one.
        logits_processors: functions `(tokens, logits)` of MLX arrays, in the form of mlx-lm's: the
            tokens so far and scores of shape [1, vocabulary]; each returns the scores anew.
        sampler: a function of log-probabilities [1, vocabulary] that returns the token, in the form
            of mlx-lm's; it takes the place of the parameters from temperature to seed.
        logprobs: whether each chunk tells the log-probability of its token.
        top_logprobs: so many of the likeliest tokens are told with their log-probabilities.
    """

    temperature: float = attrs.field(default=0.0, validator=checks.not_negative)
    top_p: float = attrs.field(default=1.0, validator=checks.share)
    top_k: int = attrs.field(default=0, validator=checks.count)
    min_p: float = attrs.field(default=0.0, validator=checks.share)
    seed: int | None = attrs.field(default=None, validator=checks.optional_seed)
    stop: tuple[str, ...] = attrs.field(default=(), converter=checks.stops)
    repetition_penalty: float = attrs.field(default=0.0, validator=checks.not_negative)
    repetition_context_size: int = attrs.field(default=20, validator=checks.positive)
    logit_bias: tuple[tuple[int, float], ...] = attrs.field(default=(), converter=checks.bias)
    logits_processors: tuple[Callable[..., Any], ...] = attrs.field(
        default=(), converter=checks.functions
    )
    sampler: Callable[[Any], Any] | None = attrs.field(
        default=None, validator=checks.optional_function
    )
    logprobs: bool = attrs.field(default=False, validator=checks.flag)
    top_logprobs: int = attrs.field(default=0, validator=checks.count)


@attrs.frozen(kw_only=True)
class CacheOptions:
    """How a row's cache is kept; the names are those of mlx-lm. Such a row has steps of its own.

    Attributes:
        kv_bits: bits of each quantized number; None keeps them whole.
        kv_group_size: numbers that share a scale.
        max_kv_size: tokens that are kept at most, the first four and the latest; None keeps all.
            mlx-lm quantizes no such cache.
    """

    kv_bits: int | None = attrs.field(default=None, validator=checks.one_of(None, 2, 3, 4, 5, 6, 8))
    kv_group_size: int = attrs.field(default=64, validator=checks.one_of(32, 64, 128))
    max_kv_size: int | None = attrs.field(default=None)

    @max_kv_size.validator
    def _room_for_new_tokens(self, attribute: attrs.Attribute[Any], value: int | None) -> None:
        if value is None:
            return
        checks.positive(self, attribute, value)
        if value <= KEPT_FIRST:
            raise ValueError(
                f"max_kv_size must be above {KEPT_FIRST}, not {value}: so many of the first tokens "
                "are kept, and nothing new would be"
            )
        if self.kv_bits is not None:
            raise ValueError(
                "kv_bits and max_kv_size do not go together: mlx-lm cannot quantize a cache that "
                "drops tokens"
            )

    @property
    def plain(self) -> bool:
        """Whether it is kept as the model's own."""
        return self.kv_bits is None and self.max_kv_size is None


@attrs.frozen(kw_only=True)
class GenerationRequest:
    """What a job asks of a model, whether that is loaded or not.

    Attributes:
        prompt: text, or chat messages.
        max_tokens: tokens to generate at most, at least 1.
        sampling: how tokens are chosen.
        cache: how its cache is kept, where not as the model's own.
        priority: larger goes first among those that wait.
    """

    prompt: Prompt
    max_tokens: int = attrs.field(default=128, validator=checks.positive)
    sampling: SamplingParameters = SamplingParameters()
    cache: CacheOptions = CacheOptions()
    priority: int = 0


@attrs.frozen(kw_only=True)
class RowRequest:
    """One sequence for a model's batch.

    Attributes:
        row_id: the job's name; unique in the engine.
        prompt: token ids, at least one.
        max_tokens: tokens to generate at most, at least 1.
        sampling: how tokens are chosen.
        cache: how its cache is kept, where not as the model's own.
    """

    row_id: str
    prompt: tuple[int, ...]
    max_tokens: int = attrs.field(validator=checks.positive)
    sampling: SamplingParameters
    cache: CacheOptions = CacheOptions()

    @property
    def total_tokens(self) -> int:
        """The longest that the sequence can become."""
        return len(self.prompt) + self.max_tokens


@attrs.frozen(kw_only=True)
class RowOutput:
    """What one step brought for one row.

    Attributes:
        row_id: whose it is.
        text: the text that became certain; "" while a character is incomplete.
        token: the token; None for text that is flushed after the last one, and for an error.
        logprob: the token's log-probability, for rows that asked for it.
        top_logprobs: the likeliest tokens and their log-probabilities, likeliest first.
        finish_reason: "stop" or "length" with the last output, else None.
        kv_bytes: with the last output, the row's share of the cache that was allocated.
        error: why the row failed, with its last output.
    """

    row_id: str
    text: str = ""
    token: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: str | None = None
    kv_bytes: int = 0
    error: Exception | None = None

    @property
    def last(self) -> bool:
        return self.finish_reason is not None or self.error is not None


@attrs.frozen(kw_only=True)
class StepReport:
    """One piece of work of the device thread. Bytes are MLX's active memory.

    Attributes:
        model: whose step it was.
        what: "step" (of rows that decode), "prefill" (of a prompt), "load" or "tune".
        rows: sequences that got a token.
        seconds: how long it took.
        active_bytes, peak_bytes: after it, and at its peak.
        granted_bytes: what the ledger had granted when it began.
    """

    model: str
    what: str
    rows: int
    seconds: float
    active_bytes: int
    peak_bytes: int
    granted_bytes: int


@attrs.frozen(kw_only=True)
class LoadOptions:
    """How a model is loaded.

    Attributes:
        dtype: of activations and of unquantized weights; None is the fast one of the device
            (float32 on CPU, where half precision is many times slower; else float16).
            Directories keep their own.
        dequantize: a GGUF's packed weights become dense ones.
        prefill_step_size: prompt tokens per step; it divides 256 or is a multiple of it, so that
            caches grow in whole steps. None is the device's own (64 on CPU, 2,048 on CUDA, else
            512).
        max_batch_size: rows that share one decode step.
        weight: the model's share of the device's time, against that of the others.
        margin_bytes: the safety margin that is held for the model; None is the plan's default.
    """

    dtype: str | None = attrs.field(
        default=None,
        validator=attrs.validators.in_((None, "float32", "float16", "bfloat16")),
    )
    dequantize: bool = False
    prefill_step_size: int | None = attrs.field(default=None)
    max_batch_size: int = attrs.field(default=32, validator=checks.positive)
    weight: float = attrs.field(default=1.0, validator=checks.above_zero)
    margin_bytes: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(checks.count)
    )

    @prefill_step_size.validator
    def _whole_steps(self, attribute: attrs.Attribute[Any], value: int | None) -> None:
        if value is None:
            return
        checks.positive(self, attribute, value)
        if 256 % value and value % 256:
            raise ValueError(
                f"prefill_step_size must divide 256 or be a multiple of it, not {value}: the "
                "cache grows in steps of 256 tokens"
            )


@attrs.frozen(kw_only=True)
class StayOptions:
    """How long a model stays in memory once it is there.

    Attributes:
        pinned: for ever; it does not yield to others.
        keep_alive: so many seconds after its last use; None is until others need the room.
    """

    pinned: bool = attrs.field(default=False, validator=checks.flag)
    keep_alive: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(checks.not_negative)
    )


@attrs.frozen(kw_only=True)
class LoadPlan:
    """What a model will take, known before anything is loaded. Sizes are bytes.

    Attributes:
        source: the path that was resolved.
        options: how it will be loaded, with the device's defaults filled in.
        weight_bytes: the weights afterwards.
        peak_bytes: weights and what else is alive at the peak of the load.
        workspace_bytes: transient memory of its largest step, without the margin.
        margin_bytes: the safety margin, held once for the model: the options', where they give
            one.
    """

    source: str
    options: LoadOptions
    weight_bytes: int
    peak_bytes: int
    workspace_bytes: int
    margin_bytes: int = 0
