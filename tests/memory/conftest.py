"""A driver for the pure ledger: it carries effects out as the manager does, and keeps record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from wiredactors.memory import messages as m
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.events import EventKind, WiredMemoryEvent
from wiredactors.memory.ledger import Ledger
from wiredactors.memory.outside import MemoryReading
from wiredactors.memory.policies import WiredMemoryPolicy, WiredSumPolicy
from wiredactors.memory.tickets import WiredMemoryTicket


@attrs.define(eq=False)
class Reply:
    """A request of one ticket, and what came back."""

    ticket_id: str
    answer: int | None = None
    error: Exception | None = None

    @property
    def answered(self) -> bool:
        return self.answer is not None or self.error is not None


class Driver:
    """A ledger with a recording backend. Each call is one turn, unless inside `together`."""

    def __init__(
        self,
        *,
        ceiling: int | None = None,
        writes: bool = True,
        previous: int | None = 0,
        refuses_over: int | None = None,
        deferred: bool = False,
        **configuration: Any,
    ):
        self.ledger = Ledger(
            WiredMemoryConfiguration(**configuration), ceiling=ceiling, writes=writes
        )
        self.now = 0.0
        self.device = previous  # None: a backend that does not tell
        self.refuses_over = refuses_over
        self.deferred = deferred
        self.events: list[WiredMemoryEvent] = []
        self.tried: list[int] = []
        self.written: list[int] = []
        self.under_way: list[int] = []
        self.asked: list[str] = []  # to give their reservations up
        self._together = False

    # -- commands

    def start(
        self,
        ticket_id: str,
        size: int,
        policy: WiredMemoryPolicy | None = None,
        kind: str = "active",
        exclusive: bool = False,
        requires: tuple[str, ...] = (),
        since: float | None = None,
        **more: Any,
    ) -> Reply:
        reply = Reply(ticket_id)
        policy = WiredSumPolicy() if policy is None else policy
        ticket = WiredMemoryTicket(size, policy, kind, id=ticket_id, **more)
        ticket.requires = requires
        self.send(m.Start(ticket, reply, exclusive, since))
        return reply

    def reserve(self, ticket_id: str, size: int, policy: WiredMemoryPolicy | None = None, **more):
        return self.start(ticket_id, size, policy, kind="reservation", **more)

    def end(self, ticket_id: str) -> Reply:
        reply = Reply(ticket_id)
        self.send(m.End(ticket_id, reply))
        return reply

    def resize(self, ticket_id: str, size: int) -> Reply:
        reply = Reply(ticket_id)
        self.send(m.Resize(ticket_id, size, reply))
        return reply

    def cancel(self, start: Reply) -> None:
        self.send(m.CancelStart(start.ticket_id, start))

    def cancel_resize(self, resize: Reply) -> None:
        self.send(m.CancelResize(resize.ticket_id, resize))

    def touch(self, ticket_id: str) -> None:
        self.send(m.Use(ticket_id))

    def use(self, ticket_id: str, *, in_use: bool) -> None:
        self.send(m.Use(ticket_id, in_use))

    def pin(self, ticket_id: str, pinned: bool) -> None:
        self.send(m.Pin(ticket_id, pinned))

    def observe(self, available: int, footprint: int = 0, total: int = 1000) -> None:
        self.send(m.Observe(MemoryReading(total, available, footprint)))

    def configure(self, ceiling: int | None = None, **changes: Any) -> Reply:
        reply = Reply("configuration")
        configuration = attrs.evolve(self.ledger.configuration, **changes)
        self.send(m.Configure(configuration, ceiling, reply))
        return reply

    def close(self) -> None:
        self.send(m.Close())

    def send(self, command: m.Command) -> None:
        self._carry_out(self.ledger.receive(command, self.now))
        if not self._together:
            self.settle()

    def settle(self) -> None:
        self._carry_out(self.ledger.settle(self.now))

    def together(self, *calls: Callable[[], Any]) -> list[Any]:
        """Several commands in one turn."""
        self._together = True
        replies = [call() for call in calls]
        self._together = False
        self.settle()
        return replies

    def advance(self, seconds: float) -> None:
        """Let time pass, waking the ledger at its deadlines."""
        until = self.now + seconds
        while (deadline := self.ledger.deadline) is not None and deadline <= until:
            assert deadline > self.now, "a deadline that has passed is not one"
            self.now = deadline
            self.settle()
        self.now = until

    def outcome(self, error: str | None = None) -> None:
        """The deferred write that is under way has its outcome."""
        limit = self.under_way.pop(0)
        if error is None:
            self.send(self._take(limit))
        else:
            self.send(m.LimitRefused(limit, error))

    # -- effects

    def _carry_out(self, effects: list[m.Effect]) -> None:
        for effect in effects:
            match effect:
                case WiredMemoryEvent():
                    self.events.append(effect)
                case m.WriteLimit(limit):
                    self._write(limit)
                case m.Answer(replies, limit):
                    assert isinstance(limit, int)
                    for reply in replies:
                        assert not reply.answered, f"{reply} is answered twice"
                        reply.answer = limit
                case m.Reclaim(ticket_id):
                    self.asked.append(ticket_id)
                case m.Refuse(reply, error):
                    assert not reply.answered, f"{reply} is answered twice"
                    reply.error = error

    def _write(self, limit: int) -> None:
        self.tried.append(limit)
        if self.deferred:
            self.under_way.append(limit)
            assert len(self.under_way) == 1, "a second write before the first has its outcome"
            return
        if self.refuses_over is not None and limit > self.refuses_over:
            outcome: m.Command = m.LimitRefused(limit, f"ValueError: {limit} is too much")
        else:
            outcome = self._take(limit)
        self._carry_out(self.ledger.receive(outcome, self.now))
        self.settle()

    def _take(self, limit: int) -> m.LimitWritten:
        previous = self.device
        if previous is not None:
            self.device = limit
        self.written.append(limit)
        return m.LimitWritten(limit, previous)

    # -- looking

    @property
    def kinds(self) -> list[str]:
        return [str(event.kind) for event in self.events]

    def take_events(self) -> list[WiredMemoryEvent]:
        taken, self.events = self.events, []
        return taken

    def last(self, kind: str) -> WiredMemoryEvent:
        """The last event of `kind`."""
        return [event for event in self.events if event.kind == EventKind(kind)][-1]

    @property
    def limit(self) -> int | None:
        return self.ledger.snapshot().current_limit

    @property
    def running(self) -> list[str]:
        return [ticket.ticket_id for ticket in self.ledger.snapshot().tickets]

    @property
    def waiting(self) -> list[str]:
        return [ticket.ticket_id for ticket in self.ledger.snapshot().waiters]


@pytest.fixture
def driver() -> type[Driver]:
    """The class, so that each test says how its ledger is made."""
    return Driver
