"""A model that a modelled engine has loaded, and its rows: those being read, those that decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wiredactors.scheduling.grouping import Grouping, Member
from wiredactors.scheduling.requests import LoadPlan
from wiredactors.testing.model import ModelledModel
from wiredactors.testing.rows import Row


class Batches:
    """What a model has to do, as the schedule asks for it. Sizes are bytes.

    Prompts are read in the order of arrival, each in a cache of its own; then their rows decode in
    batches, which take turns. Each batch has room for its next step in what its rows were charged.

    Attributes:
        model, margin_bytes: what was loaded.
        weight, chunk_tokens: see `Demand`.
    """

    def __init__(self, model: ModelledModel, plan: LoadPlan):
        assert plan.options.prefill_step_size is not None
        self.model = model
        self.margin_bytes = plan.margin_bytes
        self.weight = plan.options.weight
        self.chunk_tokens = plan.options.prefill_step_size
        self._grouping = Grouping(model.cache_cost, plan.options.max_batch_size)
        self._reading: list[Row] = []
        self._decoding: list[list[Row]] = []  # whose turn is next comes first

    def __iter__(self) -> Iterator[Row]:
        yield from self._reading
        for batch in self._decoding:
            yield from batch

    @property
    def decodes(self) -> bool:
        return bool(self._decoding)

    @property
    def prompts(self) -> Sequence[int]:
        return [row.unread for row in self._reading]

    @property
    def held_bytes(self) -> int:
        """What the caches really take, as padded in their batches."""
        alone = sum(row.cache_bytes(self.model) for row in self._reading)
        return alone + sum(map(self._padded_bytes, self._decoding))

    @property
    def charged_bytes(self) -> int:
        """What the rows were charged: each at its longest."""
        return sum(map(self._row_charge, self))

    def share(self, row: Row) -> int:
        """The row's part of its batch's cache, by what each was charged; 0 while it is read.

        It is never above its charge, unless by what nothing predicts.
        """
        batch = next((batch for batch in self._decoding if row in batch), None)
        if batch is None:
            return 0
        more = self.model.unpredicted_bytes
        padded = self._padded_bytes(batch) - more * len(batch)
        charged = sum(map(self._row_charge, batch))
        return padded * self._row_charge(row) // max(1, charged) + more

    # -- steps

    def add(self, row: Row) -> None:
        """Its prompt is to be read."""
        self._reading.append(row)

    def read(self, numbers: Sequence[int]) -> int:
        """Read the next tokens of these prompts; how many, with the padding to the longest."""
        longest = 0
        for number in numbers:
            row = self._reading[number]
            tokens = min(self.chunk_tokens, row.unread)
            row.prefilled += tokens
            longest = max(longest, tokens)
        return len(numbers) * longest

    def turn(self) -> Sequence[Row]:
        """The batch that has waited longest."""
        batch = self._decoding.pop(0)
        self._decoding.append(batch)
        return tuple(batch)

    def mend(self) -> None:
        """After each change: rows that were read decode, batches are split and joined as may be."""
        read = [row for row in self._reading if not row.unread]
        self._reading = [row for row in self._reading if row.unread]
        batches: list[list[Row]] = []
        for rows in (*self._decoding, *([row] for row in read)):
            for group in self._fitting(rows):
                for batch in batches:
                    if self._join(batch, group):
                        batch.extend(group)
                        break
                else:
                    batches.append(group)
        self._decoding = batches

    def let_go(self, row: Row) -> None:
        """Take a row out; those that it shared a batch with may need others."""
        for rows in (self._reading, *self._decoding):
            if row in rows:
                rows.remove(row)
        self.mend()

    def _fitting(self, rows: Sequence[Row]) -> list[list[Row]]:
        """As they are while their next step fits, else split."""
        members = _members(rows)
        if rows and self._grouping.fits(members):
            return [list(rows)]
        named = {row.request.row_id: row for row in rows}
        return [[named[member.key] for member in group] for group in self._grouping.split(members)]

    def _join(self, one: Sequence[Row], other: Sequence[Row]) -> bool:
        """A cache that is not the model's own has steps of its own."""
        plain = one[0].request.cache.plain and other[0].request.cache.plain
        return plain and self._grouping.joins(_members(one), _members(other))

    def _padded_bytes(self, batch: Sequence[Row]) -> int:
        longest = max(batch, key=lambda row: row.tokens)
        return len(batch) * longest.cache_bytes(self.model)

    def _row_charge(self, row: Row) -> int:
        return self.model.row_cost(row.request.cache).row_bytes(row.request.total_tokens)


def _members(rows: Sequence[Row]) -> list[Member[str]]:
    return [Member(row.request.row_id, row.tokens, row.request.total_tokens) for row in rows]
