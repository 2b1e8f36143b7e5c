"""The book: who holds which bytes, in which group, and what else would fit.

Pure arithmetic over the live tickets. What the ceiling bounds is baseline + all tickets + each
live policy's base once; what a policy's cap bounds is its own business (`can_admit`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import attrs

from wiredactors.memory.errors import PolicyConflict, PolicyError, TicketTooLarge
from wiredactors.memory.policies import WiredMemoryPolicy, policy_label
from wiredactors.memory.sizes import Sizes
from wiredactors.memory.units import checked_size

#: Larger than any machine: the upper end of the search for what a user's policy admits.
_BOUNDLESS = 1 << 62


@attrs.define(eq=False)
class Holding:
    """One ticket in the ledger, waiting or running."""

    ticket_id: str
    size: int
    kind: str
    group: Group
    priority: int
    pinned: bool
    reclaimable: bool
    requires: tuple[str, ...]
    since: float
    reply: Any = None  # of the start that it was made by

    @property
    def active(self) -> bool:
        return self.kind == "active"


class Group:
    """The tickets of one policy id, and the answers of its policy, checked.

    What the policy says of itself is read once: bytes that changed meanwhile would leave the
    sums of the book wrong for ever.
    """

    def __init__(self, id: Hashable, policy: WiredMemoryPolicy):
        self.id = id
        self.policy = policy
        self.label = policy_label(policy)
        self.base_bytes = checked_size(policy.base_bytes, "base_bytes")
        self.cap = policy.cap if isinstance(policy.cap, int) else None
        self.sizes = Sizes()
        self.waiting = 0  # the id stays taken while a ticket of it waits
        self._last_limit = 0

    def admits(self, baseline: int, held: Sequence[int], size: int) -> bool:
        """What the policy says to a ticket of `size` beside `held`. Raises PolicyError."""
        try:
            answer = self.policy.can_admit(baseline, self._given(held), size)
            if answer is True or answer is False:
                return answer
            if answer in (0, 1):  # numpy's own booleans equal these
                return bool(answer)
        except Exception as error:
            raise PolicyError(f"{self.label}.can_admit raised {_shown(error)}") from error
        raise PolicyError(f"{self.label}.can_admit answered {_shown(answer)}, not True or False")

    def limit(self, baseline: int, held: Sequence[int] | None = None) -> int:
        """What the policy asks for, for `held` or all that it holds. Raises PolicyError."""
        try:
            answer = self.policy.limit(baseline, self._given(self.sizes if held is None else held))
            self._last_limit = checked_size(answer, "a limit")
        except Exception as error:
            raise PolicyError(f"{self.label}.limit failed: {_shown(error)}") from error
        return self._last_limit

    def last_limit(self) -> int:
        """The last sound answer of a policy that fails now."""
        return self._last_limit

    def _given(self, sizes: Sequence[int]) -> Sequence[int]:
        # A user's own policy gets a list of its own: what it does with it harms nobody.
        return sizes if self.policy.reads_totals else list(sizes)


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # a user's own object, at fault already
        return type(value).__name__


class Book:
    """All live tickets, and the sums that admission needs, kept as they change."""

    def __init__(self, ceiling: int | None):
        self.ceiling = ceiling
        self.baseline = 0
        self.holdings: dict[str, Holding] = {}
        self.groups: dict[Hashable, Group] = {}
        self._pinned: dict[str, Holding] = {}
        self.total = 0
        self.active = 0
        self._base_total = 0  # of the policies of groups that hold something

    # -- groups

    def group_for(self, policy: WiredMemoryPolicy) -> Group:
        """The policy's group, a new one where its id is free.

        Raises:
            PolicyConflict: the id is taken by a live policy of other parameters.
            PolicyError: the policy's id or parameters raise or cannot be compared.
        """
        try:
            group = self.groups.get(policy.id)
            if group is None:
                return Group(policy.id, policy)
            if group.policy is policy or group.policy.parameters == policy.parameters:
                return group
        except Exception as error:
            raise PolicyError(f"{policy_label(policy)} is unusable: {_shown(error)}") from error
        raise PolicyConflict(
            f"the id of {_shown(policy)} belongs to {_shown(group.policy)} while its tickets live, "
            "which differs from it: give it another id, or end those tickets first"
        )

    def await_group(self, group: Group, change: int) -> None:
        """Count a waiter in or out of its group, which lives as long as it has any."""
        group.waiting += change
        self._keep_or_drop(group)

    # -- holdings

    def add(self, holding: Holding) -> None:
        group = holding.group
        if not group.sizes:
            self._base_total += group.base_bytes
        self.holdings[holding.ticket_id] = holding
        if holding.pinned:
            self._pinned[holding.ticket_id] = holding
        group.sizes.add(holding.size)
        self.total += holding.size
        self.active += holding.active
        self._keep_or_drop(group)

    def remove(self, holding: Holding) -> None:
        group = holding.group
        del self.holdings[holding.ticket_id]
        self._pinned.pop(holding.ticket_id, None)
        group.sizes.remove(holding.size)
        self.total -= holding.size
        self.active -= holding.active
        if not group.sizes:
            self._base_total -= group.base_bytes
        self._keep_or_drop(group)

    def resize(self, holding: Holding, size: int) -> None:
        holding.group.sizes.remove(holding.size)
        holding.group.sizes.add(size)
        self.total += size - holding.size
        holding.size = size

    def _keep_or_drop(self, group: Group) -> None:
        if group.sizes or group.waiting:
            self.groups[group.id] = group
        else:
            self.groups.pop(group.id, None)

    # -- what fits

    def blocked_by(self, group: Group, size: int, growing: Holding | None = None) -> str | None:
        """What keeps `size` bytes of `group` out now: "ceiling", "group", or None.

        `growing` is the ticket that would have `size` instead of what it has. Raises PolicyError.
        """
        with _without(growing):
            # The group first: room that the ceiling frees is of no use to one that its own
            # policy keeps out, so nobody else should have to leave it free.
            if not group.admits(self.baseline, group.sizes, size):
                return "group"
        return None if size <= self._room(group, growing) else "ceiling"

    def available(self, group: Group, growing: Holding | None = None) -> int:
        """The largest size that would not be blocked now. Raises PolicyError."""
        with _without(growing):
            return self._largest(group, group.sizes, self._room(group, growing))

    def _room(self, group: Group, growing: Holding | None) -> int:
        """What the ceiling leaves to `group`, less than 0 where it is overdrawn."""
        if self.ceiling is None:
            return _BOUNDLESS
        base = 0 if group.sizes or growing is not None else group.base_bytes
        own = 0 if growing is None else growing.size
        return self.ceiling - self.baseline - self.total - self._base_total - base + own

    def check_limit_with(self, group: Group, size: int, growing: Holding | None = None) -> None:
        """See that a user's policy can also say a limit once it holds `size`.

        Raises PolicyError now, where a ticket can still be refused.
        """
        if not group.policy.reads_totals:
            with _without(growing):
                group.limit(self.baseline, [*group.sizes, size])

    def limit_of(self, group: Group) -> int:
        """What the group asks for; the ceiling bounds it where its policy says so.

        Admission bounds it too, but over a baseline that may be learned later. Raises PolicyError.
        """
        return self._within_ceiling(group, group.limit(self.baseline))

    def last_limit_of(self, group: Group) -> int:
        """The same, of a policy that fails now."""
        return self._within_ceiling(group, group.last_limit())

    def _within_ceiling(self, group: Group, limit: int) -> int:
        if self.ceiling is None or group.cap is not None or not group.policy.cap_is_ceiling:
            return limit
        return min(limit, self.ceiling)

    def check_possible(self, holding: Holding, size: int) -> None:
        """See that it could have `size` if only what cannot go away were left.

        That is: pinned tickets, and those that it stands on. Raises TicketTooLarge, PolicyError.
        """
        group = holding.group
        required = {id: self.holdings[id] for id in holding.requires if id in self.holdings}
        stays = (required | self._pinned).values()
        kept = [other for other in stays if other.ticket_id != holding.ticket_id]
        pinned_bytes = sum(other.size for other in kept)
        in_group = Sizes([other.size for other in kept if other.group is group])
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
