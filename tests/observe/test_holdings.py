"""Who holds what, out of events alone; against a real ledger."""

import trio

import wiredactors as wa
from wiredactors.memory.events import EventKind, WiredMemoryEvent
from wiredactors.observe.holdings import Holdings


def take(holdings, kind, ticket, size, ticket_kind="active"):
    event = WiredMemoryEvent(
        kind=kind, sequence=0, timestamp=0.0, ticket_id=ticket, size=size, ticket_kind=ticket_kind
    )
    return holdings.take(event)


def test_starts_resizes_and_ends_are_followed():
    holdings = Holdings()
    take(holdings, EventKind.TICKET_STARTED, "w", 10, "reservation")
    take(holdings, EventKind.TICKET_STARTED, "a", 5)
    take(holdings, EventKind.TICKET_RESIZED, "w", 7)
    assert (holdings.total, holdings.reserved, holdings.of("a")) == (12, 7, 5)
    take(holdings, EventKind.TICKET_ENDED, "w", 7)
    assert (holdings.total, holdings.reserved, holdings.of("w")) == (5, 0, 0)


def test_a_ticket_that_waits_again_holds_nothing_whatever_it_asks_for():
    holdings = Holdings()
    take(holdings, EventKind.TICKET_STARTED, "a", 5)
    take(holdings, EventKind.TICKET_ENDED, "a", 5)
    assert not take(holdings, EventKind.TICKET_RESIZED, "a", 50)
    assert not take(holdings, EventKind.ADMISSION_WAIT, "a", 50)
    assert holdings.total == 0


async def test_a_late_one_agrees_with_the_ledger(autojump_clock):
    policy = wa.WiredSumPolicy(cap=1000)
    async with wa.open_manager() as manager:
        await policy.ticket(100, kind="reservation").start()
        early = policy.ticket(50)
        await early.start()
        holdings = Holdings()
        async with manager.events() as events:
            await policy.ticket(25).start()
            await early.resize(70)
            await trio.sleep(1)
            try:
                while True:
                    holdings.take(events.receive_nowait())
            except trio.WouldBlock:
                pass
        assert holdings.total == manager.granted_bytes == 195
        assert holdings.reserved == 100
