"""The modelled rows share batches as the real ones do, and hold no more than they were charged."""

from __future__ import annotations

import random

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wiredactors.memory.units import KIB
from wiredactors.scheduling.requests import (
    CacheOptions,
    LoadOptions,
    LoadPlan,
    RowRequest,
    SamplingParameters,
)
from wiredactors.testing.batches import Batches
from wiredactors.testing.model import ModelledModel
from wiredactors.testing.rows import Row

MODEL = ModelledModel(kv_bytes_per_token=KIB, prefill_step_size=512)  # loaded for less
STEP = 256 * KIB
PLAIN = CacheOptions()


def loaded(model: ModelledModel = MODEL, max_batch_size: int = 32) -> Batches:
    options = LoadOptions(prefill_step_size=256, max_batch_size=max_batch_size)
    plan = LoadPlan(source="m", options=options, weight_bytes=0, peak_bytes=0, workspace_bytes=0)
    return Batches(model, plan)


def row(name: str, prompt: int, max_tokens: int, cache: CacheOptions = PLAIN) -> Row:
    request = RowRequest(
        row_id=name,
        prompt=(1,) * prompt,
        max_tokens=max_tokens,
        sampling=SamplingParameters(),
        cache=cache,
    )
    return Row(request, lambda output: None)


def read_all(batches: Batches, *rows: Row) -> None:
    for each in rows:
        batches.add(each)
    while batches.prompts:
        batches.read([0])
        batches.mend()


def decode(batches: Batches) -> list[Row]:
    """A step of the next batch; those that are at their end leave. Returns who stepped."""
    stepped = list(batches.turn())
    ended = [each for each in stepped if each.step(batches.model)[-1].last]
    for each in ended:
        batches.let_go(each)
    batches.mend()
    return stepped


def names(batches: Batches) -> list[set[str]]:
    """The batches, whose turn is next first."""
    count = len(batches._decoding)
    return [{each.request.row_id for each in batches.turn()} for _ in range(count)]


def test_a_row_shares_a_batch_when_its_prompt_has_been_read() -> None:
    batches = loaded()
    read_all(batches, row("a", 100, 50))
    batches.add(row("b", 300, 50))
    assert (batches.decodes, batches.prompts) == (True, [300])
    assert batches.read([0]) == 256
    batches.mend()
    assert (names(batches), batches.prompts) == ([{"a"}], [44])
    assert batches.held_bytes == STEP + STEP
    assert batches.read([0]) == 44
    assert batches.held_bytes == STEP + 2 * STEP  # its own cache still
    batches.mend()
    assert (names(batches), batches.prompts) == ([{"a"}, {"b"}], [])  # "a" was not charged for both


def test_rows_of_other_lengths_share_a_batch_as_long_as_they_were_charged_for_it() -> None:
    batches = loaded()
    rich, short = row("rich", 250, 1000), row("short", 250, 6)
    read_all(batches, rich, short)
    assert names(batches) == [{"rich", "short"}]
    assert batches.charged_bytes == 5 * STEP + STEP
    assert decode(batches) == [rich, short]
    assert batches.held_bytes == 2 * STEP


def test_a_batch_is_split_before_it_would_grow_beyond_its_charge_and_its_parts_take_turns() -> None:
    batches = loaded()
    long, short, tight = row("long", 300, 600), row("short", 10, 800), row("tight", 10, 500)
    read_all(batches, long, short, tight)
    for _ in range(768 - 300):  # until three steps of the cache are full: nine of the ten charged
        assert batches.held_bytes <= 9 * STEP
        assert decode(batches) == [long, short, tight]
    assert [decode(batches) for _ in range(3)] == [[long, short], [tight], [long, short]]
    assert batches.held_bytes == 8 * STEP + 2 * STEP == batches.charged_bytes


def test_when_the_row_that_paid_for_the_padding_leaves_the_others_part() -> None:
    batches = loaded()
    rich, long, short = row("rich", 10, 4000), row("long", 600, 100), row("short", 10, 200)
    read_all(batches, rich, long, short)
    assert names(batches) == [{"rich", "long", "short"}]
    assert batches.held_bytes == 9 * STEP
    batches.let_go(rich)
    assert names(batches) == [{"long"}, {"short"}]
    assert batches.held_bytes == 4 * STEP


def test_batches_whose_rows_came_to_fit_together_become_one() -> None:
    batches = loaded(max_batch_size=2)
    rows = [row(name, 10, 200) for name in "abc"]
    read_all(batches, *rows)
    assert names(batches) == [{"a", "b"}, {"c"}]
    batches.let_go(rows[0])
    assert names(batches) == [{"b", "c"}]


@pytest.mark.parametrize("cache", [CacheOptions(kv_bits=4), CacheOptions(max_kv_size=300)])
def test_a_cache_that_is_not_the_models_own_has_steps_of_its_own(cache: CacheOptions) -> None:
    batches = loaded()
    read_all(batches, *(row(f"odd{n}", 10, 200, cache) for n in (1, 2)), row("own", 10, 200))
    read_all(batches, row("another", 10, 200))
    assert names(batches) == [{"odd1"}, {"odd2"}, {"own", "another"}]
    assert batches.charged_bytes == 2 * MODEL.row_cost(cache).row_bytes(210) + 2 * STEP


def test_a_quantized_cache_takes_its_bits_and_a_bounded_one_its_bound() -> None:
    assert MODEL.row_cost(PLAIN) == MODEL.cache_cost
    assert MODEL.row_cost(CacheOptions(kv_bits=4)).row_bytes(500) == 2 * STEP // 4
    odd = ModelledModel(kv_bytes_per_token=3)
    assert odd.row_cost(CacheOptions(kv_bits=8)).row_bytes(1) == 2 * 256  # 1.5 bytes, rounded up
    bounded = CacheOptions(max_kv_size=300)
    assert MODEL.row_cost(bounded).row_bytes(4000) == 300 * KIB
    assert MODEL.cache_bytes(4000, bounded) == 300 * KIB
    assert MODEL.cache_bytes(10, bounded) == STEP


def test_padding_is_shared_by_what_each_was_charged() -> None:
    batches = loaded(attrs.evolve(MODEL, unpredicted_bytes=7))
    rich, long, reads = row("rich", 10, 1000), row("long", 300, 200), row("reads", 300, 1)
    read_all(batches, rich, long)
    batches.add(reads)
    assert batches.held_bytes == 2 * (2 * STEP + 7)
    assert batches.share(rich) == 4 * STEP * 4 // 6 + 7
    assert batches.share(long) == 4 * STEP * 2 // 6 + 7
    batches.read([0])
    assert batches.share(reads) == 0


CACHES = [PLAIN] * 5 + [CacheOptions(kv_bits=3), CacheOptions(max_kv_size=300)]


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32), max_batch_size=st.integers(1, 5))
def test_caches_never_outgrow_what_rows_were_charged(seed: int, max_batch_size: int) -> None:
    chance = random.Random(seed)
    batches = loaded(max_batch_size=max_batch_size)
    waiting = [
        row(f"r{n}", chance.randint(1, 600), chance.randint(1, 600), chance.choice(CACHES))
        for n in range(12)
    ]
    steps = 0
    while waiting or batches.prompts or batches.decodes:
        if waiting and chance.random() < 0.02:
            batches.add(waiting.pop())
        if batches.prompts and chance.random() < 0.1:
            batches.read([chance.randrange(len(batches.prompts))])
            batches.mend()
        elif batches.decodes:
            assert len(decode(batches)) <= max_batch_size
        there = list(batches)
        if there and chance.random() < 0.005:
            gone = chance.choice(there)
            batches.let_go(gone)
            assert gone not in list(batches)
        assert batches.held_bytes <= batches.charged_bytes
        for each in batches:
            cost = MODEL.row_cost(each.request.cache)
            assert batches.share(each) <= cost.row_bytes(each.request.total_tokens)
        steps += 1
    assert steps < 20_000  # every row comes to its end
    assert batches.held_bytes == batches.charged_bytes == 0
