"""Models that come and go, for tests: a house that they live in, and the way into each state.

A load takes 4 s and an unload 3 s. The weights are 100 MiB, the workspace is 10 MiB, and a row of
up to 256 tokens holds 10 MiB; a prompt is read in a second, and a token takes a second.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import wiredactors as wa
from tests.actors.modelled import MODEL as QUICK
from tests.actors.modelled import PROMPT
from wiredactors.scheduling.lifecycle import ModelState
from wiredactors.testing import ModelledEngine, ModelledModel, RecordingBackend

M = wa.MIB
ALL = 1000 * M
LOAD, UNLOAD = 4.0, 3.0
MODEL = attrs.evolve(QUICK, load_seconds=LOAD, unload_seconds=UNLOAD)
WEIGHTS = MODEL.weight_bytes
BROKEN = wa.ModelLoadError("the file is broken")
STATES = [str(state) for state in ModelState]

#: What lies in the ledger while one model is there and nothing runs.
LIVES = {"weights/m": WEIGHTS, "workspace": 10 * M}


class House:
    """A runtime under a ceiling, and what became of its models."""

    def __init__(
        self,
        ceiling: int = ALL,
        *,
        drain_seconds: float = 0.0,
        backend: RecordingBackend | None = None,
        configuration: dict[str, Any] | None = None,
        **models: ModelledModel,
    ):
        self.engine = ModelledEngine({"m": MODEL, "other": MODEL, **models})
        self.backend = RecordingBackend() if backend is None else backend
        self._limit_before = self.backend.limit
        self.drain_seconds = drain_seconds
        self.configuration = wa.WiredMemoryConfiguration(
            admission_ceiling=ceiling, **configuration or {}
        )
        self._events: list[wa.WiredMemoryEvent] = []
        self._begun = (0, 0.0)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[wa.Runtime]:
        """However it is left, nothing is left: no ticket, no byte, and the limit is as before."""
        async with AsyncExitStack() as streams:
            try:
                async with wa.open_runtime(
                    configuration=self.configuration,
                    backend=self.backend,
                    engine=self.engine,
                    drain_seconds=self.drain_seconds,
                ) as self.runtime:
                    events = self.runtime.manager.events()
                    self._stream = await streams.enter_async_context(events)
                    self._watch_the_end()
                    yield self.runtime
            finally:
                assert self._at_the_end == (set(), 0)
                assert self.backend.limit == self._limit_before
                assert self.engine.held_bytes == 0
                assert dict(self.runtime.models) == {}
                self.read()
                self._check_memory()

    def _watch_the_end(self) -> None:
        """The manager ends what lives when it closes; nothing of a model should."""
        manager: Any = self.runtime.manager
        close = manager._close

        def look() -> None:
            tickets = {*self.tickets, *self.waiters}
            others = {id for id in tickets if id.startswith("ticket-")}  # a test's own
            self._at_the_end = (tickets - others, self.engine.held_bytes)
            close()

        manager._close = look

    def _check_memory(self) -> None:
        """At no moment was there more than what was granted: no ticket ended before its bytes."""
        for record in self.engine.records:
            assert record.held_bytes <= record.granted_bytes or record.what == "close"
            assert record.charged_bytes <= record.granted_bytes

    @property
    def tickets(self) -> dict[str, int]:
        tickets = self.runtime.manager.snapshot().tickets
        return {ticket.ticket_id: ticket.size for ticket in tickets}

    @property
    def waiters(self) -> dict[str, int]:
        waiters = self.runtime.manager.snapshot().waiters
        return {waiter.ticket_id: waiter.size for waiter in waiters}

    def pinned(self, ticket_id: str = "weights/m") -> bool:
        tickets = self.runtime.manager.snapshot().tickets
        return {ticket.ticket_id: ticket.pinned for ticket in tickets}[ticket_id]

    # -- what was told

    def read(self) -> list[wa.WiredMemoryEvent]:
        while True:
            try:
                event = self._stream.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                return self._events
            if event.kind != "snapshot":
                self._events.append(event)

    def begin(self) -> None:
        """What is told from now on counts, and time from now on."""
        self._begun = (len(self.read()), trio.current_time())

    @property
    def now(self) -> float:
        return round(trio.current_time() - self._begun[1], 6)

    def life(self, model: str = "m") -> list[str]:
        """What was told of a model, but for the progress of its loads."""
        index, start = self._begun
        return [
            told(event, start)
            for event in self.read()[index:]
            if event.model == model and event.job is None and event.kind.startswith("model_")
            if event.kind != "model_progress"
        ]

    def jobs(self, *kinds: str) -> list[str | None]:
        """The jobs of whom that was told, in order."""
        return [event.job for event in self.read() if event.kind in kinds]


def told(event: wa.WiredMemoryEvent, start: float) -> str:
    """`3 unloaded pressure`"""
    kind = event.kind.removeprefix("model_")
    words = [f"{event.timestamp - start:g}", kind]
    if kind in ("draining", "unloaded"):
        words.append(event.details["reason"])
    if kind == "failed":
        retry_at = event.details.get("retry_at")
        words.append("cancelled" if retry_at is None else f"{retry_at - start:g}")
        assert (event.error == "cancelled") is (retry_at is None)
    return " ".join(words)


@asynccontextmanager
async def held(size: int) -> AsyncIterator[None]:
    async with wa.WiredSumPolicy().ticket(size).wired_limit():
        yield


async def hold(size: int, seconds: float) -> None:
    async with held(size):
        await trio.sleep(seconds)


async def refused(call: Callable[[], Awaitable[object]]) -> None:
    """Somebody who may be told that there is no model."""
    with suppress(wa.ModelNotLoaded, wa.ManagerClosed):
        await call()


# -- every state: how a model gets there, and how long it is then until it is ready (again)

READY_IN = {
    "absent": LOAD,
    "queued": 5 + LOAD,
    "loading": LOAD - 1.5,
    "ready": 0.0,
    "draining": 6 + UNLOAD + LOAD,  # its job has its prompt and five tokens before it
    "unloading": UNLOAD - 1 + LOAD,
    "failed": 1 + LOAD,
}


async def bring(
    house: House, nursery: trio.Nursery, state: str, *, room: int = ALL
) -> tuple[wa.Model, trio.CancelScope]:
    """A model that is in this state now, and will be for a while; `room` is all that there is.

    What comes with it is the scope of the only one who waits for it, where somebody must.
    """
    waiting = trio.CancelScope()
    if state == "failed":
        house.engine.sources["m"] = attrs.evolve(MODEL, load_errors=(BROKEN,))
    model = house.runtime.add("m")

    async def wait() -> None:
        with waiting:
            await refused(model.load)

    if state == "queued":
        nursery.start_soon(hold, room, 5)
        await wait_all_tasks_blocked()
    if state in ("queued", "loading"):
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
    if state == "loading":
        await trio.sleep(1.5)
    if state in ("ready", "draining", "unloading"):
        await model.load()
    if state == "draining":
        model.start_generation(PROMPT, 5)
    if state in ("draining", "unloading"):
        nursery.start_soon(house.runtime.unload, "m")
    if state == "unloading":
        await trio.sleep(1)
    if state == "failed":
        with pytest.raises(wa.ModelLoadError, match="the file is broken"):
            await model.load()
    await wait_all_tasks_blocked()
    assert model.state == state
    house.begin()
    return model, waiting


# -- requests that want the model


async def by_start(house: House, model: wa.Model) -> str:
    return (await model.start_generation(PROMPT, 2).wait()).text


async def by_generate(house: House, model: wa.Model) -> str:
    async with model.generate(PROMPT, 2) as job:
        return "".join([chunk.text async for chunk in job])


async def by_load(house: House, model: wa.Model) -> str:
    await model.load()
    return "loaded"


async def by_load_of_the_runtime(house: House, model: wa.Model) -> str:
    assert await house.runtime.load("m") is model
    return "loaded"


async def by_tune(house: House, model: wa.Model) -> str:
    return f"{(await model.tune(100)).measured}"


#: By name: the call, how long it takes once the model is there, and its answer.
WANTS: dict[str, tuple[Callable[[House, wa.Model], Awaitable[str]], float, str]] = {
    "start_generation": (by_start, 1 + 2, MODEL.answer(PROMPT, 2)),
    "generate": (by_generate, 1 + 2, MODEL.answer(PROMPT, 2)),
    "load": (by_load, 0, "loaded"),
    "runtime.load": (by_load_of_the_runtime, 0, "loaded"),
    "tune": (by_tune, 1, "True"),
}
