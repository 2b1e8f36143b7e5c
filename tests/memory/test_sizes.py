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
        assert list(sizes) == sorted(plain)
        assert len(sizes) == len(plain)
        assert sizes.total == total_of(sizes) == total_of(plain) == sum(plain)
        assert sizes.largest == largest_of(sizes) == largest_of(plain) == max(plain, default=0)


def test_it_reads_as_a_sequence_in_ascending_order():
    sizes = Sizes([3, 1, 2])
    assert sizes[0] == 1
    assert list(sizes[1:]) == [2, 3]
    assert 3 in sizes
    assert repr(sizes) == "Sizes([1, 2, 3])"


def test_sizes_beyond_64_bits_are_exact():
    assert Sizes([1 << 70, 1]).total == (1 << 70) + 1
