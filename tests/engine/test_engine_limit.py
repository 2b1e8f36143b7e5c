"""The runtime on a fake Metal: its own writes at quiet points, nobody else's at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.engine import tiny
from wiredactors.actors.session import open_runtime
from wiredactors.engine.imports import import_mlx_lm
from wiredactors.engine.mlx_engine import MlxEngine
from wiredactors.memory.events import WiredMemoryEvent
from wiredactors.memory.units import GIB

mx = pytest.importorskip("mlx.core")
generate = import_mlx_lm("generate")

BASELINE = 1000


@attrs.define
class FakeMetal:
    """A wired limit as Metal keeps it: every write, and the thread that made it."""

    limit: int = BASELINE
    writes: list[tuple[int, int]] = attrs.field(factory=list)

    def set_wired_limit(self, limit: int) -> int:
        self.writes.append((limit, threading.get_ident()))
        previous, self.limit = self.limit, limit
        return previous


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> FakeMetal:
    fake = FakeMetal()
    info = {"max_recommended_working_set_size": 4 * GIB, "memory_size": 8 * GIB}
    monkeypatch.setattr(mx, "set_wired_limit", fake.set_wired_limit)
    monkeypatch.setattr(mx, "device_info", lambda *_: info)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    return fake


async def collect(manager: Any, events: list[WiredMemoryEvent], started: trio.Event) -> None:
    async with manager.events() as stream:
        started.set()
        async for event in stream:
            events.append(event)  # noqa: PERF401 - they are read while they come


def kinds(events: list[WiredMemoryEvent]) -> list[str]:
    return [str(getattr(event.kind, "value", event.kind)) for event in events]


async def test_the_limit_is_set_on_the_device_thread_and_ends_at_the_baseline(
    tiny_model: Callable[..., Path], metal: FakeMetal
) -> None:
    events: list[WiredMemoryEvent] = []
    engine = MlxEngine()
    with trio.fail_after(60):
        async with open_runtime(engine=engine) as runtime, trio.open_nursery() as nursery:
            started = trio.Event()
            nursery.start_soon(collect, runtime.manager, events, started)
            await started.wait()
            model = await runtime.load(tiny_model("llama"))
            thread = await engine.device.run(threading.get_ident)
            for _ in range(2):
                async with model.generate("abc", 200) as job:
                    await anext(job)  # it has many tokens before it, so its ticket runs
                    assert metal.limit == BASELINE + runtime.manager.granted_bytes
                    async for _ in job:
                        pass
                assert job.result.finish_reason == "length"
            await engine.device.run(lambda: None)
            nursery.cancel_scope.cancel()
    assert metal.limit == BASELINE
    assert len(metal.writes) >= 2
    assert {ident for _, ident in metal.writes} == {thread}
    assert "foreign_limit_write" not in kinds(events)
    assert mx.set_wired_limit == metal.set_wired_limit


async def test_a_quiet_point_is_made_before_each_write(
    tiny_model: Callable[..., Path], metal: FakeMetal, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    synchronize = MlxEngine._synchronize

    def noted(engine: MlxEngine) -> None:
        synchronize(engine)
        order.append("quiet")

    def write(limit: int) -> int:
        order.append("write")
        return metal.set_wired_limit(limit)

    monkeypatch.setattr(MlxEngine, "_synchronize", noted)
    monkeypatch.setattr(mx, "set_wired_limit", write)
    with trio.fail_after(60):
        async with open_runtime() as runtime:
            model = await runtime.load(tiny_model("llama"))
            async with model.generate("abc", 5) as job:
                async for _ in job:
                    pass
    writes = [place for place, what in enumerate(order) if what == "write"]
    assert len(writes) >= 2
    assert all(order[place - 1] == "quiet" for place in writes)  # an unload makes some, too


async def test_mlx_lm_on_another_thread_is_reported_and_never_reaches_metal(
    tiny_model: Callable[..., Path], metal: FakeMetal
) -> None:
    path = tiny_model("llama")
    events: list[WiredMemoryEvent] = []
    engine = MlxEngine()

    def stock() -> int:
        model, tokenizer = import_mlx_lm("utils").load(str(path))
        stream = generate.stream_generate(model, tokenizer, "abc", max_tokens=5)
        count = len(list(stream))
        mx.clear_streams()
        return count

    with trio.fail_after(60):
        async with open_runtime(engine=engine) as runtime, trio.open_nursery() as nursery:
            started = trio.Event()
            nursery.start_soon(collect, runtime.manager, events, started)
            await started.wait()
            model = await runtime.load(path)
            async with model.generate(tiny.prompt_of(20), 400) as job:
                async for _ in job:
                    break
                assert await trio.to_thread.run_sync(stock) == 5
            await engine.device.run(lambda: None)
            nursery.cancel_scope.cancel()
    assert "foreign_limit_write" in kinds(events)
    assert 4 * GIB not in [limit for limit, _ in metal.writes]
    assert metal.limit == BASELINE


async def test_the_runtimes_own_generators_are_not_foreign_under_a_users_backend_either(
    tiny_model: Callable[..., Path], metal: FakeMetal
) -> None:
    class Backend:
        supported = True

        def recommended_working_set_bytes(self) -> int:
            return 4 * GIB

        def set_wired_limit(self, limit: int) -> int:
            return metal.set_wired_limit(limit)

    events: list[WiredMemoryEvent] = []
    with trio.fail_after(60):
        async with open_runtime(backend=Backend()) as runtime, trio.open_nursery() as nursery:
            started = trio.Event()
            nursery.start_soon(collect, runtime.manager, events, started)
            await started.wait()
            model = await runtime.load(tiny_model("llama"))
            async with model.generate("abc", 5) as job:
                async for _ in job:
                    pass
            nursery.cancel_scope.cancel()
    assert "foreign_limit_write" not in kinds(events)
    assert metal.limit == BASELINE
