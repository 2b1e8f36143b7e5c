"""The manager at its edges: other threads, Ctrl-C at any line, and what meets in one turn.

Real threads take real time: none of these runs under the mock clock.
"""

from __future__ import annotations

import signal
import sys

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import wiredactors as wa
from wiredactors.testing import RecordingBackend

SUM = wa.WiredSumPolicy()
SETTINGS = wa.WiredMemoryConfiguration(admission_ceiling=100)


def open_manager(backend=None):
    return wa.open_manager(SETTINGS, backend or RecordingBackend())


def cache(size=10):
    return SUM.ticket(size, kind="reservation", reclaimable=True)


class Deferred(RecordingBackend):
    """A limit that is written when the test says so, or at once."""

    def __init__(self, *, at_once=False):
        super().__init__()
        self.at_once = at_once
        self.writes_to_do = []

    def write_wired_limit(self, limit, done):
        if self.at_once:
            done(None, None)
        else:
            self.writes_to_do.append(done)

    async def write_all(self):
        while self.writes_to_do:
            self.writes_to_do.pop(0)(None, None)
            await wait_all_tasks_blocked()


@pytest.fixture(autouse=True)
def not_for_ever():
    """What hangs, also beyond all cancelling, fails."""

    def give_up(*_):
        raise AssertionError("it hangs")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


async def serves_on(manager):
    """It still admits and ends, and has nothing else by then."""
    with trio.fail_after(5):
        ticket = SUM.ticket(1)
        await ticket.start()
        await ticket.end()
    return manager.granted_bytes == 0


async def in_another_loop(async_function, *args):
    """What it raises in a trio loop of another thread."""

    async def main():
        with trio.fail_after(5):
            await async_function(*args)

    with pytest.raises((RuntimeError, wa.WiredMemoryError)) as raised:
        await trio.to_thread.run_sync(trio.run, main)
    return raised.value


class TestOtherThreads:
    async def test_an_end_without_waiting_is_handed_over(self):
        async with open_manager() as manager:
            ticket = SUM.ticket(10)
            await ticket.start()
            await wait_all_tasks_blocked()
            await trio.to_thread.run_sync(ticket.end_nowait)
            assert await serves_on(manager)

    async def test_an_end_that_no_loop_can_take_any_more_is_ignored(self):
        ticket = SUM.ticket(10)

        async def main():
            async with open_manager():
                await ticket.start()

        await trio.to_thread.run_sync(trio.run, main)
        ticket.end_nowait()

    async def test_a_touch_and_an_event_are_handed_over(self):
        async with open_manager() as manager, manager.events() as events:
            ticket = cache()
            await ticket.start()
            await wait_all_tasks_blocked()
            await trio.to_thread.run_sync(ticket.touch)
            await trio.to_thread.run_sync(manager.note, wa.EventKind.MODEL_READY)
            kinds = []
            while "model_ready" not in kinds:
                kinds.append((await events.__anext__()).kind)
            assert "ticket_used" in kinds
            await ticket.end()
            assert await serves_on(manager)

    async def test_a_backend_may_say_elsewhere_that_it_is_done(self):
        backend = Deferred()
        async with open_manager(backend) as manager, trio.open_nursery() as nursery:
            ticket = SUM.ticket(10)
            nursery.start_soon(ticket.start)
            await wait_all_tasks_blocked()
            (done,) = backend.writes_to_do
            await trio.to_thread.run_sync(done, None, None)
            with trio.fail_after(5):
                await ticket.start()
            assert manager.snapshot().current_limit == 10
            backend.at_once = True
            await ticket.end()

    @pytest.mark.parametrize("what", ["start", "end", "resize", "wired_limit", "wait", "configure"])
    async def test_whoever_would_wait_there_is_told_where_to_call_it(self, what):
        async with open_manager() as manager:
            running, new = cache(), SUM.ticket(10)
            await running.start()
            await wait_all_tasks_blocked()

            async def hold():
                async with new.wired_limit():
                    pytest.fail("the body ran")

            error = await in_another_loop(
                {
                    "start": new.start,
                    "end": running.end,
                    "resize": lambda: running.resize(20),
                    "wired_limit": hold,
                    "wait": running.wait_for_reclaim,
                    "configure": lambda: manager.update_configuration(shrink_cooldown=0.5),
                }[what]
            )
            assert isinstance(error, RuntimeError)
            assert "trio.from_thread.run_sync" in str(error)
            assert manager.granted_bytes == 10
            await running.end()
            assert await serves_on(manager)

    async def test_events_can_neither_be_opened_nor_awaited_there(self):
        async with open_manager() as manager, manager.events() as events:
            await events.__anext__()

            async def listen():
                async with manager.events():
                    pass

            for function in (listen, events.__anext__):
                error = await in_another_loop(function)
                assert "trio.from_thread.run_sync" in str(error)
            assert await serves_on(manager)


class TestClosing:
    @pytest.mark.parametrize("turn", range(20))  # trio shuffles who runs first
    async def test_it_takes_back_no_answer_that_it_has_given(self, turn):
        outcomes = {}

        async def ask(name, function, *args, task_status=trio.TASK_STATUS_IGNORED):
            task_status.started()
            try:
                outcomes[name] = await function(*args)
            except wa.WiredMemoryError as error:
                outcomes[name] = type(error)

        async with trio.open_nursery() as nursery, open_manager():
            running, waiting, other = SUM.ticket(100), SUM.ticket(5), SUM.ticket(6)
            await running.start()
            nursery.start_soon(ask, "withdrawn", waiting.start)
            nursery.start_soon(ask, "waiting", other.start)
            await wait_all_tasks_blocked()
            waiting.end_nowait()
            await nursery.start(ask, "resized", running.resize, 98)
            await nursery.start(ask, "large", SUM.ticket(101).start)
        assert isinstance(outcomes.pop("resized"), int)
        assert outcomes == {
            "withdrawn": wa.TicketWithdrawn,
            "waiting": wa.ManagerClosed,
            "large": wa.TicketTooLarge,
        }

    async def test_a_withdrawal_in_its_turn_is_told_as_one(self):
        outcomes = []

        async def start(ticket):
            with pytest.raises(wa.WiredMemoryError) as raised:
                await ticket.start()
            outcomes.append(type(raised.value))

        async with trio.open_nursery() as nursery, open_manager():
            await SUM.ticket(100).start()
            waiting = SUM.ticket(5)
            nursery.start_soon(start, waiting)
            await wait_all_tasks_blocked()
            waiting.end_nowait()
        assert outcomes == [wa.TicketWithdrawn]


class TestWaitingForReclaim:
    async def test_it_ends_where_a_granted_start_is_cancelled(self):
        backend = Deferred()
        async with open_manager(backend) as manager, trio.open_nursery() as nursery:
            nursery.start_soon(SUM.ticket(10).start)
            await wait_all_tasks_blocked()
            ticket, scope, answers = cache(5), trio.CancelScope(), []

            async def start():
                with scope:
                    await ticket.start()

            async def wait():
                answers.append(await ticket.wait_for_reclaim())

            nursery.start_soon(start)
            await wait_all_tasks_blocked()
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            assert answers == [False]
            assert manager._asked == {}
            backend.at_once = True
            await backend.write_all()

    async def test_a_cancelled_start_that_was_ignored_ends_nothing(self):
        async with open_manager() as manager, trio.open_nursery() as nursery:
            ticket, answers = cache(), []
            await ticket.start()

            async def wait():
                answers.append(await ticket.wait_for_reclaim())

            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            with trio.move_on_after(0):
                await ticket.start()
            await wait_all_tasks_blocked()
            assert answers == []
            with trio.move_on_after(0.01):
                await SUM.ticket(95).start()
            assert answers == [True]
            await ticket.end()
            assert manager._asked == {}

    async def test_the_next_life_of_a_ticket_is_nothing_to_the_owner_of_the_first(self):
        async with open_manager() as manager, trio.open_nursery() as nursery:
            ticket, answers = cache(), []
            await ticket.start()

            async def wait():
                answers.append(await ticket.wait_for_reclaim())

            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            ticket.end_nowait()
            await ticket.start()
            await wait_all_tasks_blocked()
            assert answers == [False]
            await ticket.end()
            assert await serves_on(manager)

    async def test_one_that_is_asked_and_ends_in_the_same_turn_has_ended(self):
        async with open_manager(), trio.open_nursery() as nursery:
            ticket, answers = cache(), []
            await ticket.start()

            async def wait():
                answers.append(await ticket.wait_for_reclaim())

            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            first = SUM.ticket(95).start()
            nursery.start_soon(lambda: first)  # its command goes in first or last
            ticket.end_nowait()
            nursery.start_soon(ticket.start)
            await wait_all_tasks_blocked()
            assert answers == [False]
            nursery.cancel_scope.cancel()

    async def test_after_a_crash_of_the_manager_nobody_asks(self):
        class Flaky(wa.WiredMemoryPolicy):
            def limit(self, baseline, sizes):
                raise SystemExit

        ticket, answers = cache(), []

        async def wait():
            answers.append(await ticket.wait_for_reclaim())
            answers.append(await ticket.wait_for_reclaim())

        async def crash(nursery):
            async with open_manager():
                await ticket.start()
                nursery.start_soon(wait)
                await wait_all_tasks_blocked()
                await Flaky().ticket(1).start()

        async with trio.open_nursery() as nursery:
            with pytest.raises(BaseExceptionGroup) as raised:
                await crash(nursery)
            assert raised.group_contains(SystemExit)
            await wait_all_tasks_blocked()
            assert answers == [False, False]


class TestSizes:
    @pytest.mark.parametrize("turn", range(8))  # trio shuffles who runs first
    async def test_the_size_of_one_that_has_ended_holds_for_a_start_in_the_same_turn(self, turn):
        async with open_manager() as manager:
            ticket, order = SUM.ticket(10), []
            await ticket.start()
            await ticket.end()

            async def resize():
                order.append("resize")
                await ticket.resize(50)

            async def start():
                order.append("start")
                await ticket.start()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(resize)
                nursery.start_soon(start)
            assert ticket.size == manager.granted_bytes == 50, order

    async def test_the_last_of_two_resizes_in_one_turn_counts(self):
        async with open_manager() as manager:
            ticket, sizes = SUM.ticket(10), []
            await ticket.start()
            await ticket.end()

            async def resize(size):
                sizes.append(size)
                await ticket.resize(size)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(resize, 20)
                nursery.start_soon(resize, 30)
            assert ticket.size == sizes[-1]
            await ticket.start()
            assert manager.granted_bytes == sizes[-1]
            await ticket.end()

    async def test_growth_that_came_at_last_holds_also_where_the_ticket_ended_by_then(self):
        backend = Deferred(at_once=True)
        async with open_manager(backend), trio.open_nursery() as nursery:
            ticket, other = SUM.ticket(10), SUM.ticket(60)
            await ticket.start()
            await other.start()
            nursery.start_soon(ticket.resize, 50)
            await wait_all_tasks_blocked()
            assert ticket.size == 10
            other.end_nowait()
            ticket.end_nowait()
            await wait_all_tasks_blocked()
            assert ticket.size == 50


async def test_a_backend_that_raises_after_it_was_done_has_had_its_say():
    class Confused(Deferred):
        def write_wired_limit(self, limit, done):
            done(None, None)
            raise RuntimeError("after all")

    kinds = []
    async with open_manager(Confused()) as manager, manager.events() as events:
        ticket = SUM.ticket(10)
        assert await ticket.start() == 10
        await ticket.end()
        await wait_all_tasks_blocked()
        while True:
            try:
                kinds.append(events.receive_nowait().kind.value)
            except trio.WouldBlock:
                break
    assert kinds.count("limit_applied") == 2
    assert "limit_apply_failed" not in kinds


async def test_a_backend_that_is_done_after_it_raised_comes_too_late():
    class Confused(Deferred):
        def write_wired_limit(self, limit, done):
            super().write_wired_limit(limit, done)
            raise RuntimeError("no")

    backend = Confused()
    async with open_manager(backend) as manager:
        ticket = SUM.ticket(10)
        await ticket.start()
        await backend.write_all()
        assert manager.snapshot().current_limit != 10
        await ticket.end()


class Interruption:
    """A Ctrl-C at the `number`th line of the package that runs from now on."""

    def __init__(self, number):
        self.left = number

    def __enter__(self):
        self._previous = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_):
        sys.settrace(self._previous)

    def _trace(self, frame, event, _):
        if "/wiredactors/" not in frame.f_code.co_filename or self.left == 0:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self._trace


def test_wired_limit_leaves_nothing_behind_at_whatever_line_a_ctrl_c_comes():
    async def main(number):
        async with open_manager() as manager:
            await wait_all_tasks_blocked()
            try:
                with Interruption(number) as interruption:
                    async with SUM.ticket(10).wired_limit():
                        pass
                    await wait_all_tasks_blocked()
            except KeyboardInterrupt:
                pass
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
            assert manager.granted_bytes == 0, number
            return interruption.left

    number, left = 0, 0
    while left == 0:
        number += 1
        left = trio.run(main, number)
    assert number > 20


def test_a_ctrl_c_amid_the_body_of_wired_limit_comes_at_once_and_ends_it():
    async def hold():
        async with SUM.ticket(10).wired_limit():
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the body went on")

    async def main():
        async with open_manager() as manager:
            with pytest.raises(KeyboardInterrupt):
                await hold()
            assert await serves_on(manager)

    trio.run(main)


async def test_a_start_that_is_refused_is_not_ended():
    async with open_manager() as manager:
        ticket = SUM.ticket(10)
        await ticket.start()
        with pytest.raises(wa.TicketInUse):
            async with ticket.wired_limit():
                pytest.fail("the body ran")
        await wait_all_tasks_blocked()
        assert manager.granted_bytes == 10
        await ticket.end()
