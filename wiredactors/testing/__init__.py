"""Fakes for your own tests: a limit backend that behaves as Metal's, and an engine without MLX.

    backend = RecordingBackend(8 * wa.GIB)
    engine = ModelledEngine({"small": ModelledModel(weight_bytes=2 * wa.GIB)})
    async with wa.open_runtime(backend=backend, engine=engine) as runtime:
        model = await runtime.load("small")
        async with model.generate("hello") as job:
            ...
    assert engine.held_bytes == 0 and backend.limit == 0

Under trio's mock clock (pytest-trio's `autojump_clock`) nothing takes real time, and every time in
a result is exact.
"""

from wiredactors.testing.backend import LimitWrite, RecordingBackend
from wiredactors.testing.engine import ModelledEngine
from wiredactors.testing.model import ModelledModel
from wiredactors.testing.record import EngineRecord

__all__ = [
    "EngineRecord",
    "LimitWrite",
    "ModelledEngine",
    "ModelledModel",
    "RecordingBackend",
]
