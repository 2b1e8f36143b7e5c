"""What an installation and its device are like, as far as it decides how the library behaves.

Made to be pasted in public: no name of a host or a user, no folder. A fact that cannot be had
says why, and never fails the others.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Literal, TypeVar

import attrs
import psutil

from wiredactors.engine.backend import DeviceLimitBackend, DeviceMemory, device_memory
from wiredactors.engine.imports import MLXNotInstalled, import_mlx
from wiredactors.engine.machine import host_memory_bytes, read_host_memory
from wiredactors.memory.configuration import WiredMemoryConfiguration, ceiling_of, reserve_bytes

T = TypeVar("T")

#: The packages that hold MLX's library. All put it into the same folder.
_BACK_ENDS = ("mlx-cpu", "mlx-cuda", "mlx-cuda-12", "mlx-cuda-13", "mlx-metal")

_SYSCTL = "/usr/sbin/sysctl"
_SYSCTL_SECONDS = 5.0


def without_folders(text: str) -> str:
    """`text` with each path cut to its last part, which alone is of use to a stranger."""
    home = os.path.expanduser("~")
    if len(home) > 1:
        text = text.replace(home, "~")
    text = re.sub(r"/(?:home|Users)/[^/\s:'\"]+", "~", text)
    return re.sub(r"(?<![\w/])(?:~?(?:/[^\s:'\"/]+)+/|~/)", "", text)


def reason(error: Exception) -> str:
    """What `error` says, or at least its name."""
    return f"{error}" or type(error).__name__


@attrs.frozen
class Unknown:
    """A fact that could not be had: `unknown` is the reason."""

    unknown: str = attrs.field(converter=without_folders)

    def __str__(self) -> str:
        return f"unknown: {self.unknown}"


@attrs.frozen
class Versions:
    """What is installed, None for what is not.

    Attributes:
        python: with the processor that it is built for.
        back_ends: the packages that hold MLX's library, with their versions.
    """

    wiredactors: str | None
    python: str
    system: str | Unknown
    mlx: str | None
    back_ends: dict[str, str]
    mlx_lm: str | None
    trio: str | None
    mlx_vlm: str | None = None


@attrs.frozen
class Device:
    """What MLX computes on. Sizes are bytes.

    Attributes:
        kind: "Metal" and "CPU" share the machine's memory, "CUDA" has memory of its own.
        memory_bytes: its memory, or what this process may use of the machine's.
        free_bytes: what could be had of it now.
        max_buffer_bytes: the largest single array; None where MLX knows no bound.
        recommended_bytes: Metal's recommended working set; None elsewhere.
    """

    kind: Literal["CPU", "CUDA", "Metal"]
    name: str | Unknown
    memory_bytes: int
    free_bytes: int | Unknown
    max_buffer_bytes: int | None
    recommended_bytes: int | None


@attrs.frozen
class Memory:
    """The machine's memory, and how it is shared out by default. Sizes are bytes.

    Attributes:
        machine_bytes: what is built in.
        usable_bytes: what this process may use: less, if its container has a bound.
        free_bytes: what this process could have now.
        reserve_bytes: what should stay free of the device's memory for everything else.
        ceiling_bytes: what all tickets of a manager may hold together.
    """

    machine_bytes: int | Unknown
    usable_bytes: int | Unknown
    free_bytes: int | Unknown
    reserve_bytes: int | Unknown
    ceiling_bytes: int | Unknown | None


@attrs.frozen
class MacOS:
    """What macOS says of wired memory.

    Attributes:
        wired_limit_mib: `iogpu.wired_limit_mb`, which counts MiB; 0 leaves it to macOS.
        virtual: whether this is a virtual machine.
    """

    version: str
    wired_limit_mib: int | Unknown
    virtual: bool | Unknown


@attrs.frozen
class Diagnosis:
    """Everything that can be known without changing anything; `macos` is None elsewhere."""

    versions: Versions
    device: Device | Unknown
    memory: Memory
    macos: MacOS | None


def diagnose(sysctl: Callable[[str], str] | None = None) -> Diagnosis:
    """Gather the facts; imports MLX, sets nothing.

    Args:
        sysctl: reads one setting of macOS by its name, or raises; None runs the real command on
            macOS, and nothing elsewhere.
    """
    if sysctl is None and sys.platform == "darwin":
        sysctl = read_sysctl
    device = _attempt(_device)
    return Diagnosis(
        versions=_versions(),
        device=device,
        memory=_memory(),
        macos=None if sysctl is None else _macos(sysctl),
    )


def read_sysctl(name: str) -> str:
    """The value of one setting of the macOS kernel.

    Raises:
        OSError: there is no such command or setting.
        subprocess.TimeoutExpired: no answer within 5 seconds.
    """
    done = subprocess.run(
        [_SYSCTL, "-n", name], capture_output=True, text=True, timeout=_SYSCTL_SECONDS
    )
    if done.returncode:
        raise OSError(done.stderr.strip() or f"sysctl ended with status {done.returncode}")
    return done.stdout.strip()


def _attempt(ask: Callable[[], T]) -> T | Unknown:
    try:
        return ask()
    except MLXNotInstalled:  # its advice belongs in one place, not beside every fact
        return Unknown("MLX cannot be imported")
    except Exception as error:  # whatever a half-broken MLX or a sandboxed system raises
        return Unknown(reason(error))


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> Versions:
    back_ends = {name: _version(name) for name in _BACK_ENDS}
    return Versions(
        wiredactors=_version("wiredactors"),
        python=f"{platform.python_version()} ({platform.machine()})",
        system=_attempt(_system),
        mlx=_version("mlx"),
        back_ends={name: version for name, version in back_ends.items() if version},
        mlx_lm=_version("mlx-lm"),
        trio=_version("trio"),
        mlx_vlm=_version("mlx-vlm"),
    )


def _system() -> str:
    version = platform.mac_ver()[0]
    if version:
        return f"macOS {version}"
    kernel = f"{platform.system()} {platform.release()}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except (OSError, KeyError):
        return kernel


def _device() -> Device:
    mx = import_mlx()
    info = mx.device_info(mx.gpu)  # {} without a GPU
    memory = device_memory()
    kind: Literal["CPU", "CUDA", "Metal"] = "CUDA" if memory.own else "CPU"
    if memory.recommended_bytes is not None:
        kind = "Metal"
    largest = info.get("max_buffer_length")
    return Device(
        kind=kind,
        name=_attempt(lambda: str((info or mx.device_info(mx.cpu))["device_name"])),
        memory_bytes=memory.total_bytes,
        free_bytes=_attempt(lambda: _free(memory)),
        max_buffer_bytes=None if largest is None else int(largest),
        recommended_bytes=memory.recommended_bytes,
    )


def _free(memory: DeviceMemory) -> int:
    reading = DeviceLimitBackend(memory, lambda limit: None).memory_reading()
    if reading is None:
        raise LookupError("the device does not say what is free")
    return reading.available_bytes


def _memory() -> Memory:
    def ceiling() -> int | None:
        memory = device_memory()
        return ceiling_of(
            WiredMemoryConfiguration(),
            supported=memory.recommended_bytes is not None,
            recommended_bytes=memory.recommended_bytes,
            total_memory=memory.total_bytes,
        )

    return Memory(
        machine_bytes=_attempt(lambda: int(psutil.virtual_memory().total)),
        usable_bytes=_attempt(host_memory_bytes),
        free_bytes=_attempt(lambda: read_host_memory().available_bytes),
        reserve_bytes=_attempt(lambda: reserve_bytes(device_memory().total_bytes)),
        ceiling_bytes=_attempt(ceiling),
    )


def _macos(sysctl: Callable[[str], str]) -> MacOS:
    # Written from Apple's and MLX's documentation, and never run on a Mac.
    return MacOS(
        version=platform.mac_ver()[0],
        wired_limit_mib=_attempt(lambda: int(sysctl("iogpu.wired_limit_mb"))),
        virtual=_attempt(lambda: sysctl("kern.hv_vmm_present") == "1"),
    )
