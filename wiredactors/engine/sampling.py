"""How rows choose their tokens: mlx-lm's samplers and logits processors, many rows at once.

What a row chooses does not depend on who shares its step: each gets what `generate_step` would have
chosen for it alone. Rows without a seed draw from MLX's global state, which has no order to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.engine.scores import Scores, Told, normalized
from wiredactors.scheduling.requests import SamplingParameters

#: Draws of a seed that are made up for at once.
_DRAWS_AT_ONCE = 256


class RowSampler:
    """What lasts of one row's choices from step to step: its seed's key and the tokens so far.

    On the device thread.
    """

    def __init__(self, parameters: SamplingParameters, prompt: Sequence[int]):
        self.parameters = parameters
        self._prompt = list(prompt)
        self._processors = _logits_processors(parameters)
        # A bias asks for no tokens.
        self._reads_tokens = len(self._processors) > bool(parameters.logit_bias)
        self._highest_bias = max((token for token, _ in parameters.logit_bias), default=0)
        self._context: Any = None
        self._key: Any = None
        self.restart(())

    @property
    def greedy(self) -> bool:
        return self.parameters.sampler is None and self.parameters.temperature == 0

    @property
    def processes(self) -> bool:
        return bool(self._processors)

    @property
    def seeded(self) -> bool:
        return self._key is not None

    @property
    def tells(self) -> bool:
        """Whether log-probabilities are asked for."""
        return self.parameters.logprobs or self.parameters.top_logprobs > 0

    def restart(self, generated: Sequence[int]) -> None:
        """Be as after so many tokens, whatever has become of the steps since."""
        if self._reads_tokens:
            # The last one comes as the next step's input.
            tokens = [*self._prompt, *generated][:-1]
            self._context = import_mlx_lm("models.cache").TokenBuffer(tokens)
        seed = self.parameters.seed
        if seed is None or self.greedy or self.parameters.sampler is not None:
            return
        mx = import_mlx()
        # A key is made of one 64-bit number; any integer is welcome as a seed.
        self._key = mx.random.key(seed % 2**64)
        for number in range(len(generated)):
            self._key, _ = mx.random.split(self._key)
            if number % _DRAWS_AT_ONCE == 0:
                mx.eval(self._key)
        mx.eval(self._key)

    def process(self, token: Any, logits: Any) -> tuple[Any, list[Any]]:
        """The scores [1, vocabulary] after the row's processors; arrays to evaluate with them.

        `token` [1] is the step's input.

        Raises:
            Exception: whatever a processor raises; ValueError for what it must not return.
        """
        words = logits.shape[-1]
        if self._highest_bias >= words:
            raise ValueError(
                f"logit_bias names token {self._highest_bias}, but the model has {words} tokens"
            )
        context = self._context.update_and_fetch(token) if self._reads_tokens else token
        shape = logits.shape
        for processor in self._processors:
            logits = processor(context, logits)
            if not isinstance(logits, import_mlx().array) or logits.shape != shape:
                raise ValueError(
                    f"a logits processor must return scores of shape {tuple(shape)} as it was "
                    f"given, not {_described(logits)}"
                )
        return logits, [context] if self._reads_tokens else []

    def draw(self, logprobs: Any) -> Any:
        """A token [1], as mlx-lm's sampler draws it after `mx.random.seed(seed)`.

        mlx-lm's draw from MLX's global state, which every row of every model advances. So a row
        with a seed has a key of its own.
        """
        random = import_mlx().random
        self._key, key = random.split(self._key)
        return random.categorical(logprobs * (1 / self.parameters.temperature), key=key)

    def sample(self, logprobs: Any) -> Any:
        """The token [1] of the user's own sampler.

        Raises:
            Exception: whatever it raises; ValueError for what it must not return.
        """
        mx = import_mlx()
        assert self.parameters.sampler is not None
        token = self.parameters.sampler(logprobs)
        if (
            not isinstance(token, mx.array)
            or token.size != 1
            or not mx.issubdtype(token.dtype, mx.integer)
        ):
            raise ValueError(
                "a sampler must return one token as an MLX array of integers of shape (1,), "
                f"not {_described(token)}"
            )
        # The next step would read whatever lies beyond the embeddings.
        return mx.clip(token.reshape(1), 0, logprobs.shape[-1] - 1)


@attrs.frozen
class Choice:
    """What a step chose, not yet evaluated.

    Attributes:
        tokens: of shape [rows].
        extras: arrays to evaluate together with the tokens.
        failed: by row, what its processor or sampler raised; its token is 0.
    """

    tokens: Any
    extras: list[Any]
    failed: dict[int, Exception]
    _told: dict[int, Told]

    def logprobs_of(self, row: int) -> tuple[float | None, tuple[tuple[int, float], ...]]:
        """The token's log-probability and the likeliest tokens, likeliest first.

        None and nothing for a row that did not ask. After the evaluation.
        """
        told = self._told.get(row)
        return (None, ()) if told is None else told.of(row)


class Chooser:
    """One step's choices, for rows that stay the same: made anew when one joins or leaves."""

    def __init__(self, row_samplers: Sequence[RowSampler]):
        self._mx = import_mlx()
        self._functions = import_mlx_lm("sample_utils")
        self._rows = list(row_samplers)
        self._all = tuple(range(len(self._rows)))
        self._processing = [row for row in self._all if self._rows[row].processes]
        self._telling = tuple(row for row in self._all if self._rows[row].tells)
        self._own = [row for row in self._all if self._rows[row].parameters.sampler is not None]
        self._greedy = tuple(row for row in self._all if self._rows[row].greedy)
        alike: dict[tuple[float, ...], list[int]] = {}
        for row in self._all:
            if row not in self._own and row not in self._greedy:
                alike.setdefault(_truncation(self._rows[row].parameters), []).append(row)
        self._alike = [tuple(rows) for rows in alike.values()]
        self._plain = self._greedy == self._all and not (self._processing or self._telling)
        self._indices: dict[tuple[int, ...], Any] = {}

    def __call__(self, logits: Any, inputs: Any) -> Choice:
        """Choose from scores of shape [rows, vocabulary].

        `inputs` [rows] are the step's input tokens: at first the last one of each prompt, then what
        was chosen before.
        """
        if self._plain:
            return Choice(self._mx.argmax(logits, axis=-1), [], {}, {})
        scores, extras, failed = self._processed(logits, inputs)
        pieces = [
            (rows, self._mx.argmax(part, axis=-1)) for rows, part in scores.parts(self._greedy)
        ]
        for alike in self._alike:
            for rows, part in scores.parts(alike):
                pieces += self._drawn(rows, normalized(self._mx, part))
        for row in self._own:
            [(rows, part)] = scores.parts((row,))
            if row in failed:
                continue
            try:
                token = self._rows[row].sample(normalized(self._mx, part))
            except Exception as error:
                failed[row] = error
            else:
                pieces.append((rows, token))
        tokens = self._together(pieces, failed)
        told: dict[int, Told] = {}
        for rows, part in scores.parts(tuple(row for row in self._telling if row not in failed)):
            one = self._tell(rows, part, tokens)
            extras += one.arrays
            told.update(dict.fromkeys(rows, one))
        return Choice(tokens, extras, failed, told)

    def _processed(self, logits: Any, inputs: Any) -> tuple[Scores, list[Any], dict[int, Any]]:
        scores = Scores(self._mx, logits, self._index)
        extras: list[Any] = []
        failed: dict[int, Exception] = {}
        for row in self._processing:
            one = slice(row, row + 1)
            try:
                scores.own[row], read = self._rows[row].process(inputs[one], logits[one])
                extras += read
            except Exception as error:
                failed[row] = error
        return scores, extras, failed

    def _drawn(self, rows: tuple[int, ...], logprobs: Any) -> Iterator[tuple[tuple[int, ...], Any]]:
        """Draw for rows that sample alike, from their log-probabilities."""
        parameters = self._rows[rows[0]].parameters
        functions = self._functions
        # In the order of mlx-lm's own sampler.
        if 0 < parameters.top_p < 1:
            logprobs = functions.apply_top_p(logprobs, parameters.top_p)
        if parameters.min_p > 0:
            logprobs = functions.apply_min_p(logprobs, parameters.min_p)
        if 0 < parameters.top_k < logprobs.shape[-1]:
            logprobs = functions.apply_top_k(logprobs, parameters.top_k)
        for place, row in enumerate(rows):
            if self._rows[row].seeded:
                yield (row,), self._rows[row].draw(logprobs[place : place + 1])
        places = tuple(place for place, row in enumerate(rows) if not self._rows[row].seeded)
        if places:
            if len(places) < len(rows):
                logprobs = logprobs[self._index(places)]
            drawn = functions.categorical_sampling(logprobs, parameters.temperature)
            yield tuple(rows[place] for place in places), drawn

    def _together(self, pieces: list[tuple[tuple[int, ...], Any]], failed: dict[int, Any]) -> Any:
        """The tokens of all rows in their order, 0 for those that failed."""
        mx = self._mx
        chosen = [row for rows, _ in pieces for row in rows]
        missing = tuple(sorted(set(self._all) - set(chosen)))
        if missing:
            pieces = [*pieces, (missing, mx.zeros(len(missing), mx.uint32))]
            chosen += missing
        parts = [part.astype(mx.uint32) for _, part in pieces]
        tokens = parts[0] if len(parts) == 1 else mx.concatenate(parts)
        order = tuple(sorted(self._all, key=chosen.__getitem__))
        if order != self._all:
            tokens = tokens[self._index(order)]
        if set(failed) - set(missing):
            tokens = mx.where(mx.array([row in failed for row in self._all]), 0, tokens)
        return tokens

    def _tell(self, rows: tuple[int, ...], scores: Any, tokens: Any) -> Told:
        mx = self._mx
        logprobs = normalized(mx, scores)
        chosen = tokens if rows == self._all else tokens[self._index(rows)]
        logprob = mx.take_along_axis(logprobs, chosen[:, None], axis=-1)[:, 0]
        counts = {row: self._rows[row].parameters.top_logprobs for row in rows}
        count = min(max(counts.values()), logprobs.shape[-1])
        if not count:
            return Told(rows, counts, [logprob])
        top = mx.argpartition(-logprobs, kth=count - 1, axis=-1)[:, :count]
        return Told(rows, counts, [logprob, top, mx.take_along_axis(logprobs, top, axis=-1)])

    def _index(self, places: tuple[int, ...]) -> Any:
        if places not in self._indices:
            self._indices[places] = self._mx.array(places)
        return self._indices[places]


def _logits_processors(parameters: SamplingParameters) -> list[Callable[[Any, Any], Any]]:
    """mlx-lm's processors that the parameters ask for, then the user's own."""
    penalty = parameters.repetition_penalty
    if not parameters.logit_bias and penalty in (0, 1):
        return list(parameters.logits_processors)
    made = import_mlx_lm("sample_utils").make_logits_processors(
        logit_bias=dict(parameters.logit_bias),
        repetition_penalty=None if penalty == 1 else penalty,
        repetition_context_size=parameters.repetition_context_size,
    )
    return [*made, *parameters.logits_processors]


def _truncation(parameters: SamplingParameters) -> tuple[float, ...]:
    return (parameters.temperature, parameters.top_p, parameters.top_k, parameters.min_p)


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    kind = type(value).__name__
    return kind if shape is None else f"{kind} of {value.dtype} and shape {tuple(shape)}"
