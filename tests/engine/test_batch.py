"""A batch of a bucket holds no more than its rows were charged, whoever comes and goes."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine import tiny
from wiredactors.engine.batch import Batch
from wiredactors.engine.loading import LoadedModel, load, plan_load
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

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")


@pytest.fixture(autouse=True)
def no_pool() -> Iterator[None]:
    """MLX keeps no freed buffers, of which a larger one would count as a whole."""
    before = mx.set_cache_limit(0)
    yield
    mx.set_cache_limit(before)


def loaded_model(path: Path, **options: int) -> tuple[LoadPlan, LoadedModel, CacheCost]:
    plan = plan_load(path, LoadOptions(**options), on_cpu=True)
    loaded = load(plan, lambda done, total: None)
    assert plan.options.prefill_step_size is not None
    return plan, loaded, measure_cache(loaded.model, plan.options.prefill_step_size)


class Charged:
    """A batch, what its rows are charged, and how far it has gone over that."""

    def __init__(self, loaded: LoadedModel, cost: CacheCost):
        self._loaded = loaded
        self._cost = cost
        gc.collect()
        self._before = mx.get_active_memory()
        self.rows: dict[str, int] = {}
        self._batch: Batch | None = None
        self._numbers = iter(range(1000))
        self.active_over = 0
        self.peak_over = 0

    @property
    def left(self) -> int:
        gc.collect()
        return int(mx.get_active_memory() - self._before)

    def insert(self, prompt_tokens: int, max_tokens: int) -> None:
        number = next(self._numbers)
        request = RowRequest(
            row_id=f"row {number}",
            prompt=tuple((number * 7 + i * 3) % tiny.VOCABULARY for i in range(prompt_tokens)),
            max_tokens=max_tokens,
            sampling=SamplingParameters(),
        )
        if self._batch is None:
            self._batch = Batch(self._loaded)
        self._batch.insert(request)
        self.rows[request.row_id] = self._cost.row_bytes(request.total_tokens)

    def remove(self, row_id: str) -> None:
        assert self._batch is not None
        granted = self._begin()
        self._batch.remove(row_id)
        del self.rows[row_id]
        self._end(granted)

    def step(self) -> list[RowOutput]:
        assert self._batch is not None
        granted = self._begin()
        outputs = self._batch.step()
        for output in outputs:
            if output.last:
                assert output.error is None
                assert 0 < output.kv_bytes <= self.rows.pop(output.row_id)
        self._end(granted)
        return outputs

    def _begin(self) -> int:
        mx.reset_peak_memory()
        return sum(self.rows.values())

    def _end(self, granted: int) -> None:
        if not self.rows:
            self.close()
        active = mx.get_active_memory() - self._before
        peak = mx.get_peak_memory() - self._before
        self.active_over = max(self.active_over, active - sum(self.rows.values()))
        self.peak_over = max(self.peak_over, peak - granted)

    def close(self) -> None:
        if self._batch is not None:
            self._batch.close()
            self._batch = None
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
    batch = Charged(loaded, cost)
    for _ in range(70 if bucket == 256 else 40):
        while not batch.rows or (len(batch.rows) < 3 and chance.random() < 0.4):
            total = chance.randint(bucket - 254, bucket)
            answer = min(total - 1, chance.choice([1, 5, 20, 200]))
            batch.insert(total - answer, answer)
        if chance.random() < 0.05:
            batch.remove(chance.choice(list(batch.rows)))
        else:
            batch.step()
    batch.close()
    assert batch.active_over < 64 * KIB
    assert batch.peak_over < plan.workspace_bytes
    assert batch.left < 4 * KIB


def test_a_batch_that_never_empties_does_not_creep_up(tiny_model: Callable[..., Path]) -> None:
    """Each row joins while another decodes, so the padding of those before must be dropped."""
    _, loaded, cost = loaded_model(tiny_model("long_window"))
    batch = Charged(loaded, cost)
    batch.insert(206, 40)
    for _ in range(16):
        for _ in range(24):
            batch.step()
        batch.insert(2, 40)
    batch.close()
    assert batch.active_over < 64 * KIB
    assert batch.peak_over < 1024 * KIB


def test_joining_and_leaving_never_hold_two_batches_at_once(
    tiny_model: Callable[..., Path],
) -> None:
    _, loaded, cost = loaded_model(tiny_model("llama"))
    batch = Charged(loaded, cost)
    for number in range(5):
        batch.insert(505 - number, 8 + 2 * number)
    while batch.rows:
        batch.step()
    assert batch.peak_over < 1024 * KIB


def test_rows_beyond_the_batch_size_wait_and_hold_no_cache(
    tiny_model: Callable[..., Path],
) -> None:
    _, loaded, cost = loaded_model(tiny_model("llama"), max_batch_size=2)
    batch = Charged(loaded, cost)
    for _ in range(5):
        batch.insert(3, 6)
    most = 0
    while batch.rows:
        most = max(most, len({output.row_id for output in batch.step()}))
        assert mx.get_active_memory() - batch._before < 2 * cost.row_bytes(9) + 64 * KIB
    assert most == 2


def test_a_closed_batch_can_be_closed_again(tiny_model: Callable[..., Path]) -> None:
    _, loaded, _ = loaded_model(tiny_model("llama"))
    batch = Batch(loaded)
    batch.insert(RowRequest(row_id="a", prompt=(1,), max_tokens=1, sampling=SamplingParameters()))
    assert batch.close() == ["a"]
    assert batch.close() == []
