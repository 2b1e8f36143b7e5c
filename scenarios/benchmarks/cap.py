"""Jobs under a cap that holds half of them: nothing goes above what was granted, nothing lies idle.

MLX's peak is read and reset round each step. What jobs may take is compared with the cap at every
step that begins while others wait. The same jobs without a cap, before and after, are the baseline
of the speed.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import trio
from _bare import served
from _common import Options, compared, report
from _models import make_model, prompt_of
from _serving import Sizes, sizes_of

import wiredactors as wa

EXCESS_GOAL = 16 * wa.MIB
SHARE_GOAL = 0.85


@attrs.define
class Watch:
    """What the steps told: of the loads, and since `on` was set.

    Attributes:
        excess: bytes by which MLX's peak went above what was granted, at most.
        shares: of the cap that were granted, at each step while jobs waited.
    """

    cap: int | None
    manager: wa.WiredMemoryManager | None = None
    loading: int = 0
    on: bool = False
    excess: int = -(1 << 62)
    shares: list[float] = attrs.field(factory=list)

    def take_step(self, step: wa.StepReport) -> None:
        if step.what == "load":
            self.loading = max(self.loading, step.granted_bytes)
        if not self.on or self.manager is None:
            return
        self.excess = max(self.excess, step.peak_bytes - step.granted_bytes)
        if self.cap is not None and self.manager.snapshot().waiters:
            self.shares.append(step.granted_bytes / self.cap)


async def run_once(
    path: Path, prompts: Sequence[str], tokens: int, cap: int | None
) -> tuple[float, Watch, Sizes]:
    """All jobs at once in a runtime of their own; tokens per second."""
    watch = Watch(cap)
    policy = wa.WiredSumPolicy(cap=cap)
    async with wa.open_runtime(policy, on_step=watch.take_step) as runtime:
        watch.manager = runtime.manager
        model = await runtime.load(path, "model")
        sizes = sizes_of(runtime, model, watch.loading, prompts[0], tokens)
        await served([(model, prompts[:1])], 2)  # whatever is made at first use
        watch.on = True
        rate = await served([(model, prompts)], tokens)  # asserts that all have finished
        watch.on = False
    return rate, watch, sizes


async def main(
    name: str, folder: Path | None, rounds: int, jobs: int, prompt_tokens: int, tokens: int
) -> None:
    """Run the rounds and print the JSON object."""
    path = make_model(name, folder)
    prompts = [prompt_of(prompt_tokens, number) for number in range(jobs)]
    _, _, sizes = await run_once(path, prompts, tokens, None)
    cap = sizes.cap(jobs // 2)
    before, capped, after = [], [], []
    watches: list[Watch] = []
    for _ in range(rounds):
        before.append((await run_once(path, prompts, tokens, None))[0])
        rate, watch, _ = await run_once(path, prompts, tokens, cap)
        capped.append(rate)
        watches.append(watch)
        after.append((await run_once(path, prompts, tokens, None))[0])
    excess = max(watch.excess for watch in watches)
    least = [min(watch.shares) for watch in watches if watch.shares]
    every = [share for watch in watches for share in watch.shares]
    speed: dict[str, Any] = compared(before, capped, after, 0.0, names=("capped", "uncapped"))
    del speed["goal"], speed["reached"]
    report(
        "cap",
        {
            "model": name,
            "rounds": rounds,
            "jobs": jobs,
            "prompt_tokens": prompt_tokens,
            "tokens": tokens,
            "ticket_bytes": sizes.ticket,
            "reserved_bytes": sizes.reserved,
            "cap_bytes": cap,
            "jobs_that_fit": sizes.fitting(cap),
            "all_finished": True,
            "peak_above_granted": {
                "bytes": excess,
                "goal_at_most": EXCESS_GOAL,
                "reached": excess <= EXCESS_GOAL,
            },
            "granted_while_jobs_wait": {
                "steps": len(every),
                "least_share_of_the_cap": min(least, default=None),
                "median_of_the_rounds_least": median(least) if least else None,
                "median_share_of_the_cap": median(every) if every else None,
                "goal": SHARE_GOAL,
                "reached": bool(least) and min(least) >= SHARE_GOAL,
            },
            "speed": speed,
            "reached": excess <= EXCESS_GOAL and bool(least) and min(least) >= SHARE_GOAL,
        },
    )


if __name__ == "__main__":
    parser = Options(__doc__)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_by_size("--prompt-tokens", 32, 512)
    parser.add_by_size("--tokens", 32, 128)
    given = parser.read()
    trio.run(
        main,
        given.model,
        given.folder,
        given.rounds,
        given.jobs,
        given.prompt_tokens,
        given.tokens,
    )
