"""The device thread: calls in order, steps between them, and nothing that outlives it."""

from __future__ import annotations

import functools
import gc
import threading
import weakref

import pytest
import trio

from wiredactors.engine.device import DeviceThread, without_locals

mx = pytest.importorskip("mlx.core")


def idle() -> bool:
    return False


async def test_calls_run_in_order_on_one_thread_and_return_their_values() -> None:
    device = DeviceThread(idle)
    device.start()
    order: list[int] = []

    def note(number: int) -> int:
        order.append(number)
        return threading.get_ident()

    with trio.fail_after(10):
        for number in range(20):
            device.post(functools.partial(order.append, number))
        threads = {await device.run(lambda: note(20)), await device.run(lambda: note(21))}
        await device.stop()
    assert order == list(range(22))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_an_error_comes_back_as_it_is_with_its_traceback_and_without_its_variables() -> None:
    class Large:
        pass

    kept: list[weakref.ref[Large]] = []

    def fail() -> None:
        large = Large()
        kept.append(weakref.ref(large))
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ZeroDivisionError("outer") from error

    device = DeviceThread(idle)
    device.start()
    with trio.fail_after(10):
        with pytest.raises(ZeroDivisionError, match="outer") as caught:
            await device.run(fail)
        await device.stop()
    gc.collect()
    assert kept[0]() is None
    assert isinstance(caught.value.__cause__, KeyError)
    assert "fail" in [entry.name for entry in caught.traceback]


async def test_a_cancelled_call_is_waited_for_and_told_to_abort() -> None:
    device = DeviceThread(idle)
    device.start()
    aborted = threading.Event()
    ended = threading.Event()

    def slow() -> None:
        assert aborted.wait(10)
        ended.set()

    with trio.fail_after(10):
        with trio.move_on_after(0.05) as scope:
            await device.run(slow, abort=aborted.set)
        assert scope.cancelled_caught
        assert ended.is_set()
        await device.stop()


async def test_work_is_stepped_between_calls_and_sleeps_when_there_is_none() -> None:
    left = 0
    steps = 0

    def work() -> bool:
        nonlocal left, steps
        steps += 1
        left -= 1
        return left > 0

    def more(count: int) -> int:
        nonlocal left
        left = count
        return steps

    device = DeviceThread(work)
    device.start()
    with trio.fail_after(10):
        await device.run(lambda: more(5))
        await trio.sleep(0.05)
        assert await device.run(lambda: steps) == 5
        await device.run(lambda: more(10**9))
        before = await device.run(lambda: steps)
        while await device.run(lambda: steps) < before + 10:
            pass  # calls and steps take turns
        await device.stop()


async def test_stop_does_what_was_asked_before_and_joins_the_thread() -> None:
    device = DeviceThread(idle)
    device.start()
    done: list[int] = []
    with trio.fail_after(10):
        device.post(lambda: done.append(1))
        with trio.CancelScope() as scope:
            scope.cancel()
            await device.stop()
    assert done == [1]
    assert not device._thread.is_alive()


@pytest.mark.parametrize("posted", [False, True])
def test_a_failure_that_nobody_waits_for_ends_the_run_instead_of_hanging(posted: bool) -> None:
    def fail() -> bool:
        raise ZeroDivisionError

    cleaned: list[int] = []

    async def main() -> None:
        device = DeviceThread(idle if posted else fail)
        device.start()
        try:
            if posted:
                device.post(lambda: fail() and None)
            await device.run(lambda: None)
            with trio.fail_after(10):
                await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                cleaned.append(await device.run(lambda: 7))
                await device.stop()

    with pytest.raises(trio.TrioInternalError) as caught:
        trio.run(main)
    cause = caught.value.__cause__
    assert isinstance(cause, BaseExceptionGroup)
    assert cause.subgroup(ZeroDivisionError) is not None
    assert cleaned == [7]


def test_errors_that_refer_to_each_other_in_a_circle_are_stripped_too() -> None:
    one, two = ValueError(), KeyError()
    one.__context__, two.__context__ = two, one
    assert without_locals(one) is one
