"""The book: who holds which bytes, in which group, and what else would fit.

Pure arithmetic over the live tickets. What the ceiling bounds is baseline + all tickets + each
live policy's base once; what a policy's cap bounds is its own business (`can_admit`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

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

    @property
    def active(self) -> bool:
        return self.kind == "active"


class Group:
    """The tickets of one policy id, and the answers of its policy, checked."""

    def __init__(self, id: Hashable, policy: WiredMemoryPolicy):
        self.id = id
        self.policy = policy
        self.label = policy_label(policy)
        self.sizes = Sizes()
        self.waiting = 0  # the id stays taken while a ticket of it waits
        self._last_limit = 0

    def admits(self, baseline: int, held: Sequence[int], size: int) -> bool:
        """What the policy says to a ticket of `size` beside `held`. Raises PolicyError."""
        answer = self._ask("can_admit", self.policy.can_admit, baseline, held, size)
        if answer is not True and answer is not False:
            if answer not in (0, 1):  # numpy's own booleans equal these
                raise PolicyError(f"{self.label}.can_admit answered {answer!r}, not True or False")
            answer = bool(answer)
        return answer

    def limit(self, baseline: int) -> int:
        """What the policy asks for now. Raises PolicyError."""
        self._last_limit = self.limit_of(baseline, self.sizes)
        return self._last_limit

    def last_limit(self) -> int:
        """The last sound answer of a policy that fails now."""
        return self._last_limit

    def limit_of(self, baseline: int, sizes: Sequence[int]) -> int:
        answer = self._ask("limit", self.policy.limit, baseline, sizes)
        try:
            return checked_size(answer, f"what {self.label}.limit answers")
        except (TypeError, ValueError) as error:
            raise PolicyError(str(error)) from error

    def check_joined_by(self, baseline: int, size: int) -> None:
        """See that a user's policy can also say a limit once `size` has joined.

        Raises PolicyError now, where a ticket can still be refused.
        """
        if not self.policy.reads_totals:
            self.limit_of(baseline, [*self.sizes, size])

    def _ask(
        self, name: str, method: Callable[..., object], baseline: int, *args: object
    ) -> object:
        # A user's own policy gets a list of its own: what it does with it harms nobody.
        given = [
            list(a) if isinstance(a, Sizes) and not self.policy.reads_totals else a for a in args
        ]
        try:
            return method(baseline, *given)
        except Exception as error:
            raise PolicyError(f"{self.label}.{name} raised {error!r}") from error


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
            agrees = group.policy is policy or group.policy.parameters == policy.parameters
        except Exception as error:
            raise PolicyError(f"the id of {policy_label(policy)} is unusable: {error!r}") from error
        if not agrees:
            raise PolicyConflict(
                f"policy id {policy.id!r} belongs to {group.policy!r} while its tickets live, and "
                f"{policy!r} differs from it: give it another id, or end those tickets first"
            )
        return group

    def await_group(self, group: Group, change: int) -> None:
        """Count a waiter in or out of its group, which lives as long as it has any."""
        group.waiting += change
        self._keep_or_drop(group)

    # -- holdings

    def add(self, holding: Holding) -> None:
        group = holding.group
        if not group.sizes:
            self._base_total += group.policy.base_bytes
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
            self._base_total -= group.policy.base_bytes
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
        """What keeps `size` more bytes of `group` out now: "ceiling", "group", or None.

        `growing` is the ticket that would have `size` instead of what it has. Raises PolicyError.
        """
        freed = growing.size if growing is not None else 0
        if growing is not None:
            group.sizes.remove(freed)
        try:
            # The group first: room that the ceiling frees is of no use to one that its own
            # policy keeps out, so nobody else should have to leave it free.
            if not group.admits(self.baseline, group.sizes, size):
                return "group"
        finally:
            if growing is not None:
                group.sizes.add(freed)
        if self.ceiling is None:
            return None
        base = group.policy.base_bytes if not group.sizes else 0
        held = self.baseline + self.total + self._base_total - freed
        return "ceiling" if held + base + size > self.ceiling else None

    def available(self, group: Group) -> int:
        """The largest size that would be admitted to `group` now. Raises PolicyError."""
        base = group.policy.base_bytes if not group.sizes else 0
        room = _BOUNDLESS
        if self.ceiling is not None:
            room = self.ceiling - self.baseline - self.total - self._base_total - base
        return self._largest(group, group.sizes, room)

    def check_possible(
        self, group: Group, size: int, requires: Iterable[str], own: str | None = None
    ) -> None:
        """See that `size` could be admitted if only what cannot go away were left.

        That is: pinned tickets, and those that it stands on. Raises TicketTooLarge, PolicyError.
        """
        stays = {id: self.holdings[id] for id in requires if id in self.holdings} | self._pinned
        kept = [holding for id, holding in stays.items() if id != own]
        pinned_bytes = sum(h.size for h in kept)
        in_group = Sizes([h.size for h in kept if h.group is group])
        bases = sum(g.policy.base_bytes for g in {h.group for h in kept} | {group})
        room = _BOUNDLESS
        if self.ceiling is not None:
            room = self.ceiling - self.baseline - pinned_bytes - bases
        if size <= room and group.admits(self.baseline, in_group, size):
            return
        caps = [cap for cap in (group.policy.cap, self.ceiling) if isinstance(cap, int)]
        raise TicketTooLarge(
            need=size,
            cap=min(caps, default=None),
            pinned_bytes=pinned_bytes,
            largest_possible=self._largest(group, in_group, room),
        )

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
