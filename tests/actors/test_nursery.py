"""The nursery inside `open_runtime` and `generate` does not show in what comes out of them."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from wiredactors.actors.nursery import open_bare_nursery


async def fail(error: Exception) -> None:
    raise error


async def cleanup_fails() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise OSError("cleanup")


async def test_an_exception_of_the_body_comes_out_bare_and_cancels_the_tasks(
    autojump_clock: MockClock,
) -> None:
    async def body() -> None:
        async with open_bare_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await fail(ValueError("body"))

    with pytest.raises(ValueError, match="body"):
        await body()


async def test_what_a_task_raises_comes_as_a_group(autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(OSError):
        async with open_bare_nursery() as nursery:
            nursery.start_soon(fail, OSError("task"))
            await trio.sleep_forever()


async def test_if_body_and_task_fail_neither_is_lost(autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(ValueError, OSError):
        async with open_bare_nursery() as nursery:
            nursery.start_soon(cleanup_fails)
            await trio.lowlevel.checkpoint()
            await fail(ValueError("body"))


async def test_a_cancellation_from_outside_goes_through(autojump_clock: MockClock) -> None:
    with trio.move_on_after(1) as scope:
        async with open_bare_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()
    assert scope.cancelled_caught

    with trio.move_on_after(1) as scope:
        async with open_bare_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
    assert scope.cancelled_caught


async def test_a_body_that_ends_waits_for_the_tasks(autojump_clock: MockClock) -> None:
    async with open_bare_nursery() as nursery:
        nursery.start_soon(trio.sleep, 5)
    assert trio.current_time() == 5


async def test_a_cancellation_of_the_nursery_itself_ends_there(autojump_clock: MockClock) -> None:
    try:
        async with open_bare_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.cancel_scope.cancel()
            await trio.sleep_forever()
    except trio.Cancelled:  # noqa: ASYNC103  # nobody cancelled what is out here
        pytest.fail("it came out")


async def test_a_cancellation_of_both_goes_through(autojump_clock: MockClock) -> None:
    reached = False
    with trio.CancelScope() as scope:
        async with open_bare_nursery() as nursery:
            nursery.cancel_scope.cancel()
            scope.cancel()
            await trio.sleep_forever()
        reached = True
    assert scope.cancelled_caught
    assert not reached
