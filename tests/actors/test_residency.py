"""What the live manager's writes do to buffers, by the rules of Metal's residency set.

Sizes are small numbers. Tickets say what a runtime means to take, and the test then allocates in
the backend as the runtime would; nothing here was seen on Metal itself.
"""

from __future__ import annotations

import contextlib

import pytest
import trio

import wiredactors as wa
from wiredactors.testing import RecordingBackend

POLICY = wa.WiredSumPolicy()
LAYERS = frozenset(f"layer-{number}" for number in range(4))
WEIGHTS = 400


@contextlib.asynccontextmanager
async def loaded(policy=POLICY, seed=0, limit=0, **configuration):
    """A manager with a model of 400 bytes, loaded before any job came."""
    backend = RecordingBackend(1000, seed=seed, limit=limit)
    configuration = wa.WiredMemoryConfiguration(**configuration)
    async with wa.open_manager(configuration, backend):
        await policy.ticket(WEIGHTS, kind="reservation").start()
        for layer in sorted(LAYERS):
            backend.allocate(layer, WEIGHTS // len(LAYERS))
        yield backend


async def test_weights_that_were_loaded_before_any_job_are_wired_by_its_write(autojump_clock):
    async with loaded() as backend:
        # A reservation alone raises no limit.
        assert (backend.writes, backend.wired) == ([], frozenset())
        async with POLICY.ticket(50).wired_limit():
            assert backend.wired == LAYERS


async def test_what_missed_stays_out_at_the_same_limit_and_a_larger_one_takes_it_in(autojump_clock):
    async with loaded() as backend:
        job = POLICY.ticket(50)
        await job.start()
        backend.allocate("prompt", 30)
        backend.allocate("cache", 40)
        assert backend.unwired == {"cache"}

        backend.free("prompt")
        backend.clear_pool()  # now there is room for it
        backend.set_wired_limit(450)  # as whoever thinks that it helps
        assert backend.unwired == {"cache"}

        await job.resize(51)
        assert backend.limit == 451
        assert backend.wired == {*LAYERS, "cache"}


async def test_the_pool_keeps_a_jobs_cache_out_until_it_is_cleared_and_the_limit_grows(
    autojump_clock,
):
    async with loaded() as backend, POLICY.ticket(5).wired_limit():
        async with POLICY.ticket(100).wired_limit():
            backend.allocate("first", 100)
            backend.free("first")
        job = POLICY.ticket(40)
        await job.start()
        assert backend.limit == 505  # a shrink waits
        backend.allocate("second", 40)  # 400 of weights, 100 in the pool
        assert backend.unwired == {"second"}

        backend.clear_pool()
        assert backend.unwired == {"second"}  # nothing fills what came free

        async with POLICY.ticket(61).wired_limit():
            assert backend.limit == 506
            assert backend.wired == {*LAYERS, "second"}


async def test_a_larger_limit_takes_the_pool_in_as_well_as_the_cache(autojump_clock):
    async with loaded() as backend:
        job = POLICY.ticket(10)
        await job.start()
        backend.allocate("old", 300)
        backend.free("old")  # it never fitted, and waits for room as others do
        backend.allocate("cache", 10)
        assert backend.wired == {*LAYERS, "cache"}
        assert backend.wired_bytes == 410
        await job.resize(310)
        assert backend.wired_bytes == 710  # 300 of it for nobody


async def burst(backend, jobs=40, seconds=0.5):
    """Short jobs one after the other beside a long one; how often weights were not all wired."""
    missing = 0
    async with POLICY.ticket(20).wired_limit():
        backend.allocate("long", 20)
        for _ in range(jobs):
            async with POLICY.ticket(100).wired_limit():
                backend.allocate("short", 100)
                await trio.sleep(seconds)
                backend.free("short")  # into the pool, as MLX does
            missing += not backend.wired >= LAYERS
            await trio.sleep(seconds)
        backend.free("long")
    return missing


async def test_hysteresis_keeps_weights_wired_through_a_burst_of_short_jobs(autojump_clock):
    async with loaded() as backend:
        assert await burst(backend) == 0
        # Up for each job that was new, down when the last had ended, and nothing between.
        assert backend.writes == [420, 520, 0]


@pytest.mark.parametrize("seed", range(3))
async def test_without_it_the_same_burst_unwires_weights(autojump_clock, seed):
    async with loaded(seed=seed, shrink_threshold_ratio=0, shrink_cooldown=0) as backend:
        assert await burst(backend) > 10
        assert backend.writes == [420, *[520, 420] * 40, 0]


async def test_without_it_nothing_is_unwired_where_the_pool_is_cleared_before_a_ticket_ends(
    autojump_clock,
):
    async with (
        loaded(shrink_threshold_ratio=0, shrink_cooldown=0) as backend,
        POLICY.ticket(20).wired_limit(),
    ):
        for _ in range(20):
            async with POLICY.ticket(100).wired_limit():
                backend.allocate("short", 100)
                backend.free("short")
                backend.clear_pool()
            assert backend.wired == LAYERS


async def test_the_baseline_unwires_what_is_above_it_and_the_next_job_wires_it_again(
    autojump_clock,
):
    async with loaded(limit=200) as backend:
        assert len(backend.wired) == 2  # what fits under the limit from before
        for _ in range(3):
            async with POLICY.ticket(50).wired_limit():
                assert backend.wired == LAYERS
            assert backend.limit == 200
            assert backend.wired_bytes == 200
    # The first write tells what the baseline is; the limit is then computed anew.
    assert backend.writes == [450, *[650, 200] * 3]


@pytest.mark.parametrize(("mode", "limit"), [("policy", 550), ("fit", 500)])
async def test_exactly_fitting_leaves_a_growing_cache_out_where_head_room_takes_it_in(
    autojump_clock, mode, limit
):
    """A cache grows by making a larger buffer and freeing the smaller one, into the pool."""
    policy = wa.WiredBudgetPolicy(base_bytes=50)  # for what no ticket carries: the pool
    async with loaded(policy, wired_mode=mode) as backend, policy.ticket(100).wired_limit():
        assert backend.limit == limit
        backend.allocate("cache-1", 50)
        backend.allocate("cache-2", 100)
        backend.free("cache-1")
        assert ("cache-2" in backend.wired) == (mode == "policy")

        backend.clear_pool()  # with nobody to raise the limit it helps no more
        assert ("cache-2" in backend.wired) == (mode == "policy")
        assert backend.wired_bytes == (500 if mode == "policy" else 400)
