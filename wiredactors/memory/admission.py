"""Admission: who may come in or grow now, and who never will.

- Live tickets that want to grow go before new ones, which leave free what those compete for.
  Growers pass each other: nobody new takes their place, so each has its turn as others end.
- A waiting ticket that does not fit yet may be passed, until it was passed `overtake_count` times
  or waited `overtake_seconds`; from then on nobody takes what it competes for: its own group, or
  the ceiling where that is what blocks it. Unless it needs models to go that are in use, and have
  not been asked yet: the work of these takes nothing from it meanwhile. Or unless its own model has
  been asked to yield, and it goes with that.
- A model that went for others does not come back before them: it has no more than their priority,
  and does not pass them.
- If every active ticket and every model that is being loaded waits to grow, none would ever end or
  serve: the last to ask is refused, unless reservations can make room for one of them.
- One that has become impossible (beside a new pinned ticket, over a baseline that was learned
  late) is refused and does not wait for nothing.

Within a lane the first was passed most often and has waited longest. So only the first of each can
be the one whose room is kept, and a change costs O(lanes + log waiters), not a look at each waiter.
A user's own policy must be asked about each of its waiters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from wiredactors.memory.book import Book
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.errors import PolicyError, WiredMemoryError
from wiredactors.memory.group import Group
from wiredactors.memory.holding import Holding
from wiredactors.memory.lane import Key, Lane, Waiter
from wiredactors.memory.queue import WaitQueue
from wiredactors.memory.yielding import Plans

#: A waiter, and why it is refused; None lets it in.
Decision = tuple[Waiter, WiredMemoryError | None]

#: What waiters compete for: their group, or the ceiling.
_Competed = Group | str

_CEILING = "ceiling"
_NEVER: Key = (math.inf, math.inf)
_ALWAYS: Key = (-math.inf, -math.inf)


class Admission:
    """Those that wait to start (`queue`) and to grow (`growers`), and the order among them."""

    def __init__(self, book: Book, configuration: WiredMemoryConfiguration):
        self.queue = WaitQueue(configuration.aging_seconds)
        self.growers = WaitQueue(by_priority=False)
        self._book = book
        self._configuration = configuration
        self._in_doubt = False

    def configure(self, configuration: WiredMemoryConfiguration) -> None:
        self._configuration = configuration
        self.queue.aging_seconds = configuration.aging_seconds
        self._in_doubt = True

    @property
    def idle(self) -> bool:
        """Nobody waits."""
        return not (self.queue.by_id or self.growers.by_id)

    @property
    def overtake_count(self) -> int:
        """How often one that waits may be passed."""
        return self._configuration.overtake_count

    @property
    def overtake_seconds(self) -> float:
        """How long one may wait before its room is kept."""
        return self._configuration.overtake_seconds

    def stand_behind(self, holding: Holding) -> None:
        """Put a model that comes back behind all that it went for and that wait yet.

        Else it could come in before them, and would have gone for nothing.
        """
        for waiter in self._gone_for(holding):
            holding.priority = min(holding.priority, waiter.holding.priority)
            holding.since = max(holding.since, waiter.since)

    def _gone_for(self, holding: Holding) -> Iterator[Waiter]:
        """Those that a model was asked to yield for, and which wait still."""
        waiting = itertools.chain(self.growers.by_id.values(), self.queue.by_id.values())
        return (other for other in waiting if holding.ticket_id in other.made_go)

    def _comes_after(self, waiter: Waiter) -> Waiter | None:
        """One that it does not pass, whatever fits: it went for that, in vain else."""
        if waiter.grows or not waiter.holding.evictable:
            return None
        others = self._gone_for(waiter.holding)
        return next((w for w in others if w.grows or w.key < waiter.key), None)

    def goes_with_its_model(self, waiter: Waiter) -> bool:
        """The model that it would start on has been asked to yield: its turn comes with that again.

        What runs on one and wants to grow ends before that goes, and must have its room.
        """
        asked = self._book.reservations.asked
        if waiter.grows or not asked:
            return False
        return any(id in asked and asked[id].evictable for id in waiter.holding.requires)

    def remove(self, waiter: Waiter) -> None:
        (self.growers if waiter.grows else self.queue).remove(waiter)

    def doubt(self) -> None:
        """Something has come to stay: look whether those that wait are possible still."""
        self._in_doubt = True

    def doubt_beside(self, holding: Holding) -> None:
        """The same of one ticket, if it does: by being pinned, or by what stands on it."""
        ticket_id = holding.ticket_id
        required = ticket_id in self.queue.required or ticket_id in self.growers.required
        stays = holding.pinned or ticket_id in self._book.under_pinned()
        self._in_doubt = self._in_doubt or stays or required

    def decisions(self, now: float) -> Iterator[Decision]:
        """Whom to let in and whom to refuse, one by one.

        Each must be carried out before the next is asked for, which builds upon it.
        """
        while True:
            if self._in_doubt:
                self._in_doubt = False
                yield from self._impossible()
            while (decision := self._next(now)) is not None:
                yield decision
                if self._in_doubt:
                    break
            else:
                return

    def _next(self, now: float) -> Decision | None:
        if self.growers.by_id:
            decision = self._next_to_grow() or self._stuck_grower()
            if decision is not None:
                return decision
        return self._next_to_start(now)

    def kept_for(self, waiter: Waiter, now: float) -> Waiter | None:
        """Who keeps it out though it may fit, by having its own room kept free."""
        barriers = self._barriers(now)
        group = waiter.holding.group
        if waiter.grows:
            return None
        if waiter.key > barriers.of(group):
            return barriers.kept_for(group)
        return self._comes_after(waiter)

    def next_in_line(self, now: float) -> list[Waiter]:
        """Who could be the next to grow, or in its lane to come in, in the order of the ledger."""
        barriers = self._barriers(now)
        heads = sorted(map(self._first_with_hope, self.queue.lanes), key=lambda head: head.key)
        return [*self.growers] + [h for h in heads if h.key <= barriers.of(h.holding.group)]

    def _first_with_hope(self, lane: Lane) -> Waiter:
        """The first of a lane, but for models that would not fit now whatever went.

        Such a one waits for those behind it: what they want of the workspace keeps that up.
        """
        if self._book.reservations.evictable:
            plans = Plans(self._book)
            for waiter in lane:
                if not (waiter.holding.evictable and plans.is_hopeless(waiter)):
                    return waiter
        return lane.head

    def keeps_room(self, waiter: Waiter, now: float) -> bool:
        """Whether what it competes for is kept free for it, the first in its lane or a grower."""
        return waiter.grows or (waiter.lane is not None and self._passed_enough(waiter.lane, now))

    # -- those that wait to grow

    def _next_to_grow(self) -> Decision | None:
        found = [first for lane in self.growers.lanes if (first := self._first_of(lane))]
        return min(found, key=_key_of, default=None)

    def _stuck_grower(self) -> Decision | None:
        if len(self.growers) < self._book.active:
            return None
        growing = [
            grower for grower in self.growers if grower.holding.active or grower.holding.loading
        ]
        if not growing or len(growing) < self._book.active + self._loading():
            return None
        if any(self._may_yet_grow(grower) for grower in growing):
            return None
        last = growing[-1]
        try:
            return last, self._book.too_large_now(last.holding, last.wants)
        except PolicyError as error:
            return last, error

    def _loading(self) -> int:
        """How many models are being loaded."""
        return sum(model.loading for model in self._book.reservations.evictable.values())

    def _may_yet_grow(self, grower: Waiter) -> bool:
        """Whether others can make room for it, though all work and all loads wait to grow."""
        plans = Plans(self._book)
        if plans.for_waiter(grower) is not None:
            return True
        # Models in use go when their work has ended, if that does not wait to grow itself; and
        # where there is no such work, what others of the machine use may be free again.
        if self._book.active:
            return False
        return plans.after_work(grower, lambda model: not model.loading) is not None

    # -- those that wait to start

    def _next_to_start(self, now: float) -> Decision | None:
        found = [first for lane in self.queue.lanes if (first := self._first_of(lane))]
        if not found:
            return None
        barriers = self._barriers(now)
        for decision in sorted(found, key=_key_of):
            waiter, error = decision
            if waiter.key < barriers.of(waiter.holding.group):
                if error is None:
                    self._note_passes(waiter, barriers)
                return decision
        return None

    def _first_of(self, lane: Lane) -> Decision | None:
        """The first of a lane that fits, or whose policy is at fault."""
        group = lane.group
        if group.bound is None:
            return self._first_by_asking(lane)
        room = min(self._book.group_room(group), self._book.ceiling_room(group))
        waiter = lane.first_within(room)
        if waiter is not None and self._comes_after(waiter):
            fitting = (other for other in lane if other.more <= room)
            waiter = next((other for other in fitting if not self._comes_after(other)), None)
        return None if waiter is None else (waiter, None)

    def _first_by_asking(self, lane: Lane) -> Decision | None:
        for waiter in lane:
            growing = waiter.holding if waiter.grows else None
            try:
                blocked = self._book.blocked_by(lane.group, waiter.wants, growing)
                if blocked is None and not self._comes_after(waiter):
                    self._book.check_limit_with(lane.group, waiter.wants, growing)
                    return waiter, None
            except PolicyError as error:
                return waiter, error
        return None

    def _note_passes(self, newcomer: Waiter, barriers: _Barriers) -> None:
        """Whom the newcomer passes and competes with.

        All of its group that stand before it; and those of other groups in lanes whose first
        could keep the room under the ceiling, but for those that another one bars already: they
        could not take it.
        """
        group = newcomer.holding.group
        for lane in self.queue.lanes:
            head = lane.head
            if head.key < newcomer.key and (
                lane.group is group
                or (head.key <= barriers.of(lane.group) and self._competes_for(head) is _CEILING)
            ):
                lane.note_pass(newcomer.key)

    def _barriers(self, now: float) -> _Barriers:
        barriers = _Barriers()
        for lane in self.growers.lanes:
            for kept in self._competes_for_growing(lane):
                barriers.keep(kept, _ALWAYS, lane.head)
        heads = [lane.head for lane in self.queue.lanes if self._passed_enough(lane, now)]
        for head in sorted(heads, key=lambda head: head.key):
            if head.key < barriers.of(head.holding.group) and self.has_use_for_room(head):
                what = self._competes_for(head)
                if what is not None:
                    barriers.keep(what, head.key, head)
        return barriers

    def has_use_for_room(self, waiter: Waiter) -> bool:
        """Whether room that is kept for it would bring it in: not before a model in use has gone
        that must go for it and is not asked yet, nor where its own model goes.
        """
        return not (self.goes_with_its_model(waiter) or self._needs_busy_models(waiter))

    def _needs_busy_models(self, waiter: Waiter) -> bool:
        return Plans(self._book).needs_busy_models(waiter)

    def _passed_enough(self, lane: Lane, now: float) -> bool:
        return (
            lane.head_passed >= self.overtake_count
            or now - lane.head.since >= self.overtake_seconds
        )

    def _competes_for_growing(self, lane: Lane) -> Iterator[_Competed]:
        group = lane.group
        if group.bound is None:
            for grower in lane:
                yield self._competes_for(grower) or group
        else:  # the one that asks for least decides whether the ceiling keeps anyone out
            yield _CEILING if lane.least <= self._book.group_room(group) else group

    def _competes_for(self, waiter: Waiter) -> _Competed | None:
        """What keeps it out; None where it fits."""
        group = waiter.holding.group
        growing = waiter.holding if waiter.grows else None
        try:
            blocked_by = self._book.blocked_by(group, waiter.wants, growing)
        except PolicyError:  # it is refused when its turn comes
            return None
        if blocked_by is None:
            return None
        return _CEILING if blocked_by == _CEILING else group

    # -- those that never will

    def _impossible(self) -> Iterator[Decision]:
        for waiter in [*self.growers, *self.queue]:
            try:
                self._book.check_possible(waiter.holding, waiter.wants)
            except WiredMemoryError as error:
                yield waiter, error


class _Barriers:
    """From where on in the order room is kept, in one group or for all, and for whom."""

    def __init__(self) -> None:
        self._for_all: tuple[Key, Waiter | None] = (_NEVER, None)
        self._in_group: dict[Group, tuple[Key, Waiter | None]] = {}

    def keep(self, what: _Competed, key: Key, waiter: Waiter) -> None:
        """Later ones than `key` find it kept for `waiter`; one that was kept before stays."""
        if not isinstance(what, Group):
            if key < self._for_all[0]:
                self._for_all = (key, waiter)
        elif key < self.of(what):
            self._in_group[what] = (key, waiter)

    def of(self, group: Group) -> Key:
        return self._of(group)[0]

    def kept_for(self, group: Group) -> Waiter | None:
        return self._of(group)[1]

    def _of(self, group: Group) -> tuple[Key, Waiter | None]:
        in_group = self._in_group.get(group)
        return self._for_all if in_group is None else min(self._for_all, in_group, key=_first)


def _key_of(decision: Decision) -> Key:
    return decision[0].key


def _first(barrier: tuple[Key, Waiter | None]) -> Key:
    return barrier[0]
