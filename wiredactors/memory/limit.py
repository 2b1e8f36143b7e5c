"""The limit in force: when it is written, held back, tried again, and restored.

Growing is always allowed. Shrinking while work is active needs a minimum drop and a minimum time
since the last write of any kind; without active work the baseline comes back at once. A refused
write keeps the last good limit and is tried again with a growing back-off.
"""

from __future__ import annotations

from fractions import Fraction

import attrs

from wiredactors.memory.configuration import WiredMemoryConfiguration

#: Seconds before a refused write is tried again: doubled each time, up to the second number.
FIRST_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0


@attrs.define
class _Refusal:
    limit: int
    attempts: int
    retry_at: float


class LimitControl:
    """Decides whether a wanted limit is written now. Limits are bytes, times seconds."""

    def __init__(self, configuration: WiredMemoryConfiguration):
        self.configure(configuration)
        self.current: int | None = None  # the last that the backend took
        self.in_flight: int | None = None  # handed to the backend, outcome unknown
        self.deadline: float | None = None  # when to look again, if nothing else happens
        self.outcomes = 0  # of writes, good or bad
        self._written_at = 0.0
        self._refusal: _Refusal | None = None

    def configure(self, configuration: WiredMemoryConfiguration) -> None:
        # As the ratio is written: in floats 0.55 * 100 is a little more than 55.
        self._ratio = Fraction(str(configuration.shrink_threshold_ratio))
        self._cooldown = configuration.shrink_cooldown

    def next_write(self, desired: int, *, working: bool, now: float) -> int | None:
        """The limit to hand to the backend now, None for none; sets `deadline`.

        `working` says whether any active ticket lives. A write that is in flight is waited for.
        """
        self.deadline = None
        if self.in_flight is not None or desired == self.current:
            if desired == self.current:
                self._refusal = None
            return None
        if self.current is None and not working:
            return None  # nothing was ever raised, so there is nothing to restore
        if self._refusal is not None and self._refusal.limit == desired:
            return self._unless_before(self._refusal.retry_at, desired, now)
        if working and self.current is not None and desired < self.current:
            if self.current - desired < self._ratio * self.current:
                return None  # held until the drop is larger
            return self._unless_before(self._written_at + self._cooldown, desired, now)
        return desired

    def _unless_before(self, moment: float, desired: int, now: float) -> int | None:
        if now < moment:
            self.deadline = moment
            return None
        return desired

    def written(self, limit: int, now: float) -> None:
        """The backend took `limit`."""
        self.in_flight = None
        self.outcomes += 1
        self.current = limit
        self._written_at = now
        self._refusal = None

    def refused(self, limit: int, now: float) -> None:
        """The backend raised for `limit`."""
        self.in_flight = None
        self.outcomes += 1
        same = self._refusal is not None and self._refusal.limit == limit
        attempts = self._refusal.attempts + 1 if same and self._refusal else 1
        # The exponent is bounded before it is used: 2.0 ** 2000 overflows.
        wait = min(FIRST_RETRY_SECONDS * 2.0 ** min(attempts - 1, 10), MAX_RETRY_SECONDS)
        self._refusal = _Refusal(limit, attempts, now + wait)

    def retry_now(self) -> None:
        """Try a refused write again without waiting for its time."""
        self._refusal = None
