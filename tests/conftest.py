"""What tests of several parts use."""

from __future__ import annotations

import functools
import random

import pytest
import trio


@pytest.fixture
def shuffle(monkeypatch):
    """Called with a seed: trio picks among the tasks that are ready by it, and by nothing else."""

    def seeded(seed):
        monkeypatch.setattr(trio._core._run, "_r", random.Random(seed))

    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    return seeded


@pytest.fixture
def bounded(request):
    """A test that waits for what never comes fails. (pytest-trio runs no async autouse fixture.)"""
    test = request.node.obj

    @functools.wraps(test)
    async def run(**fixtures):
        with trio.fail_after(10_000 if "autojump_clock" in fixtures else 30):
            await test(**fixtures)

    request.node.obj = run
