"""One running batch: rows of one model and one bucket, through mlx-lm's batch generator.

Memory is the point of what this adds to it: the caches of rows that leave are let go at once, layer
by layer, and what remains is cut back to whole steps, so that a batch of a bucket never holds more
than its rows were charged.
"""

from __future__ import annotations

from typing import Any

import attrs

from wiredactors.engine.cache import parts, settle
from wiredactors.engine.device import without_locals
from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.engine.loading import LoadedModel
from wiredactors.engine.sampling import make_logits_processors, make_sampler
from wiredactors.engine.text import RowText
from wiredactors.memory.errors import GenerationError
from wiredactors.scheduling.requests import RowOutput, RowRequest


@attrs.define
class _Row:
    request: RowRequest
    text: RowText
    uid: int


class Batch:
    """The rows of one bucket. Everything happens on the device thread.

    A batch whose last row has left is done with: its caches go with it, and a new one is made for
    the next row, so mlx-lm's row numbers, which start again in every generator, are never mixed.
    """

    def __init__(self, loaded: LoadedModel):
        self._mx = import_mlx()
        generate = import_mlx_lm("generate")
        self._tokenizer = loaded.tokenizer
        # One prompt is prefilled at a time: that bounds the workspace, and how long a step takes.
        self._generator = generate.BatchGenerator(
            loaded.model,
            stop_tokens=[[token] for token in sorted(loaded.tokenizer.eos_token_ids)],
            prefill_batch_size=1,
            completion_batch_size=loaded.options.max_batch_size,
            prefill_step_size=loaded.options.prefill_step_size,
        )
        self._nothing = self._mx.zeros(0)
        self._rows: dict[int, _Row] = {}
        self._share_of: tuple[int, Any] = (0, None)
        self._share = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, row_id: str) -> bool:
        return any(row.request.row_id == row_id for row in self._rows.values())

    def insert(self, request: RowRequest) -> None:
        """Add a row; its prompt is prefilled by the next steps."""
        [uid] = self._generator.insert(
            [list(request.prompt)],
            max_tokens=[request.max_tokens],
            samplers=[make_sampler(request.sampling)],
            logits_processors=[make_logits_processors(request.sampling)],
        )
        self._rows[uid] = _Row(request, RowText(request, self._tokenizer), uid)

    def remove(self, row_id: str) -> int:
        """Take a row out, wherever it is, and let its cache go.

        Returns its share of the cache until then; 0 if it never decoded.
        """
        [uid] = [uid for uid, row in self._rows.items() if row.request.row_id == row_id]
        share = self._row_share() if uid in self._generator._generation_batch.uids else 0
        del self._rows[uid]
        self._generator.remove([uid])
        self._settle()
        return share

    def step(self) -> list[RowOutput]:
        """One step: a token for each decoding row, a chunk of the prompt that is prefilled.

        A row whose own text handling fails ends with its error; the others go on. Whatever else
        is raised has corrupted the batch: drop it.
        """
        share = self._row_share()
        generating = self._generator._generation_batch
        before = list(generating.uids)
        _, responses = self._generator.next()
        self._drop_logprobs(generating)
        outputs: list[RowOutput] = []
        stopped: list[int] = []
        for response in responses:
            row = self._rows[response.uid]
            # Views, which would keep the whole batch's cache and log-probabilities alive.
            response.prompt_cache = response.logprobs = None
            reason = response.finish_reason
            try:
                outputs += self._outputs(row, response.token, reason, share, stopped)
            except Exception as error:
                failure = GenerationError(f"row {row.request.row_id} failed: {error!r}")
                failure.__cause__ = without_locals(error)
                outputs.append(RowOutput(row_id=row.request.row_id, error=failure))
                if reason is None:
                    stopped.append(row.uid)
            if reason is not None:
                del self._rows[row.uid]
        if stopped:
            for uid in stopped:
                del self._rows[uid]
            self._generator.remove(stopped)
        if generating.uids != before:
            self._settle()
        return outputs

    def _outputs(
        self, row: _Row, token: int, reason: str | None, share: int, stopped: list[int]
    ) -> list[RowOutput]:
        if reason == "stop":  # the end-of-sequence token is not part of the answer
            return [row.text.finish("stop", share)]
        output, at_stop_text = row.text.add(token)
        if at_stop_text:
            if reason is None:
                stopped.append(row.uid)
            return [output, row.text.finish("stop", share, flush=False)]
        if reason is not None:
            return [output, row.text.finish(reason, share)]
        return [output]

    def close(self) -> list[str]:
        """Drop everything; returns the rows that were in it. Again: nothing."""
        rows = [row.request.row_id for row in self._rows.values()]
        self._rows.clear()
        if self._generator is not None:
            self._generator.close()
        self._generator = None
        return rows

    # -- memory

    def _row_share(self) -> int:
        """Bytes of the decoding rows' cache for each of them.

        Counted anew only when the cache has been allocated anew.
        """
        batch = self._generator._generation_batch
        if not batch.prompt_cache:
            return self._share
        rows = len(batch)
        allocation = (rows, _allocation(batch.prompt_cache))
        if allocation != self._share_of:
            self._share_of = allocation
            arrays = [cache.state for cache in batch.prompt_cache]
            self._mx.eval(arrays)
            self._share = self._mx.get_array_buffer_size(arrays) // max(1, rows)
        return self._share

    def _drop_logprobs(self, generating: Any) -> None:
        """Let go of the log-probabilities of this step and the next, which nobody here reads.

        mlx-lm keeps them for its callers, a vocabulary wide for each row, until the batch's next
        step; those of the next step are then in memory only as long as the device works on it.
        """
        generating._current_logprobs = []
        generating._next_logprobs = [self._nothing] * len(generating)

    def _settle(self) -> None:
        """Let go of what rows that left have held, and make real what the others hold now."""
        generating = self._generator._generation_batch
        if len(generating) == 0:
            # It would otherwise stay until the next row joins.
            generating._current_tokens = None
        with self._mx.stream(self._generator.stream):
            settle(generating.prompt_cache)


def _allocation(caches: list[Any]) -> tuple[Any, ...]:
    """What changes when a cache is allocated anew: the shape of its keys, by their kind."""
    shapes = {}
    for part in (part for cache in caches for part in parts(cache)):
        keys = getattr(part, "keys", None)
        shapes[type(part).__name__] = None if keys is None else tuple(keys.shape)
    return tuple(sorted(shapes.items()))
