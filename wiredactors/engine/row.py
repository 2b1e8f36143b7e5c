"""One sequence on the device: what was asked for, and how far it is."""

from __future__ import annotations

from typing import Any

from wiredactors.engine.sampling import RowSampler
from wiredactors.engine.text import RowText
from wiredactors.scheduling.grouping import Member
from wiredactors.scheduling.requests import RowRequest

#: A row that was so often in a step that failed has steps of its own from then on.
MOST_FAILURES = 3


class Row:
    """See the module. It lives on the device thread.

    Attributes:
        request: what was asked for.
        generated: its answer so far.
        fed: tokens that its cache holds.
    """

    def __init__(self, request: RowRequest, tokenizer: Any, *, alone: bool):
        """`alone`: its cache cannot be shared."""
        self.request = request
        self.text = RowText(request, tokenizer)
        self.sampler = RowSampler(request.sampling, request.prompt)
        self.generated: list[int] = []
        self.fed = 0
        self._alone = alone
        self._failures = 0
        self._proven = True

    @property
    def tokens(self) -> list[int]:
        """The prompt and the answer so far."""
        return [*self.request.prompt, *self.generated]

    @property
    def left(self) -> int:
        """Tokens that are still to be generated at most."""
        return self.request.max_tokens - len(self.generated)

    @property
    def member(self) -> Member[Row]:
        """How long it is, for the planner."""
        return Member(self, self.fed, self.request.total_tokens)

    @property
    def alone(self) -> bool:
        """Whether it has steps of its own: always, or until it has shown that it does not fail."""
        return self._alone or not self._proven or self._failures >= MOST_FAILURES

    def add(self, token: int) -> None:
        """One more token of its answer."""
        self.generated.append(token)
        self._proven = True

    def restart(self) -> None:
        """A step that it shared has failed: it goes on from its tokens, with a new cache."""
        self._failures += 1
        self._proven = False
        self.fed = 0
        self.sampler.restart(self.generated)
