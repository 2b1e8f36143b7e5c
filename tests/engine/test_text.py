"""From prompts to tokens, and from tokens to text: nothing lost, nothing shown that is not text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.engine import tiny
from tests.engine.conftest import open_recorded
from tests.engine.test_mlx_engine import complete, reference
from wiredactors.engine.imports import import_mlx_lm
from wiredactors.engine.prompts import encode_prompt
from wiredactors.engine.text import RowText
from wiredactors.scheduling.requests import RowOutput, RowRequest, SamplingParameters

pytest.importorskip("mlx_lm")


@pytest.fixture
def tokenizer(tiny_model: Callable[..., Path]) -> Any:
    return import_mlx_lm("utils").load_tokenizer(tiny_model("llama"))


def spoken(tokenizer: Any, tokens: list[int], *stop: str) -> tuple[list[RowOutput], bool]:
    """The outputs of a row that says `tokens`, and whether a stop text ended it before."""
    request = RowRequest(
        row_id="a", prompt=(1,), max_tokens=99, sampling=SamplingParameters(stop=stop)
    )
    row = RowText(request, tokenizer)
    outputs: list[RowOutput] = []
    for token in tokens:
        output, stopped = row.add(token)
        outputs.append(output)
        if stopped:
            return [*outputs, row.finish("stop", flush=False)], True
    return [*outputs, row.finish("length")], False


def text_of(outputs: list[RowOutput]) -> str:
    return "".join(output.text for output in outputs)


@pytest.mark.parametrize("text", ["hello world", "naïve café €5 日本 🙂", "a\n\n b\t", "x  y"])
def test_the_pieces_joined_are_the_text(tokenizer: Any, text: str) -> None:
    outputs, _ = spoken(tokenizer, tokenizer.encode(text))
    assert text_of(outputs) == text
    assert "\ufffd" not in text_of(outputs)


def test_a_character_that_never_became_whole_comes_after_the_last_token(tokenizer: Any) -> None:
    tokens = tokenizer.encode("ab🙂")[:-1]
    outputs, _ = spoken(tokenizer, tokens)
    assert outputs[-1].token is None
    assert outputs[-1].finish_reason == "length"
    assert text_of(outputs[:-1]) == "ab"
    assert outputs[-1].text != ""


@pytest.mark.parametrize(
    ("stop", "before"),
    [
        (("world",), "hello "),
        (("o w",), "hell"),
        (("ld!", "wor"), "hello "),
        (("lo wo", "low"), "hel"),
        (("hello world!?",), None),
        (("!",), "hello world"),
        (("h",), ""),
        (("lllo", "llo"), "he"),
    ],
)
def test_a_stop_text_and_what_follows_is_never_shown(
    tokenizer: Any, stop: tuple[str, ...], before: str | None
) -> None:
    text = "hello world!"
    for tokens in (tokenizer.encode(text), [tokenizer.encode(letter)[0] for letter in text]):
        outputs, stopped = spoken(tokenizer, tokens, *stop)
        assert stopped is (before is not None)
        assert text_of(outputs) == (text if before is None else before)


def test_a_stop_text_that_is_only_completed_by_the_rest_still_counts(tokenizer: Any) -> None:
    tokens = tokenizer.encode("ab🙂")[:-1]
    rest = spoken(tokenizer, tokens)[0][-1].text
    outputs, _ = spoken(tokenizer, tokens, "b" + rest[:1])
    assert text_of(outputs) == "a"
    assert outputs[-1].finish_reason == "stop"


async def test_the_end_of_sequence_token_is_no_part_of_the_answer(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    plain = tiny_model("llama")
    tokens, _ = reference(plain, "abc", 20)
    end = next(token for token in tokens[5:] if token not in tokens[:5])
    path = Path(shutil.copytree(plain, tmp_path / "model"))
    config = {**tiny.CONFIGS["llama"], "eos_token_id": end}
    (path / "config.json").write_text(json.dumps(config))
    with trio.fail_after(60):
        async with open_recorded() as recorded:
            model = await recorded.runtime.load(path)
            job = await complete(model, "abc")
    assert job.result.tokens == tokens[: tokens.index(end)]
    assert job.result.generation_tokens == tokens.index(end)
    assert job.result.finish_reason == "stop"
    assert 0 < job.result.kv_bytes <= job.result.ticket_size


class TestPrompts:
    def test_text_is_encoded_as_the_tokenizer_does(self, tokenizer: Any) -> None:
        assert encode_prompt(tokenizer, "abc def") == tokenizer.encode("abc def")

    def test_messages_open_the_assistants_turn(self, tokenizer: Any) -> None:
        messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
        assert tokenizer.decode(encode_prompt(tokenizer, messages)) == (
            "system: x\nuser: y\nassistant:"
        )

    @pytest.mark.parametrize("prompt", ["", [], (), None, 5, b"abc", {"role": "user"}, ["a"]])
    def test_what_is_no_prompt_is_refused(self, tokenizer: Any, prompt: Any) -> None:
        with pytest.raises(ValueError, match=r"prompt|messages"):
            encode_prompt(tokenizer, prompt)

    def test_messages_that_the_template_refuses(self, tokenizer: Any) -> None:
        tokenizer.chat_template = "{{ raise_exception('no system here') }}"
        with pytest.raises(ValueError, match="no system here"):
            encode_prompt(tokenizer, [{"role": "system", "content": "x"}])

    def test_a_model_without_a_template_takes_text_only(self, tmp_path: Path) -> None:
        path = tiny.make_model(tmp_path, "llama", template=False)
        tokenizer = import_mlx_lm("utils").load_tokenizer(path)
        assert encode_prompt(tokenizer, "abc")
        with pytest.raises(ValueError, match="no chat template"):
            encode_prompt(tokenizer, [{"role": "user", "content": "x"}])
