"""Measuring a loaded model: a real prefill, and what MLX's memory did meanwhile.

Each step is run as `estimate` predicts it: `model(chunk, cache=cache)`, then with `kv_bits`
mlx-lm's own quantization of the cache, then the evaluation of the cache; the logits of a prompt are
dropped unevaluated. Other models, batches and arrays may be resident: all but the weights is the
difference against just before, with MLX's pool of freed buffers off, because a buffer out of the
pool may be larger than what was asked for.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from wiredactors.engine.cache import arrays_of, is_rotating, parts
from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.engine.kept import check_kinds, quantize_unseen
from wiredactors.engine.probe import Probe, TuneError, open_probe
from wiredactors.engine.prompts import encode_prompt
from wiredactors.engine.sizing import LOGITS_BYTES, measure_cache
from wiredactors.memory.cache_cost import STEP_TOKENS, CacheCost, WindowCost
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.scheduling.requests import Prompt

#: What synthetic prompts are made of, again and again.
_TEXT = "The quick brown fox jumps over the lazy dog, and 42 others follow it. "


def run_prefill(
    model: Any,
    tokenizer: Any,
    parameters: TuneParameters,
    *,
    user_input: Prompt | None = None,
    check: Callable[[], object] = lambda: None,
) -> WiredMemoryMeasurement:
    """Measure one of mlx-lm's models by a prefill of exactly `token_count` tokens in each row.

    On the thread that owns the model's streams; nothing else may use MLX meanwhile. On every path
    what was made is let go, and MLX's pool may be as large as before.

    With `decode_tokens` so many single-token steps of all rows follow, and workspace and peak are
    those of the decode steps alone: what a job needs once its prompt has been read.

    Weights and cache are exact. On the CPU, MLX lets go of temporaries when its own thread comes to
    it, so there workspace and peak differ by some percent from run to run.

    The cost of other rows is that of a shared cache, as jobs of the runtime have it. With `kv_bits`
    or `max_kv_size`, or where `measure_cache` cannot tell, it is derived from the cache that was
    measured: bytes a token where keys and values are kept, and whatever else it holds as fixed.

    Args:
        model, tokenizer: loaded by mlx-lm.
        parameters: how the prefill is run.
        user_input: a prompt or text messages, measured instead of a synthetic prompt; its tokens
            replace `token_count`.
        check: called before each step; raising out of it ends the measurement.

    Raises:
        TuneError: the tokenizer cannot make the tokens, or a runtime is open elsewhere.
        ValueError: `kv_bits` or `max_kv_size` does not go with the model's cache.
    """
    if user_input is None:
        prompt = synthetic_tokens(tokenizer, parameters.token_count)
    else:
        prompt = encode_prompt(tokenizer, user_input)
        parameters = attrs.evolve(parameters, token_count=len(prompt))
    make_cache = cache_maker(model, parameters, import_mlx_lm("models.cache"))
    with open_probe(import_mlx_lm("generate").generation_stream) as probe:
        return _run_prefill(model, prompt, parameters, make_cache, probe, check)


def _run_prefill(
    model: Any,
    prompt: list[int],
    parameters: TuneParameters,
    make_cache: Callable[[], list[Any]],
    probe: Probe,
    check: Callable[[], object],
) -> WiredMemoryMeasurement:
    mx = import_mlx()

    def run(tokens: list[int], cache: list[Any]) -> Any:
        rows = mx.array([tokens] * parameters.batch_size, mx.int32)
        return model(rows, cache=cache)

    def read(tokens: list[int], cache: list[Any]) -> None:
        run(tokens, cache)
        settle_cache(cache, parameters)

    def decode(last: list[int], cache: list[Any]) -> None:
        logits = run(last, cache)
        settle_cache(cache, parameters, mx.argmax(logits[:, -1, :], axis=-1))

    mx.eval(model.parameters())  # it may have been loaded lazily
    # What modules make when they first run, and keep, is not the prompt's.
    cache = make_cache()
    for tokens in (prompt[:1] * 2, prompt[:1]):
        read(tokens, cache)
    del cache
    cost = None
    if parameters.kv_bits is None and parameters.max_kv_size is None:
        # Its cache cannot be shared, or its step cannot be thought through.
        with contextlib.suppress(Exception):
            cost = measure_cache(model, parameters.prefill_step_size)
    probe.begin()
    cache = make_cache()
    for tokens in chunks(prompt, parameters.prefill_step_size):
        check()
        probe.step(functools.partial(read, tokens, cache))
    if parameters.decode_tokens:
        probe.forget_steps()
    for _ in range(parameters.decode_tokens):
        check()
        probe.step(functools.partial(decode, prompt[-1:], cache))
    if cost is None:
        words = int(run(prompt[-1:], make_cache()).shape[-1])
        cost = derive_cost(cache, parameters, words)
    held = probe.grown_bytes
    del cache
    return probe.measurement(
        parameters,
        weight_bytes=int(mx.get_array_buffer_size(model.parameters())),
        # Not what it grew by: what MLX keeps of each function that it compiles grew, too.
        kv_bytes=held - probe.grown_bytes,
        cost=cost,
    )


def synthetic_tokens(tokenizer: Any, count: int) -> list[int]:
    """Exactly `count` token ids of a text that is encoded again and again, no special ones.

    Raises:
        TuneError: the tokenizer gives none, or fails.
    """
    try:
        special = {int(token) for token in getattr(tokenizer, "all_special_ids", None) or ()}
        encoded = tokenizer.encode(_TEXT, add_special_tokens=False)
        tokens = [int(token) for token in encoded if int(token) not in special]
    except Exception as error:
        raise TuneError(
            f"the tokenizer ({type(tokenizer).__name__}) cannot encode a text: {error!r}. Give the "
            "one that was loaded with the model"
        ) from error
    if not tokens:
        raise TuneError(
            f"the tokenizer ({type(tokenizer).__name__}) makes no ordinary token of an English "
            "text, so no prompt can be made: give `user_input`"
        )
    return (tokens * (-(-count // len(tokens))))[:count]


def chunks(prompt: list[int], size: int) -> Iterator[list[int]]:
    """The prompt in chunks of `size`, the rest last."""
    for begin in range(0, len(prompt), size):
        yield prompt[begin : begin + size]


def settle_cache(cache: list[Any], parameters: TuneParameters, *others: Any) -> None:
    """What follows the model's call in each step: quantize, and make the cache real."""
    quantize_unseen(cache, parameters)
    import_mlx().eval(*others, [part.state for part in cache])


def cache_maker(
    model: Any, parameters: TuneParameters, models_cache: Any
) -> Callable[[], list[Any]]:
    """Makes the model's cache by mlx-lm's or mlx-vlm's `models.cache`.

    Raises:
        ValueError: `kv_bits` or `max_kv_size` does not go with it.
    """

    def make() -> list[Any]:
        cache: list[Any] = models_cache.make_prompt_cache(model, parameters.max_kv_size)
        return cache

    check_kinds(model, parameters, make)
    return make


def derive_cost(cache: list[Any], parameters: TuneParameters, words: int) -> CacheCost:
    """What another row takes, from a cache that holds `token_count` tokens of each row.

    A copy of the largest layer is charged as for shared caches: a cache that grows is copied.
    """
    mx = import_mlx()
    rows = parameters.batch_size
    steps, states = [0], [0]
    windows: dict[int, list[int]] = {}
    for part in (part for each in cache for part in parts(each)):
        keys = getattr(part, "keys", None)
        # Not the state of keys and values: mlx-vlm's is cut to the tokens.
        arrays = arrays_of(part) if keys is None else [keys, part.values]
        size = -(-int(mx.get_array_buffer_size(arrays)) // rows) if arrays else 0
        if keys is None:
            states.append(size)
            continue
        keys = keys[0] if isinstance(keys, (tuple, list)) else keys  # a quantized one has three
        length = int(keys.shape[-2])
        if is_rotating(part):
            most = part.max_size + parameters.prefill_step_size - 1
            windows.setdefault(most, []).append(-(-size // length))
        else:
            steps.append(-(-size * STEP_TOKENS // length))
    return CacheCost(
        fixed_bytes=sum(states) + max(states) + LOGITS_BYTES * words,
        step_bytes=sum(steps),
        copy_bytes=max(steps),
        windows=tuple(
            WindowCost(most_tokens=most, token_bytes=sum(sizes), copy_bytes=max(sizes))
            for most, sizes in windows.items()
        ),
    )
