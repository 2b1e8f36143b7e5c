"""The runtime: the models that it serves, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import trio

from wiredactors.actors.job import Job
from wiredactors.actors.model import Model
from wiredactors.actors.service import Service
from wiredactors.actors.stay import Host
from wiredactors.memory.errors import ManagerClosed, ModelLoadError, ModelNotLoaded
from wiredactors.memory.events import Explanation
from wiredactors.scheduling.requests import LoadOptions, StayOptions


class Runtime:
    """Serves models from this process. Open it with `open_runtime()`.

    Attributes:
        manager: the one owner of memory, for events, snapshots and your own tickets.
        models: the models by name, those that `add` has registered and nobody has used yet, too;
            a view.
    """

    def __init__(self, host: Host, nursery: trio.Nursery):
        self.manager = host.manager
        self._host = host
        self._nursery = nursery
        self._models: dict[str, Model] = {}
        self.models: Mapping[str, Model] = MappingProxyType(self._models)
        self._services: dict[str, Service] = {}  # those that come or leave, too
        self._closed = False

    def add(
        self,
        source: str | Path,
        name: str | None = None,
        *,
        pinned: bool = False,
        keep_alive: float | None = None,
        dtype: str | None = None,
        dequantize: bool = False,
        prefill_step_size: int | None = None,
        max_batch_size: int = 32,
        weight: float = 1.0,
        margin: int | None = None,
    ) -> Model:
        """Register a model, which is loaded when it is first used, or by `Model.load`.

        When others need the room and it is idle it yields, the least recently used first, and is
        loaded again at its next use. One that never rests is asked to finish when others have
        waited long; see `WiredMemoryConfiguration.turn_seconds`. Whoever uses it meanwhile waits in
        order.

        Args:
            source: a GGUF file, a directory in Hugging Face layout, or a hub id.
            name: what to call it; left out, the last part of the source.
            pinned: once loaded it stays: it does not yield, and `keep_alive` means nothing.
            keep_alive: seconds after its last use for which it stays in memory at most; None is
                until others need the room.
            dtype, dequantize, prefill_step_size, max_batch_size: see `LoadOptions`.
            weight: the model's share of the device's time while several have work: one of 2.0
                gets twice the time of one of 1.0.
            margin: bytes that are held for safety beside its workspace, once for the model and
                not for each job; None is the default of the model's plan.

        Raises:
            ModelLoadError: the name is taken.
            ValueError: an option is out of its range.
            ManagerClosed: the runtime has closed.
        """
        options = LoadOptions(
            dtype=dtype,
            dequantize=dequantize,
            prefill_step_size=prefill_step_size,
            max_batch_size=max_batch_size,
            weight=weight,
            margin_bytes=margin,
        )
        stay = StayOptions(pinned=pinned, keep_alive=keep_alive)
        service = self._register(source, name, options, stay, lasting=True)
        return self._show(service)

    async def load(
        self,
        source: str | Path,
        name: str | None = None,
        *,
        pinned: bool = False,
        keep_alive: float | None = None,
        dtype: str | None = None,
        dequantize: bool = False,
        prefill_step_size: int | None = None,
        max_batch_size: int = 32,
        weight: float = 1.0,
        margin: int | None = None,
    ) -> Model:
        """Load a model now, and serve it until `unload`, or until the runtime closes.

        Its reservation is admitted before anything is loaded, and may wait for memory. Once loaded
        it is as one of `add`: it yields when it is idle and others need the room, unless it is
        pinned. What `add` has registered can be loaded ahead in the same words, with the options
        that `add` was given or with none.

        Args:
            source, name, pinned, keep_alive, dtype, dequantize, prefill_step_size, max_batch_size,
                weight, margin: see `add`.

        Raises:
            ModelLoadError: it cannot be loaded, the name is taken, or `add` was given others.
            ModelNotLoaded: it was removed meanwhile.
            TicketTooLarge: it can never fit.
            ValueError: an option is out of its range.
            ManagerClosed: the runtime has closed, or closes meanwhile.
        """
        options = LoadOptions(
            dtype=dtype,
            dequantize=dequantize,
            prefill_step_size=prefill_step_size,
            max_batch_size=max_batch_size,
            weight=weight,
            margin_bytes=margin,
        )
        stay = StayOptions(pinned=pinned, keep_alive=keep_alive)
        name = _name_of(source) if name is None else name
        there = self._services.get(name)
        if there is not None and there.lasting and there.source == str(source):
            there.check_alike(options, stay)
            await there.ready()
            return self._models[name]
        service = self._register(source, name, options, stay, lasting=False)
        try:
            await service.ready()
        except BaseException:
            service.part(_closed(name), cancel_jobs=True)
            with trio.CancelScope(shield=True):
                await service.parted.wait()
            raise
        return self._show(service)

    async def unload(self, name: str) -> None:
        """Let a model go when the jobs under way have ended.

        One of `add` stays registered, and is loaded again when it is used again. One of `load`
        takes no more jobs, and is forgotten, as by `remove`. That goes on though waiting for it is
        cancelled; a second call waits for it too.

        Raises:
            ModelNotLoaded: there is no model of that name, or one of `add` is not in memory.
            And what the engine raises where it cannot let it go.
        """
        service = self._services.get(name)
        if service is not None and service.lasting:
            await service.unload()
        else:
            await self._forget(name, service)

    async def remove(self, name: str) -> None:
        """Unload a model, if it is loaded, and forget it. Those who wait for it are refused.

        Jobs under way come to their end. It goes on though waiting for it is cancelled.

        Raises:
            ModelNotLoaded: there is no model of that name.
            And what the engine raises where it cannot let it go.
        """
        await self._forget(name, self._services.get(name))

    def explain(self, what: Model | Job | str) -> Explanation:
        """Why a model or a job waits; see `WiredMemoryManager.explain`.

        Of a job whose model is not in memory it says what that waits for. Of a model that waits
        for no memory, `state` is its `ModelState`.

        Raises:
            ModelNotLoaded: the model is not registered any more.
        """
        job = what if isinstance(what, Job) else None
        match what:
            case Job():
                name = what.model
            case Model():
                name = what.name
            case str():
                name = what
            case _:
                raise TypeError(f"explain takes a model, its name, or a job, not {what!r}")
        service = self._services.get(name)
        if service is None:
            raise self._unknown(name)
        if isinstance(what, Model) and not what.is_of(service):
            raise ModelNotLoaded(f"this model {name!r} is gone, and another one has its name")
        return service.explain(job)

    def _unknown(self, name: str) -> ModelNotLoaded:
        return ModelNotLoaded(f"there is no model {name!r}: there are {sorted(self._models)}")

    async def _forget(self, name: str, service: Service | None) -> None:
        if service is None or (name not in self._models and service.refusal is None):
            raise self._unknown(name)
        if self._models.pop(name, None) is not None:
            parting = f"model {name!r} is being unloaded: it takes no more jobs"
            service.part(ModelNotLoaded(parting), cancel_jobs=False)
        await service.parted.wait()
        service.raise_unload_error()

    def _register(
        self,
        source: str | Path,
        name: str | None,
        options: LoadOptions,
        stay: StayOptions,
        *,
        lasting: bool,
    ) -> Service:
        name = _name_of(source) if name is None else name
        if self._closed:
            raise _closed(name)
        there = self._services.get(name)
        if there is not None:
            state = "loaded already"
            if there.refusal is not None:
                state = "being unloaded"
            elif there.lasting:
                state = "registered already"
            raise ModelLoadError(f"a model named {name!r} is {state}: give another name")
        service = Service(name, str(source), options, self._host, stay, lasting=lasting)
        self._services[name] = service
        # In the runtime's nursery, whoever asked for it: it must end before the engine closes.
        self._nursery.start_soon(self._be, service)
        return service

    def _show(self, service: Service) -> Model:
        model = self._models[service.name] = Model(service)
        return model

    @trio.lowlevel.enable_ki_protection
    async def _be(self, service: Service) -> None:
        """The model's task."""
        try:
            await service.run()
        finally:
            self._models.pop(service.name, None)
            del self._services[service.name]

    async def _drain(self, seconds: float) -> None:
        """Take no more requests, and let those that have come go on, so long at most."""
        self._closed = True
        for service in self._services.values():
            service.refusal = service.refusal or _closed(service.name)
        with trio.move_on_after(seconds):
            while jobs := [job for each in self._services.values() for job in each.jobs]:
                for job in jobs:
                    await job.wait_ended()

    def _close(self) -> None:
        """Cancel every job and load; the models then unload."""
        self._closed = True
        for service in self._services.values():
            service.part(_closed(service.name), cancel_jobs=True)
        self._nursery.cancel_scope.cancel()


def _name_of(source: str | Path) -> str:
    return Path(source).name.removesuffix(".gguf") or str(source)


def _closed(name: str) -> ManagerClosed:
    return ManagerClosed(f"model {name!r} is not there: the runtime has closed")
