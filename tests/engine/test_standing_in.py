"""Functions that stand in for others do so on one thread, and for a while."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from wiredactors.engine.fusion import marked_functions
from wiredactors.engine.graph import _exportable
from wiredactors.engine.standing_in import StandIn, standing_in

#: Nothing here takes so long unless it hangs.
SECONDS = 10.0


def original() -> str:
    return "original"


@pytest.fixture
def module() -> SimpleNamespace:
    return SimpleNamespace(function=original)


def replaced(module: SimpleNamespace, answer: str = "other") -> Any:
    return standing_in(lambda: [StandIn(vars(module), "function", lambda: answer)])


def elsewhere(function: Callable[[], Any]) -> Any:
    """What the function returns, or raises, on another thread."""
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(function())
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(SECONDS)
    return answers[0]


def test_it_stands_in_on_this_thread_alone(module: SimpleNamespace) -> None:
    with replaced(module):
        assert module.function() == "other"
        assert elsewhere(lambda: module.function()) == "original"
    assert module.function is original


def test_what_was_taken_inside_is_the_original_afterwards(module: SimpleNamespace) -> None:
    with replaced(module):
        taken = module.function
        assert taken() == "other"
    assert taken() == "original"


def test_it_is_put_back_after_an_error(module: SimpleNamespace) -> None:
    with pytest.raises(KeyError), replaced(module):
        raise KeyError
    assert module.function is original


def test_nor_is_another_thread_kept_out_then(module: SimpleNamespace) -> None:
    with pytest.raises(KeyError), replaced(module):
        raise KeyError

    def enter() -> str:
        with replaced(module):
            return str(module.function())

    assert elsewhere(enter) == "other"


def test_one_within_another(module: SimpleNamespace) -> None:
    with replaced(module, "outer"):
        with replaced(module, "inner"):
            assert module.function() == "inner"
        assert module.function() == "outer"
    assert module.function is original


def test_another_thread_waits_and_finds_the_original(module: SimpleNamespace) -> None:
    entered = threading.Event()
    found: list[object] = []

    def find() -> list[StandIn]:
        found.append(module.function)
        return []

    def enter() -> None:
        entered.set()
        with standing_in(find):
            pass

    with replaced(module):
        thread = threading.Thread(target=enter)
        thread.start()
        assert entered.wait(SECONDS)
        thread.join(0.05)
        assert not found
    thread.join(SECONDS)
    assert found == [original]


@contextlib.contextmanager
def recording() -> Iterator[None]:
    with marked_functions(), _exportable(pytest.importorskip("mlx.core")):
        yield


def test_another_thread_computes_with_mlx_s_own_while_a_graph_is_recorded() -> None:
    mx, nn = pytest.importorskip("mlx.core"), pytest.importorskip("mlx.nn")

    def compute() -> list[Any]:
        small = mx.from_fp8(mx.to_fp8(mx.array([0.5, 1.5])), mx.float32)
        return [nn.silu(mx.zeros(2)).tolist(), small.tolist()]

    with recording():
        assert elsewhere(compute) == [[0.0, 0.0], [0.5, 1.5]]
