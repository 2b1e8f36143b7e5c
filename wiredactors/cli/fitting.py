"""Would these models fit, and with how many jobs? In numbers alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import attrs

from wiredactors.memory.configuration import WiredMemoryConfiguration, ceiling_of
from wiredactors.memory.measurement import WiredMemoryMeasurement
from wiredactors.memory.units import GIB

#: Machines that are sold, in GiB of memory.
_MACHINES_GIB = (8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192, 256, 384, 512)


#: Longer names are cut in the middle where there is little room.
_NAME_LENGTH = 32


def shown(name: str) -> str:
    """A model's name as it fits into a table."""
    if len(name) <= _NAME_LENGTH:
        return name
    begin = (_NAME_LENGTH - 3) * 2 // 3
    return f"{name[:begin]}...{name[begin + 3 - _NAME_LENGTH :]}"


@attrs.frozen(kw_only=True)
class Room:
    """What all models and jobs together may hold. Sizes are bytes.

    Attributes:
        memory_bytes: of the device.
        ceiling_bytes: what tickets may hold, after the reserve and the pool.
        pool_bytes: MLX's pool of freed buffers, which no ticket holds.
    """

    memory_bytes: int
    ceiling_bytes: int
    pool_bytes: int

    @classmethod
    def of(cls, memory_bytes: int, pool_bytes: int, recommended_bytes: int | None = None) -> Room:
        """The room that the library's default ceiling leaves on such a device."""
        ceiling = ceiling_of(
            WiredMemoryConfiguration(),
            supported=recommended_bytes is not None,
            recommended_bytes=recommended_bytes,
            total_memory=memory_bytes,
            pool_bytes=pool_bytes,
        )
        assert ceiling is not None
        return cls(memory_bytes=memory_bytes, ceiling_bytes=ceiling, pool_bytes=pool_bytes)

    @property
    def reserve_bytes(self) -> int:
        """What is left to the rest of the machine."""
        return self.memory_bytes - self.ceiling_bytes - self.pool_bytes


@attrs.frozen(kw_only=True)
class Need:
    """What one model needs: itself once, and so much for each job.

    Attributes:
        name: what it is called here.
        source: where it came from.
        measurement: its parts, in bytes.
        job_bytes: what one job's ticket holds.
    """

    name: str
    source: str
    measurement: WiredMemoryMeasurement
    job_bytes: int


@attrs.frozen
class Fitting:
    """A set of models in one process: weights and margins add up, the workspace is the largest."""

    needs: Sequence[Need]
    room: Room

    @property
    def is_approximate(self) -> bool:
        """Whether any number in it is."""
        return any(need.measurement.approximate for need in self.needs)

    @property
    def weight_bytes(self) -> int:
        return sum(need.measurement.weight_bytes for need in self.needs)

    @property
    def workspace_bytes(self) -> int:
        return max((need.measurement.workspace_bytes for need in self.needs), default=0)

    @property
    def margin_bytes(self) -> int:
        return sum(need.measurement.margin_bytes for need in self.needs)

    @property
    def loaded_bytes(self) -> int:
        """What is held while no job runs."""
        return self.weight_bytes + self.workspace_bytes + self.margin_bytes

    @property
    def round_bytes(self) -> int:
        """One job of each model."""
        return sum(need.job_bytes for need in self.needs)

    @property
    def left_bytes(self) -> int:
        """What is left for jobs; negative where the models alone are too much."""
        return self.room.ceiling_bytes - self.loaded_bytes

    @property
    def jobs(self) -> int:
        """How many jobs of each model fit at once."""
        return max(0, self.left_bytes // max(1, self.round_bytes))

    def held_bytes(self, jobs: int) -> int:
        """What is held while so many jobs of each model run."""
        return self.loaded_bytes + jobs * self.round_bytes

    def fits(self, jobs: int) -> bool:
        """Whether so many jobs of each model fit."""
        return self.held_bytes(jobs) <= self.room.ceiling_bytes

    def without(self, names: Sequence[str]) -> Fitting:
        """The same without some of the models."""
        return Fitting([need for need in self.needs if need.name not in names], self.room)

    def to_drop(self, jobs: int) -> tuple[str, ...] | None:
        """The fewest models without which the others fit, the smallest of equally many.

        None where not even one of them fits alone.
        """
        names = [need.name for need in self.needs]
        for count in range(len(names)):
            sets = [
                dropped
                for dropped in itertools.combinations(names, count)
                if self.without(dropped).fits(jobs)
            ]
            if sets:
                return max(sets, key=lambda dropped: self.without(dropped).held_bytes(jobs))
        return None

    def machine_bytes(self, jobs: int) -> int | None:
        """Memory of the smallest machine on which so many jobs of each model fit.

        By the reserve that the library keeps where the device recommends nothing.
        """
        for size in _MACHINES_GIB:
            room = Room.of(size * GIB, self.room.pool_bytes)
            if self.held_bytes(jobs) <= room.ceiling_bytes:
                return size * GIB
        return None
