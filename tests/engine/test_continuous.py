"""Jobs of a runtime on real models, of every kind beside each other: as mlx-lm alone, in budget."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.engine import tiny
from tests.engine.architectures import CONFIGS as ARCHITECTURES
from tests.engine.conftest import Recorded, open_recorded
from tests.engine.test_kept import QWEN
from wiredactors.actors.job import Job
from wiredactors.actors.model import Model
from wiredactors.actors.session import open_runtime
from wiredactors.engine.imports import import_mlx_lm
from wiredactors.engine.mlx_engine import MlxEngine
from wiredactors.memory.errors import GenerationError
from wiredactors.memory.policies import WiredMemoryPolicy
from wiredactors.memory.units import KIB, MIB
from wiredactors.scheduling.requests import StepReport

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

TinyModel = Callable[..., Path]

#: What a row may be over its charge for a moment, margins aside: scalars, the device's next tokens.
NOISE = 64 * KIB


def make_model(path: Path, config: dict[str, Any]) -> Path:
    """A model of this config with random weights, large enough that its text does not repeat."""
    path.mkdir()
    utils = import_mlx_lm("utils")
    mx.random.seed(7)
    model_class, arguments_class = utils._get_classes(json.loads(json.dumps(config)))
    model = model_class(arguments_class.from_dict(json.loads(json.dumps(config))))
    model.apply(lambda value: 3 * value if value.ndim > 1 else value)
    weights = dict(utils.tree_flatten(model.parameters()))
    mx.save_safetensors(str(path / "model.safetensors"), weights, metadata={"format": "mlx"})
    (path / "config.json").write_text(json.dumps(config))
    tiny.save_tokenizer(path)
    return path


def by_mlx_lm(path: Path, prompt: str, max_tokens: int, **options: Any) -> list[tuple[int, Any]]:
    """Tokens and log-probabilities of mlx-lm's own `generate_step`."""
    model, tokenizer = import_mlx_lm("utils").load(str(path))
    steps = import_mlx_lm("generate").generate_step(
        mx.array(tokenizer.encode(prompt)),
        model,
        max_tokens=max_tokens,
        prefill_step_size=64,
        quantized_kv_start=0,
        **options,
    )
    return list(steps)


def over(recorded: Recorded) -> int:
    """By how much a step was over what was granted, at most."""
    return max(
        max(report.active_bytes, report.peak_bytes) - recorded.active_before - report.granted_bytes
        for report in recorded.reports
    )


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


async def read_until(job: Job, condition: Callable[[], bool]) -> None:
    """With nothing to do between two tokens: the device has the machine to itself."""
    async for _ in job:
        if condition():
            return


def count(reports: list[StepReport], what: str) -> int:
    return sum(report.what == what for report in reports)


def seconds(reports: list[StepReport], **wanted: str) -> float:
    return sum(
        report.seconds
        for report in reports
        if all(getattr(report, name) == value for name, value in wanted.items())
    )


async def test_jobs_with_caches_of_every_kind_answer_side_by_side_as_generate_step(
    tmp_path: Path,
) -> None:
    path = make_model(tmp_path / "qwen", QWEN)
    kinds: list[dict[str, Any]] = [
        {"kv_bits": 8},
        {"kv_bits": 4},
        {"kv_bits": 4, "kv_group_size": 128},
        {"max_kv_size": 40},
        {"max_kv_size": 100},
        {},
        {},
    ]
    jobs: dict[int, Job] = {}

    async def ask(model: Model, number: int, prompt: str) -> None:
        async with model.generate(prompt, 20, **kinds[number]) as job:
            jobs[number] = job
            await job.wait()
        assert job.ticket.size == model.ticket_size(prompt, 20, **kinds[number])

    with trio.fail_after(60):
        async with open_recorded() as recorded:
            model = await recorded.runtime.load(path, margin=0)
            for length in (1, 65, 300):
                prompt = tiny.prompt_of(length)
                async with trio.open_nursery() as nursery:
                    for number in range(len(kinds)):
                        nursery.start_soon(ask, model, number, prompt)
                for number, options in enumerate(kinds):
                    wanted = [token for token, _ in by_mlx_lm(path, prompt, 20, **options)]
                    found = jobs[number].result
                    assert found is not None
                    assert list(found.tokens) == wanted, (length, options)
                    assert 0 < found.kv_bytes <= found.ticket_size
        assert over(recorded) < MIB


async def test_a_model_whose_caches_cannot_be_shared_serves_two_jobs_as_mlx_lm_would(
    tmp_path: Path,
) -> None:
    """Its layers attend to chunks: mlx-lm has no batch of such caches."""
    config = json.loads(json.dumps(ARCHITECTURES["llama4"]))
    config["text_config"]["vocab_size"] = tiny.VOCABULARY
    path = make_model(tmp_path / "llama4", config)
    prompts = [tiny.prompt_of(150), tiny.prompt_of(9, salt=3)]
    jobs: dict[str, Job] = {}

    async def ask(model: Model, prompt: str) -> None:
        async with model.generate(prompt, 30) as job:
            jobs[prompt] = job
            await job.wait()

    with trio.fail_after(60):
        async with open_recorded() as recorded:
            model = await recorded.runtime.load(path, margin=0)
            async with trio.open_nursery() as nursery:
                for prompt in prompts:
                    nursery.start_soon(ask, model, prompt)
    for prompt in prompts:
        found = jobs[prompt].result
        assert found is not None
        assert list(found.tokens) == [token for token, _ in by_mlx_lm(path, prompt, 30)]
        assert len(set(found.tokens)) > 3
        assert 0 < found.kv_bytes <= found.ticket_size
    assert {report.rows for report in recorded.reports if report.what == "step"} == {1}
    assert over(recorded) < MIB


@pytest.mark.parametrize("name", ["llama", "short_window"])
async def test_log_probabilities_are_those_of_mlx_lm_alone_and_in_a_batch(
    tiny_model: TinyModel, name: str
) -> None:
    path = tiny_model(name)
    prompts = [tiny.prompt_of(length, length) for length in (3, 70, 20)]

    async def ask(model: Model, prompt: str, told: bool) -> None:
        async with model.generate(prompt, 25, logprobs=told, top_logprobs=3 if told else 0) as job:
            chunks = [chunk async for chunk in job if chunk.token is not None]
        for chunk, (token, logprobs) in zip(chunks, by_mlx_lm(path, prompt, 25), strict=True):
            assert chunk.token == token
            if not told:
                assert (chunk.logprob, chunk.top_logprobs) == (None, ())
                continue
            assert chunk.logprob == pytest.approx(logprobs[token].item(), abs=1e-3)
            likeliest = mx.argsort(-logprobs)[:3].tolist()
            assert [token for token, _ in chunk.top_logprobs] == likeliest
            for other, logprob in chunk.top_logprobs:
                assert logprob == pytest.approx(logprobs[other].item(), abs=1e-3)

    with trio.fail_after(60):
        async with open_recorded() as recorded:
            model = await recorded.runtime.load(path)
            await ask(model, prompts[0], True)
            async with trio.open_nursery() as nursery:
                for number, prompt in enumerate(prompts):
                    nursery.start_soon(ask, model, prompt, number != 1)
    assert max(report.rows for report in recorded.reports) > 1


def favour(tokens: Any, logits: Any) -> Any:
    """A processor that depends on all the tokens so far."""
    return logits.at[:, int(tokens.sum().item()) % tiny.VOCABULARY].add(50.0)


def third(logprobs: Any) -> Any:
    return mx.argsort(-logprobs, axis=-1)[:, 2]


async def test_each_job_of_a_batch_samples_in_its_own_way_and_one_that_cannot_fails_alone(
    tiny_model: TinyModel,
) -> None:
    path = tiny_model("llama")
    prompt = tiny.prompt_of(20)
    bias = dict.fromkeys(range(0, tiny.VOCABULARY, 2), -100.0)
    calls = 0

    def failing(logprobs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise ZeroDivisionError("mine")
        return mx.argmax(logprobs, axis=-1)

    sample_utils = import_mlx_lm("sample_utils")
    ways: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"sampler": third}, {"sampler": third}),
        ({"logits_processors": [favour]}, {"logits_processors": [favour]}),
        (
            {"logit_bias": bias, "repetition_penalty": 1.5},
            {"logits_processors": sample_utils.make_logits_processors(bias, 1.5)},
        ),
    ]
    found: dict[int, list[int]] = {}

    async def ask(model: Model, number: int) -> None:
        async with model.generate(prompt, 30, **ways[number][0]) as job:
            found[number] = [chunk.token async for chunk in job if chunk.token is not None]

    async def fail(model: Model) -> None:
        async with model.generate(prompt, 30, sampler=failing) as job:
            with pytest.raises(GenerationError, match="mine"):
                await job.wait()
        assert job.result is not None
        assert job.result.finish_reason == "error"
        assert len(job.result.tokens) <= 5

    with trio.fail_after(60):
        async with open_recorded() as recorded:
            model = await recorded.runtime.load(path)
            async with trio.open_nursery() as nursery:
                for number in range(len(ways)):
                    nursery.start_soon(ask, model, number)
                nursery.start_soon(fail, model)
    assert max(report.rows for report in recorded.reports) == len(ways) + 1
    for number, (_, options) in enumerate(ways):
        assert found[number] == [token for token, _ in by_mlx_lm(path, prompt, 30, **options)]
    assert len({tuple(tokens) for tokens in found.values()}) == len(ways)


async def test_a_model_of_twice_the_weight_gets_twice_the_time(tmp_path: Path) -> None:
    """Its steps take some milliseconds, so that what else the machine does counts for little."""
    config = {**tiny.CONFIGS["llama"], "hidden_size": 512, "intermediate_size": 4096}
    path = make_model(tmp_path / "broad", config)
    with trio.fail_after(60):
        async with open_recorded() as recorded:
            models = [
                await recorded.runtime.load(path, name, weight=weight)
                for name, weight in (("light", 1.0), ("heavy", 2.0))
            ]
            recorded.reports.clear()
            jobs = [model.start_generation("abc", 1500) for model in models]
            for job in jobs:
                await anext(job)
            begin = len(recorded.reports)
            await read_until(jobs[0], lambda: len(recorded.reports) > begin + 300)
            during = recorded.reports[begin:]
            for job in jobs:
                await job.aclose()
    light, heavy = ([report for report in during if report.model == m.name] for m in models)
    longest = max(report.seconds for report in during)
    # Each is at most a few of the longest steps away from its share.
    assert abs(seconds(heavy) / 2 - seconds(light)) < 3 * longest
    # Both are the same model, so that it gets about twice the tokens, too.
    assert 1.4 < len(heavy) / len(light) < 2.8


async def test_while_a_long_prompt_is_read_others_keep_half_the_time_and_a_short_one_comes_soon(
    tmp_path: Path,
) -> None:
    path = make_model(
        tmp_path / "long", {**tiny.CONFIGS["llama"], "max_position_embeddings": 1 << 15}
    )
    order: list[str] = []
    answers: dict[str, list[int]] = {}
    long, short = tiny.prompt_of(2048), tiny.prompt_of(8)
    first: dict[str, int] = {}

    async def ask(model: Model, name: str, prompt: str, max_tokens: int) -> None:
        async with model.generate(prompt, max_tokens) as job:
            async for _ in job:
                first.setdefault(name, len(recorded.reports))
        order.append(name)
        answers[name] = list(job.result.tokens)

    with trio.fail_after(120):
        async with open_recorded() as recorded:
            model = await recorded.runtime.load(path)
            async with trio.open_nursery() as nursery:
                running = [model.start_generation(f"{n}", 4000) for n in range(3)]
                for job in running:
                    await anext(job)
                began = len(recorded.reports)
                nursery.start_soon(ask, model, "long", long, 3)
                await read_until(
                    running[0], lambda: count(recorded.reports[began:], "prefill") >= 4
                )
                asked = len(recorded.reports)
                nursery.start_soon(ask, model, "short", short, 2)
                await read_until(running[0], lambda: len(order) == 2)
                for job in running:
                    await job.aclose()
    meanwhile = recorded.reports[began : first["long"]]
    steps, chunks = (seconds(meanwhile, what=what) for what in ("step", "prefill"))
    longest = max(report.seconds for report in meanwhile)
    # Half of the time, but for what was read last, which is not paid back yet.
    assert steps > chunks - 3 * longest
    assert chunks > steps / 4
    assert order[0] == "short"
    assert answers["long"] == [token for token, _ in by_mlx_lm(path, long, 3)]
    # It waited for the chunk under way and its own, with the steps that were owed between.
    waited = recorded.reports[asked : first["short"]]
    assert count(waited, "prefill") <= 3


async def test_the_share_of_rows_that_decode_is_a_parameter(tiny_model: TinyModel) -> None:
    reports: list[StepReport] = []
    engine = MlxEngine(pool_bytes=0, decode_share=0.0)
    with trio.fail_after(60):
        async with open_runtime(engine=engine, on_step=reports.append) as runtime:
            model = await runtime.load(tiny_model("llama"), prefill_step_size=64)
            running = model.start_generation("abc", 1500)
            await anext(running)
            await model.start_generation(tiny.prompt_of(1000), 1).wait()
            await running.aclose()
    whats = [report.what for report in reports]
    last = len(whats) - 1 - whats[::-1].index("prefill")
    # The long prompt in one go: nobody who decodes is owed anything.
    assert whats[last - 14 : last + 1] == ["prefill"] * 15


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("llama", {"max_kv_size": 64}, "max_kv_size=64 would have no effect"),
        ("state_space", {"kv_bits": 4}, "kv_bits=4"),
        ("long_window", {"kv_bits": 8}, "kv_bits=8"),
    ],
)
async def test_a_cache_option_that_the_model_would_ignore_is_refused_at_the_call(
    tiny_model: TinyModel, name: str, options: dict[str, Any], message: str
) -> None:
    with trio.fail_after(60):
        async with open_recorded() as recorded:
            model = await recorded.runtime.load(tiny_model(name))
            with pytest.raises(ValueError, match=message):
                model.start_generation("abc", 4, **options)
            with pytest.raises(ValueError, match=message):
                model.ticket_size("abc", 4, **options)
            assert model.jobs == ()
            result = await model.start_generation("abc", 4).wait()
    assert result.generation_tokens == 4


class Watching(WiredMemoryPolicy):
    """A sum that notes down MLX's memory whenever it is asked, with what is held just then."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    @property
    def parameters(self) -> object:
        return Watching

    def limit(self, baseline: int, active_sizes: Any) -> int:
        held = sum(active_sizes)
        self.seen.append((held, int(mx.get_active_memory())))
        return baseline + held


@pytest.mark.parametrize("when", ["its prompt is read", "it decodes", "it is done"])
@pytest.mark.parametrize("options", [{}, {"kv_bits": 8}], ids=["plain", "quantized"])
async def test_a_rows_memory_is_back_before_its_ticket_ends(
    tmp_path: Path, when: str, options: dict[str, Any]
) -> None:
    """The ledger forgets a ticket when it ends: what MLX holds then must not be the row's."""
    path = make_model(tmp_path / "qwen", QWEN)
    policy = Watching()
    with trio.fail_after(60):
        async with open_recorded(policy=policy) as recorded:
            model = await recorded.runtime.load(path, margin=0)
            gc.collect()
            beside = mx.get_active_memory() - sum(
                ticket.size for ticket in recorded.runtime.manager.snapshot().tickets
            )
            other = policy.ticket(1)  # while one is active, each end is followed by a look
            await other.start()
            job = model.start_generation(tiny.prompt_of(1700), 5, **options)
            size = job.ticket.size
            if when == "its prompt is read":
                await until(lambda: count(recorded.reports, "prefill") >= 20)
                job.cancel()
            elif when == "it decodes":
                await anext(job)
                job.cancel()
            result = await job.wait()
            await other.end()
    with_it = [place for place, (held, _) in enumerate(policy.seen) if held >= size]
    assert size > 4 * MIB
    held, active = policy.seen[with_it[-1] + 1]
    assert active - held - beside < NOISE
    assert result.finish_reason == ("length" if when == "it is done" else "cancelled")
