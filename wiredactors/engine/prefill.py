"""A prompt that is being read, chunk by chunk, into caches of its own."""

from __future__ import annotations

from typing import Any

from wiredactors.engine.imports import import_mlx
from wiredactors.engine.kept import make_caches, quantize
from wiredactors.engine.row import Row


class Prefill:
    """See the module. Everything happens on the device thread, in its generation stream.

    The last token is left for the row's first step, which brings the first token of the answer: so
    no chunk needs the scores of its words.

    Attributes:
        row: whose prompt it is, with the answer so far where it is read anew.
        caches: mlx-lm's, a layer each.
    """

    def __init__(self, model: Any, row: Row):
        self.row = row
        self.caches = make_caches(model, row.request.cache)
        self._model = model
        self._tokens = row.tokens
        self._read = 0

    @property
    def unread(self) -> int:
        """Tokens that are left to read before the last one."""
        return len(self._tokens) - 1 - self._read

    @property
    def last_token(self) -> int:
        return self._tokens[-1]

    def read(self, most: int) -> None:
        """Read the next `most` tokens, or what is left."""
        count = min(most, self.unread)
        if not count:
            return
        mx = import_mlx()
        chunk = self._tokens[self._read : self._read + count]
        self._model(mx.array([chunk]), cache=self.caches)
        quantize(self.caches, self.row.request.cache)
        mx.eval([cache.state for cache in self.caches])
        self._read += count
        self.row.fed = self._read
