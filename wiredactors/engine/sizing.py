"""What a loaded model's cache and its largest step take, found without running it where possible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wiredactors.engine.cache import grows_whole
from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.memory.errors import ModelLoadError
from wiredactors.memory.units import MIB
from wiredactors.scheduling.buckets import STEP_TOKENS, CacheCost

#: Added to the predicted workspace, once for all models: at least this much, ...
MARGIN_BYTES = 16 * MIB
#: ... or this part of the weights.
MARGIN_SHARE = 0.02


def measure_cache(model: Any, prefill_step_size: int) -> CacheCost:
    """What one row's cache takes, by building it for two lengths.

    Shapes are exact before anything is evaluated, so key-value caches are only traced. Other kinds
    keep more alive than they report (a slice holds the whole activation that it was cut from), so
    those are evaluated and their buffers read.

    Raises:
        ModelLoadError: the model's cache cannot be shared by a batch.
    """
    mx = import_mlx()
    caches = import_mlx_lm("models.cache").make_prompt_cache(model)
    try:
        batch = [cache.merge([cache]) for cache in caches]
    except AttributeError as error:
        raise ModelLoadError(
            f"the model's cache ({type(caches[0]).__name__}) cannot be shared by several jobs, "
            "which is not supported yet: load another model"
        ) from error
    exact = all(grows_whole(cache) for cache in batch)
    unit = max(STEP_TOKENS, prefill_step_size)
    chunks = [unit - prefill_step_size, prefill_step_size]
    sizes = []
    for _ in range(2):
        for chunk in filter(None, chunks):
            model(mx.zeros((1, chunk), mx.int32), cache=batch)
        sizes.append([_cache_bytes(cache, exact, mx) for cache in batch])
    steps = unit // STEP_TOKENS
    growth = [(after - before) // steps for before, after in zip(*sizes, strict=True)]
    return CacheCost(
        fixed_bytes=max(0, sum(sizes[0]) - steps * sum(growth)),
        step_bytes=sum(growth),
        copy_bytes=max(growth),
        grows_whole=exact,
    )


def _cache_bytes(cache: Any, exact: bool, mx: Any) -> int:
    if exact:
        return int(cache.nbytes)
    mx.eval(cache.state)
    return int(mx.get_array_buffer_size(cache.state))


def workspace_bytes(
    config: Mapping[str, Any], *, prefill_step_size: int, rows: int, fused_attention: bool
) -> int:
    """Predicted transient bytes of a model's largest step, from its config.

    A prefill step of S tokens at the end of a context of T holds S x (heads x T x 4 + T) bytes of
    attention scores and mask where attention is not fused (the CPU), and a few activations of each
    token; measured on SmolLM2 within 1 % (44,816 bytes a token, against 44,544 by this formula).
    Each decoding row holds its logits and log-probabilities of this and the next step.
    """
    text = config.get("text_config", config)
    hidden = int(text.get("hidden_size") or text.get("d_model") or text.get("n_embd") or 1024)
    inner = int(text.get("intermediate_size") or text.get("moe_intermediate_size") or 4 * hidden)
    inner *= int(text.get("num_experts_per_tok") or text.get("num_experts_per_token") or 1)
    heads = int(text.get("num_attention_heads") or text.get("num_heads") or 1)
    context = context_length(config)
    vocabulary = int(text.get("vocab_size") or 0)
    per_token = 4 * (5 * inner + 6 * hidden)
    if not fused_attention:
        per_token += 4 * heads * context + context
    return prefill_step_size * per_token + rows * 4 * 4 * vocabulary


def context_length(config: Mapping[str, Any]) -> int:
    """Tokens that the model can hold: its config's, or 1 Mi where it names no bound."""
    text = config.get("text_config", config)
    for key in ("max_position_embeddings", "max_sequence_length", "n_positions", "seq_length"):
        if isinstance(text.get(key), int) and text[key] > 0:
            return int(text[key])
    return 1 << 20


def margin_bytes(weight_bytes: int) -> int:
    """The safety margin, held once in the workspace reservation."""
    return max(MARGIN_BYTES, int(MARGIN_SHARE * weight_bytes))
