"""The command `wiredactors`."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from wiredactors.cli import demo, doctor, estimate, run, tune
from wiredactors.memory.errors import WiredMemoryError

#: What a shell reports of a program whose reader has gone, as of `wiredactors doctor | head`.
_SIGPIPE_STATUS = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="wiredactors",
        description="Serve several MLX language models from one process, inside one memory budget.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo.add_to(commands)
    doctor.add_to(commands)
    estimate.add_to(commands)
    run.add_to(commands)
    tune.add_to(commands)
    options = parser.parse_args(arguments)
    try:
        status: int = options.execute(options)
        sys.stdout.flush()  # what nobody reads any more is found out here, not at exit
    except (WiredMemoryError, KeyboardInterrupt) as error:
        return _tell([error])
    except BrokenPipeError:
        if _is_read():  # it was another pipe
            raise
        return _SIGPIPE_STATUS
    except BaseExceptionGroup as group:  # of a scenario's own nursery
        ours, others = group.split((WiredMemoryError, KeyboardInterrupt))
        if ours is None or others is not None:
            raise
        return _tell(_leaves(ours))
    return status


def _is_read() -> bool:
    """Whether anybody still reads the output; if not, nothing more is written to it."""
    try:
        print(flush=True)
    except BrokenPipeError:
        # Python flushes once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _tell(errors: Sequence[BaseException]) -> int:
    """Say what went wrong, a line each; returns the exit status."""
    if any(isinstance(error, KeyboardInterrupt) for error in errors):
        print("wiredactors: interrupted", file=sys.stderr)
        return 130
    for error in errors:
        print(f"wiredactors: {error}", file=sys.stderr)
    return 1


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _version() -> str:
    try:
        return importlib.metadata.version("wiredactors")
    except importlib.metadata.PackageNotFoundError:  # run from a tree that was never installed
        return "unknown (not installed)"
