"""Tiny models on disk, and a runtime whose steps are recorded."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.engine import tiny
from wiredactors.actors.runtime import Runtime
from wiredactors.actors.session import open_runtime
from wiredactors.engine.mlx_engine import MlxEngine
from wiredactors.scheduling.requests import StepReport


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a tiny model once in a session, and says where it lies."""
    made: dict[tuple[str, int], Path] = {}

    def path_of(name: str, seed: int = 7) -> Path:
        if (name, seed) not in made:
            made[name, seed] = tiny.make_model(tmp_path_factory.mktemp(name), name, seed=seed)
        return made[name, seed]

    return path_of


@attrs.define
class Recorded:
    """A runtime with the reports of its steps."""

    runtime: Runtime
    engine: MlxEngine
    reports: list[StepReport]
    active_before: int


@contextlib.asynccontextmanager
async def open_recorded(*, pool_bytes: int = 0, **options: Any) -> AsyncIterator[Recorded]:
    """A runtime on real MLX. Without a pool, so that each buffer is as large as was asked."""
    import mlx.core as mx

    mx.clear_cache()
    before = mx.get_active_memory()
    engine = MlxEngine(pool_bytes=pool_bytes)
    reports: list[StepReport] = []
    async with open_runtime(engine=engine, on_step=reports.append, **options) as runtime:
        yield Recorded(runtime, engine, reports, before)
