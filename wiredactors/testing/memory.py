"""What a modelled device holds, and what the tickets of that should sum up to."""

from __future__ import annotations

from wiredactors.memory.measurement import WiredMemoryMeasurement
from wiredactors.testing.batches import Batches
from wiredactors.testing.model import ModelledModel


class ModelledMemory:
    """Sizes are bytes.

    Attributes:
        models: those that are loaded, by name, with their rows.
        loading: those that are being loaded.
        tuned: what is measured now.
        leftover_bytes: what did not come back of models that were unloaded.
    """

    def __init__(self) -> None:
        self.models: dict[str, Batches] = {}
        self.loading: dict[str, ModelledModel] = {}
        self.tuned: WiredMemoryMeasurement | None = None
        self.leftover_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Weights and caches, as padded in their batches, of a load its peak, and leftovers."""
        loaded = self.models.values()
        held = sum(rows.model.weights_in_memory + rows.held_bytes for rows in loaded)
        held += self.leftover_bytes
        held += sum(model.load_peak for model in self.loading.values())
        return held + (self.tuned.kv_bytes if self.tuned is not None else 0)

    @property
    def charged_bytes(self) -> int:
        """What the tickets of all that it holds should sum up to: each row at its longest."""
        loaded = self.models.values()
        charged = sum(
            rows.model.weights_in_memory + rows.margin_bytes + rows.charged_bytes for rows in loaded
        )
        charged += sum(model.load_peak for model in self.loading.values())
        workspace = max((rows.model.workspace_bytes for rows in loaded), default=0)
        if self.tuned is not None:
            charged += self.tuned.kv_bytes
            workspace = max(workspace, self.tuned.workspace_bytes)
        return charged + workspace
