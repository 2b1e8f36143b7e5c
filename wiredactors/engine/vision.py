"""Measuring mlx-vlm's models: with real images and videos, whose tensors count.

The prefill is mlx-vlm's own (`generate_step` with no token to generate), from the processor on: the
pixels, the vision tower and the embeddings are part of what it holds for a moment.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import attrs

from wiredactors.engine.conversation import (
    Conversation,
    check_video,
    read_conversation,
    read_image,
    shortened,
)
from wiredactors.engine.imports import import_mlx, import_mlx_vlm
from wiredactors.engine.modules import untouched
from wiredactors.engine.probe import Probe, TuneError, open_probe
from wiredactors.engine.tuning import cache_maker, derive_cost, synthetic_tokens
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.scheduling.requests import Prompt


def is_vision_model(model: Any) -> bool:
    """Whether it is one of mlx-vlm's."""
    return any(kind.__module__.partition(".")[0] == "mlx_vlm" for kind in type(model).__mro__)


def run_vision_prefill(
    model: Any,
    processor: Any,
    parameters: TuneParameters,
    *,
    user_input: Prompt | None = None,
) -> WiredMemoryMeasurement:
    """Measure one of mlx-vlm's models by the prefill of a prompt with its images and videos.

    As `run_prefill`, but in one go: mlx-vlm decides whether chunks of `prefill_step_size` are
    possible. `token_count` of the measurement counts the image tokens. The cost of other rows is
    derived from the cache that was measured.

    Args:
        model, processor: loaded by mlx-vlm.
        parameters: how the prefill is run; `batch_size` must be 1.
        user_input: text or chat messages; None is a made-up text of `token_count` tokens.

    Raises:
        TuneError: an image or a video cannot be read, or the processor makes no prompt.
        ValueError: `batch_size`, `kv_bits` or `max_kv_size` does not go with the model.
    """
    if parameters.batch_size != 1:
        raise ValueError(
            f"batch_size={parameters.batch_size}: mlx-vlm's models are measured one prompt at a "
            "time; leave it out"
        )
    mx = import_mlx()
    if user_input is None:
        tokenizer = getattr(processor, "tokenizer", processor)
        tokens = synthetic_tokens(tokenizer, parameters.token_count)

        def prepare() -> dict[str, Any]:
            return {"input_ids": mx.array([tokens])}
    else:
        prepare = _preparation(model, processor, read_conversation(user_input))
    make_cache = cache_maker(model.language_model, parameters, import_mlx_vlm("models.cache"))
    with (
        untouched(model),
        open_probe(import_mlx_vlm("generate.common").generation_stream) as probe,
    ):
        return _run(model, prepare, parameters, make_cache, probe)


def _run(
    model: Any,
    prepare: Callable[[], dict[str, Any]],
    parameters: TuneParameters,
    make_cache: Callable[[], list[Any]],
    probe: Probe,
) -> WiredMemoryMeasurement:
    mx = import_mlx()
    generate_step = import_mlx_vlm("generate.ar").generate_step
    lengths: list[int] = []

    def read(cache: list[Any]) -> None:
        inputs = prepare()
        lengths.append(int(inputs["input_ids"].shape[1]))
        steps = generate_step(
            inputs.pop("input_ids"),
            model,
            inputs.pop("pixel_values", None),
            inputs.pop("attention_mask", None),
            max_tokens=0,
            temperature=0.0,
            prompt_cache=cache,
            prefill_step_size=parameters.prefill_step_size,
            kv_bits=parameters.kv_bits,
            kv_group_size=parameters.kv_group_size,
            quantized_kv_start=0,
            **inputs,
        )
        try:
            for _ in steps:
                pass
            mx.eval([part.state for part in cache])
        except BaseException:
            cache.clear()  # the error's traceback holds mlx-vlm's closures, and these the list
            raise

    def call(cache: list[Any]) -> Any:
        return model.language_model(mx.array([[0]]), cache=cache).logits

    def decode(cache: list[Any]) -> None:
        logits = call(cache)
        mx.eval(mx.argmax(logits[:, -1, :], axis=-1), [part.state for part in cache])

    mx.eval(model.parameters())  # it may have been loaded lazily
    probe.begin()
    cache = make_cache()
    probe.step(functools.partial(read, cache))
    # Where the model itself puts the image's tokens in, the cache alone knows.
    count = max(lengths[0], *(int(getattr(part, "offset", 0)) for part in cache))
    parameters = attrs.evolve(parameters, token_count=count)
    if parameters.decode_tokens:
        probe.forget_steps()
    for _ in range(parameters.decode_tokens):
        probe.step(functools.partial(decode, cache))
    words = int(call(make_cache()).shape[-1])
    cost = derive_cost(cache, parameters, words)
    held = probe.grown_bytes
    del cache
    return probe.measurement(
        parameters,
        weight_bytes=int(mx.get_array_buffer_size(model.parameters())),
        kv_bytes=held - probe.grown_bytes,
        cost=cost,
    )


def _preparation(
    model: Any, processor: Any, conversation: Conversation
) -> Callable[[], dict[str, Any]]:
    """Makes the model's inputs of a conversation; media are read now, tensors made when called."""
    utils = import_mlx_vlm("utils")
    prompts = import_mlx_vlm("prompt_utils")
    images = [read_image(utils, source) for source in conversation.images]
    videos = [check_video(source) for source in conversation.videos]
    try:
        if videos:
            text = prompts.get_chat_template(processor, conversation.messages, True)
        else:
            text = prompts.apply_chat_template(
                processor, model.config, conversation.messages, num_images=len(images)
            )
    except Exception as error:
        raise TuneError(
            f"the processor's chat template cannot write this: {shortened(error)}"
        ) from error

    def prepare() -> dict[str, Any]:
        special = utils.should_add_special_tokens(model.config.model_type, processor)
        try:
            inputs: dict[str, Any] = utils.prepare_inputs(
                processor,
                images=images or None,
                videos=videos or None,
                prompts=text,
                image_token_index=getattr(model.config, "image_token_index", None),
                add_special_tokens=special,
            )
        except Exception as error:  # the processor's, transformers' and OpenCV's
            raise TuneError(f"the processor cannot read this: {shortened(error)}") from error
        return inputs

    return prepare
