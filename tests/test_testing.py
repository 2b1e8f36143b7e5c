"""The public fakes: they behave as Metal's limit and as the engine that they stand for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock

from wiredactors.memory.errors import GenerationError, ModelLoadError
from wiredactors.memory.measurement import TuneParameters
from wiredactors.memory.outside import MemoryReading
from wiredactors.memory.units import MIB
from wiredactors.scheduling.requests import (
    LoadOptions,
    RowOutput,
    RowRequest,
    SamplingParameters,
    StepReport,
)
from wiredactors.testing import LimitWrite, ModelledEngine, ModelledModel, RecordingBackend

# -- the limit


def test_every_write_is_recorded_and_returns_the_previous_limit() -> None:
    backend = RecordingBackend(1000, limit=7)
    assert backend.set_wired_limit(100) == 7
    assert backend.set_wired_limit(50) == 100
    assert backend.calls == [LimitWrite(100, 7), LimitWrite(50, 100)]
    assert backend.writes == [100, 50]
    assert backend.limit == 50


@pytest.mark.parametrize("bounds", [{"recommended_working_set": 100}, {"refuse_over": 100}])
def test_a_limit_above_the_maximum_is_a_value_error_and_changes_nothing(
    bounds: dict[str, int],
) -> None:
    backend = RecordingBackend(**bounds)
    backend.set_wired_limit(100)
    backend.allocate("weights", 80)
    with pytest.raises(ValueError, match="above the 100"):
        backend.set_wired_limit(101)
    assert backend.limit == 100
    assert backend.wired == {"weights"}
    assert backend.writes == [100]
    assert backend.calls[-1].error is not None


def test_as_many_writes_fail_as_were_asked_to() -> None:
    backend = RecordingBackend()
    backend.fail_next(2)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            backend.set_wired_limit(1)
    assert backend.set_wired_limit(1) == 0


def test_what_does_not_fit_at_its_allocation_stays_out_until_the_limit_changes() -> None:
    backend = RecordingBackend()
    backend.set_wired_limit(100)
    backend.allocate("weights", 80)
    backend.allocate("cache", 30)
    assert (backend.wired, backend.unwired) == ({"weights"}, {"cache"})

    backend.free("weights")
    backend.clear_pool()
    backend.set_wired_limit(100)  # the same again: nothing happens
    assert backend.unwired == {"cache"}
    backend.set_wired_limit(101)
    assert backend.wired == {"cache"}


def test_freed_buffers_occupy_the_limit_until_the_pool_is_cleared() -> None:
    backend = RecordingBackend()
    backend.set_wired_limit(100)
    backend.allocate("old", 80)
    backend.free("old")
    assert backend.wired_bytes == 80
    backend.allocate("new", 30)
    assert backend.unwired == {"new"}
    backend.allocate("again", 80)  # the pooled one
    assert backend.wired == {"again"}
    backend.free("again")
    backend.clear_pool()
    assert backend.wired_bytes == 0


def test_a_shrink_unwires_arbitrary_buffers_the_same_ones_for_a_seed() -> None:
    def left_after_shrink(seed: int) -> frozenset[str]:
        backend = RecordingBackend(seed=seed)
        backend.set_wired_limit(100)
        for number in range(10):
            backend.allocate(f"layer-{number}", 10)
        backend.set_wired_limit(50)
        assert backend.wired_bytes == 50
        return backend.wired

    assert left_after_shrink(1) == left_after_shrink(1)
    assert len({left_after_shrink(seed) for seed in range(5)}) > 1


def test_a_pooled_buffer_serves_requests_that_are_a_little_smaller() -> None:
    backend = RecordingBackend()
    backend.set_wired_limit(100)
    for size in (30, 70):
        backend.allocate(f"old-{size}", size)
    for size in (30, 70):
        backend.free(f"old-{size}")
    backend.allocate("small", 15)  # half of the smallest: too small for it
    assert backend.unwired == {"small"}
    backend.allocate("large", 20)  # the smallest that serves
    assert backend.wired == {"large"}
    backend.clear_pool()
    assert backend.wired_bytes == 30  # all of the buffer counts
    page = 16 * 1024
    backend.allocate("huge", 10 * page)
    backend.free("huge")
    backend.allocate("not so huge", 8 * page)
    backend.clear_pool()
    backend.set_wired_limit(15 + 30 + 8 * page)
    assert backend.wired == {"small", "large", "not so huge"}


@pytest.mark.parametrize("limit", [-1, 1.5, None, 2**64])
def test_what_is_no_limit_is_a_type_error_as_mlx_has_it(limit: int) -> None:
    backend = RecordingBackend(limit=7)
    with pytest.raises(TypeError, match="wired limit"):
        backend.set_wired_limit(limit)
    assert (backend.limit, backend.writes) == (7, [])


def test_names_of_buffers_are_checked() -> None:
    backend = RecordingBackend()
    backend.allocate("a", 1)
    with pytest.raises(ValueError, match="already"):
        backend.allocate("a", 1)
    with pytest.raises(ValueError, match="no buffer"):
        backend.free("b")


def test_the_memory_that_is_read_is_what_the_test_says() -> None:
    backend = RecordingBackend()
    assert backend.memory_reading() is None
    backend.reading = MemoryReading(100, 40, 10)
    assert backend.memory_reading() == backend.reading


# -- the engine


class Rows:
    """Puts rows into an engine's model and keeps what comes out."""

    def __init__(self) -> None:
        self.outputs: list[tuple[float, RowOutput]] = []

    def request(self, row_id: str, prompt: int, max_tokens: int) -> RowRequest:
        return RowRequest(
            row_id=row_id,
            prompt=(1,) * prompt,
            max_tokens=max_tokens,
            sampling=SamplingParameters(),
        )

    def take(self, output: RowOutput) -> None:
        self.outputs.append((trio.current_time(), output))

    def times(self, row_id: str) -> list[float]:
        return [time for time, output in self.outputs if output.row_id == row_id and output.token]

    def last(self, row_id: str) -> RowOutput:
        [last] = [output for _, output in self.outputs if output.row_id == row_id and output.last]
        return last


@asynccontextmanager
async def opened(
    engine: ModelledEngine, granted: Callable[[], int] = lambda: 0
) -> AsyncIterator[ModelledEngine]:
    await engine.open(granted, None)
    try:
        yield engine
    finally:
        await engine.close()


def ignore(done: int, total: int) -> None:
    pass


async def test_a_row_takes_its_prefill_and_a_step_for_each_token(autojump_clock: MockClock) -> None:
    model = ModelledModel(prefill_tokens_per_second=100, step_seconds=0.5, load_seconds=2)
    rows = Rows()
    async with opened(ModelledEngine({"m": model})) as engine:
        plan = await engine.plan("m", LoadOptions())
        loaded = await engine.load("m", plan, ignore)
        assert trio.current_time() == 2
        loaded.submit(rows.request("a", prompt=300, max_tokens=3), rows.take)
        await trio.sleep(60)
    assert rows.times("a") == pytest.approx([5.5, 6, 6.5])
    assert rows.last("a").finish_reason == "length"
    # 303 tokens in steps of 256
    assert rows.last("a").kv_bytes == 2 * 256 * model.kv_bytes_per_token


async def test_rows_alike_share_their_steps(autojump_clock: MockClock) -> None:
    model = ModelledModel(prefill_tokens_per_second=1e9, step_seconds=1, load_seconds=0)
    rows = Rows()
    async with opened(ModelledEngine({"m": model})) as engine:
        loaded = await engine.load("m", await engine.plan("m", LoadOptions()), ignore)
        for name in ("a", "b", "c"):
            loaded.submit(rows.request(name, prompt=10, max_tokens=10), rows.take)
        await trio.sleep(60)
        # Their prompts are short, and are read before the first step.
        assert rows.times("a") == rows.times("c") == pytest.approx(list(range(1, 11)))
        assert max(report.rows for report in engine.reports) == 3
        assert engine.rows == frozenset()


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
async def test_while_a_long_prompt_is_read_rows_keep_their_share_and_short_ones_come_between(
    share: float, autojump_clock: MockClock
) -> None:
    model = ModelledModel(
        prefill_tokens_per_second=1000, step_seconds=0.01, load_seconds=0, context_length=10**6
    )
    rows = Rows()
    async with opened(ModelledEngine({"m": model}, decode_share=share)) as engine:
        loaded = await engine.load("m", await engine.plan("m", LoadOptions()), ignore)
        loaded.submit(rows.request("a", prompt=10, max_tokens=10_000), rows.take)
        await trio.sleep(1)
        loaded.submit(rows.request("long", prompt=40 * 256, max_tokens=1), rows.take)
        await trio.sleep(3)
        loaded.submit(rows.request("short", prompt=10, max_tokens=1), rows.take)
        await trio.sleep(100)
    [end] = rows.times("long")
    during = [time for time in rows.times("a") if 1 < time < end]
    assert len(during) * model.step_seconds / (end - 1) == pytest.approx(share, abs=0.03)
    # The rest of a chunk, its own, and a step of each of two batches.
    assert rows.times("short")[0] - 4 <= 0.256 + 0.01 + 2 * 0.01 + 1e-9
    prefills = [report for report in engine.reports if report.what == "prefill"]
    assert [report.rows for report in prefills] == [0] * 42
    assert max(report.seconds for report in prefills) == pytest.approx(0.256)


async def test_models_share_the_device_by_weight(autojump_clock: MockClock) -> None:
    slow = ModelledModel(step_seconds=0.5, load_seconds=0, context_length=10**6)
    engine = ModelledEngine({"slow": slow, "quick": attrs.evolve(slow, step_seconds=0.01)})
    rows = Rows()
    async with opened(engine):
        for name, weight in (("slow", 1.0), ("quick", 3.0)):
            plan = await engine.plan(name, LoadOptions(weight=weight))
            loaded = await engine.load(name, plan, ignore)
            loaded.submit(rows.request(name, prompt=1, max_tokens=100_000), rows.take)
        await trio.sleep(40)
    assert len(rows.times("slow")) * 0.5 == pytest.approx(10, abs=1)
    assert len(rows.times("quick")) * 0.01 == pytest.approx(30, abs=1)


async def test_a_batch_takes_no_more_rows_than_the_model_was_loaded_for(
    autojump_clock: MockClock,
) -> None:
    rows = Rows()
    async with opened(ModelledEngine()) as engine:
        plan = await engine.plan("model", LoadOptions(max_batch_size=2))
        loaded = await engine.load("m", plan, ignore)
        for name in ("a", "b", "c"):
            loaded.submit(rows.request(name, prompt=10, max_tokens=10), rows.take)
        await trio.sleep(60)
    assert max(report.rows for report in engine.reports) == 2
    assert rows.last("c").finish_reason == "length"


async def test_a_failing_row_leaves_the_others_alone(autojump_clock: MockClock) -> None:
    rows = Rows()
    async with opened(ModelledEngine()) as engine:
        loaded = await engine.load("m", await engine.plan("model", LoadOptions()), ignore)
        engine.fail_row("a", after_tokens=2)
        for name in ("a", "b"):
            loaded.submit(rows.request(name, prompt=10, max_tokens=5), rows.take)
        await trio.sleep(60)
    assert isinstance(rows.last("a").error, GenerationError)
    assert (len(rows.times("a")), len(rows.times("b"))) == (2, 5)


async def test_the_same_prompt_gives_the_same_answer_and_its_text_flushes_last(
    autojump_clock: MockClock,
) -> None:
    model = ModelledModel(answer_tokens=4, flushed_text="!")
    rows = Rows()
    async with opened(ModelledEngine({"m": model})) as engine:
        loaded = await engine.load("m", await engine.plan("m", LoadOptions()), ignore)
        for name in ("a", "b"):
            loaded.submit(rows.request(name, prompt=3, max_tokens=9), rows.take)
        await trio.sleep(60)
    texts = {
        name: "".join(output.text for _, output in rows.outputs if output.row_id == name)
        for name in ("a", "b")
    }
    assert texts["a"] == texts["b"] == model.answer("\x01\x01\x01", 9)
    assert rows.last("a") == RowOutput(
        row_id="a", text="!", finish_reason="stop", kv_bytes=256 * model.kv_bytes_per_token
    )


async def test_memory_is_modelled_and_reported(autojump_clock: MockClock) -> None:
    model = ModelledModel(
        weight_bytes=100 * MIB,
        peak_bytes=150 * MIB,
        workspace_bytes=7 * MIB,
        margin_bytes=2 * MIB,
        load_seconds=4,
    )
    heard: list[StepReport] = []
    engine = ModelledEngine({"m": model})
    await engine.open(lambda: 42, heard.append)
    plan = await engine.plan("m", LoadOptions())
    assert (plan.weight_bytes, plan.peak_bytes) == (100 * MIB, 150 * MIB)
    assert (plan.workspace_bytes, plan.margin_bytes) == (7 * MIB, 2 * MIB)
    given = await engine.plan("m", LoadOptions(margin_bytes=5))
    assert (given.workspace_bytes, given.margin_bytes) == (7 * MIB, 5)
    async with trio.open_nursery() as nursery:
        progress: list[tuple[int, int]] = []
        nursery.start_soon(engine.load, "m", plan, lambda *numbers: progress.append(numbers))
        await trio.sleep(2.5)
        assert (engine.held_bytes, len(progress)) == (150 * MIB, 2)
    assert progress[-1] == (100 * MIB, 100 * MIB)
    assert engine.held_bytes == 100 * MIB

    rows = Rows()
    engine.submit("m", rows.request("a", prompt=200, max_tokens=1000), rows.take)
    await trio.sleep(1)
    step_bytes = 256 * model.kv_bytes_per_token
    assert engine.held_bytes == 100 * MIB + step_bytes
    assert engine.charged_bytes == 109 * MIB + 5 * step_bytes
    assert heard[-1].active_bytes == 100 * MIB + step_bytes
    assert heard[-1].peak_bytes == 107 * MIB + step_bytes
    assert heard[-1].granted_bytes == 42
    assert await engine.remove("a") == step_bytes
    await engine.unload("m")
    assert engine.held_bytes == engine.charged_bytes == 0
    await engine.close()
    assert [record.what for record in engine.records if record.what not in ("prefill", "step")] == [
        "load",
        "submit",
        "let_go",
        "unload",
        "close",
    ]


async def test_a_prediction_lacks_only_what_is_unpredicted(autojump_clock: MockClock) -> None:
    model = ModelledModel(kv_bytes_per_token=MIB, unpredicted_bytes=5)
    engine = ModelledEngine({"m": model})
    await engine.open(lambda: 0, None)
    loaded = await engine.load("m", await engine.plan("m", LoadOptions()), ignore)
    parameters = TuneParameters(token_count=300, prefill_step_size=300, batch_size=2)
    predicted, measured = await loaded.predict(parameters), await loaded.tune(parameters)
    assert measured.kv_bytes - predicted.kv_bytes == 10
    assert measured.workspace_bytes == predicted.workspace_bytes
    assert (predicted.measured, measured.measured) == (False, True)
    await engine.close()


async def test_a_measurement_has_the_device_to_itself_and_frees_what_it_made(
    autojump_clock: MockClock,
) -> None:
    model = ModelledModel(
        weight_bytes=100 * MIB, kv_bytes_per_token=MIB, unpredicted_bytes=5, load_seconds=0
    )
    heard: list[StepReport] = []
    engine = ModelledEngine({"m": model})
    await engine.open(lambda: 42, heard.append)
    loaded = await engine.load("m", await engine.plan("m", LoadOptions()), ignore)
    rows, heard[:] = Rows(), []
    parameters = TuneParameters(
        token_count=900, prefill_step_size=300, batch_size=2, decode_tokens=1
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loaded.tune, parameters)
        await trio.sleep(0.1)
        loaded.submit(rows.request("a", prompt=1, max_tokens=1), rows.take)
        assert engine.held_bytes == 100 * MIB + 2 * (1112 * MIB + 5)
        workspace = 10 * MIB * 2 * 300 // model.prefill_step_size
        measured = 2 * (1112 * MIB + 5) + workspace - 10 * MIB
        assert engine.charged_bytes == 110 * MIB + measured + 256 * MIB
    assert [report.what for report in heard] == ["tune"] * 4
    assert [report.seconds for report in heard] == pytest.approx([0.6, 0.6, 0.6, 0.05])
    assert heard[0].peak_bytes == 100 * MIB + workspace + 2 * (1112 * MIB + 5)
    assert heard[0].granted_bytes == 42
    await trio.sleep(1)
    assert rows.last("a").kv_bytes == 256 * MIB + 5
    assert engine.held_bytes == 100 * MIB
    await engine.close()


@pytest.mark.parametrize("cancel_at", [0.0, 0.1, 1.0, 3.9])
async def test_a_load_that_is_cancelled_or_fails_leaves_nothing(
    cancel_at: float, autojump_clock: MockClock
) -> None:
    failing = ModelledModel(load_seconds=4, load_error=ModelLoadError("broken file"))
    async with opened(ModelledEngine({"m": failing})) as engine:
        plan = await engine.plan("m", LoadOptions())
        with trio.move_on_after(cancel_at) as scope:
            await engine.load("m", plan, ignore)
        assert scope.cancelled_caught
        assert engine.held_bytes == 0
        with pytest.raises(ModelLoadError, match="broken file"):
            await engine.load("m", plan, ignore)
        assert engine.held_bytes == 0
        with pytest.raises(ModelLoadError, match="no model 'other'"):
            await engine.plan("other", LoadOptions())


async def test_a_quiet_backend_is_written_between_two_steps(autojump_clock: MockClock) -> None:
    recording = RecordingBackend(1000)
    model = ModelledModel(step_seconds=1, load_seconds=0)
    rows = Rows()
    async with opened(ModelledEngine({"m": model}, backend=recording)) as engine:
        quiet = engine.limit_backend(None)  # it needs no guard
        loaded = await engine.load("m", await engine.plan("m", LoadOptions()), ignore)
        loaded.submit(rows.request("a", prompt=1, max_tokens=9), rows.take)
        await trio.sleep(1.5)
        outcomes: list[object] = []
        for limit in (10, 5000):
            quiet.write_wired_limit(
                limit, lambda previous, error: outcomes.append(error or previous)
            )
        assert recording.writes == []
        await trio.sleep(1)
    assert recording.writes == [10]
    assert outcomes[0] == 0
    assert isinstance(outcomes[1], ValueError)


def test_a_quiet_backend_knows_of_memory_what_the_one_inside_knows() -> None:
    recording = RecordingBackend(total_memory=1000)
    quiet = ModelledEngine(backend=recording).limit_backend(None)
    assert quiet.total_memory_bytes() == 1000
    recording.reading = MemoryReading(1000, 40, 10)
    assert quiet.memory_reading() == recording.reading

    class Bare:
        supported = True

        def recommended_working_set_bytes(self) -> int:
            return 1000

        def set_wired_limit(self, limit: int) -> None:
            pass

    bare = ModelledEngine(backend=Bare()).limit_backend(None)
    assert not hasattr(bare, "total_memory_bytes")
    assert not hasattr(bare, "memory_reading")
