"""What a modelled engine did, and the memory at that moment, for a test to look at."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from wiredactors.scheduling.requests import StepReport
from wiredactors.testing.memory import ModelledMemory


@attrs.frozen(kw_only=True)
class EngineRecord:
    """One thing that happened, with the memory just before it if it frees any, else just after.

    Attributes:
        time: when, on trio's clock.
        what: "load", "unload", "submit", "let_go" (of a row), "prefill" (of a chunk of a prompt),
            "step" (of a batch), "tune" (its end), or "close", which shows what was left when the
            engine closed.
        model: whose it is; "" for "close".
        row_id: of "submit" and "let_go".
        held_bytes: what the engine really holds.
        charged_bytes: what the tickets of all that it holds should sum up to.
        granted_bytes: what the ledger had granted.
    """

    time: float
    what: str
    model: str
    row_id: str | None = None
    held_bytes: int
    charged_bytes: int
    granted_bytes: int


class Recorder:
    """Notes down what happens, with the memory of that moment.

    Attributes:
        records, reports: see the engine.
        granted, on_step: see `Engine.open`.
    """

    def __init__(self, memory: ModelledMemory):
        self.records: list[EngineRecord] = []
        self.reports: list[StepReport] = []
        self.granted: Callable[[], int] = lambda: 0
        self.on_step: Callable[[StepReport], object] | None = None
        self._memory = memory

    def record(self, what: str, model: str, row_id: str | None = None) -> None:
        self.records.append(
            EngineRecord(
                time=trio.current_time(),
                what=what,
                model=model,
                row_id=row_id,
                held_bytes=self._memory.held_bytes,
                charged_bytes=self._memory.charged_bytes,
                granted_bytes=self.granted(),
            )
        )

    def report(
        self, model: str, what: str, rows: int, began: float, peak: int, granted: int
    ) -> None:
        """Of a step that began then, when so much was granted."""
        report = StepReport(
            model=model,
            what=what,
            rows=rows,
            seconds=trio.current_time() - began,
            active_bytes=self._memory.held_bytes,
            peak_bytes=peak,
            granted_bytes=granted,
        )
        self.reports.append(report)
        if self.on_step is not None:
            self.on_step(report)
