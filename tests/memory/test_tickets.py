"""A ticket says what it asks for, and only calls its manager."""

from __future__ import annotations

import contextlib

import pytest

import wiredactors as wa

POLICY = wa.WiredSumPolicy()


class Manager:
    """Records what a ticket asks of it."""

    def __init__(self):
        self.calls = []

    async def start_ticket(self, ticket, *, exclusive=False, since=None):
        self.calls.append("exclusive start" if exclusive else "start")
        return 5

    async def end_ticket(self, ticket):
        self.calls.append("end")
        return 0

    def end_ticket_nowait(self, ticket):
        self.calls.append("end_nowait")

    def hold_ticket(self, ticket):
        self.calls.append("hold")
        return contextlib.nullcontext(5)

    async def resize_ticket(self, ticket, size):
        self.calls.append(f"resize {size}")
        return size


def test_its_defaults():
    ticket = POLICY.ticket(7)
    assert (ticket.size, ticket.kind, ticket.priority) == (7, "active", 0)
    assert ticket.policy is POLICY
    assert (ticket.pinned, ticket.reclaimable, ticket.requires) == (False, False, ())


def test_every_one_has_an_id_of_its_own():
    assert len({POLICY.ticket(1).id for _ in range(100)}) == 100


@pytest.mark.parametrize("size", [1.0, 1.5, "1", None, True])
def test_a_size_that_is_no_integer_is_a_type_error(size):
    with pytest.raises(TypeError):
        POLICY.ticket(size)


def test_a_negative_size_is_a_value_error():
    with pytest.raises(ValueError, match="negative"):
        POLICY.ticket(-1)


def test_a_kind_that_is_none_is_a_value_error():
    with pytest.raises(ValueError, match="kind"):
        POLICY.ticket(1, kind="other")


@pytest.mark.parametrize("priority", ["high", None, 1.5, float("nan"), True])
def test_a_priority_that_is_no_integer_is_a_type_error(priority):
    with pytest.raises(TypeError, match="priority"):
        POLICY.ticket(1, priority=priority)


def test_a_priority_beyond_any_sense_is_a_value_error():
    with pytest.raises(ValueError, match="priority"):
        POLICY.ticket(1, priority=10**400)


def test_it_stands_on_tickets_and_keeps_their_ids():
    weights = POLICY.ticket(1, kind="reservation")
    assert POLICY.ticket(1, requires=[weights]).requires == (weights.id,)


@pytest.mark.parametrize("requires", [POLICY.ticket(1), "ticket-1", ["ticket-1"], 5, [None]])
def test_what_it_stands_on_is_a_list_of_tickets(requires):
    with pytest.raises(TypeError, match=r"^requires takes a list of tickets, not "):
        POLICY.ticket(1, requires=requires)
    ticket = POLICY.ticket(1)
    with pytest.raises(TypeError, match=r"^require takes a list of tickets, not "):
        ticket.require(requires)
    assert ticket.requires == ()


def test_what_it_stands_on_is_named_once():
    one, two = POLICY.ticket(1), POLICY.ticket(1)
    ticket = POLICY.ticket(1, requires=(each for each in [one]))
    ticket.require([one, two])
    assert ticket.requires == (one.id, two.id)


@pytest.mark.parametrize("name", ["pinned", "reclaimable"])
@pytest.mark.parametrize("value", ["yes", 1, 0, None])
def test_a_trait_that_is_neither_true_nor_false_is_a_type_error(name, value):
    with pytest.raises(TypeError, match=f"{name} must be True or False, not {value!r}"):
        POLICY.ticket(1, kind="reservation", **{name: value})


@pytest.mark.parametrize(
    ("traits", "advice"),
    [
        ({}, "pass kind='reservation'"),
        ({"kind": "active"}, "pass kind='reservation'"),
        ({"kind": "reservation", "pinned": True}, "pass pinned=False"),
    ],
)
def test_what_cannot_be_reclaimable_is_told_how_it_could(traits, advice):
    with pytest.raises(ValueError, match=f"a reservation, and not pinned: {advice}$"):
        POLICY.ticket(1, reclaimable=True, **traits)


async def test_nobody_asks_for_one_that_is_not_reclaimable():
    ticket = POLICY.ticket(1, kind="reservation", manager=Manager())
    with pytest.raises(ValueError, match=f"^{ticket.id} is not reclaimable, so nobody will ask"):
        await ticket.wait_for_reclaim()


async def test_it_asks_the_manager_that_it_names():
    manager = Manager()
    ticket = POLICY.ticket(1, manager=manager)
    assert await ticket.start() == 5
    assert await ticket.resize(3) == 3
    assert await ticket.end() == 0
    ticket.end_nowait()
    assert manager.calls == ["start", "resize 3", "end", "end_nowait"]


async def test_wired_limit_is_what_its_manager_makes_of_it():
    manager = Manager()
    async with POLICY.ticket(1, manager=manager).wired_limit() as limit:
        assert limit == 5
    assert manager.calls == ["hold"]


@pytest.mark.parametrize("size", [-1, 1.5, "1", True])
async def test_resizing_to_what_is_no_size_is_an_error_and_asks_nobody(size):
    manager = Manager()
    ticket = POLICY.ticket(1, manager=manager)
    await ticket.start()
    with pytest.raises((TypeError, ValueError)):
        await ticket.resize(size)
    assert manager.calls == ["start"]
    assert ticket.size == 1
