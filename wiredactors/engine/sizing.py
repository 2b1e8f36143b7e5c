"""What a model's rows and steps take, found by thinking them through (see `tracing`).

It works on a blueprint before anything is loaded, and as well on a loaded model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from wiredactors.engine.cache import is_rotating, parts
from wiredactors.engine.devices import device
from wiredactors.engine.graph import Unrecordable
from wiredactors.engine.imports import import_mlx_lm
from wiredactors.engine.tracing import Tracer, key_value_parts
from wiredactors.engine.unrolled import SHORT, short_steps, size_at
from wiredactors.memory.cache_cost import STEP_TOKENS, CacheCost, WindowCost, bucket_tokens
from wiredactors.memory.errors import ModelLoadError

#: Of one row, for each word of the vocabulary: a logit and a log-probability.
LOGITS_BYTES = 2 * 4


def measure_cache(model: Any, prefill_step_size: int) -> CacheCost:
    """What one row of a shared batch takes as long as it lives.

    A step of a prompt is thought through with the caches of a batch of one; with the row's own
    where the model's cannot be shared, so that each row runs alone. Keys and values are
    counted by the token, whatever else a cache holds (states) by its buffers, which may be larger
    than it reports: a slice keeps the whole activation alive that it was cut from.

    A row's logits and log-probabilities belong to it as its cache does: the device may still work
    on one step of every batch when it is given the next batch's, so they add up over the batches.

    Raises:
        ModelLoadError: nothing is known of the model's cache, or something went wrong.
    """

    def new_tracer() -> Tracer:
        return Tracer(model, row_caches(model, 1), device())

    alone = merged_caches(model, 1) is None

    def cost(tracer: Tracer) -> CacheCost:
        found = cache_cost(tracer, rows=1, prefill_step_size=prefill_step_size)
        return _without_copies(found) if alone else found

    tracer = new_tracer()
    try:
        with thinking_through(model):
            short = short_steps(new_tracer, rows=1, tokens=prefill_step_size)
            if short:
                fewer, more = map(cost, short)
                states = [fewer.fixed_bytes, more.fixed_bytes]
                return attrs.evolve(more, fixed_bytes=size_at(prefill_step_size, states))
            tracer.step(1, prefill_step_size)
            if any(_is_unknown(part) for cache in tracer.caches for part in parts(cache)):
                return _grown_cost(tracer, prefill_step_size)
    except Unrecordable as error:
        tracer = guess_from(tracer, row_caches(model, 1), error)
        tracer.grow(prefill_step_size)
    return cost(tracer)


@contextlib.contextmanager
def thinking_through(model: Any) -> Iterator[None]:
    """What goes wrong inside says so, whether it is the model's code or ours that is wrong.

    Only of what MLX cannot record may be guessed.

    Raises:
        ModelLoadError: something went wrong; its cause says what.
    """
    try:
        yield
    except (Unrecordable, ModelLoadError):
        raise
    except Exception as error:
        raise ModelLoadError(
            f"a step of {type(model).__module__} went wrong when it was thought through "
            f"({error!r}): check the model's config, and if it runs in mlx-lm report this"
        ) from error


def guess_from(
    failed: Tracer,
    caches: list[Any],
    error: Unrecordable,
    after: Callable[[list[Any]], object] = lambda caches: None,
) -> Tracer:
    """A tracer whose `caches` can grow, where MLX cannot record its steps.

    It has mostly shown by then what its first layer keeps, and the others are taken to be alike.

    Raises:
        ModelLoadError: nothing is known of its caches.
    """
    model = failed.model
    tracer = Tracer(model, caches, device(), after)
    fed = next(iter(failed.fed.values()), None)
    if fed is not None:
        tracer.fed = dict.fromkeys(range(len(key_value_parts(caches))), fed)
    if not tracer.can_grow:
        raise ModelLoadError(
            f"what {type(model).__module__} takes cannot be predicted ({error}): measure it with "
            "tune"
        ) from error
    tracer.vocabulary = int(getattr(getattr(model, "args", None), "vocab_size", 0))
    return tracer


def row_caches(model: Any, rows: int) -> list[Any]:
    """Empty caches of `rows` rows that step together, as mlx-lm makes them.

    Those of a batch; where the model's cannot be shared, those of a row alone, which take as many
    rows as they are given.
    """
    return merged_caches(model, rows) or import_mlx_lm("models.cache").make_prompt_cache(model)


def merged_caches(model: Any, rows: int) -> list[Any] | None:
    """Empty caches of a batch of `rows`, or None where the model's cannot be merged."""
    caches = import_mlx_lm("models.cache").make_prompt_cache(model)
    if not all(hasattr(cache, "merge") for cache in caches):
        return None
    return [cache.merge([cache] * rows) for cache in caches]


def cache_cost(tracer: Tracer, *, rows: int, prefill_step_size: int) -> CacheCost:
    """The cost of one row, from caches that have read at least one step of `rows` rows."""
    steps, states = [0], [0]
    windows: dict[int, list[int]] = {}
    for part in (part for cache in tracer.caches for part in parts(cache)):
        if type(part).__name__ == "ChunkedKVCache":
            # It is cut to a chunk before a step, and grows from there; the cut keeps it all alive.
            most = part.chunk_size + bucket_tokens(prefill_step_size) + STEP_TOKENS
            windows.setdefault(most, []).append(_token_bytes(part, rows))
        elif _has_keys(part) and not is_rotating(part):
            steps.append(_token_bytes(part, rows) * STEP_TOKENS)
        elif is_rotating(part):
            # While a prompt is read it keeps a window for the first token of the chunk, too.
            most = part.max_size + prefill_step_size - 1
            windows.setdefault(most, []).append(_token_bytes(part, rows))
        else:
            states.append(-(-tracer.bytes_of(part) // rows))
    return CacheCost(
        fixed_bytes=sum(states) + max(states) + LOGITS_BYTES * tracer.vocabulary,
        step_bytes=sum(steps),
        copy_bytes=max(steps),
        windows=tuple(
            WindowCost(most_tokens=most, token_bytes=sum(sizes), copy_bytes=max(sizes))
            for most, sizes in windows.items()
        ),
    )


def _grown_cost(tracer: Tracer, prefill_step_size: int) -> CacheCost:
    """The cost of one row whose caches nobody knows, from how they grow.

    They may keep a window and something of each token beyond it, so that the line through two
    lengths lies above what shorter and longer rows take.
    """
    sizes = []
    chunk = max(STEP_TOKENS, prefill_step_size)
    read = prefill_step_size
    for length in (chunk, 2 * chunk):
        while read < length:
            tracer.step(1, prefill_step_size)
            read += prefill_step_size
        sizes.append(tracer.cache_bytes)
    growth = max(0, sizes[1] - sizes[0])
    return CacheCost(
        fixed_bytes=max(0, sizes[1] - 2 * growth) + LOGITS_BYTES * tracer.vocabulary,
        step_bytes=-(-growth * STEP_TOKENS // chunk),
        copy_bytes=0,
    )


def _without_copies(cost: CacheCost) -> CacheCost:
    """Nothing joins or leaves a row that runs alone."""
    windows = tuple(attrs.evolve(window, copy_bytes=0) for window in cost.windows)
    return attrs.evolve(cost, copy_bytes=0, windows=windows)


def _is_unknown(part: Any) -> bool:
    """Whether it is of a model's own kind, of which nobody knows how it grows."""
    return not _has_keys(part) and type(part).__name__ != "ArraysCache"


def _has_keys(part: Any) -> bool:
    """Whether it grows by the token: quantized caches, and those that cannot be shared."""
    return hasattr(part, "keys") and hasattr(part, "values")


def _token_bytes(part: Any, rows: int) -> int:
    """Bytes that one row's token takes in a cache of keys and values, quantized or not."""
    if part.keys is None:  # a layer that uses another's
        return 0
    arrays = [*_listed(part.keys), *_listed(part.values)]
    return sum(int(array.nbytes) // int(array.shape[2]) for array in arrays) // rows


def _listed(arrays: Any) -> Sequence[Any]:
    return arrays if isinstance(arrays, (list, tuple)) else [arrays]


def step_workspace(model: Any, *, prefill_step_size: int, rows: int, context: int) -> int:
    """What the largest step holds for a moment beside weights and caches, in bytes.

    That is the last step of a prompt that fills the context, or a decode step of `rows` rows that
    all fill it (of one, where each runs alone). Where attention is not fused (the CPU) it grows
    with the context: a score for each pair of token and head.

    Raises:
        Unrecordable: only running it would tell.
        ModelLoadError: something went wrong.
    """
    rows = 1 if merged_caches(model, 1) is None else rows
    step = min(prefill_step_size, context)

    def new_tracer(rows: int = 1) -> Tracer:
        return Tracer(model, row_caches(model, rows), device())

    def prefill(tracer: Tracer, tokens: int) -> int:
        return workspace_at_end(tracer, rows=1, tokens=tokens, context=context)

    with thinking_through(model):
        short = short_steps(new_tracer, rows=1, tokens=step)
        if short:
            prompt = size_at(step, list(map(prefill, short, SHORT)))
        else:
            tracer = new_tracer()
            tracer.step(1, step)
            prompt = prefill(tracer, step)
        tracer = new_tracer(rows)
        try:
            tracer.step(rows, 1, logits=True)
        except Unrecordable:
            raise
        except Exception:  # several rows are too much for its code, so each runs alone
            rows, tracer = 1, new_tracer()
            tracer.step(1, 1, logits=True)
        batch = workspace_at_end(
            tracer, rows=rows, tokens=1, context=context, chunk=step, logits=True
        )
    return max(prompt, batch)


def workspace_at_end(
    tracer: Tracer,
    *,
    rows: int,
    tokens: int,
    context: int,
    chunk: int | None = None,
    logits: bool = False,
) -> int:
    """What a step holds beside its caches: the one that was, or one more at the context's end.

    Bytes of the larger one of two steps of `tokens` tokens for each row. What lies between is read
    in chunks of `chunk` tokens (or as many): a window keeps the last one whole, and the next step
    cuts it.
    """
    between = context - 2 * tokens
    if between > 0:
        last = min(chunk or tokens, between)
        if tracer.can_grow:
            for more in filter(None, (between - last, last)):
                tracer.grow(more)
                tracer.steps.pop()  # caches alone: no step of the model's
        tracer.step(rows, tokens, logits=logits)
    return tracer.workspace_bytes


def context_length(config: Mapping[str, Any]) -> int:
    """Tokens that the model can hold: its config's, or 1 Mi where it names no bound."""
    text = config.get("text_config", config)
    for key in ("max_position_embeddings", "max_sequence_length", "n_positions", "seq_length"):
        if isinstance(text.get(key), int) and text[key] > 0:
            return int(text[key])
    return 1 << 20


def rough_workspace(config: Mapping[str, Any], tokens: int, context: int) -> int:
    """A guess, in bytes, of what a step of so many tokens takes, for a model that cannot be traced.

    A few activations of four bytes for each token, and its scores against the whole context.
    """
    text = config.get("text_config", config)
    hidden = int(text.get("hidden_size") or text.get("d_model") or text.get("n_embd") or 1024)
    inner = int(text.get("intermediate_size") or text.get("moe_intermediate_size") or 4 * hidden)
    inner *= int(text.get("num_experts_per_tok") or text.get("num_experts_per_token") or 1)
    heads = int(text.get("num_attention_heads") or text.get("n_heads") or text.get("n_head") or 0)
    return tokens * 4 * (5 * inner + 6 * hidden + 2 * heads * context)
