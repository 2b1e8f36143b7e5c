"""What became of a job, for scenarios that collect many."""

from __future__ import annotations

import attrs

from wiredactors.actors.result import GenerationResult
from wiredactors.memory.errors import WiredMemoryError


@attrs.frozen
class Outcome:
    """One job of a scenario: its result, or the error that refused or ended it.

    Attributes:
        model: the model's name.
        label: what was asked.
    """

    model: str
    label: str
    result: GenerationResult | None = None
    error: WiredMemoryError | None = None
