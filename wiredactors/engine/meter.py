"""MLX's memory and the time of one piece of work after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from wiredactors.scheduling.requests import StepReport


class Meter:
    """Measures what lies between `start` and `report`. Used on the device thread only.

    `granted()` is what the ledger had granted in bytes; it is read at the start, because what is
    used in a piece of work was granted before it.
    """

    def __init__(self, mx: Any, granted: Callable[[], int]):
        self._mx = mx
        self._ledger_granted = granted
        self.start()

    def start(self) -> None:
        """The next piece of work begins."""
        self._granted = self._ledger_granted()
        self._mx.reset_peak_memory()
        self._before = self._mx.get_active_memory()
        self._began = time.perf_counter()

    def report(self, model: str, what: str, rows: int = 0) -> StepReport:
        """What the piece of work took that ends now."""
        return StepReport(
            model=model,
            what=what,
            rows=rows,
            seconds=time.perf_counter() - self._began,
            active_bytes=self._mx.get_active_memory(),
            # A reset sets the peak to 0, and only allocations raise it again.
            peak_bytes=max(self._before, self._mx.get_peak_memory()),
            granted_bytes=self._granted,
        )
