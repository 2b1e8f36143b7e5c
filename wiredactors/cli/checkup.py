"""What `wiredactors doctor` tries, and how it judges what it finds."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator
from typing import Literal

import attrs
import trio

from wiredactors.actors.opening import open_manager
from wiredactors.engine.diagnosis import (
    Device,
    Diagnosis,
    MacOS,
    Unknown,
    Versions,
    diagnose,
    reason,
    without_folders,
)
from wiredactors.engine.guard import GuardError
from wiredactors.engine.imports import SUPPORTED_MLX_LM, MLXNotInstalled, import_mlx, import_mlx_lm
from wiredactors.memory.events import EventKind, WiredMemoryEvent
from wiredactors.memory.policies import WiredSumPolicy
from wiredactors.memory.units import MIB, format_bytes

#: What the self-test's ticket holds: little, so that it fits wherever anything does.
_TRIAL_BYTES = MIB

#: A ticket of that size waits only where no memory at all is free.
_TRIAL_SECONDS = 10.0

#: What the stranger writes. Should it get through, as good as nothing is wired: MLX's own default.
_STRANGERS_BYTES = 1

_REPORT = "report it, as said below"


@attrs.frozen
class Check:
    """One thing that was looked at: whether it is well, and what to do where it is not.

    `todo` is None where nothing is to be done, or `text` says what.
    """

    name: str
    status: Literal["ok", "note", "broken"]
    text: str = attrs.field(converter=without_folders)
    todo: str | None = None


def examine(sysctl: Callable[[str], str] | None = None) -> tuple[Diagnosis, list[Check]]:
    """Gather the facts and try what can be tried; `sysctl` as for `diagnose`."""
    facts = diagnose(sysctl)
    checks = [_check_mlx(), _check_back_ends(facts.versions)]
    if checks[0].status == "ok":
        checks += [_check_mlx_lm(), *_check_manager(has_limit(facts.device))]
    else:
        left = ("mlx-lm", "guard", "self-test")
        checks += [Check(name, "note", "not tried: it needs MLX") for name in left]
    if isinstance(facts.device, Device):
        checks += _check_gpu(facts.device, facts.versions)
    if facts.macos is not None:
        checks += _check_macos(facts.macos, facts)
    return facts, checks


def has_limit(device: Device | Unknown) -> bool:
    """Whether there is a wired limit to set, as on Metal."""
    return isinstance(device, Device) and device.recommended_bytes is not None


def _check_mlx() -> Check:
    try:
        import_mlx()
    except Exception as error:  # a broken library raises more than ImportError
        todo = None if isinstance(error, MLXNotInstalled) else "install mlx and its back end again"
        if platform.system() == "Darwin" and platform.machine() != "arm64":
            todo = "MLX needs Apple silicon and a Python built for it (arm64); this one is not"
        return Check("MLX", "broken", reason(error), todo)
    return Check("MLX", "ok", "mlx.core can be imported")


def _check_back_ends(versions: Versions) -> Check:
    found = versions.back_ends
    if len(found) > 1:
        *_, (name, version) = found.items()
        return Check(
            "back end",
            "broken",
            f"{' and '.join(found)} are installed side by side and overwrite each other's files",
            f"pip uninstall {' '.join(found)}, then install anew the one that fits this machine, "
            f"for instance: pip install '{name}=={version}'",
        )
    if not found:
        return Check("back end", "note", "none is installed as a package; fine if you built MLX")
    ((name, version),) = found.items()
    if version != versions.mlx and versions.mlx is not None:
        return Check(
            "back end",
            "note",
            f"{name} is {version}, but mlx is {versions.mlx}; they are made to be equal",
            f"pip install '{name}=={versions.mlx}'",
        )
    return Check("back end", "ok", f"one is installed: {name}")


def _check_mlx_lm() -> Check:
    try:
        import_mlx_lm("generate")
    except MLXNotInstalled:  # there is MLX, so its own advice would mislead
        todo = f"pip install 'mlx-lm{SUPPORTED_MLX_LM}'"
        return Check("mlx-lm", "broken", "it is not installed", todo)
    except Exception as error:  # what its own dependencies raise
        todo = f"pip install --force-reinstall 'mlx-lm{SUPPORTED_MLX_LM}'"
        return Check("mlx-lm", "broken", reason(error), todo)
    return Check("mlx-lm", "ok", "mlx_lm can be imported")


def _check_manager(limited: bool) -> list[Check]:
    """Whether the guard keeps strangers off the limit, and a ticket sets and restores it."""
    try:
        events = trio.run(_try_manager)
    except GuardError as error:
        untried = "not tried: without the guard no manager opens"
        return [Check("guard", "broken", f"{error}"), Check("self-test", "note", untried)]
    except Exception as error:
        text = f"a manager with one ticket failed: {type(error).__name__}: {error}"
        return [Check("self-test", "broken", text, _REPORT)]
    return [_judge_guard(events), _judge_trial(events, limited)]


async def _try_manager() -> list[WiredMemoryEvent]:
    """Hold one small ticket, and write the limit as a stranger would."""
    events: list[WiredMemoryEvent] = []
    async with contextlib.AsyncExitStack() as listening:
        async with open_manager() as manager:
            stream = await listening.enter_async_context(manager.events())
            with trio.move_on_after(_TRIAL_SECONDS):
                async with WiredSumPolicy().ticket(_TRIAL_BYTES).wired_limit():
                    pass
            import_mlx().set_wired_limit(_STRANGERS_BYTES)
            with trio.move_on_after(1):
                async for event in stream:
                    events.append(event)
                    if _is_strangers(event):
                        break
        events += [event async for event in stream]
    return events


def _is_strangers(event: WiredMemoryEvent) -> bool:
    foreign = event.kind is EventKind.FOREIGN_LIMIT_WRITE
    return foreign and event.desired_limit == _STRANGERS_BYTES


def _judge_guard(events: list[WiredMemoryEvent]) -> Check:
    if any(_is_strangers(event) for event in events):
        return Check("guard", "ok", "mlx-lm's own writes of the wired limit are held back")
    return Check(
        "guard",
        "broken",
        "a foreign write of the wired limit was not seen; something else replaces MLX's functions",
        f"start without other packages that patch mlx; or {_REPORT}",
    )


def _judge_trial(events: list[WiredMemoryEvent], limited: bool) -> Check:
    def of(kind: EventKind) -> list[WiredMemoryEvent]:
        return [event for event in events if event.kind is kind]

    name = "self-test"
    if not of(EventKind.TICKET_ENDED):
        text = f"no room for a ticket of {format_bytes(_TRIAL_BYTES)} in {_TRIAL_SECONDS:.0f} s"
        return Check(name, "broken", text, "close other programs: no memory is free")
    if not limited:
        return Check(name, "ok", "policy-only mode: nothing to set (only Metal has a wired limit)")
    for event in of(EventKind.LIMIT_APPLY_FAILED):
        size = format_bytes(event.desired_limit or 0)
        text = f"setting a wired limit of {size} failed: {event.error}"
        return Check(name, "broken", text, _REPORT)
    for event in of(EventKind.FOREIGN_LIMIT_WRITE):
        if not _is_strangers(event):
            found = format_bytes(event.desired_limit or 0)
            text = f"the wired limit did not stay as it was set: it was found at {found}"
            return Check(name, "broken", text, "look for what else in this process sets it")
    restored = of(EventKind.BASELINE_RESTORED)
    if not restored:
        return Check(name, "broken", "the wired limit was not restored", _REPORT)
    back = format_bytes(restored[-1].applied_limit or 0)
    return Check(name, "ok", f"the wired limit was set, and restored to {back}")


def _check_gpu(device: Device, versions: Versions) -> Iterator[Check]:
    if device.kind == "CPU" and any("cuda" in name for name in versions.back_ends):
        yield Check(
            "GPU",
            "note",
            "a CUDA back end is installed, but MLX sees no GPU and computes on the CPU",
            "see whether `nvidia-smi` lists the GPU, and whether its driver is new enough",
        )


def _check_macos(macos: MacOS, facts: Diagnosis) -> Iterator[Check]:
    # The rules are those of MLX's metal/resident.cpp, read and never run on a Mac.
    major = macos.version.partition(".")[0]
    if major.isdecimal() and int(major) < 15:
        text = (
            f"before macOS 15 (this is {macos.version}) MLX remembers the limit but wires nothing"
        )
        yield Check("macOS", "note", text, "update macOS, or rely on admission alone")
    if macos.virtual is True:
        yield Check(
            "macOS", "note", "in a virtual machine MLX remembers the limit but wires nothing"
        )
    device, reserve = facts.device, facts.memory.reserve_bytes
    if not has_limit(device) or isinstance(device, Unknown) or isinstance(reserve, Unknown):
        return
    most = (device.memory_bytes - reserve) // MIB
    command = f"sudo sysctl iogpu.wired_limit_mb={most}"
    lasts = "for programs started afterwards, until the machine restarts"
    if most * MIB > (device.recommended_bytes or 0):
        text = f"more may be wired: {format_bytes(most * MIB)} would leave the reserve free"
        yield Check("wired memory", "note", text, f"{command} ({lasts})")
    else:
        text = (
            f"macOS lets {format_bytes(device.recommended_bytes or 0)} be wired, which leaves less "
            "than the reserve free; raising that has frozen machines"
        )
        todo = (
            f"nothing, or keep the reserve free: WiredMemoryConfiguration(admission_ceiling={most} "
            f"* MIB) in your program, or for all programs {command} ({lasts})"
        )
        yield Check("wired memory", "note", text, todo)
