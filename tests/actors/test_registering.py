"""Models that are registered: what is refused at once, and what is said of them."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import wiredactors as wa
from tests.actors.lives import BROKEN, LOAD, MODEL, House
from tests.actors.modelled import PROMPT
from wiredactors.testing import ModelledEngine

pytestmark = pytest.mark.usefixtures("bounded")


async def test_what_was_added_is_loaded_in_the_same_words_or_in_none(
    autojump_clock: MockClock,
) -> None:
    house = House()
    async with house.opened() as runtime:
        model = runtime.add("m", keep_alive=50.0, weight=2.0)
        for other in ({"weight": 3.0}, {"pinned": True}):
            with pytest.raises(wa.ModelLoadError, match="registered with other options"):
                await runtime.load("m", **other)
        assert model.state == "absent"
        assert await runtime.load("m", keep_alive=50.0, weight=2.0) is model
        assert await runtime.load("m") is model


async def test_explain_takes_a_model_its_name_or_a_job_and_nothing_else(
    autojump_clock: MockClock,
) -> None:
    house = House(m=attrs.evolve(MODEL, load_errors=(BROKEN,)))
    async with house.opened() as runtime:
        model = runtime.add("m")
        job = model.start_generation(PROMPT, 2)
        await trio.sleep(LOAD / 2)
        found = runtime.explain(job)
        assert (found.state, found.since, found.waited) == ("waiting", 0.0, LOAD / 2)
        assert "'m', which is loading" in found.reason
        with pytest.raises(wa.ModelLoadError):
            await job.wait()
        for what in (model, "m"):
            assert "it failed: the file is broken" in runtime.explain(what).reason
        with pytest.raises(wa.ModelNotLoaded, match="there is no model 'other'"):
            runtime.explain("other")
        wrong: Any = 7
        with pytest.raises(TypeError, match="a model, its name, or a job, not 7"):
            runtime.explain(wrong)


async def test_a_measurement_that_makes_no_sense_loads_nothing(autojump_clock: MockClock) -> None:
    house = House()
    async with house.opened() as runtime:
        model = runtime.add("m")
        with pytest.raises(ValueError, match="token_count"):
            await model.tune(token_count=-1)
        assert (model.state, house.now) == ("absent", 0.0)


@pytest.mark.parametrize("seconds", [-1, True, float("nan")])
async def test_a_drain_that_makes_no_sense_opens_nothing(seconds: float) -> None:
    with pytest.raises(ValueError, match="drain_seconds"):
        async with wa.open_runtime(engine=ModelledEngine(), drain_seconds=seconds):
            pytest.fail("the body must not run")
