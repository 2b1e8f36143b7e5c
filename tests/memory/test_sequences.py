"""Sequences of starts, ends and time, through the pure ledger and through the live manager.

Each says in `data/ledger.json` what it shows. A step is an action (`do`), perhaps a wait after it,
and what is to be seen then. Time stands still but for the waits.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import wiredactors as wa
from wiredactors.memory.configuration import WiredMemoryConfiguration, ceiling_of

SEQUENCES = json.loads((Path(__file__).parent / "data" / "ledger.json").read_text())
OWN_KINDS = {
    "admission_refused",
    "foreign_limit_write",
    "outside_pressure",
    "policy_failed",
    "pressure",
    "configuration_updated",
    "snapshot",
}


class Double(wa.WiredMemoryPolicy):
    id = "double"

    def limit(self, baseline, active_sizes):
        return baseline + 2 * sum(active_sizes)


class TwoAtATime(wa.WiredMemoryPolicy):
    id = "two"

    def limit(self, baseline, active_sizes):
        return baseline + sum(active_sizes)

    def can_admit(self, baseline, active_sizes, new_size):
        return len(active_sizes) < 2


def policies_of(sequence):
    own = {"Double": Double, "TwoAtATime": TwoAtATime}
    return {
        name: (own.get(kind) or getattr(wa, kind))(**arguments)
        for name, (kind, arguments) in sequence["policies"].items()
    }


@attrs.define
class Seen:
    """What a step brought about."""

    admitted: dict[str, int] = attrs.field(factory=dict)  # by this step
    withdrawn: set[str] = attrs.field(factory=set)
    end_answer: int | None = None
    raised: Exception | None = None
    kinds: list[str] = attrs.field(factory=list)
    limit: int = 0
    running: set[str] = attrs.field(factory=set)
    waiting: set[str] = attrs.field(factory=set)
    writes: list[int] = attrs.field(factory=list)


def check(step: dict[str, Any], seen: Seen) -> None:
    expected = dict(step.get("expect", {}))
    kinds = [kind for kind in seen.kinds if kind not in OWN_KINDS]
    action, name = step["do"][:2] if "do" in step else (None, None)
    raises = expected.pop("raises", None)
    assert (raises is None) == (seen.raised is None), seen.raised
    if raises is not None:
        assert type(seen.raised).__name__ == raises
    for attribute, value in expected.pop("with", {}).items():
        assert getattr(seen.raised, attribute) == value
    waits = expected.pop("waits", False)
    if action == "start" and raises is None:
        # One that runs already is answered all the same.
        assert (name in seen.waiting) == waits
        assert (name in seen.admitted) != waits
        if "limit" in expected and "then_wait" not in step and not waits:
            assert seen.admitted[name] == expected["limit"]
    else:
        assert set(seen.admitted) == set(expected.get("admits", ()))
    if action == "end" and "limit" in expected and not {"admits"} & set(expected):
        assert "then_wait" in step or seen.end_answer == expected["limit"]
    expected.pop("admits", None)
    assert seen.withdrawn == set(expected.pop("withdraws", ()))
    for what, value in expected.items():
        match what:
            case "limit":
                assert seen.limit == value
            case "events":
                assert kinds == value
            case "last_event":
                assert kinds[-1] == value
            case "some_events":
                assert set(value) <= set(kinds)
            case "no_events":
                assert not set(value) & set(kinds)
            case "writes":
                assert len(seen.writes) == value
            case _:
                pytest.fail(f"unknown expectation {what}")


def named(sequences):
    return [pytest.param(sequence, id=sequence["name"]) for sequence in sequences]


# -- the pure ledger


def is_inert(sequence):
    """The manager alone keeps such tickets from the ledger."""
    policy_only = sequence["configuration"].get("policy_only_when_unsupported", True)
    return not policy_only and not sequence.get("device", {}).get("supported", True)


@pytest.mark.parametrize("sequence", named(s for s in SEQUENCES if not is_inert(s)))
def test_through_the_pure_ledger(driver, sequence):
    device = sequence.get("device", {})
    supported = device.get("supported", True)
    configuration = WiredMemoryConfiguration(**sequence["configuration"])
    ceiling = ceiling_of(
        configuration,
        supported=supported,
        recommended_bytes=device.get("working_set"),
        total_memory=1 << 50,
    )
    d = driver(
        ceiling=ceiling,
        writes=supported,
        refuses_over=device.get("refuses_over"),
        previous=None,
        **sequence["configuration"],
    )
    policies = policies_of(sequence)
    starts: dict[str, list[Any]] = {}
    seen_before: set[int] = set()
    for step in sequence["steps"]:
        seen = Seen()
        d.take_events()
        reply = None
        match step.get("do"):
            case ["create", _, policy, size, *more]:
                with pytest.raises(ValueError, match="negative") as raised:
                    policies[policy].ticket(size, *more)
                seen.raised = raised.value
            case ["start", name, policy, size, *more]:
                kind, priority = [*more, *["active", 0][len(more) :]]
                reply = d.start(name, size, policies[policy], kind=kind, priority=priority)
                if step.get("expect", {}).get("raises") is None:
                    starts.setdefault(name, []).append(reply)
            case ["end", name]:
                reply = d.end(name)
                seen.end_answer = reply.answer
            case ["cancel", name]:
                d.cancel(starts[name][-1])
            case ["configure", changes]:
                reply = d.configure(ceiling=ceiling, **changes)
        if reply is not None and reply.error is not None:
            seen.raised = reply.error
        d.advance(step.get("then_wait", 0.0))
        for name, replies in starts.items():
            for start in replies:
                if start.answered and id(start) not in seen_before:
                    seen_before.add(id(start))
                    if start.answer is not None:
                        seen.admitted[name] = start.answer
                    elif isinstance(start.error, wa.TicketWithdrawn):
                        seen.withdrawn.add(name)
        state = d.ledger.snapshot()
        seen.kinds = d.kinds
        seen.limit = state.baseline if state.current_limit is None else state.current_limit
        seen.running, seen.waiting = set(d.running), set(d.waiting)
        seen.writes = d.tried
        check(step, seen)
    assert d.running == d.waiting == []


# -- the live manager


class Backend:
    def __init__(self, device):
        self.supported = device.get("supported", True)
        self.working_set = device.get("working_set")
        self.refuses_over = device.get("refuses_over")
        self.tried: list[int] = []
        self.writes: list[int] = []

    def recommended_working_set_bytes(self):
        return self.working_set

    def set_wired_limit(self, limit):
        self.tried.append(limit)
        if self.refuses_over is not None and limit > self.refuses_over:
            raise ValueError(f"{limit} is more than {self.refuses_over}")
        self.writes.append(limit)


@pytest.mark.parametrize("sequence", named(SEQUENCES))
async def test_through_the_live_manager(autojump_clock, sequence):
    backend = Backend(sequence.get("device", {}))
    configuration = wa.WiredMemoryConfiguration(**sequence["configuration"])
    with trio.fail_after(10**6):
        async with wa.open_manager(configuration, backend) as manager:
            await play(sequence, manager, backend)
    assert backend.writes[-1:] in ([], [configuration.baseline_override or 0])


async def play(sequence, manager, backend):
    policies = policies_of(sequence)
    tickets: dict[str, wa.WiredMemoryTicket] = {}
    scopes: dict[str, trio.CancelScope] = {}
    kinds: list[str] = []
    seen = Seen()

    async def listen() -> None:
        async with manager.events() as events:
            async for event in events:
                kinds.append(event.kind.value)  # noqa: PERF401 - it is read meanwhile

    async def run_start(name: str) -> None:
        with scopes[name]:
            try:
                seen.admitted[name] = await tickets[name].start()
            except wa.TicketWithdrawn:
                seen.withdrawn.add(name)
            except wa.WiredMemoryError as error:
                seen.raised = error

    async def asked(call: Callable[[], Awaitable[int | None]]) -> int | None:
        try:
            return await call()
        except (wa.WiredMemoryError, ValueError) as error:
            seen.raised = error
            return None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await wait_all_tasks_blocked()
        for step in sequence["steps"]:
            seen = Seen()
            kinds.clear()
            match step.get("do"):
                case ["create", _, policy, size, *more]:
                    with pytest.raises(ValueError, match="negative") as raised:
                        policies[policy].ticket(size, *more)
                    seen.raised = raised.value
                case ["start", name, policy, size, *more]:
                    kind, priority = [*more, *["active", 0][len(more) :]]
                    if name not in tickets:
                        tickets[name] = policies[policy].ticket(
                            size, kind, manager=manager, priority=priority
                        )
                    scopes[name] = trio.CancelScope()
                    nursery.start_soon(run_start, name)
                case ["end", name]:
                    seen.end_answer = await asked(tickets[name].end)
                case ["cancel", name]:
                    scopes[name].cancel()
                case ["configure", changes]:
                    await asked(lambda c=changes: manager.update_configuration(**c))
            await wait_all_tasks_blocked()
            await trio.sleep(step.get("then_wait", 0.0))
            await wait_all_tasks_blocked()
            state = manager.snapshot()
            ids = {ticket.id: name for name, ticket in tickets.items()}
            seen.kinds = list(kinds)
            seen.limit = state.baseline if state.current_limit is None else state.current_limit
            seen.running = {ids[ticket.ticket_id] for ticket in state.tickets}
            seen.waiting = {ids[waiter.ticket_id] for waiter in state.waiters}
            seen.writes = backend.tried
            check(step, seen)
        nursery.cancel_scope.cancel()
