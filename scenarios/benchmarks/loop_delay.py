"""How late the trio loop runs while eight jobs decode on the device thread.

A task sleeps five milliseconds again and again and notes how much later it woke.
"""

import argparse
from statistics import median, quantiles

import trio
from _common import PROMPT, report, smollm2

import wiredactors as wa

TICK = 0.005


async def tick(delays: list[float]) -> None:
    """Note how late each tick comes, in seconds."""
    while True:
        due = trio.current_time() + TICK
        await trio.sleep_until(due)
        delays.append(trio.current_time() - due)


async def one_round(model: wa.Model, jobs: int, tokens: int) -> list[float]:
    """The delays while all `jobs` jobs decode: after the last first token, until the first end."""
    delays: list[float] = []
    writing = [trio.Event() for _ in range(jobs)]
    some_ended = trio.Event()

    async def run(number: int) -> None:
        async with model.generate(f"{number}. {PROMPT}", max_tokens=tokens) as job:
            async for _ in job:
                writing[number].set()
        some_ended.set()

    async with trio.open_nursery() as nursery:
        for number in range(jobs):
            nursery.start_soon(run, number)
        for event in writing:
            await event.wait()
        async with trio.open_nursery() as ticking:
            ticking.start_soon(tick, delays)
            await some_ended.wait()
            ticking.cancel_scope.cancel()
    return delays


def milliseconds(delays: list[float]) -> dict[str, float]:
    """Percentiles of one round."""
    cuts = quantiles(delays, n=100)
    return {
        "ticks": len(delays),
        "p50_ms": 1e3 * cuts[49],
        "p99_ms": 1e3 * cuts[98],
        "max_ms": 1e3 * max(delays),
    }


async def main(rounds: int, jobs: int, tokens: int) -> None:
    """Run the rounds and print the JSON object; a round without jobs tells the machine's own."""
    async with wa.open_runtime() as runtime:
        model = await runtime.load(smollm2(), "chat")
        idle: list[float] = []
        with trio.move_on_after(5):
            await tick(idle)
        loaded = [milliseconds(await one_round(model, jobs, tokens)) for _ in range(rounds)]
    report(
        "loop_delay",
        {
            "jobs": jobs,
            "idle": milliseconds(idle),
            "rounds": loaded,
            "p99_ms": median(round_["p99_ms"] for round_ in loaded),
            "goal_p99_ms": 10.0,
            "reached": median(round_["p99_ms"] for round_ in loaded) < 10.0,
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    trio.run(main, options.rounds, options.jobs, options.tokens)
