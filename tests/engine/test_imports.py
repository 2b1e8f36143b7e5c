"""MLX is imported when first used, without side effects, and its absence is explained."""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from wiredactors.engine import imports
from wiredactors.memory.errors import WiredMemoryError

ROOT = str(Path(imports.__file__).parents[2])


def run_python(code: str, *before: str) -> str:
    """The output of a fresh interpreter; what a process has imported cannot be taken back."""
    done = subprocess.run(
        [*before, sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_modules_import_no_mlx():
    """Importing the engine's imports and guard brings in neither mlx nor mlx_lm."""
    run_python("""
        import sys
        import wiredactors.engine.imports, wiredactors.engine.guard
        loaded = [name for name in sys.modules if name.partition(".")[0] in ("mlx", "mlx_lm")]
        assert not loaded, loaded
    """)


def test_import_mlx_returns_the_core():
    """What comes back is mlx.core itself, each time."""
    core = imports.import_mlx()
    assert core is sys.modules["mlx.core"]
    assert core is imports.import_mlx()


def test_import_mlx_lm_returns_the_module_and_not_the_function_of_that_name():
    """`generate` is the module, although the package exports a function that hides it."""
    generate = imports.import_mlx_lm("generate")
    assert generate is sys.modules["mlx_lm.generate"]
    assert generate is not sys.modules["mlx_lm"].generate
    assert generate is imports.import_mlx_lm("generate")


def test_importing_mlx_lm_never_lowers_the_limit_of_open_files():
    """The call does not happen at all: a process without privilege could not undo it."""
    run_python("""
        import resource
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        calls = []
        real = resource.setrlimit
        def recorder(*arguments):
            calls.append(arguments)
            real(*arguments)
        resource.setrlimit = recorder

        from wiredactors.engine.imports import import_mlx_lm
        import_mlx_lm("utils")

        assert calls == [], calls
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1024, hard)
        assert resource.setrlimit is recorder
    """)


@pytest.mark.skipif(
    not shutil.which("setpriv") or os.geteuid() != 0, reason="drops a privilege of root's"
)
def test_an_unprivileged_process_keeps_its_hard_limit():
    """Without CAP_SYS_RESOURCE a hard limit that was lowered once stays low."""
    run_python(
        """
        import resource
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        from wiredactors.engine.imports import import_mlx_lm
        import_mlx_lm("utils")
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == before

        hard = before[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        except ValueError:
            pass
        else:
            raise AssertionError("the test itself is privileged")
        """,
        "setpriv",
        "--bounding-set=-sys_resource",
        "--inh-caps=-sys_resource",
    )


def test_mlx_lm_itself_lowers_the_limit_of_open_files():
    """Without us it does: should this fail one day, the swap can go."""
    run_python("""
        import resource
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        import mlx_lm
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (2048, 4096)
    """)


def test_other_callers_set_the_limit_of_open_files_during_the_import(monkeypatch):
    """Only mlx-lm is kept from it: other code may run while an import takes its seconds."""
    calls = []
    monkeypatch.setattr(resource, "setrlimit", lambda *arguments: calls.append(arguments))
    recorder = resource.setrlimit
    with imports._open_files_kept():
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
        in_mlx_lm = {"__name__": "mlx_lm.utils", "resource": resource}
        exec("resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 4096))", in_mlx_lm)
        exec("resource.setrlimit(resource.RLIMIT_CORE, (0, 0))", in_mlx_lm)
    assert calls == [(resource.RLIMIT_NOFILE, (100, 200)), (resource.RLIMIT_CORE, (0, 0))]
    assert resource.setrlimit is recorder


def test_a_limit_of_open_files_that_fell_all_the_same_is_noticed(monkeypatch):
    """Another mlx-lm that finds another way fails loudly."""
    limits = iter([(20_000, 20_000), (2_048, 4_096)])
    monkeypatch.setattr(resource, "getrlimit", lambda which: next(limits))
    with pytest.raises(AssertionError, match="RLIMIT_NOFILE"), imports._open_files_kept():
        pass


def test_setrlimit_is_put_back_when_the_import_fails():
    """A failed import leaves the resource module as it was."""
    before = resource.setrlimit
    with pytest.raises(ModuleNotFoundError, match=r"mlx_lm\.no_such_module"):
        imports.import_mlx_lm("no_such_module")
    assert resource.setrlimit is before


def test_a_missing_mlx_is_explained(monkeypatch):
    """The error names the extras for each platform, and warns of two back ends."""
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    with pytest.raises(imports.MLXNotInstalled) as caught:
        imports.import_mlx()
    message = str(caught.value)
    for part in (
        "pip install 'wiredactors[cpu]'",
        "wiredactors[cuda12]",
        "wiredactors[cuda13]",
        "pip install mlx.",
        "overwrite each other",
        caught.value.reason,
    ):
        assert part in message
    assert isinstance(caught.value, WiredMemoryError)
    assert isinstance(caught.value, ImportError)
    assert caught.value.name == "mlx.core"


def test_a_missing_back_end_counts_as_missing():
    """What the plain mlx package says on Linux, where libmlx.so comes with the back end."""
    run_python("""
        import importlib.abc, importlib.machinery, sys
        from wiredactors.engine.imports import MLXNotInstalled, import_mlx

        class NoLibrary(importlib.abc.MetaPathFinder, importlib.abc.Loader):
            def find_spec(self, name, path, target=None):
                if name == "mlx.core":
                    return importlib.machinery.ModuleSpec(name, self)
            def exec_module(self, module):
                raise ImportError("libmlx.so: cannot open shared object file")

        sys.meta_path.insert(0, NoLibrary())
        try:
            import_mlx()
        except MLXNotInstalled as error:
            assert "libmlx.so" in str(error) and "[cpu]" in str(error), error
        else:
            raise AssertionError("imported")
    """)


def test_a_folder_of_stubs_counts_as_missing(tmp_path, monkeypatch):
    """Without an extension for this Python `import mlx.core` succeeds, as an empty namespace."""
    stubs = tmp_path / "mlx" / "core"
    stubs.mkdir(parents=True)
    (stubs / "__init__.pyi").touch()
    for name in [name for name in sys.modules if name.partition(".")[0] == "mlx"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    try:
        with pytest.raises(imports.MLXNotInstalled, match="extension module"):
            imports.import_mlx()
    finally:
        for name in ("mlx", "mlx.core"):
            sys.modules.pop(name, None)


def test_a_missing_mlx_lm_is_explained():
    """mlx-lm missing beside a working mlx names its supported versions."""
    run_python("""
        import importlib.abc, sys
        from wiredactors.engine.imports import MLXNotInstalled, import_mlx_lm

        class Missing(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name == "mlx_lm":
                    raise ModuleNotFoundError("No module named 'mlx_lm'", name="mlx_lm")

        sys.meta_path.insert(0, Missing())
        try:
            import_mlx_lm("utils")
        except MLXNotInstalled as error:
            assert error.name == "mlx_lm" and "mlx-lm>=0.32.2,<0.33" in str(error), error
        else:
            raise AssertionError("imported")
    """)
