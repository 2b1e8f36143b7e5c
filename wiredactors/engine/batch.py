"""One running batch: rows of one model that decode together, on mlx-lm's batch caches.

A step does what somebody asked for and no more: one pass of the model, one call of the sampler for
rows that sample alike, log-probabilities only for rows that want them, a mask only where rows are
padded. It is one step ahead: the device works on the next tokens while Python handles these.

Memory is the other point: when rows join or leave, caches are joined and cut layer by layer, and
what remains is cut back to whole steps, so that a batch never holds more than the planner counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from wiredactors.engine.cache import Settling, batched, make_room, twin, unpadded
from wiredactors.engine.imports import import_mlx
from wiredactors.engine.kept import quantize
from wiredactors.engine.prefill import Prefill
from wiredactors.engine.row import Row
from wiredactors.engine.sampling import Choice, Chooser
from wiredactors.memory.cache_cost import STEP_TOKENS


@attrs.frozen
class Sampled:
    """A row's token, and what it asked to be told about it, or why there is none.

    Attributes:
        error: what the row's own sampler or processor has raised.
    """

    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    error: Exception | None = None


class Batch:
    """See the module. Everything happens on the device thread, in its generation stream.

    Whatever a method raises has corrupted the batch: let it go.

    Attributes:
        rows: those that decode together.
    """

    def __init__(self, model: Any, prefill: Prefill, spare_bytes: int = 0):
        """The rows whose prompts have been read; their first tokens are on their way.

        `spare_bytes` may be held for a moment when rows come and go.
        """
        self._mx = import_mlx()
        self._model = model
        self._spare_bytes = spare_bytes
        self._caches = prefill.caches
        self._flying: Choice | None = None  # what the device works on
        self._landed: list[Sampled] = []  # what the device has worked out
        self._hold(prefill.rows)
        if len(self.rows) > 1:
            settling = Settling(spare_bytes)
            for layer in range(len(self._caches)):  # enumerate would hold on to the last one
                self._caches[layer] = _settle(self._caches[layer], self.rows, settling)
            settling.finish()
        self._launch(self._mx.array(prefill.last_tokens))
        if self.rows[0].fed == 1:  # nothing had been read before
            quantize(self._caches, self.rows[0].request.cache)

    def step(self) -> list[Sampled]:
        """The next token of each row, in the order of `rows`."""
        flying, sampled = self._flying, self._landed
        if flying is not None:
            inputs = flying.tokens
        else:
            inputs = self._mx.array([each.token for each in sampled])
        self._flying, self._landed = None, []
        if any(row.left > 1 for row in self.rows):
            self._launch(inputs)
        return sampled if flying is None else _read(flying)

    @property
    def is_full(self) -> bool:
        """Whether the next step needs more room in the caches of keys and values."""
        return max(row.fed for row in self.rows) % STEP_TOKENS == 0

    def wait(self) -> None:
        """Wait until the device has done what was asked of it."""
        if self._flying is not None:
            self._mx.eval(self._flying.tokens)

    def _launch(self, inputs: Any) -> None:
        """Let the device work on the tokens that follow `inputs`."""
        if self.is_full:
            make_room(self._caches, self._spare_bytes)
        logits = self._model(inputs[:, None], cache=self._caches)[:, -1, :]
        choice = self._choose(logits, inputs)
        self._mx.async_eval(choice.tokens, choice.extras)
        for row in self.rows:
            row.fed += 1
        self._flying = choice

    # -- who is in it

    def join(self, other: Batch) -> None:
        """Take the other's rows in; it is used up."""
        self._land()
        other._land()
        rows = [*self.rows, *other.rows]
        settling = Settling(self._spare_bytes)
        for layer, cache in enumerate(self._caches):
            cache, added = batched(cache), batched(other._caches[layer])
            self._caches[layer] = other._caches[layer] = None
            cache.extend(added)
            del added
            self._caches[layer] = _settle(cache, rows, settling)
        settling.finish()
        self._landed = [*self._landed, *other._landed]
        self._hold(rows)
        other._hold([])

    def divide(self, groups: Sequence[Sequence[Row]]) -> list[Batch]:
        """Batches of these rows each, in place of this one; rows that are in none leave."""
        self._land()
        places = {row: place for place, row in enumerate(self.rows)}
        batches = [self._part([places[row] for row in group]) for group in groups]
        shared = len(self.rows) > 1
        settling = Settling(self._spare_bytes)
        for layer in range(len(self._caches)):
            whole, self._caches[layer] = self._caches[layer], None
            whole = batched(whole) if shared else whole
            for batch, group in zip(batches, groups, strict=True):
                cache = twin(whole)
                if shared:
                    cache.filter([places[row] for row in group])
                batch._caches.append(_settle(cache, group, settling))
            whole = cache = None  # nobody holds them while the next are made
        settling.finish()
        self._hold([])
        return batches

    def _part(self, places: Sequence[int]) -> Batch:
        """A batch of some of the rows, without their caches."""
        part = Batch.__new__(Batch)
        part._mx, part._model, part._spare_bytes = self._mx, self._model, self._spare_bytes
        part._caches = []
        part._landed = [self._landed[place] for place in places]
        part._hold([self.rows[place] for place in places])
        return part

    def drop(self) -> list[Row]:
        """Let everything go, whoever still holds the batch; the rows that were in it."""
        rows = self.rows
        self._caches, self._landed = [], []
        self._hold([])
        return rows

    def held_bytes(self) -> int:
        """What its caches have allocated."""
        arrays = [cache.state for cache in self._caches]
        self._mx.eval(arrays)
        return int(self._mx.get_array_buffer_size(arrays))

    def _hold(self, rows: list[Row]) -> None:
        """Its rows are these from here on."""
        self.rows, self._flying = rows, None
        self._choose = Chooser([row.sampler for row in rows])

    def _land(self) -> None:
        """Read what the device works on: rows that come or go do not fit it."""
        if self._flying is not None:
            self._landed = _read(self._flying)
            self._flying = None


def _settle(cache: Any, rows: Sequence[Row], settling: Settling) -> Any:
    """A layer's cache in the form for these rows."""
    if len({row.fed for row in rows}) == 1:
        cache = unpadded(cache, len(rows))
    settling.add(cache)
    return cache


def _read(choice: Choice) -> list[Sampled]:
    tokens: list[int] = choice.tokens.tolist()
    if not choice.extras and not choice.failed:
        return [Sampled(token) for token in tokens]
    return [
        Sampled(token, *choice.logprobs_of(row), error=choice.failed.get(row))
        for row, token in enumerate(tokens)
    ]
