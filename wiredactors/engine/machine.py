"""How much memory this machine gives to the process."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

#: Where Linux says what a control group may use: version 2, then version 1.
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def host_memory_bytes() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's bound."""
    total: int = psutil.virtual_memory().total
    for path in _CGROUP_LIMITS:
        # "max" is no bound; version 1 says a number beyond any machine instead.
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(path.read_text()))
    return total
