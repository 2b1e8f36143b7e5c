"""What a loaded model's cache and its largest step take, with as little run as possible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wiredactors.engine.cache import arrays_of, is_plain, is_rotating, parts
from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.memory.cache_cost import STEP_TOKENS, CacheCost, WindowCost
from wiredactors.memory.errors import ModelLoadError
from wiredactors.memory.units import MIB

#: Added to the predicted workspace, once for all models: at least this much, ...
MARGIN_BYTES = 16 * MIB
#: ... or this part of the weights.
MARGIN_SHARE = 0.02

#: Of one row, for each word of the vocabulary: a logit and a log-probability.
LOGITS_BYTES = 2 * 4


def measure_cache(model: Any, prefill_step_size: int) -> CacheCost:
    """What one row takes as long as it lives, from one step of a prompt.

    Shapes are exact before anything is evaluated, so keys and values are only traced. Other kinds
    (states) do not grow, and keep more alive than they report (a slice holds the whole activation
    that it was cut from), so those are evaluated and their buffers read.

    A row's logits and log-probabilities belong to it as its cache does: the device may still work
    on one step of every batch when it is given the next batch's, so they add up over the batches.

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
    logits = model(mx.zeros((1, prefill_step_size), mx.int32), cache=batch)
    steps, states = [0], [0]
    windows: dict[int, list[int]] = {}
    for part in (part for cache in batch for part in parts(cache)):
        if is_plain(part):
            steps.append(_token_bytes(part) * STEP_TOKENS)
        elif is_rotating(part):
            # While a prompt is read it keeps a window for the first token of the chunk, too.
            most = part.max_size + prefill_step_size - 1
            windows.setdefault(most, []).append(_token_bytes(part))
        else:
            arrays = arrays_of(part)
            mx.eval(arrays)
            states.append(int(mx.get_array_buffer_size(arrays)))
    return CacheCost(
        fixed_bytes=sum(states) + max(states) + LOGITS_BYTES * int(logits.shape[-1]),
        step_bytes=sum(steps),
        copy_bytes=max(steps),
        windows=tuple(
            WindowCost(most_tokens=most, token_bytes=sum(sizes), copy_bytes=max(sizes))
            for most, sizes in windows.items()
        ),
    )


def _token_bytes(part: Any) -> int:
    if part.keys is None:  # a layer that uses another's
        return 0
    return int((part.keys.nbytes + part.values.nbytes) // part.keys.shape[2])


def workspace_bytes(
    config: Mapping[str, Any], *, prefill_step_size: int, rows: int, fused_attention: bool
) -> int:
    """Predicted transient bytes of a model's largest step, from its config.

    A prefill step of S tokens at the end of a context of T holds S x (heads x T x 4 + T) bytes of
    attention scores and mask where attention is not fused (the CPU), and a few activations of each
    token; measured on SmolLM2 within 1 % (44,816 bytes a token, against 44,544 by this formula).
    A decoding row is charged its logits and log-probabilities with its cache; as much again is
    here for each, for what normalizing and sampling them takes.
    """
    text = config.get("text_config", config)
    hidden = int(text.get("hidden_size") or text.get("d_model") or text.get("n_embd") or 1024)
    inner = int(text.get("intermediate_size") or text.get("moe_intermediate_size") or 4 * hidden)
    inner *= int(text.get("num_experts_per_tok") or text.get("num_experts_per_token") or 1)
    heads = int(text.get("num_attention_heads") or text.get("n_heads") or text.get("n_head") or 0)
    context = context_length(config)
    vocabulary = int(text.get("vocab_size") or 0)
    per_token = 4 * (5 * inner + 6 * hidden)
    if not fused_attention:
        per_token += 4 * heads * context + context
    per_token += _state_space_bytes(text, prefill_step_size)
    return prefill_step_size * per_token + rows * LOGITS_BYTES * vocabulary


def _state_space_bytes(text: Mapping[str, Any], prefill_step_size: int) -> int:
    """Bytes for each token of a prefill step in a state-space layer (mamba2, hybrids).

    mlx-lm reads a prompt there in chunks of 256 with several matrices of chunk x chunk for each
    head. The factors bound what tiny models of 4 to 16 heads took on the CPU (by 1.1 to 1.5).
    """
    state = int(
        text.get("mamba_d_state") or text.get("ssm_state_size") or text.get("state_size") or 0
    )
    if not state:
        return 0
    heads = int(
        text.get("mamba_n_heads") or text.get("mamba_num_heads") or text.get("num_heads") or 1
    )
    width = int(
        text.get("mamba_d_head") or text.get("mamba_head_dim") or text.get("head_dim") or 64
    )
    return 4 * heads * (6 * min(prefill_step_size, 256) + 8 * state + 16 * width)


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
