"""The book: who holds which bytes, in which group, and what else would fit.

Pure arithmetic over the live tickets. What the ceiling bounds is baseline + all tickets + each
live policy's base once; it is lowered meanwhile by the `excess` of outside pressure. What a
policy's cap bounds is its own business (`can_admit`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from wiredactors.memory.errors import PolicyConflict, PolicyError, TicketTooLarge
from wiredactors.memory.group import Group, GroupKey, shown
from wiredactors.memory.holding import Holding
from wiredactors.memory.policies import WiredMemoryPolicy, policy_label
from wiredactors.memory.reservations import Reservations
from wiredactors.memory.shares import Shares
from wiredactors.memory.sizes import Sizes

#: Larger than any machine: the upper end of the search for what a user's policy admits.
_BOUNDLESS = 1 << 62


class Book:
    """All live tickets, and the sums that admission needs, kept as they change."""

    def __init__(self, ceiling: int | None):
        self.ceiling = ceiling
        self.baseline = 0
        self.holdings: dict[str, Holding] = {}
        self.groups: dict[GroupKey, Group] = {}
        self._pinned: dict[str, Holding] = {}
        self._last: Group | None = None  # that was asked for, likely to be again
        self.reservations = Reservations()
        self.shares = Shares()
        self._work_on: Counter[str] = Counter()  # active tickets that stand on a ticket, by its id
        self.excess = 0  # what admission is tightened by meanwhile
        self.total = 0
        self.active = 0
        self.base_total = 0  # of the policies of groups that hold something

    # -- groups

    def group_for(self, policy: WiredMemoryPolicy) -> Group:
        """The policy's group, a new one where its id is free.

        Raises:
            PolicyConflict: the id is taken by a live policy of other parameters.
            PolicyError: the policy's id or parameters raise or cannot be compared.
        """
        last = self._last
        if last is not None and last.policy is policy and self.groups.get(last.key, last) is last:
            return last  # live, or to be had again: built-in policies do not change
        try:
            key = GroupKey(policy.id)
            group = self.groups.get(key)
            if group is None:
                group = Group(policy)
            # One that is its own id was compared just now.
            same = group.policy is policy or key.id is policy
            if same or group.policy.parameters == policy.parameters:
                self._last = group if group.built_in else None
                return group
        except Exception as error:
            raise PolicyError(f"{policy_label(policy)} is unusable: {shown(error)}") from error
        raise PolicyConflict(
            f"the id of {shown(policy)} belongs to {shown(group.policy)} while its tickets live, "
            "which differs from it: give it another id, or end those tickets first"
        )

    def await_ticket(self, holding: Holding) -> None:
        """A ticket begins to wait."""
        self.await_group(holding.group, +1)
        if holding.share is not None:
            self.shares.wait(holding)

    def await_no_more(self, holding: Holding) -> None:
        """It has come in, or has left."""
        self.await_group(holding.group, -1)
        if holding.share is not None:
            self.shares.leave(holding)

    def await_group(self, group: Group, change: int) -> None:
        """Count a waiter in or out of its group, which lives as long as it has any."""
        group.waiting += change
        self._keep_or_drop(group)

    # -- holdings

    def add(self, holding: Holding) -> None:
        group, size = holding.group, holding.size
        if not group.sizes.length:
            self.base_total += group.base_bytes
            self.groups[group.key] = group
        group.sizes.add(size)
        self.holdings[holding.ticket_id] = holding
        self.total += size
        if holding.active:
            self.active += 1
            for ticket_id in holding.requires:
                self._work_on[ticket_id] += 1
        else:
            self.reservations.add(holding)
        if holding.share is not None:
            self.shares.add(holding)
        if holding.pinned:
            self._pinned[holding.ticket_id] = holding

    def remove(self, holding: Holding) -> None:
        group, size = holding.group, holding.size
        del self.holdings[holding.ticket_id]
        group.sizes.remove(size)
        self.total -= size
        if not group.sizes.length:
            self.base_total -= group.base_bytes
            self._keep_or_drop(group)
        if holding.active:
            self.active -= 1
            for ticket_id in holding.requires:
                self._work_on[ticket_id] -= 1
                if not self._work_on[ticket_id]:
                    del self._work_on[ticket_id]
        else:
            self.reservations.remove(holding)
            self.shares.settled(holding.ticket_id)
        if holding.share is not None:
            self.shares.remove(holding)
        if holding.pinned:
            del self._pinned[holding.ticket_id]

    def resize(self, holding: Holding, size: int) -> None:
        sizes = holding.group.sizes
        sizes.remove(holding.size)
        sizes.add(size)
        self.total += size - holding.size
        if not holding.active:
            self.reservations.resized(holding, size - holding.size)
            self.shares.settled(holding.ticket_id)
        holding.size = size

    def works_on(self, ticket_id: str) -> bool:
        """Whether any active ticket stands on it."""
        return ticket_id in self._work_on

    def frees_in(self, holding: Holding, group: Group) -> bool:
        """Whether any of what is free once it has gone is in `group`."""
        if holding.group is group:
            return True
        share = holding.share
        shared = None if share is None else self.holdings.get(share.ticket_id)
        return shared is not None and shared.group is group

    def pin(self, holding: Holding, pinned: bool) -> None:
        """A live ticket comes to stay, and is not asked for any more; or may go away again."""
        holding.pinned = pinned
        if pinned:
            self._pinned[holding.ticket_id] = holding
            self.reservations.release(holding)
        else:
            del self._pinned[holding.ticket_id]

    def under_pinned(self) -> Iterator[str]:
        """The ids of what pinned tickets stand on, which stays as they do."""
        return (ticket_id for pinned in self._pinned.values() for ticket_id in pinned.requires)

    def _keep_or_drop(self, group: Group) -> None:
        if group.sizes.length or group.waiting:
            self.groups[group.key] = group
        else:
            self.groups.pop(group.key, None)

    # -- what fits

    def blocked_by(self, group: Group, size: int, growing: Holding | None = None) -> str | None:
        """What keeps `size` bytes of `group` out now: "ceiling", "group", or None.

        `growing` is the ticket that would have `size` instead of what it has. Raises PolicyError.
        """
        more = size if growing is None else size - growing.size
        # The group first: room that the ceiling frees is of no use to one that its own policy
        # keeps out, so nobody else should have to leave it free.
        if group.bound is not None:
            if more > self.group_room(group):
                return "group"
        else:
            with _without(growing):
                if not group.admits(self.baseline, group.sizes, size):
                    return "group"
        return None if more <= self.ceiling_room(group) else "ceiling"

    def fits(self, group: Group, size: int) -> bool:
        """Whether a new ticket fits now, and its limit can be said. Raises PolicyError."""
        if group.bound is None:
            if self.blocked_by(group, size) is not None:
                return False
            self.check_limit_with(group, size)
            return True
        # As `blocked_by`, in one step: every ticket comes by here.
        held = group.sizes
        if size > group.bound - self.baseline - held.total:
            return False
        if self.ceiling is None:
            return True
        base = 0 if held.length else group.base_bytes
        room = self.ceiling - self.excess - self.baseline - self.total - self.base_total
        return size <= room - base

    def available(self, group: Group, growing: Holding | None = None) -> int:
        """The largest size that would not be blocked now. Raises PolicyError."""
        room = self.ceiling_room(group) + (0 if growing is None else growing.size)
        with _without(growing):
            return self._largest(group, group.sizes, room)

    def group_room(self, group: Group) -> float:
        """What a policy whose `bound` is known leaves; less than 0 where it is overdrawn."""
        assert group.bound is not None
        return group.bound - self.baseline - group.sizes.total

    def ceiling_room(self, group: Group) -> int:
        """What the ceiling leaves to `group`, less than 0 where it is overdrawn."""
        if self.ceiling is None:
            return _BOUNDLESS
        room = self.ceiling - self.excess - self.baseline - self.total - self.base_total
        return room if group.sizes.length else room - group.base_bytes

    def check_limit_with(self, group: Group, size: int, growing: Holding | None = None) -> None:
        """See that a user's policy can also say a limit once it holds `size`.

        Raises PolicyError now, where a ticket can still be refused.
        """
        if not group.built_in:
            with _without(growing):
                group.limit(self.baseline, [*group.sizes, size])

    def limit_of(self, group: Group) -> int:
        """What the group asks for; the ceiling bounds it where its policy says so.

        Admission bounds it too, but over a baseline that may be learned later. Raises PolicyError.
        """
        if not group.built_in:
            limit = group.limit(self.baseline)
        else:  # a built-in policy is in order
            limit = group.policy.limit(self.baseline, group.sizes)
        return self._within_ceiling(group, limit)

    def last_limit_of(self, group: Group) -> int:
        """The same, of a policy that fails now."""
        return self._within_ceiling(group, group.last_limit())

    def _within_ceiling(self, group: Group, limit: int) -> int:
        if self.ceiling is None or not group.capped_by_ceiling:
            return limit
        return min(limit, self.ceiling)

    def check_possible(self, holding: Holding, size: int) -> None:
        """See that it could have `size` if only what cannot go away were left.

        That is: pinned tickets, those that these and it stand on, and of a reservation that is
        shared what those that stay and it want of that. Raises TicketTooLarge, PolicyError.
        """
        group = holding.group
        under = {*holding.requires, *self.under_pinned()}
        stays = {id: self.holdings[id] for id in under if id in self.holdings} | self._pinned
        kept = {
            other: self.shares.floor(other, stays, holding)
            for other in stays.values()
            if other is not holding
        }
        pinned_bytes = sum(kept.values())
        in_group = Sizes([size for other, size in kept.items() if other.group is group])
        room = _BOUNDLESS
        if self.ceiling is not None:
            bases = sum(g.base_bytes for g in {other.group for other in kept} | {group})
            room = self.ceiling - self.baseline - pinned_bytes - bases
        if size <= room and group.admits(self.baseline, in_group, size):
            return
        raise TicketTooLarge(
            need=size,
            cap=self._cap_of(group),
            pinned_bytes=pinned_bytes,
            largest_possible=self._largest(group, in_group, room),
        )

    def too_large_now(self, holding: Holding, size: int) -> TicketTooLarge:
        """That a live ticket cannot have `size` beside all others. Raises PolicyError."""
        return TicketTooLarge(
            need=size,
            cap=self._cap_of(holding.group),
            pinned_bytes=self.total - holding.size,
            largest_possible=self.available(holding.group, holding),
        )

    def _cap_of(self, group: Group) -> int | None:
        caps = [cap for cap in (group.cap, self.ceiling) if cap is not None]
        return min(caps, default=None)

    def _largest(self, group: Group, held: Sizes, room: int) -> int:
        """The largest size within `room` that the policy admits beside `held`, by bisection.

        One search serves the built-in policies and a user's own. 0 where there is none.
        """
        if room <= 0 or not group.admits(self.baseline, held, 0):
            return 0
        low, high = 0, room
        while low < high:
            middle = (low + high + 1) // 2
            if group.admits(self.baseline, held, middle):
                low = middle
            else:
                high = middle - 1
        return low


class _without:
    """Take a ticket's own size out of its group meanwhile; None takes nothing."""

    __slots__ = ("_holding",)

    def __init__(self, holding: Holding | None):
        self._holding = holding

    def __enter__(self) -> None:
        if self._holding is not None:
            self._holding.group.sizes.remove(self._holding.size)

    def __exit__(self, *_: object) -> None:
        if self._holding is not None:
            self._holding.group.sizes.add(self._holding.size)
