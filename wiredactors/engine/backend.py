"""The device's wired limit, and the facts about its memory.

Metal alone has a limit to set. Elsewhere `mx.set_wired_limit` does nothing and returns 0, so the
manager runs in policy-only mode there.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable

import attrs

from wiredactors.engine.device import DeviceThread
from wiredactors.engine.imports import import_mlx
from wiredactors.engine.machine import host_memory_bytes, mlx_bytes, read_host_memory
from wiredactors.memory.outside import MemoryReading


@attrs.frozen
class DeviceMemory:
    """What the device says of its memory, in bytes.

    Attributes:
        recommended_bytes: Metal's recommended working set; None elsewhere.
        total_bytes: memory of the device (on unified memory and CPU: of the machine).
        own: whether the device has memory of its own (CUDA), or shares the machine's.
    """

    recommended_bytes: int | None
    total_bytes: int
    own: bool = False


def device_memory() -> DeviceMemory:
    """Ask the GPU device for its memory; without one, the host.

    The GPU is named explicitly: `mx.device_info()` asks the default device, a process-wide
    setting that every `mx.stream(...)` context changes. MLX is imported only where it has a
    device to ask.
    """
    if "mlx.core" not in sys.modules and not _has_gpu_build():
        return DeviceMemory(None, host_memory_bytes())
    mx = import_mlx()
    info = mx.device_info(mx.gpu)  # {} without a GPU
    total = info.get("memory_size") or info.get("total_memory") or host_memory_bytes()
    recommended = info.get("max_recommended_working_set_size")
    return DeviceMemory(
        None if recommended is None else int(recommended), int(total), own="total_memory" in info
    )


def _read_device_memory() -> MemoryReading | None:
    """The device's own memory now; None where it does not say what is free."""
    mx = import_mlx()
    info = mx.device_info(mx.gpu)  # asks the driver each time
    if "free_memory" not in info:
        return None
    total = int(info["total_memory"])
    return MemoryReading(total, min(total, int(info["free_memory"])), mlx_bytes())


def _has_gpu_build() -> bool:
    if sys.platform == "darwin":
        return True
    names = ("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13")
    return any(_installed(name) for name in names)


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class DeviceLimitBackend:
    """Sets the wired limit of the device at once, on the calling thread.

    `write` is the guard's way past itself to MLX's own `set_wired_limit`.
    """

    def __init__(self, memory: DeviceMemory, write: Callable[[int], int | None]):
        self._memory = memory
        self._write = write

    @property
    def supported(self) -> bool:
        return self._memory.recommended_bytes is not None

    def recommended_working_set_bytes(self) -> int | None:
        return self._memory.recommended_bytes

    def total_memory_bytes(self) -> int:
        return self._memory.total_bytes

    def memory_reading(self) -> MemoryReading | None:
        """The memory now of the device, or of the machine where it has none of its own.

        None where the device does not say what is free. Errors are psutil's and MLX's own.
        """
        return _read_device_memory() if self._memory.own else read_host_memory()

    def set_wired_limit(self, limit: int) -> int | None:
        """Set the limit in bytes; returns the previous one.

        Raises:
            ValueError: MLX's own, above the recommended working set.
        """
        return self._write(limit)


class QuietLimitBackend(DeviceLimitBackend):
    """Sets the limit at a quiet point of the device thread.

    mlx-lm says that the limit must not change during an async evaluation, and its generators run
    one step ahead; so the thread that owns the streams waits for them first.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        write: Callable[[int], int | None],
        device: DeviceThread,
        synchronize: Callable[[], None],
    ):
        super().__init__(memory, write)
        self._device = device
        self._synchronize = synchronize

    def write_wired_limit(
        self, limit: int, done: Callable[[int | None, BaseException | None], object]
    ) -> None:
        """Set the limit in bytes soon; then `done(previous, error)` on the trio thread."""

        def write() -> None:
            try:
                self._synchronize()
                previous = self.set_wired_limit(limit)
            except Exception as error:
                self._device.deliver(done, None, error)
            else:
                self._device.deliver(done, previous, None)

        self._device.post(write)
