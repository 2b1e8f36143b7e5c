"""The bag of sizes keeps its sum and its largest as it changes."""

from __future__ import annotations

import random

from wiredactors.memory.sizes import Sizes, largest_of, total_of


def test_it_agrees_with_a_list_through_a_random_history():
    rng = random.Random(3)
    sizes, plain = Sizes(), []
    for _ in range(2000):
        if plain and rng.random() < 0.45:
            size = rng.choice(plain)
            sizes.remove(size)
            plain.remove(size)
        else:
            size = rng.randrange(50)
            sizes.add(size)
            plain.append(size)
        assert sorted(sizes) == sorted(plain)
        assert len(sizes) == len(plain)
        assert sizes.total == total_of(sizes) == total_of(plain) == sum(plain)
        assert sizes.largest == largest_of(sizes) == largest_of(plain) == max(plain, default=0)


def test_it_reads_as_a_sequence():
    sizes = Sizes([3, 1, 3, 2])
    assert sorted(sizes[n] for n in range(4)) == sorted(sizes[:]) == [1, 2, 3, 3]
    assert 3 in sizes
    assert repr(Sizes([3, 1])) == "Sizes([3, 1])"


def test_sizes_that_come_and_go_leave_nothing_behind_once_the_largest_was_asked_for():
    sizes = Sizes([5])
    assert sizes.largest == 5
    for size in range(6, 10_000):
        sizes.add(size)
        sizes.remove(size)
    assert sizes.largest == 5
    assert len(sizes._heap) < 100


def test_sizes_beyond_64_bits_are_exact():
    assert Sizes([1 << 70, 1]).total == (1 << 70) + 1
