"""What a row takes: it is charged for the longest that it can become, in whole steps.

A step is 256 tokens, mlx-lm's unit of cache growth. A batch is a rectangle: each row holds as much
as the longest. Rows of any lengths may share one while it takes no more than all of them were
charged (`wiredactors/scheduling/grouping.py`); the engine cuts it back to whole steps whenever rows
join or leave.
"""

from __future__ import annotations

import attrs

#: mlx-lm's caches grow by this many tokens.
STEP_TOKENS = 256


def bucket_tokens(total_tokens: int) -> int:
    """A row's length, rounded up to whole steps."""
    return -(-total_tokens // STEP_TOKENS) * STEP_TOKENS


def grown_tokens(prompt_tokens: int, max_tokens: int, prefill_step_size: int) -> int:
    """Tokens for which mlx-lm's plain cache has allocated room when a row of its own ends.

    A cache that is full grows by whole steps, but from wherever it was: chunks of 300 tokens give
    512, 812, 1112 (`KVCache.update_and_fetch` in mlx-lm 0.32.2). Decoding adds a token at a time.
    """
    offset = room = 0
    chunks = [prefill_step_size] * (prompt_tokens // prefill_step_size)
    chunks.append(prompt_tokens % prefill_step_size)
    for chunk in chunks:
        if offset + chunk > room:
            room = (room if offset % STEP_TOKENS == 0 else offset) + bucket_tokens(chunk)
        offset += chunk
    total = prompt_tokens + max_tokens
    while total > room:  # full: one more token adds a step
        room += STEP_TOKENS
    return room


@attrs.frozen(kw_only=True)
class WindowCost:
    """What sliding-window layers of one window size take.

    Attributes:
        most_tokens: a cache of theirs never holds more.
        token_bytes: for each token, in all these layers.
        copy_bytes: for each token, in the layer of these that holds most.
    """

    most_tokens: int
    token_bytes: int
    copy_bytes: int


@attrs.frozen(kw_only=True)
class CacheCost:
    """What one row takes, as measured on the loaded model. Sizes are bytes.

    Attributes:
        fixed_bytes: whatever the length (a state-space layer's state, the row's logits and
            log-probabilities, and what a quantized cache holds for a moment).
        step_bytes: for each 256 tokens.
        copy_bytes: for each 256 tokens in the layer that holds most: when rows join or leave, one
            layer of the batch at a time is copied.
        windows: sliding-window layers. Their caches grow by 256 tokens from wherever the prompt
            ended, so that they may outgrow the row's whole steps by one.
    """

    fixed_bytes: int
    step_bytes: int
    copy_bytes: int
    windows: tuple[WindowCost, ...] = ()

    def row_bytes(self, total_tokens: int) -> int:
        """What a row that can become `total_tokens` long is charged."""
        bucket = bucket_tokens(total_tokens)
        steps = bucket // STEP_TOKENS
        size = self.fixed_bytes + steps * self.step_bytes
        copy = steps * self.copy_bytes
        for window in self.windows:
            tokens = min(bucket + STEP_TOKENS, window.most_tokens)
            size += tokens * window.token_bytes
            copy = max(copy, tokens * window.copy_bytes)
        return size + copy

    def __add__(self, other: CacheCost) -> CacheCost:
        """The cost of a row in two models at once, as with a draft model."""
        return CacheCost(
            fixed_bytes=self.fixed_bytes + other.fixed_bytes,
            step_bytes=self.step_bytes + other.step_bytes,
            copy_bytes=max(self.copy_bytes, other.copy_bytes),
            windows=self.windows + other.windows,
        )
