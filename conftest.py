"""The Python examples of the README and the book, run as tests.

Every `python` block runs, each file in a namespace of its own. A block `output` must be what the
block before it printed (`...` stands for anything). The examples load `models/chat` and
`models/draft`: two tiny random models, made once in a session, in a folder that is the current one
while an example runs.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import itertools
import os
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pytest
import sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

_PRINTED = "_printed"
_run_python = PythonEvaluator()
_outputs = doctest.OutputChecker()


def _run(example: sybil.Example) -> str | None:
    """What went wrong, in words: sybil 10.1 stumbles over exceptions that have a cause."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            _run_python(example)
    except Exception:
        return f"{traceback.format_exc()}\nIt printed:\n{printed.getvalue()}"
    example.namespace[_PRINTED] = printed.getvalue()
    return None


def _compare(example: sybil.Example) -> str | None:
    """The difference between what was printed and what the book says, None where there is none."""
    wanted, printed = str(example.parsed), example.namespace.get(_PRINTED, "")
    if _outputs.check_output(wanted, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE):
        return None
    return f"The book says:\n{wanted}\nIt printed:\n{printed}"


_numbers = itertools.count()


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where measurements are kept: a folder of each test's own, which is made when needed."""
    folder = tmp_path_factory.getbasetemp() / "caches" / str(next(_numbers))
    monkeypatch.setenv("WIREDACTORS_CACHE_DIR", str(folder))
    return folder


class _Workshop:
    """The folder in which the examples run."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._home = ""

    def enter(self, namespace: dict[str, Any]) -> None:
        """Go there, and make the models if nobody has yet."""
        self._home = os.getcwd()
        if self._folder is None:
            from tests.engine import tiny

            self._folder = tempfile.TemporaryDirectory(prefix="wiredactors-book-")
            models = Path(self._folder.name) / "models"
            for seed, name in enumerate(("chat", "draft")):
                tiny.make_model(models, "llama", seed=seed).rename(models / name)
        os.chdir(self._folder.name)

    def leave(self, namespace: dict[str, Any]) -> None:
        """Come back."""
        os.chdir(self._home)


_workshop = _Workshop()

pytest_collect_file = sybil.Sybil(
    parsers=[
        CodeBlockParser("python", _run),
        CodeBlockParser("output", _compare),
        SkipParser(),
    ],
    patterns=["README.md", "docs/**/*.md", "docs/*.md"],
    setup=_workshop.enter,
    teardown=_workshop.leave,
).pytest()
