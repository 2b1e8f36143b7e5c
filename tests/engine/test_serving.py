"""Rows answer as alone, and hold no more than they were charged, whoever comes and goes."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import tiny
from tests.engine.architectures import CONFIGS as ARCHITECTURES
from tests.engine.test_kept import ALONE, built
from wiredactors.engine.batch import Batch
from wiredactors.engine.imports import import_mlx_lm
from wiredactors.engine.loading import LoadedModel, load, plan_load
from wiredactors.engine.prefill import Prefill
from wiredactors.engine.row import MOST_FAILURES
from wiredactors.engine.serving import Serving
from wiredactors.engine.sizing import measure_cache
from wiredactors.memory.cache_cost import CacheCost
from wiredactors.memory.units import KIB
from wiredactors.scheduling.requests import (
    LoadOptions,
    LoadPlan,
    RowOutput,
    RowRequest,
    SamplingParameters,
)
from wiredactors.scheduling.schedule import Schedule

mx = pytest.importorskip("mlx.core")
generate = pytest.importorskip("mlx_lm.generate")


@pytest.fixture(autouse=True)
def no_pool() -> Iterator[None]:
    """MLX keeps no freed buffers, of which a larger one would count as a whole."""
    before = mx.set_cache_limit(0)
    yield
    mx.set_cache_limit(before)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("tokenizer")
    tiny.save_tokenizer(path)
    loaded = import_mlx_lm("utils").load_tokenizer(path)
    loaded.eos_token_ids = set()
    return loaded


def loaded_model(path: Path, **options: int) -> tuple[LoadPlan, LoadedModel, CacheCost]:
    plan = plan_load(path, LoadOptions(**options), on_cpu=True)
    loaded = load(plan, lambda done, total: None)
    assert plan.options.prefill_step_size is not None
    return plan, loaded, measure_cache(loaded.model, plan.options.prefill_step_size)


class Charged:
    """A model's rows, what they are charged, and how far they have gone over that."""

    def __init__(self, loaded: LoadedModel, cost: CacheCost, spare_bytes: int = 0):
        self.serving = Serving(loaded, lambda options: cost, spare_bytes)
        self._cost = cost
        self._schedule = Schedule()
        gc.collect()
        self._before = mx.get_active_memory()
        self.rows: dict[str, int] = {}
        self.tokens: dict[str, list[int]] = {}
        self.logprobs: dict[str, list[float | None]] = {}
        self.requests: dict[str, RowRequest] = {}
        self._numbers = iter(range(1000))
        self.active_over = 0
        self.peak_over = 0
        self.most_together = 0

    @property
    def left(self) -> int:
        gc.collect()
        return int(mx.get_active_memory() - self._before)

    def insert(self, prompt_tokens: int, max_tokens: int, **sampling: Any) -> str:
        number = next(self._numbers)
        request = RowRequest(
            row_id=f"row {number}",
            prompt=tuple((number * 7 + i * 3) % tiny.VOCABULARY for i in range(prompt_tokens)),
            max_tokens=max_tokens,
            sampling=SamplingParameters(**sampling),
        )
        self.serving.insert(request)
        self.rows[request.row_id] = self._cost.row_bytes(request.total_tokens)
        self.tokens[request.row_id] = []
        self.logprobs[request.row_id] = []
        self.requests[request.row_id] = request
        return request.row_id

    def remove(self, row_id: str) -> None:
        granted = self._begin()
        share, outputs = self.serving.remove(row_id)
        assert outputs == []
        assert share <= self.rows.pop(row_id)
        self._end(granted)

    def step(self) -> list[RowOutput]:
        granted = self._begin()
        step = self._schedule.choose({"model": self.serving})
        assert step is not None
        decodes = self.serving.decodes
        if step.prompts:
            self.serving.wait()
            outputs = self.serving.read(step.prompts)
        else:
            outputs = self.serving.step()
        self._schedule.record(step, 1.0, decodes=decodes)
        stepped = {output.row_id for output in outputs}
        self.most_together = max(self.most_together, len(stepped))
        for output in outputs:
            if output.token is not None:
                self.tokens[output.row_id].append(output.token)
                self.logprobs[output.row_id].append(output.logprob)
            if output.last:
                charge = self.rows.pop(output.row_id)
                assert output.error is not None or 0 < output.kv_bytes <= charge
        self._end(granted)
        return outputs

    def run(self) -> list[RowOutput]:
        """Step until all are done; the last outputs."""
        outputs = []
        while self.rows:
            outputs += [output for output in self.step() if output.last]
        return outputs

    def _begin(self) -> int:
        mx.reset_peak_memory()
        return sum(self.rows.values())

    def _end(self, granted: int) -> None:
        active = mx.get_active_memory() - self._before
        peak = mx.get_peak_memory() - self._before
        self.active_over = max(self.active_over, active - sum(self.rows.values()))
        self.peak_over = max(self.peak_over, peak - granted)

    def close(self) -> None:
        self.serving.close()
        self.rows.clear()


@pytest.mark.parametrize(
    ("name", "bucket"),
    [
        *((name, 256) for name in (*tiny.CONFIGS, "wide_vocabulary")),
        ("llama", 512),
        ("long_window", 1024),
    ],
)
def test_a_batch_never_holds_more_than_its_rows_were_charged(
    tiny_model: Callable[..., Path], name: str, bucket: int
) -> None:
    plan, loaded, cost = loaded_model(tiny_model(name), prefill_step_size=128)
    chance = random.Random(f"{name} {bucket}")
    rows = Charged(loaded, cost)
    for _ in range(70 if bucket == 256 else 40):
        while not rows.rows or (len(rows.rows) < 3 and chance.random() < 0.4):
            total = chance.randint(bucket - 254, bucket)
            answer = min(total - 1, chance.choice([1, 5, 20, 200]))
            rows.insert(total - answer, answer)
        if chance.random() < 0.05:
            rows.remove(chance.choice(list(rows.rows)))
        else:
            rows.step()
    rows.close()
    assert rows.active_over < 64 * KIB
    assert rows.peak_over < plan.workspace_bytes
    assert rows.left < 4 * KIB


def test_a_batch_that_never_empties_does_not_creep_up(tiny_model: Callable[..., Path]) -> None:
    """Each row joins while another decodes, so the padding of those before must be dropped."""
    _, loaded, cost = loaded_model(tiny_model("long_window"))
    rows = Charged(loaded, cost)
    rows.insert(206, 40)
    for _ in range(16):
        for _ in range(24):
            rows.step()
        rows.insert(2, 40)
    rows.close()
    assert rows.active_over < 64 * KIB
    assert rows.peak_over < 1024 * KIB


def test_joining_and_leaving_never_hold_two_batches_at_once(
    tiny_model: Callable[..., Path],
) -> None:
    _, loaded, cost = loaded_model(tiny_model("llama"))
    rows = Charged(loaded, cost)
    for number in range(5):
        rows.insert(505 - number, 8 + 2 * number)
    while rows.rows:
        rows.step()
    assert rows.peak_over < 1024 * KIB


def test_joining_and_leaving_take_no_more_than_the_spare_bytes(
    tiny_model: Callable[..., Path],
) -> None:
    plan, loaded, cost = loaded_model(tiny_model("llama"), prefill_step_size=512)
    spare_bytes = plan.workspace_bytes // 2
    rows = Charged(loaded, cost, spare_bytes)
    for number in range(30):
        rows.insert(228 - number, 8 + 2 * (number % 5))
    rows.run()
    assert rows.most_together == 30
    assert spare_bytes // 4 < rows.peak_over < spare_bytes


def test_rows_beyond_the_batch_size_have_steps_of_their_own(
    tiny_model: Callable[..., Path],
) -> None:
    _, loaded, cost = loaded_model(tiny_model("llama"), max_batch_size=2)
    rows = Charged(loaded, cost)
    for _ in range(5):
        rows.insert(3, 6)
    rows.run()
    assert rows.most_together == 2


def alone(loaded: LoadedModel, request: RowRequest) -> list[int]:
    """What mlx-lm's own loop answers."""
    steps = generate.generate_step(
        mx.array(request.prompt), loaded.model, max_tokens=request.max_tokens
    )
    return [token for token, _ in steps]


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_rows_that_come_and_go_answer_as_alone(tiny_model: Callable[..., Path], name: str) -> None:
    _, loaded, cost = loaded_model(tiny_model(name), prefill_step_size=64)
    loaded.tokenizer.eos_token_ids = set()
    chance = random.Random(name)
    rows = Charged(loaded, cost)
    left = 14
    removed = set()
    while rows.rows or left:
        if left and (not rows.rows or chance.random() < 0.2):
            rows.insert(chance.choice([1, 2, 20, 100, 250, 300]), chance.choice([1, 2, 10, 40]))
            left -= 1
        elif chance.random() < 0.02:
            removed.add(row_id := chance.choice(list(rows.rows)))
            rows.remove(row_id)
        else:
            rows.step()
    assert rows.most_together > 1
    for row_id, request in rows.requests.items():
        wanted = alone(loaded, request)
        if row_id in removed:
            wanted = wanted[: len(rows.tokens[row_id])]
        assert rows.tokens[row_id] == wanted


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - ALONE))
def test_rows_of_each_architecture_answer_as_alone(name: str, tokenizer: Any) -> None:
    """Short prompts of unequal length are read together, others join, and rows leave."""
    model = built(ARCHITECTURES[name])
    loaded = LoadedModel(
        model=model,
        tokenizer=tokenizer,
        config={},
        options=LoadOptions(prefill_step_size=256),
    )
    rows = Charged(loaded, CacheCost(fixed_bytes=1 << 30, step_bytes=0, copy_bytes=0))
    for prompt_tokens, max_tokens in [(4, 6), (50, 4), (2, 7), (1, 3), (4, 6)]:
        rows.insert(prompt_tokens, max_tokens, logprobs=True)
    for _ in range(3):
        rows.step()
    rows.insert(90, 3, logprobs=True)
    rows.insert(3, 3, logprobs=True)
    ends = rows.run()
    assert all(output.error is None for output in ends)
    assert rows.most_together > 2
    for row_id, request in rows.requests.items():
        steps = generate.generate_step(
            mx.array(request.prompt), model, max_tokens=request.max_tokens
        )
        wanted = [(token, logprobs[token].item()) for token, logprobs in steps]
        assert rows.tokens[row_id] == [token for token, _ in wanted]
        # A state that padding has reached may show here only.
        assert rows.logprobs[row_id] == pytest.approx(
            [logprob for _, logprob in wanted], rel=1e-2, abs=1e-2
        )


def test_rows_of_any_lengths_share_steps_while_what_they_were_charged_allows_it(
    tiny_model: Callable[..., Path],
) -> None:
    plan, loaded, cost = loaded_model(tiny_model("llama"), prefill_step_size=128)
    rows = Charged(loaded, cost)
    rows.insert(600, 40)  # long already: with the short ones it would fill a larger rectangle
    for most in (30, 60, 90, 900):
        rows.insert(5, most)
    rows.run()
    assert rows.most_together >= 3
    assert rows.active_over < 64 * KIB
    assert rows.peak_over < plan.workspace_bytes
    for row_id, request in rows.requests.items():
        assert rows.tokens[row_id] == alone(loaded, request)


@pytest.mark.parametrize("name", ["sampler", "logits_processors"])
def test_what_a_row_brought_itself_fails_that_row_alone(
    tiny_model: Callable[..., Path], name: str
) -> None:
    _, loaded, cost = loaded_model(tiny_model("llama"))
    rows = Charged(loaded, cost)
    calls = 0

    def failing(*arrays: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise ZeroDivisionError("mine")
        return mx.argmax(arrays[-1], axis=-1) if name == "sampler" else arrays[-1]

    others = [rows.insert(4, 20), rows.insert(9, 20)]
    bad = rows.insert(6, 20, **{name: failing if name == "sampler" else (failing,)})
    ends = {output.row_id: output for output in rows.run()}
    assert "mine" in str(ends[bad].error)
    assert rows.tokens[bad] == alone(loaded, rows.requests[bad])[:4]
    for row_id in others:
        assert ends[row_id].error is None
        assert rows.tokens[row_id] == alone(loaded, rows.requests[row_id])


def test_what_fails_only_in_company_goes_on_alone_in_the_end(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, loaded, cost = loaded_model(tiny_model("llama"))
    rows = Charged(loaded, cost)
    step = Batch.step
    failures = 0

    def failing(batch: Batch) -> Any:
        nonlocal failures
        if len(batch.rows) > 1:
            failures += 1
            raise RuntimeError("too many")
        return step(batch)

    monkeypatch.setattr(Batch, "step", failing)
    for _ in range(3):
        rows.insert(4, 30)
    ends = rows.run()
    assert all(output.error is None for output in ends)
    assert 0 < failures <= 3 * MOST_FAILURES
    for row_id, request in rows.requests.items():
        assert rows.tokens[row_id] == alone(loaded, request)


def test_a_prompt_that_cannot_be_read_fails_its_row_alone(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, loaded, cost = loaded_model(tiny_model("llama"))
    rows = Charged(loaded, cost)
    read = Prefill.read

    def failing(prefill: Prefill, most: int) -> None:
        if any(len(row.request.prompt) == 100 for row in prefill.rows):
            raise RuntimeError("unreadable")
        read(prefill, most)

    monkeypatch.setattr(Prefill, "read", failing)
    rows.insert(50, 5)
    bad = rows.insert(100, 5)
    ends = {output.row_id: output.error for output in rows.run()}
    assert "unreadable" in str(ends.pop(bad))
    assert list(ends.values()) == [None]


def test_where_nothing_fails_nothing_is_read_anew(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, loaded, cost = loaded_model(tiny_model("llama"))
    rows = Charged(loaded, cost)
    monkeypatch.delattr(Serving, "_recover")
    for number in range(3):
        rows.insert(4 + number, 3 + number // 2)
    rows.run()
    row_id = rows.insert(4, 5)
    rows.step()
    rows.remove(row_id)
    assert rows.serving.pieces == 0


@pytest.mark.parametrize("where", ["sampler", "a step", "the prompt"])
def test_an_error_that_is_kept_keeps_neither_caches_nor_weights(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    _, loaded, cost = loaded_model(tiny_model("llama"))

    def failing(*arrays: Any) -> Any:
        raise ZeroDivisionError("mine")

    rows = Charged(loaded, cost)
    if where == "a step":
        monkeypatch.setattr(Batch, "_launch", failing)
    elif where == "the prompt":
        monkeypatch.setattr(Prefill, "_read_chunk", failing)
    rows.insert(300, 5, **({"sampler": failing} if where == "sampler" else {}))
    [end] = rows.run()
    assert end.error is not None
    assert rows.left < 4 * KIB
    rows.close()
    model = weakref.ref(loaded.model)
    del loaded, rows
    gc.collect()
    assert model() is None


def test_closed_it_holds_nothing(tiny_model: Callable[..., Path]) -> None:
    _, loaded, cost = loaded_model(tiny_model("llama"))
    rows = Charged(loaded, cost)
    for _ in range(3):
        rows.insert(4, 30)
        rows.step()
    rows.close()
    assert rows.serving.pieces == 0
    assert rows.left < 4 * KIB
