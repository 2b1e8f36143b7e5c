"""What a run comes to: a table of its jobs, and whether memory held."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from wiredactors.actors.outcome import Outcome
from wiredactors.actors.result import GenerationResult
from wiredactors.memory.units import MIB, format_bytes
from wiredactors.observe.timeline import Timeline

_HEADER = ("model", "asked", "ended", "waited", "first", "tok/s", "ticket", "KV held", "answer")
_UNITS = ("", "", "", "s", "s", "", "MiB", "MiB", "")
_RIGHT = {"waited", "first", "tok/s", "ticket", "KV held"}


def print_summary(
    outcomes: Sequence[Outcome], timeline: Timeline, baseline: int, limit_after: int
) -> None:
    """Print the table of jobs, the peak against what was granted, and the limit afterwards."""
    rows = [_HEADER, _UNITS, *(_row(outcome) for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER) - 1)]
    # What is left of the line is for the answer; a file or a pipe is given wide lines.
    columns = shutil.get_terminal_size(fallback=(140, 24)).columns
    room = max(20, columns - sum(widths) - 2 * len(widths) - 1)
    print()
    for number, row in enumerate(rows):
        cells = [
            cell.rjust(width) if name in _RIGHT else cell.ljust(width)
            for cell, width, name in zip(row[:-1], widths, _HEADER, strict=False)
        ]
        answer = textwrap.shorten(row[-1], room, placeholder="...")
        print("  ".join([*cells, answer]).rstrip())
        if number == 1:
            print("  ".join("-" * width for width in [*widths, min(40, room)]))
    print()
    for outcome in outcomes:
        if outcome.error is not None:
            print(textwrap.fill(f"Refused: {outcome.label!r}: {outcome.error}", 100))
    worst = timeline.worst_sample
    if worst is not None:
        relation = "over" if worst.over_bytes > 0 else "under"
        print(
            f"Peak:      MLX's memory peaked at {format_bytes(worst.peak_bytes)} with "
            f"{format_bytes(worst.granted_bytes)} granted, {format_bytes(abs(worst.over_bytes))} "
            f"{relation} (the closest of {len(timeline.samples)} steps and loads)"
        )
    where = "back at the baseline" if limit_after == baseline else "NOT back at the baseline"
    print(f"Limit:     {format_bytes(limit_after)}, {where} of {format_bytes(baseline)}")


def _row(outcome: Outcome) -> tuple[str, ...]:
    asked = textwrap.shorten(outcome.label, 34, placeholder="...")
    if outcome.result is None:
        kind = "refused" if outcome.error is not None else "?"
        return (outcome.model, asked, kind, "", "", "", "", "", type(outcome.error).__name__)
    return (outcome.model, asked, *_numbers(outcome.result))


def _numbers(result: GenerationResult) -> tuple[str, ...]:
    first = result.time_to_first_token
    return (
        result.finish_reason,
        f"{result.waited:.1f}",
        "" if first is None else f"{first:.1f}",
        f"{result.generation_tps:.1f}",
        f"{result.ticket_size / MIB:.2f}",
        f"{result.kv_bytes / MIB:.2f}",
        " ".join(result.text.split()),
    )
