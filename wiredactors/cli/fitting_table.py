"""The table of `wiredactors estimate`: the models, the sum, the verdict, and what is uncertain."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import attrs

from wiredactors.cli.fitting import Fitting, shown
from wiredactors.memory.units import GIB, MIB, format_bytes

_WIDTH = 88
_HEADER = ("  model", "weights", "workspace", "margin", "KV of a job", "jobs alone")


def fitting_lines(
    fitting: Fitting,
    *,
    jobs: int,
    prompt_tokens: int,
    max_tokens: int,
    assumed: bool,
    draft: str | None = None,
) -> Iterator[str]:
    """The lines to print.

    Args:
        fitting: the models and the room.
        jobs: how many of each model are asked for at once.
        prompt_tokens, max_tokens: what a job reads and generates.
        assumed: whether the memory is that of a machine that was named, not of this one.
        draft: a model that drafts for each of the others, counted with each.
    """
    yield (
        f"A job reads {prompt_tokens:,} tokens and generates {max_tokens:,}. "
        "Nothing was loaded: sizes are predicted."
    )
    if draft is not None:
        yield f"{draft} drafts for each model, and is counted with it."
    yield ""
    yield from _table(fitting)
    yield ""
    yield from _budget(fitting, jobs, assumed)
    yield ""
    yield from _wrapped(" ".join(_verdict(fitting, jobs)))
    remarks = list(_remarks(fitting))
    if remarks:
        yield ""
        yield "~ approximate:"
        for remark in remarks:
            yield from _wrapped(remark, "  ", "  ")


def _table(fitting: Fitting) -> Iterator[str]:
    size, several = _unit(fitting), len(fitting.needs) > 1
    rows = [_HEADER, ("  ", *[size.name] * 4, "")]
    rows += [_row(shown(need.name), Fitting([need], fitting.room), size) for need in fitting.needs]
    if several:
        rows.append(_row("all together", fitting, size, " each"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    rule = "  " + "  ".join("-" * width for width in [widths[0] - 2, *widths[1:]])
    for number, row in enumerate(rows):
        if number == 2 or (several and number == len(rows) - 1):
            yield rule
        first, *others = row
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()


@attrs.frozen
class _Unit:
    """One unit for all numbers, so that they can be compared at a glance."""

    name: str
    size: int
    digits: int

    def __call__(self, count: int) -> str:
        return f"{count / self.size:,.{self.digits}f}"


def _unit(fitting: Fitting) -> _Unit:
    large = any(need.measurement.weight_bytes >= GIB for need in fitting.needs)
    return _Unit("GiB", GIB, 2) if large else _Unit("MiB", MIB, 1)


def _row(name: str, fitting: Fitting, size: _Unit, unit: str = "") -> tuple[str, ...]:
    return (
        f"{'~' if fitting.is_approximate else ' '} {name}",
        size(fitting.weight_bytes),
        size(fitting.workspace_bytes),
        size(fitting.margin_bytes),
        size(fitting.round_bytes),
        f"{fitting.jobs:,}{unit}" if fitting.left_bytes >= 0 else "too large",
    )


def _budget(fitting: Fitting, jobs: int, assumed: bool) -> Iterator[str]:
    room, several, size = fitting.room, len(fitting.needs) > 1, _unit(fitting)
    asked = jobs * fitting.round_bytes
    left = fitting.left_bytes - asked
    rows = [
        ("  memory", room.memory_bytes, "as you said" if assumed else "of this machine"),
        ("- reserve", room.reserve_bytes, "stays free for everything else"),
        ("- pool", room.pool_bytes, "MLX's freed buffers, which no ticket holds"),
        ("= ceiling", room.ceiling_bytes, "for all models and jobs together"),
        ("- weights", fitting.weight_bytes, ""),
        (
            "- workspace",
            fitting.workspace_bytes,
            "of one step, the largest: models take turns" if several else "of one step",
        ),
        ("- margin", fitting.margin_bytes, "for safety, once for each model" if several else ""),
        (f"- {_jobs(jobs, several)}", asked, "at once"),
        ("= left" if left >= 0 else "= MISSING", abs(left), ""),
    ]
    width = max(len(name) for name, _, _ in rows)
    cells = [size(count) for _, count, _ in rows]
    for (name, _, remark), cell in zip(rows, cells, strict=True):
        number = cell.rjust(max(map(len, cells)))
        yield f"  {name.ljust(width)}  {number} {size.name}  {remark}".rstrip()


def _jobs(count: int, several: bool) -> str:
    return f"{count:,} job{'s' * (count > 1)}{' of each model' if several else ''}"


def _verdict(fitting: Fitting, jobs: int) -> Iterator[str]:
    several = len(fitting.needs) > 1
    if fitting.fits(jobs):
        yield f"It fits: {_jobs(jobs, several)} at once, and up to {fitting.jobs:,}."
        return
    short = fitting.held_bytes(jobs) - fitting.room.ceiling_bytes
    asked = _jobs(jobs, several)
    yield f"It does not fit: {asked} at once would be {format_bytes(short)} too much."
    if fitting.left_bytes < 0:
        yield "Even without a job it is too large."
    elif fitting.jobs:
        yield f"Up to {_jobs(fitting.jobs, several)} would fit."
    else:
        yield "It can be loaded, but there is no room for a job."
    if several:
        yield from _advice(fitting, jobs)
    machine = fitting.machine_bytes(jobs)
    if machine is None:
        yield "No machine of up to 512 GiB holds it all."
    else:
        yield f"A machine of {machine // GIB} GiB would hold it all."


def _advice(fitting: Fitting, jobs: int) -> Iterator[str]:
    dropped = fitting.to_drop(jobs)
    if dropped is None:
        yield "Not one of them fits alone."
    else:
        rest = fitting.without(dropped)
        up_to = f"up to {_jobs(rest.jobs, len(rest.needs) > 1)}"
        yield f"Without {' and '.join(dropped)} it fits, with {up_to}."


def _remarks(fitting: Fitting) -> Iterator[str]:
    """Why numbers are approximate, each reason once."""
    reasons: dict[str, list[str]] = {}
    for need in fitting.needs:
        if need.measurement.approximate:
            reasons.setdefault(need.measurement.approximate, []).append(need.name)
    for reason, names in reasons.items():
        who = "" if len(names) == len(fitting.needs) else f"{', '.join(names)}: "
        yield who + reason


def _wrapped(text: str, first: str = "", later: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=later,
        break_on_hyphens=False,
        break_long_words=False,
    )
