"""Where the device has memory of its own, its memory is read, and else the host's."""

from __future__ import annotations

from typing import Any

import pytest

from wiredactors.engine.backend import DeviceLimitBackend, DeviceMemory, device_memory
from wiredactors.engine.machine import host_memory_bytes
from wiredactors.memory.outside import MemoryReading

mx = pytest.importorskip("mlx.core")

METAL = {"memory_size": 1000, "max_recommended_working_set_size": 750}
CUDA = {"total_memory": 1000, "free_memory": 600}


def backend_on(
    monkeypatch: pytest.MonkeyPatch, info: dict[str, int]
) -> tuple[DeviceLimitBackend, dict[str, int]]:
    """The backend of a device that says `info`, which may be changed."""
    said = dict(info)

    def device_info(device: Any) -> dict[str, int]:
        assert device == mx.gpu
        return dict(said)

    monkeypatch.setattr(mx, "device_info", device_info)
    return DeviceLimitBackend(device_memory(), lambda limit: 0), said


@pytest.mark.parametrize(
    ("info", "memory"),
    [
        (METAL, DeviceMemory(750, 1000, own=False)),
        (CUDA, DeviceMemory(None, 1000, own=True)),
        ({}, DeviceMemory(None, host_memory_bytes(), own=False)),
    ],
)
def test_the_device_says_what_it_has(
    monkeypatch: pytest.MonkeyPatch, info: dict[str, int], memory: DeviceMemory
) -> None:
    monkeypatch.setattr(mx, "device_info", lambda device: info)
    assert device_memory() == memory


def test_a_device_with_memory_of_its_own_is_asked_for_it_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend, said = backend_on(monkeypatch, CUDA)
    monkeypatch.setattr(mx, "get_active_memory", lambda: 40)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 3)
    # What the process has of the host's memory is no part of it.
    assert backend.memory_reading() == MemoryReading(1000, 600, 43)
    said["free_memory"] = 1001
    assert backend.memory_reading() == MemoryReading(1000, 1000, 43), "no more than there is"
    said["free_memory"] = 100
    assert backend.memory_reading() == MemoryReading(1000, 100, 43)


def test_one_that_does_not_say_what_is_free_is_not_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend, said = backend_on(monkeypatch, CUDA)
    del said["free_memory"]
    assert backend.memory_reading() is None


@pytest.mark.parametrize("info", [METAL, {}])
def test_a_device_that_shares_the_hosts_memory_is_read_as_the_host(
    monkeypatch: pytest.MonkeyPatch, info: dict[str, int]
) -> None:
    backend, _ = backend_on(monkeypatch, info)
    reading = backend.memory_reading()
    assert reading is not None
    assert reading.total_bytes == host_memory_bytes()
