"""What the actors ask of a backend and of an engine. The actors know no more of MLX than this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable


class LimitBackend(Protocol):
    """Who sets the wired limit. `supported` and the working set are read once, at opening."""

    @property
    def supported(self) -> bool:
        """Whether there is a limit to set; without one the manager decides and applies nothing."""

    def recommended_working_set_bytes(self) -> int | None:
        """The device's recommended working set in bytes, None where it reports none."""

    def set_wired_limit(self, limit: int) -> int | None:
        """Set the limit in bytes; may return the previous one; may raise. Must not block."""


@runtime_checkable
class DeferredLimitBackend(LimitBackend, Protocol):
    """A backend that sets the limit at a quiet point of its own thread."""

    def write_wired_limit(
        self, limit: int, done: Callable[[int | None, BaseException | None], object]
    ) -> None:
        """Set the limit soon; then call `done(previous, error)` on the trio thread."""
