"""mlx-lm's samplers and logits processors from our parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.scheduling.requests import SamplingParameters

Sampler = Callable[[Any], Any]


def make_sampler(parameters: SamplingParameters, vocabulary: int) -> Sampler | None:
    """The sampler for log-probabilities of shape [rows, `vocabulary`]; None is greedy.

    None rather than a function for greedy rows, so that the batch sees that they sample alike.
    """
    if parameters.temperature == 0:
        return None
    sampler: Sampler = import_mlx_lm("sample_utils").make_sampler(
        temp=parameters.temperature,
        top_p=parameters.top_p,
        top_k=parameters.top_k if parameters.top_k < vocabulary else 0,  # all of them
        min_p=parameters.min_p,
    )
    return sampler if parameters.seed is None else _Seeded(sampler, parameters.seed)


def make_logits_processors(parameters: SamplingParameters) -> list[Callable[[Any, Any], Any]]:
    """The processors that the parameters ask for."""
    penalty = parameters.repetition_penalty
    if penalty in (0, 1):
        return []
    made: list[Callable[[Any, Any], Any]] = import_mlx_lm("sample_utils").make_logits_processors(
        repetition_penalty=penalty,
        repetition_context_size=parameters.repetition_context_size,
    )
    return made


class _Seeded:
    """A sampler with a random state of its own.

    mlx-lm's samplers draw from MLX's global state, which every row of every model would advance:
    the row's own state stands in for it during the call.
    """

    def __init__(self, sampler: Sampler, seed: int):
        self._sampler = sampler
        self._random = import_mlx().random
        # A key is two 32-bit words made of one 64-bit number; any integer is welcome as a seed.
        self._key = self._random.key(seed % 2**64)

    def __call__(self, logprobs: Any) -> Any:
        state = self._random.state
        others = state[0]
        state[0] = self._key
        try:
            return self._sampler(logprobs)
        finally:
            self._key = state[0]
            state[0] = others
