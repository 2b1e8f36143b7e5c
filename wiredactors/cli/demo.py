"""`wiredactors demo`: two real models under one small cap, and whether everything held."""

from __future__ import annotations

import argparse
from typing import Any

from wiredactors.cli.run import Run, add_output_options, run_and_report
from wiredactors.cli.scenario import packaged_scenario
from wiredactors.memory.errors import TicketTooLarge
from wiredactors.memory.units import MIB

#: What MLX's peak may have beyond the granted bytes.
_TOLERANCE = 16 * MIB


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "demo", help="two real models under one small cap (about a minute on two CPU cores)"
    )
    add_output_options(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Run the demo; the status is 1 if anything that it promises did not come true."""
    run = run_and_report(packaged_scenario("two_models"), options)
    failed = [promise for promise, kept in _promises(run).items() if not kept]
    for promise in failed:
        print(f"Not kept:  {promise}")
    return 1 if failed else 0


def _promises(run: Run) -> dict[str, bool]:
    results = [outcome.result for outcome in run.outcomes if outcome.result is not None]
    errors = [outcome.error for outcome in run.outcomes if outcome.error is not None]
    finished = [result for result in results if result.finish_reason in ("stop", "length")]
    worst = run.timeline.worst_sample
    return {
        "at least eight jobs finish with text": len(finished) >= 8
        and all(result.text.strip() for result in finished),
        "some jobs wait for memory": any(result.waited > 0.5 for result in finished),
        "one job is cancelled half-way": [r.finish_reason for r in results].count("cancelled") == 1,
        "one job can never fit and is refused": [type(e) for e in errors] == [TicketTooLarge],
        "the peak stays within 16 MiB of what was granted": worst is not None
        and worst.over_bytes <= _TOLERANCE,
        "the limit is back at the baseline": run.limit_after == run.baseline,
    }
