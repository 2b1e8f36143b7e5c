"""What is known of the loaded models from earlier: measurements, and what their jobs taught."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from wiredactors.engine.remembered import Remembered, files_of
from wiredactors.engine.store import MeasurementStore, StoreKey, model_key
from wiredactors.memory.correction import Correction
from wiredactors.memory.errors import ModelLoadError
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.scheduling.requests import LoadPlan

#: What jobs taught is written no more often, unless it changes what the next are charged.
KEEP_SECONDS = 60.0


@attrs.define(eq=False)
class _Lesson:
    """A correction, and how much of it is kept: `kept` of what was `recorded` in it."""

    key: StoreKey
    correction: Correction
    written: float
    factor: float
    kept: int = 0


class Knowledge:
    """Looks up in a store, and keeps there, what belongs to models by name. On the device thread.

    A model whose files have gone since it was loaded has no key: nothing is known of it, and
    nothing is kept. Two names of the same weights learn together.
    """

    def __init__(self, store: MeasurementStore):
        self._store = store
        self._lessons: dict[str, _Lesson] = {}
        self._keys: Remembered[StoreKey] = Remembered()

    def remember(
        self, name: str, plan: LoadPlan, post: Callable[[Callable[[], None]], object]
    ) -> Correction:
        """A model has been loaded; returns what earlier jobs taught.

        What is recorded in that on another thread is kept by and by, through `post`, which calls
        a function on this one: a process that is killed loses the lessons of a minute at most.
        """
        options = {"dtype": plan.options.dtype, "dequantize": plan.options.dequantize}
        try:
            key = self._key(Path(plan.source), options)
        except (OSError, ModelLoadError):
            return Correction()
        lesson = next((each for each in self._lessons.values() if each.key == key), None)
        if lesson is None:
            correction = self._kept(key) or Correction()
            lesson = _Lesson(key, correction, time.monotonic(), correction.factor)
            correction.on_record = functools.partial(
                post, functools.partial(self._keep_if_due, lesson)
            )
        self._lessons[name] = lesson
        return lesson.correction

    def _key(self, path: Path, options: dict[str, Any]) -> StoreKey:
        """Reading a header of many words takes a moment, which a reload need not spend again."""
        return self._keys.get(
            (path, *options.values()),
            files_of(path),
            functools.partial(model_key, path, options),
        )

    def forget(self, name: str) -> None:
        """A model goes; what its jobs taught is kept."""
        lesson = self._lessons.pop(name, None)
        if lesson is not None:
            self._keep(lesson)

    def measurement(self, name: str, parameters: TuneParameters) -> WiredMemoryMeasurement | None:
        """What was measured of it earlier, with `stored` set."""
        lesson = self._lessons.get(name)
        if lesson is None:
            return None
        return self._store.get(attrs.evolve(lesson.key, parameters=parameters))

    def keep(
        self, name: str, parameters: TuneParameters, measurement: WiredMemoryMeasurement
    ) -> None:
        """It has been measured."""
        lesson = self._lessons.get(name)
        if lesson is not None:
            self._store.put(attrs.evolve(lesson.key, parameters=parameters), measurement)

    # -- what jobs taught

    def _keep_if_due(self, lesson: _Lesson) -> None:
        changed = lesson.correction.factor != lesson.factor
        if changed or time.monotonic() - lesson.written >= KEEP_SECONDS:
            self._keep(lesson)

    def _keep(self, lesson: _Lesson) -> None:
        """Write what is new after what is there, which may be another process's."""
        lesson.written, lesson.factor = time.monotonic(), lesson.correction.factor
        recorded = lesson.correction.recorded
        if recorded == lesson.kept:
            return
        there = self._kept(lesson.key)
        whole = lesson.correction
        if there is not None:
            whole = there.joined(whole, recorded - lesson.kept)
        if self._store.put_correction(lesson.key, whole.to_dict()):
            lesson.kept = recorded

    def _kept(self, key: StoreKey) -> Correction | None:
        value = self._store.get_correction(key)
        if value is not None:
            try:
                return Correction.from_dict(value)
            except ValueError as error:
                self._store.tell_unreadable(key, error)
        return None
