"""How much memory this machine gives to the process, and how much of it is free now."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import attrs
import psutil

from wiredactors.memory.outside import MemoryReading

#: Where Linux says what a control group has.
_CGROUPS = Path("/sys/fs/cgroup")


@attrs.frozen
class _Layout:
    """The files of one version of control groups, and its words for the page cache."""

    limit: str
    usage: str
    stat: str
    file_pages: tuple[str, str]


_LAYOUTS = (
    _Layout("memory.max", "memory.current", "memory.stat", ("inactive_file", "active_file")),
    _Layout(
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        ("total_inactive_file", "total_active_file"),  # the groups inside it counted too
    ),
)


def host_memory_bytes() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's bound."""
    return _bounded(psutil.virtual_memory().total)


def read_host_memory() -> MemoryReading:
    """The machine's memory now, within its container's bound.

    It takes some 0.1 ms. Errors are psutil's own.
    """
    memory = psutil.virtual_memory()
    available: int = memory.available
    for layout in _LAYOUTS:
        with contextlib.suppress(OSError, ValueError):
            available = min(available, _group_available(layout))
    # Metal's buffers are not always in what the system calls resident; MLX knows of them.
    footprint = max(psutil.Process().memory_info().rss, mlx_bytes())
    total = _bounded(memory.total)
    # The sums of a group are taken one after the other, so they may come to more than its bound.
    return MemoryReading(total, max(0, min(available, total)), footprint)


def mlx_bytes() -> int:
    """Bytes of MLX's arrays and of its pool of freed buffers; 0 where nobody has imported it."""
    mx = sys.modules.get("mlx.core")
    try:
        return int(mx.get_active_memory() + mx.get_cache_memory()) if mx is not None else 0
    except AttributeError:  # another thread is amid importing it
        return 0


def _bounded(total: int) -> int:
    for layout in _LAYOUTS:
        # "max" is no bound; version 1 says a number beyond any machine instead.
        with contextlib.suppress(OSError, ValueError):
            total = min(total, _number(layout.limit))
    return total


def _group_available(layout: _Layout) -> int:
    """What the control group may still take. OSError or ValueError where it has no bound."""
    limit, usage = _number(layout.limit), _number(layout.usage)
    # The usage includes the pages of files that were read, such as a model's, and the kernel gives
    # those back before it refuses memory. Active ones too: a file that is read twice is active.
    pages = dict(line.split() for line in (_CGROUPS / layout.stat).read_text().splitlines())
    return limit - usage + sum(int(pages.get(name, 0)) for name in layout.file_pages)


def _number(name: str) -> int:
    return int((_CGROUPS / name).read_text())
