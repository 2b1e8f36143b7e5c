"""From a prompt, text or chat messages, to token ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wiredactors.scheduling.requests import Prompt


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of `prompt`.

    Text is encoded as the tokenizer's defaults have it. Messages go through the chat template,
    with the assistant's turn opened; the template writes its own special tokens, so none is added.

    Raises:
        ValueError: the prompt is empty, is neither text nor messages, or the tokenizer has no chat
            template, or its template refuses the messages.
    """
    if isinstance(prompt, str):
        tokens = tokenizer.encode(prompt)
    elif isinstance(prompt, (bytes, Mapping)) or not hasattr(prompt, "__iter__"):
        raise ValueError(f"a prompt is text or a list of chat messages, not {prompt!r}")
    else:
        tokens = _encode_messages(tokenizer, list(prompt))
    if not tokens:
        raise ValueError("the prompt is empty: there must be at least one token to go on from")
    return [int(token) for token in tokens]


def _encode_messages(tokenizer: Any, messages: list[Any]) -> list[int]:
    if not all(isinstance(message, Mapping) and "role" in message for message in messages):
        raise ValueError(
            'chat messages are mappings such as {"role": "user", "content": "Hello"}, '
            f"not {messages!r}"
        )
    if not messages:
        return []
    if not tokenizer.has_chat_template:
        raise ValueError("the model's tokenizer has no chat template: give the prompt as text")
    try:
        tokens: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    except Exception as error:  # jinja's, out of the template
        raise ValueError(f"the chat template refuses the messages: {error}") from error
    return tokens
