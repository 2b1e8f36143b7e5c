"""The tokenizer that a GGUF file carries, as mlx-lm wants it.

Only byte-level BPE, which is `tokenizer.ggml.model` "gpt2". How text is cut before the merges is
named in `tokenizer.ggml.pre`, and a wrong cut gives other tokens without any error, so a name that
is not known here is refused.

Sources: "Tokenizer" in docs/gguf.md of github.com/ggml-org/ggml; for the names and what they imply,
src/llama-vocab.cpp of github.com/ggml-org/llama.cpp; for the cuts, the tokenizer.json of the models
(SmolLM2-135M-Instruct, gpt2, Meta-Llama-3-8B).
"""

from __future__ import annotations

import importlib
from typing import Any

from wiredactors.engine.gguf import GGUFHeader
from wiredactors.engine.imports import import_mlx_lm
from wiredactors.memory.errors import ModelLoadError

# `enum llama_token_type` of llama.h. Control tokens are no text; user-defined ones are text that is
# never cut.
_CONTROL, _USER_DEFINED = 3, 4

_PRE_TOKENIZERS = ("smollm", "gpt-2", "llama-bpe")

_LLAMA3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def gguf_tokenizer(header: GGUFHeader) -> Any:
    """The file's tokenizer in mlx-lm's `TokenizerWrapper`, with its chat template.

    Control tokens are special: found in text that is encoded, left out of decoded text where
    special tokens are skipped. A token to begin with is put before encoded text if the file says
    so. What ends a sequence is `gguf_eos_token_ids`.

    Raises:
        ModelLoadError: another kind of tokenizer or pre-tokenizer, or a vocabulary that is missing
            or does not fit its merges.
    """
    metadata = header.metadata
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise ModelLoadError(
            f"{header.path}: the tokenizer is {model!r} (tokenizer.ggml.model), and only 'gpt2', "
            "byte-level BPE, is supported: load the model from its Hugging Face directory"
        )
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in _PRE_TOKENIZERS:
        raise ModelLoadError(
            f"{header.path}: the pre-tokenizer is {pre!r} (tokenizer.ggml.pre), and only "
            f"{', '.join(_PRE_TOKENIZERS)} are supported: load the model from its Hugging Face "
            "directory"
        )
    tokens = _strings(header, "tokenizer.ggml.tokens")
    named = {
        f"{role}_token": tokens[token_id]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (token_id := _token_id(header, key)) is not None
    }
    backend = _backend(header, str(pre), tokens)
    # llama.cpp begins Llama 3's text with a BOS unless the file says that it should not.
    if metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe") and "bos_token" in named:
        processors = importlib.import_module("tokenizers").processors
        bos = (named["bos_token"], _token_id(header, "bos"))
        backend.post_processor = processors.TemplateProcessing(
            single=[bos[0], "$A"], special_tokens=[bos]
        )
    # mlx-lm first: it keeps transformers from remarking that there is no PyTorch.
    wrapping = import_mlx_lm("tokenizer_utils")
    template = metadata.get("tokenizer.chat_template")
    tokenizer = importlib.import_module("transformers").PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=template if isinstance(template, str) else None,
        clean_up_tokenization_spaces=False,
        **named,
    )
    return wrapping.TokenizerWrapper(
        tokenizer, wrapping.BPEStreamingDetokenizer, eos_token_ids=gguf_eos_token_ids(header)
    )


def gguf_eos_token_ids(header: GGUFHeader) -> tuple[int, ...]:
    """The tokens that end a sequence: the file's end of sequence, of turn and of message.

    Empty where it names none.

    Raises:
        ModelLoadError: one of them is not in the vocabulary.
    """
    ids = {_token_id(header, key) for key in ("eos", "eot", "eom")}
    return tuple(sorted(each for each in ids if each is not None))


def _backend(header: GGUFHeader, pre: str, tokens: tuple[str, ...]) -> Any:
    """The tokenizer proper, of the library `tokenizers`."""
    tokenizers = importlib.import_module("tokenizers")
    cuts = tokenizers.pre_tokenizers
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise ModelLoadError(
            f"{header.path}: tokenizer.ggml.tokens has a token twice: convert the model again"
        )
    merges = [tuple(each.split(" ")) for each in _strings(header, "tokenizer.ggml.merges")]
    try:
        # Llama 3 takes a piece that is a token as it is, whatever the merges would make of it.
        model = tokenizers.models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe")
    except Exception as error:  # a bare Exception is what it raises
        raise ModelLoadError(
            f"{header.path}: tokenizer.ggml.merges does not fit the vocabulary ({error}): the file "
            "is corrupted; download it again"
        ) from error
    backend = tokenizers.Tokenizer(model)
    match pre:
        case "smollm":
            backend.pre_tokenizer = cuts.Sequence(
                [cuts.Digits(individual_digits=True), cuts.ByteLevel(add_prefix_space=False)]
            )
        case "gpt-2":
            backend.pre_tokenizer = cuts.ByteLevel(add_prefix_space=False)
        case _:
            backend.pre_tokenizer = cuts.Sequence(
                [
                    cuts.Split(tokenizers.Regex(_LLAMA3_CUT), "isolated"),
                    cuts.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
    backend.decoder = tokenizers.decoders.ByteLevel()
    kinds = header.metadata.get("tokenizer.ggml.token_type", ())
    if not isinstance(kinds, tuple) or (kinds and len(kinds) != len(tokens)):
        raise ModelLoadError(
            f"{header.path}: tokenizer.ggml.token_type is not one number for each token: the file "
            "is corrupted; download it again"
        )
    for wanted, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        backend.add_tokens(
            [
                tokenizers.AddedToken(token, special=special, normalized=False)
                for token, kind in zip(tokens, kinds, strict=False)
                if kind == wanted
            ]
        )
    return backend


def _strings(header: GGUFHeader, key: str) -> tuple[str, ...]:
    """A list of strings that must be there."""
    value = header.metadata.get(key)
    if not isinstance(value, tuple) or not value:
        raise ModelLoadError(
            f"{header.path}: the metadata key {key!r} is missing or empty: the file has no "
            "tokenizer; load the model from its Hugging Face directory"
        )
    if not all(isinstance(each, str) for each in value):
        raise ModelLoadError(
            f"{header.path}: {key!r} is no list of strings: the file is corrupted; download it "
            "again"
        )
    return tuple(str(each) for each in value)


def _token_id(header: GGUFHeader, role: str) -> int | None:
    """The token that the file names for `role`, or None if it names none."""
    key = f"tokenizer.ggml.{role}_token_id"
    value = header.metadata.get(key)
    if value is None:
        return None
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    count = len(tokens) if isinstance(tokens, tuple) else 0
    if not isinstance(value, int) or not 0 <= value < count:
        raise ModelLoadError(
            f"{header.path}: {key!r} is {value!r} and the vocabulary has {count} tokens: the file "
            "is corrupted; download it again"
        )
    return value
