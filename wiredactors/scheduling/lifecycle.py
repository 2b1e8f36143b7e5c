"""A model's life, as one table.

```text
            wanted          admitted          loaded           leave             drained
   absent ----------> queued -------> loading -------> ready -------> draining --------> unloading
      ^                 |                |               |                                   |
      |   abandoned     |                |               (its requests run)            gone  |
      +-----------------+----------------+---------------------------------------------------+

   failed: whatever raised on the way. It is wanted again when the back-off is over.
```

In every state but `ready` a request waits, in the order in which it came. The model's actor carries
this out, and knows nothing of it by itself.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

import attrs


class ModelState(enum.StrEnum):
    """Where a registered model is in its life."""

    ABSENT = enum.auto()
    """Nothing of it is in memory. A request makes it load."""
    QUEUED = enum.auto()
    """Its weights wait for memory. If nobody waits for it any more, they need not come."""
    LOADING = enum.auto()
    """Its memory has been admitted, and its weights are read."""
    READY = enum.auto()
    """It serves: a request runs at once."""
    DRAINING = enum.auto()
    """It must go. What runs on it comes to its end; a request waits, and loads it again."""
    UNLOADING = enum.auto()
    """Nothing runs on it, and its memory is given back and measured."""
    FAILED = enum.auto()
    """It could not be loaded, or not be unloaded. A request waits for the end of the back-off."""


class ModelEvent(enum.StrEnum):
    """What moves a model from one state to the next."""

    WANTED = enum.auto()
    """Somebody waits for it, and no back-off is to be waited for."""
    ADMITTED = enum.auto()
    """Its weights have their memory."""
    LOADED = enum.auto()
    """Its weights are in memory."""
    ABANDONED = enum.auto()
    """Nobody waits for it any more, or the runtime closes: the load stops."""
    LEAVE = enum.auto()
    """It must go: others need the room, its keep-alive is over, or somebody said so."""
    DRAINED = enum.auto()
    """Nothing runs on it any more."""
    GONE = enum.auto()
    """Its memory is back."""
    FAILED = enum.auto()
    """Its plan, its admission, its load or its unload raised; nothing of it is held."""


class OutOfTurn(Exception):
    """An event that cannot come in that state: a mistake of whoever carries the life out."""


class OnRequest(enum.Enum):
    """What becomes of a request that comes for a model."""

    RUNS = enum.auto()
    """At once."""
    WAITS = enum.auto()
    """In order, until the model is ready (again)."""
    LOADS = enum.auto()
    """It waits in order, and the model is wanted now."""
    RETRIES = enum.auto()
    """It waits in order, and the model is wanted when the back-off is over."""


@attrs.frozen
class Stage:
    """One row of the table.

    Attributes:
        on_request: what becomes of a request that comes now.
        moves: where each event leads that can come now.
    """

    on_request: OnRequest
    moves: Mapping[ModelEvent, ModelState]


_S, _E, _R = ModelState, ModelEvent, OnRequest
_STOPS = {_E.ABANDONED: _S.ABSENT, _E.FAILED: _S.FAILED}

LIFE: Mapping[ModelState, Stage] = MappingProxyType(
    {
        _S.ABSENT: Stage(_R.LOADS, {_E.WANTED: _S.QUEUED}),
        _S.QUEUED: Stage(_R.WAITS, {_E.ADMITTED: _S.LOADING, **_STOPS}),
        _S.LOADING: Stage(_R.WAITS, {_E.LOADED: _S.READY, **_STOPS}),
        _S.READY: Stage(_R.RUNS, {_E.LEAVE: _S.DRAINING}),
        _S.DRAINING: Stage(_R.WAITS, {_E.DRAINED: _S.UNLOADING}),
        _S.UNLOADING: Stage(_R.WAITS, {_E.GONE: _S.ABSENT, _E.FAILED: _S.FAILED}),
        _S.FAILED: Stage(_R.RETRIES, {_E.WANTED: _S.QUEUED}),
    }
)

FIRST_BACK_OFF = 1.0
LONGEST_BACK_OFF = 60.0


def next_state(state: ModelState, event: ModelEvent) -> ModelState:
    """Where `event` leads from `state`.

    Raises:
        OutOfTurn: it cannot come there.
    """
    try:
        return LIFE[state].moves[event]
    except KeyError:
        raise OutOfTurn(f"{event} cannot come to a model that is {state}") from None


def back_off(failures: int) -> float:
    """Seconds from a model's failure until it is tried again, if it has failed so often in a row.

    It doubles from one second to a minute.
    """
    return min(LONGEST_BACK_OFF, FIRST_BACK_OFF * 2.0 ** min(failures - 1, 16))
