"""The command `wiredactors`."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

from wiredactors.cli import demo, run
from wiredactors.memory.errors import WiredMemoryError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="wiredactors",
        description="Serve several MLX language models from one process, inside one memory budget.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo.add_to(commands)
    run.add_to(commands)
    options = parser.parse_args(arguments)
    try:
        status: int = options.execute(options)
    except WiredMemoryError as error:
        print(f"wiredactors: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("wiredactors: interrupted; everything has been given back", file=sys.stderr)
        return 130
    return status


def _version() -> str:
    try:
        return importlib.metadata.version("wiredactors")
    except importlib.metadata.PackageNotFoundError:  # run from a tree that was never installed
        return "unknown (not installed)"
