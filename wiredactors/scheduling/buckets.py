"""Rows of like length share a batch, so that padding stays inside what each was charged.

A batch is a rectangle: each row holds as much as the longest. So rows are grouped by the longest
that they can become, in steps of 256 tokens, mlx-lm's unit of cache growth. Every row of a bucket
is charged the whole bucket, and a batch of a bucket never needs more than rows x bucket, as long
as its cache grows in whole steps; the engine cuts it back to whole steps whenever rows leave.
"""

from __future__ import annotations

import attrs

#: mlx-lm's caches grow by this many tokens.
STEP_TOKENS = 256


def bucket_tokens(total_tokens: int) -> int:
    """The bucket of a row: its greatest length, rounded up to whole steps."""
    return -(-total_tokens // STEP_TOKENS) * STEP_TOKENS


@attrs.frozen(kw_only=True)
class CacheCost:
    """What one row's cache takes, as measured on the loaded model. Sizes are bytes.

    Attributes:
        fixed_bytes: whatever the length (a state-space layer's state).
        step_bytes: for each 256 tokens.
        copy_bytes: for each 256 tokens in the layer that holds most: when rows join or leave, one
            layer of the batch at a time is copied.
        grows_whole: the cache can be cut back to whole steps. One that cannot (a rotating one)
            may outgrow its longest row by up to a step.
    """

    fixed_bytes: int
    step_bytes: int
    copy_bytes: int
    grows_whole: bool

    def row_bytes(self, total_tokens: int) -> int:
        """What a row that can become `total_tokens` long is charged."""
        steps = bucket_tokens(total_tokens) // STEP_TOKENS
        if not self.grows_whole:
            steps += 1
        return self.fixed_bytes + steps * (self.step_bytes + self.copy_bytes)
