"""What the actors see of a modelled model that is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from wiredactors.memory.cache_cost import CacheCost
from wiredactors.memory.correction import Correction
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.scheduling.requests import Prompt, RowOutput, RowRequest
from wiredactors.testing.model import ModelledModel

if TYPE_CHECKING:
    from wiredactors.testing.engine import ModelledEngine


class LoadedModel:
    """Numbers, and the way to the engine; see the protocol."""

    def __init__(
        self, engine: ModelledEngine, name: str, model: ModelledModel, correction: Correction
    ):
        self._engine = engine
        self._name = name
        self._model = model
        self.weight_bytes = model.weights_in_memory
        self.context_length = model.context_length
        self.cache_cost: CacheCost = model.cache_cost
        self.correction = correction

    def encode(self, prompt: Prompt) -> list[int]:
        return self._model.encode(prompt)

    def submit(self, request: RowRequest, deliver: Callable[[RowOutput], object]) -> None:
        self._engine.submit(self._name, request, deliver)

    async def remove(self, row_id: str) -> int:
        return await self._engine.remove(row_id)

    async def tune(
        self, parameters: TuneParameters, *, remeasure: bool = False
    ) -> WiredMemoryMeasurement:
        """It keeps no measurements, so each is run."""
        return await self._engine.tune(self._name, parameters)

    async def unload(self) -> None:
        await self._engine.unload(self._name)
