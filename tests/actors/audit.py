"""An audit of models' lives, from the log of events alone.

It keeps what the ledger held, who waited and what was in use at each event, and reckons by itself
whether each model that was asked to yield had to. It shares no code with what it judges.

Where several wait for room at once, what is asked for one is not there for the next. The audit does
not know how much that was, so it then grants as much as all who stand before could take.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import attrs

from wiredactors.memory.events import WiredMemoryEvent

#: Sums of times are not exact.
EPSILON = 1e-6

_JOB_ENDS = ("job_finished", "job_cancelled", "job_failed")


@attrs.define
class Held:
    """A ticket of the log, that lives or waits. Sizes are bytes."""

    ticket_id: str
    size: int
    active: bool
    priority: int
    since: float
    number: int
    pinned: bool = False
    evictable: bool = False
    requires: tuple[str, ...] = ()
    shares: str | None = None
    share_size: int = 0
    share_margin: int = 0
    in_use: bool = False
    asked: bool = False
    idle_since: float = 0.0
    served_since: float | None = None

    @classmethod
    def of(cls, event: WiredMemoryEvent) -> Held:
        details = event.details
        assert event.ticket_id is not None
        assert event.size is not None
        evictable = bool(details.get("evictable"))
        return cls(
            ticket_id=event.ticket_id,
            size=event.size,
            active=event.ticket_kind == "active",
            priority=event.priority or 0,
            since=event.timestamp,
            number=event.sequence,
            pinned=bool(details.get("pinned")),
            evictable=evictable,
            requires=tuple(details.get("requires", ())),
            shares=details.get("shares"),
            share_size=details.get("share_size", 0),
            share_margin=details.get("share_margin", 0),
            in_use=evictable,
        )


@attrs.define
class Waits:
    """One that waits to come in, or to grow."""

    ticket: Held
    wants: int
    since: float
    number: int
    grows: bool = False

    @property
    def more(self) -> int:
        return self.wants - self.ticket.size if self.grows else self.wants


@attrs.define
class Life:
    """Where a model of the log is in its life.

    Attributes:
        line: the jobs that want it and have no memory yet, by the number of their event.
        left_at: when somebody last left the line.
        served: jobs that were admitted in this stay.
        loads, evictions: how many there were.
    """

    phase: str = "absent"
    line: dict[str, int] = attrs.field(factory=dict)
    left_at: float = -1.0
    reason: str = ""
    served: int = 0
    loads: int = 0
    evictions: int = 0


#: What may follow on what in a model's life.
_NEXT = {
    "absent": {"model_queued"},
    "model_queued": {"model_loading", "model_failed"},
    "model_loading": {"model_ready", "model_failed"},
    "model_ready": {"model_draining"},
    "model_draining": {"model_unloaded", "model_failed"},
    "model_unloaded": {"model_queued", "model_failed"},
    "model_failed": {"model_queued", "model_failed"},
}


class Audit:
    """Call `read` with each event, in order, and `close` at the end; see the module.

    Attributes:
        objections: what was not as it should be, each with the number of its event.
        switches: when models were asked to yield.
        drains: how many of these were in use; stalls: of which nothing ran on them.
        waits: how long each job waited from its call to its admission or its end, by its name.
        idle_stays: stays in which no job was admitted, as (model, when, why it left).
    """

    def __init__(
        self,
        *,
        ceiling: int,
        switches_per_minute: int,
        turn_seconds: float,
        aging_seconds: float = 60.0,
        keep_alive: Mapping[str, float | None] | None = None,
        was_called: Callable[[str, str, float], bool] = lambda what, model, when: False,
    ):
        """`was_called(what, model, when)`: somebody's "load" or "unload" of it was under way."""
        self.ceiling = ceiling
        self.per_minute = switches_per_minute
        self.turn_seconds = turn_seconds
        self.aging_seconds = aging_seconds
        self.keep_alive = keep_alive or {}
        self.was_called = was_called
        self.objections: list[str] = []
        self.switches: list[float] = []
        self.drains = self.stalls = 0
        self.lives: dict[str, Life] = {}
        self.waits: dict[str, float] = {}
        self.admitted: dict[str, list[str]] = {}  # the jobs of each model, in that order
        self.started: dict[str, tuple[float, int]] = {}  # tickets: when, and the event's number
        self.first_tokens: dict[str, float] = {}
        self.idle_stays: list[tuple[str, float, str]] = []
        self.live: dict[str, Held] = {}
        self.waiting: dict[str, Waits] = {}
        self._by_use: dict[str, None] = {}  # models, the least recently used first
        self._due: set[str] = set()
        self._jobs: dict[str, tuple[str, float]] = {}  # model, and when it was called
        self._ended: set[str] = set()
        self._to_be_asked: list[str] = []
        self._event: WiredMemoryEvent | None = None
        self._sequence: int | None = None

    # -- reading

    def read(self, event: WiredMemoryEvent) -> None:
        self._event = event
        kind = str(event.kind)
        if kind == "snapshot":
            assert event.snapshot is not None
            self.check(not event.snapshot.tickets, "it reads from the beginning")
        elif kind == "missed":
            self.check(False, f"{event.missed} events were missed")
        else:
            expected = event.sequence if self._sequence is None else self._sequence + 1
            self.check(event.sequence == expected, "the numbers have no gaps")
            if self._to_be_asked:
                self.check(kind == "reclaim_requested", f"{self._to_be_asked} are asked at once")
            if kind.startswith("model_"):
                self._of_model(kind, event)
            elif event.job is not None:
                self._of_job(kind, event)
            else:
                self._of_ticket(kind, event)
        self._sequence = event.sequence

    def read_all(self, events: Iterable[WiredMemoryEvent]) -> None:
        for event in events:
            self.read(event)

    def close(self) -> None:
        """There is no more: nothing is held, nobody waits, every job has ended."""
        self.check(not self.live, f"{list(self.live)} live at the end")
        self.check(not self.waiting, f"{list(self.waiting)} wait at the end")
        self.check(set(self._jobs) == self._ended, f"{set(self._jobs) - self._ended} never ended")
        for model, life in self.lives.items():
            gone = life.phase in ("absent", "model_unloaded", "model_failed")
            self.check(gone, f"{model} is {life.phase} at the end")
            self.check(not life.line, f"{list(life.line)} stand in the line of {model}")

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            event = self._event
            where = f"{event.sequence} at {event.timestamp:.3f}" if event else "the beginning"
            self.objections.append(f"{where}: not so: {what}")

    @property
    def now(self) -> float:
        assert self._event is not None
        return self._event.timestamp

    # -- tickets

    def _of_ticket(self, kind: str, event: WiredMemoryEvent) -> None:
        name = event.ticket_id or ""
        match kind:
            case "admission_wait":
                held = Held.of(event)
                since = event.details.get("since", event.timestamp)
                self.waiting[name] = Waits(held, held.size, since, event.sequence)
            case "admission_cancelled" | "admission_refused" | "admission_granted":
                self.waiting.pop(name, None)
            case "ticket_started":
                held = self.live[name] = Held.of(event)
                self.started[name] = (event.timestamp, event.sequence)
                if held.evictable:
                    self._by_use[name] = None
                self.check(self._held <= self.ceiling, f"{name} fits under the ceiling")
            case "ticket_ended":
                ended = self.live.pop(name)
                self._by_use.pop(name, None)
                self.waiting.pop(name, None)
                self._due.discard(name)
                if ended.shares is not None:
                    self._due.add(ended.shares)
                stands_on_it = [other.ticket_id for other in self._working_on(name)]
                self.check(not stands_on_it, f"nothing stands on {name}: {stands_on_it}")
            case "resize_wait":
                held = self.live[name]
                assert event.size is not None
                self.waiting[name] = Waits(
                    held, event.size, event.timestamp, event.sequence, grows=True
                )
            case "resize_cancelled" | "resize_refused":
                if name in self.live:
                    self.waiting.pop(name, None)
            case "ticket_resized":
                self._resized(name, event)
            case "ticket_used":
                held = self.live[name]
                held.in_use = event.details["in_use"]
                if held.served_since is None:
                    held.served_since = event.timestamp
                held.idle_since = event.timestamp
                del self._by_use[name]
                self._by_use[name] = None
            case "ticket_pinned":
                known = self.live.get(name) or self.waiting[name].ticket
                known.pinned = event.details["pinned"]
                known.asked = known.asked and not known.pinned  # it may stay after all
            case "pressure":
                if event.details["asked"]:
                    self._asks(name, event.details["asked"])
            case "reclaim_requested":
                expected = self._to_be_asked.pop(0) if self._to_be_asked else "nobody"
                self.check(name == expected, f"{name} is asked for somebody: {expected} is")
                self.live[name].asked = True

    def _resized(self, name: str, event: WiredMemoryEvent) -> None:
        assert event.size is not None
        held = self.live.get(name)
        if held is None:
            waits = self.waiting[name]
            waits.wants = waits.ticket.size = event.size
            return
        held.size = event.size
        self.waiting.pop(name, None)
        self._due.discard(name)
        self.check(self._held <= self.ceiling, f"{name} fits under the ceiling")

    @property
    def _held(self) -> int:
        return sum(held.size for held in self.live.values())

    def _working_on(self, name: str) -> list[Held]:
        return [held for held in self.live.values() if held.active and name in held.requires]

    # -- who is asked, and for whom

    def _asks(self, name: str, asked: Sequence[str]) -> None:
        self._to_be_asked = list(asked)
        waits = self.waiting.get(name)
        if waits is None:
            self.check(False, f"{name} waits, for which {asked} are asked")
            return
        models = [self.live[each] for each in asked if each in self.live]
        self.check(len(models) == len(asked), f"all of {asked} live")
        for model in models:
            self.check(model.evictable, f"{model.ticket_id} is a model")
            self.check(not model.pinned, f"{model.ticket_id} is not pinned")
            self.check(not model.asked, f"{model.ticket_id} has not been asked already")
            wanted = model.ticket_id in waits.ticket.requires
            self.check(not wanted, f"{name} does not stand on {model.ticket_id}")
        self._note_switch()
        if any(model.in_use for model in models):
            self.check(all(model.in_use for model in models), "the idle ones go first")
            self._asks_those_in_use(waits, models)
        else:
            self._asks_the_idle(waits, models)

    def _note_switch(self) -> None:
        if self.switches:
            since, least = self.now - self.switches[-1], 60 / self.per_minute
            self.check(since >= least - EPSILON, f"{least} s from switch to switch, not {since}")
        self.switches.append(self.now)

    def _asks_the_idle(self, waits: Waits, models: Sequence[Held]) -> None:
        name = waits.ticket.ticket_id
        others = self._could_be_taken_before(waits)
        if waits.ticket.active:
            room = self._room_after_work(waits, gone=()) - others
            self.check(waits.wants > room, f"{name} would not fit when work had ended: {room}")
        on_the_way = [h for h in self._models() if h.asked and not h.in_use]
        room = self._room_now(waits, gone=[*on_the_way, *models])
        self.check(waits.more <= room, f"{name} fits then: {waits.more} <= {room}")
        room = self._room_now(waits, gone=[*on_the_way, *models[:-1]]) - others
        self.check(waits.more > room, f"it takes all of them: {waits.more} > {room}")
        willing = [h for h in self._models() if not (h.in_use or h.asked or h.pinned)]
        self._are_least_recently_used(waits, models, willing)

    def _asks_those_in_use(self, waits: Waits, models: Sequence[Held]) -> None:
        name = waits.ticket.ticket_id
        self.drains += 1
        willing = [h for h in self._models() if h.in_use and not (h.asked or h.pinned)]
        stalled = [model for model in willing if self._is_stalled(model, waits)]
        if all(model in stalled for model in models):
            self.stalls += 1
            willing = stalled
        else:
            willing = [model for model in willing if self._has_had_its_turn(model, waits)]
        self.check(
            all(model in willing for model in models),
            f"it is the turn of {name}, or they are stalled: {[m.ticket_id for m in models]}",
        )
        free = [h for h in self._models() if h.asked or not (h.in_use or h.pinned)]
        need = waits.more if waits.grows and not waits.ticket.active else waits.wants
        room = self._room_after_work(waits, gone=[*free, *models])
        self.check(need <= room, f"{name} fits then, after work: {need} <= {room}")
        others = self._could_be_taken_before(waits)
        room = self._room_after_work(waits, gone=[*free, *models[:-1]]) - others
        self.check(need > room, f"{name} would not fit beside any of them: {need} > {room}")
        self._are_least_recently_used(waits, models, willing)

    def _has_had_its_turn(self, model: Held, waits: Waits) -> bool:
        """The one has waited so long, and the other has served so long."""
        if model.served_since is None:
            return False
        turn, served = self.turn_seconds - EPSILON, self.now - model.served_since
        return self.now - waits.since >= turn and served >= max(turn, 1 - EPSILON)

    def _are_least_recently_used(
        self, waits: Waits, models: Sequence[Held], willing: Iterable[Held]
    ) -> None:
        order = [h.ticket_id for h in willing if h.ticket_id not in waits.ticket.requires]
        asked = [model.ticket_id for model in models]
        self.check(order[: len(asked)] == asked, f"{asked} are the least recently used of {order}")

    def _models(self) -> list[Held]:
        return [self.live[name] for name in self._by_use]

    def _is_stalled(self, model: Held, waits: Waits) -> bool:
        """Nothing runs on it, and some of its work stands behind the one that waits."""
        if self._working_on(model.ticket_id):
            return False
        return any(
            model.ticket_id in other.ticket.requires
            and (waits.grows or self._key(waits) < self._key(other))
            for other in self.waiting.values()
        )

    def _key(self, waits: Waits) -> tuple[float, int]:
        ahead = waits.ticket.priority * self.aging_seconds
        return waits.since - ahead, waits.number

    def _could_be_taken_before(self, waits: Waits) -> int:
        """Bytes, at most, by those before it."""
        return sum(
            other.more
            for other in self.waiting.values()
            if other is not waits
            and (other.grows or (not waits.grows and self._key(other) < self._key(waits)))
        )

    def _room_now(self, waits: Waits, gone: Collection[Held]) -> int:
        freed = sum(held.size for held in gone) + self._shrinks(waits, gone)
        return self.ceiling - self._held + freed

    def _room_after_work(self, waits: Waits, gone: Collection[Held]) -> int:
        """With all active tickets ended."""
        kept = sum(held.size for held in self.live.values() if not held.active)
        return self.ceiling - kept + sum(held.size for held in gone) + self._shrinks(waits, gone)

    def _shrinks(self, waits: Waits, gone: Collection[Held]) -> int:
        """What a shared reservation gives back when these are gone."""
        names = {held.ticket_id for held in gone}
        shared = {held.shares for held in gone if held.shares is not None} | self._due
        total = 0
        for name in shared:
            held = self.live.get(name)
            if held is None or held is waits.ticket:
                continue
            stay = [h for h in self.live.values() if h.shares == name and h.ticket_id not in names]
            come = [w.ticket for w in self.waiting.values() if w.ticket.shares == name]
            wanted = max((h.share_size for h in [*stay, *come]), default=0)
            total += max(0, held.size - wanted - sum(h.share_margin for h in stay))
        return total

    # -- jobs

    def _of_job(self, kind: str, event: WiredMemoryEvent) -> None:
        job, model = event.job or "", event.model or ""
        life = self._life(model)
        if kind == "job_queued":
            self.check(job not in self._jobs, f"{job} comes once")
            self._jobs[job] = (model, event.timestamp)
            life.line[job] = event.sequence
        elif kind == "job_admitted":
            self._leave_line(job, life)
            self.admitted.setdefault(model, []).append(job)
            life.served += 1
            here = life.phase in ("model_ready", "model_draining")
            self.check(here, f"{job} runs while {model} is there, which is {life.phase}")
        elif kind == "job_first_token":
            self.first_tokens[job] = event.timestamp
        elif kind in _JOB_ENDS:
            self.check(job not in self._ended, f"{job} ends once")
            self._ended.add(job)
            self._leave_line(job, life)

    def _leave_line(self, job: str, life: Life) -> None:
        if life.line.pop(job, None) is not None:
            life.left_at = self.now
            self.waits[job] = self.now - self._jobs[job][1]

    # -- models

    def _life(self, model: str) -> Life:
        return self.lives.setdefault(model, Life())

    def _of_model(self, kind: str, event: WiredMemoryEvent) -> None:
        model = event.model or ""
        life = self._life(model)
        if kind == "model_progress":
            self.check(life.phase == "model_loading", f"{model} loads, and not: {life.phase}")
            return
        known = kind in _NEXT[life.phase] or (kind == "model_failed" and life.phase == "absent")
        self.check(known, f"{kind} follows on {life.phase}")
        match kind:
            case "model_queued" | "model_loading":
                # Whoever leaves as it begins may be heard of first.
                wanted = life.line or life.left_at >= self.now - EPSILON
                called = self.was_called("load", model, self.now)
                self.check(bool(wanted) or called, f"{kind}: somebody waits for {model}")
                life.loads += kind == "model_loading"
            case "model_ready":
                life.served = 0
            case "model_draining":
                self._leaves(model, life, event)
            case "model_unloaded":
                reason = event.details["reason"]
                self.check(reason == life.reason, f"{model} left because of {life.reason}")
                life.evictions += life.reason == "pressure"
                if not life.served:
                    self.idle_stays.append((model, self.now, life.reason))
        life.phase = kind

    def _leaves(self, model: str, life: Life, event: WiredMemoryEvent) -> None:
        life.reason = event.details["reason"]
        held = self.live[f"weights/{model}"]
        match life.reason:
            case "pressure":
                self.check(held.asked, f"{model} was asked to yield")
            case "keep_alive":
                seconds = self.keep_alive.get(model)
                self.check(seconds is not None, f"{model} has a keep_alive")
                idle = self.now - held.idle_since
                still = not (held.in_use or held.pinned) and idle >= (seconds or 0) - EPSILON
                self.check(still, f"{model} was idle so long, and not {idle:.3f} s")
            case "unload" | "close":
                self.check(
                    self.was_called(life.reason, model, self.now), f"somebody said {life.reason}"
                )
            case other:
                self.check(False, f"{other!r} is a reason")
