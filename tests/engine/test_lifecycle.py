"""The life of a model on real MLX: two that do not fit together, in turn, and back to nothing.

The table is tried in `tests/scheduling/test_lifecycle.py`, each state against each kind of request
in `tests/actors/test_lifecycle.py`.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import wiredactors as wa
from tests.engine import tiny
from tests.engine.test_continuous import by_mlx_lm
from wiredactors.actors.broadcast import EventStream
from wiredactors.actors.model import Model
from wiredactors.actors.runtime import Runtime
from wiredactors.engine import loading, mlx_engine
from wiredactors.engine.mlx_engine import MlxEngine
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.errors import ModelLoadError, TicketTooLarge
from wiredactors.memory.events import WiredMemoryEvent
from wiredactors.memory.policies import WiredSumPolicy
from wiredactors.memory.units import KIB, MIB
from wiredactors.scheduling.lifecycle import ModelState
from wiredactors.scheduling.requests import LoadOptions, StepReport

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

TinyModel = Callable[..., Path]

#: Between two readings with nothing loaded: the random key, a scalar. Of such there may be some in
#: the pool, too, which is bounded by 1 KiB here.
FEW_BYTES = 64

TOKENS = 20
PROMPT = tiny.prompt_of(9)


@attrs.define
class House:
    """A runtime on real MLX.

    Attributes:
        need: bytes that one model and one of its jobs take, at the load's peak.
        before: MLX's active memory with no model there.
        reports: of each step and load.
        settled: at each look at the machine's memory after an unload: MLX's active memory, its
            pool, and the tickets that are held still.
    """

    runtime: Runtime
    engine: MlxEngine
    stream: EventStream
    before: int
    need: int
    reports: list[StepReport]
    settled: list[tuple[int, int, set[str]]] = attrs.Factory(list)
    events: list[WiredMemoryEvent] = attrs.Factory(list)

    async def active_bytes(self) -> int:
        """With nothing in flight."""

        def read() -> int:
            gc.collect()
            self.engine._synchronize()
            return int(mx.get_active_memory())

        return await self.engine.device.run(read)

    @property
    def tickets(self) -> set[str]:
        return {ticket.ticket_id for ticket in self.runtime.manager.snapshot().tickets}

    def life(self, model: str) -> list[str]:
        """What has been told of it, but for the progress of its loads."""
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                self.events.append(self.stream.receive_nowait())
        return [
            " ".join([event.kind.removeprefix("model_"), event.details.get("reason", "")]).strip()
            for event in self.events
            if event.model == model and event.job is None and event.kind != "model_progress"
        ]

    def watch_settling(self) -> None:
        manager: Any = self.runtime.manager
        read = manager.read_memory_now

        def noted() -> None:
            self.settled.append((mx.get_active_memory(), mx.get_cache_memory(), self.tickets))
            read()

        manager.read_memory_now = noted


async def need_of(path: Path) -> int:
    """What a model and one of its jobs take: by its plan, and by a model that is really there."""
    engine = MlxEngine()
    async with wa.open_runtime(engine=engine) as runtime:
        plan = await engine.plan(str(path), LoadOptions(margin_bytes=0))
        model = await runtime.load(path, margin=0)
        held = sum(ticket.size for ticket in runtime.manager.snapshot().tickets)
        assert held == model.weight_bytes + plan.workspace_bytes
        row = model.ticket_size(PROMPT, TOKENS)
        need = max(plan.peak_bytes + plan.workspace_bytes, held + row)
        # While one is there, though idle, another like it cannot be loaded.
        assert need < held + plan.peak_bytes
        return need


@contextlib.asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[House]:
    """With room for one model like that at `path`, and one job; afterwards nothing is left."""
    with trio.fail_after(60):
        need = await need_of(path)
        gc.collect()
        mx.clear_cache()
        before, pool = mx.get_active_memory(), mx.set_cache_limit(0)
        mx.set_cache_limit(pool)
        engine, reports = MlxEngine(), list[StepReport]()
        async with (
            contextlib.AsyncExitStack() as streams,
            wa.open_runtime(
                WiredSumPolicy(cap=need),
                WiredMemoryConfiguration(watch_seconds=3600),
                engine=engine,
                on_step=reports.append,
                **options,
            ) as runtime,
        ):
            stream = await streams.enter_async_context(runtime.manager.events())
            house = House(runtime, engine, stream, before, need, reports)
            house.watch_settling()
            yield house
        gc.collect()
        assert abs(mx.get_active_memory() - before) <= FEW_BYTES
        assert mx.get_cache_memory() <= KIB
        assert mx.set_cache_limit(pool) == pool
        assert runtime.manager.snapshot().tickets == ()


@pytest.fixture
def wide(tiny_model: TinyModel) -> Path:
    """A model of 8 MiB, which MLX's memory tells from noise."""
    return tiny_model("wide_vocabulary")


@pytest.fixture
def other(tiny_model: TinyModel) -> Path:
    return tiny_model("wide_vocabulary", 8)


def alone(path: Path) -> list[int]:
    """What mlx-lm itself answers."""
    return [token for token, _ in by_mlx_lm(path, PROMPT, TOKENS)]


async def ask(model: Model) -> list[int]:
    return list((await model.start_generation(PROMPT, TOKENS).wait()).tokens)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


async def test_two_models_that_do_not_fit_together_answer_in_turn_as_each_alone(
    wide: Path, other: Path
) -> None:
    wanted = {
        path: [token for token, _ in by_mlx_lm(path, PROMPT, TOKENS)] for path in (wide, other)
    }
    assert wanted[wide] != wanted[other]
    async with opened(wide) as house:
        models = {path: house.runtime.add(path, margin=0) for path in (wide, other)}
        first = models[wide].start_generation(PROMPT, TOKENS)
        await until(lambda: models[wide].state == "loading")
        second = models[other].start_generation(PROMPT, TOKENS)
        assert list((await first.wait()).tokens) == wanted[wide]
        assert list((await second.wait()).tokens) == wanted[other]
        for path in 2 * [wide, other]:
            assert await ask(models[path]) == wanted[path]
            states = sorted(str(model.state) for model in models.values())
            assert states == ["absent", "ready"]
        # One after the other: each look after an unload found nothing but what was there before.
        assert len(house.settled) == 5
        for active, pool, tickets in house.settled:
            assert abs(active - house.before) <= FEW_BYTES
            assert pool <= KIB
            assert len([name for name in tickets if name.startswith("weights/")]) == 1
        for model in models.values():
            stay = ["queued", "loading", "ready", "draining pressure", "unloaded pressure"]
            assert house.life(model.name)[:10] == 2 * stay
        over = [
            max(report.active_bytes, report.peak_bytes) - house.before - report.granted_bytes
            for report in house.reports
        ]
        assert max(over) < MIB
    assert house.life(wide.name)[-1].startswith("unloaded")


async def test_after_each_unload_mlx_has_what_it_had_and_memory_is_measured_before_the_end(
    wide: Path,
) -> None:
    async with opened(wide) as house:
        model = house.runtime.add(wide, margin=0)
        before = await house.active_bytes()
        answers = set()
        for number in range(1, 4):
            answers.add(tuple(await ask(model)))
            assert await house.active_bytes() > before + 4 * MIB
            await house.runtime.unload(model.name)
            assert abs(await house.active_bytes() - before) <= FEW_BYTES
            assert (mx.get_cache_memory() <= KIB, house.tickets) == (True, set())
            assert len(house.settled) == number
            # The weights' ticket was still held then, and nothing of the model.
            active, pool, tickets = house.settled[-1]
            assert tickets == {f"weights/{model.name}", "workspace"}
            assert abs(active - before) <= FEW_BYTES
            assert pool <= KIB
        assert len(answers) == 1


async def test_it_goes_when_it_was_not_used_for_so_long_and_comes_again_when_asked(
    wide: Path,
) -> None:
    async with opened(wide) as house:
        model = house.runtime.add(wide, margin=0, keep_alive=0.2)
        first = await ask(model)
        async for event in house.stream:
            house.events.append(event)
            if event.kind == "model_unloaded":
                break
        times = {str(event.kind): event.timestamp for event in house.events}
        assert times["model_draining"] >= times["job_finished"] + 0.2 - 0.01
        assert house.life(model.name)[-2:] == ["draining keep_alive", "unloaded keep_alive"]
        assert await ask(model) == first


async def test_a_request_that_comes_while_it_unloads_waits_and_loads_it_again(
    wide: Path,
) -> None:
    async with opened(wide) as house, trio.open_nursery() as nursery:
        model = house.runtime.add(wide, margin=0)
        first = await ask(model)
        house.engine.device.post(lambda: time.sleep(0.1))
        nursery.start_soon(house.runtime.unload, model.name)
        await until(lambda: model.state == "unloading")
        jobs = [model.start_generation(PROMPT, TOKENS) for _ in range(2)]
        assert model.state == "unloading"
        assert model.jobs == tuple(jobs)
        assert [list((await job.wait()).tokens) for job in jobs] == [first, first]
        assert house.life(model.name)[3:] == [
            *["draining unload", "unloaded unload", "queued", "loading", "ready"]
        ]


async def test_a_pinned_model_stays_and_what_never_fits_beside_it_is_refused(
    wide: Path, other: Path
) -> None:
    async with opened(wide) as house:
        model = await house.runtime.load(wide, margin=0, pinned=True)
        with pytest.raises(TicketTooLarge):
            await house.runtime.add(other, margin=0).load()
        assert model.state == "ready"
        model.unpin()
        await house.runtime.models[other.name].load()
        assert model.state == "absent"


async def test_a_file_that_was_broken_is_read_again_after_the_back_off(
    wide: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(wide, tmp_path / "model"))
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    async with opened(wide) as house:
        before = await house.active_bytes()
        model = house.runtime.add(path, margin=0)
        assert await ask(model) == alone(wide)
        await house.runtime.unload(model.name)
        weights.write_bytes(whole[: len(whole) - KIB])
        jobs = [model.start_generation(PROMPT, TOKENS) for _ in range(2)]
        for job in jobs:
            with pytest.raises(ModelLoadError, match="truncated"):
                await job.wait()
        assert (model.state, house.tickets) == ("failed", set())
        assert abs(await house.active_bytes() - before) <= FEW_BYTES
        weights.write_bytes(whole)
        began = trio.current_time()
        tokens = await ask(model)
        assert trio.current_time() > began + 0.9
        assert tokens == alone(wide)


async def test_a_load_that_breaks_off_amid_its_weights_leaves_nothing(
    wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(plan: Any, advance: Callable[[int, int], None]) -> Any:
        def half(done: int, total: int) -> None:
            advance(done, total)
            if 2 * done > total:
                raise OSError("the disk is gone")

        return loading.load(plan, half)

    async with opened(wide) as house:
        before = await house.active_bytes()
        model = house.runtime.add(wide, margin=0)
        with monkeypatch.context() as patch:
            patch.setattr(mlx_engine, "load", broken)
            with pytest.raises((ModelLoadError, OSError), match="the disk is gone"):
                await model.load()
        assert (model.state, house.tickets) == ("failed", set())
        assert abs(await house.active_bytes() - before) <= FEW_BYTES
        assert len(await ask(model)) == TOKENS


@pytest.mark.parametrize("state", ModelState)
async def test_a_runtime_that_closes_in_any_state_leaves_nothing(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: ModelState
) -> None:
    path = wide
    if state == "failed":
        path = Path(shutil.copytree(wide, tmp_path / "model"))
        (path / "model.safetensors").write_bytes(b"no")

    def endless(plan: Any, advance: Callable[[int, int], None]) -> Any:
        weights = mx.zeros(MIB)
        mx.eval(weights)
        while True:  # until it is told that nobody wants it any more
            advance(0, 1)
            time.sleep(0.001)

    jobs = []
    async with trio.open_nursery() as nursery, opened(wide, drain_seconds=0) as house:
        model = house.runtime.add(path, margin=0)
        if state in ("ready", "draining", "unloading"):
            await model.load()
        if state == "queued":
            await WiredSumPolicy(cap=house.need).ticket(house.need).start()
        if state == "loading":
            monkeypatch.setattr(mlx_engine, "load", endless)
        if state == "draining":
            jobs.append(model.start_generation(PROMPT, tiny.CONTEXT - 100))
            await anext(jobs[0])
        if state == "unloading":
            house.engine.device.post(lambda: time.sleep(0.1))
        if state in ("draining", "unloading"):
            nursery.start_soon(house.runtime.unload, model.name)
        if state == "failed":
            with pytest.raises(ModelLoadError):
                await model.load()
        if state != "absent":
            if state in ("draining", "unloading"):
                await until(lambda: model.state == state)
            jobs.append(model.start_generation(PROMPT, tiny.CONTEXT - 100))
        await until(lambda: model.state == state)
    assert [job.result.finish_reason for job in jobs if job.result] == ["cancelled"] * len(jobs)


async def test_jobs_are_let_end_when_a_runtime_closes_with_time_to_drain(wide: Path) -> None:
    async with opened(wide, drain_seconds=60) as house:
        job = house.runtime.add(wide, margin=0).start_generation(PROMPT, TOKENS)
    assert job.result is not None
    assert list(job.result.tokens) == alone(wide)
