"""Functions of a module that are others for a while, for one thread alone.

Another thread may run a model meanwhile (a runtime has a device thread of its own, and `estimate`
works on its caller's): to it they stay what they were.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs

_Function = Callable[..., Any]

#: Whoever puts functions in place finds and puts back the originals, not those of another thread.
_one_at_a_time = threading.RLock()


@attrs.frozen
class StandIn:
    """What stands in for a function.

    Attributes:
        names: the names of the function's module (its `vars()`).
        name: the function's there.
        function: what stands in.
    """

    names: dict[str, Any]
    name: str
    function: _Function


@contextlib.contextmanager
def standing_in(find: Callable[[], Iterable[StandIn]]) -> Iterator[None]:
    """Inside it, these stand in for the functions, on this thread.

    Another thread that enters waits for this one to leave; the same one may enter again. Who has
    got hold of a name inside it has the original afterwards, too.
    """
    thread: int | None = threading.get_ident()

    def only_here(original: _Function, function: _Function) -> _Function:
        @functools.wraps(original, updated=())
        def call(*arguments: Any, **options: Any) -> Any:
            called = function if threading.get_ident() == thread else original
            return called(*arguments, **options)

        return call

    with _one_at_a_time:
        found = [(each, each.names[each.name]) for each in find()]
        try:
            for each, original in found:
                each.names[each.name] = only_here(original, each.function)
            yield
        finally:
            thread = None
            for each, original in found:
                each.names[each.name] = original
