"""What comes of a job: its chunks while it runs, and its result."""

from __future__ import annotations

import attrs


@attrs.frozen
class Chunk:
    """A piece of the answer.

    Attributes:
        text: the text that became certain with it; "" while a character is incomplete.
        token: its token; None for text that is flushed after the last one.
        logprob: the token's log-probability, where `logprobs` was asked for.
        top_logprobs: the likeliest tokens and their log-probabilities, likeliest first.
    """

    text: str
    token: int | None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@attrs.frozen(kw_only=True)
class GenerationResult:
    """What became of a job. Times are seconds, sizes bytes.

    Attributes:
        text: the whole answer; the chunks joined.
        tokens: its tokens, without the end-of-sequence token.
        prompt_tokens, generation_tokens: how many there were.
        prompt_tps: prompt tokens per second, from admission to the first token.
        generation_tps: tokens per second after the first.
        finish_reason: "stop", "length", "cancelled" or "error".
        waited: from the call until the ticket was admitted (or until the end, if it never was).
        time_to_first_token: from the call; None if there was none.
        ticket_size: what the ticket held.
        kv_bytes: the row's share of the batch's cache, as padded, at its end: in proportion to
            what the rows were charged; 0 if it never decoded.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    generation_tokens: int
    prompt_tps: float
    generation_tps: float
    finish_reason: str
    waited: float
    time_to_first_token: float | None
    ticket_size: int
    kv_bytes: int
