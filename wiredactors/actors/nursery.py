"""A nursery for a context manager's own task, out of which the body's exception leaves bare."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import trio


@contextlib.asynccontextmanager
async def open_bare_nursery() -> AsyncIterator[trio.Nursery]:
    """As `trio.open_nursery`, but an exception of the body is not put into a group.

    Whoever writes `async with open_runtime(...)` does not see that there is a nursery inside, and
    `except ValueError` round it should work. What the tasks raise still comes as a group, together
    with the body's own exception if there is one.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as error:  # noqa: ASYNC103  # raised again below
                if nursery.cancel_scope.cancel_called and _all_cancelled(error):
                    raise  # the nursery takes it, unless a scope outside is cancelled too
                failure = error
                nursery.cancel_scope.cancel()
    except BaseException as others:  # noqa: ASYNC103  # the body's own goes on instead
        if failure is None:
            raise
        if not _all_cancelled(others):
            if _all_cancelled(failure):  # by the failure of a task, most likely
                raise
            errors = others.exceptions if isinstance(others, BaseExceptionGroup) else [others]
            raise BaseExceptionGroup("the body and its tasks failed", [failure, *errors]) from None
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # its traceback has this frame: a circle would keep the caller's frames


def _all_cancelled(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
