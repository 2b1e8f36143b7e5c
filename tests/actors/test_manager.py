"""The live manager under the mock clock, with a recording backend. Sizes are small numbers."""

from __future__ import annotations

import contextlib
import random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import wiredactors as wa
from wiredactors.memory import journal
from wiredactors.memory import messages as m
from wiredactors.memory.ledger import Ledger
from wiredactors.testing import RecordingBackend

SUM100 = wa.WiredSumPolicy(cap=100)


pytestmark = pytest.mark.usefixtures("bounded")


class Backend:
    """A wired limit as Metal keeps it: it returns the previous one."""

    supported = True

    def __init__(self, previous=0, working_set=1000):
        self.limit = previous
        self.working_set = working_set
        self.writes: list[int] = []
        self.refused = 0
        self._failures = 0

    def recommended_working_set_bytes(self):
        return self.working_set

    def fail_next(self, count):
        self._failures = count

    def set_wired_limit(self, limit):
        if self._failures:
            self._failures -= 1
            self.refused += 1
            raise ValueError("as the test has asked")
        self.writes.append(limit)
        previous, self.limit = self.limit, limit
        return previous


class Deferred(Backend):
    """One that sets the limit some time after it was asked."""

    def __init__(self, seconds=1.0, previous=0):
        super().__init__(previous)
        self.seconds = seconds
        self.nursery: trio.Nursery | None = None

    def write_wired_limit(self, limit, done):
        async def later():
            await trio.sleep(self.seconds)
            try:
                previous = self.set_wired_limit(limit)
            except ValueError as error:
                done(None, error)
            else:
                done(previous, None)
            done(None, RuntimeError("a second word does not count"))

        self.nursery.start_soon(later)


async def started(nursery, ticket):
    """Start it in a task of its own; the dictionary says what comes of it."""
    outcome = {}

    async def run():
        try:
            outcome["limit"] = await ticket.start()
        except wa.WiredMemoryError as error:
            outcome["error"] = error

    nursery.start_soon(run)
    await wait_all_tasks_blocked()
    return outcome


class TestTickets:
    async def test_start_and_end_return_the_limit(self):
        backend = Backend(previous=7)
        async with wa.open_manager(backend=backend) as manager:
            ticket = SUM100.ticket(60)
            assert await ticket.start() == 67
            assert manager.snapshot().current_limit == 67
            assert await ticket.end() == 7
        assert backend.writes == [60, 67, 7]

    async def test_the_body_of_wired_limit_gets_the_limit_and_its_error_leaves_bare(self):
        backend = Backend()
        with pytest.raises(KeyError):  # noqa: PT012  # what raises is the block as a whole
            async with wa.open_manager(backend=backend), SUM100.ticket(60).wired_limit() as limit:
                assert limit == 60
                raise KeyError("mine")
        assert backend.limit == 0

    async def test_wired_limit_of_a_ticket_in_use_raises(self):
        async with wa.open_manager(backend=Backend()):
            ticket = SUM100.ticket(60)
            async with ticket.wired_limit():
                with pytest.raises(wa.TicketInUse):
                    async with ticket.wired_limit():
                        pytest.fail("the body ran")
                assert await ticket.start() == 60  # ignored, and it still runs

    async def test_the_guarded_body_of_a_cancelled_waiter_never_runs(self, autojump_clock):
        backend = Backend()
        async with wa.open_manager(backend=backend) as manager:
            await SUM100.ticket(100).start()
            with trio.move_on_after(5) as scope:
                async with SUM100.ticket(50).wired_limit():
                    pytest.fail("the body ran")
            assert scope.cancelled_caught
            await wait_all_tasks_blocked()
            assert manager.snapshot().waiters == ()

    async def test_a_start_in_a_cancelled_scope_holds_nothing(self):
        async with wa.open_manager(backend=Backend()) as manager:
            with trio.CancelScope() as scope:
                scope.cancel()
                await SUM100.ticket(50).start()
            await wait_all_tasks_blocked()
            assert manager.snapshot().tickets == ()

    @pytest.mark.parametrize("seed", range(20))
    async def test_cancelled_in_the_turn_in_which_it_is_answered_it_holds_nothing(self, seed):
        # trio runs the two ready tasks in either order: in one of them the answer comes to a
        # start that has been cancelled already.
        async with wa.open_manager(backend=Backend()) as manager, trio.open_nursery() as nursery:
            first = SUM100.ticket(100)
            await first.start()
            scope = trio.CancelScope()
            outcome = []

            async def wait():
                with scope:
                    async with SUM100.ticket(50).wired_limit():
                        outcome.append("ran")
                        await trio.sleep_forever()

            async def cancel():
                scope.cancel()

            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            first.end_nowait()
            nursery.start_soon(cancel)
            await wait_all_tasks_blocked()
            assert scope.cancelled_caught
            assert manager.snapshot().tickets == ()
            assert manager.snapshot().waiters == ()

    async def test_an_end_in_a_cancelled_scope_takes_effect(self):
        async with wa.open_manager(backend=Backend()) as manager:
            one, other = SUM100.ticket(10), SUM100.ticket(20)
            await one.start()
            await other.start()
            with trio.CancelScope() as scope:
                scope.cancel()
                other.end_nowait()
                await one.end()
            await wait_all_tasks_blocked()
            assert manager.snapshot().tickets == ()

    async def test_ending_a_waiting_ticket_withdraws_it(self, nursery):
        async with wa.open_manager(backend=Backend()):
            await SUM100.ticket(100).start()
            waiting = SUM100.ticket(50)
            outcome = await started(nursery, waiting)
            assert await waiting.end() == 100
            await wait_all_tasks_blocked()
            assert isinstance(outcome["error"], wa.TicketWithdrawn)

    async def test_resizing_changes_the_ticket_when_the_ledger_does(self, nursery):
        async with wa.open_manager(backend=Backend()) as manager:
            ticket, other = SUM100.ticket(40), SUM100.ticket(50)
            assert await ticket.resize(45) == 0
            assert ticket.size == 45
            await ticket.start()
            await other.start()
            grown = []

            async def grow():
                grown.append(await ticket.resize(60))

            nursery.start_soon(grow)
            await wait_all_tasks_blocked()
            assert ticket.size == 45
            await other.end()
            await wait_all_tasks_blocked()
            assert grown == [95]  # the shrink from 95 to 60 waits for its cooldown
            assert ticket.size == 60
            assert manager.explain(ticket.id).state == "running"

    async def test_a_cancelled_resize_keeps_the_size(self, autojump_clock):
        async with wa.open_manager(backend=Backend()):
            ticket, other = SUM100.ticket(40), SUM100.ticket(50)
            await ticket.start()
            await other.start()
            with trio.move_on_after(1):
                await ticket.resize(60)
            await wait_all_tasks_blocked()
            assert ticket.size == 40
            await other.end()
            assert ticket.size == 40

    async def test_a_refused_resize_keeps_the_size(self):
        async with wa.open_manager(backend=Backend()):
            ticket = SUM100.ticket(40)
            await ticket.start()
            with pytest.raises(wa.TicketTooLarge):
                await ticket.resize(101)
            assert ticket.size == 40

    async def test_explain_says_what_would_let_a_waiter_in(self, autojump_clock, nursery):
        async with wa.open_manager(backend=Backend()) as manager:
            await SUM100.ticket(70).start()
            first, second = SUM100.ticket(50), SUM100.ticket(60)
            await started(nursery, first)
            await started(nursery, second)
            await trio.sleep(3)
            why = manager.explain(second.id)
            assert (why.state, why.waited, why.size) == ("waiting", 3.0, 60)
            assert why.behind == (first.id,)
            assert (why.blocked_by, why.available, why.missing) == ("group", 30, 30)
            assert "WiredSumPolicy" in why.reason
            assert manager.explain("nobody").state == "unknown"

    async def test_explain_takes_a_ticket_as_well_as_its_id(self):
        async with wa.open_manager(backend=Backend()) as manager:
            ticket = SUM100.ticket(70)
            await ticket.start()
            assert manager.explain(ticket) == manager.explain(ticket.id)
            for neither in (None, 5, SUM100):
                with pytest.raises(TypeError, match="explain takes a ticket or its id, not "):
                    manager.explain(neither)


class TestTurns:
    """What comes together is settled once, up to 200 commands."""

    #: Every change of the limit would be written.
    EAGER = wa.WiredMemoryConfiguration(shrink_threshold_ratio=0.0, shrink_cooldown=0.0)

    async def test_a_hundred_starts_make_one_write(self):
        backend = RecordingBackend()
        async with wa.open_manager(self.EAGER, backend):
            async with trio.open_nursery() as starters:
                for _ in range(100):
                    starters.start_soon(wa.WiredSumPolicy().ticket(1).start)
            assert len(backend.calls) == 1
            assert backend.limit == 100

    async def test_more_than_a_turn_can_take_make_one_write_a_turn(self):
        backend = RecordingBackend()
        tickets = [wa.WiredSumPolicy().ticket(1) for _ in range(450)]
        async with wa.open_manager(self.EAGER, backend):
            async with trio.open_nursery() as starters:
                for ticket in tickets:
                    starters.start_soon(ticket.start)
            assert backend.writes == [200, 400, 450]
            backend.calls.clear()
            async with trio.open_nursery() as enders:
                for ticket in tickets:
                    enders.start_soon(ticket.end)
            assert backend.writes == [250, 50, 0]

    @pytest.mark.parametrize("full", [False, True])
    async def test_start_cancel_and_end_of_one_ticket_in_one_turn(
        self, monkeypatch, nursery, shuffle, full
    ):
        turns = [[]]
        receive, settle = Ledger.receive, Ledger.settle

        def received(self, command, now):
            turns[-1].append(type(command))
            return receive(self, command, now)

        def settled(self, now):
            turns.append([])
            return settle(self, now)

        monkeypatch.setattr(Ledger, "receive", received)
        monkeypatch.setattr(Ledger, "settle", settled)
        backend = Backend(previous=7)
        ended = 0

        async def start(ticket, scope):
            with scope, contextlib.suppress(wa.TicketWithdrawn):
                async with ticket.wired_limit():
                    await trio.sleep_forever()

        async def cancel(scope):
            scope.cancel()

        async def end(ticket, later):
            nonlocal ended
            for _ in range(later):
                await trio.lowlevel.checkpoint()
            await ticket.end()
            ended += 1

        async with wa.open_manager(backend=backend) as manager:
            first = SUM100.ticket(80)
            if full:
                await first.start()
            before = manager.snapshot()
            for seed in range(90):
                shuffle(seed)
                ticket, scope = SUM100.ticket(30), trio.CancelScope()
                nursery.start_soon(start, ticket, scope)
                nursery.start_soon(cancel, scope)
                nursery.start_soon(end, ticket, seed % 3)
                await wait_all_tasks_blocked()
                assert ended == seed + 1
                after = manager.snapshot()
                assert (after.tickets, after.waiters) == (before.tickets, ())
                assert manager._open_requests == set()
                assert backend.limit == (87 if full else 7)
        orders = {tuple(turn) for turn in turns if len(turn) == 3}
        assert orders >= {
            (m.Start, m.CancelStart, m.End),
            (m.Start, m.End, m.CancelStart),
            (m.End, m.Start, m.CancelStart),
        }


class TestClosing:
    async def test_waiters_are_refused_and_what_runs_is_ended(self, nursery):
        backend = Backend()
        async with wa.open_manager(backend=backend) as manager:
            running, waiting = SUM100.ticket(100), SUM100.ticket(50)
            await running.start()
            outcome = await started(nursery, waiting)
        await wait_all_tasks_blocked()
        assert isinstance(outcome["error"], wa.ManagerClosed)
        assert backend.limit == 0
        assert manager.snapshot().tickets == manager.snapshot().waiters == ()

    async def test_afterwards_a_start_raises_and_an_end_or_a_resize_does_not(self):
        async with wa.open_manager(backend=Backend()) as manager:
            ticket = SUM100.ticket(100, manager=manager)
            await ticket.start()
        assert await ticket.end() == 0
        ticket.end_nowait()
        assert await ticket.resize(20) == 0
        assert ticket.size == 20
        with pytest.raises(wa.ManagerClosed):
            await ticket.start()
        with pytest.raises(wa.ManagerClosed):
            await manager.update_configuration(shrink_cooldown=0.0)

    async def test_an_outer_cancellation_loses_no_end(self, autojump_clock):
        backend = Backend()
        with trio.move_on_after(5):
            async with (
                wa.open_manager(backend=backend),
                SUM100.ticket(60).wired_limit(),
                trio.open_nursery() as nursery,
            ):
                for _ in range(4):
                    nursery.start_soon(self.work)
                await trio.sleep_forever()
        assert backend.limit == 0

    async def work(self):
        async with SUM100.ticket(10).wired_limit():
            await trio.sleep_forever()

    async def test_a_deferred_write_that_is_under_way_is_waited_for(self, autojump_clock, nursery):
        backend = Deferred()
        backend.nursery = nursery
        async with wa.open_manager(backend=backend):
            outcome = await started(nursery, SUM100.ticket(60))
        await wait_all_tasks_blocked()
        assert backend.writes == [60, 0]
        assert isinstance(outcome["error"], wa.ManagerClosed)

    @pytest.mark.parametrize("command", [m.Start, m.End])
    async def test_a_crash_of_the_manager_ends_everything_without_a_hang(
        self, monkeypatch, command, autojump_clock
    ):
        receive = Ledger.receive

        def crash(self, given, now):
            if isinstance(given, command) and given.ticket_id == bad.id:
                raise ZeroDivisionError
            return receive(self, given, now)

        monkeypatch.setattr(Ledger, "receive", crash)
        ended = []
        with trio.fail_after(60), pytest.raises(BaseExceptionGroup) as raised:  # noqa: PT012  # what raises is the block as a whole
            async with wa.open_manager(backend=Backend()) as manager:
                bad, good = SUM100.ticket(1), SUM100.ticket(2)
                await good.start()

                async def listen():
                    async with manager.events() as events:
                        async for _ in events:
                            pass
                    ended.append("events")

                async def end_in_a_shield():
                    try:
                        await trio.sleep_forever()
                    finally:
                        with trio.CancelScope(shield=True):
                            ended.append(await good.end())

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(listen)
                    nursery.start_soon(end_in_a_shield)
                    await wait_all_tasks_blocked()
                    if command is m.End:
                        await bad.end()
                    await bad.start()
        assert raised.group_contains(ZeroDivisionError)
        assert 0 in ended

    async def test_whoever_asks_while_it_crashes_is_refused(self, monkeypatch, nursery):
        monkeypatch.setattr(Ledger, "settle", lambda self, now: 1 / 0)
        errors = []

        async def outside():
            with trio.CancelScope(shield=True), pytest.raises(wa.ManagerClosed) as refused:
                await SUM100.ticket(5).start()
            errors.append(refused.value)

        with pytest.raises(ExceptionGroup):  # noqa: PT012  # what raises is the block as a whole
            async with wa.open_manager(backend=Backend()):
                nursery.start_soon(outside)
                await trio.sleep_forever()
        await wait_all_tasks_blocked()
        assert len(errors) == 1


class TestBackends:
    async def test_a_deferred_one_is_waited_for(self, autojump_clock, nursery):
        backend = Deferred(seconds=2.0)
        backend.nursery = nursery
        async with wa.open_manager(backend=backend):
            began = trio.current_time()
            assert await SUM100.ticket(60).start() == 60
            assert trio.current_time() - began == 2.0

    async def test_of_a_deferred_one_many_commands_meanwhile_make_one_write(
        self, autojump_clock, nursery
    ):
        backend = Deferred()
        backend.nursery = nursery
        async with wa.open_manager(backend=backend):
            async with trio.open_nursery() as starters:
                for _ in range(9):
                    starters.start_soon(SUM100.ticket(10).start)
                    await wait_all_tasks_blocked()
            assert backend.writes == [10, 90]

    async def test_a_deferred_one_that_raises_at_once_is_a_refusal(self):
        class Broken(Backend):
            def write_wired_limit(self, limit, done):
                raise RuntimeError("the device thread has gone")

        async with wa.open_manager(backend=Broken()):
            assert await SUM100.ticket(60).start() == 0

    async def test_one_that_raises_refuses_nobody(self, autojump_clock):
        class Refusing(Backend):
            def set_wired_limit(self, limit):
                if limit > 50:
                    raise ValueError("too much")
                return super().set_wired_limit(limit)

        backend = Refusing()
        async with wa.open_manager(backend=backend) as manager:
            await SUM100.ticket(40).start()
            assert await SUM100.ticket(20).start() == 40
            assert len(manager.snapshot().tickets) == 2
        assert backend.writes == [40, 0]

    @pytest.mark.parametrize("previous", [None, -1, 2.5, "7", True])
    async def test_one_that_returns_no_size_leaves_the_baseline_at_zero(self, previous):
        backend = Backend(previous=previous)
        async with wa.open_manager(backend=backend) as manager:
            assert await SUM100.ticket(60).start() == 60
            assert manager.snapshot().baseline == 0

    async def test_what_it_says_of_itself_is_read_once(self, autojump_clock):
        class Counting(Backend):
            reads = 0

            @property
            def supported(self):
                self.reads += 1
                return True

        backend = Counting()
        async with wa.open_manager(backend=backend):
            for _ in range(3):
                async with SUM100.ticket(60).wired_limit():
                    await trio.sleep(5)
        assert backend.reads == 1

    async def test_one_whose_working_set_is_no_size_is_an_error_at_opening(self):
        with pytest.raises(TypeError, match="recommended working set"):
            async with wa.open_manager(backend=Backend(working_set=1e9)):
                pytest.fail("it opened")

    async def test_one_that_is_false_is_used_all_the_same(self):
        class Empty(Backend):
            def __len__(self):
                return 0

        backend = Empty()
        async with wa.open_manager(backend=backend):
            await SUM100.ticket(60).start()
        assert backend.writes == [60, 0]

    async def test_the_held_back_shrink_happens_by_itself(self, autojump_clock):
        backend = Backend()
        async with wa.open_manager(backend=backend):
            small, large = SUM100.ticket(10), SUM100.ticket(90)
            await small.start()
            await large.start()
            assert await large.end() == 100
            await trio.sleep(0.99)
            assert backend.limit == 100
            await trio.sleep(0.02)
            assert backend.limit == 10


class TestInert:
    """Off the wired limit with `policy_only_when_unsupported=False`."""

    def open(self, **more):
        backend = Backend()
        backend.supported = False
        return wa.open_manager(
            wa.WiredMemoryConfiguration(policy_only_when_unsupported=False, **more), backend
        )

    async def test_a_ticket_is_a_no_op_that_answers_zero(self):
        async with self.open(baseline_override=500) as manager:
            ticket = SUM100.ticket(10**9)
            assert await ticket.start() == 0
            assert manager.snapshot().tickets == ()
            assert await ticket.resize(5) == 0
            async with SUM100.ticket(5).wired_limit() as limit:
                assert limit == 0
            assert await ticket.end() == 0
            ticket.end_nowait()
            async with manager.events() as events:
                assert [event async for event in events] == []

    async def test_other_settings_can_change_and_this_one_cannot(self):
        async with self.open() as manager:
            await manager.update_configuration(shrink_cooldown=9.0)
            assert manager.configuration.shrink_cooldown == 9.0
            with pytest.raises(ValueError, match="policy_only_when_unsupported"):
                await manager.update_configuration(policy_only_when_unsupported=True)


class TestConfiguration:
    async def test_wrong_names_and_values_are_errors_and_change_nothing(self):
        async with wa.open_manager(backend=Backend()) as manager:
            before = manager.configuration
            with pytest.raises(TypeError):
                await manager.update_configuration(no_such_field=1)
            for wrong in (
                {"shrink_threshold_ratio": 1.5},
                {"shrink_cooldown": -1.0},
                {"wired_mode": "sometimes"},
                {"overtake_count": None},
                {"event_buffer": 10},
            ):
                with pytest.raises(ValueError, match=next(iter(wrong))):
                    await manager.update_configuration(**wrong)
            assert manager.configuration == before

    async def test_while_busy_it_is_refused(self):
        async with wa.open_manager(backend=Backend()) as manager:
            async with SUM100.ticket(5).wired_limit():
                with pytest.raises(wa.ManagerBusy):
                    await manager.update_configuration(shrink_cooldown=0.0)
            await manager.update_configuration(shrink_cooldown=0.0)
            assert manager.configuration.shrink_cooldown == 0.0

    async def test_two_updates_at_once_both_count(self):
        async with wa.open_manager(backend=Backend()) as manager:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: manager.update_configuration(shrink_cooldown=9.0))
                nursery.start_soon(lambda: manager.update_configuration(aging_seconds=9.0))
            assert manager.configuration.shrink_cooldown == 9.0
            assert manager.configuration.aging_seconds == 9.0

    async def test_a_new_ceiling_bounds_what_comes_next(self):
        async with wa.open_manager(backend=Backend()) as manager:
            assert manager.snapshot().ceiling == 1000
            await manager.update_configuration(admission_ceiling=50)
            with pytest.raises(wa.TicketTooLarge):
                await SUM100.ticket(51).start()


class TestEvents:
    async def test_a_snapshot_comes_first_and_no_number_is_left_out(self):
        async with wa.open_manager(backend=Backend()) as manager:
            running = SUM100.ticket(60)
            await running.start()
            async with manager.events() as events:
                first = await anext(events)
                assert first.kind == "snapshot"
                assert [t.ticket_id for t in first.snapshot.tickets] == [running.id]
                await running.end()
                last = first.sequence
                with contextlib.suppress(trio.WouldBlock):
                    while True:
                        event = events.receive_nowait()
                        assert event.sequence == last + 1
                        last = event.sequence
                assert event.kind == "baseline_restored"
                assert last == manager.snapshot().sequence

    async def test_they_are_numbered_though_nobody_listens(self):
        async with wa.open_manager(backend=Backend()) as manager:
            async with SUM100.ticket(60).wired_limit():
                pass
            await wait_all_tasks_blocked()
            assert manager.snapshot().sequence == 8

    async def test_the_stream_ends_when_the_manager_closes(self, nursery):
        kinds = []

        async def listen():
            async with manager.events() as events:
                async for event in events:
                    kinds.append(event.kind)  # noqa: PERF401  # they are read while they come
            kinds.append("end")

        async with wa.open_manager(backend=Backend()) as manager:
            nursery.start_soon(listen)
            await SUM100.ticket(60).start()
        await wait_all_tasks_blocked()
        assert kinds[-2:] == ["baseline_restored", "end"]
        async with manager.events() as events:
            assert [event async for event in events] == []

    async def test_one_that_reads_every_thousand_events_misses_none(self):
        configuration = wa.WiredMemoryConfiguration(event_buffer=1000)
        async with (
            wa.open_manager(configuration, Backend()) as manager,
            manager.events() as events,
        ):
            await anext(events)
            for _ in range(5):
                for number in range(1000):
                    manager.note(wa.EventKind.JOB_FIRST_TOKEN, job=f"j{number}")
                await wait_all_tasks_blocked()
                for number in range(1000):
                    assert events.receive_nowait().job == f"j{number}"

    async def test_one_end_that_lets_thousands_in_overruns_no_reader(self, autojump_clock):
        configuration = wa.WiredMemoryConfiguration(event_buffer=4000, admission_ceiling=5000)

        def read_all(events):
            with contextlib.suppress(trio.WouldBlock):
                while True:
                    event = events.receive_nowait()
                    assert event.missed is None
                    yield event

        async with wa.open_manager(configuration, Backend()) as manager, manager.events() as events:
            large = wa.WiredMaxPolicy().ticket(5000)
            await large.start()
            async with trio.open_nursery() as nursery:
                for _ in range(3000):
                    nursery.start_soon(wa.WiredMaxPolicy().ticket(1).start)
                await wait_all_tasks_blocked()
                assert sum(event.kind == "admission_wait" for event in read_all(events)) == 3000
                await large.end()
            kinds = [event.kind for event in read_all(events)]
            assert kinds.count("ticket_started") == 3000
            assert len(kinds) > 6000

    async def test_a_reader_that_is_always_ready_misses_none_in_a_burst(self, autojump_clock):
        sequences = []

        async def read(task_status):
            async with manager.events() as events:
                task_status.started()
                async for event in events:
                    assert event.missed is None
                    sequences.append(event.sequence)

        async def hold(ticket):
            async with ticket.wired_limit():
                await trio.sleep(1)

        async with (
            trio.open_nursery() as readers,
            wa.open_manager(backend=Backend(working_set=10_000)) as manager,
        ):
            await readers.start(read)
            async with trio.open_nursery() as nursery:
                for _ in range(2500):
                    nursery.start_soon(hold, wa.WiredSumPolicy().ticket(1))
        assert sequences == list(range(manager.snapshot().sequence + 1))

    async def test_debug_events_off_ends_every_stream_at_once(self, nursery):
        configuration = wa.WiredMemoryConfiguration(debug_events=False)
        async with wa.open_manager(configuration, Backend()) as manager:
            async with manager.events() as events:
                assert [event async for event in events] == []
            await SUM100.ticket(60).start()

    async def test_with_debug_events_off_none_is_made_and_all_are_numbered(self, monkeypatch):
        configuration = wa.WiredMemoryConfiguration(debug_events=False)
        monkeypatch.setattr(journal, "EventDraft", None)
        async with wa.open_manager(configuration, Backend()) as manager, manager.events():
            for number in range(1, 4):
                async with SUM100.ticket(60).wired_limit():
                    assert not manager._ledger._journal.listening
                assert manager.snapshot().sequence == 8 * number

    async def test_debug_events_can_be_switched_off_and_on(self, monkeypatch):
        async with wa.open_manager(backend=Backend()) as manager:
            async with manager.events() as events:
                await manager.update_configuration(debug_events=False)
                assert [e.kind async for e in events] == ["snapshot", "configuration_updated"]
                with monkeypatch.context() as without:
                    without.setattr(journal, "EventDraft", None)
                    async with SUM100.ticket(60).wired_limit():
                        pass
                assert manager.snapshot().sequence == 1 + 8
            await manager.update_configuration(debug_events=True)
            async with manager.events() as events:
                first = await anext(events)
                assert (first.kind, first.sequence) == ("snapshot", 10)
                async with SUM100.ticket(60).wired_limit():
                    pass
                following = [events.receive_nowait().sequence for _ in range(8)]
                assert following == list(range(11, 19))
                assert manager.snapshot().sequence == 18

    async def test_a_reader_that_is_cancelled_leaves_nothing_behind(self, nursery):
        read = []

        async def listen(scope):
            with scope:
                async with manager.events() as events:
                    async for event in events:
                        read.append(event.kind)  # noqa: PERF401  # they are read while they come

        async with wa.open_manager(backend=Backend()) as manager, manager.events() as other:
            await anext(other)
            scope = trio.CancelScope()
            nursery.start_soon(listen, scope)
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            assert manager._broadcast._streams == [other]
            manager.note(wa.EventKind.JOB_FIRST_TOKEN, job="j")
            assert (await anext(other)).job == "j"
            assert read == ["snapshot"]

    async def test_a_read_that_is_cancelled_costs_its_stream_nothing(self, autojump_clock):
        async with wa.open_manager(backend=Backend()) as manager, manager.events() as events:
            await anext(events)
            with trio.move_on_after(1) as scope:
                await anext(events)
            assert scope.cancelled_caught
            for job in ("one", "two"):
                manager.note(wa.EventKind.JOB_FIRST_TOKEN, job=job)
                assert (await anext(events)).job == job

    async def test_two_tasks_cannot_wait_on_one_stream_and_the_first_reads_on(self, nursery):
        jobs = []

        async def read():
            jobs.append((await anext(events)).job)

        async with wa.open_manager(backend=Backend()) as manager, manager.events() as events:
            await anext(events)
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await anext(events)
            manager.note(wa.EventKind.JOB_FIRST_TOKEN, job="j")
            await wait_all_tasks_blocked()
            assert jobs == ["j"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [Backend, Deferred])
async def test_thousands_of_tasks_that_come_and_go_at_random_leave_nothing(
    autojump_clock, nursery, shuffle, seed, make
):
    shuffle(seed)
    rng = random.Random(seed)
    backend = make(previous=7)
    backend.nursery = nursery
    policies = [SUM100, wa.WiredMaxPolicy(), wa.WiredBudgetPolicy(base_bytes=10, cap=90, id="b")]
    held = 0
    asked = []

    async def hold(ticket, seconds):
        nonlocal held
        async with ticket.wired_limit():
            held += ticket.size
            assert held <= 150
            try:
                await trio.sleep(seconds)
            finally:
                held -= ticket.size

    async def keep_a_cache():
        nonlocal held
        ticket = SUM100.ticket(rng.randrange(40), "reservation", reclaimable=True)
        with trio.move_on_after(rng.uniform(1, 9)):
            await ticket.start()
            held += ticket.size
            try:
                while not await ticket.wait_for_reclaim():
                    await trio.sleep_forever()
                asked.append(ticket.id)
                with trio.CancelScope(shield=True):  # freeing takes its time
                    await trio.sleep(rng.uniform(0, 1))
            finally:
                held -= ticket.size
        await ticket.end()

    async def worker():
        await trio.sleep(rng.uniform(0, 200))
        if rng.random() < 0.2:
            await keep_a_cache()
            return
        kind = rng.choice(["active", "active", "reservation"])
        ticket = rng.choice(policies).ticket(
            rng.randrange(40), kind, priority=rng.randrange(3), pinned=False
        )
        with contextlib.suppress(wa.TicketWithdrawn, wa.TicketTooLarge):
            match rng.randrange(4):
                case 0:
                    await hold(ticket, rng.uniform(0, 2))
                case 1:
                    with trio.move_on_after(rng.uniform(0, 3)):
                        await hold(ticket, rng.uniform(0, 3))
                case 2:
                    async with trio.open_nursery() as own:
                        own.start_soon(end_soon, ticket, rng.uniform(0, 2))
                        with contextlib.suppress(wa.TicketWithdrawn):
                            await ticket.start()
                case 3:
                    with trio.move_on_after(rng.uniform(1, 4)):
                        await ticket.start()
                        with contextlib.suppress(wa.TicketTooLarge):
                            await ticket.resize(rng.randrange(60))
                        await trio.sleep(rng.uniform(0, 2))
                    await ticket.end()

    async def end_soon(ticket, seconds):
        await trio.sleep(seconds)
        await ticket.end()

    async def refuse_now_and_then():
        while True:
            await trio.sleep(rng.uniform(0, 10))
            backend.fail_next(rng.randrange(1, 4))

    configuration = wa.WiredMemoryConfiguration(admission_ceiling=150, overtake_seconds=10.0)
    async with wa.open_manager(configuration, backend) as manager:
        async with trio.open_nursery() as refusing:
            refusing.start_soon(refuse_now_and_then)
            async with trio.open_nursery() as workers:
                for _ in range(2000):
                    workers.start_soon(worker)
            refusing.cancel_scope.cancel()
        await trio.sleep(200)  # a refused write is tried again
        assert asked
        assert backend.refused > 10
        assert manager._asked == {}
        assert manager._open_requests == set()
        state = manager.snapshot()
        assert state.tickets == state.waiters == ()
        assert state.baseline == state.current_limit == backend.limit == 7
    assert backend.limit == 7


async def test_the_limit_has_fallen_when_wired_limit_is_left(autojump_clock):
    async with wa.open_manager(backend=Backend()) as manager:
        async with SUM100.ticket(60).wired_limit():
            pass
        assert manager.snapshot().tickets == ()
        assert manager.snapshot().current_limit == 0


async def test_a_cancelled_start_has_left_the_queue_when_it_raises(autojump_clock):
    async with wa.open_manager(backend=Backend()) as manager:
        await SUM100.ticket(60).start()
        with trio.move_on_after(1):
            await SUM100.ticket(60).start()
        assert manager.snapshot().waiters == ()


async def test_a_refusal_is_not_lost_over_a_cancellation(autojump_clock):
    async with wa.open_manager(backend=Backend()) as manager:
        with trio.CancelScope() as scope:
            scope.cancel()
            with pytest.raises(wa.TicketTooLarge):
                await SUM100.ticket(101).start()
        assert manager.snapshot().waiters == ()


async def test_a_cancelled_resize_leaves_the_size_that_the_ledger_holds(autojump_clock):
    async with wa.open_manager(backend=Backend()) as manager:
        ticket, other = SUM100.ticket(40), SUM100.ticket(40)
        await ticket.start()
        await other.start()
        with trio.move_on_after(1):
            await ticket.resize(70)
        assert ticket.size == 40
        assert [held.size for held in manager.snapshot().tickets] == [40, 40]
