"""Batches take turns: whoever has waited longest goes next."""

from __future__ import annotations

import random
import time

from wiredactors.scheduling.turns import Turns


def test_nobody_ready_means_nobody_is_next() -> None:
    assert Turns[str]().next([]) is None


def test_two_alternate() -> None:
    turns = Turns[str]()
    assert [turns.next(["a", "b"]) for _ in range(4)] == ["a", "b", "a", "b"]


def test_newcomers_queue_up_in_their_order_behind_those_who_wait() -> None:
    turns = Turns[str]()
    assert turns.next("ab") == "a"
    assert [turns.next("dcba") for _ in range(5)] == ["b", "a", "d", "c", "b"]


def test_one_that_had_no_work_for_a_while_queues_up_anew() -> None:
    turns = Turns[str]()
    assert [turns.next("abc") for _ in range(2)] == ["a", "b"]
    assert turns.next("ab") == "a"  # c has gone, and comes back last
    assert [turns.next("abc") for _ in range(3)] == ["b", "a", "c"]


def test_whoever_stays_ready_waits_no_longer_than_once_round_the_others() -> None:
    chance = random.Random(3)
    turns = Turns[int]()
    waited = 0
    for _ in range(2000):
        others = {key for key in range(1, 8) if chance.random() < 0.5}
        waited = 0 if turns.next([*others, 0]) == 0 else waited + 1
        assert waited <= 7


def test_a_thousand_batches_cost_no_more_than_linear_time() -> None:
    def seconds(count: int) -> float:
        turns = Turns[int]()
        began = time.perf_counter()
        for _ in range(20):
            turns.next(range(count))
        return time.perf_counter() - began

    seconds(100)
    assert seconds(4000) < 300 * min(seconds(100) for _ in range(5))  # 1600 times if quadratic
