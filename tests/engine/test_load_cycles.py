"""Models come and go on real MLX: each leaves as much memory as it found."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import shutil
import time
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest
import trio

from tests.engine import gguf_files, tiny
from wiredactors.engine import gguf_model, loading, mlx_engine, serving
from wiredactors.engine.knowledge import Knowledge
from wiredactors.engine.mlx_engine import MlxEngine
from wiredactors.engine.mlx_model import MlxModel
from wiredactors.memory.errors import GenerationError, ModelLoadError
from wiredactors.memory.units import KIB, MIB
from wiredactors.scheduling.requests import (
    CacheOptions,
    LoadOptions,
    RowOutput,
    RowRequest,
    SamplingParameters,
)

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

TinyModel = Callable[..., Path]

#: Between two readings with nothing loaded: the random key, a scalar.
FEW_BYTES = 64


@contextlib.asynccontextmanager
async def open_engine(**options: Any) -> AsyncIterator[MlxEngine]:
    """An engine without actors, and without a pool, so that each buffer is as large as asked."""
    engine = MlxEngine(pool_bytes=0, **options)
    with trio.fail_after(120):
        await engine.open(lambda: 0, None)
        try:
            yield engine
        finally:
            await engine.close()


async def load(engine: MlxEngine, path: Path, name: str = "m", **options: Any) -> MlxModel:
    plan = await engine.plan(str(path), LoadOptions(**options))
    return await engine.load(name, plan, lambda done, total: None)


async def active_bytes(engine: MlxEngine) -> int:
    """With nothing in flight."""

    def read() -> int:
        gc.collect()
        engine._synchronize()
        return int(mx.get_active_memory())

    return await engine.device.run(read)


@attrs.define
class Answer:
    """What a row brought."""

    outputs: list[RowOutput] = attrs.Factory(list)
    ended: trio.Event = attrs.Factory(trio.Event)

    def take(self, output: RowOutput) -> None:
        self.outputs.append(output)
        if output.last:
            self.ended.set()

    @property
    def tokens(self) -> list[int]:
        return [output.token for output in self.outputs if output.token is not None]


def submit(model: MlxModel, row_id: str, *, prompt: int = 5, max_tokens: int = 20) -> Answer:
    answer = Answer()
    request = RowRequest(
        row_id=row_id,
        prompt=tuple(model.encode(tiny.prompt_of(prompt))),
        max_tokens=max_tokens,
        sampling=SamplingParameters(),
    )
    model.submit(request, answer.take)
    return answer


async def ask(model: MlxModel, **options: int) -> list[int]:
    answer = submit(model, "row", **options)
    await answer.ended.wait()
    assert answer.outputs[-1].error is None
    return answer.tokens


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


def embedding(engine: MlxEngine, name: str) -> Any:
    """A large array of a model's, of 8 MiB."""
    return engine._models[name].model.model.embed_tokens.weight


class TestLeftover:
    async def test_normally_everything_comes_back_also_beside_another_model_at_work(
        self, tiny_model: TinyModel
    ) -> None:
        async with open_engine() as engine:
            other = await load(engine, tiny_model("llama"), "other")
            answer = submit(other, "row", max_tokens=400)
            for _ in range(3):
                model = await load(engine, tiny_model("wide_vocabulary"))
                began = time.perf_counter()
                assert await model.unload() == 0
                assert time.perf_counter() - began < 0.9
            assert not answer.ended.is_set()
            await other.remove("row")

    async def test_what_somebody_holds_is_told_in_a_second_while_others_work_and_grow(
        self, tiny_model: TinyModel
    ) -> None:
        async with open_engine() as engine:
            other = await load(engine, tiny_model("llama"), "other")
            model = await load(engine, tiny_model("wide_vocabulary"))
            held = [await engine.device.run(lambda: embedding(engine, "m"))]
            size = held[0].nbytes
            answers = [submit(other, "first", max_tokens=1000)]
            await until(lambda: len(answers[0].tokens) > 2)
            left: list[int] = []

            async def unload() -> None:
                left.append(await model.unload())

            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(unload)
                await trio.sleep(0.1)
                seen = len(answers[0].tokens)
                # Caches of more than the array that is missed.
                answers += [submit(other, f"row-{n}", prompt=600, max_tokens=500) for n in range(8)]
            assert 1 <= time.perf_counter() - began < 3
            assert len(answers[0].tokens) > seen + 5
            assert abs(left[0] - size) < MIB
            for number, answer in enumerate(answers):
                assert not any(output.error for output in answer.outputs)
                await other.remove("first" if number == 0 else f"row-{number - 1}")
            held.clear()

    async def test_what_comes_back_a_moment_later_is_not_left(self, tiny_model: TinyModel) -> None:
        async with open_engine() as engine:
            other = await load(engine, tiny_model("llama"), "other")
            model = await load(engine, tiny_model("wide_vocabulary"))
            held = [await engine.device.run(lambda: embedding(engine, "m"))]
            submit(other, "row", max_tokens=1000)
            left: list[int] = []

            async def unload() -> None:
                left.append(await model.unload())

            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(unload)
                await trio.sleep(0.12)
                assert left == []
                held.clear()  # on this thread, between two looks
            assert left == [0]
            assert time.perf_counter() - began < 0.9
            await other.remove("row")

    async def test_it_ends_though_whoever_waits_is_cancelled(self, tiny_model: TinyModel) -> None:
        async with open_engine() as engine:
            before = await active_bytes(engine)
            model = await load(engine, tiny_model("llama"))
            with trio.CancelScope() as scope:
                scope.cancel()
                await model.unload()
            assert abs(await active_bytes(engine) - before) <= FEW_BYTES


class TestRows:
    async def test_rows_that_are_still_there_end_with_an_error_and_leave_nothing(
        self, tiny_model: TinyModel
    ) -> None:
        async with open_engine() as engine:
            before = await active_bytes(engine)
            model = await load(engine, tiny_model("llama"), prefill_step_size=16)
            decoding = [submit(model, f"row-{n}", max_tokens=1000) for n in range(2)]
            await until(lambda: all(answer.tokens for answer in decoding))
            reading = submit(model, "long", prompt=1500)
            assert await model.unload() == 0
            late = submit(model, "late")
            for answer in (*decoding, reading, late):
                await answer.ended.wait()
                assert isinstance(answer.outputs[-1].error, GenerationError)
                assert "unloaded" in str(answer.outputs[-1].error)
            assert engine._delivers == {}
            assert [await model.remove(name) for name in ("row-0", "long", "never")] == [0, 0, 0]
            assert abs(await active_bytes(engine) - before) <= FEW_BYTES

    async def test_another_models_rows_do_not_notice(self, tiny_model: TinyModel) -> None:
        async with open_engine() as engine:
            model = await load(engine, tiny_model("llama"), "stays")
            wanted = await ask(model, max_tokens=40)
            answer = submit(model, "row", max_tokens=40)
            for _ in range(3):
                goes = await load(engine, tiny_model("experts"), "goes")
                submit(goes, "gone", max_tokens=100)
                await goes.unload()
            await answer.ended.wait()
            assert answer.tokens == wanted


class TestLoads:
    @pytest.fixture(params=["directory", "gguf"])
    def source(self, request: pytest.FixtureRequest, tiny_model: TinyModel, tmp_path: Path) -> Path:
        if request.param == "directory":
            return tiny_model("llama")
        entries = [*gguf_files.llama_entries(), *gguf_files.tokenizer_entries()]
        path = tmp_path / "model.gguf"
        path.write_bytes(gguf_files.build(entries, gguf_files.llama_tensors()))
        return path

    async def test_one_that_is_cancelled_at_any_moment_leaves_nothing(self, source: Path) -> None:
        chance = random.Random(3)
        async with open_engine() as engine:
            began = time.perf_counter()
            await (await load(engine, source)).unload()
            whole = time.perf_counter() - began
            before = await active_bytes(engine)
            cancelled = 0
            for _ in range(30):
                with trio.move_on_after(chance.random() * whole) as scope:
                    model = await load(engine, source)
                    await model.unload()
                cancelled += scope.cancelled_caught
                assert (engine._models, engine._serving, engine._delivers) == ({}, {}, {})
                assert abs(await active_bytes(engine) - before) <= FEW_BYTES
            assert cancelled

    @pytest.mark.parametrize("amid", ["weights", "tokenizer", "costs", "knowledge", "serving"])
    async def test_one_that_fails_amid_leaves_nothing_and_the_next_goes_well(
        self, source: Path, monkeypatch: pytest.MonkeyPatch, amid: str
    ) -> None:
        def failing(*_: Any, **__: Any) -> Any:
            raise RuntimeError("amid")

        def half(plan: Any, progress: Any) -> Any:
            def advance(done: int, total: int) -> None:
                progress(done, total)
                if 2 * done > total:
                    failing()

            return loading.load(plan, advance)

        async with open_engine() as engine:
            await (await load(engine, source)).unload()
            before = await active_bytes(engine)
            engine._costs = type(engine._costs)()
            with monkeypatch.context() as patch:
                if amid == "weights":
                    patch.setattr(mlx_engine, "load", half)
                elif amid == "tokenizer":
                    patch.setattr(loading.import_mlx_lm("utils"), "load_tokenizer", failing)
                    patch.setattr(gguf_model, "gguf_tokenizer", failing)
                elif amid == "costs":
                    patch.setattr(mlx_engine, "measure_rows", failing)
                elif amid == "knowledge":
                    patch.setattr(Knowledge, "remember", failing)
                else:
                    patch.setattr(serving, "can_share", failing)
                with pytest.raises((RuntimeError, ModelLoadError), match="amid") as caught:
                    await load(engine, source)
                # The error is still held, with its frames.
                assert abs(await active_bytes(engine) - before) <= FEW_BYTES, caught
            assert (engine._models, engine._serving) == ({}, {})
            assert len(await ask(await load(engine, source))) == 20

    async def test_the_name_is_free_at_once_for_another_model(self, tiny_model: TinyModel) -> None:
        async with open_engine() as engine:
            wanted = {}
            for name in ("llama", "state_space", "llama", "state_space"):
                model = await load(engine, tiny_model(name))
                tokens = await ask(model)
                assert wanted.setdefault(name, tokens) == tokens
                await model.unload()
            assert wanted["llama"] != wanted["state_space"]


async def test_twenty_loads_with_a_generation_each_leave_what_they_found(
    tiny_model: TinyModel,
) -> None:
    """mlx-lm#1235: memory that did not come back after an unload."""
    async with open_engine() as engine:
        resident = []
        for _ in range(2):  # what is imported and cached at the first use
            model = await load(engine, tiny_model("wide_vocabulary"))
            await ask(model)
            await model.unload()
        before = await active_bytes(engine)
        for _ in range(20):
            model = await load(engine, tiny_model("wide_vocabulary"))
            module = await engine.device.run(lambda: weakref.ref(engine._models["m"].model))
            assert module() is not None
            await ask(model)
            assert await model.unload() == 0
            assert module() is None
            assert abs(await active_bytes(engine) - before) <= FEW_BYTES
            resident.append(psutil.Process().memory_info().rss)
    # Its weights are 8 MiB: 160 MiB, if they were kept.
    assert resident[-1] - resident[0] < 16 * MIB


class TestAgain:
    """A reload does not think again."""

    @pytest.fixture
    def thought(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What was thought through."""
        thought: list[str] = []

        def count(name: str) -> None:
            function = getattr(mlx_engine, name)

            def counted(*arguments: Any, **options: Any) -> Any:
                thought.append(name)
                return function(*arguments, **options)

            monkeypatch.setattr(mlx_engine, name, counted)

        count("plan_load")
        count("measure_rows")
        return thought

    async def test_the_same_model_with_the_same_options_is_thought_through_once(
        self, tiny_model: TinyModel, thought: list[str]
    ) -> None:
        path = tiny_model("llama")
        async with open_engine() as engine:
            costs, plans, tokens = set(), set(), set()
            for name in ("one", "two", "one"):
                plans.add(await engine.plan(str(path), LoadOptions()))
                model = await load(engine, path, name)
                costs.add(model.row_cost(CacheOptions()))
                tokens.add(tuple(await ask(model)))
                await model.unload()
            assert thought == ["plan_load", "measure_rows"]
            assert len(costs) == len(plans) == len(tokens) == 1
            other = await load(engine, path, prefill_step_size=128)
            assert thought == 2 * ["plan_load", "measure_rows"]
            await other.unload()

    async def test_another_model_in_its_place_is_thought_through_anew(
        self, tiny_model: TinyModel, tmp_path: Path, thought: list[str]
    ) -> None:
        path = Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))
        async with open_engine() as engine:
            first = await load(engine, path)
            await first.unload()
            shutil.rmtree(path)
            shutil.copytree(tiny_model("state_space"), path)
            second = await load(engine, path)
            assert thought == 2 * ["plan_load", "measure_rows"]
            assert second.row_cost(CacheOptions()) != first.row_cost(CacheOptions())
            assert len(await ask(second)) == 20
            await second.unload()

    async def test_a_plan_that_failed_is_made_again_when_the_file_is_whole(
        self, tiny_model: TinyModel, tmp_path: Path
    ) -> None:
        path = Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))
        weights = path / "model.safetensors"
        whole = weights.read_bytes()
        async with open_engine() as engine:
            await engine.plan(str(path), LoadOptions())
            os.truncate(weights, len(whole) - KIB)
            for _ in range(2):
                with pytest.raises(ModelLoadError, match="truncated"):
                    await engine.plan(str(path), LoadOptions())
            weights.write_bytes(whole)
            await engine.plan(str(path), LoadOptions())
