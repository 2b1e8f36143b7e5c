"""What `explain` says of a ticket: true, in one sentence, and the same in its fields."""

from __future__ import annotations

from typing import Any

import pytest

from wiredactors.memory.policies import WiredBudgetPolicy, WiredMemoryPolicy, WiredSumPolicy
from wiredactors.memory.tickets import WiredMemoryTicket
from wiredactors.memory.trial import dry_run
from wiredactors.memory.units import MIB

SUM = WiredSumPolicy(cap=100 * MIB)
#: As a policy of no cap: it shares the ceiling with all others.
OTHER = WiredBudgetPolicy(base_bytes=0, cap=10_000 * MIB, id="other")
UNDER_SUM = "under the policy WiredSumPolicy(cap=104857600)"
KEPT = "its room is kept once it was passed 100 times or has waited 30 s"


class Two(WiredMemoryPolicy):
    """Admits two tickets, whatever their sizes."""

    def limit(self, baseline, active_sizes):
        return baseline + sum(active_sizes)

    def can_admit(self, baseline, active_sizes, new_size):
        return len(active_sizes) < 2


class Named(Two):
    def __repr__(self):
        return "no more than two"


class Small(Two):
    """Admits many, but none of more than 50 MiB."""

    def can_admit(self, baseline, active_sizes, new_size):
        return new_size <= 50 * MIB and sum(active_sizes) + new_size <= 80 * MIB


def own(policy: type[WiredMemoryPolicy]) -> Any:
    def story(d: Any) -> None:
        mine = policy()
        d.start("a", 20 * MIB, mine)
        d.start("b", 20 * MIB, mine)
        d.start("t", 10 * MIB, mine)

    return story


def in_group(d: Any) -> None:
    d.start("a", 80 * MIB, SUM)
    d.start("t", 50 * MIB, SUM)


def in_a_full_group(d: Any) -> None:
    d.start("a", 100 * MIB, SUM)
    d.start("b", 10 * MIB, SUM)
    d.start("t", 50 * MIB, SUM)


def passed(d: Any) -> None:
    in_group(d)
    d.start("b", 10 * MIB, SUM)
    d.advance(4)


def under_the_ceiling(d: Any) -> None:
    d.start("a", 80 * MIB, OTHER)
    d.start("t", 50 * MIB, OTHER)


def kept_for_a_waiter(d: Any) -> None:
    d.start("a", 60 * MIB, SUM)
    d.start("large", 70 * MIB, SUM)
    d.advance(30)
    d.start("t", 40 * MIB, SUM)


def kept_though_it_would_not_fit(d: Any) -> None:
    kept_for_a_waiter(d)
    d.resize("t", 45 * MIB)


def kept_and_nothing_free(d: Any) -> None:
    d.start("a", 60 * MIB, SUM)
    d.start("b", 40 * MIB, SUM)
    d.resize("b", 50 * MIB)
    d.start("before", 30 * MIB, SUM)
    d.start("t", 10 * MIB, SUM)


def kept_for_a_grower(d: Any) -> None:
    d.start("a", 60 * MIB, SUM)
    d.start("b", 30 * MIB, SUM)
    d.resize("b", 50 * MIB)
    d.start("t", 10 * MIB, SUM)


def kept_and_its_policy_refuses(d: Any) -> None:
    mine = Small()
    d.start("a", 50 * MIB, mine)
    d.start("b", 10 * MIB, mine)
    d.resize("b", 40 * MIB)
    d.start("t", 30 * MIB, mine)


def kept_and_its_policy_admits(d: Any) -> None:
    kept_and_its_policy_refuses(d)
    d.resize("t", 5 * MIB)


def kept_and_the_ceiling_is_short(d: Any) -> None:
    d.start("other", 70 * MIB, OTHER)
    mine = Small()
    d.start("a", 10 * MIB, mine)
    d.start("before", 50 * MIB, mine)
    d.advance(30)
    d.start("t", 30 * MIB, mine)


def its_room_is_kept(d: Any) -> None:
    in_group(d)
    d.advance(30)


def growing(d: Any) -> None:
    d.start("a", 30 * MIB, SUM)
    d.start("t", 60 * MIB, SUM)
    d.resize("t", 80 * MIB)


def growing_under_its_own_policy(d: Any) -> None:
    mine = Small()
    d.start("a", 50 * MIB, mine)
    d.start("t", 10 * MIB, mine)
    d.resize("t", 40 * MIB)


def growing_behind_another(d: Any) -> None:
    d.start("a", 30 * MIB, SUM)
    d.start("b", 10 * MIB, SUM)
    d.start("t", 60 * MIB, SUM)
    d.resize("b", 40 * MIB)
    d.resize("t", 70 * MIB)


def outside(d: Any) -> None:
    d.start("a", 30 * MIB, OTHER)
    d.observe(available=20 * MIB, footprint=30 * MIB, total=200 * MIB)
    d.start("t", 30 * MIB, OTHER)


def overdrawn_by_others(d: Any) -> None:
    d.start("a", 60 * MIB, OTHER)
    d.observe(available=0, footprint=10 * MIB, total=200 * MIB)
    d.start("t", 30 * MIB, OTHER)


def overdrawn_and_growing(d: Any) -> None:
    d.start("a", 20 * MIB, OTHER)
    d.start("t", 30 * MIB, OTHER)
    d.observe(available=0, footprint=10 * MIB, total=200 * MIB)
    d.resize("t", 40 * MIB)


def asked(d: Any) -> None:
    d.reserve("cache", 80 * MIB, SUM, reclaimable=True)
    d.start("t", 50 * MIB, SUM)


def several_asked(d: Any) -> None:
    for cache in ("one", "two"):
        d.reserve(cache, 40 * MIB, SUM, reclaimable=True)
    d.start("t", 70 * MIB, SUM)


def asked_for_somebody_else(d: Any) -> None:
    d.reserve("cache", 40 * MIB, WiredSumPolicy(cap=40 * MIB), reclaimable=True)
    d.start("a", 50 * MIB, WiredSumPolicy(cap=50 * MIB))
    d.start("b", 10 * MIB, WiredSumPolicy(cap=40 * MIB))
    d.start("t", 10 * MIB, WiredSumPolicy(cap=50 * MIB))


def idle(d: Any) -> None:
    d.reserve("model", 70 * MIB, SUM)
    d.start("a", 20 * MIB, SUM)
    d.start("t", 60 * MIB, SUM)


def idle_and_its_policy_refuses(d: Any) -> None:
    d.reserve("model", 85 * MIB, OTHER)
    mine = Two()
    for weights in ("one", "two"):
        d.reserve(weights, 5 * MIB, mine)
    d.start("t", 10 * MIB, mine)


def running(d: Any) -> None:
    d.start("t", 60 * MIB, SUM)


def running_and_asked(d: Any) -> None:
    d.reserve("t", 60 * MIB, SUM, reclaimable=True)
    d.start("a", 50 * MIB, SUM)


def growing_and_asked(d: Any) -> None:
    d.start("a", 30 * MIB, SUM)
    d.reserve("t", 60 * MIB, SUM, reclaimable=True)
    d.start("b", 20 * MIB, SUM)
    d.resize("t", 90 * MIB)


@pytest.mark.parametrize(
    ("story", "reason", "fields"),
    [
        (
            in_group,
            f"it needs 50.0 MiB, and 20.0 MiB are free {UNDER_SUM}; "
            f"it fits when 30.0 MiB more are free; nobody waits before it; {KEPT}",
            {"blocked_by": "group", "available": 20 * MIB, "missing": 30 * MIB, "behind": ()},
        ),
        (
            in_a_full_group,
            f"it needs 50.0 MiB, and nothing is free {UNDER_SUM}; "
            "it fits when 50.0 MiB more are free; 1 waits before it",
            {"blocked_by": "group", "available": 0, "missing": 50 * MIB, "behind": ("b",)},
        ),
        (
            passed,
            f"it needs 50.0 MiB, and 10.0 MiB are free {UNDER_SUM}; "
            "it fits when 40.0 MiB more are free; nobody waits before it; "
            "its room is kept once it was passed 100 times (1 so far) or has waited 30 s",
            {"passed": 1, "overtake_count": 100, "overtake_at": 30.0, "waited": 4.0},
        ),
        (
            its_room_is_kept,
            f"it needs 50.0 MiB, and 20.0 MiB are free {UNDER_SUM}; "
            "it fits when 30.0 MiB more are free; nobody waits before it; its room is kept",
            {"blocked_by": "group", "kept_for": None, "waited": 30.0},
        ),
        (
            under_the_ceiling,
            "it needs 50.0 MiB, and 20.0 MiB are free under the ceiling; "
            f"it fits when 30.0 MiB more are free; nobody waits before it; {KEPT}",
            {"blocked_by": "ceiling", "available": 20 * MIB, "missing": 30 * MIB},
        ),
        (
            kept_for_a_waiter,
            "it needs 40.0 MiB, and 40.0 MiB are free, but kept for large, which waits before it; "
            "its turn comes once large has come in or gone",
            {"blocked_by": "order", "kept_for": "large", "behind": ("large",), "missing": 0},
        ),
        (
            kept_though_it_would_not_fit,
            "it needs 45.0 MiB, and 40.0 MiB are free, but kept for large, which waits before it; "
            "its turn comes once large has come in or gone; it fits when 5.0 MiB more are free",
            {"blocked_by": "order", "kept_for": "large", "missing": 5 * MIB},
        ),
        (
            kept_for_a_grower,
            "it needs 10.0 MiB, and 10.0 MiB are free, but kept for b, which runs, wants to grow "
            "and goes first; its turn comes once b has grown or gone",
            {"blocked_by": "order", "kept_for": "b", "behind": ("b",), "missing": 0},
        ),
        (
            kept_and_nothing_free,
            "it needs 10.0 MiB, and nothing is free; what comes free is kept for b, which runs, "
            "wants to grow and goes first; its turn comes once b has grown or gone; "
            "it fits when 10.0 MiB more are free; 2 wait before it",
            {"blocked_by": "order", "kept_for": "b", "behind": ("b", "before"), "available": 0},
        ),
        (
            kept_and_its_policy_refuses,
            "it needs 30.0 MiB, and its policy Small refuses it now; what comes free is kept for "
            "b, which runs, wants to grow and goes first; its turn comes once b has grown or gone",
            {"blocked_by": "order", "kept_for": "b", "behind": ("b",)},
        ),
        (
            kept_and_its_policy_admits,
            "it needs 5.0 MiB, which would fit, but room is kept for b, which runs, wants to grow "
            "and goes first; its turn comes once b has grown or gone",
            {"blocked_by": "order", "kept_for": "b", "behind": ("b",)},
        ),
        (
            kept_and_the_ceiling_is_short,
            "it needs 30.0 MiB, and 20.0 MiB are free, but kept for before, which waits before it; "
            "its turn comes once before has come in or gone; it fits when 10.0 MiB more are free",
            {"blocked_by": "order", "kept_for": "before", "missing": 10 * MIB},
        ),
        (
            growing,
            f"it holds 60.0 MiB and wants 80.0 MiB; it could have 70.0 MiB now {UNDER_SUM}; "
            "it grows when 10.0 MiB more are free",
            {"state": "growing", "blocked_by": "group", "available": 70 * MIB, "size": 80 * MIB},
        ),
        (
            growing_under_its_own_policy,
            "it holds 10.0 MiB and wants 40.0 MiB; its policy Small refuses it now",
            {"state": "growing", "blocked_by": "group"},
        ),
        (
            growing_behind_another,
            f"it holds 60.0 MiB and wants 70.0 MiB; it could have no more now {UNDER_SUM}; "
            "it grows when 10.0 MiB more are free; 1 asked before it",
            {"state": "growing", "behind": ("b",), "missing": 10 * MIB},
        ),
        (
            outside,
            "it needs 30.0 MiB, and 20.0 MiB are free under the ceiling, lowered by 50.0 MiB for "
            "what is used outside the tickets; it fits when 10.0 MiB more are free; "
            f"nobody waits before it; {KEPT}",
            {"blocked_by": "ceiling", "available": 20 * MIB, "missing": 10 * MIB},
        ),
        (
            overdrawn_by_others,
            "it needs 30.0 MiB, and nothing is free under the ceiling, lowered by 90.0 MiB for "
            "what is used outside the tickets; it fits when 80.0 MiB more are free; "
            f"nobody waits before it; {KEPT}",
            {"blocked_by": "ceiling", "available": 0, "missing": 80 * MIB},
        ),
        (
            overdrawn_and_growing,
            "it holds 30.0 MiB and wants 40.0 MiB; it could have no more now under the ceiling, "
            "lowered by 90.0 MiB for what is used outside the tickets; "
            "it grows when 50.0 MiB more are free",
            {"state": "growing", "available": 0, "missing": 50 * MIB},
        ),
        (
            asked,
            f"it needs 50.0 MiB, and 20.0 MiB are free {UNDER_SUM}; it fits when 30.0 MiB more are "
            f"free; cache has been asked to yield; nobody waits before it; {KEPT}",
            {"asked": ("cache",), "needs_idle_bytes": 0},
        ),
        (
            several_asked,
            f"it needs 70.0 MiB, and 20.0 MiB are free {UNDER_SUM}; it fits when 50.0 MiB more are "
            f"free; one, two have been asked to yield; nobody waits before it; {KEPT}",
            {"asked": ("one", "two")},
        ),
        (
            asked_for_somebody_else,
            "it needs 10.0 MiB, and nothing is free under the policy WiredSumPolicy(cap=52428800); "
            f"it fits when 10.0 MiB more are free; 1 waits before it; {KEPT}",
            {"blocked_by": "group", "asked": ()},
        ),
        (
            idle,
            f"it needs 60.0 MiB, and 10.0 MiB are free {UNDER_SUM}; it fits when 50.0 MiB more are "
            "free, 30.0 MiB of it from reservations that stay until their owners end them, such "
            f"as idle models; nobody waits before it; {KEPT}",
            {"needs_idle_bytes": 30 * MIB, "asked": ()},
        ),
        (
            idle_and_its_policy_refuses,
            "it needs 10.0 MiB, and its policy Two refuses it now; 5.0 MiB must come from "
            "reservations that stay until their owners end them, such as idle models; "
            f"nobody waits before it; {KEPT}",
            {"blocked_by": "group", "needs_idle_bytes": 5 * MIB},
        ),
        (
            own(Two),
            f"it needs 10.0 MiB, and its policy Two refuses it now; nobody waits before it; {KEPT}",
            {"blocked_by": "group"},
        ),
        (
            own(Named),
            "it needs 10.0 MiB, and its policy no more than two refuses it now; "
            f"nobody waits before it; {KEPT}",
            {"blocked_by": "group"},
        ),
        (running, "it holds 60.0 MiB", {"state": "running", "size": 60 * MIB}),
        (
            running_and_asked,
            "it holds 60.0 MiB, and has been asked to yield",
            {"state": "running", "size": 60 * MIB, "blocked_by": None},
        ),
        (
            growing_and_asked,
            f"it holds 60.0 MiB and wants 90.0 MiB; it could have 70.0 MiB now {UNDER_SUM}; "
            "it grows when 20.0 MiB more are free; it has been asked to yield itself",
            {"state": "growing", "asked": ()},
        ),
        (lambda d: None, "it neither runs nor waits here", {"state": "unknown"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_reason(driver, story, reason, fields):
    d = driver(ceiling=100 * MIB)
    story(d)
    why = d.ledger.explain("t", d.now)
    assert why.reason == reason
    assert {name: getattr(why, name) for name in fields} == fields


def test_a_dry_run_says_what_would_be_asked_apart_from_what_has_been(driver):
    d = driver(ceiling=100 * MIB)
    d.reserve("one", 40 * MIB, SUM, reclaimable=True)
    d.reserve("two", 40 * MIB, SUM, reclaimable=True)
    (first,) = dry_run(d.ledger, [ticket("t", 50)], d.now).tickets
    assert "; one would be asked to yield; " in first.reason
    d.start("a", 50 * MIB, SUM)
    (second,) = dry_run(d.ledger, [ticket("t", 30, priority=1)], d.now).tickets
    assert "; one has been asked to yield; two would be asked to yield; " in second.reason


def ticket(ticket_id: str, mib: int, **more: Any) -> WiredMemoryTicket:
    return WiredMemoryTicket(mib * MIB, SUM, id=ticket_id, **more)


def test_a_policy_that_changed_its_mind_lets_it_in_when_anything_changes(driver):
    class Moody(Two):
        """Which a policy must not."""

        def can_admit(self, baseline, active_sizes, new_size):
            return good_mood or not active_sizes

    good_mood, moody = False, Moody()
    d = driver(ceiling=100 * MIB)
    d.start("a", 20 * MIB, moody)
    d.start("t", 20 * MIB, moody)
    good_mood = True
    why = d.ledger.explain("t", d.now)
    assert why.reason.startswith("it needs 20.0 MiB, and it fits now, and has it when anything")
    d.start("b", 20 * MIB, SUM)
    assert d.ledger.explain("t", d.now).state == "running"


@pytest.mark.parametrize(("count", "times"), [(1, "1 time"), (2, "2 times")])
def test_when_its_room_is_kept_is_as_configured(driver, count, times):
    d = driver(ceiling=100 * MIB, overtake_count=count, overtake_seconds=0.5)
    in_group(d)
    why = d.ledger.explain("t", d.now)
    assert why.reason.endswith(f"its room is kept once it was passed {times} or has waited 0.5 s")
