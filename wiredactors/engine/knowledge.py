"""What is known of the loaded models from earlier: measurements, and what their jobs taught."""

from __future__ import annotations

import contextlib
from pathlib import Path

import attrs

from wiredactors.engine.store import MeasurementStore, StoreKey, model_key
from wiredactors.memory.correction import Correction
from wiredactors.memory.errors import ModelLoadError
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.scheduling.requests import LoadPlan


class Knowledge:
    """Looks up in a store, and keeps there, what belongs to models by name. On the device thread.

    A model whose files have gone since it was loaded has no key: nothing is known of it, and
    nothing is kept.
    """

    def __init__(self, store: MeasurementStore):
        self._store = store
        self._keys: dict[str, StoreKey] = {}
        self._corrections: dict[str, Correction] = {}

    def remember(self, name: str, plan: LoadPlan) -> Correction:
        """A model has been loaded; returns what its earlier jobs taught."""
        correction = self._corrections[name] = Correction()
        options = {"dtype": plan.options.dtype, "dequantize": plan.options.dequantize}
        with contextlib.suppress(OSError, ModelLoadError):
            key = self._keys[name] = model_key(Path(plan.source), options)
            learnt = self._store.get_correction(key)
            if learnt is not None:
                try:
                    correction = self._corrections[name] = Correction.from_dict(learnt)
                except ValueError as error:
                    self._store.tell_unreadable(key, error)
        return correction

    def forget(self, name: str) -> None:
        """A model goes; what its jobs taught is kept."""
        key, correction = self._keys.pop(name, None), self._corrections.pop(name, None)
        if key is not None and correction is not None and correction.changed:
            self._store.put_correction(key, correction.to_dict())
            correction.changed = False

    def measurement(self, name: str, parameters: TuneParameters) -> WiredMemoryMeasurement | None:
        """What was measured of it earlier, with `stored` set."""
        key = self._keys.get(name)
        return None if key is None else self._store.get(attrs.evolve(key, parameters=parameters))

    def keep(
        self, name: str, parameters: TuneParameters, measurement: WiredMemoryMeasurement
    ) -> None:
        """It has been measured."""
        key = self._keys.get(name)
        if key is not None:
            self._store.put(attrs.evolve(key, parameters=parameters), measurement)
