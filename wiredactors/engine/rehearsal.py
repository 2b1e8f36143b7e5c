"""A prefill thought through as `tuning` runs it, chunk by chunk, whatever the caches are."""

from __future__ import annotations

import contextlib
from typing import Any

import attrs

from wiredactors.engine.blueprint import Blueprint
from wiredactors.engine.cache import is_rotating, parts
from wiredactors.engine.devices import device
from wiredactors.engine.graph import Unrecordable
from wiredactors.engine.imports import import_mlx_lm
from wiredactors.engine.kept import check_packed, quantize_unseen
from wiredactors.engine.sizing import (
    cache_cost,
    guess_from,
    measure_cache,
    rough_workspace,
    thinking_through,
    workspace_at_end,
)
from wiredactors.engine.tracing import Tracer, key_value_parts
from wiredactors.engine.tuning import cache_maker
from wiredactors.engine.unrolled import SHORT, has_states, short_steps, size_at
from wiredactors.memory.cache_cost import STEP_TOKENS, CacheCost, grown_tokens
from wiredactors.memory.errors import ModelLoadError
from wiredactors.memory.measurement import TuneParameters

#: Of a long prompt the first chunk and so many at the end are thought through whole.
_WHOLE_CHUNKS = 2


@attrs.frozen(kw_only=True)
class Found:
    """Bytes of a prefill: the caches at its end, the largest step, the worst moment."""

    kv_bytes: int
    workspace_bytes: int
    peak_bytes: int
    approximate: str | None = None


class Rehearsal:
    """A model's prefill with these parameters, which only `run` thinks through.

    Raises:
        ValueError: the model's cache does not go with `kv_bits` or `max_kv_size`.
    """

    def __init__(self, blueprint: Blueprint, parameters: TuneParameters):
        self._blueprint = blueprint
        self._model = blueprint.model
        self._parameters = parameters
        self._make_cache = cache_maker(self._model, parameters, import_mlx_lm("models.cache"))
        self._tracer = self._new_tracer()
        self._short: list[Tracer] = []

    def run(self) -> Found:
        """Think it through, or guess where MLX cannot record it.

        Raises:
            ValueError: the model cannot use the quantized cache.
            ModelLoadError: something went wrong, or nothing is known of its caches.
        """
        parameters = self._parameters
        whole, rest = divmod(parameters.token_count, parameters.prefill_step_size)
        chunks = [parameters.prefill_step_size] * whole + [rest] * (rest > 0)
        if parameters.kv_bits is not None:
            check_packed(self._model, parameters, self._make_cache)
        try:
            with thinking_through(self._model):
                self._short = short_steps(
                    self._new_tracer, rows=parameters.batch_size, tokens=parameters.token_count
                )
                think = self._extrapolated if self._short else self._thought_through
                found = think(chunks)
        except Unrecordable as error:
            return self._roughly(chunks, error)
        return found

    def row_cost(self) -> CacheCost:
        """What any other row takes; after `run`."""
        parameters = self._parameters
        states = has_states(self._tracer.caches) and self._tracer not in self._short
        if states and parameters.kv_bits is None:
            # A state may be larger after a longer step than the prompt's last one.
            with contextlib.suppress(ModelLoadError):
                return measure_cache(self._model, parameters.prefill_step_size)
        return cache_cost(
            self._tracer,
            rows=parameters.batch_size,
            prefill_step_size=parameters.prefill_step_size,
        )

    def _new_tracer(self) -> Tracer:
        return Tracer(self._model, self._make_cache(), device(), self._quantize)

    def _quantize(self, caches: list[Any]) -> None:
        quantize_unseen(caches, self._parameters)

    def _thought_through(self, chunks: list[int]) -> Found:
        tracer, rows = self._tracer, self._parameters.batch_size
        tracer.step(rows, chunks[0])
        rest = chunks[1:]
        if len(rest) > _WHOLE_CHUNKS and tracer.can_grow:
            # The chunks between change nothing but the length, and later ones take more.
            for chunk in _merged(rest[:-_WHOLE_CHUNKS], tracer):
                tracer.grow(chunk)
                tracer.steps.pop()
            rest = rest[-_WHOLE_CHUNKS:]
        for chunk in rest:
            tracer.step(rows, chunk)
        if self._parameters.decode_tokens:
            self._decode(tracer)
        return _found(tracer)

    def _decode(self, tracer: Tracer) -> None:
        """Then single tokens: those count alone for the workspace."""
        tracer.steps.clear()
        parameters = self._parameters
        room = grown_tokens(parameters.token_count, 0, parameters.prefill_step_size)
        passed = 0
        for done in range(parameters.decode_tokens):
            full = (parameters.token_count + done - room) % STEP_TOKENS == 0
            if tracer.can_grow and 0 < done < parameters.decode_tokens - 1 and not full:
                passed += 1
                continue
            # They have room for these; only a window takes tokens one by one.
            for tokens in [1] * passed if _has_windows(tracer) else [passed] * (passed > 0):
                tracer.grow(tokens)
                tracer.steps.pop()
            passed = 0
            tracer.step(parameters.batch_size, 1, logits=True)

    def _extrapolated(self, chunks: list[int]) -> Found:
        """From steps of few tokens: each more token takes as much as the one before."""
        parameters = self._parameters
        states, views, workspaces = [], [], []
        for tokens, tracer in zip(SHORT, self._short, strict=True):
            keys = sum(tracer.bytes_of(part) for part in key_value_parts(tracer.caches))
            states.append(tracer.cache_bytes - keys)
            # The first keys and values may lie in what they were cut from.
            views.append(keys - self._grown(tracer, [tokens]).cache_bytes)
            workspaces.append(
                workspace_at_end(
                    tracer,
                    rows=parameters.batch_size,
                    tokens=tokens,
                    context=parameters.token_count,
                )
            )
        self._tracer = tracer
        keys = self._grown(tracer, chunks).cache_bytes
        if len(chunks) == 1:
            keys += size_at(chunks[0], views)
        kv_bytes = keys + size_at(chunks[-1], states)
        # A state may keep its whole step's activations alive, so that of the largest step counts.
        peak = keys + size_at(chunks[0], states) + size_at(chunks[0], workspaces)
        return Found(
            kv_bytes=kv_bytes,
            workspace_bytes=peak - kv_bytes,
            peak_bytes=peak,
            approximate=f"it works token by token: its states and its workspace are extrapolated "
            f"from steps of {SHORT[0]} and {SHORT[1]} tokens",
        )

    def _grown(self, shown: Tracer, chunks: list[int]) -> Tracer:
        """Keys and values alone after these chunks, of the kind that another tracer has shown."""
        alone = self._new_tracer()
        alone.fed = shown.fed
        for chunk in chunks:
            alone.grow(chunk)
        return alone

    def _roughly(self, chunks: list[int], error: Unrecordable) -> Found:
        """Where only running it would tell.

        Raises:
            ModelLoadError: nothing is known of its caches.
        """
        parameters = self._parameters
        tracer = guess_from(self._tracer, self._make_cache(), error, self._quantize)
        for chunk in chunks:
            tracer.grow(chunk)
        self._tracer = tracer
        workspace = rough_workspace(
            self._blueprint.config, parameters.batch_size * chunks[0], parameters.token_count
        )
        return Found(
            kv_bytes=tracer.cache_bytes,
            workspace_bytes=workspace,
            peak_bytes=tracer.cache_bytes + workspace,
            approximate=f"{error}, so all layers are taken to be like the first, and the workspace "
            "is a rough guess",
        )


def _merged(chunks: list[int], tracer: Tracer) -> list[int]:
    """The equal chunks that follow a first one, as few as leave caches of the same length.

    Keys and values grow by whole steps from wherever they are. So chunks that end where such a step
    ends are as good as one. The last stays alone: a window keeps it whole, however long it is.
    """
    size = chunks[0]
    if (STEP_TOKENS % size and size % STEP_TOKENS) or (size == 1 and _has_windows(tracer)):
        return chunks
    between = sum(chunks[:-1])
    to_step = min(between, -size % STEP_TOKENS)
    whole = (between - to_step) // STEP_TOKENS * STEP_TOKENS
    return [each for each in (to_step, whole, between - to_step - whole, size) if each]


def _has_windows(tracer: Tracer) -> bool:
    return any(is_rotating(part) for cache in tracer.caches for part in parts(cache))


def _found(tracer: Tracer) -> Found:
    return Found(
        kv_bytes=tracer.cache_bytes,
        workspace_bytes=tracer.workspace_bytes,
        peak_bytes=max(step.peak_bytes for step in tracer.steps),
    )
