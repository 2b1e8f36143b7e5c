"""How near `estimate`, which loads nothing, comes to `tune`, which runs the model.

SmolLM2 reads a prompt of each length; a token takes a tenth of a second on a CPU, and more the
longer the prompt. The goals: the total is met within 3 per cent, and the measured peak is never
above what was predicted with the default margin.
"""

import argparse
import sys
import time
from typing import Any

import trio
from _common import report, smollm2

import wiredactors as wa

GOAL = 0.03


def parts(measurement: wa.WiredMemoryMeasurement) -> dict[str, int]:
    """Its bytes."""
    return {
        "weight_bytes": measurement.weight_bytes,
        "kv_bytes": measurement.kv_bytes,
        "workspace_bytes": measurement.workspace_bytes,
        "peak_active_bytes": measurement.peak_active_bytes,
        "total_bytes": measurement.total_bytes,
    }


async def one_run(model: wa.Model, tokens: int, step: int) -> dict[str, Any]:
    """Predict and measure a prompt of so many tokens."""
    began = time.perf_counter()
    predicted = wa.estimate(smollm2(), token_count=tokens, prefill_step_size=step, dtype="float32")
    thought = time.perf_counter() - began
    measured = await wa.tune(model, tokens, prefill_step_size=step, remeasure=True)
    ran = time.perf_counter() - began - thought
    print(f"{tokens} tokens in steps of {step}: {ran:.0f} s", file=sys.stderr, flush=True)
    error = predicted.total_bytes / measured.total_bytes - 1
    covered = predicted.total_bytes + predicted.margin_bytes
    return {
        "tokens": tokens,
        "prefill_step_size": step,
        "predicted": parts(predicted),
        "measured": parts(measured),
        "margin_bytes": predicted.margin_bytes,
        "error": error,
        "peak_is_under_the_margin": measured.peak_active_bytes <= covered,
        "estimate_seconds": thought,
        "tune_seconds": ran,
        "reached": abs(error) <= GOAL and measured.peak_active_bytes <= covered,
    }


async def main(lengths: list[int], step: int) -> None:
    """Run each length and print the JSON object."""
    async with wa.open_runtime() as runtime:
        model = await runtime.load(smollm2(), "chat", dtype="float32")
        runs = [await one_run(model, tokens, step) for tokens in lengths]
    report(
        "sizing",
        {
            "runs": runs,
            "largest_error": max(abs(run["error"]) for run in runs),
            "goal": GOAL,
            "reached": all(run["reached"] for run in runs),
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512], metavar="N")
    parser.add_argument("--step", type=int, default=2048, help="prompt tokens in one step at most")
    options = parser.parse_args()
    trio.run(main, options.tokens, options.step)
