"""A picture of what models would take: a bar for each, and one for all together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from wiredactors.cli.fitting import Fitting, shown
from wiredactors.memory.units import GIB, format_bytes

_WEIGHTS, _WORKSPACE, _MARGIN = "#8aa4cf", "#c9d7ef", "#d9d9d9"
_ASKED, _MORE = "#4f9d69", "#a8d5b5"
_CEILING, _OVER, _RESERVE, _INK = "#1f4e9c", "#d1495b", "#f5f5f5", "#333333"
_HEIGHT = 0.56

#: More jobs than this are one block: lines between them would be all there is to see.
_MOST_JOBS = 60


@attrs.frozen
class _Bar:
    label: str
    fitting: Fitting
    unit: str


def draw_fitting(
    fitting: Fitting, path: Path, *, jobs: int, prompt_tokens: int, max_tokens: int
) -> None:
    """Draw the models as a PNG at `path`. Needs matplotlib (the extra `plot`).

    A bar has weights, workspace and margin, then jobs until the ceiling is reached, the first
    `jobs` of them dark; the last bar, of several models, has all of them together.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    bars = [_Bar(shown(need.name), Fitting([need], fitting.room), "") for need in fitting.needs]
    if len(bars) > 1:
        bars.append(_Bar("all together", fitting, " of each"))
    figure = Figure(figsize=(11, 2.2 + 0.6 * len(bars)), layout="constrained")
    axes = figure.subplots()
    end = _draw_room(axes, fitting, bars)
    axes.set_xlim(0, end)
    for row, bar in enumerate(bars):
        _draw_bar(axes, row, bar, jobs, end)
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars], fontsize=9)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlabel("GiB")
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_title(
        f"How many jobs fit that read {prompt_tokens:,} tokens and generate {max_tokens:,}",
        loc="left",
        color=_INK,
        pad=20,
    )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    handles = _legend(jobs)
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_room(axes: Any, fitting: Fitting, bars: list[_Bar]) -> float:
    """The ceiling, and beyond it what stays free; returns where the axis ends."""
    room = fitting.room
    ceiling, memory = room.ceiling_bytes / GIB, room.memory_bytes / GIB
    most = max(bar.fitting.loaded_bytes for bar in bars) / GIB
    # Beside the longest bar there is room for its text; one that is many times too long is cut,
    # since it would leave nothing of the others to see.
    end = max(memory * 1.03, ceiling * 1.18, min(most, memory * 2.5) * 1.2)
    axes.axvspan(
        ceiling, memory, facecolor=_RESERVE, hatch="///", edgecolor="#e3e3e3", linewidth=0, zorder=0
    )
    for at, colour, style, name in (
        (ceiling, _CEILING, "-", "ceiling"),
        (memory, _INK, "--", "memory"),
    ):
        axes.axvline(at, color=colour, linewidth=1.5, linestyle=style, zorder=3)
        axes.annotate(
            f"{name} {at:.1f}",
            (at, 1),
            (0, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=colour,
        )
    return end


def _draw_bar(axes: Any, row: int, bar: _Bar, jobs: int, end: float) -> None:
    fitting, at = bar.fitting, 0.0
    weights = [need.measurement.weight_bytes for need in fitting.needs]
    parts = [(size, _WEIGHTS) for size in weights]
    parts += [(fitting.workspace_bytes, _WORKSPACE), (fitting.margin_bytes, _MARGIN)]
    for size, colour in parts:
        width = size / GIB
        _block(axes, row, at, width, colour)
        if colour == _WEIGHTS and width > 0.06 * end and at + width < end:
            _text(axes, row, at + width / 2, f"{width:.1f}", "white", ha="center")
        at += width
    ceiling = fitting.room.ceiling_bytes / GIB
    if fitting.left_bytes < 0:
        axes.barh(row, at, color="none", edgecolor=_OVER, linewidth=1.4, height=_HEIGHT, zorder=4)
        text, colour = f"  {format_bytes(-fitting.left_bytes)} too large", _OVER
        if at > 0.84 * end:
            _text(axes, row, end, f"{text}  ", "white", ha="right")
            return
    else:
        at = _draw_jobs(axes, row, fitting, jobs, at)
        enough = fitting.jobs >= jobs
        number = "job" if fitting.jobs == 1 else "jobs"
        text, colour = f"  {fitting.jobs:,} {number}{bar.unit}", _INK if enough else _OVER
    _text(axes, row, max(at, ceiling), text, colour, ha="left")


def _draw_jobs(axes: Any, row: int, fitting: Fitting, asked: int, at: float) -> float:
    """Job by job; returns where the last one ends."""
    width = fitting.round_bytes / GIB
    asked = min(asked, fitting.jobs)
    for count, colour in ((asked, _ASKED), (fitting.jobs - asked, _MORE)):
        if fitting.jobs > _MOST_JOBS:
            _block(axes, row, at, count * width, colour)
        else:
            for number in range(count):
                _block(axes, row, at + number * width, width, colour)
        at += count * width
    return at


def _block(axes: Any, row: int, at: float, width: float, colour: str) -> None:
    visible = width > 0.006 * axes.get_xlim()[1]  # of a narrower one the edge would leave nothing
    axes.barh(
        row,
        width,
        left=at,
        color=colour,
        edgecolor="white",
        linewidth=0.6 if visible else 0,
        height=_HEIGHT,
        zorder=2,
    )


def _text(axes: Any, row: int, at: float, text: str, colour: str, ha: str) -> None:
    from matplotlib.patheffects import withStroke

    halo = [] if colour == "white" else [withStroke(linewidth=3, foreground=_RESERVE)]
    axes.text(
        at, row, text, va="center", ha=ha, fontsize=9, color=colour, zorder=5, path_effects=halo
    )


def _legend(jobs: int) -> list[Any]:
    from matplotlib.patches import Patch

    asked = f"KV cache of {'the job' if jobs == 1 else f'the {jobs:,} jobs'} asked for"
    return [
        Patch(color=_WEIGHTS, label="weights"),
        Patch(color=_WORKSPACE, label="workspace of a step"),
        Patch(color=_MARGIN, label="margin"),
        Patch(color=_ASKED, label=asked),
        Patch(color=_MORE, label="of more jobs"),
        Patch(facecolor=_RESERVE, hatch="///", edgecolor="#cccccc", label="reserve and pool"),
    ]
