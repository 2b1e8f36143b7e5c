"""Prompts that are being read, chunk by chunk, into caches of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wiredactors.engine.imports import import_mlx
from wiredactors.engine.kept import make_caches, quantize
from wiredactors.engine.row import Row
from wiredactors.scheduling.grouping import Member


class Prefill:
    """See the module: one prompt, or several short ones. On the device thread.

    The last token is left for the row's first step, which brings the first token of the answer: so
    no chunk needs the scores of its words.

    Attributes:
        rows: whose prompts they are, with the answers so far where they are read anew.
        caches: mlx-lm's, a layer each.
    """

    def __init__(self, model: Any, rows: Sequence[Row]):
        self.rows = list(rows)
        self.caches = make_caches(model, rows[0].request.cache)
        if len(rows) > 1:
            self.caches = [cache.merge([cache] * len(rows)) for cache in self.caches]
        self._model = model
        self._tokens = [row.tokens for row in rows]
        self._read = 0

    @property
    def unread(self) -> int:
        """Tokens that are left to read of the longest prompt before its last one."""
        return max(map(len, self._tokens)) - 1 - self._read

    @property
    def begun(self) -> bool:
        return self._read > 0

    @property
    def last_tokens(self) -> list[int]:
        return [tokens[-1] for tokens in self._tokens]

    @property
    def member(self) -> Member[Row]:
        """The one row when its prompt has been read, for the planner."""
        [row] = self.rows
        return Member(row, len(row.tokens) - 1, row.request.total_tokens)

    def held_bytes(self) -> int:
        """What its caches have allocated; nothing is known before it has begun."""
        mx = import_mlx()
        return int(mx.get_array_buffer_size([cache.state for cache in self.caches]))

    def read(self, most: int) -> None:
        """Read the next `most` tokens, or what is left. Several prompts are read whole."""
        count = min(most, self.unread)
        if count:
            self._read_chunk(count)
        if len(self.rows) > 1:
            for cache in self.caches:
                cache.finalize()

    def _read_chunk(self, count: int) -> None:
        mx = import_mlx()
        chunks = [tokens[self._read : -1][:count] for tokens in self._tokens]
        padding = [count - len(chunk) for chunk in chunks]
        if any(padding):
            for cache in self.caches:
                cache.prepare(lengths=[len(chunk) for chunk in chunks], right_padding=padding)
            chunks = [chunk + [0] * pad for chunk, pad in zip(chunks, padding, strict=True)]
        self._model(mx.array(chunks), cache=self.caches)
        quantize(self.caches, self.rows[0].request.cache)
        mx.eval([cache.state for cache in self.caches])
        self._read += count
        for row, tokens in zip(self.rows, self._tokens, strict=True):
            row.fed = min(self._read, len(tokens) - 1)
