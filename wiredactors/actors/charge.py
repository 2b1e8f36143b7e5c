"""What a row is predicted to take and what it is charged, and what its end teaches."""

from __future__ import annotations

from typing import Any

import attrs

from wiredactors.actors.protocol import EngineModel
from wiredactors.memory.correction import Correction
from wiredactors.scheduling.requests import RowRequest


@attrs.frozen(kw_only=True)
class Charge:
    """What one row is charged. Sizes are bytes.

    Attributes:
        predicted_bytes: by how its cache is kept, for the longest that it can become.
        size: the same with what finished jobs had taught when it was made.
    """

    predicted_bytes: int
    size: int
    _correction: Correction

    @classmethod
    def of(cls, loaded: EngineModel, request: RowRequest) -> Charge:
        predicted = loaded.row_cost(request.cache).row_bytes(request.total_tokens)
        correction = loaded.correction
        return cls(
            predicted_bytes=predicted,
            size=correction.corrected(predicted),
            correction=correction,
        )

    def settle(self, observed_bytes: int) -> dict[str, Any]:
        """Learn from what the row's cache took; returns it in numbers, for the job's last event.

        Of a row that never decoded (0), or for which nothing was predicted, there is nothing to
        learn and to tell.
        """
        if not observed_bytes or not self.predicted_bytes:
            return {}
        self._correction.record(self.predicted_bytes, observed_bytes)
        return {
            "predicted_bytes": self.predicted_bytes,
            "observed_bytes": observed_bytes,
            "prediction_error": (observed_bytes - self.predicted_bytes) / self.predicted_bytes,
            "correction": self._correction.factor,
        }
