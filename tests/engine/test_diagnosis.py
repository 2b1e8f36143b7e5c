"""The facts of an installation: each by itself, none of them telling whose machine it is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

import wiredactors as wa
from wiredactors.engine import diagnosis, machine
from wiredactors.engine.diagnosis import Device, Unknown, diagnose, read_sysctl, without_folders
from wiredactors.memory.configuration import reserve_bytes

mx = pytest.importorskip("mlx.core")

METAL = {
    "device_name": "Apple M2 Max",
    "memory_size": 64 * wa.GIB,
    "max_recommended_working_set_size": 48 * wa.GIB,
    "max_buffer_length": 36 * wa.GIB,
}
CUDA = {"device_name": "NVIDIA H100", "total_memory": 80 * wa.GIB, "free_memory": 79 * wa.GIB}

Install = Callable[[str, str], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Makes a package look installed, besides those that are."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(name: str, version: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}")

    return add


def test_here_every_fact_is_known_and_the_ceiling_is_the_managers() -> None:
    facts = diagnose()
    assert "unknown" not in str(facts)
    assert facts.macos is None or sys.platform == "darwin"

    async def ceiling() -> int | None:
        async with wa.open_manager() as manager:
            return manager.snapshot().ceiling

    assert facts.memory.ceiling_bytes == trio.run(ceiling)


def test_metal_shares_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "device_info", lambda *_: METAL)
    facts = diagnose()
    free = facts.device.free_bytes if isinstance(facts.device, Device) else None
    assert isinstance(free, int)
    assert facts.device == Device(
        "Metal", "Apple M2 Max", 64 * wa.GIB, free, 36 * wa.GIB, 48 * wa.GIB
    )
    assert facts.memory.ceiling_bytes == 48 * wa.GIB
    assert facts.memory.reserve_bytes == reserve_bytes(64 * wa.GIB)


def test_cuda_has_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "device_info", lambda *_: CUDA)
    facts = diagnose()
    assert facts.device == Device("CUDA", "NVIDIA H100", 80 * wa.GIB, 79 * wa.GIB, None, None)
    assert facts.memory.ceiling_bytes == 52 * wa.GIB, "80 GiB less 35 %"


def test_a_container_bounds_what_may_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mx, "device_info", lambda *_: {})
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    (tmp_path / "memory.max").write_text(f"{wa.GIB}\n")
    memory = diagnose().memory
    assert memory.usable_bytes == wa.GIB
    assert memory.ceiling_bytes == wa.GIB // 2
    assert isinstance(memory.machine_bytes, int)
    assert memory.machine_bytes > wa.GIB


def test_every_back_end_that_is_installed_is_named(install: Install) -> None:
    install("mlx-cuda-12", "0.32.4")
    back_ends = diagnose().versions.back_ends
    assert back_ends["mlx-cuda-12"] == "0.32.4"
    assert len(back_ends) == 2, "the real one besides"


def test_a_package_that_is_not_there_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    versions = diagnose().versions
    assert versions.mlx is None
    assert versions.mlx_lm is None
    assert versions.back_ends == {}


def test_a_fact_that_fails_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no driver in /home/annabel/cuda/lib/libcuda.so")

    monkeypatch.setattr(mx, "device_info", fail)
    facts = diagnose()
    assert facts.device == Unknown("no driver in libcuda.so")
    assert facts.memory.ceiling_bytes == Unknown("no driver in libcuda.so")
    assert isinstance(facts.memory.free_bytes, int)


def test_a_system_that_does_not_name_itself_is_known_by_its_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> dict[str, str]:
        raise OSError("no such file")

    platform = SimpleNamespace(
        mac_ver=lambda: ("",),
        freedesktop_os_release=fail,
        system=lambda: "Linux",
        release=lambda: "6.1",
        machine=lambda: "aarch64",
        python_version=lambda: "3.11.7",
    )
    monkeypatch.setattr(diagnosis, "platform", platform)
    assert diagnose().versions.system == "Linux 6.1"
    assert diagnose().versions.python == "3.11.7 (aarch64)"


def test_macos_is_asked_for_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis.platform, "mac_ver", lambda: ("15.5",))
    answers = {"iogpu.wired_limit_mb": "57344", "kern.hv_vmm_present": "0"}
    assert diagnose(answers.__getitem__).macos == diagnosis.MacOS("15.5", 57344, virtual=False)


def test_what_macos_does_not_answer_is_unknown() -> None:
    def sysctl(name: str) -> str:
        raise OSError(f"unknown oid '{name}'")

    macos = diagnose(sysctl).macos
    assert macos is not None
    assert macos.wired_limit_mib == Unknown("unknown oid 'iogpu.wired_limit_mb'")
    assert macos.virtual == Unknown("unknown oid 'kern.hv_vmm_present'")


@pytest.fixture
def sysctl_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    def write(script: str) -> None:
        path = tmp_path / "sysctl"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(diagnosis, "_SYSCTL", str(path))

    return write


def test_sysctl_is_asked_for_the_value_alone(sysctl_is: Callable[[str], None]) -> None:
    sysctl_is("printf '%s\\n' \"$*\"")
    assert read_sysctl("iogpu.wired_limit_mb") == "-n iogpu.wired_limit_mb"


@pytest.mark.parametrize(
    ("script", "message"),
    [("echo unknown oid >&2; exit 1", "unknown oid"), ("exit 3", "ended with status 3")],
)
def test_a_sysctl_that_fails_says_why(
    sysctl_is: Callable[[str], None], script: str, message: str
) -> None:
    sysctl_is(script)
    with pytest.raises(OSError, match=message):
        read_sysctl("x")


def test_a_sysctl_that_hangs_is_given_up(
    sysctl_is: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sysctl_is("exec sleep 60")
    monkeypatch.setattr(diagnosis, "_SYSCTL_SECONDS", 0.1)
    with pytest.raises(subprocess.TimeoutExpired):
        read_sysctl("x")


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/home/annabel/venv/lib/libmlx.so: cannot open", "libmlx.so: cannot open"),
        ("dlopen('/Users/annabel/My Models/mlx/core.so')", "dlopen('My Models/mlx/core.so')"),
        ("denied: /Users/annabel", "denied: ~"),
        ("denied: /srv/annabel", "denied: ~"),
        ("/srv/annabel/model", "model"),
        ("a CPU/CUDA build, see https://example.org/a/b", None),
    ],
)
def test_folders_do_not_get_out(
    monkeypatch: pytest.MonkeyPatch, text: str, public: str | None
) -> None:
    monkeypatch.setenv("HOME", "/srv/annabel")
    assert without_folders(text) == (text if public is None else public)


def test_a_home_at_the_root_eats_no_slashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert without_folders("CPU/CUDA") == "CPU/CUDA"
