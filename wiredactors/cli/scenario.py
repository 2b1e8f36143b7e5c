"""Finding and loading a scenario: a Python file with `main(runtime)` and a `POLICY`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs

import wiredactors
from wiredactors.actors.outcome import Outcome
from wiredactors.actors.runtime import Runtime
from wiredactors.memory.errors import WiredMemoryError
from wiredactors.memory.policies import WiredMemoryPolicy, WiredSumPolicy


class ScenarioError(WiredMemoryError):
    """The scenario file is missing, or lacks what a scenario must have."""


@attrs.frozen
class Scenario:
    """A scenario that was loaded.

    Attributes:
        title: the first line of its docstring.
        policy: its POLICY; a sum under the ceiling where it has none.
        main: runs it in an open runtime and returns what became of its jobs, or None.
    """

    title: str
    policy: WiredMemoryPolicy
    main: Callable[[Runtime], Awaitable[list[Outcome] | None]]


def packaged_scenario(name: str) -> Path:
    """The file of a scenario that comes with the library, installed or in a checkout."""
    package = Path(wiredactors.__file__).parent
    for folder in (package / "_scenarios", package.parent / "scenarios"):
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    raise ScenarioError(f"the scenario {name!r} is missing from this installation")


def load_scenario(path: Path) -> Scenario:
    """Import the file at `path`.

    Raises:
        ScenarioError: there is no such file, or it has no `main`, or POLICY is no policy.
    """
    spec = importlib.util.spec_from_file_location(f"scenario_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ScenarioError(f"there is no scenario {path}: give the path of a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by its name
    spec.loader.exec_module(module)
    main = getattr(module, "main", None)
    if main is None:
        raise ScenarioError(f"{path} has no `async def main(runtime)`")
    policy = getattr(module, "POLICY", None) or WiredSumPolicy()
    if not isinstance(policy, WiredMemoryPolicy):
        raise ScenarioError(f"{path}: POLICY must be a policy, not {policy!r}")
    title = (module.__doc__ or path.stem).strip().splitlines()[0]
    return Scenario(title, policy, main)
