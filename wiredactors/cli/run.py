"""`wiredactors run SCENARIO.py`: run a scenario, show it, and keep its log and picture."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import attrs
import trio

from wiredactors.actors.manager import WiredMemoryManager
from wiredactors.actors.nursery import open_bare_nursery
from wiredactors.actors.outcome import Outcome
from wiredactors.actors.runtime import Runtime
from wiredactors.actors.session import open_runtime
from wiredactors.cli.scenario import Scenario, load_scenario
from wiredactors.cli.summary import print_summary
from wiredactors.memory.events import WiredMemoryEvent
from wiredactors.observe.records import event_record, open_event_log
from wiredactors.observe.timeline import Timeline
from wiredactors.scheduling.requests import StepReport


class View(Protocol):
    """What shows a run while it goes on."""

    def open(self, runtime: Runtime) -> contextlib.AbstractAsyncContextManager[None]:
        """Show something until the context is left."""

    def take(self, event: WiredMemoryEvent) -> None:
        """Something happened."""


@attrs.frozen
class Run:
    """What a finished run leaves."""

    outcomes: list[Outcome]
    timeline: Timeline
    baseline: int
    limit_after: int


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("run", help="run a scenario file")
    parser.add_argument("scenario", type=Path, help="a Python file with `async def main(runtime)`")
    add_output_options(parser)
    parser.set_defaults(execute=execute)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that runs a scenario."""
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for log and picture")
    parser.add_argument("--log", type=Path, help="the event log (default: OUT/NAME.jsonl)")
    parser.add_argument("--plain", action="store_true", help="lines instead of a live view")


def execute(options: argparse.Namespace) -> int:
    """Run the scenario that the options name."""
    run_and_report(options.scenario, options)
    return 0


def run_and_report(path: Path, options: argparse.Namespace) -> Run:
    """Run a scenario with its view, print the summary, and say where log and picture are."""
    scenario = load_scenario(path)
    log_path = options.log or options.out / f"{path.stem}.jsonl"
    view = _choose_view(scenario, options.plain)
    run = trio.run(_run, scenario, view, log_path)
    print_summary(run.outcomes, run.timeline, run.baseline, run.limit_after)
    print(f"Event log: {log_path}")
    _draw(run.timeline, scenario, options.out / f"{path.stem}.png")
    return run


def _choose_view(scenario: Scenario, plain: bool) -> View:
    """The live view needs a terminal and rich; plain lines serve everywhere."""
    from wiredactors.cli.plain import PlainView

    if plain or not sys.stdout.isatty():
        return PlainView(scenario.title)
    try:
        from wiredactors.cli.live import LiveView
    except ImportError:
        print("For the live view: pip install 'wiredactors[demo]'")
        return PlainView(scenario.title)
    return LiveView(scenario.title, scenario.policy.cap)


def _draw(timeline: Timeline, scenario: Scenario, path: Path) -> None:
    from wiredactors.observe.chart import draw_timeline

    try:
        draw_timeline(timeline, path, cap=scenario.policy.cap, title=scenario.title)
    except ImportError:
        print("For the picture: pip install 'wiredactors[plot]'")
    else:
        print(f"Picture:   {path}")


async def _run(scenario: Scenario, view: View, log_path: Path) -> Run:
    timeline = Timeline()

    def take_step(report: StepReport) -> None:
        timeline.take_step(report, trio.current_time())

    with open_event_log(log_path) as logger:

        def take(event: WiredMemoryEvent) -> None:
            timeline.take(event)
            view.take(event)
            logger.info(str(event.kind), **event_record(event))

        # The listener outlives the runtime, so that the log tells of its closing too.
        async with (
            open_bare_nursery() as listeners,
            open_runtime(policy=scenario.policy, on_step=take_step) as runtime,
        ):
            await listeners.start(_listen, runtime.manager, take)
            async with view.open(runtime):
                outcomes = await scenario.main(runtime) or []
            # The jobs have ended and the models are still loaded: their reservations alone keep
            # nothing raised.
            state = runtime.manager.snapshot()
    return Run(outcomes, timeline, state.baseline, state.current_limit or state.baseline)


async def _listen(
    manager: WiredMemoryManager,
    take: Callable[[WiredMemoryEvent], None],
    task_status: trio.TaskStatus[None],
) -> None:
    async with manager.events() as events:
        task_status.started()
        async for event in events:
            take(event)
