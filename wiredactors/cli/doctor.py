"""`wiredactors doctor`: what is installed here, what memory there is, and whether it all works."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from typing import Any

import attrs

from wiredactors.cli.checkup import Check, examine, has_limit
from wiredactors.engine.diagnosis import Device, Diagnosis, MacOS, Unknown, Versions
from wiredactors.engine.imports import SUPPORTED_MLX_LM
from wiredactors.memory.units import format_bytes

_WIDTH = 88

_REPORT = (
    "send this whole output, the script or steps that led to it, and the event log: `wiredactors "
    "demo` and `wiredactors run` say where theirs is, a program of yours writes one with "
    "wiredactors.log_events. The output names no user, host or folder; look through the log "
    "yourself before you send it."
)


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "doctor", help="what is installed, what memory there is, whether it works; for bug reports"
    )
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Say everything that can be known here; the status is 1 if something is broken."""
    facts, checks = examine()
    broken = sum(check.status == "broken" for check in checks)
    if options.json:
        record = {
            "healthy": not broken,
            **attrs.asdict(facts),
            "checks": [attrs.asdict(check) for check in checks],
        }
        print(json.dumps(record, indent=2))
    else:
        for line in _lines(facts, checks, broken):
            print(line)
    return 1 if broken else 0


def _lines(facts: Diagnosis, checks: list[Check], broken: int) -> Iterator[str]:
    yield "Versions"
    yield from _versions(facts.versions)
    yield ""
    yield "Memory"
    yield from _memory(facts)
    yield ""
    yield "Checks"
    for check in checks:
        yield from _entry(f"{check.name:16}{check.status}", check.text, margin=25)
        if check.todo is not None:
            yield from _entry("", f"To do: {check.todo}", margin=25)
    yield ""
    yield _verdict(broken)
    yield from textwrap.wrap(f"To report a bug, {_REPORT}", _WIDTH)


def _verdict(broken: int) -> str:
    if not broken:
        return "All is well."
    what = "One thing is" if broken == 1 else f"{broken} things are"
    return f'{what} broken: what to do stands beside "broken" above.'


def _versions(versions: Versions) -> Iterator[str]:
    absent = "not installed"
    yield from _entry("wiredactors", versions.wiredactors or absent)
    yield from _entry("Python", versions.python)
    yield from _entry("system", versions.system)
    yield from _entry("MLX", versions.mlx or absent)
    back_ends = [f"{name} {version}" for name, version in versions.back_ends.items()]
    yield from _entry("MLX back end", " and ".join(back_ends) or absent)
    yield from _entry("mlx-lm", f"{versions.mlx_lm or absent} (supported: {SUPPORTED_MLX_LM})")
    none = f"{absent} (only images and videos need it)"
    yield from _entry("mlx-vlm", versions.mlx_vlm or none)
    yield from _entry("trio", versions.trio or absent)


def _memory(facts: Diagnosis) -> Iterator[str]:
    memory, device, macos = facts.memory, facts.device, facts.macos
    yield from _entry("machine", _size(memory.machine_bytes))
    if memory.usable_bytes != memory.machine_bytes:
        remark = ", all that this process may use of it (cgroup limit)"
        yield from _entry("container", _size(memory.usable_bytes, remark))
    yield from _entry("free now", _size(memory.free_bytes))
    if isinstance(device, Unknown):
        yield from _entry("device", device)
    else:
        yield from _device(device)
    if macos is not None:
        yield from _entry("macOS limit", f"{_system_limit(macos)} (iogpu.wired_limit_mb)")
    remark = ", which should stay free for everything else"
    yield from _entry("reserve", _size(memory.reserve_bytes, remark))
    source = "the working set" if has_limit(device) else "memory less the reserve"
    remark = f" for all models and jobs together ({source})"
    yield from _entry("default ceiling", _size(memory.ceiling_bytes, remark))


def _device(device: Device) -> Iterator[str]:
    yield from _entry("device", f"{device.kind}: {device.name}")
    if device.kind == "CUDA":
        text = f"{_size(device.memory_bytes)}, of which {_size(device.free_bytes)} free now"
        yield from _entry("GPU memory", text)
    if device.max_buffer_bytes is not None:
        yield from _entry("largest array", _size(device.max_buffer_bytes))
    if device.recommended_bytes is None:
        yield from _entry("working set", "none recommended: only Metal does that")
    else:
        remark = ", the most that can be wired, as Metal recommends"
        yield from _entry("working set", _size(device.recommended_bytes, remark))


def _system_limit(macos: MacOS) -> str:
    mib = macos.wired_limit_mib
    if isinstance(mib, Unknown):
        return f"{mib}"
    return f"{mib} MiB, set by hand" if mib else "0, which leaves it to macOS"


def _entry(name: str, value: object, margin: int = 18) -> list[str]:
    return textwrap.wrap(
        f"{value}",
        _WIDTH,
        initial_indent=f"  {name}".ljust(margin),
        subsequent_indent=" " * margin,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _size(count: int | Unknown | None, remark: str = "") -> str:
    if isinstance(count, Unknown):
        return f"{count}"
    return f"{'none' if count is None else format_bytes(count)}{remark}"
