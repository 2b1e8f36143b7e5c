"""The devices that MLX computes on: the room that an array takes there, how far work runs ahead.

Read from mlx 0.32. CPU and CUDA (on an H100) are measured against it; of Metal this is what its
source says, and nobody has measured it yet.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from wiredactors.engine.gpu_kernels import CudaKernels, MetalKernels
from wiredactors.engine.imports import import_mlx
from wiredactors.engine.kernels import Kernels

#: What MLX allocates in, on Metal and CUDA (there it is its own choice).
_PAGE = 16384


def _exactly(size: int) -> int:
    return size


def _on_cuda(size: int) -> int:
    """Powers of two of at least 8 bytes, and whole pages from a page on (`cuda/allocator.cpp`)."""
    if size >= _PAGE:
        return -(-size // _PAGE) * _PAGE
    return max(8, 1 << (size - 1).bit_length()) if size else 0


def _on_metal(size: int) -> int:
    """Exactly as much up to a page, whole pages beyond (`metal/allocator.cpp`)."""
    return size if size <= _PAGE else -(-size // _PAGE) * _PAGE


_CPU, _CUDA, _METAL = Kernels(), CudaKernels(), MetalKernels()


@attrs.frozen
class Device:
    """How far work that was given out may be ahead of work that is done, and what memory it takes.

    Attributes:
        tasks: so many tasks may be under way; one more waits for the first of them.
        task_calls: calls that make one task. On a CPU a task ends with a certain call, on a GPU
            after the operation that comes to more than these.
        task_items: on a GPU a task ends, too, when what it reads comes to more items of arrays.
        kernels: what operations need besides their results.
        allocated: bytes that MLX counts for an array of so many.
    """

    tasks: int = 10  # MAX_ACTIVE_TASKS in mlx/transforms.cpp
    task_calls: int = 10  # DISPATCHES_PER_TASK in mlx/backend/cpu/encoder.h
    task_items: int | None = None
    kernels: Kernels = _CPU
    allocated: Callable[[int], int] = _exactly


CPU = Device()


def cuda(compute_capability: int = 90) -> Device:
    """A GPU of NVIDIA, by its compute capability in tenths (`get_graph_limits`)."""
    calls, mega = {
        80: (20, 400),  # A100
        90: (100, 1000),  # H100
        100: (100, 1000),  # B200
        120: (100, 1000),  # RTX 50
        121: (20, 25),  # DGX Spark
    }.get(compute_capability, (20, 100))
    return Device(
        task_calls=calls,
        task_items=(mega + 1) << 20,
        kernels=_CUDA,
        allocated=_on_cuda,
    )


def metal(architecture: str = "") -> Device:
    """A GPU of Apple, by the letter that its architecture's name ends with (`metal/device.cpp`).

    That is p on a phone, g in a base or Pro chip, s in a Max, d in an Ultra.
    """
    calls, mega = {"p": (20, 40), "s": (50, 50), "d": (50, 50)}.get(architecture[-1:], (40, 40))
    return Device(
        task_calls=calls,
        task_items=(mega + 1) << 20,
        kernels=_METAL,
        allocated=_on_metal,
    )


def device() -> Device:
    """The one that is MLX's default, as it is now. On the thread that calls MLX."""
    mx = import_mlx()
    if mx.default_device() == mx.cpu:
        return CPU
    info = mx.device_info(mx.gpu)
    if mx.metal.is_available():
        return metal(str(info.get("architecture", "")))
    major, minor = (int(info[f"compute_capability_{part}"]) for part in ("major", "minor"))
    return cuda(10 * major + minor)
