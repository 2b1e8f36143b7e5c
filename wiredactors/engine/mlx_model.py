"""A loaded model, as the trio side sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from wiredactors.engine.prompts import encode_prompt
from wiredactors.engine.row_costs import RowCosts
from wiredactors.memory.cache_cost import CacheCost
from wiredactors.memory.correction import Correction
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.scheduling.requests import CacheOptions, Prompt, RowOutput, RowRequest


class Server(Protocol):
    """What the engine does for a model by its name. Cancelling none of it leaves work behind."""

    def submit(
        self, name: str, request: RowRequest, deliver: Callable[[RowOutput], object]
    ) -> None: ...

    async def remove(self, name: str, row_id: str) -> int: ...

    async def recall(
        self, name: str, parameters: TuneParameters
    ) -> WiredMemoryMeasurement | None: ...

    async def predict(self, name: str, parameters: TuneParameters) -> WiredMemoryMeasurement: ...

    async def tune(
        self, name: str, parameters: TuneParameters, *, remeasure: bool
    ) -> WiredMemoryMeasurement: ...

    async def unload(self, name: str) -> int: ...


class MlxModel:
    """Numbers, a tokenizer, and the way to the engine. See the protocol for what each is."""

    def __init__(
        self,
        server: Server,
        name: str,
        *,
        tokenizer: Any,
        context_length: int,
        weight_bytes: int,
        correction: Correction,
        row_costs: RowCosts,
    ):
        self._server = server
        self._name = name
        self._tokenizer = tokenizer
        self.context_length = context_length
        self._row_costs = row_costs
        self.weight_bytes = weight_bytes
        self.correction = correction

    def encode(self, prompt: Prompt) -> list[int]:
        return encode_prompt(self._tokenizer, prompt)

    def row_cost(self, options: CacheOptions) -> CacheCost:
        return self._row_costs.of(options)

    def submit(self, request: RowRequest, deliver: Callable[[RowOutput], object]) -> None:
        self._server.submit(self._name, request, deliver)

    async def remove(self, row_id: str) -> int:
        return await self._server.remove(self._name, row_id)

    async def recall(self, parameters: TuneParameters) -> WiredMemoryMeasurement | None:
        return await self._server.recall(self._name, parameters)

    async def predict(self, parameters: TuneParameters) -> WiredMemoryMeasurement:
        """What `tune` is going to find; see `estimate`.

        Raises:
            ValueError: the model's cache does not go with `kv_bits` or `max_kv_size`.
        """
        return await self._server.predict(self._name, parameters)

    async def tune(
        self, parameters: TuneParameters, *, remeasure: bool = False
    ) -> WiredMemoryMeasurement:
        """Measure by running a prefill, or answer with what was measured earlier.

        No other model steps meanwhile. Cancelled, it ends before the next step of the prefill.

        Raises:
            TuneError, ValueError: as `run_prefill`.
        """
        return await self._server.tune(self._name, parameters, remeasure=remeasure)

    async def unload(self) -> int:
        return await self._server.unload(self._name)
