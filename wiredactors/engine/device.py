"""The device thread: the one OS thread of the process that calls MLX.

Streams and lazy arrays belong to the thread that made them, two threads that generate at once
crash the process on CUDA, and MLX's memory calls hold the GIL while they wait for other threads'
streams. So everything goes through here: calls come in by a queue, and between them the thread
does the steps of whoever has work. Answers go back by `TrioToken.run_sync_soon`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import trio

from wiredactors.engine.imports import MLXNotInstalled, import_mlx

T = TypeVar("T")

_running: set[threading.Thread] = set()


def is_taken() -> bool:
    """Whether MLX is another thread's: a device thread runs, and it is not the calling one."""
    return bool(_running - {threading.current_thread()})


class _Call(Generic[T]):
    """A function to run on the device thread, and what became of it."""

    def __init__(self, function: Callable[[], T]):
        self._function = function
        self._value: T | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:  # noqa: ASYNC103  # raised again on the trio thread
            self._error = without_locals(error)

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # run() has set it


def without_locals(error: BaseException) -> BaseException:
    """The same, its tracebacks and its causes' left to read, but with their variables let go.

    It goes to the trio thread and lives as long as somebody keeps it; the arrays and the model in
    those frames would live as long. The frame that caught it, which still runs, is left out; it and
    those that have called it are held all the same, so they keep nothing when they end.
    """
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors:
        each = errors.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            for frame, _ in traceback.walk_tb(each.__traceback__):
                _clear(frame)
            errors += [each.__cause__, each.__context__]
    return error


def _clear(frame: types.FrameType | None) -> None:
    """Let the variables of a frame go, and of those that had called it and have ended since."""
    while frame is not None:
        with contextlib.suppress(RuntimeError):  # it still runs
            frame.clear()
        frame = frame.f_back


def _raise(error: BaseException) -> None:
    raise error


class DeviceThread:
    """Runs functions, and the steps of `work` between them, on one thread of its own.

    `work` does one step and says whether there was one to do. Neither it nor what is posted may
    raise: whoever waits for it would wait for ever. So that ends the whole trio run, loudly; the
    thread goes on without `work`, for those who clean up.
    """

    def __init__(self, work: Callable[[], bool]):
        self._work = work
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="wiredactors-device", daemon=True)
        self._trio_token: trio.lowlevel.TrioToken | None = None
        self._ended = trio.Event()

    def start(self) -> None:
        """Start the thread; call it on the trio thread."""
        self._trio_token = trio.lowlevel.current_trio_token()
        self._thread.start()
        _running.add(self._thread)

    def post(self, function: Callable[[], None]) -> None:
        """Run `function` soon, in the order of the calls. It must not raise."""
        self._calls.put(function)

    async def run(self, function: Callable[[], T], *, abort: Callable[[], None] | None = None) -> T:
        """Run `function` on the device thread; returns what it returns, raises what it raises.

        It is not abandoned when the caller is cancelled, since its work holds memory: `abort` is
        told, and the cancellation goes on when the function has ended.
        """
        call = _Call(function)
        done = trio.Event()

        def run() -> None:
            call.run()
            self.deliver(done.set)

        self._calls.put(run)
        try:
            await done.wait()
        except trio.Cancelled:
            if abort is not None:
                abort()
            with trio.CancelScope(shield=True):
                await done.wait()
            raise
        return call.result()

    def deliver(self, function: Callable[..., object], *arguments: Any) -> None:
        """From the device thread: call `function` on the trio thread, in order."""
        assert self._trio_token is not None
        with contextlib.suppress(trio.RunFinishedError):  # nobody is left to hear it
            self._trio_token.run_sync_soon(function, *arguments)

    async def stop(self) -> None:
        """End the thread when it has done what was asked so far. Not cancellable."""
        self._calls.put(None)
        with trio.CancelScope(shield=True):
            await self._ended.wait()
        self._thread.join()
        _running.discard(self._thread)

    def _do(self, function: Callable[[], bool | None]) -> bool:
        try:
            return bool(function())
        except BaseException as error:  # noqa: ASYNC103  # raised again on the trio thread
            self._work = lambda: False
            self.deliver(_raise, without_locals(error))
            return False

    def _run(self) -> None:
        busy = False
        try:
            while True:
                try:
                    call = self._calls.get(block=not busy)
                except queue.Empty:
                    busy = self._do(self._work)
                    continue
                if call is None:
                    return
                self._do(call)
                busy = True
        finally:
            try:
                # Without it the process may abort at exit ("terminate called without an active
                # exception"), so it must be the last that the thread does with MLX.
                with contextlib.suppress(MLXNotInstalled):  # a call has said so already
                    import_mlx().clear_streams()
            finally:
                self.deliver(self._ended.set)
