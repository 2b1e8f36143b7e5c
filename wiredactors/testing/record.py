"""What a modelled engine did, and the memory at that moment, for a test to look at."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class EngineRecord:
    """One thing that happened, with the memory just before it if it frees any, else just after.

    Attributes:
        time: when, on trio's clock.
        what: "load", "unload", "submit", "let_go" (of a row), "step", "tune" (its end), or "close",
            which shows what was left when the engine closed.
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
