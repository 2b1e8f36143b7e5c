"""What rows and steps take is found without running the model, and leaves the model as it was."""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import tiny, truth
from tests.engine.architectures import CONFIGS, make_architecture
from wiredactors.engine import unrolled
from wiredactors.engine.blueprint import draw_config, draw_directory
from wiredactors.engine.devices import CPU
from wiredactors.engine.graph import Unrecordable
from wiredactors.engine.imports import import_mlx_lm
from wiredactors.engine.sizing import LOGITS_BYTES, measure_cache, row_caches, step_workspace
from wiredactors.engine.tracing import Tracer

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

TinyModel = Callable[..., Path]
MakeArchitecture = Callable[[str], Path]

STEP = 64

#: A row's logits and log-probabilities.
LOGITS = LOGITS_BYTES * tiny.VOCABULARY

#: One of each kind of cache that a batch can share.
KINDS = [
    "baichuan_m1",  # lists of a state and of keys and values, in full or of a window
    "deepseek_v3",  # a latent
    "deepseek_v32",  # a latent and an index
    "gemma4_text",  # fewer caches than layers
    "longcat_flash_ngram",  # more caches than layers
    "phi3small",
    "qwen3_next",  # states, and keys and values
    "recurrent_gemma",  # states, and windows
]


@pytest.fixture(autouse=True)
def no_pool() -> Iterator[None]:
    """Each buffer is as large as was asked for."""
    before = mx.set_cache_limit(0)
    yield
    assert mx.set_cache_limit(before) == 0, "the pool's bound was not put back"


@pytest.fixture
def architecture() -> Iterator[MakeArchitecture]:
    """Makes a model, and throws it away at once."""
    with tempfile.TemporaryDirectory() as directory:
        yield lambda name: make_architecture(Path(directory), name)


def kv_bytes(path: Path, tokens: int) -> int:
    return truth.measure(path, token_count=tokens, prefill_step_size=STEP).kv_bytes


@pytest.mark.parametrize("name", ["gemma2", "phi3small"])
def test_a_model_whose_code_takes_one_row_only_is_sized_for_that(name: str) -> None:
    model = draw_config(CONFIGS[name]).model
    one, several = (
        step_workspace(model, prefill_step_size=16, rows=rows, context=640) for rows in (1, 32)
    )
    assert several == one


class TestRows:
    @pytest.mark.parametrize("name", ["llama", "experts"])
    def test_keys_and_values_are_counted_by_the_step(
        self, tiny_model: TinyModel, name: str
    ) -> None:
        cost = measure_cache(draw_directory(tiny_model(name)).model, STEP)
        assert cost.fixed_bytes == LOGITS
        assert cost.step_bytes == kv_bytes(tiny_model(name), 256)
        assert 2 * cost.step_bytes == kv_bytes(tiny_model(name), 512)
        assert cost.copy_bytes == cost.step_bytes // 4  # of four layers

    def test_states_are_fixed_and_so_is_the_copy_of_one(self, tiny_model: TinyModel) -> None:
        cost = measure_cache(draw_directory(tiny_model("state_space")).model, STEP)
        states = kv_bytes(tiny_model("state_space"), 512)
        of_one = states // 3  # of three layers
        # In a batch each has a number of each row, too.
        assert 0 <= cost.fixed_bytes - (LOGITS + states + of_one) <= 4 * 4
        assert (cost.step_bytes, cost.copy_bytes, cost.windows) == (0, 0, ())

    @pytest.mark.parametrize("name", ["hybrid", "parallel_hybrid"])
    def test_states_and_keys_add_up(self, tiny_model: TinyModel, name: str) -> None:
        cost = measure_cache(draw_directory(tiny_model(name)).model, STEP)
        short, long = (kv_bytes(tiny_model(name), tokens) for tokens in (256, 512))
        assert cost.step_bytes == long - short
        states = short - cost.step_bytes
        assert LOGITS + states < cost.fixed_bytes <= LOGITS + 2 * states

    def test_a_window_is_full_when_it_holds_a_chunk_more(self, tiny_model: TinyModel) -> None:
        cost = measure_cache(draw_directory(tiny_model("short_window")).model, STEP)
        (window,) = cost.windows
        assert window.most_tokens == 40 + STEP - 1
        for tokens in (256, 512):
            held = tokens // 256 * cost.step_bytes + window.most_tokens * window.token_bytes
            assert held == kv_bytes(tiny_model("short_window"), tokens)

    @pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
    @pytest.mark.parametrize("tokens", [40, 256, 700])
    def test_a_row_never_holds_more_than_it_is_charged(
        self, tiny_model: TinyModel, name: str, tokens: int
    ) -> None:
        cost = measure_cache(draw_directory(tiny_model(name)).model, STEP)
        taken = kv_bytes(tiny_model(name), tokens)
        assert LOGITS + taken <= cost.row_bytes(tokens)

    @pytest.mark.parametrize("name", KINDS)
    def test_nor_does_one_of_any_kind_of_cache(
        self, architecture: MakeArchitecture, name: str
    ) -> None:
        path = architecture(name)
        cost = measure_cache(draw_directory(path).model, STEP)
        for tokens in (100, 256):
            charged, taken = cost.row_bytes(tokens), kv_bytes(path, tokens)
            assert taken <= charged, tokens
            assert charged <= 3 * taken + LOGITS_BYTES * CONFIGS[name].get("vocab_size", 512)

    @pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
    def test_a_loaded_model_says_the_same_as_its_blueprint(
        self, tiny_model: TinyModel, name: str
    ) -> None:
        model, _ = import_mlx_lm("utils").load_model(tiny_model(name))
        assert measure_cache(model, STEP) == measure_cache(
            draw_directory(tiny_model(name)).model, STEP
        )

    def test_a_longer_step_leaves_a_larger_state(self) -> None:
        model = draw_config(tiny.CONFIGS["state_space"]).model
        short, long = (measure_cache(model, step).fixed_bytes for step in (16, 128))
        assert long > short

    @pytest.mark.parametrize("name", ["deepseek_v41", "llama4"])
    @pytest.mark.parametrize("step", [STEP, 512])
    def test_a_row_whose_cache_cannot_be_shared_is_charged_what_it_takes_alone(
        self, architecture: MakeArchitecture, name: str, step: int
    ) -> None:
        path = architecture(name)
        cost = measure_cache(draw_directory(path).model, step)
        for tokens in (1, 100, 256, 700, 1100):
            charged = cost.row_bytes(tokens)
            taken = truth.measure(path, token_count=tokens, prefill_step_size=step).kv_bytes
            assert LOGITS + taken <= charged, tokens
            if tokens >= 2 * step:
                assert charged <= 3 * taken, tokens

    def test_and_its_steps_are_those_of_one_row(self, architecture: MakeArchitecture) -> None:
        model = draw_directory(architecture("llama4")).model
        one, many = (
            step_workspace(model, prefill_step_size=16, rows=rows, context=640) for rows in (1, 32)
        )
        assert one == many


class TestSteps:
    @pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
    @pytest.mark.parametrize("rows", [1, 8])
    def test_the_workspace_is_that_of_a_prompts_last_step_or_of_a_full_batch(
        self, tiny_model: TinyModel, name: str, rows: int
    ) -> None:
        path, context = tiny_model(name), 640
        planned = step_workspace(
            draw_directory(path).model, prefill_step_size=STEP, rows=rows, context=context
        )
        prompt = truth.measure(path, token_count=context, prefill_step_size=STEP)
        batch = truth.measure_decode(
            path, token_count=context - 1, prefill_step_size=STEP, steps=1, batch_size=rows
        )
        taken = max(each.workspace_bytes - each.constant_bytes for each in (prompt, batch))
        # What is taken is chance to some per cent, and less by half where little is under way.
        assert 0.75 * taken <= planned <= 2 * taken

    def test_a_window_stays_a_window_however_long_the_context(
        self, architecture: MakeArchitecture
    ) -> None:
        # States and windows alone.
        model = draw_directory(architecture("recurrent_gemma")).model
        short, long = (
            step_workspace(model, prefill_step_size=STEP, rows=8, context=context)
            for context in (1024, 65536)
        )
        assert long == short

    def test_it_grows_with_the_rows_that_are_decoded(self, tiny_model: TinyModel) -> None:
        model = draw_directory(tiny_model("llama")).model
        few, many = (
            step_workspace(model, prefill_step_size=1, rows=rows, context=640) for rows in (4, 64)
        )
        # A score of four bytes for each of 640 tokens and 4 heads of each row.
        assert many - few >= 60 * 640 * 4 * 4

    def test_a_step_is_no_longer_than_the_context(self, tiny_model: TinyModel) -> None:
        model = draw_directory(tiny_model("llama")).model
        short, long = (
            step_workspace(model, prefill_step_size=step, rows=1, context=64) for step in (64, 4096)
        )
        assert short == long


class TestTokenByToken:
    """A long step of a model whose recurrence is written out in the graph."""

    @pytest.mark.parametrize("name", ["qwen3_next", "recurrent_gemma", "jamba"])
    def test_it_is_found_from_short_ones(
        self, architecture: MakeArchitecture, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        model = draw_directory(architecture(name)).model
        options = {"prefill_step_size": 128, "rows": 2, "context": 640}
        cost, workspace = measure_cache(model, 128), step_workspace(model, **options)
        monkeypatch.setattr(unrolled, "_MOST_OPERATIONS", 0)
        longest: list[int] = []
        step = Tracer.step
        monkeypatch.setattr(
            Tracer,
            "step",
            lambda self, rows, tokens, **rest: (
                longest.append(tokens),
                step(self, rows, tokens, **rest),
            ),
        )
        assert measure_cache(model, 128) == cost
        assert 0.99 * workspace <= step_workspace(model, **options) <= 1.3 * workspace
        assert max(longest) == 32

    def test_attention_alone_is_thought_through_at_once(self, tiny_model: TinyModel) -> None:
        model = draw_directory(tiny_model("llama")).model
        tracer = Tracer(model, row_caches(model, 1), CPU)
        assert unrolled.short_steps(lambda: tracer, rows=1, tokens=1 << 20) == []
        assert tracer.steps == []


def functions() -> dict[tuple[str, str], object]:
    """All names of mlx and of mlx-lm's models, and what they stand for."""
    return {
        (module_name, name): value
        for module_name, module in list(sys.modules.items())
        if module_name.startswith(("mlx.", "mlx_lm."))
        for name, value in list(vars(module).items())
    }


def inside(model: Any) -> list[tuple[str, int, list[str]]]:
    """A model's modules: each entry's identity, and the names of its attributes."""
    return [
        (path, id(value), sorted(vars(module)))
        for path, module in model.named_modules()
        for value in dict.values(module)
    ]


class TestNothingIsLeftBehind:
    @pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
    def test_a_loaded_model_writes_the_same_text_afterwards(
        self, tiny_model: TinyModel, name: str
    ) -> None:
        model, tokenizer = import_mlx_lm("utils").load(str(tiny_model(name)))
        generate = import_mlx_lm("generate").generate

        def text() -> str:
            return str(generate(model, tokenizer, tiny.prompt_of(20), max_tokens=16))

        first, modules, names = text(), inside(model), functions()
        measure_cache(model, STEP)
        step_workspace(model, prefill_step_size=STEP, rows=2, context=512)
        assert inside(model) == modules
        assert functions() == names
        assert text() == first

    def test_nor_where_its_code_asks_for_numbers(self, architecture: MakeArchitecture) -> None:
        model, _ = import_mlx_lm("utils").load_model(architecture("dbrx"))
        tokens = mx.array([[1, 2, 3]])
        answer = model(tokens)
        mx.eval(answer)
        modules, names = inside(model), functions()
        measure_cache(model, STEP)
        with pytest.raises(Unrecordable, match="asks for numbers"):
            step_workspace(model, prefill_step_size=STEP, rows=2, context=512)
        assert inside(model) == modules
        assert functions() == names
        assert mx.array_equal(model(tokens), answer)

    def test_nothing_is_evaluated(self, tiny_model: TinyModel) -> None:
        model, _ = import_mlx_lm("utils").load_model(tiny_model("hybrid"))
        measure_cache(model, STEP)
        gc.collect()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        measure_cache(model, 512)
        step_workspace(model, prefill_step_size=512, rows=4, context=2048)
        gc.collect()
        assert mx.get_active_memory() == before
        assert mx.get_peak_memory() <= before + 4096
