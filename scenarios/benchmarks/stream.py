"""One stream through the runtime against a bare `mlx_lm.stream_generate`, paired in one run.

Each round does bare, runtime, bare; the ratio of the two bare series is what the machine's own
drift does to such a comparison. Prompt and prefill count in.
"""

import argparse
import time
from statistics import median
from typing import Any

import trio
from _common import PROMPT, report, smollm2

import wiredactors as wa

# mlx-lm itself reads no GGUF of this kind: the bare model is loaded by the library's reader, and
# from then on everything bare is mlx-lm's.
from wiredactors.engine.gguf import read_gguf_header
from wiredactors.engine.gguf_model import load_gguf


def bare_rate(model: Any, tokenizer: Any, tokens: int) -> float:
    """Tokens per second of mlx-lm's own loop."""
    from mlx_lm import stream_generate

    began = time.perf_counter()
    count = sum(1 for _ in stream_generate(model, tokenizer, PROMPT, max_tokens=tokens))
    return count / (time.perf_counter() - began)


async def runtime_rate(model: wa.Model, tokens: int) -> float:
    """Tokens per second of one job."""
    began = time.perf_counter()
    async with model.generate(PROMPT, max_tokens=tokens) as job:
        async for _ in job:
            pass
    assert job.result is not None
    return job.result.generation_tokens / (time.perf_counter() - began)


async def main(rounds: int, tokens: int) -> None:
    """Run the pairs and print the JSON object."""
    file = smollm2()
    header = read_gguf_header(file)
    bare, tokenizer, _ = load_gguf(file, header, dequantize=False, dtype="float32")
    before, runtime_rates, after = [], [], []
    async with wa.open_runtime() as runtime:
        model = await runtime.load(file, "chat")
        bare_rate(bare, tokenizer, 4)  # both warm
        await runtime_rate(model, 4)
        for _ in range(rounds):
            before.append(bare_rate(bare, tokenizer, tokens))
            runtime_rates.append(await runtime_rate(model, tokens))
            after.append(bare_rate(bare, tokenizer, tokens))
    middle = [(a + b) / 2 for a, b in zip(before, after, strict=True)]
    ratio = median(rate / own for rate, own in zip(runtime_rates, middle, strict=True))
    same = median(b / a for a, b in zip(before, after, strict=True))
    report(
        "stream",
        {
            "rounds": rounds,
            "tokens": tokens,
            "bare_tokens_per_second": [before, after],
            "runtime_tokens_per_second": runtime_rates,
            "runtime_over_bare": ratio,
            "bare_over_bare": same,
            "goal": 0.97 * min(1.0, same),
            "reached": ratio >= 0.97 * min(1.0, same),
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    trio.run(main, options.rounds, options.tokens)
