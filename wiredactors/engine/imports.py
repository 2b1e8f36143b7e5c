"""MLX and mlx-lm, imported when first used and without their side effects.

`import wiredactors` must cost nothing to somebody who only wants the policies, and must work where
MLX is not installed. So nobody imports mlx or mlx_lm at the top of a module: they ask here.
"""

from __future__ import annotations

import importlib
import importlib.abc
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from wiredactors.memory.errors import WiredMemoryError

SUPPORTED_MLX_LM = ">=0.32.2,<0.33"
"""The mlx-lm versions whose inner names the engine knows, as a requirement's version part."""

_patching = threading.RLock()


class MLXNotInstalled(WiredMemoryError, ImportError):
    """MLX or mlx-lm cannot be imported: install one back end, as the message says.

    Attributes:
        reason: what the import itself said, for instance a missing shared library.
    """

    def __init__(self, reason: str, *, name: str = "mlx.core"):
        self.reason = reason
        super().__init__(
            f"{name} cannot be imported ({reason}). On Linux: pip install 'wiredactors[cpu]', or "
            "'wiredactors[cuda12]' or 'wiredactors[cuda13]' for an NVIDIA GPU; the plain mlx "
            "package has no back end there. On macOS: pip install mlx. Keep to one of them: two "
            "MLX back ends in one environment overwrite each other",
            name=name,
        )


def import_mlx() -> ModuleType:
    """Import `mlx.core`.

    Returns:
        The module `mlx.core`; from the second call on a look-up.

    Raises:
        MLXNotInstalled: there is no mlx, or it has no back end. Tried on Linux with mlx 0.32.4:
            without mlx-cpu the import fails for want of libmlx.so; without an extension for this
            Python it *succeeds*, as an empty namespace package made of the folder of type stubs.
    """
    try:
        core = importlib.import_module("mlx.core")
    except ImportError as error:
        raise MLXNotInstalled(str(error)) from error
    if not hasattr(core, "array"):
        raise MLXNotInstalled(f"it has no extension module for Python {sys.version.split()[0]}")
    return core


def import_mlx_lm(name: str) -> ModuleType:
    """Import the module `mlx_lm.<name>`, leaving the process's limit of open files alone.

    A module, whatever the package exports: `from mlx_lm import generate` gives a function that
    hides the module of that name.

    mlx-lm 0.32.2 sets RLIMIT_NOFILE to (2048, 4096) when it is imported (`mlx_lm/utils.py`). That
    lowers the *hard* limit, which an unprivileged process can never raise again, so saving and
    restoring would not do: the call itself must not happen.

    Args:
        name: without the package, for instance "utils" or "models.cache".

    Returns:
        The module; from the second call on a look-up.

    Raises:
        MLXNotInstalled: mlx or mlx-lm is missing.
        ImportError: mlx-lm has no such module, or the module's own imports failed.
    """
    full_name = f"mlx_lm.{name}"
    if full_name in sys.modules:
        # Still import_module: another thread may be in the midst of the import, and this waits.
        return importlib.import_module(full_name)
    import_mlx()
    with _open_files_kept():
        try:
            return importlib.import_module(full_name)
        except ModuleNotFoundError as error:
            if error.name != "mlx_lm":
                raise
            raise MLXNotInstalled(
                f"pip install 'mlx-lm{SUPPORTED_MLX_LM}'", name="mlx_lm"
            ) from error


class MLXVLMNotInstalled(WiredMemoryError, ImportError):
    """mlx-vlm, which images and videos need, is not installed: install the extra.

    Attributes:
        reason: what the import itself said.
    """

    def __init__(self, reason: str):
        self.reason = reason
        super().__init__(
            f"images and videos need mlx-vlm, which cannot be imported ({reason}): "
            "pip install 'wiredactors[vlm]'",
            name="mlx_vlm",
        )


def import_mlx_vlm(name: str) -> ModuleType:
    """Import the module `mlx_vlm.<name>`, leaving the process's environment alone.

    mlx-vlm 0.7.10 sets two variables that silence transformers when it is imported
    (`mlx_vlm/__init__.py`); children of the process would inherit them.

    Args:
        name: without the package, for instance "utils".

    Raises:
        MLXNotInstalled: mlx is missing.
        MLXVLMNotInstalled: mlx-vlm is missing, or something that it needs.
    """
    import_mlx()
    before = dict(os.environ)
    try:
        return importlib.import_module(f"mlx_vlm.{name}")
    except ImportError as error:
        raise MLXVLMNotInstalled(str(error)) from error
    finally:
        for variable in set(os.environ) - set(before):
            if variable.startswith("TRANSFORMERS_"):
                del os.environ[variable]


def is_mlx_lm(name: object) -> bool:
    """Whether `name`, a module's `__name__`, is that of mlx_lm or of a module in it."""
    return str(name).partition(".")[0] == "mlx_lm"


@contextmanager
def _open_files_kept() -> Iterator[None]:
    """Let nothing in mlx_lm set RLIMIT_NOFILE while the body runs.

    Everybody else's calls go through meanwhile: an import takes seconds, and other threads live.
    """
    # Only here: Windows has no such module, and mlx-lm, which needs it, does not import there.
    import resource

    with _patching:
        original = resource.setrlimit

        def setrlimit(which: int, limits: tuple[int, int], /) -> None:
            caller = sys._getframe(1).f_globals.get("__name__")
            if which != resource.RLIMIT_NOFILE or not is_mlx_lm(caller):
                original(which, limits)

        resource.setrlimit = setrlimit
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            yield
        finally:
            if resource.setrlimit is setrlimit:
                resource.setrlimit = original
        after = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert after == before, f"importing mlx-lm took RLIMIT_NOFILE from {before} to {after}"


class ImportHook(importlib.abc.MetaPathFinder):
    """Says when `mlx.core` or a module of mlx_lm has been executed, whoever imported it.

    For the head of `sys.meta_path`. It finds nothing itself: it asks the finders behind it and
    puts itself between the module and its loader. The module does not remember it afterwards.

    Args:
        executed: called with the module's full name, on the importing thread. What it raises
            fails that import.
    """

    def __init__(self, executed: Callable[[str], None]):
        self._executed = executed

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module as the other finders do; None for a module that is not watched."""
        if fullname != "mlx.core" and not is_mlx_lm(fullname):
            return None
        for finder in list(sys.meta_path):
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _ReportingLoader(spec.loader, self._executed)
                return spec
        return None


class _ReportingLoader(importlib.abc.Loader):
    def __init__(self, loader: Any, executed: Callable[[str], None]):
        self._loader = loader
        self._executed = executed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # get_code for runpy, is_package, and the like

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._executed(module.__name__)
