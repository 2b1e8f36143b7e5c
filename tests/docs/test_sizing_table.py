"""The table of architectures in the book is that of its data, and reaches what was promised."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx_lm")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("sizing_table", ROOT / "tools/sizing_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def found(tool: Any) -> Any:
    return json.loads(tool.DATA.read_text())["architectures"]


def test_the_table_is_made_of_the_recorded_figures(tool: Any, found: Any) -> None:
    page = tool.PAGE.read_text()
    assert tool.with_table(page, found) == page


def test_each_architecture_is_in_it_or_said_not_to_be(tool: Any, found: Any) -> None:
    assert found.keys() == tool.CONFIGS.keys()
    for name in tool.CANNOT:
        assert f"- `{name}`: " in tool.table(found)


def test_nearly_all_are_exact_and_none_is_under(found: Any) -> None:
    exact = 0
    for cases in found.values():
        pairs = [case[what] for case in cases for what in ("weights", "kv") if what in case]
        assert pairs
        exact += all(predicted == taken for predicted, taken in pairs)
        assert all(predicted >= 0.99 * taken for predicted, taken in pairs)
    assert exact >= 0.95 * len(found)


def test_a_real_model_was_met_within_three_per_cent() -> None:
    recorded = json.loads((ROOT / "docs/data/smollm2.json").read_text())
    assert {256, 512, 1024, 2048, 4096, 8192} <= {run["tokens"] for run in recorded["runs"]}
    for run in recorded["runs"]:
        predicted, measured = run["predicted"], run["measured"]
        assert abs(predicted["total_bytes"] / measured["total_bytes"] - 1) <= 0.03
        assert measured["peak_active_bytes"] <= predicted["total_bytes"] + run["margin_bytes"]
