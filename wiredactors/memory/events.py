"""Events: numbered facts of the ledger, the models and the jobs, and the snapshot."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import attrs


class EventKind(enum.StrEnum):
    """What an event says. The first twelve are the Swift manager's, in snake case."""

    BASELINE_CAPTURED = enum.auto()
    ADMISSION_WAIT = enum.auto()
    ADMISSION_GRANTED = enum.auto()
    ADMISSION_CANCELLED = enum.auto()
    TICKET_STARTED = enum.auto()
    TICKET_START_IGNORED = enum.auto()
    TICKET_ENDED = enum.auto()
    TICKET_END_IGNORED = enum.auto()
    LIMIT_COMPUTED = enum.auto()
    LIMIT_APPLIED = enum.auto()
    LIMIT_APPLY_FAILED = enum.auto()
    BASELINE_RESTORED = enum.auto()

    ADMISSION_REFUSED = enum.auto()
    RESIZE_WAIT = enum.auto()
    RESIZE_CANCELLED = enum.auto()
    RESIZE_REFUSED = enum.auto()
    TICKET_RESIZED = enum.auto()
    FOREIGN_LIMIT_WRITE = enum.auto()
    TICKET_USED = enum.auto()
    TICKET_PINNED = enum.auto()
    PRESSURE = enum.auto()
    RECLAIM_REQUESTED = enum.auto()
    OUTSIDE_PRESSURE = enum.auto()
    POLICY_FAILED = enum.auto()
    CONFIGURATION_UPDATED = enum.auto()

    MODEL_QUEUED = enum.auto()
    MODEL_LOADING = enum.auto()
    MODEL_PROGRESS = enum.auto()
    MODEL_READY = enum.auto()
    MODEL_DRAINING = enum.auto()
    MODEL_FAILED = enum.auto()
    MODEL_UNLOADED = enum.auto()
    JOB_QUEUED = enum.auto()
    JOB_ADMITTED = enum.auto()
    JOB_FIRST_TOKEN = enum.auto()
    JOB_FINISHED = enum.auto()
    JOB_CANCELLED = enum.auto()
    JOB_FAILED = enum.auto()
    TICKET_UNDERSIZED = enum.auto()

    #: Of one subscriber's stream only, not numbered by themselves.
    SNAPSHOT = enum.auto()
    MISSED = enum.auto()


_NOTHING: Mapping[str, Any] = MappingProxyType({})


@attrs.define(kw_only=True)
class EventDraft:
    """An event that is being made: see `WiredMemoryEvent`, which `frozen` makes of it.

    An attrs class that is frozen from the start sets each field in a roundabout way, which takes
    twice as long (measured), and every ticket makes several events.
    """

    kind: EventKind
    sequence: int
    timestamp: float
    ticket_id: str | None = None
    size: int | None = None
    ticket_kind: str | None = None
    priority: int | None = None
    policy: str | None = None
    baseline: int | None = None
    desired_limit: int | None = None
    applied_limit: int | None = None
    active_count: int = 0
    waiter_count: int = 0
    error: str | None = None
    missed: int | None = None
    model: str | None = None
    job: str | None = None
    details: Mapping[str, Any] = _NOTHING
    snapshot: Snapshot | None = attrs.field(default=None, repr=False)

    def frozen(self) -> WiredMemoryEvent:
        """The event, which is this object itself."""
        self.__class__ = WiredMemoryEvent  # the same fields
        return cast("WiredMemoryEvent", self)


@attrs.frozen(kw_only=True)
class WiredMemoryEvent(EventDraft):
    """One fact, in the order in which the ledger decided. Sizes are bytes, times seconds.

    Attributes:
        kind: what it says.
        sequence: its number; gapless. A snapshot repeats the last one that it includes.
        timestamp: seconds on trio's clock.
        ticket_id, size, ticket_kind, priority, policy: of the ticket it is about, where it is.
        baseline, desired_limit, applied_limit: bytes, where it is about the limit.
        active_count: live tickets, reservations included, after it.
        waiter_count: waiting tickets after it.
        error: what went wrong, in words.
        missed: how many events this subscriber lost, in a `missed` record.
        model, job: the names of the model and the job that it is about.
        details: more numbers, by name (of a job: its tokens, times and bytes).
        snapshot: the state, in a `snapshot` record.
    """


@attrs.frozen(kw_only=True)
class TicketSnapshot:
    """One ticket in a snapshot: running, or waiting. Sizes are bytes, times seconds.

    Attributes:
        since: when it was admitted, or began to wait.
        requires: ids of the tickets that it stands on.
        wants_size: what a running one waits to grow to.
        used_at: when a reclaimable or evictable one was last used; None while it waits.
        asked: such a one has been asked to yield, and has not yet.
        evictable: it yields when asked, if it is idle and what is reclaimable does not suffice.
        in_use: an evictable one is in use; False while it waits.
        shares: the id of the reservation that it shares with others.
        share_size, share_margin: what it wants of that: of the bytes that are held once, and of
            those that add up.
    """

    ticket_id: str
    size: int
    kind: str
    priority: int
    policy: str
    pinned: bool
    since: float
    reclaimable: bool = False
    requires: tuple[str, ...] = ()
    wants_size: int | None = None
    used_at: float | None = None
    asked: bool = False
    evictable: bool = False
    in_use: bool = False
    shares: str | None = None
    share_size: int = 0
    share_margin: int = 0


@attrs.frozen(kw_only=True)
class Snapshot:
    """The whole state of the ledger at one moment. Sizes are bytes, times seconds.

    With the events after it, `replay` makes the next one of it.

    Attributes:
        sequence: the number of the last event that it includes.
        baseline: the limit to come back to.
        current_limit: the limit in force; None before the first one.
        desired_limit: what the policies ask for now.
        ceiling: what all tickets together may hold; None for no bound.
        tickets: those that hold bytes, in the order of their admission.
        waiters: those that wait, in the order of the queue.
        excess_bytes: what outside pressure takes off the ceiling meanwhile, for admission.
        aging_seconds: each such time waited raises a priority by one, which orders the waiters.
        tickets_started: how many have been let in since the ledger was made.
        limit_writes: how many writes of the limit have come back from the backend, refused ones
            too; where there is no limit to write, the decisions that took their place.
    """

    sequence: int
    baseline: int
    current_limit: int | None
    desired_limit: int
    ceiling: int | None
    tickets: tuple[TicketSnapshot, ...]
    waiters: tuple[TicketSnapshot, ...]
    excess_bytes: int = 0
    aging_seconds: float = 60.0
    tickets_started: int = 0
    limit_writes: int = 0

    @property
    def writes_per_thousand_tickets(self) -> float:
        """How restless the limit is: its writes for each 1,000 tickets started, 0.0 before any.

        A ticket alone costs two, one up and one down. Tickets that overlap share them.
        """
        return 1000 * self.limit_writes / self.tickets_started if self.tickets_started else 0.0


@attrs.frozen(kw_only=True)
class Explanation:
    """Why a ticket waits. Sizes are bytes, times seconds.

    Attributes:
        state: "running", "waiting", "growing" or "unknown"; from `Runtime.explain`, of a model that
            waits for no memory, its `ModelState`.
        since: when it was admitted, or began to wait.
        waited: how long it has waited.
        size: what it asks for.
        blocked_by: "group" (its policy), "ceiling", "order" (room is kept for one before it), or
            None where it does not wait.
        behind: the tickets before it in the queue; before those, one that waits to grow and that
            room is kept for.
        available: bytes that its policy and the ceiling would admit now.
        missing: bytes that must come free before it fits.
        kept_for: the ticket that room is kept for, where that is what blocks it.
        passed: how often a later one that competes with it went first.
        overtake_count: how often it may be, before room is kept for it.
        overtake_at: and when it will have waited so long that room is kept for it anyway; None
            where none is, as a model in use must go first.
        asked: reservations whose owners have been asked to yield what it lacks.
        limited_by: the parameter of the configuration for whose sake models that could yield are
            not asked yet: "switches_per_minute" or "turn_seconds"; None where none does.
        limited_until: when that is over; None where that is not known, as one is still
            being loaded.
        would_yield: the ids of the models that would be asked then.
        needs_idle_bytes: bytes of reservations (idle models) that must be given up before it
            fits; 0 where it only waits for work to end and for caches to yield.
        reason: the same in a sentence.
    """

    ticket_id: str
    state: str
    reason: str
    since: float | None = None
    waited: float = 0.0
    size: int | None = None
    blocked_by: str | None = None
    behind: tuple[str, ...] = ()
    available: int | None = None
    missing: int = 0
    kept_for: str | None = None
    passed: int = 0
    overtake_count: int | None = None
    overtake_at: float | None = None
    asked: tuple[str, ...] = ()
    needs_idle_bytes: int = 0
    limited_by: str | None = None
    limited_until: float | None = None
    would_yield: tuple[str, ...] = ()
