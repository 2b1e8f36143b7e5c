"""Switches: how often models were made to go, so that they do not take turns without end."""

from __future__ import annotations

#: The time in which no more than so many are allowed.
WINDOW_SECONDS = 60.0
#: A model that has come in is left at least so long, or those who wait could make it go before the
#: work that it was loaded for has begun.
SHORTEST_TURN_SECONDS = 1.0


def turn_ends_at(model_since: float, turn_seconds: float) -> float:
    """When a model that came in at `model_since` has had its turn, in seconds on the clock."""
    return model_since + max(turn_seconds, SHORTEST_TURN_SECONDS)


class Switches:
    """The last ones. Each is a moment at which one or more models were asked to yield."""

    def __init__(self, per_minute: int):
        self.per_minute = per_minute
        self._times: list[float] = []

    def note(self, now: float) -> None:
        """One more, which must be allowed."""
        self._times.append(now)
        del self._times[: -self.per_minute]

    def allowed_at(self) -> float:
        """The moment from which on the next is allowed, perhaps long past."""
        if len(self._times) < self.per_minute:
            return -float("inf")
        return self._times[-self.per_minute] + WINDOW_SECONDS

    def copy(self) -> Switches:
        other = Switches(self.per_minute)
        other._times = list(self._times)
        return other
