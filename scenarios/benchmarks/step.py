"""Where the time of a decode step goes, for rows of equal length.

A plain loop over batch caches, one step ahead as mlx-lm's own loops are, is timed in its parts:
Python that builds the graph, `async_eval`, and waiting for the token before. It is set against
`BatchGenerator` and against the runtime, whose steps are counted between two hand-overs. The plain
loop runs before and after both in each round.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import trio
from _bare import Bare, load_bare
from _common import Options, report
from _models import make_model, prompt_of

import wiredactors as wa

#: Steps at a loop's beginning that do not count.
WARM = 4


def plain(bare: Bare, prompts: Sequence[str], steps: int, *, normalized: bool) -> dict[str, float]:
    """The parts of a step of model, argmax and `async_eval`, in seconds; medians.

    Where `normalized`, the scores become log-probabilities first, as in mlx-lm's own loops.
    """
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    def chosen(tokens: Any, caches: Any) -> Any:
        scores = bare.model(tokens, cache=caches)[:, -1, :]
        if normalized:
            scores = scores - mx.logsumexp(scores, axis=-1, keepdims=True)
        return mx.argmax(scores, axis=-1)

    with bare.own_pool():
        rows, firsts = [], []
        for prompt in prompts:
            caches = make_prompt_cache(bare.model)
            first = chosen(mx.array([bare.tokenizer.encode(prompt)]), caches)
            mx.eval(first, [cache.state for cache in caches])
            rows.append(caches)
            firsts.append(first)
        merged = [layer[0].merge(list(layer)) for layer in zip(*rows, strict=True)]
        tokens = mx.concatenate(firsts)
        mx.eval(tokens, [cache.state for cache in merged])
        del rows, firsts
        parts: dict[str, list[float]] = {"build": [], "dispatch": [], "wait": [], "step": []}
        for _ in range(steps + WARM):
            began = time.perf_counter()
            following = chosen(tokens[:, None], merged)
            built = time.perf_counter()
            mx.async_eval(following)
            sent = time.perf_counter()
            tokens.tolist()
            ended = time.perf_counter()
            tokens = following
            parts["build"].append(built - began)
            parts["dispatch"].append(sent - built)
            parts["wait"].append(ended - sent)
            parts["step"].append(ended - began)
        mx.eval(tokens)
    return {name: median(values[WARM:]) for name, values in parts.items()}


def batched(bare: Bare, prompts: Sequence[str], steps: int) -> float:
    """Seconds of a `BatchGenerator`'s step with all rows in it; the median."""
    from mlx_lm.generate import BatchGenerator

    seconds: list[float] = []
    with bare.own_pool():
        generator = BatchGenerator(bare.model)
        ids = [bare.tokenizer.encode(prompt) for prompt in prompts]
        generator.insert(ids, max_tokens=[steps + WARM + 8 * len(ids)] * len(ids))
        while len(seconds) < steps + WARM:
            began = time.perf_counter()
            read, written = generator.next()
            if not read and len(written) == len(ids):
                seconds.append(time.perf_counter() - began)
        generator.close()
        del generator
    return median(seconds[WARM:])


def text_seconds(bare: Bare, rows: int) -> float:
    """Seconds of turning a token of each row into text."""
    detokenizers = []
    for _ in range(rows):
        one = bare.tokenizer.detokenizer
        one.reset()
        detokenizers.append(one)
    ids = bare.tokenizer.encode(prompt_of(64))
    began = time.perf_counter()
    for token in ids:
        for one in detokenizers:
            one.add_token(token)
            _ = one.last_segment
    return (time.perf_counter() - began) / len(ids)


@attrs.define
class Watch:
    """The steps of all rows at once, and when they were told."""

    rows: int = 0
    moments: list[float] = attrs.field(factory=list)
    seconds: list[float] = attrs.field(factory=list)

    def take_step(self, step: wa.StepReport) -> None:
        if step.what == "step" and step.rows == self.rows:
            self.moments.append(time.perf_counter())
            self.seconds.append(step.seconds)


async def served(
    model: wa.Model, watch: Watch, prompts: Sequence[str], steps: int
) -> dict[str, float]:
    """The runtime's step: seconds on the device thread, and from one to the next."""
    watch.rows, watch.moments, watch.seconds = len(prompts), [], []
    tokens = steps + WARM + 8 * len(prompts)

    async def run(prompt: str) -> None:
        async with model.generate(prompt, max_tokens=tokens) as job:
            async for _ in job:
                if len(watch.moments) > steps + WARM:
                    job.cancel()

    async with trio.open_nursery() as jobs:
        for prompt in prompts:
            jobs.start_soon(run, prompt)
    moments = watch.moments[WARM : steps + WARM + 1]
    if len(moments) < 2:
        raise RuntimeError(f"only {len(moments)} steps had all {len(prompts)} rows")
    # The mean: a hand-over that comes late makes the next gap short.
    between = (moments[-1] - moments[0]) / (len(moments) - 1)
    inside = median(watch.seconds[WARM : steps + WARM + 1])
    return {"step": between, "device": inside, "hand_over": max(0.0, between - inside)}


def copy_bandwidth(megabytes: int) -> float:
    """Bytes per second read and written by copying an array."""
    import mlx.core as mx

    source = mx.zeros(megabytes * wa.MIB // 4, dtype=mx.float32)
    mx.eval(source)
    rates = []
    for _ in range(6):
        began = time.perf_counter()
        mx.eval(source + 1)
        rates.append(2 * source.nbytes / (time.perf_counter() - began))
    mx.clear_cache()
    return max(rates)


async def measured(
    bare: Bare,
    model: wa.Model,
    watch: Watch,
    texts: Sequence[Sequence[str]],
    steps: int,
    bandwidth: float,
) -> dict[str, Any]:
    """The figures of one number of rows; `texts` has the prompts of each round, and of a first one
    that warms up."""
    before, normalized, batches, ours, after = [], [], [], [], []
    for number, prompts in enumerate(texts):
        first = plain(bare, prompts, steps, normalized=False)
        scored = plain(bare, prompts, steps, normalized=True)
        batch = batched(bare, prompts, steps)
        runtime = await served(model, watch, prompts, steps)
        last = plain(bare, prompts, steps, normalized=False)
        if number:
            before.append(first)
            normalized.append(scored)
            batches.append(batch)
            ours.append(runtime)
            after.append(last)
    rows = len(texts[0])

    def ms(values: Sequence[float]) -> float:
        return 1e3 * median(values)

    middle = [(a["step"] + b["step"]) / 2 for a, b in zip(before, after, strict=True)]
    step = median(one["step"] for one in ours)
    return {
        "rows": rows,
        "plain_loop_ms": {
            **{name: ms([one[name] for one in [*before, *after]]) for name in before[0]},
            "normalizing_adds": ms(
                [one["step"] - own for one, own in zip(normalized, middle, strict=True)]
            ),
        },
        "batch_generator_ms": ms(batches),
        "text_ms": 1e3 * text_seconds(bare, rows),
        "runtime_ms": {name: ms([one[name] for one in ours]) for name in ours[0]},
        "runtime_over_plain": median(
            own / one["step"] for one, own in zip(ours, middle, strict=True)
        ),
        "runtime_over_batch_generator": median(
            own / one["step"] for one, own in zip(ours, batches, strict=True)
        ),
        "plain_over_plain": median(
            a["step"] / b["step"] for a, b in zip(before, after, strict=True)
        ),
        "runtime_tokens_per_second": rows / step,
        "share_of_the_bandwidth_limit": model.weight_bytes / step / bandwidth,
    }


async def main(
    name: str,
    folder: Path | None,
    rounds: int,
    rows: Sequence[int],
    prompt_tokens: int,
    steps: int,
    megabytes: int,
) -> None:
    """Run the rounds and print the JSON object."""
    path = make_model(name, folder)
    bandwidth = copy_bandwidth(megabytes)
    bare = load_bare(path)
    watch = Watch()
    figures = []
    async with wa.open_runtime(on_step=watch.take_step) as runtime:
        model = await runtime.load(path, "model")
        for count in rows:
            salts = iter(range(count * (rounds + 1)))
            texts = [
                [prompt_of(prompt_tokens, next(salts)) for _ in range(count)]
                for _ in range(rounds + 1)
            ]
            figures.append(await measured(bare, model, watch, texts, steps, bandwidth))
    report(
        "step",
        {
            "model": name,
            "rounds": rounds,
            "prompt_tokens": prompt_tokens,
            "steps": steps,
            "copy_bytes_per_second": bandwidth,
            "by_rows": figures,
        },
    )


if __name__ == "__main__":
    parser = Options(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_by_size("--prompt-tokens", 16, 512)
    parser.add_by_size("--steps", 8, 64)
    parser.add_by_size("--copy-mib", 256, 2048)
    given = parser.read()
    trio.run(
        main,
        given.model,
        given.folder,
        given.rounds,
        given.rows,
        given.prompt_tokens,
        given.steps,
        given.copy_mib,
    )
