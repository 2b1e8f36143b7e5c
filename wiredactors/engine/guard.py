"""The sole owner's guard over MLX's wired limit.

A process has one wired limit, and mlx-lm writes it by itself: the device's maximum when a
generation begins, the old value when it ends, which is wrong as soon as two overlap or somebody
keeps a budget. While the guard is installed those writers run as ever and MLX does not hear them.

Two functions are replaced, in every module that holds them under their own name:

- `set_wired_limit` of `mlx.core`, and of `mlx.core.metal` (deprecated). This is the safety: every
  writer ends here, also one that began before the guard and restores only now.
- mlx-lm's `maybe_set_recommended_wired_limit`. It answers that there was nothing to set, so that
  mlx-lm does not restore anything either, before or after the guard has gone.

Under another name (an alias, a closure) the first is out of reach; mlx-lm's helper is not, because
it looks the first up when it is called.

Cost: a scan looks two names up in each loaded module: 0.5 to 1 ms for the 750 of a process with
mlx-lm and transformers. There is one at install, one at remove, and one after each module of
mlx_lm that is imported meanwhile (16: 20 ms of the 1.7 s that importing it takes).

Facts: mlx-lm 0.32.2 (utils.py, generate.py, server.py, tuner/trainer.py, quant/dwq.py), mlx 0.32.4.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

from wiredactors.engine.imports import SUPPORTED_MLX_LM, ImportHook, import_mlx, is_mlx_lm
from wiredactors.memory.errors import WiredMemoryError

_SET = "set_wired_limit"
_HELPER = "maybe_set_recommended_wired_limit"

# The module whose execution brings writers into being, and where they stand then.
_HOMES = {
    "mlx.core": (("mlx.core", _SET), ("mlx.core.metal", _SET)),
    "mlx_lm.utils": (("mlx_lm.utils", _HELPER),),
}
# Without these names the guard would look installed and catch nothing, or half.
_REQUIRED = {"mlx.core": _SET, "mlx_lm.utils": _HELPER, "mlx_lm.generate": _HELPER}

# The stand-ins never take this lock: they may be called by a garbage collection (mlx-lm's
# BatchGenerator.__del__) at any moment, also while this very thread holds it. For the same reason
# it is reentrant: whatever is collected may import something.
_lock = threading.RLock()
_installed: LimitGuard | None = None


class GuardError(WiredMemoryError):
    """The wired limit cannot be guarded: another guard is installed, or mlx-lm is unsupported."""


class _StandIn:
    """What stands where a writer stood.

    It asks at each call whether a guard is installed, so one that somebody keeps after the guard
    has gone is the original again, and one kept from an earlier guard obeys the present one.
    """

    def __init__(self, original: Callable[..., Any], instead: Callable[..., Any]):
        functools.update_wrapper(self, original, updated=())
        self.original = original
        self.instead = instead

    def __call__(self, *args: Any, **named: Any) -> Any:
        guard = _installed
        if guard is None or (
            # A garbage collection can run a foreign generator's `__del__` while the owner writes.
            guard._thread.owner and not is_mlx_lm(sys._getframe(1).f_globals.get("__name__"))
        ):
            return self.original(*args, **named)
        return self.instead(guard, *args, **named)


class LimitGuard:
    """Keeps every writer but its owner off MLX's wired limit.

    Opening it imports neither mlx nor mlx_lm: what is loaded is guarded at once, what is imported
    later when it comes.

    Args:
        report: called with the bytes that a foreign writer wanted (0 for what is no number), on
            the writer's thread, perhaps in a garbage collection: so it must be thread-safe and
            take no lock that its own thread may hold; trio's `run_sync_soon` will do. What it
            raises is dropped: the writer is not to blame.
        baseline: the limit in bytes that will be in force when the guard has gone. Foreign writers
            get it as "the previous limit", so that one who restores it later restores the right
            one. Called like `report`.
    """

    def __init__(self, report: Callable[[int], None], *, baseline: Callable[[], int]):
        self._report = report
        self._baseline = baseline
        self._thread = _Thread()
        self._forget()

    def _forget(self) -> None:
        self._known: set[str] = set()
        self._stand_ins: dict[int, _StandIn] = {}  # by id of the original, which it keeps alive
        self._replaced: list[dict[str, Any]] = []  # also of modules that leave sys.modules
        self._setter: Callable[..., Any] | None = None

    def install(self) -> None:
        """Guard what is loaded, and from now on what is imported.

        Waits for an import of mlx or mlx-lm that is under way on another thread.

        Raises:
            GuardError: a guard is installed already, or a loaded mlx or mlx-lm lacks the names.
                Nothing is changed then. An mlx-lm without them that is imported later raises it
                out of that import.
        """
        global _installed
        with _lock:
            if _installed is not None:
                raise GuardError("a process has one wired limit, and it is guarded already")
            _installed = self
            sys.meta_path.insert(0, _hook)
        try:
            for name in _REQUIRED:
                # One that is half imported has not got its writers yet and would escape. The wait
                # is outside the lock, which that other thread needs to finish.
                if sys.modules.get(name) is not None:
                    with suppress(ImportError):
                        importlib.import_module(name)
            with _lock:
                self._take()
                for name in _REQUIRED:
                    if sys.modules.get(name) is not None:
                        _check(name)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Put everything back, in modules imported meanwhile too. Again: nothing.

        An attribute that somebody has patched over the guard's stays theirs.
        """
        global _installed
        with _lock:
            if _installed is not self:
                return
            with suppress(ValueError):
                sys.meta_path.remove(_hook)
            _installed = None
            _restore(self._replaced)
            self._forget()

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def write(self, limit: int) -> int | None:
        """Set the wired limit, as its owner; imports MLX if nobody has.

        Args:
            limit: bytes, handed to the `mx.set_wired_limit` that was there when it was guarded.

        Returns:
            The previous limit in bytes, on Metal; MLX answers 0 elsewhere, where it does nothing.

        Raises:
            MLXNotInstalled: there is no MLX.
            ValueError: on Metal, above the device's recommended working set; nothing changed.
            TypeError: no integer, or a negative one.
        """
        setter = self._setter
        if setter is None:
            core = import_mlx()
            # The hook has seen it, unless somebody's own finder came before it.
            _imported("")
            setter = self._setter or core.set_wired_limit
        previous: int | None = setter(limit)
        return previous

    @contextmanager
    def owner(self) -> Iterator[None]:
        """Let whatever calls `mx.set_wired_limit` on this thread be the owner, and reach MLX.

        For a backend that a user wrote, who knows nothing of `write`. mlx-lm's own code stays
        out. Never across an `await`.
        """
        self._thread.owner += 1
        try:
            yield
        finally:
            self._thread.owner -= 1

    def _take(self, executed: str = "") -> None:
        """Replace the writers in every module; learn them anew where `executed` has made them.

        Not anew otherwise: what stands in their home may by now be somebody's patch over ours.
        """
        for maker, homes in _HOMES.items():
            if maker in self._known and maker != executed:
                continue
            for home, name in homes:
                original = _original(_namespace(sys.modules.get(home)).get(name))
                if original is None:
                    continue
                self._known.add(maker)
                instead = LimitGuard._refuse if name == _SET else LimitGuard._refuse_recommended
                self._stand_ins[id(original)] = _StandIn(original, instead)
                if home == "mlx.core":
                    self._setter = original
        for namespace in _namespaces():
            for name in (_SET, _HELPER):
                found = namespace.get(name)
                stand_in = self._stand_ins.get(id(_original(found)))
                if stand_in is not None and stand_in is not found:
                    namespace[name] = stand_in
                    self._replaced.append(namespace)

    def _refuse(self, *args: Any, **named: Any) -> int:
        """Stand in for `set_wired_limit(limit)`, called with anything."""
        self._tell(args[0] if args else named.get("limit"))
        try:
            return int(self._baseline())
        except Exception:
            return 0  # A foreign writer never raises because of us; 0 is MLX's own default.

    def _refuse_recommended(self, *_: Any, **__: Any) -> None:
        """Stand in for mlx-lm's helper; None tells it that there is nothing to restore."""
        try:
            # Asked as the original asks: only where the device has a maximum is there a writer.
            info = sys.modules["mlx.core"].device_info()
            recommended = info.get("max_recommended_working_set_size")
        except Exception:
            return
        if recommended is not None:
            self._tell(recommended)

    def _tell(self, limit: Any) -> None:
        try:
            wanted = int(limit)
        except Exception:
            wanted = 0
        with suppress(Exception):
            self._report(wanted)


class _Thread(threading.local):
    owner = 0


def _imported(name: str) -> None:
    """Guard what the import of `name` has brought, or undo that if the guard has gone meanwhile."""
    with _lock:
        if _installed is None:
            _restore()
            return
        _installed._take(name)
        _check(name)


_hook = ImportHook(_imported)


def _check(name: str) -> None:
    attribute = _REQUIRED.get(name)
    if attribute is None or attribute in _namespace(sys.modules.get(name)):
        return
    distribution = "mlx" if name == "mlx.core" else "mlx-lm"
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        version = "(version unknown)"
    raise GuardError(
        f"{distribution} {version} has no {name}.{attribute}, so its writes of the wired limit "
        f"cannot be guarded; supported is mlx-lm {SUPPORTED_MLX_LM}: "
        f"pip install 'mlx-lm{SUPPORTED_MLX_LM}'"
    )


def _original(function: Any) -> Any:
    return function.original if isinstance(function, _StandIn) else function


def _restore(namespaces: Iterable[dict[str, Any]] = ()) -> None:
    for namespace in [*namespaces, *_namespaces()]:
        for name in (_SET, _HELPER):
            found = namespace.get(name)
            if isinstance(found, _StandIn):
                namespace[name] = found.original


def _namespaces() -> list[dict[str, Any]]:
    return [_namespace(module) for module in list(sys.modules.values())]


def _namespace(module: object) -> dict[str, Any]:
    """The module's own dictionary; empty for what has none.

    Never by getattr or vars: both ask the module, and a lazy one (transformers has them) would
    answer by importing.
    """
    try:
        namespace = object.__getattribute__(module, "__dict__")
    except Exception:  # sys.modules holds what people put there: None, classes, proxies
        return {}
    return namespace if isinstance(namespace, dict) else {}
