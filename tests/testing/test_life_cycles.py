"""What a modelled model can do wrong in its life: fail, dawdle, and leave something behind."""

from __future__ import annotations

import attrs
import pytest
import trio
from trio.testing import MockClock

from wiredactors.memory.errors import GenerationError, ModelLoadError
from wiredactors.memory.units import MIB
from wiredactors.scheduling.requests import LoadOptions, RowOutput, RowRequest, SamplingParameters
from wiredactors.testing import ModelledEngine, ModelledModel

BROKEN, WORSE = ModelLoadError("broken"), ModelLoadError("worse")
MODEL = ModelledModel(load_seconds=1, weight_bytes=100 * MIB)


async def open_with(model: ModelledModel) -> ModelledEngine:
    engine = ModelledEngine({"m": model})
    await engine.open(lambda: 0, None)
    return engine


async def load(engine: ModelledEngine, source: str = "m"):
    plan = await engine.plan(source, LoadOptions())
    return await engine.load("name", plan, lambda done, total: None)


async def fates(engine: ModelledEngine, loads: int) -> list[Exception | None]:
    """What became of so many loads, each with its unload."""
    found: list[Exception | None] = []
    for _ in range(loads):
        try:
            await (await load(engine)).unload()
        except ModelLoadError as error:
            found.append(error)
        else:
            found.append(None)
    return found


@pytest.mark.parametrize(
    ("first", "later", "found"),
    [
        ((), None, [None] * 4),
        ((), BROKEN, [BROKEN] * 4),
        ((BROKEN, WORSE), None, [BROKEN, WORSE, None, None]),
        ((None, BROKEN), None, [None, BROKEN, None, None]),
        ((None,), BROKEN, [None, BROKEN, BROKEN, BROKEN]),
    ],
)
async def test_the_first_loads_fail_as_they_are_told_to_and_the_later_ones_alike(
    autojump_clock: MockClock,
    first: tuple[Exception | None, ...],
    later: Exception | None,
    found: list[Exception | None],
) -> None:
    engine = await open_with(attrs.evolve(MODEL, load_errors=first, load_error=later))
    assert await fates(engine, 4) == found
    assert [record.what for record in engine.records].count("load") == 4
    assert engine.held_bytes == 0
    await engine.close()


async def test_each_source_counts_its_own_loads_and_a_new_model_begins_anew(
    autojump_clock: MockClock,
) -> None:
    model = attrs.evolve(MODEL, load_errors=(BROKEN,))
    engine = await open_with(model)
    engine.sources["other"] = model
    assert await fates(engine, 2) == [BROKEN, None]
    with pytest.raises(ModelLoadError, match="broken"):
        await load(engine, "other")
    engine.sources["m"] = attrs.evolve(MODEL, load_errors=(WORSE,))
    assert await fates(engine, 2) == [WORSE, None]
    await engine.close()


async def test_a_plan_can_fail(autojump_clock: MockClock) -> None:
    engine = await open_with(attrs.evolve(MODEL, plan_error=BROKEN))
    with pytest.raises(ModelLoadError, match="broken"):
        await load(engine)
    assert engine.records == []
    await engine.close()


async def test_an_unload_takes_its_time_and_holds_its_weights_until_then(
    autojump_clock: MockClock,
) -> None:
    engine = await open_with(attrs.evolve(MODEL, unload_seconds=3))
    loaded = await load(engine)
    with trio.move_on_after(1) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loaded.unload)
            await trio.sleep(0.5)
            assert engine.held_bytes == 100 * MIB
    assert scope.cancel_called
    assert trio.current_time() == 4  # though nobody waits for it any more
    assert (engine.records[-1].what, engine.records[-1].held_bytes) == ("unload", 100 * MIB)
    assert engine.held_bytes == 0
    await engine.close()


async def test_what_does_not_come_back_is_told_and_held_until_it_does(
    autojump_clock: MockClock,
) -> None:
    engine = await open_with(attrs.evolve(MODEL, leftover_bytes=7))
    for count in (1, 2):
        loaded = await load(engine)
        assert await loaded.unload() == 7
        assert engine.leftover_bytes == engine.held_bytes == 7 * count
    assert engine.charged_bytes == 0
    engine.leftover_bytes = 0
    assert engine.held_bytes == 0
    await (await load(engine)).unload()
    await engine.close()
    assert engine.records[-1].held_bytes == 7
    assert engine.held_bytes == 0


async def test_rows_that_are_there_or_come_later_end_with_an_error(
    autojump_clock: MockClock,
) -> None:
    engine = await open_with(MODEL)
    loaded = await load(engine)
    outputs: list[RowOutput] = []

    def submit(row_id: str) -> None:
        request = RowRequest(
            row_id=row_id, prompt=(1,) * 500, max_tokens=9, sampling=SamplingParameters()
        )
        loaded.submit(request, outputs.append)

    submit("reading")
    await trio.sleep(0.1)
    assert await loaded.unload() == 0
    submit("late")
    assert [output.row_id for output in outputs] == ["reading", "late"]
    assert all(isinstance(output.error, GenerationError) for output in outputs)
    assert await loaded.remove("reading") == 0
    assert engine.rows == frozenset()
    await engine.close()
