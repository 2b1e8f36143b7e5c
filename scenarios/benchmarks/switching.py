"""Two models that do not fit together: the runtime against `mlx_lm.server`, which holds one.

Clients in a closed loop send request after request, each to one of the two models by the toss of a
seeded coin. The runtime stands behind the door of _serving.py with both models added, none loaded,
and a cap under which one of them fits with a job of every client, while the second cannot load
beside it. The stock server has its own settings and loads anew when the model changes. Each round
runs stock, runtime, stock, with the same tosses in each and prompts that no cache knows.

A wait is the time from a request to its first piece of text. The runtime's loads are its
`model_ready` events. The stock server's are the changes of the model in the order of the first
pieces of text: it lets all answers of a model end before it loads the other, and says nothing of
its loads itself.
"""

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import trio
from _common import Options, compared, report, share_of
from _models import make_model, prompt_of
from _serving import Server, Sizes, runtime_server, stock_server

import wiredactors as wa

GOAL = 3.0

#: Which of the two models is asked, request after request, by whichever client comes next.
Tosses = Sequence[int]


@attrs.frozen
class Load:
    """The two models, how many clients ask them, and what every request is like."""

    names: Sequence[str]
    clients: int
    prompt_tokens: int
    tokens: int
    salts: Iterator[int]

    def prompt(self) -> str:
        """One that no server has seen."""
        text: str = prompt_of(self.prompt_tokens, next(self.salts))
        return text


@attrs.frozen
class Run:
    """What a server made of it. `order`: the models, first piece of text by first piece."""

    tokens_per_second: float
    waits: Sequence[float]
    order: Tosses
    loads: int = 0


def tossed(requests: int, seed: int) -> Tosses:
    """By a fair coin."""
    coin = random.Random(seed)
    return [coin.randrange(2) for _ in range(requests)]


async def carried_out(server: Server, tosses: Tosses, load: Load) -> Run:
    """All requests, each sent when one of the clients has had its answer before."""
    left = iter(tosses)
    heard: list[tuple[float, int, float]] = []  # when, of which model, after how long

    async def client() -> None:
        for which in left:
            asked = trio.current_time()
            answer = await server.complete(load.names[which], load.prompt(), load.tokens)
            assert answer.tokens == load.tokens
            heard.append((asked + answer.first, which, answer.first))

    began = trio.current_time()
    async with trio.open_nursery() as clients:
        for _ in range(load.clients):
            clients.start_soon(client)
    seconds = trio.current_time() - began
    heard.sort()
    rate = load.tokens * len(heard) / seconds
    return Run(rate, [wait for *_, wait in heard], [which for _, which, _ in heard])


def changes(order: Tosses) -> int:
    """How often another model follows."""
    return sum(one != other for one, other in pairwise(order))


@attrs.define
class Stock:
    """The stock server, and the model that it has loaded: the first one when it starts."""

    server: Server
    there: int = 0

    async def run(self, tosses: Tosses, load: Load) -> Run:
        run = await carried_out(self.server, tosses, load)
        before, self.there = self.there, run.order[-1]
        return attrs.evolve(run, loads=changes([before, *run.order]))


@attrs.define
class Ours:
    """The runtime, whose door counts the loads."""

    server: Server

    async def run(self, tosses: Tosses, load: Load) -> Run:
        before = await self.server.loads()
        run = await carried_out(self.server, tosses, load)
        return attrs.evolve(run, loads=await self.server.loads() - before)


async def cap_for_one(paths: Sequence[Path], load: Load) -> dict[str, int]:
    """A cap that each model fits under with a job of every client, or with as many as it can be,
    while the second cannot load beside the first; measured in runtimes that are thrown away."""

    async def measured(models: Sequence[Path]) -> Sizes:
        async with runtime_server(models) as server:
            return await server.sizes(str(models[0]), load.prompt(), load.tokens)

    alone = [await measured([path]) for path in paths]
    both = await measured(paths)
    cap = min(max(one.cap(load.clients) for one in alone), both.loading - 1)
    fitting = min(one.fitting(cap) for one in alone)
    if fitting < 1 or cap < max(one.loading for one in alone):
        raise SystemExit("no cap holds one of the models and not both: take a larger shape")
    return {
        "cap_bytes": cap,
        "reserved_bytes_of_one": max(one.reserved for one in alone),
        "reserved_bytes_of_both": both.reserved,
        "bytes_while_the_second_loads": both.loading,
        "jobs_that_fit": fitting,
    }


Side = Callable[[Tosses, Load], Awaitable[Run]]


async def paired(sides: Sequence[Side], rounds: Sequence[Tosses], load: Load) -> list[list[Run]]:
    """The runs of each side, after one that asks each model once for every client: it warms up."""
    runs: list[list[Run]] = [[] for _ in sides]
    for tosses in [[0, 1] * load.clients, *rounds]:
        for kept, side in zip(runs, sides, strict=True):
            kept.append(await side(tosses, load))
    return [kept[1:] for kept in runs]


def waits(runs: Sequence[Run]) -> dict[str, Any]:
    """Of all requests of these runs, in seconds."""
    every = list(chain.from_iterable(one.waits for one in runs))
    return {"p50": median(every), "p95": share_of(every, 0.95), "longest": max(every)}


def loads(before: Sequence[Run], ours: Sequence[Run], after: Sequence[Run]) -> dict[str, Any]:
    """Of the rounds, by side."""
    stock = [one.loads for one in [*before, *after]]
    runtime = [one.loads for one in ours]
    return {
        "stock": median(stock),
        "runtime": median(runtime),
        "stock_each": stock,
        "runtime_each": runtime,
        "runtime_over_stock": median(runtime) / max(1, median(stock)),
        "counted": {
            "stock": "changes of the model in the order of the first pieces of text",
            "runtime": "model_ready events",
        },
        "goal": "fewer in every round than stock before and after",
        "reached": all(
            one.loads < min(first.loads, last.loads)
            for first, one, last in zip(before, ours, after, strict=True)
        ),
    }


def figures(before: Sequence[Run], ours: Sequence[Run], after: Sequence[Run]) -> dict[str, Any]:
    """What came out, by side."""
    rates = [[one.tokens_per_second for one in runs] for runs in (before, ours, after)]
    first, middle, last = (waits(runs)["p95"] for runs in (before, ours, after))
    return {
        **compared(*rates, GOAL, names=("runtime", "stock")),
        "loads": loads(before, ours, after),
        "wait_seconds": {
            "stock": waits([*before, *after]),
            "runtime": waits(ours),
            "runtime_p95_over_stock": middle / ((first + last) / 2),
            "stock_p95_over_stock": last / first,
        },
    }


async def with_clients(
    paths: Sequence[Path], load: Load, rounds: Sequence[Tosses], switches_per_minute: int
) -> dict[str, Any]:
    """The figures of so many clients, with servers of their own."""
    cap = await cap_for_one(paths, load)
    async with (
        stock_server(paths[0]) as stock,
        runtime_server(
            paths,
            cap["cap_bytes"],
            on_demand=True,
            switches_per_minute=switches_per_minute,
        ) as runtime,
    ):
        theirs = Stock(stock).run
        runs = await paired([theirs, Ours(runtime).run, theirs], rounds, load)
    return {"clients": load.clients, **cap, **figures(*runs)}


async def main(
    name: str,
    folder: Path | None,
    rounds: int,
    clients: Sequence[int],
    requests: int,
    prompt_tokens: int,
    tokens: int,
    seed: int,
    switches_per_minute: int,
) -> None:
    """Run the rounds and print the JSON object."""
    paths = [make_model(name, folder, number) for number in (7, 8)]
    names = [str(path) for path in paths]
    sequences = [tossed(requests, seed + number) for number in range(rounds)]
    salts = iter(range(1_000_000))
    by_clients = [
        await with_clients(
            paths,
            Load(names, count, prompt_tokens, tokens, salts),
            sequences,
            switches_per_minute,
        )
        for count in clients
    ]
    report(
        "switching",
        {
            "model": name,
            "models": [path.name for path in paths],
            "rounds": rounds,
            "requests": requests,
            "prompt_tokens": prompt_tokens,
            "tokens": tokens,
            "seed": seed,
            "switches_per_minute": switches_per_minute,
            "by_clients": by_clients,
            "reached": all(one["reached"] and one["loads"]["reached"] for one in by_clients),
        },
    )


if __name__ == "__main__":
    parser = Options(__doc__, model="wordier", rounds=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--requests", type=int, default=96, help="of all clients, in a round")
    parser.add_by_size("--prompt-tokens", 16, 512)
    parser.add_by_size("--tokens", 8, 32)
    parser.add_argument("--seed", type=int, default=1, help="of the tosses")
    own = wa.WiredMemoryConfiguration().switches_per_minute
    parser.add_argument("--switches-per-minute", type=int, default=own, help="of the runtime")
    given = parser.read()
    trio.run(
        main,
        given.model,
        given.folder,
        given.rounds,
        given.clients,
        given.requests,
        given.prompt_tokens,
        given.tokens,
        given.seed,
        given.switches_per_minute,
    )
