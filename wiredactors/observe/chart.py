"""A picture of a run: the limit, what was granted and what MLX really used, and the tickets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wiredactors.memory.units import MIB
from wiredactors.observe.timeline import Span, Timeline

_LIMIT, _JOBS, _RESERVED, _USED = "#1f4e9c", "#a8d5b5", "#c9d7ef", "#d1495b"
_WAIT, _RUN, _KEEP, _INK = "#c7c7c7", "#4f9d69", "#8aa4cf", "#333333"


def draw_timeline(timeline: Timeline, path: Path, *, cap: int | None, title: str) -> None:
    """Draw `timeline` as a PNG at `path`. Needs matplotlib (the extra `plot`).

    Above, over the seconds of the run: the limit in force, the bytes granted to tickets, MLX's
    active memory after each step, and the cap. Below: each ticket's wait and run.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    start, end = _extent(timeline)
    spans = spans_to_draw(timeline, end - start)
    rows = list(dict.fromkeys(span.ticket_id for span in spans))  # a model may come again
    figure = Figure(figsize=(11, 5.2 + 0.24 * len(rows)), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[4, max(1.0, 0.24 * len(rows))])
    _draw_memory(top, timeline, cap, start, end)
    _draw_spans(bottom, spans, rows, start, end)
    top.set_title(title, loc="left", color=_INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def spans_to_draw(timeline: Timeline, seconds: float) -> list[Span]:
    """Those of which something can be seen in a picture of so many seconds, in order.

    One that was refused as soon as it asked has no bar.
    """
    seen = [
        span
        for span in timeline.spans
        if span.admitted is not None
        or span.ended is None
        or span.ended - span.asked > seconds / 1000
    ]
    return sorted(seen, key=lambda span: (span.asked, span.ticket_id))


def _extent(timeline: Timeline) -> tuple[float, float]:
    times = [time for time, _ in timeline.granted + timeline.limits]
    times += [sample.time for sample in timeline.samples]
    return (min(times), max(times)) if times else (0.0, 1.0)


def _draw_memory(axes: Any, timeline: Timeline, cap: int | None, start: float, end: float) -> None:
    for points, colour, label in (
        (timeline.granted, _JOBS, "granted to jobs"),
        (timeline.reserved, _RESERVED, "granted to weights and workspace"),
    ):
        times, sizes = _steps(points, start, end)
        axes.fill_between(times, sizes, step="post", color=colour, label=label, linewidth=0)
    times, limits = _steps(timeline.limits, start, end)
    axes.step(times, limits, where="post", color=_LIMIT, linewidth=1.6, label="limit in force")
    axes.plot(
        [sample.time - start for sample in timeline.samples],
        [sample.active_bytes / MIB for sample in timeline.samples],
        color=_USED,
        linewidth=1.4,
        label="MLX active memory",
    )
    if cap is not None:
        axes.axhline(cap / MIB, color=_INK, linestyle="--", linewidth=1, label="cap")
    axes.set_ylabel("MiB")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#eeeeee")
    axes.legend(loc="lower right", framealpha=0.95, ncols=3)
    _plain_frame(axes)


def _draw_spans(
    axes: Any, spans: Sequence[Span], rows: Sequence[str], start: float, end: float
) -> None:
    for span in spans:
        row = rows.index(span.ticket_id)
        finish = end if span.ended is None else span.ended
        admitted = finish if span.admitted is None else span.admitted
        colour = _KEEP if span.kind == "reservation" else _RUN
        axes.barh(row, admitted - span.asked, left=span.asked - start, color=_WAIT, height=0.62)
        axes.barh(row, finish - admitted, left=admitted - start, color=colour, height=0.62)
        if span.size:
            axes.text(
                finish - start, row, f"  {span.size / MIB:.1f}", va="center", fontsize=7, color=_INK
            )
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("seconds   (grey: waiting, green: running, blue: reservation; MiB at the end)")
    axes.set_xlim(0, (end - start) * 1.04 or 1)
    _plain_frame(axes)


def _steps(
    points: Sequence[tuple[float, int]], start: float, end: float
) -> tuple[list[float], list[float]]:
    """Times from the start and MiB, led on to the end so that the last step can be seen."""
    times = [time - start for time, _ in points]
    values = [value / MIB for _, value in points]
    if points:
        times.append(end - start)
        values.append(values[-1])
    return times, values


def _plain_frame(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
