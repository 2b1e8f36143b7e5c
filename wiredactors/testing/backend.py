"""A limit backend that records what it is asked, and wires buffers as Metal's residency set does.

The rules are those of MLX's metal/allocator.cpp and metal/resident.cpp:

- A buffer is wired when it is allocated, if it fits under the capacity beside those that are wired;
  else it is only tracked.
- A larger capacity wires tracked buffers that fit; a smaller one un-wires arbitrary ones until the
  rest fits. The same capacity again changes nothing: what did not fit stays out.
- A freed buffer goes to the allocator's pool, and stays wired until the pool is cleared. What
  comes free is filled only when the capacity grows, and then by pooled buffers too.
- A request is served from the pool by the smallest buffer that is large enough, if that is less
  than two pages larger and less than twice as large; all of it counts.
- A capacity above the recommended working set is an error, and changes nothing.

Left out: several sets with a bound each, and the pool's own bound.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs

from wiredactors.actors.protocol import LimitBackend
from wiredactors.memory.outside import MemoryReading
from wiredactors.memory.units import GIB, KIB

#: Of Apple silicon, in bytes.
_PAGE = 16 * KIB

#: What hears of a write that was asked for: the previous limit, or the error.
Done = Callable[[int | None, BaseException | None], object]


@attrs.frozen
class LimitWrite:
    """One call of `set_wired_limit`; `error` is None if it was taken."""

    limit: int
    previous: int
    error: Exception | None = None


@attrs.define(eq=False)
class _Buffer:
    name: str
    size: int
    wired: bool = False
    pooled: bool = False


class RecordingBackend:
    """Pass it to `open_manager` or `open_runtime` as the backend. Sizes are bytes.

    Attributes:
        supported: whether there is a limit to set, as on Metal.
        limit: the limit in force, the capacity of the residency set.
        calls: every call of `set_wired_limit`, in order, the refused ones too.
        refuse_over: a limit above it is refused like one above the working set; None for none.
        reading: the memory of the machine now, as the manager is to see it; None for no watch.
    """

    def __init__(
        self,
        recommended_working_set: int | None = 64 * GIB,
        *,
        limit: int = 0,
        supported: bool = True,
        total_memory: int = 96 * GIB,
        refuse_over: int | None = None,
        seed: int = 0,
    ):
        """`limit` is the one in force before; `seed` picks the buffers that a shrink un-wires."""
        self.supported = supported
        self.limit = limit
        self.calls: list[LimitWrite] = []
        self.refuse_over = refuse_over
        self.reading: MemoryReading | None = None
        self._recommended = recommended_working_set
        self._total_memory = total_memory
        self._failures = 0
        self._random = random.Random(seed)
        self._buffers: list[_Buffer] = []

    # -- what the manager asks

    def recommended_working_set_bytes(self) -> int | None:
        """As the device says it, in bytes."""
        return self._recommended

    def total_memory_bytes(self) -> int:
        """Memory of the device in bytes."""
        return self._total_memory

    def memory_reading(self) -> MemoryReading | None:
        """What the test has put into `reading`."""
        return self.reading

    def set_wired_limit(self, limit: int) -> int:
        """Set the limit in bytes; returns the previous one.

        Raises:
            ValueError: it lies above the recommended working set or `refuse_over`.
            TypeError: it is no whole number from 0 to 2**64 - 1.
            RuntimeError: `fail_next` has asked for it.
        """
        if not isinstance(limit, int) or not 0 <= limit < 2**64:
            raise TypeError(f"a wired limit is a whole number of bytes from 0, not {limit!r}")
        previous = self.limit
        error = self._error_for(limit)
        self.calls.append(LimitWrite(limit, previous, error))
        if error is not None:
            raise error
        self.limit = limit
        if limit > previous:
            self._wire_what_fits()
        elif limit < previous:
            self._unwire_until_it_fits()
        return previous

    def _error_for(self, limit: int) -> Exception | None:
        if self._failures:
            self._failures -= 1
            return RuntimeError("the device refuses this write, as the test has asked")
        bounds = [bound for bound in (self._recommended, self.refuse_over) if bound is not None]
        if limit > min(bounds, default=limit):
            return ValueError(f"a wired limit of {limit} bytes is above the {min(bounds)} possible")
        return None

    # -- for tests

    @property
    def writes(self) -> list[int]:
        """The limits that were taken, in order."""
        return [call.limit for call in self.calls if call.error is None]

    def fail_next(self, count: int = 1) -> None:
        """Refuse the next `count` writes."""
        self._failures = count

    # -- residency

    def allocate(self, name: str, size: int) -> None:
        """Make a buffer of `size` bytes; a pooled one that is little larger is used again."""
        if any(buffer.name == name and not buffer.pooled for buffer in self._buffers):
            raise ValueError(f"there is a buffer named {name!r} already")
        too_large = min(2 * size, size + 2 * _PAGE)
        pooled = [b for b in self._buffers if b.pooled and size <= b.size < too_large]
        if pooled:
            buffer = min(pooled, key=lambda b: b.size)
            buffer.name, buffer.pooled = name, False
            return
        buffer = _Buffer(name, size)
        buffer.wired = self.wired_bytes + size <= self.limit
        self._buffers.append(buffer)

    def free(self, name: str) -> None:
        """Give a buffer to the pool, where it occupies the limit as before."""
        for buffer in self._buffers:
            if buffer.name == name and not buffer.pooled:
                buffer.pooled = True
                return
        raise ValueError(f"there is no buffer named {name!r}")

    def clear_pool(self) -> None:
        """Let the freed buffers go. What had not fitted stays out until the limit changes."""
        self._buffers = [buffer for buffer in self._buffers if not buffer.pooled]

    @property
    def wired(self) -> frozenset[str]:
        """Names of the buffers in use that are wired."""
        return frozenset(b.name for b in self._buffers if b.wired and not b.pooled)

    @property
    def unwired(self) -> frozenset[str]:
        """Names of the buffers in use that are not."""
        return frozenset(b.name for b in self._buffers if not b.wired and not b.pooled)

    @property
    def wired_bytes(self) -> int:
        """Bytes that occupy the limit, those of pooled buffers included."""
        return sum(buffer.size for buffer in self._buffers if buffer.wired)

    def _in_hash_order(self) -> list[_Buffer]:
        return self._random.sample(self._buffers, len(self._buffers))

    def _wire_what_fits(self) -> None:
        for buffer in self._in_hash_order():
            if not buffer.wired:
                buffer.wired = self.wired_bytes + buffer.size <= self.limit

    def _unwire_until_it_fits(self) -> None:
        for buffer in self._in_hash_order():
            if self.wired_bytes <= self.limit:
                break
            buffer.wired = False


class QuietBackend:
    """A backend that is written at an engine's quiet points; it asks for one by `wake`."""

    total_memory_bytes: Callable[[], int]
    memory_reading: Callable[[], MemoryReading | None]

    def __init__(self, backend: LimitBackend, wake: Callable[[], object]):
        self._backend = backend
        self._wake = wake
        self._writes: list[tuple[int, Done]] = []
        # What a backend may have besides is here only if the one inside has it.
        for name in ("total_memory_bytes", "memory_reading"):
            if hasattr(backend, name):
                setattr(self, name, getattr(backend, name))

    @property
    def supported(self) -> bool:
        return self._backend.supported

    def recommended_working_set_bytes(self) -> int | None:
        return self._backend.recommended_working_set_bytes()

    def set_wired_limit(self, limit: int) -> int | None:
        return self._backend.set_wired_limit(limit)

    def write_wired_limit(self, limit: int, done: Done) -> None:
        self._writes.append((limit, done))
        self._wake()

    def write_now(self) -> bool:
        """At a quiet point: whether there was something to write."""
        writes, self._writes = self._writes, []
        for limit, done in writes:
            try:
                previous = self._backend.set_wired_limit(limit)
            except Exception as error:
                done(None, error)
            else:
                done(previous, None)
        return bool(writes)
