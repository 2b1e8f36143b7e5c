"""The host's memory, within what a control group gives to the process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from wiredactors.engine import machine
from wiredactors.memory.outside import MemoryReading

TOTAL, AVAILABLE, RSS = 1000, 700, 50

Groups = Callable[..., None]


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Groups:
    """A machine of 1,000 bytes, 700 of them available; writes the files of its control group."""
    host = SimpleNamespace(total=TOTAL, available=AVAILABLE)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=RSS))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: host)
    monkeypatch.setattr(psutil, "Process", lambda: process)
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setitem(sys.modules, "mlx.core", None)

    def write(**files: object) -> None:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("DOT", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{text}\n")

    return write


def version_2(groups: Groups, limit: object, usage: int, stat: str = "anon 1") -> None:
    groups(memoryDOTmax=limit, memoryDOTcurrent=usage, memoryDOTstat=stat)


def version_1(groups: Groups, limit: object, usage: int, stat: str = "cache 1") -> None:
    groups(
        memory__memoryDOTlimit_in_bytes=limit,
        memory__memoryDOTusage_in_bytes=usage,
        memory__memoryDOTstat=stat,
    )


def test_without_a_control_group_it_is_the_machines(groups: Groups) -> None:
    assert machine.read_host_memory() == MemoryReading(TOTAL, AVAILABLE, RSS)


@pytest.mark.parametrize("version", [version_1, version_2])
def test_a_group_bounds_what_there_is_and_what_is_available(
    groups: Groups, version: Groups
) -> None:
    version(groups, 400, 150)
    assert machine.read_host_memory() == MemoryReading(400, 250, RSS)
    assert machine.host_memory_bytes() == 400


def test_a_group_that_has_room_where_the_machine_has_none_has_none_either(groups: Groups) -> None:
    version_2(groups, 900, 100)
    assert machine.read_host_memory() == MemoryReading(900, AVAILABLE, RSS)


@pytest.mark.parametrize(
    ("version", "stat"),
    [
        (version_2, "anon 30\ninactive_file 90\nactive_file 40\nslab 5"),
        (version_1, "inactive_file 7\ntotal_inactive_file 90\ntotal_active_file 40"),
    ],
)
def test_pages_of_files_that_were_read_are_available(
    groups: Groups, version: Groups, stat: str
) -> None:
    version(groups, 400, 150, stat)
    assert machine.read_host_memory().available_bytes == 400 - 150 + 90 + 40


@pytest.mark.parametrize(
    ("version", "limit"), [(version_2, "max"), (version_1, 9223372036854771712)]
)
def test_a_group_without_a_bound_bounds_nothing(
    groups: Groups, version: Groups, limit: object
) -> None:
    version(groups, limit, 150)
    assert machine.read_host_memory() == MemoryReading(TOTAL, AVAILABLE, RSS)


def test_a_group_beyond_its_bound_has_nothing_available(groups: Groups) -> None:
    version_2(groups, 400, 410)
    assert machine.read_host_memory().available_bytes == 0


def test_files_that_cannot_be_read_bound_nothing(groups: Groups) -> None:
    groups(memoryDOTmax=400)  # and no usage
    version_1(groups, 500, 1, "what is this")
    assert machine.read_host_memory() == MemoryReading(400, 400, RSS), "what there is, at most"


def test_no_more_is_available_than_there_is(groups: Groups) -> None:
    version_2(groups, 400, 150, "inactive_file 200\nactive_file 60")
    assert machine.read_host_memory() == MemoryReading(400, 400, RSS)


@pytest.mark.parametrize(("active", "pool", "footprint"), [(30, 40, 70), (20, 10, RSS)])
def test_the_footprint_is_the_larger_of_the_systems_word_and_mlxs(
    groups: Groups, monkeypatch: pytest.MonkeyPatch, active: int, pool: int, footprint: int
) -> None:
    mx = SimpleNamespace(get_active_memory=lambda: active, get_cache_memory=lambda: pool)
    monkeypatch.setitem(sys.modules, "mlx.core", mx)
    assert machine.read_host_memory().footprint_bytes == footprint


def test_mlx_that_is_being_imported_right_now_has_nothing_yet(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", SimpleNamespace())
    assert machine.mlx_bytes() == 0


def test_the_real_one_sees_memory_that_mlx_takes() -> None:
    mx = pytest.importorskip("mlx.core")
    before = machine.read_host_memory()
    array = mx.ones((64 * 2**20,), mx.uint8)
    mx.eval(array)
    after = machine.read_host_memory()
    assert 0 < after.available_bytes < after.total_bytes == machine.host_memory_bytes()
    assert after.footprint_bytes >= max(before.footprint_bytes, array.nbytes)


def test_reading_imports_no_mlx() -> None:
    program = """
import sys
from wiredactors.engine.backend import DeviceLimitBackend, DeviceMemory
DeviceLimitBackend(DeviceMemory(None, 1000), print).memory_reading()
print([name for name in sys.modules if name.split(".")[0] == "mlx"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
