"""The rows of a modelled engine: counters instead of caches."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from wiredactors.scheduling.requests import RowOutput, RowRequest
from wiredactors.testing.model import ModelledModel


@attrs.define(eq=False)
class Row:
    """One sequence, and how far it is.

    Attributes:
        deliver: gets its outputs.
        prefilled, generated: tokens of its prompt that were read, and of its answer.
    """

    request: RowRequest
    deliver: Callable[[RowOutput], object]
    prefilled: int = 0
    generated: int = 0

    @property
    def unread(self) -> int:
        """Tokens of its prompt that are still to be read."""
        return len(self.request.prompt) - self.prefilled

    @property
    def tokens(self) -> int:
        """How long it is now."""
        return self.prefilled + self.generated

    def cache_bytes(self, model: ModelledModel) -> int:
        """What a cache as long as it takes."""
        return model.cache_bytes(self.tokens, self.request.cache)

    def step(self, model: ModelledModel) -> list[RowOutput]:
        """Its next token, or its end, or both."""
        if self.generated == model.answer_tokens:
            return [self._last(model, "stop")]
        token = model.token(self.request.prompt, self.generated)
        self.generated += 1
        output = RowOutput(row_id=self.request.row_id, text=chr(token), token=token)
        if self.generated < self.request.max_tokens:
            return [output]
        return [output, self._last(model, "length")]

    def _last(self, model: ModelledModel, reason: str) -> RowOutput:
        return RowOutput(
            row_id=self.request.row_id,
            text=model.flushed_text,
            finish_reason=reason,
        )
