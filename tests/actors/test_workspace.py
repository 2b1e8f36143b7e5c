"""The workspace: the largest of the models' is held once, and beside it each model's margin.

Weights are 100 MiB, a load takes 4 s.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import wiredactors as wa
from wiredactors.testing import ModelledEngine, ModelledModel, RecordingBackend

M = wa.MIB
MODEL = ModelledModel(
    weight_bytes=100 * M, workspace_bytes=10 * M, margin_bytes=2 * M, load_seconds=4
)
SOURCES = {
    "small": MODEL,
    "wide": attrs.evolve(MODEL, workspace_bytes=30 * M, margin_bytes=3 * M),
    "careful": attrs.evolve(MODEL, workspace_bytes=0, margin_bytes=50 * M),
}


class House:
    """A runtime under a ceiling, and what is held in it, in MiB."""

    def __init__(self, ceiling: int = 1000, **more: Any):
        self.engine = ModelledEngine(SOURCES)
        self.configuration = wa.WiredMemoryConfiguration(admission_ceiling=ceiling * M, **more)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[wa.Runtime]:
        async with wa.open_runtime(
            configuration=self.configuration, backend=RecordingBackend(), engine=self.engine
        ) as self.runtime:
            yield self.runtime
        assert self.tickets == {}
        assert all(r.charged_bytes <= r.granted_bytes for r in self.engine.records)

    @property
    def tickets(self) -> dict[str, int]:
        tickets = self.runtime.manager.snapshot().tickets
        return {ticket.ticket_id: ticket.size // M for ticket in tickets}

    @property
    def workspace(self) -> int | None:
        return self.tickets.get("workspace")


async def test_margins_add_up_beside_the_largest_workspace(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as runtime:
        sizes = []
        for source in ("small", "wide", "careful"):
            await runtime.load(source)
            sizes.append(house.workspace)
        for name in ("wide", "small", "careful"):
            await runtime.unload(name)
            sizes.append(house.workspace)
        assert sizes == [10 + 2, 30 + 2 + 3, 30 + 2 + 3 + 50, 10 + 2 + 50, 50, None]


async def test_a_margin_that_is_given_is_held_instead_of_the_plans(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime:
        await runtime.load("small", "none", margin=0)
        assert house.workspace == 10
        await runtime.load("small", "more", margin=7 * M)
        assert house.workspace == 10 + 7
        await runtime.load("small")
        assert house.workspace == 10 + 7 + 2


@pytest.mark.parametrize("margin", [-1, 1.5, True, "1"])
async def test_a_margin_that_is_no_number_of_bytes_is_refused(
    margin: Any, autojump_clock: MockClock
) -> None:
    house = House()
    async with house.opened() as runtime:
        with pytest.raises(ValueError, match="margin_bytes must be an integer from 0"):
            await runtime.load("small", margin=margin)
        assert house.tickets == {}


async def test_a_load_asks_for_its_margin_with_its_weights(autojump_clock: MockClock) -> None:
    house = House(ceiling=114)
    async with house.opened() as runtime:
        with trio.fail_after(10), pytest.raises(wa.TicketTooLarge) as caught:
            await runtime.load("small", margin=5 * M)
        assert caught.value.need == (100 + 10 + 5) * M
        with trio.fail_after(10):
            await runtime.load("small", margin=4 * M)
        assert house.tickets == {"weights/small": 100, "workspace": 14}


async def test_a_load_that_waited_asks_for_no_more_though_others_came_and_went(
    autojump_clock: MockClock,
) -> None:
    """What it counted on stays shared: else it would wait again, and hold its weights meanwhile."""
    house = House(ceiling=400, overtake_seconds=0)  # nobody passes one that waits
    async with house.opened() as runtime, trio.open_nursery() as nursery:
        await runtime.load("wide", "first")
        async with wa.WiredSumPolicy().ticket(267 * M).wired_limit():  # all that is left
            nursery.start_soon(runtime.load, "wide", "second")
            await wait_all_tasks_blocked()
            nursery.start_soon(wa.WiredSumPolicy().ticket(25 * M).start)  # would take it
            await wait_all_tasks_blocked()
            await runtime.unload("first")
            await trio.sleep(5)
            assert list(runtime.models) == ["second"]
            assert house.workspace == 33
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(20))
async def test_what_is_held_is_right_whoever_comes_goes_or_gives_up(
    seed: int, autojump_clock: MockClock
) -> None:
    chance = Random(seed)
    house = House(ceiling=chance.choice([260, 400, 1000]))

    async def come_and_go(name: str) -> None:
        for _ in range(4):
            await trio.sleep(chance.random() * 5)
            source = chance.choice(list(SOURCES))
            with trio.move_on_after(chance.choice([3, 6, 1000])) as scope:
                await runtime.load(source, name, margin=chance.choice([None, 0, 9 * M]))
            if not scope.cancelled_caught:
                await trio.sleep(chance.random() * 5)
                await runtime.unload(name)

    async with house.opened() as runtime, trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(come_and_go, name)
    assert {record.what for record in house.engine.records} == {"load", "unload", "close"}
