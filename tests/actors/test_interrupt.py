"""Ctrl-C, wherever it lands, goes to the main task, and every ticket ends."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import wiredactors as wa
from wiredactors.actors.charge import Charge
from wiredactors.testing import ModelledEngine, RecordingBackend

SUM = wa.WiredSumPolicy()


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_one_amid_a_command_of_the_manager_does_not_keep_the_baseline_from_coming_back() -> None:
    class Backend(RecordingBackend):
        def set_wired_limit(self, limit: int) -> int:
            if limit == 600:
                interrupt()
            return super().set_wired_limit(limit)

    backend = Backend(limit=7)

    async def main() -> None:
        async with wa.open_manager(backend=backend):
            await SUM.ticket(100).start()
            await SUM.ticket(493).start()
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert backend.limit == 7


def test_one_amid_the_start_of_a_job_leaves_none_that_never_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = ModelledEngine()
    charge = Charge.of

    def interrupted(*arguments: Any) -> Charge:
        interrupt()
        return charge(*arguments)

    async def main() -> None:
        with trio.fail_after(1000):
            async with wa.open_runtime(engine=engine, backend=RecordingBackend()) as runtime:
                model = await runtime.load("model")
                monkeypatch.setattr(Charge, "of", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    await model.start_generation("hello", max_tokens=4).wait()
                [job] = model.jobs
                await runtime.unload("model")
                assert (await job.wait()).finish_reason == "length"

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_one_that_ends_a_wait_for_admission_leaves_no_waiter() -> None:
    async def main() -> None:
        configuration = wa.WiredMemoryConfiguration(admission_ceiling=1000)
        async with wa.open_manager(configuration, RecordingBackend()) as manager:
            first, second = SUM.ticket(800), SUM.ticket(500)
            await first.start()

            @trio.lowlevel.enable_ki_protection
            async def later() -> None:
                await wait_all_tasks_blocked()
                interrupt()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(later)
                with pytest.raises(KeyboardInterrupt):
                    await second.start()
                assert manager.snapshot().waiters == ()
            await first.end()
            assert manager.snapshot().tickets == ()

    trio.run(main)


@pytest.mark.parametrize("held", [False, True], ids=["block", "handle"])
@pytest.mark.parametrize(
    "kind", ["job_admitted", "job_first_token", "model_ready", "model_loading"]
)
def test_one_amid_a_job_or_a_model_ends_all(
    kind: str, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = wa.WiredMemoryManager.note
    engine, backend = ModelledEngine(), RecordingBackend()
    managers = []

    def interrupted(self: wa.WiredMemoryManager, event: wa.EventKind, **fields: object) -> None:
        if event == kind:
            interrupt()
        note(self, event, **fields)

    monkeypatch.setattr(wa.WiredMemoryManager, "note", interrupted)

    async def main() -> None:
        with trio.fail_after(1000):
            async with wa.open_runtime(engine=engine, backend=backend) as runtime:
                managers.append(runtime.manager)
                model = await runtime.load("model")
                if held:
                    await model.start_generation("hello", max_tokens=4).wait()
                async with model.generate("hello", max_tokens=4) as job:
                    async for _ in job:
                        pass

    with pytest.raises(KeyboardInterrupt):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert managers[0].snapshot().tickets == ()
    assert backend.limit == 0
    assert not engine.is_open
    assert engine.held_bytes == 0
