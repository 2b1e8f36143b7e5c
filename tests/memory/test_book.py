"""The sums of the book, against the same sums taken naively."""

from __future__ import annotations

import random

from wiredactors.memory.book import Book
from wiredactors.memory.holding import Holding
from wiredactors.memory.policies import WiredBudgetPolicy, WiredMaxPolicy, WiredSumPolicy


def test_its_sums_agree_with_naive_ones_through_a_random_history():
    rng = random.Random(5)
    policies = [
        WiredSumPolicy(cap=300),
        WiredMaxPolicy(),
        WiredBudgetPolicy(base_bytes=20, id="b"),
    ]
    book = Book(ceiling=400)
    book.baseline = 10
    held: list[Holding] = []
    for number in range(3000):
        move = rng.random()
        if move < 0.4 and held:
            holding = held.pop(rng.randrange(len(held)))
            book.remove(holding)
        elif move < 0.6 and held:
            book.resize(rng.choice(held), rng.randrange(50))
        else:
            group = book.group_for(rng.choice(policies))
            kind = rng.choice(["active", "reservation"])
            holding = Holding(
                f"t{number}", rng.randrange(50), kind, group, 0, False, False, (), 0.0
            )
            held.append(holding)
            book.add(holding)
        assert book.total == sum(h.size for h in held)
        assert book.active == sum(h.kind == "active" for h in held)
        bases = 20 if any(h.group.key.id == policies[2].id for h in held) else 0
        group = book.group_for(policies[0])
        in_group = sum(h.size for h in held if h.group is group)
        room = min(300 - 10 - in_group, 400 - 10 - book.total - bases)
        assert book.available(group) == max(0, room)
        if room >= 0:
            assert book.blocked_by(group, room) is None
        assert book.blocked_by(group, max(0, room) + 1) is not None
        if held:
            one = rng.choice(held)
            own = book.available(one.group, one)
            if own < 1 << 40 and own > 0:
                assert book.blocked_by(one.group, own, one) is None
                assert book.blocked_by(one.group, own + 1, one) is not None
            assert book.total == sum(h.size for h in held)


def test_a_group_lives_as_long_as_it_holds_or_awaits_anything():
    book = Book(ceiling=None)
    group = book.group_for(WiredSumPolicy())
    assert book.groups == {}
    book.await_group(group, +1)
    assert book.group_for(WiredSumPolicy()) is group
    holding = Holding("a", 1, "active", group, 0, False, False, (), 0.0)
    book.add(holding)
    book.await_group(group, -1)
    assert book.group_for(WiredSumPolicy()) is group
    book.remove(holding)
    assert book.groups == {}
