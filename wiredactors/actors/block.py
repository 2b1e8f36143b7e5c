"""A function that starts a job, made into a block that is left when the job has ended."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import ParamSpec

from wiredactors.actors.job import Job

P = ParamSpec("P")


def block_round(
    start: Callable[P, Job],
) -> Callable[[Callable[..., AsyncIterator[Job]]], Callable[P, AbstractAsyncContextManager[Job]]]:
    """A decorator: as `contextlib.asynccontextmanager`, with the parameters of `start`.

    So they are written once, and checked and shown for both.
    """

    def decorate(
        function: Callable[..., AsyncIterator[Job]],
    ) -> Callable[P, AbstractAsyncContextManager[Job]]:
        block = contextlib.asynccontextmanager(function)
        functools.update_wrapper(block, start, assigned=(), updated=())  # shows its signature
        return block

    return decorate
