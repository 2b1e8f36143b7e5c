"""Shares: what a ticket wants of a reservation that it has in common with others."""

from __future__ import annotations

from typing import Any, Protocol

import attrs

from wiredactors.memory.units import checked_size


class SharedTicket(Protocol):
    """The ticket of a shared reservation, a `WiredMemoryTicket`."""

    id: str


def _size(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    checked_size(value, f"a share's {attribute.name}")


@attrs.frozen
class Share:
    """A part in one shared reservation, as a model's in the workspace. Sizes are bytes.

    The shared reservation holds the largest `size` of those who share it, and the sum of their
    margins. Its owner resizes it as they come and go: the ledger counts on its shrinking when it
    asks one of them to yield.

    Attributes:
        ticket: the shared reservation.
        size: what is wanted of the bytes that are held once; only the largest counts.
        margin: what is wanted besides, which adds up.

    Raises:
        TypeError, ValueError: `size` or `margin` is no size.
    """

    ticket: SharedTicket
    size: int = attrs.field(validator=_size)
    margin: int = attrs.field(default=0, validator=_size)

    @property
    def ticket_id(self) -> str:
        """The id of the shared reservation."""
        return self.ticket.id
