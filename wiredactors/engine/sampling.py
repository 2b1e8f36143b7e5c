"""mlx-lm's samplers and logits processors from our parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.scheduling.requests import SamplingParameters

Sampler = Callable[[Any], Any]


def make_sampler(parameters: SamplingParameters) -> Sampler | None:
    """The sampler for log-probabilities of shape [rows, vocabulary]; None is greedy.

    None rather than a function for greedy rows, so that the batch sees that they sample alike.
    """
    return None if parameters.temperature == 0 else _Sampler(parameters)


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


class _Sampler:
    """The choices of one row, as mlx-lm's sampler makes them after `mx.random.seed(seed)`.

    mlx-lm's draw from MLX's global state, which every row of every model advances. So a row with a
    seed has a key of its own.
    """

    def __init__(self, parameters: SamplingParameters):
        self._parameters = parameters
        self._functions = import_mlx_lm("sample_utils")
        self._random = import_mlx().random
        seed = parameters.seed
        # A key is made of one 64-bit number; any integer is welcome as a seed.
        self._key = None if seed is None else self._random.key(seed % 2**64)

    def __call__(self, logprobs: Any) -> Any:
        parameters = self._parameters
        if 0 < parameters.top_p < 1:
            logprobs = self._functions.apply_top_p(logprobs, parameters.top_p)
        if parameters.min_p > 0:
            logprobs = self._functions.apply_min_p(logprobs, parameters.min_p)
        if 0 < parameters.top_k < logprobs.shape[-1]:
            logprobs = self._functions.apply_top_k(logprobs, parameters.top_k)
        if self._key is None:
            return self._functions.categorical_sampling(logprobs, parameters.temperature)
        self._key, key = self._random.split(self._key)
        return self._random.categorical(logprobs * (1 / parameters.temperature), key=key)
