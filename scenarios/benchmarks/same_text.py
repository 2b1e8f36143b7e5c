"""How many of eight jobs that run together write what mlx-lm's own `generate` writes alone.

The same weights, prompts and greedy choice. Where the arithmetic of a batch rounds two almost equal
scores the other way, a text may differ from there on; the length of the common beginning is told.
"""

import argparse
from itertools import takewhile

import trio
from _common import report, smollm2

import wiredactors as wa

# As in stream.py: mlx-lm itself reads no GGUF of this kind.
from wiredactors.engine.gguf import read_gguf_header
from wiredactors.engine.gguf_model import load_gguf

PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "My favourite animal is the",
    "In the year 1969",
    "To bake bread you need",
    "The largest planet",
    "Two plus two is",
    "A poem about rain:",
]


def common(one: str, other: str) -> int:
    """Characters that both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


async def main(tokens: int) -> None:
    """Generate both ways and print the JSON object."""
    from mlx_lm import generate

    file = smollm2()
    bare, tokenizer, _ = load_gguf(file, read_gguf_header(file), dequantize=False, dtype="float32")
    alone = [generate(bare, tokenizer, prompt, max_tokens=tokens) for prompt in PROMPTS]
    together = [""] * len(PROMPTS)
    rows = 0

    def count(step: wa.StepReport) -> None:
        nonlocal rows
        rows = max(rows, step.rows)

    async with wa.open_runtime(on_step=count) as runtime:
        model = await runtime.load(file, "chat", dtype="float32")

        async def run(number: int) -> None:
            async with model.generate(PROMPTS[number], max_tokens=tokens) as job:
                async for chunk in job:
                    together[number] += chunk.text

        async with trio.open_nursery() as jobs:
            for number in range(len(PROMPTS)):
                jobs.start_soon(run, number)
    pairs = list(zip(alone, together, strict=True))
    report(
        "same_text",
        {
            "jobs": len(PROMPTS),
            "tokens": tokens,
            "rows_in_the_largest_step": rows,
            "same": sum(one == other for one, other in pairs),
            "differing": [
                {"alone": one, "together": other, "common": common(one, other)}
                for one, other in pairs
                if one != other
            ],
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=24)
    trio.run(main, parser.parse_args().tokens)
