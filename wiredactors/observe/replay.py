"""Replay: a snapshot and the events after it give the next snapshot, and nothing else is needed.

The ledger decides and its events are facts, so nothing is decided here a second time: who fits,
what a policy asks for and when a limit is written are all told. What no event says by itself:

- The order of those that wait is the key of the ledger's queue, of what is known of each: when it
  began to wait less its priority's worth of `aging_seconds`, then its arrival.
- When the last active ticket has ended, what is asked for is the baseline.

The result is the ledger's own at every moment at which a turn has been settled, and those are the
only ones at which anybody but the manager's task can look.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from wiredactors.memory.events import EventKind, Snapshot, TicketSnapshot, WiredMemoryEvent


def replay(snapshot: Snapshot, events: Iterable[WiredMemoryEvent]) -> Snapshot:
    """The state after `events`, which follow `snapshot` as a stream of the manager gives them.

    Pure: nothing of what is given changes. Events that the snapshot includes already are skipped,
    so a whole stream may be given with any snapshot of its time. Those of models and jobs only
    bring the number forward. A `snapshot` record among the events is skipped, or where it has the
    number that was reached, compared.

    Raises:
        ValueError: events are missing, and which; or one does not fit what came before it, so
            that it is of another manager.
        TypeError: `snapshot` is none.
    """
    if not isinstance(snapshot, Snapshot):
        raise TypeError(f"replay goes on from a Snapshot, not {snapshot!r}")
    state = _State(snapshot)
    for event in events:
        state.take(event)
    return state.snapshot()


class _State:
    """The fields of a snapshot, and its tickets by id."""

    def __init__(self, before: Snapshot):
        self._fields: dict[str, Any] = attrs.asdict(before, recurse=False)
        self._sequence = before.sequence
        self._tickets = {ticket.ticket_id: ticket for ticket in before.tickets}
        self._waiters = {waiter.ticket_id: waiter for waiter in before.waiters}
        self._active = sum(ticket.kind == "active" for ticket in before.tickets)

    def snapshot(self) -> Snapshot:
        # Equal keys stand in the order of arrival already, which sorting keeps.
        waiters = sorted(self._waiters.values(), key=self._key)
        self._fields |= {"sequence": self._sequence, "waiters": tuple(waiters)}
        return Snapshot(**self._fields | {"tickets": tuple(self._tickets.values())})

    def _key(self, waiter: TicketSnapshot) -> float:
        # In the very floats of the ledger's queue. All that wait age alike: `aging_seconds` cannot
        # change while any do.
        priority = waiter.priority
        return waiter.since - (priority * self._fields["aging_seconds"] if priority else 0.0)

    def take(self, event: WiredMemoryEvent) -> None:
        """One event more."""
        following = self._sequence + 1
        match event.kind:
            case EventKind.SNAPSHOT if event.sequence == self._sequence:
                self._compare(event)
            case EventKind.SNAPSHOT | EventKind.MISSED if event.sequence >= following:
                raise _missing(following, event.sequence)
            case EventKind.SNAPSHOT | EventKind.MISSED:
                pass
            case _ if event.sequence > following:
                raise _missing(following, event.sequence - 1)
            case _ if event.sequence == following:
                self._apply(event)
                self._sequence = following

    def _compare(self, event: WiredMemoryEvent) -> None:
        told, reached = event.snapshot, self.snapshot()
        if told is None or told == reached:
            return
        names = [field.name for field in attrs.fields(Snapshot)]
        differing = [name for name in names if getattr(told, name) != getattr(reached, name)]
        raise ValueError(
            f"the snapshot record of number {event.sequence} has other {', '.join(differing)} than "
            "the events before it come to: is it of another manager?"
        )

    def _apply(self, event: WiredMemoryEvent) -> None:
        fields = self._fields
        match event.kind:
            case EventKind.ADMISSION_WAIT:
                self._waiters[_id_of(event)] = _record(event)
            case EventKind.ADMISSION_CANCELLED:
                self._leave(self._waiters, event)
            case EventKind.ADMISSION_REFUSED:  # most never waited
                self._waiters.pop(_id_of(event), None)
            case EventKind.TICKET_STARTED:
                self._start(event)
            case EventKind.TICKET_ENDED:
                ended = self._leave(self._tickets, event)
                self._active -= ended.kind == "active"
                self._come_back()
            case EventKind.TICKET_RESIZED:
                self._resize(event)
            case EventKind.RESIZE_WAIT:
                self._change(event, wants_size=event.size)
            case EventKind.RESIZE_CANCELLED | EventKind.RESIZE_REFUSED:
                self._change(event, wants_size=None)
            case EventKind.TICKET_USED:
                self._use(event)
            case EventKind.TICKET_PINNED:
                self._pin(event)
            case EventKind.RECLAIM_REQUESTED:
                self._change(event, asked=True)
            case EventKind.BASELINE_CAPTURED:
                fields["baseline"] = event.baseline
                self._come_back()
            case EventKind.LIMIT_COMPUTED:
                fields["desired_limit"] = event.desired_limit
            case EventKind.LIMIT_APPLIED:
                fields["current_limit"] = event.applied_limit
                fields["limit_writes"] += 1
            case EventKind.LIMIT_APPLY_FAILED:
                fields["limit_writes"] += 1
            case EventKind.OUTSIDE_PRESSURE:
                fields["excess_bytes"] = event.size
            case EventKind.CONFIGURATION_UPDATED:
                fields["ceiling"] = event.details["ceiling"]
                fields["aging_seconds"] = event.details["aging_seconds"]

    def _start(self, event: WiredMemoryEvent) -> None:
        ticket = _record(event)
        if ticket.reclaimable or ticket.evictable:
            used_at = event.timestamp
            ticket = attrs.evolve(ticket, used_at=used_at, in_use=ticket.evictable)
        self._waiters.pop(ticket.ticket_id, None)
        self._tickets[ticket.ticket_id] = ticket
        self._active += ticket.kind == "active"
        self._fields["tickets_started"] += 1

    def _come_back(self) -> None:
        """Without active work the baseline is what is asked for."""
        if not self._active:
            self._fields["desired_limit"] = self._fields["baseline"]

    def _change(self, event: WiredMemoryEvent, **changes: Any) -> None:
        """Of a ticket that runs or waits; it keeps its place."""
        ticket_id = _id_of(event)
        where = self._waiters if ticket_id in self._waiters else self._tickets
        where[ticket_id] = attrs.evolve(_found(where, event), **changes)

    def _resize(self, event: WiredMemoryEvent) -> None:
        ticket_id = _id_of(event)
        before = self._waiters.get(ticket_id) or _found(self._tickets, event)
        size = before.size if event.size is None else event.size
        # A reclaimable one that was asked to yield has, if it gave anything.
        asked = before.asked and (before.evictable or size >= before.size)
        self._change(event, size=size, wants_size=None, asked=asked)

    def _use(self, event: WiredMemoryEvent) -> None:
        before = _found(self._tickets, event)
        in_use = event.details.get("in_use", before.in_use)
        self._change(event, used_at=event.timestamp, in_use=in_use)

    def _pin(self, event: WiredMemoryEvent) -> None:
        pinned = event.details["pinned"]
        before = self._waiters.get(_id_of(event)) or _found(self._tickets, event)
        # Nobody is asked for one that comes to stay.
        self._change(event, pinned=pinned, asked=before.asked and not pinned)

    def _leave(self, where: dict[str, TicketSnapshot], event: WiredMemoryEvent) -> TicketSnapshot:
        ticket = _found(where, event)
        del where[ticket.ticket_id]
        return ticket


def _missing(first: int, last: int) -> ValueError:
    which = f"event {first} is" if first == last else f"events {first} to {last} are"
    return ValueError(f"{which} missing: read on from a snapshot that includes them")


def _id_of(event: WiredMemoryEvent) -> str:
    assert event.ticket_id is not None
    return event.ticket_id


def _found(where: dict[str, TicketSnapshot], event: WiredMemoryEvent) -> TicketSnapshot:
    ticket = where.get(_id_of(event))
    if ticket is None:
        raise ValueError(
            f"event {event.sequence}, {event.kind}: ticket {event.ticket_id} is not in the state "
            "before it, so the snapshot is of another manager"
        )
    return ticket


def _record(event: WiredMemoryEvent) -> TicketSnapshot:
    """The ticket that an event tells of, as it enters."""
    assert event.size is not None
    assert event.ticket_kind is not None
    assert event.priority is not None
    assert event.policy is not None
    traits = event.details
    return TicketSnapshot(
        ticket_id=_id_of(event),
        size=event.size,
        kind=event.ticket_kind,
        priority=event.priority,
        policy=event.policy,
        since=traits.get("since", event.timestamp),
        pinned=traits.get("pinned", False),
        reclaimable=traits.get("reclaimable", False),
        requires=traits.get("requires", ()),
        evictable=traits.get("evictable", False),
        shares=traits.get("shares"),
        share_size=traits.get("share_size", 0),
        share_margin=traits.get("share_margin", 0),
    )
