"""What tests of several parts use."""

from __future__ import annotations

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
