"""mlx-lm's own loops, bare, and the same jobs through the runtime.

The bare loops run on the main thread, which is the only one that uses MLX while a runtime is open
and idle. They use the allocator's pool as it is in a process without a runtime.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

import wiredactors as wa


@attrs.frozen
class Bare:
    """A model as mlx-lm itself has it.

    Attributes:
        pool_bytes: what the pool of freed buffers holds at most by MLX's own default.
    """

    model: Any
    tokenizer: Any
    pool_bytes: int

    @contextlib.contextmanager
    def own_pool(self) -> Iterator[None]:
        """Inside it freed buffers are kept as mlx-lm without a runtime keeps them."""
        import mlx.core as mx

        others = mx.set_cache_limit(self.pool_bytes)
        try:
            yield
        finally:
            mx.clear_cache()
            mx.set_cache_limit(others)


def load_bare(path: Path) -> Bare:
    """Load it for bare loops. Before a runtime is open."""
    import mlx.core as mx
    from mlx_lm import load

    pool = mx.set_cache_limit(0)
    mx.set_cache_limit(pool)
    if path.suffix == ".gguf":
        # mlx-lm itself reads no GGUF of this kind: the library's reader makes mlx-lm's model.
        from wiredactors.engine.gguf import read_gguf_header
        from wiredactors.engine.gguf_model import load_gguf

        model, tokenizer, _ = load_gguf(
            path, read_gguf_header(path), dequantize=False, dtype="float32"
        )
    else:
        model, tokenizer = load(str(path))[:2]
    return Bare(model, tokenizer, pool)


def one_after_another(bare: Bare, prompts: Sequence[str], max_tokens: int) -> float:
    """Tokens per second of `generate_step`, job by job."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    with bare.own_pool():
        began = time.perf_counter()
        for prompt in prompts:
            ids = mx.array(bare.tokenizer.encode(prompt))
            count = sum(1 for _ in generate_step(ids, bare.model, max_tokens=max_tokens))
            assert count == max_tokens
        return len(prompts) * max_tokens / (time.perf_counter() - began)


def batched(bare: Bare, prompts: Sequence[str], max_tokens: int) -> float:
    """Tokens per second of a `BatchGenerator` with mlx-lm's own settings."""
    return alternated([(bare, prompts)], max_tokens)


def alternated(loads: Sequence[tuple[Bare, Sequence[str]]], max_tokens: int) -> float:
    """Tokens per second of one `BatchGenerator` a model, a step of each in turn."""
    from mlx_lm.generate import BatchGenerator

    with contextlib.ExitStack() as stack:
        stack.enter_context(loads[0][0].own_pool())
        began = time.perf_counter()
        generators = []
        for bare, prompts in loads:
            generator = BatchGenerator(bare.model)
            stack.callback(generator.close)
            ids = [bare.tokenizer.encode(prompt) for prompt in prompts]
            generator.insert(ids, max_tokens=[max_tokens] * len(ids))
            generators.append(generator)
        count = 0
        while generators:
            for generator in list(generators):
                read, written = generator.next()
                count += len(written)
                if not read and not written:
                    generators.remove(generator)
        seconds = time.perf_counter() - began
    assert count == max_tokens * sum(len(prompts) for _, prompts in loads)
    return count / seconds


async def served(loads: Sequence[tuple[wa.Model, Sequence[str]]], max_tokens: int) -> float:
    """Tokens per second of the runtime, all jobs at once; their texts count in."""
    count = 0

    async def run(model: wa.Model, prompt: str) -> None:
        nonlocal count
        async with model.generate(prompt, max_tokens=max_tokens) as job:
            async for _ in job:
                pass
        assert job.result is not None
        count += job.result.generation_tokens

    began = time.perf_counter()
    async with trio.open_nursery() as jobs:
        for model, prompts in loads:
            for prompt in prompts:
                jobs.start_soon(run, model, prompt)
    seconds = time.perf_counter() - began
    assert count == max_tokens * sum(len(prompts) for _, prompts in loads)
    return count / seconds
