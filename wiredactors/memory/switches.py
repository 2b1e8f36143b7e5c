"""Switches: how often models were made to go, so that they do not take turns without end."""

from __future__ import annotations

import math

import attrs

from wiredactors.memory.holding import Holding

#: A model that serves is left at least so long, or those who wait could make it go before the work
#: that it was loaded for has begun.
SHORTEST_TURN_SECONDS = 1.0


def turn_ends_at(model: Holding, turn_seconds: float) -> float:
    """When a model has had its turn, in seconds on the clock: never while it is being loaded."""
    if model.served_since is None:
        return math.inf
    return model.served_since + max(turn_seconds, SHORTEST_TURN_SECONDS)


@attrs.define
class Switches:
    """Each is a moment at which one or more models were asked to yield.

    They keep even distances. Were so many allowed in any minute at once, whoever comes next would
    wait for most of that minute, with nothing to do for anybody.
    """

    per_minute: int
    last: float = -math.inf

    def note(self, now: float) -> None:
        """One more, which must be allowed."""
        self.last = now

    def allowed_at(self) -> float:
        """The moment from which on the next is allowed, perhaps long past."""
        return self.last + 60.0 / self.per_minute

    def copy(self) -> Switches:
        return attrs.evolve(self)
