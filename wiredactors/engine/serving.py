"""One model's rows on the device: prompts that are read, and batches that decode.

It carries out what `scheduling` decides: the schedule says whose step is next, the planner which
rows share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence

import attrs

from wiredactors.engine.batch import Batch, Sampled
from wiredactors.engine.cache import can_pad
from wiredactors.engine.device import without_locals
from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.engine.kept import can_share, make_caches
from wiredactors.engine.loading import LoadedModel
from wiredactors.engine.prefill import Prefill
from wiredactors.engine.row import Row
from wiredactors.memory.cache_cost import CacheCost
from wiredactors.memory.errors import GenerationError, ModelNotLoaded
from wiredactors.scheduling.grouping import Grouping, Member
from wiredactors.scheduling.requests import CacheOptions, RowOutput, RowRequest


class Serving:
    """See the module. Everything happens on the device thread.

    It is what the schedule knows of a model: its `weight`, and what there is to do.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        row_cost: Callable[[CacheOptions], CacheCost],
        spare_bytes: int = 0,
    ):
        """`spare_bytes`: transient memory beside the rows' caches that is held for the steps."""
        self._mx = import_mlx()
        self._stream = import_mlx_lm("generate").generation_stream
        self._loaded = loaded
        self._row_cost = row_cost
        self._spare_bytes = spare_bytes
        self._ends = frozenset(loaded.tokenizer.eos_token_ids)
        self._can_share = can_share(loaded.model)
        self._can_pad = all(map(can_pad, make_caches(loaded.model, CacheOptions())))
        self._grouping = Grouping(row_cost(CacheOptions()), loaded.options.max_batch_size)
        self._rows: dict[str, Row] = {}
        self._reading: list[Prefill] = []
        self._batches: list[Batch] = []  # the one that has waited longest is the next
        self.weight = loaded.options.weight
        assert loaded.options.prefill_step_size is not None
        self.chunk_tokens = loaded.options.prefill_step_size

    # -- for the schedule

    @property
    def decodes(self) -> bool:
        return bool(self._batches)

    @property
    def prompts(self) -> list[int]:
        return [prefill.unread for prefill in self._reading]

    @property
    def pieces(self) -> int:
        """Prompts and batches: as many steps give each of them a turn."""
        return len(self._reading) + len(self._batches)

    # -- rows

    def insert(self, request: RowRequest) -> None:
        """Add a row; its prompt is read by the next steps."""
        alone = not self._can_share or not request.cache.plain
        row = Row(request, self._loaded.tokenizer, alone=alone)
        self._reading.append(Prefill(self._loaded.model, [row]))
        self._rows[request.row_id] = row

    def remove(self, row_id: str) -> tuple[int, list[RowOutput]]:
        """Take a row out, wherever it is, and let its cache go.

        Returns its share of its batch's cache until then (0 if it never decoded, or is not there),
        and what became of others by it.
        """
        row = self._rows.pop(row_id, None)
        self._reading = [prefill for prefill in self._reading if row not in prefill.rows]
        batch = next((batch for batch in self._batches if row in batch.rows), None)
        if row is None or batch is None:
            return 0, []
        self._batches.remove(batch)
        share = 0
        try:
            with self._mx.stream(self._stream):
                share = self._shares(batch)[row]
                self._leave(batch, {row})
        except Exception as error:
            return share, self._recover(error)
        return share, []

    @property
    def held_bytes(self) -> int:
        """What its rows' caches have allocated, once `wait` has returned."""
        reading = sum(prefill.held_bytes() for prefill in self._reading if prefill.begun)
        return reading + sum(batch.held_bytes() for batch in self._batches)

    def close(self) -> list[RowOutput]:
        """Drop everything, also for those who hold on to it: errors that somebody keeps.

        Returns the ends of the rows that were still there.
        """
        outputs = [
            _failure(row, ModelNotLoaded("its model was unloaded")) for row in self._rows.values()
        ]
        self._rows.clear()
        self._reading.clear()
        self._batches.clear()
        del self._loaded
        return outputs

    # -- steps

    def wait(self) -> list[RowOutput]:
        """Wait until the device has done what was asked of it; what became of rows by that."""
        outputs = []
        for batch in list(self._batches):
            try:
                batch.wait()
            except Exception as error:
                self._batches.remove(batch)
                outputs += self._fail(batch.drop(), error)
        return outputs

    def read(self, numbers: Sequence[int]) -> list[RowOutput]:
        """Read a chunk of these prompts; at a prompt's end its first token is on its way."""
        chosen = self._packed([self._reading[number] for number in numbers])
        rows = [row for prefill in chosen for row in prefill.rows]
        try:
            with self._mx.stream(self._stream):
                self._read(chosen, rows)
        except Exception as error:
            self._forget(chosen)
            del chosen  # the error keeps what is here
            return self._fail(rows, error)
        try:
            with self._mx.stream(self._stream):
                self._gather()
        except Exception as error:
            return self._recover(error)
        return []

    def _read(self, chosen: Sequence[Prefill], rows: Sequence[Row]) -> None:
        prefill = chosen[0] if len(chosen) == 1 else Prefill(self._loaded.model, rows)
        prefill.read(self.chunk_tokens)
        place = self._reading.index(chosen[0])
        self._forget(chosen)
        if prefill.unread:
            self._reading.insert(place, prefill)
        else:
            self._batches.append(Batch(self._loaded.model, prefill, self._spare_bytes))

    def _forget(self, chosen: Sequence[Prefill]) -> None:
        self._reading = [prefill for prefill in self._reading if prefill not in chosen]

    def _packed(self, prefills: list[Prefill]) -> list[Prefill]:
        """Those of the prompts that may be read together: the first, and others that fit it.

        Not all models keep padding out of a state, so there they are of one length.
        """
        if any(row.alone for row in prefills[0].rows) or prefills[0].begun:
            return prefills[:1]
        packed: list[Prefill] = []
        for prefill in prefills:
            free = not prefill.begun and not any(row.alone for row in prefill.rows)
            free = free and (self._can_pad or prefill.unread == prefills[0].unread)
            members = [each.member for each in [*packed, prefill]] if free else []
            if free and self._grouping.fits(members):
                packed.append(prefill)
        return packed

    def step(self) -> list[RowOutput]:
        """A step of the batch whose turn it is: a token for each of its rows.

        A row whose own sampler, processor or text fails ends with its error. Where the step itself
        fails, its rows go on from their tokens, each by itself at first: so the one that cannot
        does not take the others along.
        """
        batch = self._batches.pop(0)
        outputs: list[RowOutput] = []
        try:
            with self._mx.stream(self._stream):
                self._step(batch, outputs)
        except Exception as error:
            outputs += self._fail(batch.drop(), error)
        return outputs

    def _step(self, batch: Batch, outputs: list[RowOutput]) -> None:
        if batch.is_full and not self._grouping.fits(_members(batch.rows)):
            batch, *others = batch.divide(self._split(batch.rows))
            self._batches += others
        was_alone = any(row.alone for row in batch.rows)
        ends: dict[Row, RowOutput] = {}
        for row, sampled in zip(batch.rows, batch.step(), strict=True):
            output, end = self._advance(row, sampled)
            if output is not None:
                outputs.append(output)
            if end is not None:
                ends[row] = end
        if ends:
            self._end(batch, ends, outputs)
        else:
            self._batches.append(batch)
            if was_alone:
                self._gather()

    def _end(self, batch: Batch, ends: dict[Row, RowOutput], outputs: list[RowOutput]) -> None:
        """Let the caches of rows that have ended go, and tell so, whatever happens."""
        for row in ends:
            del self._rows[row.request.row_id]
        shares: dict[Row, int] = {}
        try:
            shares = self._shares(batch)
            self._leave(batch, ends)
        finally:
            outputs += [attrs.evolve(end, kv_bytes=shares.get(row, 0)) for row, end in ends.items()]

    def _advance(self, row: Row, sampled: Sampled) -> tuple[RowOutput | None, RowOutput | None]:
        """What the row's next token brings: an output, and its last one."""
        try:
            if sampled.error is not None:
                raise sampled.error
            if sampled.token in self._ends:  # the end-of-sequence token is not part of the answer
                return None, row.text.finish("stop")
            row.add(sampled.token)
            output, at_stop_text = row.text.add(
                sampled.token, sampled.logprob, sampled.top_logprobs
            )
            if at_stop_text:
                return output, row.text.finish("stop", flush=False)
            return output, None if row.left else row.text.finish("length")
        except Exception as error:
            return None, _failure(row, error)

    def _fail(self, rows: Sequence[Row], error: Exception) -> list[RowOutput]:
        """A step of these rows, which are in none of the lists, went wrong."""
        outputs = []
        if len(rows) == 1 and rows[0].request.row_id in self._rows:
            outputs.append(self._failed(rows[0], error))
        return outputs + self._recover(error)

    def _failed(self, row: Row, error: Exception) -> RowOutput:
        del self._rows[row.request.row_id]
        return _failure(row, error)

    def _recover(self, error: Exception) -> list[RowOutput]:
        """Rows that are in no batch any more were in one that has failed: read them anew."""
        without_locals(error)
        there = {row for batch in self._batches for row in batch.rows}
        there.update(row for prefill in self._reading for row in prefill.rows)
        lost = [row for row in self._rows.values() if row not in there]
        outputs = []
        for row in lost:
            row.restart()
            try:
                self._reading.append(Prefill(self._loaded.model, [row]))
            except Exception as again:
                outputs.append(self._failed(row, again))
        return outputs

    # -- which rows share a batch

    def _split(self, rows: Iterable[Row]) -> list[list[Row]]:
        groups = self._grouping.split(_members(rows))
        return [[member.key for member in group] for group in groups]

    def _leave(self, batch: Batch, gone: Container[Row]) -> None:
        """Take rows out of a batch; those that stay are in one again, or in several."""
        stay = [row for row in batch.rows if row not in gone]
        self._batches += batch.divide(self._split(stay))
        self._gather()

    def _gather(self) -> None:
        """Let batches that may share their steps become one."""
        free = [batch for batch in self._batches if not any(row.alone for row in batch.rows)]
        free.sort(key=lambda batch: -len(batch.rows))
        while free:
            first = free.pop(0)
            for other in list(free):
                if self._grouping.joins(_members(first.rows), _members(other.rows)):
                    free.remove(other)
                    self._batches.remove(first)
                    self._batches.remove(other)
                    first.join(other)
                    self._batches.append(first)

    def _shares(self, batch: Batch) -> dict[Row, int]:
        """What of a batch's cache is each row's, in proportion to what they were charged."""
        held = batch.held_bytes()
        charges = {
            row: self._row_cost(row.request.cache).row_bytes(row.request.total_tokens)
            for row in batch.rows
        }
        whole = max(1, sum(charges.values()))
        return {row: held * charge // whole for row, charge in charges.items()}


def _members(rows: Iterable[Row]) -> list[Member[Row]]:
    return [row.member for row in rows]


def _failure(row: Row, error: Exception) -> RowOutput:
    row_id = row.request.row_id
    failure = GenerationError(f"row {row_id} failed: {error!r}")
    failure.__cause__ = without_locals(error)
    return RowOutput(row_id=row_id, error=failure)
