"""The benchmarks run, with the smallest of their models, and print what their figures are."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Bench = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def bench(folder: Path) -> Bench:
    def run(name: str, *options: object) -> dict[str, Any]:
        script = ROOT / "scenarios" / "benchmarks" / f"{name}.py"
        command = [sys.executable, script, "--model", "tiny", "--rounds", "1", "--folder", folder]
        done = subprocess.run(
            [str(part) for part in [*command, *options]],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        figures: dict[str, Any] = json.loads(done.stdout)
        assert figures["benchmark"] == name
        assert figures["machine"]["mlx"]
        return figures

    return run


def ratios(value: Any, key: str = "") -> Iterator[float]:
    """Every ratio in the figures, however deep."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from ratios(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from ratios(part, key)
    elif "_over_" in key and value is not None:
        yield value


def test_throughput_sets_the_runtime_against_the_better_bare_loop(bench: Bench):
    figures = bench("throughput", "--jobs", 1, 2, "--tokens", 6, "--smollm2-jobs", 0)
    assert [one["jobs"] for one in figures["against_bare_loops"]] == [1, 2]
    for one in figures["against_bare_loops"]:
        rates = one["bare_loops_tokens_per_second"]
        assert rates[one["bare_loop"]] == max(rates.values()) == one["bare_tokens_per_second"]
        assert one["reached"] == (one["runtime_over_bare"] >= one["goal"])
    assert figures["two_models"]["jobs_of_each"] == 8
    assert figures["smollm2"] is None
    assert all(ratio > 0 for ratio in ratios(figures))


def test_server_drives_both_servers_with_the_same_clients(bench: Bench):
    figures = bench(
        "server",
        *("--clients", 2, "--tokens", 4, "--requests", 1),
        *("--memory-clients", 2, "--memory-tokens", 4, "--memory-prompt-tokens", 8),
    )
    [alone] = figures["one_model"]
    for one in (alone, figures["two_models"]):
        first = one["time_to_first_token"]
        assert 0 < first["runtime_p50_seconds"] <= first["runtime_p95_seconds"]
        assert one["stock_tokens_per_second"] > 0 < one["runtime_tokens_per_second"]
    memory = figures["memory"]
    for one in (memory["stock"], memory["runtime"], memory["cap"]["runtime"]):
        assert 0 < one["before_bytes"] <= one["peak_bytes"]
    assert memory["cap"]["jobs_that_fit"] >= 1
    assert all(ratio >= 0 for ratio in ratios(figures))


def test_switching_counts_the_loads_of_two_models_that_do_not_fit_together(bench: Bench):
    figures = bench("switching", "--clients", 3, "--requests", 9, "--tokens", 4)
    [one] = figures["by_clients"]
    assert one["reserved_bytes_of_one"] < one["cap_bytes"] < one["bytes_while_the_second_loads"]
    assert one["jobs_that_fit"] >= 1
    loads = one["loads"]
    assert len(loads["stock_each"]) == 2
    assert len(loads["runtime_each"]) == 1
    assert all(0 < count <= 9 for count in [*loads["stock_each"], *loads["runtime_each"]])
    for wait in (one["wait_seconds"]["stock"], one["wait_seconds"]["runtime"]):
        assert 0 < wait["p50"] <= wait["p95"] <= wait["longest"]
    assert all(ratio > 0 for ratio in ratios(figures))


def test_under_the_cap_all_jobs_finish_and_no_step_goes_above_it(bench: Bench):
    figures = bench("cap", "--jobs", 24, "--tokens", 4, "--prompt-tokens", 4)
    assert figures["all_finished"]
    assert figures["jobs_that_fit"] < 24
    peak = figures["peak_above_granted"]
    assert peak["bytes"] <= peak["goal_at_most"]
    waiting = figures["granted_while_jobs_wait"]
    assert waiting["steps"] > 0
    assert 0 < waiting["least_share_of_the_cap"] <= waiting["median_share_of_the_cap"] <= 1


def test_fairness_tells_rates_first_tokens_and_shares(bench: Bench):
    figures = bench("fairness", "--prompt-tokens", 600, "--jobs", 2, "--window", 0.3)
    long = figures["long_prompt"]
    assert long["tokens_per_second_alone"] > 0
    assert long["tokens_per_second_meanwhile"] >= 0
    assert long["short_prompt"]["time_to_first_token_seconds"] > 0
    two = figures["two_models"]
    assert 0.5 <= two["jain"] <= 1
    assert all(seconds > 0 for one in two["device_seconds"] for seconds in one)


def test_after_cancellations_everything_is_back(bench: Bench):
    figures = bench("cancellations", "--cancellations", 24, "--tokens", 12)
    assert figures["cancellations"] == sum(figures["when"].values()) == 24
    assert figures["survivors"] == 6
    assert figures["goals"] == dict.fromkeys(("memory", "tickets", "threads", "survivors"), True)


def test_step_tells_the_parts_of_a_step(bench: Bench):
    figures = bench("step", "--rows", 1, 2, "--steps", 4, "--copy-mib", 16)
    assert [one["rows"] for one in figures["by_rows"]] == [1, 2]
    for one in figures["by_rows"]:
        parts = one["plain_loop_ms"]
        assert max(parts[name] for name in ("build", "dispatch", "wait")) <= parts["step"]
        assert one["runtime_ms"]["step"] > 0
        assert one["share_of_the_bandwidth_limit"] > 0
