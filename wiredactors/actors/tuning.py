"""`tune`: measure a model by running it, whether it is the runtime's or loaded by mlx-lm alone."""

from __future__ import annotations

from typing import Any

import trio

from wiredactors.actors.model import Model
from wiredactors.engine.conversation import refuse_media
from wiredactors.engine.tuning import run_prefill
from wiredactors.engine.vision import is_vision_model, run_vision_prefill
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.scheduling.requests import Prompt

#: Of a pair, which has no step size of its own.
_STEP_SIZE = 512


async def tune(
    model: Model | tuple[Any, Any],
    token_count: int = 2048,
    *,
    prefill_step_size: int | None = _STEP_SIZE,
    batch_size: int = 1,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    max_kv_size: int | None = None,
    decode_tokens: int = 0,
    user_input: Prompt | None = None,
    remeasure: bool = False,
) -> WiredMemoryMeasurement:
    """Measure weights, cache and workspace of a model by really running a prefill.

    With a `Model` of the runtime it is `Model.tune`: under a ticket, between the steps of others,
    and kept in the user's cache directory, so that the same measurement is not run again. With
    mlx-lm's `(model, tokenizer)` or mlx-vlm's `(model, processor)`, as their `load` gives them, it
    runs at once on the calling thread, which must be the one that loaded the model and uses it. It
    blocks the event loop meanwhile, nothing else may use MLX, and nothing is kept.

    Workspace and peak are those of the prefill; with `decode_tokens` those of the decode steps
    alone, while the cache holds both. See `WiredMemoryMeasurement`.

    Args:
        model: a `Model`, or a pair.
        token_count: tokens of each row's prompt, which is made up.
        prefill_step_size: prompt tokens in one step at most; None is the model's own in the
            runtime, and 512 for a pair.
        batch_size, kv_bits, kv_group_size, max_kv_size, decode_tokens: see `TuneParameters`.
        user_input: a prompt or chat messages to measure instead of a made-up prompt; its tokens
            replace `token_count`. For mlx-vlm's pair messages may hold images and videos, as
            `{"type": "image", "image": ...}` in their content: a path, an address, the file's
            bytes, a PIL image; their tensors, the vision tower's workspace and the image tokens
            count.
        remeasure: run it though it is known. For a `Model`.

    Raises:
        TypeError: `model` is neither.
        ValueError: an argument is out of its range, or does not go with the model.
        TuneError: the tokenizer makes no prompt, an image is none, or a pair is given while a
            runtime is open in this process.
        And what `Model.tune` raises.
    """
    if isinstance(model, Model):
        if user_input is not None:
            refuse_media(user_input)
            token_count = model.count_tokens(user_input)
        return await model.tune(
            token_count,
            prefill_step_size=prefill_step_size,
            batch_size=batch_size,
            kv_bits=kv_bits,
            kv_group_size=kv_group_size,
            max_kv_size=max_kv_size,
            decode_tokens=decode_tokens,
            remeasure=remeasure,
        )
    network, tokenizer = _pair(model)
    parameters = TuneParameters(
        token_count=token_count,
        prefill_step_size=_STEP_SIZE if prefill_step_size is None else prefill_step_size,
        batch_size=batch_size,
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        max_kv_size=max_kv_size,
        decode_tokens=decode_tokens,
    )
    await trio.lowlevel.checkpoint()
    if is_vision_model(network):
        return run_vision_prefill(network, tokenizer, parameters, user_input=user_input)
    if user_input is not None:
        refuse_media(user_input)
    return run_prefill(network, tokenizer, parameters, user_input=user_input)


def _pair(model: object) -> tuple[Any, Any]:
    if isinstance(model, (tuple, list)) and len(model) >= 2 and callable(model[0]):
        return model[0], model[1]
    raise TypeError(
        f"tune() takes a Model of the runtime, or the pair that mlx_lm.load() or mlx_vlm.load() "
        f"returns, not {type(model).__name__}"
    )
