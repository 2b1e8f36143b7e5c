"""From the tokens of one row to its text: detokenizing, and stopping at a text."""

from __future__ import annotations

from typing import Any

from wiredactors.engine.imports import import_mlx_lm
from wiredactors.scheduling.requests import RowOutput, RowRequest


class RowText:
    """Turns a row's tokens into outputs. Used on the device thread only."""

    def __init__(self, request: RowRequest, tokenizer: Any):
        self._row_id = request.row_id
        self._detokenizer = tokenizer.detokenizer  # a fresh one at each reading
        self._stopping: Any = None
        if request.sampling.stop:
            # It holds back text that may be the beginning of a stop text.
            self._machine = import_mlx_lm("generate").TextStateMachine
            stops = [(text, None) for text in request.sampling.stop]
            self._stopping = self._machine({"normal": stops}).make_state("normal")

    def add(
        self,
        token: int,
        logprob: float | None = None,
        top_logprobs: tuple[tuple[int, float], ...] = (),
    ) -> tuple[RowOutput, bool]:
        """The output of one token, and whether its text ended at a stop text."""
        self._detokenizer.add_token(token)
        text, stopped = self._pass(self._detokenizer.last_segment)
        output = RowOutput(
            row_id=self._row_id,
            text=text,
            token=token,
            logprob=logprob,
            top_logprobs=top_logprobs,
        )
        return output, stopped

    def finish(self, reason: str, *, flush: bool = True) -> RowOutput:
        """The last output, with the text that was still held back (none after a stop text)."""
        text = ""
        if flush:
            self._detokenizer.finalize()
            text, stopped = self._pass(self._detokenizer.last_segment)
            if stopped:
                reason = "stop"
            elif self._stopping is not None:
                self._stopping, held, _ = self._machine.flush(self._stopping)
                text += held
        return RowOutput(row_id=self._row_id, text=text, finish_reason=reason)

    def _pass(self, text: str) -> tuple[str, bool]:
        if self._stopping is None or not text:
            return text, False
        self._stopping, certain, state = self._machine.step(self._stopping, text)
        return certain, state is None
