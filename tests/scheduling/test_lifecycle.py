"""The life of a model, every state against every event: what the table must say, written out."""

from __future__ import annotations

from typing import Any

import pytest

from wiredactors.scheduling.lifecycle import (
    FIRST_BACK_OFF,
    LIFE,
    LONGEST_BACK_OFF,
    ModelEvent,
    ModelState,
    OnRequest,
    OutOfTurn,
    back_off,
    next_state,
)

#: A row for each state, a column for each event; "-" where it cannot come.
MATRIX = """
            wanted  admitted  loaded  abandoned  leave     drained    gone    failed
absent      queued  -         -       -          -         -          -       -
queued      -       loading   -       absent     -         -          -       failed
loading     -       -         ready   absent     -         -          -       failed
ready       -       -         -       -          draining  -          -       -
draining    -       -         -       -          -         unloading  -       -
unloading   -       -         -       -          -         -          absent  failed
failed      queued  -         -       -          -         -          -       -
"""

ON_REQUEST = {
    "absent": "LOADS",
    "queued": "WAITS",
    "loading": "WAITS",
    "ready": "RUNS",
    "draining": "WAITS",
    "unloading": "WAITS",
    "failed": "RETRIES",
}


def cells() -> list[tuple[str, str, str]]:
    """(state, event, where it leads) of the whole matrix."""
    head, *rows = [line.split() for line in MATRIX.strip().splitlines()]
    return [
        (state, event, leads)
        for state, *cells in rows
        for event, leads in zip(head, cells, strict=True)
    ]


def test_the_matrix_has_every_state_and_every_event() -> None:
    assert {state for state, _, _ in cells()} == set(ModelState) == set(ON_REQUEST) == set(LIFE)
    assert {event for _, event, _ in cells()} == set(ModelEvent)
    assert len(cells()) == len(ModelState) * len(ModelEvent) == 56


@pytest.mark.parametrize(("state", "event", "leads"), cells())
def test_each_event_in_each_state_leads_where_it_should_or_nowhere(
    state: str, event: str, leads: str
) -> None:
    if leads != "-":
        assert next_state(ModelState(state), ModelEvent(event)) is ModelState(leads)
        return
    with pytest.raises(OutOfTurn, match=f"^{event} cannot come to a model that is {state}$"):
        next_state(ModelState(state), ModelEvent(event))


@pytest.mark.parametrize("state", ModelState)
def test_each_state_says_what_becomes_of_a_request(state: ModelState) -> None:
    assert LIFE[state].on_request is OnRequest[ON_REQUEST[state]]


def reachable(start: ModelState) -> set[ModelState]:
    found, new = {start}, [start]
    while new:
        after = set(LIFE[new.pop()].moves.values()) - found
        found |= after
        new += after
    return found


@pytest.mark.parametrize("start", ModelState)
def test_from_each_state_a_model_can_come_to_each_other(start: ModelState) -> None:
    """None is unreachable, and in none is a model lost."""
    assert reachable(start) == set(ModelState)


@pytest.mark.parametrize("state", ModelState)
def test_whoever_waits_has_something_to_wait_for(state: ModelState) -> None:
    """Where a request waits, the model moves by itself; where it loads it, it can be wanted."""
    moves = LIFE[state].moves
    rule = LIFE[state].on_request
    assert (ModelEvent.WANTED in moves) is (rule in (OnRequest.LOADS, OnRequest.RETRIES))
    assert (rule is OnRequest.RUNS) is (state is ModelState.READY)


def test_the_table_cannot_be_changed() -> None:
    table: Any = LIFE
    with pytest.raises(TypeError):
        table[ModelState.ABSENT] = LIFE[ModelState.READY]


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 32), (7, 60), (8, 60), (1000, 60), (10**9, 60)],
)
def test_the_back_off_doubles_from_a_second_to_a_minute(failures: int, seconds: float) -> None:
    assert back_off(failures) == seconds


def test_the_bounds_of_the_back_off() -> None:
    assert (FIRST_BACK_OFF, LONGEST_BACK_OFF) == (1.0, 60.0)
