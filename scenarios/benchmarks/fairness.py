"""Whether anybody waits for somebody else's long prompt, and how two models share the device.

First part: jobs decode, and a prompt of 4,096 tokens comes. Their rate while it is read is compared
with their own rate before and after; a short prompt that comes meanwhile wants its first token,
for which it must wait for the chunk under way, and then for its own chunk and step.

Second part: two models of different sizes, each with more to do than it gets done. Jain's index of
their device seconds is 1 where both get the same.
"""

import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import trio
from _common import Options, report
from _models import LARGE, SMALLER, make_model, prompt_of

import wiredactors as wa

RATE_GOAL = 0.5
#: A first token costs a chunk and a step of one's own, after at most one of each of others.
FIRST_TOKEN_GOAL = 2.0
JAIN_GOAL = 0.95
#: More tokens than a background job ever writes.
ENDLESS = 4000


@attrs.define
class Watch:
    """The steps so far, with the moments at which they were told."""

    steps: list[tuple[float, wa.StepReport]] = attrs.field(factory=list)

    def take_step(self, step: wa.StepReport) -> None:
        self.steps.append((time.perf_counter(), step))

    def between(self, began: float, ended: float) -> list[wa.StepReport]:
        """Those that were told in this time, loads left out."""
        return [
            step
            for moment, step in self.steps
            if began <= moment < ended and step.what in ("step", "prefill")
        ]


@attrs.define
class Background:
    """Jobs that decode until their nursery is cancelled."""

    moments: list[float] = attrs.field(factory=list)

    async def start(self, model: wa.Model, jobs: int, nursery: trio.Nursery) -> None:
        """Returns when all of them write."""
        writing = [trio.Event() for _ in range(jobs)]

        async def run(number: int) -> None:
            while True:
                async with model.generate(prompt_of(8, 999 + number), ENDLESS) as job:
                    async for chunk in job:
                        if chunk.token is not None:
                            self.moments.append(time.perf_counter())
                            writing[number].set()

        for number in range(jobs):
            nursery.start_soon(run, number)
        for event in writing:
            await event.wait()

    def rate(self, began: float, ended: float) -> float:
        """Tokens per second in this time."""
        return sum(began <= moment < ended for moment in self.moments) / (ended - began)


async def long_prompt(
    model: wa.Model, watch: Watch, jobs: int, prompt_tokens: int, salt: int, delay: float
) -> dict[str, Any]:
    """One round of the first part; the short prompt comes `delay` seconds after the long one."""
    background = Background()
    found: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        await background.start(model, jobs, nursery)
        alone = time.perf_counter()
        await trio.sleep(1.0)
        began = time.perf_counter()
        short: list[float] = []
        answered = trio.Event()

        async def ask_shortly() -> None:
            await trio.sleep(delay)
            asked = time.perf_counter()
            async with model.generate(prompt_of(8, 5000 + salt), max_tokens=2) as job:
                short.extend([time.perf_counter() - asked async for _ in job])
            answered.set()

        nursery.start_soon(ask_shortly)
        text = prompt_of(prompt_tokens, salt)
        async with model.generate(text, max_tokens=1) as job:
            async for _ in job:
                pass
        ended = time.perf_counter()
        await answered.wait()
        found["short_came_first"] = short[0] + delay < ended - began
        later = time.perf_counter()
        await trio.sleep(1.0)
        last = time.perf_counter()
        nursery.cancel_scope.cancel()
    steps = watch.between(began, ended)
    chunks = [step.seconds for step in steps if step.what == "prefill"]
    decoding = [step.seconds for step in steps if step.what == "step"]
    before, after = background.rate(alone, began), background.rate(later, last)
    return found | {
        "rates": (before, background.rate(began, ended), after),
        "seconds": ended - began,
        "chunk": median(chunks) if chunks else None,
        "step": median(decoding) if decoding else None,
        "longest": max(chunks, default=0.0) + max(decoding, default=0.0),
        "first_token": short[0],
    }


def told(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of the first part."""
    rates = [one["rates"] for one in rounds]
    ratio = median(during / ((before + after) / 2) for before, during, after in rates)
    same = median(after / before for before, _, after in rates)
    bounds = [one["first_token"] / one["longest"] for one in rounds if one["longest"]]
    chunks = [one["chunk"] for one in rounds if one["chunk"] is not None]
    steps = [one["step"] for one in rounds if one["step"] is not None]
    bound = median(bounds) if bounds else None
    return {
        "tokens_per_second_alone": median(rate for one in rates for rate in (one[0], one[2])),
        "tokens_per_second_meanwhile": median(one[1] for one in rates),
        "meanwhile_over_alone": ratio,
        "alone_over_alone": same,
        "goal": RATE_GOAL * min(1.0, same),
        "reached": ratio >= RATE_GOAL * min(1.0, same),
        "long_prompt_seconds": median(one["seconds"] for one in rounds),
        "chunk_seconds": median(chunks) if chunks else None,
        "step_seconds": median(steps) if steps else None,
        "short_prompt": {
            "came_first": all(one["short_came_first"] for one in rounds),
            "time_to_first_token_seconds": median(one["first_token"] for one in rounds),
            "longest_chunk_and_step_seconds": median(one["longest"] for one in rounds),
            "time_to_first_token_over_chunk_and_step": bound,
            "goal_at_most": FIRST_TOKEN_GOAL,
            "reached": bound is not None and bound <= FIRST_TOKEN_GOAL,
        },
    }


async def saturated(
    models: list[wa.Model], watch: Watch, jobs: int, seconds: float
) -> dict[str, Any]:
    """One round of the second part."""
    load = Background()
    async with trio.open_nursery() as nursery:
        for model in models:
            await load.start(model, jobs, nursery)
        began = time.perf_counter()
        await trio.sleep(seconds)
        steps = watch.between(began, time.perf_counter())
        nursery.cancel_scope.cancel()
    used: defaultdict[str, float] = defaultdict(float)
    for step in steps:
        used[step.model] += step.seconds
    shares = [used[model.name] for model in models]
    return {
        "device_seconds": shares,
        "jain": sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares)),
    }


async def main(
    name: str,
    folder: Path | None,
    rounds: int,
    jobs: int,
    prompt_tokens: int,
    window: float,
) -> None:
    """Run both parts and print the JSON object."""
    paths = [make_model(name, folder, seed=7), make_model(SMALLER[name], folder, seed=8)]
    watch = Watch()
    async with wa.open_runtime(on_step=watch.take_step) as runtime:
        models = [await runtime.load(path, path.name) for path in paths]
        longs: list[dict[str, Any]] = []
        # On a GPU the first prompt of a length takes several times as long as the second.
        warm = [prompt_tokens] * 2 if name in LARGE else [min(prompt_tokens, 600)]
        for salt, length in enumerate(warm, 9998):
            last = await long_prompt(models[0], watch, jobs, length, salt, 0.0)
        for salt in range(rounds):
            delay = min(0.2, 0.3 * last["seconds"])
            last = await long_prompt(models[0], watch, jobs, prompt_tokens, salt, delay)
            longs.append(last)
        shared = [await saturated(models, watch, jobs, window) for _ in range(rounds)]
    first = told(longs)
    jain = median(one["jain"] for one in shared)
    report(
        "fairness",
        {
            "model": name,
            "rounds": rounds,
            "jobs": jobs,
            "long_prompt": {"prompt_tokens": prompt_tokens, **first},
            "two_models": {
                "models": [path.name for path in paths],
                "jobs_of_each": jobs,
                "window_seconds": window,
                "device_seconds": [one["device_seconds"] for one in shared],
                "jain": jain,
                "goal": JAIN_GOAL,
                "reached": jain >= JAIN_GOAL,
            },
            "reached": first["reached"] and first["short_prompt"]["reached"] and jain >= JAIN_GOAL,
        },
    )


if __name__ == "__main__":
    parser = Options(__doc__)
    parser.add_by_size("--jobs", 4, 8)
    parser.add_argument("--prompt-tokens", type=int, default=4096)
    parser.add_argument("--window", type=float, default=2.0, help="seconds of saturation")
    given = parser.read()
    trio.run(
        main,
        given.model,
        given.folder,
        given.rounds,
        given.jobs,
        given.prompt_tokens,
        given.window,
    )
