"""The scenario of two models that take turns, shortened, with its real model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import trio

import wiredactors as wa

SCENARIO = Path(__file__).parents[2] / "scenarios" / "model_swap.py"


@pytest.fixture
def scenario(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_swap", SCENARIO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "QUESTIONS", module.QUESTIONS[:2])
    monkeypatch.setattr(module, "SECONDS_BETWEEN", 0.1)
    monkeypatch.setattr(module, "ANSWER_TOKENS", 4)
    return module


async def test_both_models_answer_in_turn_and_stay_under_the_cap(scenario: ModuleType) -> None:
    reports: list[wa.StepReport] = []
    events: list[wa.WiredMemoryEvent] = []

    async def listen(runtime: wa.Runtime, task_status: trio.TaskStatus[None]) -> None:
        async with runtime.manager.events() as stream:
            task_status.started()
            events.extend([event async for event in stream])

    with trio.fail_after(120):
        async with (
            trio.open_nursery() as listeners,
            wa.open_runtime(scenario.POLICY, on_step=reports.append) as runtime,
        ):
            await listeners.start(listen, runtime)
            outcomes = await scenario.main(runtime)
    assert [outcome.result.generation_tokens for outcome in outcomes] == [4, 4]
    turns = [e.model for e in events if e.kind in ("model_ready", "model_unloaded")]
    assert turns == ["packed", "packed", "dense", "dense"]
    assert max(report.peak_bytes for report in reports) <= scenario.CAP
    assert all(report.peak_bytes <= report.granted_bytes + 16 * wa.MIB for report in reports)
