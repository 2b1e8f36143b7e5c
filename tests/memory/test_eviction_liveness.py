"""Random days of models that are loaded, used and asked to go: nobody waits for ever.

Owners behave as the runtime does: a model is in use while a job of it lives or waits, one that is
asked goes when nothing runs on it, and what waits for it then is loaded again; the workspace is
resized after each, and a model serves when it has been loaded. Whoever waits comes in at last,
whatever order that takes.
"""

from __future__ import annotations

import random

import pytest

from tests.memory.conftest import Driver
from wiredactors.memory.policies import WiredSumPolicy
from wiredactors.memory.share import Share
from wiredactors.memory.tickets import WiredMemoryTicket

SUM = WiredSumPolicy()
CEILING = 100
WORKSPACE = WiredMemoryTicket(0, SUM, "reservation", id="workspace")
#: Weights, part of the workspace, margin: none fits beside all others, each does alone.
MODELS = {"a": (30, 20, 2), "b": (45, 10, 2), "c": (20, 35, 0), "d": (10, 5, 5)}
PRIORITIES = {"a": 0, "b": 2, "c": 0, "d": 1}


class House:
    """A ledger with models, and their owners."""

    def __init__(self, seed: int, **configuration):
        self.random = random.Random(seed)
        self.d = Driver(ceiling=CEILING, **configuration)
        self.d.reserve("workspace", 0)
        self.loading: dict[str, object] = {}  # the replies of loads
        self.loaded: set[str] = set()
        self.serves_at: dict[str, float] = {}  # of those loaded yet
        self.leaving: set[str] = set()
        self.jobs: dict[str, tuple[str, int, object]] = {}  # model, size, reply of its start
        self.wanted: list[tuple[str, str, int]] = []  # jobs whose model is not there
        self.since: dict[str, float] = {}  # when each job was asked for
        self.number = 0
        self.done = 0

    # -- what people do

    def ask_for_job(self) -> None:
        self.number += 1
        job = (f"job{self.number}", self.random.choice(sorted(MODELS)), self.random.choice([5, 15]))
        self.wanted.append(job)
        self.since[job[0]] = self.d.now
        self.look()

    def end_a_job(self) -> None:
        running = [job for job, (_, _, reply) in self.jobs.items() if reply.answered]
        if running:
            job = self.random.choice(running)
            del self.jobs[job]
            self.done += 1
            self.d.end(job)
            self.look()

    # -- what owners do

    def look(self) -> None:
        """Go round until nothing more is to be done in this moment."""
        while self._step():
            pass
        assert all(reply.error is None for _, _, reply in self.jobs.values())

    def _step(self) -> bool:
        d = self.d
        for asked in d.asked:
            assert asked in self.loaded, "one that is not there is asked"
            assert asked not in self.serves_at, "one that is loaded yet is asked"
        self.leaving |= set(d.asked)
        d.asked.clear()
        for name, reply in list(self.loading.items()):
            if reply.answered:
                del self.loading[name]
                self.loaded.add(name)
                self._fit()
                d.resize(name, MODELS[name][0])
                self.serves_at[name] = d.now + self.random.choice([0.0, 3.0, 40.0])
                return True
        for name, at in list(self.serves_at.items()):
            if at <= d.now:
                del self.serves_at[name]
                d.use(name, in_use=self._has_jobs(name))
                return True
        for name in sorted(self.leaving):
            mine = [(job, size) for job, (model, size, _) in self.jobs.items() if model == name]
            for job, size in mine:
                if not self.jobs[job][2].answered:  # it waits for the model's next life
                    reply = self.jobs.pop(job)[2]
                    d.cancel(reply)
                    self.wanted.append((job, name, size))
                    return True
            if not mine:
                self.leaving.discard(name)
                self.loaded.discard(name)
                d.end(name)
                self._fit()
                return True
        for job, name, size in self.wanted:
            if name in self.serves_at:
                continue
            if name in self.loaded and name not in self.leaving:
                self.wanted.remove((job, name, size))
                requires = (name, "workspace")
                d.use(name, in_use=True)
                reply = self._start(job, size, name, requires)
                self.jobs[job] = (name, size, reply)
                return True
            if name not in self.loaded and name not in self.loading:
                self._load(name)
                return True
        serving = self.loaded - self.leaving - set(self.serves_at)
        return any(self._say_use(name) for name in sorted(serving))

    def _start(self, job: str, size: int, name: str, requires: tuple[str, ...]):
        more = {"priority": PRIORITIES[name], "since": self.since[job]}
        return self.d.start(job, size, SUM, requires=requires, **more)

    def _has_jobs(self, name: str) -> bool:
        return any(model == name for model, _, _ in self.jobs.values())

    def _load(self, name: str) -> None:
        weights, share, margin = MODELS[name]
        size = weights + max(0, share - self._held_once()) + margin
        part = Share(WORKSPACE, share, margin)
        more = {"evictable": True, "share": part, "priority": PRIORITIES[name]}
        more["since"] = min(self.since[job] for job, model, _ in self.wanted if model == name)
        reply = self.d.reserve(name, size, SUM, **more)
        assert reply.error is None
        self.loading[name] = reply

    def _say_use(self, name: str) -> bool:
        in_use = self._has_jobs(name)
        held = next(t for t in self.d.ledger.snapshot().tickets if t.ticket_id == name)
        if held.in_use == in_use:
            return False
        self.d.use(name, in_use=in_use)
        return True

    def _held_once(self) -> int:
        here = self.loaded | set(self.loading)
        return max((MODELS[name][1] for name in self.loaded & here), default=0)

    def _fit(self) -> None:
        margins = sum(MODELS[name][2] for name in self.loaded)
        waiting = max((MODELS[n][1] for n in self.loading), default=0)
        held = self.d.ledger.size_of("workspace") or 0
        # What loads that wait have not asked for again stays theirs.
        keep = min(waiting, held)
        self.d.resize("workspace", max(self._held_once(), keep) + margins)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize(("switches_per_minute", "turn_seconds"), [(1, 30.0), (60, 0.0), (3, 5.0)])
def test_everyone_comes_in_at_last(seed, switches_per_minute, turn_seconds):
    house = House(seed, switches_per_minute=switches_per_minute, turn_seconds=turn_seconds)
    for _ in range(40):
        if house.random.random() < 0.5:
            house.ask_for_job()
        else:
            house.end_a_job()
        house.d.advance(house.random.choice([0.0, 1.0, 10.0]))
        house.look()
    # Nobody new comes: all that run end, one after the other, and those who wait come in.
    for _ in range(400):
        if not (house.jobs or house.wanted or house.loading):
            break
        house.end_a_job()
        house.d.advance(10.0)
        house.look()
    assert not house.jobs, house.d.ledger.explain(next(iter(house.jobs)), house.d.now).reason
    assert not house.wanted
    assert house.done == house.number
