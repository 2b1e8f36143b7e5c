"""Hundreds of cancellations at random moments: everything comes back, and nobody else notices.

Jobs of two models come and go. Most are cancelled while they wait, while their prompt is read or
while they write; now and then the load of a third model is cancelled. The jobs that nobody cancels
must write what they write alone. The same seed cancels the same jobs after the same delays.

The large models' scores are rounded so coarsely that the best two are often equal, and a batch of
another size rounds otherwise: there a text may be another one if each of its tokens is the best one
but for rounding by the scores of the bare model, which reads it at once.
"""

import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import trio
from _bare import Bare, load_bare
from _common import Options, report
from _models import LARGE, SMALLER, make_model, prompt_of

import wiredactors as wa

MEMORY_GOAL = 0.01
#: What rounding may make of a score, in standard deviations of all scores; a token of another
#: text is several below the best.
ROUNDING_GOAL = 0.5
#: Jobs of both models that are there at once.
AT_ONCE = 8
NAMES = ("first", "second")
#: What a job has written.
Tokens = tuple[int, ...]


@attrs.frozen
class Plan:
    """One job, or one load: what becomes of it.

    Attributes:
        prompt: which text; None for a load.
        after_tokens: cancel when so many have come; None: after `delay` seconds.
        survives: never cancelled.
    """

    model: int
    prompt: int | None
    after_tokens: int | None = None
    delay: float = 0.0
    survives: bool = False


def plans(count: int, prompts: int, tokens: int, pace: float, seed: int) -> list[Plan]:
    """`count` cancellations, with a survivor after every fourth."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        kind = chance.random()
        model, prompt = chance.randrange(2), chance.randrange(prompts)
        if kind < 0.05:
            made.append(Plan(2, None, delay=chance.random() * pace))
        elif kind < 0.5:  # it waits, or its prompt is read
            made.append(Plan(model, prompt, delay=chance.random() ** 3 * pace))
        else:
            made.append(Plan(model, prompt, after_tokens=chance.randrange(1, tokens)))
        if number % 4 == 3:
            made.append(Plan(model, prompt, survives=True))
    return made


class Run:
    """Carries the plans out in an open runtime."""

    def __init__(self, runtime: wa.Runtime, texts: list[str], tokens: int, third: Path):
        self.runtime = runtime
        self.texts = texts
        self.tokens = tokens
        self.third = third
        self.survivors: list[tuple[Plan, Tokens]] = []
        self.when: Counter[str] = Counter()
        self.too_late = 0

    async def write(self, model: int, prompt: int) -> Tokens:
        """What a job writes that nobody cancels."""
        served = self.runtime.models[NAMES[model]]
        async with served.generate(self.texts[prompt], self.tokens) as job:
            async for _ in job:
                pass
        assert job.result is not None
        return job.result.tokens

    async def carry_out(self, plan: Plan) -> None:
        if plan.prompt is None:
            await self._load(plan)
        elif plan.survives:
            self.survivors.append((plan, await self.write(plan.model, plan.prompt)))
        else:
            await self._cancel(plan, plan.prompt)

    async def _load(self, plan: Plan) -> None:
        loaded = False
        with trio.move_on_after(plan.delay):
            await self.runtime.load(self.third, "third")
            loaded = True
        if loaded:
            await self.runtime.unload("third")
            await self._again(plan)
        else:
            self.when["during a load"] += 1

    async def _again(self, plan: Plan) -> None:
        """It came too late: the same, sooner."""
        self.too_late += 1
        sooner = plan.after_tokens and (plan.after_tokens + 1) // 2
        await self.carry_out(attrs.evolve(plan, delay=plan.delay / 2, after_tokens=sooner))

    async def _cancel(self, plan: Plan, prompt: int) -> None:
        name = NAMES[plan.model]
        read = 0
        with trio.CancelScope() as scope:
            if plan.after_tokens is None:
                scope.deadline = trio.current_time() + plan.delay
            async with self.runtime.models[name].generate(self.texts[prompt], self.tokens) as job:
                async for chunk in job:
                    read += chunk.token is not None
                    if read == plan.after_tokens:
                        job.cancel()
        if job.result is not None and job.result.finish_reason == "length":
            await self._again(plan)
        else:
            self.when["while it wrote" if read else "before it wrote"] += 1


async def run_all(run: Run, todo: list[Plan]) -> None:
    """Carry the plans out, `AT_ONCE` at a time; loads of the third model one after the other."""
    places = trio.CapacityLimiter(AT_ONCE)
    third = trio.Lock()

    async def one(plan: Plan) -> None:
        async with places:
            if plan.prompt is None:
                async with third:
                    await run.carry_out(plan)
            else:
                await run.carry_out(plan)

    async with trio.open_nursery() as nursery:
        for plan in todo:
            nursery.start_soon(one, plan)


def active_bytes() -> int:
    """MLX's active memory, while the device thread has nothing to do."""
    import mlx.core as mx

    return int(mx.get_active_memory())


def below_the_best(bare: Bare, prompt: str, tokens: Tokens) -> float:
    """By how much the score of one of the tokens is below the best one at most, in standard
    deviations, when mlx-lm's model reads them all at once after the prompt."""
    import mlx.core as mx

    ids = bare.tokenizer.encode(prompt)
    scores = bare.model(mx.array([[*ids, *tokens[:-1]]]))[0, len(ids) - 1 :].astype(mx.float32)
    own = mx.take_along_axis(scores, mx.array(tokens)[:, None], axis=-1)[:, 0]
    below: Any = mx.max((scores.max(axis=-1) - own) / mx.std(scores, axis=-1)).item()
    return float(below)


async def main(
    name: str, folder: Path | None, count: int, seed: int, prompt_tokens: int, tokens: int
) -> None:
    """Cancel, compare and print the JSON object."""
    smaller = SMALLER[name]
    paths = [make_model(name, folder, seed=7), make_model(smaller, folder, seed=8)]
    third = make_model(smaller, folder, seed=9)
    texts = [prompt_of(length, length) for length in range(4, prompt_tokens, prompt_tokens // 6)]
    threads = {thread.ident for thread in threading.enumerate()}
    async with wa.open_runtime() as runtime:
        for path, called in zip(paths, NAMES, strict=True):
            await runtime.load(path, called)
        run = Run(runtime, texts, tokens, third)
        began = time.perf_counter()
        alone = {(m, p): await run.write(m, p) for m in range(2) for p in range(len(texts))}
        pace = AT_ONCE * (time.perf_counter() - began) / len(alone)
        idle = tickets_of(runtime)
        weights = sum(model.weight_bytes for model in runtime.models.values())
        todo = plans(count, len(texts), tokens, pace, seed)
        began = time.perf_counter()
        await run_all(run, todo)
        seconds = time.perf_counter() - began
        active, left = active_bytes(), tickets_of(runtime)
        await trio.sleep(0.5)
        later = active_bytes()
        waiters = len(runtime.manager.snapshot().waiters)
    alive = [one.name for one in threading.enumerate() if one.ident not in threads]
    same = sum(alone[plan.model, plan.prompt or 0] == answer for plan, answer in run.survivors)
    below = {"alone": 0.0, "survivors": 0.0}
    if same < len(run.survivors):
        for number, path in enumerate(paths):
            bare = load_bare(path)
            for key, answer in alone.items():
                if key[0] == number:
                    one = below_the_best(bare, texts[key[1]], answer)
                    below["alone"] = max(below["alone"], one)
            for plan, answer in run.survivors:
                if plan.model == number:
                    one = below_the_best(bare, texts[plan.prompt or 0], answer)
                    below["survivors"] = max(below["survivors"], one)
            del bare
    rounded = name in LARGE and below["survivors"] <= ROUNDING_GOAL
    above = active / weights - 1
    reached = {
        "memory": abs(above) <= MEMORY_GOAL,
        "tickets": left == idle and not waiters,
        "threads": not alive,
        "survivors": same == len(run.survivors) or rounded,
    }
    report(
        "cancellations",
        {
            "model": name,
            "seed": seed,
            "seconds": seconds,
            "cancellations": sum(run.when.values()),
            "when": dict(run.when),
            "too_late_and_again": run.too_late,
            "weight_bytes": weights,
            "active_bytes": active,
            "half_a_second_later": later,
            "active_above_weights": above,
            "goal_at_most": MEMORY_GOAL,
            "tickets_left": sorted(left - idle),
            "waiters_left": waiters,
            "threads_left": alive,
            "survivors": len(run.survivors),
            "survivors_same": same,
            "scores_below_the_best": below,
            "goals": reached,
            "reached": all(reached.values()),
        },
    )


def tickets_of(runtime: wa.Runtime) -> set[Any]:
    """Kind and size of what is held now; a job's would be active."""
    return {(one.kind, one.size) for one in runtime.manager.snapshot().tickets}


if __name__ == "__main__":
    parser = Options(__doc__)
    parser.add_argument("--cancellations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_by_size("--prompt-tokens", 96, 1024)
    parser.add_by_size("--tokens", 24, 64)
    given = parser.read()
    trio.run(
        main,
        given.model,
        given.folder,
        given.cancellations,
        given.seed,
        given.prompt_tokens,
        given.tokens,
    )
