"""The runtime against `mlx_lm.server` with its own settings, each as a process of its own.

The runtime stands behind a small HTTP door (_serving.py), so that the same clients drive both:
they stream, and take the time to the first token from the request to its first piece of text. Each
round runs the stock server, the runtime, and the stock server again, with prompts that no cache
knows. The first figures are of one model, the second of two that are asked in turn for short
answers, the third of memory: the peak of the process's resident set (on an NVIDIA GPU of its memory
in use) while a fresh process takes the load, once for each, and then again with a cap on the
runtime that half of the jobs fit in, which nothing gives the stock server.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import harmonic_mean, median
from typing import Any

import attrs
import trio
from _common import Options, compared, report, share_of
from _models import SHAPES, SMALLER, make_model, prompt_of
from _serving import Answer, Memory, Server, runtime_server, stock_server, watched

import wiredactors as wa

TWO_MODELS_GOAL = 5.0
INTERVAL = 0.002
#: So many requests at least make one series of a round.
FEW = 4
#: Which two are asked in turn where it is not the model and its smaller one: a load takes time for
#: the words too, and small models have as many of them as large ones.
PAIRS = {"small": ("wordy", "wordy")}


@attrs.frozen
class Load:
    """What every request is like, and prompts that were never asked before."""

    prompt_tokens: int
    tokens: int
    salts: Iterator[int] = attrs.field(factory=lambda: iter(range(1_000_000)))

    def prompt(self) -> str:
        """One that no server has seen."""
        text: str = prompt_of(self.prompt_tokens, next(self.salts))
        return text


async def at_once(
    server: Server, requests: Sequence[tuple[str, str]], tokens: int
) -> tuple[float, list[Answer]]:
    """Send all requests, model and prompt, one every other millisecond; tokens per second, and the
    answers."""
    answers: list[Answer] = []

    async def client(number: int, model: str, prompt: str) -> None:
        await trio.sleep(INTERVAL * number)  # in this order
        answers.append(await server.complete(model, prompt, tokens))

    began = trio.current_time()
    async with trio.open_nursery() as clients:
        for number, (model, prompt) in enumerate(requests):
            clients.start_soon(client, number, model, prompt)
    seconds = trio.current_time() - began
    assert all(one.tokens == tokens for one in answers)
    return sum(one.tokens for one in answers) / seconds, answers


#: Runs a load against a server, with new prompts each time.
Run = Callable[[Server], Any]


async def paired(stock: Server, runtime: Server, rounds: int, run: Run, goal: float) -> Any:
    """Stock, runtime, stock in each round, after one that warms both up."""
    rates: list[list[float]] = [[], [], []]
    firsts: list[list[float]] = [[], [], []]
    for number in range(rounds + 1):
        for place, server in enumerate((stock, runtime, stock)):
            rate, answers = await run(server)
            if number:
                rates[place].append(rate)
                firsts[place] += [one.first for one in answers]
    before, ours, after = (share_of(one, 0.95) for one in firsts)
    ratio, same = ours / ((before + after) / 2), after / before
    return {
        **compared(*rates, goal, names=("runtime", "stock")),
        "time_to_first_token": {
            "stock_p50_seconds": median(firsts[0] + firsts[2]),
            "runtime_p50_seconds": median(firsts[1]),
            "stock_p95_seconds": [before, after],
            "runtime_p95_seconds": ours,
            "runtime_over_stock": ratio,
            "stock_over_stock": same,
            "goal_at_most": max(1.0, same),
            "reached": ratio <= max(1.0, same),
        },
    }


async def one_model(path: Path, rounds: int, clients: Sequence[int], load: Load) -> Any:
    """The figures of each number of concurrent requests."""
    figures = []
    async with stock_server(path) as stock, runtime_server([path]) as runtime:
        for count in clients:

            async def run(server: Server, count: int = count) -> Any:
                rates, answers = [], []
                for _ in range(max(1, FEW // count)):
                    requests = [(str(path), load.prompt()) for _ in range(count)]
                    rate, heard = await at_once(server, requests, load.tokens)
                    rates.append(rate)
                    answers += heard
                return harmonic_mean(rates), answers  # as many tokens each time

            figures.append({"clients": count, **await paired(stock, runtime, rounds, run, 1.0)})
    return figures


async def two_models(paths: Sequence[Path], rounds: int, requests: int, load: Load) -> Any:
    """Requests to two models in turn; the stock server loads anew at each switch."""
    names = [str(path) for path in paths]

    async def run(server: Server) -> Any:
        asked = [(name, load.prompt()) for _ in range(requests) for name in names]
        return await at_once(server, asked, load.tokens)

    async with stock_server(paths[0]) as stock, runtime_server(paths) as runtime:
        figures = await paired(stock, runtime, rounds, run, TWO_MODELS_GOAL)
    return {
        "models": [path.name for path in paths],
        "requests_of_each": requests,
        "tokens": load.tokens,
        **figures,
    }


async def memory(path: Path, rounds: int, clients: int, load: Load) -> Any:
    """Peaks of fresh processes under the same load, `rounds` times over in each process."""
    name = str(path)
    texts = [[(name, load.prompt()) for _ in range(clients)] for _ in range(rounds)]

    async def peak(server: Server) -> tuple[Memory, float]:
        await server.complete(name, load.prompt(), 2)  # whatever is made at first use
        rates = []
        async with watched(server) as seen:
            for requests in texts:
                rate, _ = await at_once(server, requests, load.tokens)
                rates.append(rate)
        return seen, median(rates)

    async with stock_server(path) as server:
        stock, stock_rate = await peak(server)
    async with runtime_server([path]) as server:
        sizes = await server.sizes(*texts[0][0], load.tokens)
        runtime, runtime_rate = await peak(server)
    cap = sizes.cap(clients // 2)
    async with runtime_server([path], cap) as server:
        capped, capped_rate = await peak(server)
    async with stock_server(path) as server:
        again, _ = await peak(server)

    def told(seen: Memory, rate: float) -> dict[str, Any]:
        return {
            "before_bytes": seen.before,
            "peak_bytes": seen.peak,
            "grown_bytes": seen.peak - seen.before,
            "tokens_per_second": rate,
        }

    middle = (stock.peak + again.peak) / 2
    ratio, same = runtime.peak / middle, again.peak / stock.peak
    return {
        "measured": "GPU memory in use" if stock.gpu_peak else "resident set of the process",
        "clients": clients,
        "prompt_tokens": load.prompt_tokens,
        "tokens": load.tokens,
        "stock": told(stock, stock_rate),
        "runtime": told(runtime, runtime_rate),
        "runtime_over_stock": ratio,
        "stock_over_stock": same,
        "goal_at_most": max(1.0, same),
        "reached": ratio <= max(1.0, same),
        "cap": {
            "cap_bytes": cap,
            "jobs_that_fit": sizes.fitting(cap),
            "runtime": told(capped, capped_rate),
            "runtime_over_stock": capped.peak / middle,
            "stock_grown_over_capped_runtime_grown": (middle - stock.before)
            / max(wa.MIB, capped.peak - capped.before),
        },
    }


async def main(
    name: str,
    folder: Path | None,
    rounds: int,
    clients: Sequence[int],
    load: Load,
    pair_names: Sequence[str],
    two_load: Load,
    requests: int,
    memory_load: Load,
    memory_clients: int,
) -> None:
    """Run the cases and print the JSON object."""
    path = make_model(name, folder)
    pair = [make_model(one, folder, seed) for seed, one in enumerate(pair_names, 7)]
    alone = await one_model(path, rounds, clients, load)
    two = await two_models(pair, rounds, requests, two_load)
    peaks = await memory(path, rounds, memory_clients, memory_load)
    speeds = [*alone, two]
    report(
        "server",
        {
            "model": name,
            "rounds": rounds,
            "prompt_tokens": load.prompt_tokens,
            "tokens": load.tokens,
            "one_model": alone,
            "two_models": two,
            "memory": peaks,
            "reached": peaks["reached"]
            and all(one["reached"] and one["time_to_first_token"]["reached"] for one in speeds),
        },
    )


if __name__ == "__main__":
    parser = Options(__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_by_size("--prompt-tokens", 16, 512)
    parser.add_by_size("--tokens", 32, 128)
    parser.add_argument("--requests", type=int, default=8, help="to each of two models")
    parser.add_argument(
        "--two-models",
        choices=sorted(SHAPES),
        nargs=2,
        help="left out: both wordy, and a smaller one for the large models",
    )
    parser.add_by_size("--two-tokens", 8, 32)
    parser.add_argument("--memory-clients", type=int, default=16)
    parser.add_by_size("--memory-prompt-tokens", 32, 512)
    parser.add_by_size("--memory-tokens", 32, 128)
    given = parser.read()
    trio.run(
        main,
        given.model,
        given.folder,
        given.rounds,
        given.clients,
        Load(given.prompt_tokens, given.tokens),
        given.two_models or PAIRS.get(given.model, (given.model, SMALLER[given.model])),
        Load(given.prompt_tokens, given.two_tokens),
        given.requests,
        Load(
            given.memory_prompt_tokens,
            given.memory_tokens,
        ),
        given.memory_clients,
    )
