"""Groups: the tickets of one policy, and what that policy says, checked."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Hashable, Sequence

from wiredactors.memory.errors import PolicyError
from wiredactors.memory.policies import BUILT_IN, WiredMemoryPolicy, policy_label
from wiredactors.memory.sizes import Sizes, total_of
from wiredactors.memory.units import checked_size


class GroupKey:
    """A policy's id, hashed once: what a user's own object answers later cannot lose a group."""

    __slots__ = ("_hash", "id")

    def __init__(self, id: Hashable):
        self.id = id
        self._hash = hash(id)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GroupKey) and (self.id is other.id or bool(self.id == other.id))


class Group:
    """The tickets of one policy id, and the answers of its policy, checked.

    What the policy says of itself is read once: bytes that changed meanwhile would leave the
    sums of the book wrong for ever.
    """

    def __init__(self, policy: WiredMemoryPolicy):
        self.key = GroupKey(policy.id)
        self.policy = policy
        self.built_in = type(policy) in BUILT_IN
        self.base_bytes = checked_size(policy.base_bytes, "base_bytes")
        self.cap = policy.cap if isinstance(policy.cap, int) else None
        # What baseline and all sizes may come to; None where the policy must be asked.
        self.bound: float | None = None
        if self.built_in:
            self.bound = math.inf if self.cap is None else self.cap - self.base_bytes
        # Whether its limit is bounded by the ceiling, as by a cap.
        self.capped_by_ceiling = policy.cap_is_ceiling and self.cap is None
        self.sizes = Sizes()
        self.waiting = 0  # the id stays taken while a ticket of it waits
        self._last_limit = 0

    @functools.cached_property
    def label(self) -> str:
        """The policy as events name it."""
        return policy_label(self.policy)

    def emptied(self) -> Group:
        """Another of the same policy that holds nothing; the policy is not read again."""
        other = copy.copy(self)
        other.sizes, other.waiting = Sizes(), 0
        return other

    def admits(self, baseline: int, held: Sequence[int], size: int) -> bool:
        """What the policy says to a ticket of `size` beside `held`. Raises PolicyError."""
        if self.bound is not None:
            return baseline + total_of(held) + size <= self.bound
        try:
            answer = self.policy.can_admit(baseline, self._given(held), size)
            if answer is True or answer is False:
                return answer
            if answer in (0, 1):  # numpy's own booleans equal these
                return bool(answer)
        except Exception as error:
            raise PolicyError(f"{self.label}.can_admit raised {shown(error)}") from error
        raise PolicyError(f"{self.label}.can_admit answered {shown(answer)}, not True or False")

    def limit(self, baseline: int, held: Sequence[int] | None = None) -> int:
        """What the policy asks for, for `held` or all that it holds. Raises PolicyError."""
        try:
            answer = self.policy.limit(baseline, self._given(self.sizes if held is None else held))
            limit = checked_size(answer, "a limit")
        except Exception as error:
            raise PolicyError(f"{self.label}.limit failed: {shown(error)}") from error
        if held is None:
            self._last_limit = limit
        return limit

    def last_limit(self) -> int:
        """The last sound answer of a policy that fails now."""
        return self._last_limit

    def _given(self, sizes: Sequence[int]) -> Sequence[int]:
        # A user's own policy gets a list of its own: what it does with it harms nobody.
        return sizes if self.built_in else list(sizes)


def shown(value: object) -> str:
    """The repr of an object that may be at fault."""
    try:
        return repr(value)
    except Exception:  # a user's own object, at fault already
        return type(value).__name__
