"""Chat messages with images and videos in them, and these out of the messages."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from wiredactors.engine.imports import import_mlx_vlm
from wiredactors.engine.probe import TuneError
from wiredactors.scheduling.requests import Prompt

#: Types of content parts, as the chat formats have them.
_IMAGE_TYPES = ("image", "image_url", "input_image")
_VIDEO_TYPES = ("video", "video_url", "input_video")
_TEXT_TYPES = ("text", "input_text")

#: So much is shown of something that makes no sense.
_SHOWN = 200


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
        raise TuneError(f"give text or a list of chat messages, not {shortened(user_input)}")
    found = Conversation([], [], [])
    for message in user_input:
        if not isinstance(message, Mapping):
            raise TuneError(
                'a chat message is a mapping such as {"role": "user", "content": "Hello"}, not '
                f"{shortened(message)}"
            )
        found.messages.append(dict(message))
        content = message.get("content")  # a call of a tool has none
        if isinstance(content, (list, tuple)):
            found.messages[-1]["content"] = [_bare(part, found) for part in content]
        elif not isinstance(content, (str, type(None))):
            raise TuneError(
                f"the content of a message is text or a list of parts: {shortened(content)}"
            )
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
        f"{shortened(part)} is no part of a message that is known here: give text, images and "
        'videos, as {"type": "image", "image": a path or a PIL image}'
    )


def _source(part: Mapping[str, Any], kind: str) -> Any:
    for name in (kind, f"{kind}_url", "url", "path"):
        source = part.get(name)
        if isinstance(source, Mapping):
            source = source.get("url")
        if source is not None:
            return source
    raise TuneError(
        f'{shortened(dict(part))} has no {kind} in it: give {{"type": "{kind}", "{kind}": ...}}'
    )


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


def read_image(utils: Any, source: Any) -> Any:
    """By mlx-vlm's `utils`: of a path, an address, data, bytes, or an image already.

    Raises:
        TuneError: it is none.
    """
    try:
        if isinstance(source, bytes):
            return utils.load_image(io.BytesIO(source))
        # The path of a file, and no data: these are longer than a path may be.
        if not isinstance(source, (str, Path)) or not os.path.isfile(source):
            return utils.load_image(source)  # an image, an address or data
        from PIL import Image

        with Image.open(source) as image:  # mlx-vlm would leave the file open if it fails
            return utils.load_image(image)
    except Exception as error:  # Pillow's are of many kinds
        raise TuneError(
            f"{shortened(source)} is no image that can be read: {shortened(error)}"
        ) from error


def shortened(thing: object) -> str:
    """What an error says, or how a thing looks; data can be long."""
    text = str(thing) if isinstance(thing, Exception) else repr(thing)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def check_video(source: Any) -> Any:
    """Frames as they are; a file must be there, and what reads it, too.

    Raises:
        TuneError: one of them is missing.
    """
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
