"""Policies: what limit a set of tickets asks for, and whether one more may come in.

The four of the Swift system, and a base for a user's own. All sizes are bytes. `active_sizes` is
its word: all tickets of the group, reservations too.
"""

from __future__ import annotations

import abc
import functools
import itertools
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs

from wiredactors.memory.sizes import largest_of, total_of
from wiredactors.memory.tickets import WiredMemoryTicket
from wiredactors.memory.units import checked_size

if TYPE_CHECKING:
    from wiredactors.memory.tickets import TicketManager

_fresh_ids = itertools.count(1)


class WiredMemoryPolicy(abc.ABC):
    """The base of every policy. A user's own needs `limit`, and may have `can_admit` and `id`.

    Tickets whose policies have the same `id` are one group, and a group's limit is computed
    from the sizes of all its tickets. Both methods are called by the manager on the trio thread
    whenever something changes, so they must be quick, and must answer alike for the same
    arguments. One that raises or answers nonsense fails the ticket that asked (`PolicyError`)
    and nobody else.
    """

    #: Bytes that the policy counts besides its tickets; the ceiling counts them once.
    base_bytes: int = 0
    #: The largest limit that the policy allows; None is no bound of its own.
    cap: int | None = None
    #: Whether `cap=None` means the ceiling inside a manager.
    cap_is_ceiling: bool = False

    @property
    def id(self) -> Hashable:
        """What makes two policies one group; by default the policy itself."""
        return self

    @property
    def parameters(self) -> object:
        """What two policies of one `id` must agree in, or the second is a `PolicyConflict`."""
        names = [name for cls in type(self).__mro__ for name in getattr(cls, "__slots__", ())]
        slots = {name: getattr(self, name) for name in names if hasattr(self, name)}
        slots.pop("__weakref__", None)
        fields = slots | getattr(self, "__dict__", {})
        return type(self), {k: v for k, v in fields.items() if not _is_computed(type(self), k)}

    @abc.abstractmethod
    def limit(self, baseline: int, active_sizes: Sequence[int]) -> int:
        """The limit in bytes that this group asks for, given all its tickets' sizes."""

    def can_admit(self, baseline: int, active_sizes: Sequence[int], new_size: int) -> bool:
        """Whether a ticket of `new_size` bytes may join; by default always."""
        return True

    def ticket(
        self,
        size: int,
        kind: str = "active",
        manager: TicketManager | None = None,
        priority: int = 0,
        pinned: bool = False,
        reclaimable: bool = False,
        requires: Iterable[WiredMemoryTicket] = (),
    ) -> WiredMemoryTicket:
        """A ticket for `size` bytes under this policy; nothing is held until it starts.

        Args:
            size: bytes.
            kind: "active" for work that runs now, "reservation" for a long-lived budget that
                counts but does not keep the limit raised by itself.
            manager: who admits it; None is the one that is open when the ticket starts.
            priority: larger goes first among those that wait.
            pinned: a reservation that will not go away, so what cannot fit beside it never fits.
            reclaimable: a reservation whose owner gives it up when asked to (a kept prefix
                cache; see `WiredMemoryTicket.wait_for_reclaim`).
            requires: tickets that this one stands on (a job's weights), which therefore cannot
                go away to make room for it.

        Raises:
            TypeError: `size` is not an integer.
            ValueError: `size` is negative, `kind` is neither of the two, or `reclaimable` is
                said of a ticket that is active or pinned.
        """
        return WiredMemoryTicket(
            size=size,
            kind=kind,
            policy=self,
            manager=manager,
            priority=priority,
            pinned=pinned,
            reclaimable=reclaimable,
            requires=requires,
        )


def _is_computed(cls: type, name: str) -> bool:
    """Whether an attribute follows from the others, and is there only once it was asked for."""
    return name.startswith("_attrs") or isinstance(
        getattr(cls, name, None), functools.cached_property
    )


def _optional_size(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        checked_size(value, attribute.name)


def _required_size(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    checked_size(value, attribute.name)


def _not_negative(value: int) -> int:
    return checked_size(0 if isinstance(value, int) and value < 0 else value, "base_bytes")


def _id_or_fresh(value: Hashable | None) -> Hashable:
    return f"budget-{next(_fresh_ids)}" if value is None else value


@attrs.frozen(cache_hash=True)
class WiredSumPolicy(WiredMemoryPolicy):
    """`min(baseline + sum(sizes), cap)`: the usual choice for concurrent inference.

    `cap=None` has no bound when called directly, and the ceiling inside a manager. Two with one
    cap are equal and one group.
    """

    cap: int | None = attrs.field(default=None, validator=_optional_size)
    cap_is_ceiling = True

    def limit(self, baseline: int, active_sizes: Sequence[int]) -> int:
        return _capped(baseline + total_of(active_sizes), self.cap)

    def can_admit(self, baseline: int, active_sizes: Sequence[int], new_size: int) -> bool:
        return self.cap is None or baseline + total_of(active_sizes) + new_size <= self.cap


@attrs.frozen(cache_hash=True)
class WiredMaxPolicy(WiredMemoryPolicy):
    """`max(baseline, largest size)`: for work that takes turns. It admits everything."""

    def limit(self, baseline: int, active_sizes: Sequence[int]) -> int:
        return max(baseline, largest_of(active_sizes))


@attrs.frozen(cache_hash=True)
class WiredFixedPolicy(WiredMemoryPolicy):
    """A constant limit while anything is active. It admits everything.

    The constant is given as `limit=` and read as `limit_bytes`, since `limit` is the method.
    """

    limit_bytes: int = attrs.field(alias="limit", validator=_required_size)

    def limit(self, baseline: int, active_sizes: Sequence[int]) -> int:
        return self.limit_bytes


@attrs.frozen(cache_hash=True)
class WiredBudgetPolicy(WiredMemoryPolicy):
    """`min(baseline + base + sum(sizes), cap)`: a measured base budget, and tickets on top.

    `base_bytes` is for what no ticket carries (weights and workspace, where you hold no
    reservations for them), counted once for the group; a negative one counts as 0, as in Swift.
    Two with one `id` are equal, whatever their bytes; left out, every instance is its own group.
    """

    base_bytes: int = attrs.field(converter=_not_negative, eq=False)
    cap: int | None = attrs.field(default=None, validator=_optional_size, eq=False)
    # An attribute where the base has a property.
    id: Hashable = attrs.field(default=None, converter=_id_or_fresh)
    cap_is_ceiling = True

    @property
    def parameters(self) -> object:
        return type(self), self.base_bytes, self.cap

    def limit(self, baseline: int, active_sizes: Sequence[int]) -> int:
        return _capped(baseline + self.base_bytes + total_of(active_sizes), self.cap)

    def can_admit(self, baseline: int, active_sizes: Sequence[int], new_size: int) -> bool:
        if self.cap is None:
            return True
        return baseline + self.base_bytes + total_of(active_sizes) + new_size <= self.cap


def _capped(limit: int, cap: int | None) -> int:
    return limit if cap is None else min(limit, cap)


def policy_label(policy: WiredMemoryPolicy) -> str:
    """The policy as events name it: its own repr, or its type where that raises."""
    try:
        own = policy.id
        return repr(policy) if own is policy else f"{type(policy).__name__}#id={own}"
    except Exception:  # a broken repr of a user's must not take the ledger with it
        return type(policy).__name__


#: Exactly these admit while baseline, `base_bytes` and all sizes stay within `cap`, and ask for a
#: limit by sums that the ledger keeps. So it need not ask them about each ticket, nor copy the
#: sizes for them. A class made from one of them may say anything, and is asked.
BUILT_IN: Final = frozenset({WiredSumPolicy, WiredMaxPolicy, WiredFixedPolicy, WiredBudgetPolicy})
