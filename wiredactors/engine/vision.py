"""Measuring mlx-vlm's models: with real images and videos, whose tensors count.

The prefill is mlx-vlm's own (`generate_step` with no token to generate), from the processor on: the
pixels, the vision tower and the embeddings are part of what it holds for a moment.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from wiredactors.engine.imports import import_mlx, import_mlx_vlm
from wiredactors.engine.tuning import (
    Probe,
    TuneError,
    cache_maker,
    derive_cost,
    open_probe,
    synthetic_tokens,
)
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.scheduling.requests import Prompt

#: Types of content parts, as the chat formats have them.
_IMAGE_TYPES = ("image", "image_url", "input_image")
_VIDEO_TYPES = ("video", "video_url", "input_video")
_TEXT_TYPES = ("text", "input_text")


@attrs.frozen
class Conversation:
    """Chat messages with their media taken out.

    Attributes:
        messages: the same, with bare markers where images and videos were.
        images, videos: in their order.
    """

    messages: list[dict[str, Any]]
    images: list[Any]
    videos: list[Any]

    @property
    def has_media(self) -> bool:
        return bool(self.images or self.videos)


def read_conversation(user_input: Prompt) -> Conversation:
    """Take images and videos out of chat messages; text is one message of the user's.

    Raises:
        TuneError: it is no conversation, or a part of a message is of a kind that is not known, or
            has no image in it.
    """
    if isinstance(user_input, str):
        return Conversation([{"role": "user", "content": user_input}], [], [])
    if isinstance(user_input, (bytes, Mapping)) or not isinstance(user_input, Sequence):
        raise TuneError(f"give text or a list of chat messages, not {user_input!r}")
    found = Conversation([], [], [])
    for message in user_input:
        if not isinstance(message, Mapping):
            raise TuneError(
                'a chat message is a mapping such as {"role": "user", "content": "Hello"}, not '
                f"{message!r}"
            )
        found.messages.append(dict(message))
        content = message.get("content")  # a call of a tool has none
        if isinstance(content, (list, tuple)):
            found.messages[-1]["content"] = [_bare(part, found) for part in content]
        elif not isinstance(content, (str, type(None))):
            raise TuneError(f"the content of a message is text or a list of parts: {content!r}")
    return found


def _bare(part: Any, found: Conversation) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _IMAGE_TYPES:
        found.images.append(_source(part, "image"))
        return {"type": "image"}
    if kind in _VIDEO_TYPES:
        found.videos.append(_source(part, "video"))
        return {"type": "video"}
    if kind in _TEXT_TYPES:
        return dict(part)
    raise TuneError(
        f"{part!r} is no part of a message that is known here: give text, images and videos, as "
        '{"type": "image", "image": a path or a PIL image}'
    )


def _source(part: Mapping[str, Any], kind: str) -> Any:
    for name in (kind, f"{kind}_url", "url", "path"):
        source = part.get(name)
        if isinstance(source, Mapping):
            source = source.get("url")
        if source is not None:
            return source
    raise TuneError(f'{dict(part)!r} has no {kind} in it: give {{"type": "{kind}", "{kind}": ...}}')


def refuse_media(user_input: Prompt) -> None:
    """For models of text alone.

    Raises:
        TuneError: there are images or videos.
        MLXVLMNotInstalled: there are, and mlx-vlm is not.
    """
    if read_conversation(user_input).has_media:
        import_mlx_vlm("utils")
        raise TuneError(
            "this model reads text alone: for images and videos give the pair that "
            "mlx_vlm.load() returns"
        )


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
        _as_it_was(model),
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
    images = [_read_image(utils, source) for source in conversation.images]
    videos = [_check_video(source) for source in conversation.videos]
    try:
        if videos:
            text = prompts.get_chat_template(processor, conversation.messages, True)
        else:
            text = prompts.apply_chat_template(
                processor, model.config, conversation.messages, num_images=len(images)
            )
    except Exception as error:
        raise TuneError(f"the processor's chat template cannot write this: {error!r}") from error

    def prepare() -> dict[str, Any]:
        inputs: dict[str, Any] = utils.prepare_inputs(
            processor,
            images=images or None,
            videos=videos or None,
            prompts=text,
            image_token_index=getattr(model.config, "image_token_index", None),
            add_special_tokens=utils.should_add_special_tokens(model.config.model_type, processor),
        )
        return inputs

    return prepare


def _read_image(utils: Any, source: Any) -> Any:
    try:
        if not isinstance(source, (str, Path)) or not Path(source).is_file():
            return utils.load_image(source)  # an image, an address or data
        from PIL import Image

        with Image.open(source) as image:  # mlx-vlm would leave the file open if it fails
            return utils.load_image(image)
    except Exception as error:  # Pillow's are of many kinds
        raise TuneError(f"{source!r} is no image that can be read: {error}") from error


def _check_video(source: Any) -> Any:
    """Frames as they are; a file must be there, and what reads it, too."""
    if not isinstance(source, (str, Path)):
        return source
    if not Path(source).is_file():
        raise TuneError(f"there is no video file {str(source)!r}")
    try:
        importlib.import_module("cv2")
    except ImportError as error:
        raise TuneError(
            f"mlx-vlm reads the video {str(source)!r} with OpenCV: pip install "
            "opencv-python-headless, or give its frames"
        ) from error
    return str(source)


@contextlib.contextmanager
def _as_it_was(model: Any) -> Iterator[None]:
    """Some models note down positions of the last prompt in themselves: put back what was there."""
    before = [(module, dict(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, items, attributes in before:
            dict.clear(module)
            dict.update(module, items)
            vars(module).clear()
            vars(module).update(attributes)
