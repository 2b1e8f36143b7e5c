"""What the manager costs: the live actor against a bare mailbox and against plain admission code.

A pair is one start and one end of a ticket. Compared are, in one run:

- pairs a second, when everything fits, with a bare trio mailbox whose actor only answers, where a
  pair is two round trips; also while a subscriber reads all events;
- the cost of a pair as live tickets, or tickets that wait, become more;
- the time of one `start()` of a client that is alone, with one bare round trip;
- pairs a second when 97 of 100 tasks wait, with a counter under `asyncio.Condition` and under
  `threading.Condition`; and with 10,000 waiting, with a plain port of the Swift algorithm;
- how often the limit is written.

Each round runs all contenders of a comparison one after the other, each second round in reverse;
a ratio is the median of the rounds' own ratios. The manager runs in policy-only mode, so that a
machine's own wired limit is in no figure; only the writes are counted with a limit that takes
them. Two series beside the growth have no goal: the bare mailbox with as many tasks, and the
waiting without Python's garbage collector, show how much of a growth is Python's and trio's own.
"""

import argparse
import contextlib
import gc
import math
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import Any, TypeVar

import attrs
import trio
import trio.testing
from _admission import (
    SIZE,
    Contention,
    Meter,
    asyncio_contention,
    bare_pairs,
    bare_round_trip,
    open_bare,
    port_waiting,
    threading_contention,
)
from _common import report

import wiredactors as wa
from wiredactors.testing import RecordingBackend

T = TypeVar("T")

TASKS = 100
ROOM = 3
#: A state that takes longer to set up is not measured: its figure is null, its goal not reached.
SETUP_SECONDS = 15.0


@attrs.frozen
class Counts:
    """How much is measured; the defaults are for figures that are the same twice."""

    rounds: int = 5
    pairs: int = 20_000
    samples: int = 5_000
    live: tuple[int, ...] = (10, 1_000, 10_000, 100_000)
    waiting: tuple[int, ...] = (10, 1_000, 10_000)
    port_pairs: int = 48
    tickets: int = 5_000


QUICK = Counts(
    pairs=1_000,
    samples=300,
    live=(10, 1_000),
    waiting=(10, 300),
    port_pairs=3,
    tickets=1_000,
)


def open_manager(**configuration: Any) -> contextlib.AbstractAsyncContextManager[Any]:
    """A manager without a limit to write."""
    return wa.open_manager(
        wa.WiredMemoryConfiguration(**configuration), RecordingBackend(supported=False)
    )


async def loop_pairs(policy: wa.WiredMemoryPolicy, meter: Meter, gate: trio.Event) -> None:
    """What a client does whose tickets always fit, until it is cancelled."""
    await gate.wait()
    while True:
        ticket = policy.ticket(SIZE)
        await ticket.start()
        await ticket.end()
        meter.count()


async def measure_pairs(policy: wa.WiredMemoryPolicy, tasks: int, pairs: int) -> float:
    """Seconds a pair takes with so many tasks, all of which fit."""
    meter, gate = Meter(pairs), trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(loop_pairs, policy, meter, gate)
        await trio.testing.wait_all_tasks_blocked()
        seconds: float = await meter.measure(gate.set)
        nursery.cancel_scope.cancel()
    return seconds


# -- pairs a second, all fit


async def our_pairs(tasks: int, pairs: int, *, subscribed: bool = False) -> float:
    """Seconds a pair takes; the subscriber reads all events, and must miss none."""
    missed = 0

    async def read(manager: wa.WiredMemoryManager) -> None:
        nonlocal missed
        async with manager.events() as events:
            async for event in events:
                missed += event.missed or 0

    async with open_manager() as manager, trio.open_nursery() as nursery:
        if subscribed:
            nursery.start_soon(read, manager)
        seconds = await measure_pairs(wa.WiredSumPolicy(), tasks, pairs)
        nursery.cancel_scope.cancel()
    assert not missed, f"the subscriber missed {missed} events"
    return seconds


# -- growth


async def pairs_beside_live(live: int, pairs: int) -> tuple[float, float]:
    """Seconds a pair takes beside `live` tickets of its policy: with 100 tasks, and with one.

    Those that live are so large that what the pairs add and take is below the shrink threshold:
    beside few small ones the timer of a shrink that is held back would run, beside many it would
    not.
    """
    policy = wa.WiredSumPolicy()
    tickets = [policy.ticket(64 * SIZE) for _ in range(live)]
    async with open_manager():
        for first in range(0, live, 1_000):
            async with trio.open_nursery() as nursery:
                for ticket in tickets[first : first + 1_000]:
                    nursery.start_soon(ticket.start)
        many = await measure_pairs(policy, TASKS, pairs)
        return many, await measure_pairs(policy, 1, pairs // 2)


async def pairs_among_waiting(waiting: int, pairs: int, *, collector: bool = True) -> float:
    """Seconds a pair takes when all that loop want the same room, so that `waiting` always wait."""
    policy = wa.WiredSumPolicy(cap=ROOM * SIZE)
    meter, keeps_out = Meter(pairs, collector=collector), policy.ticket(ROOM * SIZE)

    async def client() -> None:
        with contextlib.suppress(wa.ManagerClosed, wa.NoManager):
            while True:
                ticket = policy.ticket(SIZE)
                await ticket.start()
                await trio.lowlevel.checkpoint()
                await ticket.end()
                meter.count()

    async with trio.open_nursery() as nursery, open_manager():
        await keeps_out.start()
        for _ in range(waiting + ROOM):
            nursery.start_soon(client)
        if not await all_blocked():
            return math.inf
        seconds: float = await meter.measure(keeps_out.end_nowait)
    return seconds  # closing has refused those that waited


async def pairs_past_waiting(waiting: int, pairs: int) -> float:
    """Seconds a pair takes when it passes `waiting` larger tickets that do not fit yet."""
    policy = wa.WiredSumPolicy(cap=10 * TASKS * SIZE)

    async def wait() -> None:
        with contextlib.suppress(wa.ManagerClosed):
            await policy.ticket(5 * TASKS * SIZE).start()

    async with (
        trio.open_nursery() as nursery,
        open_manager(overtake_count=10**9, overtake_seconds=1e6),
    ):
        await policy.ticket(6 * TASKS * SIZE).start()
        for _ in range(waiting):
            nursery.start_soon(wait)
        if not await all_blocked():
            return math.inf
        return await measure_pairs(policy, TASKS, pairs)


async def all_blocked() -> bool:
    """Wait until nobody runs; whether that came in time."""
    with trio.move_on_after(SETUP_SECONDS) as scope:
        await trio.testing.wait_all_tasks_blocked()
    return not scope.cancelled_caught


# -- one client alone


async def starts_alone(samples: int) -> dict[str, tuple[float, float]]:
    """Median and p99 of one start, and of one bare round trip, taken in turn."""
    ours, bare, policy = [], [], wa.WiredSumPolicy()
    async with open_manager(), open_bare() as send:
        gc.collect()
        for _ in range(samples):
            ticket = policy.ticket(SIZE)
            began = time.perf_counter()
            await ticket.start()
            ours.append(time.perf_counter() - began)
            await ticket.end()
            began = time.perf_counter()
            await bare_round_trip(send)
            bare.append(time.perf_counter() - began)
    return {
        name: (median(times), quantiles(times, n=100)[98])
        for name, times in (("ours", ours), ("bare", bare))
    }


# -- contention


async def our_contention(tasks: int, room: int, pairs: int) -> Contention:
    """`tasks` tasks share room for `room`; each gives way once while it holds its ticket."""
    policy, longest, turns = wa.WiredSumPolicy(cap=room * SIZE), 0.0, iter(range(pairs))

    async def client() -> None:
        nonlocal longest
        for _ in turns:  # all draw from the one iterator
            ticket = policy.ticket(SIZE)
            asked = time.perf_counter()
            await ticket.start()
            longest = max(longest, time.perf_counter() - asked)
            await trio.lowlevel.checkpoint()
            await ticket.end()

    async with open_manager():
        gc.collect()
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(client)
        return Contention(tasks, pairs / (time.perf_counter() - began), longest)


# -- writes


async def writes_per_1000(tasks: int, tickets: int) -> float:
    """How often the limit is written while so many tasks start and end `tickets` tickets."""
    backend, policy, turns = RecordingBackend(), wa.WiredSumPolicy(), iter(range(tickets))

    async def client() -> None:
        for _ in turns:
            ticket = policy.ticket(SIZE)
            await ticket.start()
            await ticket.end()

    async with wa.open_manager(backend=backend):
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(client)
        return 1_000 * len(backend.calls) / tickets


# -- the comparisons


def paired(name: str, rounds: int, contenders: Mapping[Any, Callable[[], T]]) -> dict[Any, list[T]]:
    """All results of each contender; one that could not be set up in time is tried once only."""
    results: dict[Any, list[T]] = {key: [] for key in contenders}
    for number in range(rounds):
        print(f"{name}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for key, run in list(contenders.items())[:: -1 if number % 2 else 1]:
            earlier = results[key]
            earlier.append(math.inf if math.inf in earlier else run())
    return results


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Of two contenders, each round's own ratio."""
    return [a / b for a, b in zip(above, below, strict=True)]


def tidy(figure: float) -> float | None:
    """Four digits; None for what could not be measured."""
    return float(f"{figure:.4g}") if 0 < figure < math.inf else None


def goal(found: list[float], *, at_least: float | None = None, at_most: float | None = None) -> Any:
    """The median of the rounds, how far they lie apart, and whether it is what it should be."""
    figure = median(found)
    if at_least is not None:
        wanted, reached = f">= {at_least}", figure >= at_least
    else:
        assert at_most is not None
        wanted, reached = f"<= {at_most}", figure <= at_most
    return {
        "figure": tidy(figure),
        "rounds_from_to": [tidy(min(found)), tidy(max(found))],
        "goal": wanted,
        "reached": reached,
    }


def growth(costs: Mapping[int, list[float]]) -> tuple[dict[str, Any], list[float]]:
    """Microseconds a pair at each number, and the last cost over the first, round by round."""
    few, *_, many = costs
    shown = {f"{number}": tidy(1e6 * median(costs[number])) for number in costs}
    return shown, ratios(costs[many], costs[few])


def compare_pairs(counts: Counts) -> dict[str, Any]:
    """Goals 1: pairs a second where everything fits."""
    seconds = paired(
        "pairs",
        3 * counts.rounds,  # they are short, and lie close to their goals
        {
            "bare": lambda: trio.run(bare_pairs, TASKS, counts.pairs),
            "ours": lambda: trio.run(our_pairs, TASKS, counts.pairs),
            "subscribed": lambda: trio.run(_subscribed, TASKS, counts.pairs),
        },
    )
    return {
        "pairs_per_second": {key: tidy(1 / median(of)) for key, of in seconds.items()},
        "over_bare": goal(ratios(seconds["bare"], seconds["ours"]), at_least=0.9),
        "subscribed_over_bare": goal(ratios(seconds["bare"], seconds["subscribed"]), at_least=0.6),
    }


async def _subscribed(tasks: int, pairs: int) -> float:
    return await our_pairs(tasks, pairs, subscribed=True)


def compare_growth(counts: Counts) -> dict[str, Any]:
    """Goals 2: what a pair costs as tickets become more."""

    def grow(name: str, measure: Callable[..., Any], numbers: tuple[int, ...]) -> dict[int, Any]:
        runs = {n: lambda n=n: trio.run(measure, n, counts.pairs) for n in numbers}
        return paired(name, counts.rounds, runs)

    live = grow("live tickets", pairs_beside_live, counts.live)
    series = {
        "live": {n: [many for many, _ in of] for n, of in live.items()},
        "live_one_task": {n: [one for _, one in of] for n, of in live.items()},
        "waiting": grow("waiting", pairs_among_waiting, counts.waiting),
        "passed": grow("passed", pairs_past_waiting, counts.waiting),
    }
    for_comparison = {
        "waiting_without_collector": grow("uncollected", _uncollected, counts.waiting),
        "bare_mailbox_with_tasks": grow("bare", bare_pairs, counts.waiting),
    }
    figures: dict[str, Any] = {}
    for name, costs in (series | for_comparison).items():
        shown, grown = growth(costs)
        judged = goal(grown, at_most=1.25) if name in series else tidy(median(grown))
        figures[name] = {"microseconds_a_pair": shown, "growth": judged}
    return figures


async def _uncollected(waiting: int, pairs: int) -> float:
    return await pairs_among_waiting(waiting, pairs, collector=False)


def compare_alone(counts: Counts) -> dict[str, Any]:
    """Goals 3: one start of a client that is alone."""
    rounds = paired("alone", counts.rounds, {"": lambda: trio.run(starts_alone, counts.samples)})
    ours, bare = ([found[name] for found in rounds[""]] for name in ("ours", "bare"))
    figures: dict[str, Any] = {}
    for place, name, bound in ((0, "median", 2.0), (1, "p99", 2.5)):
        mine, its = ([times[place] for times in of] for of in (ours, bare))
        figures[name] = {
            "microseconds": {"ours": tidy(1e6 * median(mine)), "bare": tidy(1e6 * median(its))},
            "over_bare": goal(ratios(mine, its), at_most=bound),
        }
    return figures


def compare_contention(counts: Counts) -> dict[str, Any]:
    """Goals 4: pairs a second, and the longest wait, when nearly all wait."""
    found = paired(
        "contention",
        counts.rounds,
        {
            "ours": lambda: trio.run(our_contention, TASKS, ROOM, counts.pairs),
            "asyncio": lambda: asyncio_contention(TASKS, ROOM, counts.pairs // 2),
            "threading": lambda: threading_contention(TASKS, ROOM, counts.pairs // 4),
        },
    )
    rates = {key: [seen.pairs_per_second for seen in of] for key, of in found.items()}
    turns = {key: [seen.longest_in_turns for seen in of] for key, of in found.items()}
    return {
        "pairs_per_second": {key: tidy(median(of)) for key, of in rates.items()},
        "longest_wait_ms": {
            key: tidy(1e3 * median(seen.longest for seen in of)) for key, of in found.items()
        },
        "longest_wait_in_turns": {key: tidy(median(of)) for key, of in turns.items()},
        "over_asyncio": goal(ratios(rates["ours"], rates["asyncio"]), at_least=1.4),
        "over_threading": goal(ratios(rates["ours"], rates["threading"]), at_least=4.0),
        "longest_wait": goal(turns["ours"], at_most=2.0),
    }


def compare_port(counts: Counts) -> dict[str, Any]:
    """Goal 5: pairs a second while very many wait, in the manager and in the plain port."""
    waiting = counts.waiting[-1]
    seconds = paired(
        "port",
        counts.rounds,
        {
            "ours": lambda: trio.run(pairs_among_waiting, waiting, counts.pairs),
            "port": lambda: trio.run(port_waiting, waiting, ROOM, counts.port_pairs),
        },
    )
    return {
        "waiting": waiting,
        "pairs_per_second": {key: tidy(1 / median(of)) for key, of in seconds.items()},
        "over_port": goal(ratios(seconds["port"], seconds["ours"]), at_least=300),
    }


def count_writes(counts: Counts) -> dict[str, Any]:
    """Figures 6: writes of the limit per 1,000 tickets."""
    return {
        f"{tasks}_tasks": tidy(trio.run(writes_per_1000, tasks, counts.tickets))
        for tasks in (1, TASKS)
    }


def main(counts: Counts) -> None:
    """Run everything and print the JSON object."""
    began = time.perf_counter()
    parts = {
        "pairs": compare_pairs,
        "growth": compare_growth,
        "alone": compare_alone,
        "contention": compare_contention,
        "plain_port": compare_port,
        "limit_writes_per_1000_tickets": count_writes,
    }
    figures = {name: compare(counts) for name, compare in parts.items()}
    seconds = round(time.perf_counter() - began)
    report("manager", {"counts": attrs.asdict(counts), **figures, "seconds": seconds})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a smoke run, not a measurement")
    options = parser.parse_args()
    main(attrs.evolve(QUICK if options.quick else Counts(), rounds=options.rounds))
