"""What a job asks of an engine, and what comes back: plain values, shared by both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

#: A prompt: text, or chat messages ({"role": ..., "content": ...}).
Prompt = str | Sequence[Mapping[str, Any]]


def _positive(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{attribute.name} must be an integer from 1, not {value!r}")


def _not_negative(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{attribute.name} must be a number from 0, not {value!r}")


def _count(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{attribute.name} must be an integer from 0, not {value!r}")


def _share(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} must lie between 0 and 1, not {value!r}")


def _optional_seed(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"{attribute.name} must be an integer or None, not {value!r}")


def _stops(value: str | Sequence[str]) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"stop must be texts of at least one character, not {value!r}")
    return texts


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
    """

    temperature: float = attrs.field(default=0.0, validator=_not_negative)
    top_p: float = attrs.field(default=1.0, validator=_share)
    top_k: int = attrs.field(default=0, validator=_count)
    min_p: float = attrs.field(default=0.0, validator=_share)
    seed: int | None = attrs.field(default=None, validator=_optional_seed)
    stop: tuple[str, ...] = attrs.field(default=(), converter=_stops)
    repetition_penalty: float = attrs.field(default=0.0, validator=_not_negative)
    repetition_context_size: int = attrs.field(default=20, validator=_positive)


@attrs.frozen(kw_only=True)
class RowRequest:
    """One sequence for a model's batch.

    Attributes:
        row_id: the job's name; unique in the engine.
        prompt: token ids, at least one.
        max_tokens: tokens to generate at most, at least 1.
        sampling: how tokens are chosen.
    """

    row_id: str
    prompt: tuple[int, ...]
    max_tokens: int = attrs.field(validator=_positive)
    sampling: SamplingParameters

    @property
    def total_tokens(self) -> int:
        """The longest that the sequence can become."""
        return len(self.prompt) + self.max_tokens

    def shortened(self, room: int) -> RowRequest:
        """The same with `max_tokens` cut to `room`."""
        return attrs.evolve(self, max_tokens=min(self.max_tokens, room))


@attrs.frozen(kw_only=True)
class RowOutput:
    """What one step brought for one row.

    Attributes:
        row_id: whose it is.
        text: the text that became certain; "" while a character is incomplete.
        token: the token; None for text that is flushed after the last one, and for an error.
        finish_reason: "stop" or "length" with the last output, else None.
        kv_bytes: with the last output, the row's share of the cache that was allocated.
        error: why the row failed, with its last output.
    """

    row_id: str
    text: str = ""
    token: int | None = None
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
        what: "step", "load" or "tune".
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
            caches grow in whole steps. None is the device's own (64 on CPU, else 512).
        max_batch_size: rows that share one decode step.
        margin_bytes: the safety margin that is held for the model; None is the plan's default.
    """

    dtype: str | None = attrs.field(
        default=None,
        validator=attrs.validators.in_((None, "float32", "float16", "bfloat16")),
    )
    dequantize: bool = False
    prefill_step_size: int | None = attrs.field(default=None)
    max_batch_size: int = attrs.field(default=32, validator=_positive)
    margin_bytes: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(_count)
    )

    @prefill_step_size.validator
    def _whole_steps(self, attribute: attrs.Attribute[Any], value: int | None) -> None:
        if value is None:
            return
        _positive(self, attribute, value)
        if 256 % value and value % 256:
            raise ValueError(
                f"prefill_step_size must divide 256 or be a multiple of it, not {value}: the "
                "cache grows in steps of 256 tokens"
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
