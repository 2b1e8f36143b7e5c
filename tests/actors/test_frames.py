"""An error that is raised keeps the frames it went through no longer than it lives itself."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
from trio.testing import MockClock

import wiredactors as wa
from wiredactors.testing import ModelledEngine, RecordingBackend

SUM = wa.WiredSumPolicy()


class Array:
    """Stands for an array of a caller."""


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def kept(what: Callable[[], Awaitable[object]]) -> bool:
    """Whether an array of a frame that `what()` fails in lives on when the error has gone."""
    array: weakref.ref[Array] | None = None

    async def hold() -> None:
        nonlocal array
        mine = Array()
        array = weakref.ref(mine)
        await what()

    with trio.fail_after(1000):
        try:
            await hold()
        except (ValueError, OSError, wa.WiredMemoryError):
            pass
        else:
            pytest.fail("nothing was raised")
    assert array is not None
    return array() is not None


async def test_a_refused_ticket_lets_them_go(no_collection: None) -> None:
    configuration = wa.WiredMemoryConfiguration(admission_ceiling=100)
    async with wa.open_manager(configuration, RecordingBackend()):
        assert not await kept(SUM.ticket(200).start)


@pytest.mark.parametrize(
    "fault",
    ["body", "refusal", "unread refusal", "row", "waited row", "load", "unload"],
)
async def test_a_failure_in_a_runtime_lets_them_go(
    fault: str, autojump_clock: MockClock, no_collection: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ModelledEngine()

    async def broken(name: str) -> None:
        raise OSError("the device is gone")

    async with wa.open_runtime(engine=engine, backend=RecordingBackend()) as runtime:
        model = await runtime.load("model")

        async def fail() -> None:
            ticket = wa.WiredSumPolicy(cap=1).ticket(100) if "refusal" in fault else None
            if fault == "load":
                await runtime.load("nowhere")
            if fault == "unload":
                with monkeypatch.context() as patch:
                    patch.setattr(engine, "unload", broken)
                    await runtime.unload("model")
            async with model.generate("hello", max_tokens=5, wired_memory_ticket=ticket) as job:
                if fault == "body":
                    raise ValueError("mine")
                if "row" in fault:
                    engine.fail_row(job.id)
                if fault == "waited row":
                    await job.wait()
                if fault != "unread refusal":
                    async for _ in job:
                        pass

        assert not await kept(fail)
