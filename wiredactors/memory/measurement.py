"""What a model takes: weights, cache and workspace, measured by running it or predicted before.

The three stay separate all the way to the tickets: weights and caches add up over models and jobs,
workspace is transient and one step's at a time, so it is held once.
"""

from __future__ import annotations

from typing import Any

import attrs

from wiredactors.memory.cache_cost import CacheCost, grown_tokens
from wiredactors.memory.policies import WiredBudgetPolicy
from wiredactors.memory.units import MIB

#: The safety margin, unless one is given: at least this much, ...
MARGIN_BYTES = 16 * MIB
#: ... or one part in so many of weights, cache and workspace.
MARGIN_PART = 50


def default_margin(total_bytes: int) -> int:
    """The safety margin of a model that takes `total_bytes` in all: 2 %, and at least 16 MiB.

    It is held once for each model, in a budget policy's base or in the workspace reservation,
    and never for each job.
    """
    return max(MARGIN_BYTES, total_bytes // MARGIN_PART)


@attrs.frozen(kw_only=True)
class TuneParameters:
    """How a prefill is run, or thought to be run. Checked when it is made.

    Attributes:
        token_count: tokens of each row's prompt.
        prefill_step_size: prompt tokens in one step at most; the rest is the last step.
        batch_size: rows side by side.
        kv_bits: bits of a quantized cache (2, 3, 4, 5, 6 or 8); None leaves it as it is.
        kv_group_size: numbers that share a scale in a quantized cache.
        max_kv_size: bound of a rotating cache, for models that leave the choice to mlx-lm.
        decode_tokens: tokens that are generated after the prompt; 0 measures the prefill alone.

    Raises:
        ValueError: a number is out of its range.
    """

    token_count: int = 2048
    prefill_step_size: int = 512
    batch_size: int = 1
    kv_bits: int | None = None
    kv_group_size: int = 64
    max_kv_size: int | None = None
    decode_tokens: int = 0

    def __attrs_post_init__(self) -> None:
        for name in ("token_count", "prefill_step_size", "batch_size", "kv_group_size"):
            _check_count(name, getattr(self, name), 1)
        _check_count("decode_tokens", self.decode_tokens, 0)
        if self.max_kv_size is not None:
            _check_count("max_kv_size", self.max_kv_size, 1)
        if self.kv_bits is not None and self.kv_bits not in (2, 3, 4, 5, 6, 8):
            raise ValueError(
                f"kv_bits must be 2, 3, 4, 5, 6 or 8, or None for a plain cache, not "
                f"{self.kv_bits!r}"
            )


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer from {least}, not {value!r}")


@attrs.frozen(kw_only=True)
class WiredMemoryMeasurement:
    """Weights, cache and workspace of a model. Sizes are bytes.

    Made by `tune`, which runs the model, or by `estimate`, which loads nothing.

    Attributes:
        weight_bytes: the weights.
        kv_bytes: the cache of all rows after exactly `token_count` tokens each (and
            `decode_tokens` more), as allocated: what MLX's active memory grows by.
        workspace_bytes: what the largest step held for a moment, beyond weights and cache.
        peak_active_bytes: weights, cache and workspace at the worst moment. For a measurement it
            is MLX's own peak, less what others held.
        token_count, prefill_step_size, batch_size, kv_bits, max_kv_size, decode_tokens: what was
            run; see `TuneParameters`.
        cache_cost: what any other row takes.
        measured: whether the model was really run.
        approximate: why the numbers are not exact, in words; None where they are meant to be.
        stored: whether it was measured earlier and kept. It plays no part in comparisons.
    """

    weight_bytes: int
    kv_bytes: int
    workspace_bytes: int
    peak_active_bytes: int
    token_count: int
    prefill_step_size: int
    cache_cost: CacheCost
    batch_size: int = 1
    kv_bits: int | None = None
    max_kv_size: int | None = None
    decode_tokens: int = 0
    measured: bool = False
    approximate: str | None = None
    stored: bool = attrs.field(default=False, eq=False)

    @property
    def total_bytes(self) -> int:
        """Weights, cache and workspace together, without a margin."""
        return self.weight_bytes + self.kv_bytes + self.workspace_bytes

    @property
    def margin_bytes(self) -> int:
        """The default safety margin: max(16 MiB, 2 % of the total)."""
        return default_margin(self.total_bytes)

    def ticket_size(self, prompt_tokens: int, max_tokens: int) -> int:
        """Bytes that one generation's ticket should hold: its cache as it will be allocated.

        mlx-lm's caches grow in steps of 256 tokens from wherever the prompt's last chunk ended,
        so a prefill step that neither divides 256 nor is a multiple of it outgrows whole steps;
        that is counted. Weights, workspace and margin are not in it: see `budget_policy`.

        Raises:
            ValueError: a number is out of its range.
        """
        _check_count("prompt_tokens", prompt_tokens, 1)
        _check_count("max_tokens", max_tokens, 0)
        tokens = grown_tokens(prompt_tokens, max_tokens, self.prefill_step_size)
        return self.cache_cost.row_bytes(tokens)

    def budget_policy(
        self, margin: int | None = None, cap: int | None = None, id: Any = None
    ) -> WiredBudgetPolicy:
        """A policy whose base holds weights, workspace and the margin, for tickets of jobs.

        For people with tickets alone. In the runtime weights and workspace are reservations
        already, and a base that repeated them would count them twice.

        Args:
            margin: bytes added for safety; None is `margin_bytes`.
            cap, id: as in `WiredBudgetPolicy`.

        Raises:
            ValueError: the margin is negative.
        """
        margin = self.margin_bytes if margin is None else margin
        _check_count("margin", margin, 0)
        return WiredBudgetPolicy(
            base_bytes=self.weight_bytes + self.workspace_bytes + margin, cap=cap, id=id
        )
