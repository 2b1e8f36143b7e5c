"""What "Coming from Swift" claims of edges that no other test shows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import wiredactors as wa
from wiredactors.testing import RecordingBackend

CEILING = 1000


class Doubled(wa.WiredMemoryPolicy):
    id = "doubled"

    def limit(self, baseline: int, active_sizes: Sequence[int]) -> int:
        return baseline + 2 * sum(active_sizes)


@asynccontextmanager
async def watched(
    backend: RecordingBackend, **settings: Any
) -> AsyncIterator[tuple[wa.WiredMemoryManager, list[str]]]:
    """A manager, and the kinds of its events, complete once it has closed."""
    kinds: list[str] = []

    async def watch(manager: wa.WiredMemoryManager, task_status: trio.TaskStatus[None]) -> None:
        async with manager.events() as events:
            task_status.started()
            kinds.extend([str(event.kind) async for event in events])

    configuration = wa.WiredMemoryConfiguration(**settings)
    async with trio.open_nursery() as nursery, wa.open_manager(configuration, backend) as manager:
        await nursery.start(watch, manager)
        yield manager, kinds


@pytest.mark.parametrize(("wired_mode", "limit"), [("policy", 100), ("fit", 140)])
async def test_the_limit_is_the_maximum_over_groups_unless_it_is_to_fit(
    wired_mode: str, limit: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with watched(RecordingBackend(CEILING), wired_mode=wired_mode) as (manager, _):
        await wa.WiredSumPolicy().ticket(100, kind="reservation").start()
        assert await wa.WiredMaxPolicy().ticket(40).start() == limit
        assert manager.granted_bytes == 140


@pytest.mark.parametrize("baseline", [0, 50])
async def test_a_reservation_alone_writes_nothing(
    baseline: int, autojump_clock: trio.testing.MockClock
) -> None:
    backend = RecordingBackend(CEILING)
    async with watched(backend, baseline_override=baseline) as (_, kinds):
        ticket = wa.WiredSumPolicy().ticket(100, kind="reservation")
        assert (await ticket.start(), await ticket.end()) == (baseline, baseline)
    assert backend.calls == []
    assert not {"limit_applied", "baseline_restored"} & set(kinds)


async def test_after_a_failed_restore_the_truth_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = RecordingBackend(CEILING)
    async with watched(backend) as (manager, kinds):
        ticket = wa.WiredSumPolicy().ticket(100)
        await ticket.start()
        backend.fail_next()
        assert await ticket.end() == 100
        assert manager.baseline == 0
        await trio.sleep(60)
        assert backend.limit == 0
    assert kinds[-3:] == ["limit_apply_failed", "limit_applied", "baseline_restored"]


@pytest.mark.parametrize("held", [100, 50])
async def test_a_start_that_was_cancelled_already_runs_no_body(
    held: int, autojump_clock: trio.testing.MockClock
) -> None:
    policy = wa.WiredSumPolicy(cap=100)
    async with watched(RecordingBackend(CEILING)) as (manager, kinds):
        await policy.ticket(held).start()
        with trio.CancelScope() as scope:
            scope.cancel()
            async with policy.ticket(10).wired_limit():
                pytest.fail("the body runs")
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert manager.granted_bytes == held
    assert ("admission_wait" in kinds) is ("admission_cancelled" in kinds) is (held == 100)
    assert kinds.count("admission_granted") == (1 if held == 100 else 2)


async def test_the_last_end_with_one_waiting_writes_nothing_between(
    autojump_clock: trio.testing.MockClock,
) -> None:
    policy = wa.WiredSumPolicy(cap=150)
    backend = RecordingBackend(CEILING)
    async with watched(backend), trio.open_nursery() as nursery:
        first, second = policy.ticket(150), policy.ticket(140)
        await first.start()
        nursery.start_soon(second.start)
        await wait_all_tasks_blocked()
        await first.end()
        await second.end()
    assert backend.writes == [150, 0]


async def test_a_custom_or_fixed_policy_may_ask_for_more_than_the_device_can(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with watched(RecordingBackend(CEILING)) as (_, kinds):
        for policy in (Doubled(), wa.WiredFixedPolicy(limit=2 * CEILING)):
            async with policy.ticket(600).wired_limit() as limit:
                assert limit == 0
    assert kinds.count("limit_apply_failed") == 2


async def test_a_cap_below_the_baseline_refuses_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with watched(RecordingBackend(CEILING), baseline_override=50):
        with pytest.raises(wa.TicketTooLarge):
            await wa.WiredSumPolicy(cap=40).ticket(0).start()


async def test_use_beyond_the_tickets_tightens_admission(
    autojump_clock: trio.testing.MockClock,
) -> None:
    total, policy = 1500, wa.WiredSumPolicy()
    backend = RecordingBackend(CEILING, total_memory=total)
    backend.reading = wa.MemoryReading(total_bytes=total, available_bytes=1400, footprint_bytes=100)
    async with watched(backend) as (manager, kinds):
        await policy.ticket(100).start()
        backend.reading = wa.MemoryReading(
            total_bytes=total, available_bytes=400, footprint_bytes=1100
        )
        await trio.sleep(6)
        assert manager.snapshot().excess_bytes == 500
        assert manager.would_admit([(401, policy)]).tickets[0].outcome == "waits"
    assert "outside_pressure" in kinds


async def test_starts_at_one_moment_share_a_write_for_each_200(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = RecordingBackend(CEILING)
    async with watched(backend), trio.open_nursery() as nursery:
        for _ in range(450):
            nursery.start_soon(wa.WiredSumPolicy().ticket(1).start)
        await wait_all_tasks_blocked()
        assert len(backend.calls) == 3
