"""Which rows of a model share a batch, so that all of it stays inside what they were charged.

A batch is a rectangle: every row holds as much as the longest. Each row was charged for the longest
that it can become by itself, and is shorter for most of its life. So rows of any lengths may share
a batch while the rectangle costs no more than all of them were charged together; when it would
grow beyond that, the batch is split, and the short rows stop padding themselves to the long ones.

Every step costs about the same however many rows it has, so batches are as few as the bytes allow.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

import attrs

from wiredactors.memory.cache_cost import STEP_TOKENS, CacheCost, bucket_tokens

Key = TypeVar("Key", bound=Hashable)


@attrs.frozen
class Member(Generic[Key]):
    """A row of a batch.

    Attributes:
        key: whose it is.
        tokens: how long it is now.
        most_tokens: the longest that it can become; it is charged for that.
    """

    key: Key
    tokens: int
    most_tokens: int


class Grouping:
    """The rules for one model, whose rows cost `cost`; at most `most_rows` share a batch."""

    def __init__(self, cost: CacheCost, most_rows: int):
        self._cost = cost
        self._most_rows = most_rows

    def charged_bytes(self, members: Iterable[Member[Key]]) -> int:
        """What the rows were charged for their caches."""
        return sum(self._cost.row_bytes(member.most_tokens) for member in members)

    def padded_bytes(self, members: Sequence[Member[Key]], ahead: int = 1) -> int:
        """What a batch of them takes when each has `ahead` more tokens, or is at its longest."""
        longest = max((_longest(member, ahead) for member in members), default=0)
        return len(members) * self._cost.row_bytes(longest)

    def fits(self, members: Sequence[Member[Key]], ahead: int = 1) -> bool:
        """Whether they may share a batch until each has `ahead` more tokens."""
        return len(members) <= self._most_rows and (
            self.padded_bytes(members, ahead) <= self.charged_bytes(members)
        )

    def joins(self, one: Sequence[Member[Key]], other: Sequence[Member[Key]]) -> bool:
        """Whether two batches should become one.

        There must be room for one more step of the cache, too, or they would soon be split again.
        """
        together = [*one, *other]
        return self.fits(together, 1 + STEP_TOKENS)

    def split(self, members: Sequence[Member[Key]]) -> list[list[Member[Key]]]:
        """The batches that they make: few, and never more than one for each charged length.

        The longest row comes first, with those that were charged most: they have most to spare for
        it. What does not fit beside them makes the next batch.
        """
        rest = sorted(members, key=lambda member: -bucket_tokens(member.most_tokens))
        groups: list[list[Member[Key]]] = []
        while rest:
            longest = max(rest, key=lambda member: _longest(member, 1))
            each = self._cost.row_bytes(_longest(longest, 1))
            group, left = [longest], []
            spare = self._cost.row_bytes(longest.most_tokens) - each
            for member in rest:
                if member is longest:
                    continue
                after = spare + self._cost.row_bytes(member.most_tokens) - each
                if after >= 0 and len(group) < self._most_rows:
                    group.append(member)
                    spare = after
                else:
                    left.append(member)
            groups.append(group)
            rest = left
        return groups


def _longest(member: Member[Key], ahead: int) -> int:
    return min(bucket_tokens(member.tokens + ahead), bucket_tokens(member.most_tokens))
