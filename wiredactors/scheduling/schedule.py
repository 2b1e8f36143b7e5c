"""Whose step is next on the one device: models share its time, prompts and answers share a model's.

Models take turns by deficit round robin (Shreedhar and Varghese, 1995) over measured step time: a
model steps while it has time to its credit, and a step that took longer is paid back before the
next one. So a busy model, or one with long steps, takes no more than its weight from another.

Within a model a long prompt is read chunk by chunk. What a chunk takes from the rows that decode is
owed to them: their steps come next, until they have had their share of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

#: Long prompts wait for at most so many chunks of short ones in a row.
MOST_PASSES = 4


class Demand(Protocol):
    """What a model has to do.

    Attributes:
        weight: its share of the device's time, against that of the others.
        decodes: whether there are rows that wait for their next token.
        prompts: tokens that are left to read of each prompt, in the order of arrival.
        chunk_tokens: as many at most are read in one step.
    """

    @property
    def weight(self) -> float: ...

    @property
    def decodes(self) -> bool: ...

    @property
    def prompts(self) -> Sequence[int]: ...

    @property
    def chunk_tokens(self) -> int: ...


@attrs.frozen
class Step:
    """The next step: of which model, and of which of its prompts; None is a step of its rows."""

    model: str
    prompt: int | None


@attrs.define
class _Account:
    """What a model may still take, in seconds.

    Attributes:
        credit: device time that it has left; below 0 it took more than it had.
        owed: decode time that its rows are to have before the next chunk of a long prompt.
        chunk_seconds: what its last chunk took.
        passes: short prompts that were read since a long one was, while one waited.
    """

    credit: float = 0.0
    owed: float = 0.0
    chunk_seconds: float = 0.0
    passes: int = 0


class Schedule:
    """Chooses steps from the queues and the measured times. Each choice costs O(models + prompts).

    `decode_share` is the part of a model's time that its running rows keep while it reads prompts:
    with 0.5 they keep at least half their token rate.
    """

    def __init__(self, decode_share: float = 0.5):
        if not 0 <= decode_share < 1:
            raise ValueError(f"decode_share must be at least 0 and below 1, not {decode_share!r}")
        self._decode_share = decode_share
        self._accounts: dict[str, _Account] = {}
        self._last: str | None = None

    def choose(self, demands: Mapping[str, Demand]) -> Step | None:
        """The next step; None if there is nothing to do. `record` it when it is done."""
        ready = [name for name, demand in demands.items() if demand.decodes or demand.prompts]
        if not ready:
            return None
        for gone in self._accounts.keys() - demands.keys():
            del self._accounts[gone]
        name = ready[0] if len(ready) == 1 else self._turn(ready, demands)
        self._last = name
        return Step(name, self._prompt(self._account(name), demands[name]))

    def record(self, step: Step, seconds: float, *, decodes: bool) -> None:
        """The step took so long; `decodes`: whether rows of the model waited for it, or took it."""
        account = self._account(step.model)
        account.credit -= seconds
        if step.prompt is None:
            account.owed = max(0.0, account.owed - seconds)
        else:
            account.chunk_seconds = seconds
            share = self._decode_share
            account.owed = account.owed + seconds * share / (1 - share) if decodes else 0.0

    def _account(self, name: str) -> _Account:
        return self._accounts.setdefault(name, _Account())

    def _turn(self, ready: Sequence[str], demands: Mapping[str, Demand]) -> str:
        """The next of several models, in their order, that has time to its credit."""
        accounts = {name: self._account(name) for name in ready}
        for name, account in self._accounts.items():
            if name not in accounts:  # who has nothing to do saves nothing up
                account.credit = min(account.credit, 0.0)
        # Whoever has credit may go; if nobody has, the round that brings the first of them there.
        rounds = max(0.0, min(-accounts[name].credit / demands[name].weight for name in ready))
        if rounds:
            for name, account in self._accounts.items():
                account.credit += rounds * demands[name].weight
                if name not in accounts:
                    account.credit = min(account.credit, 0.0)
        able = {name for name in ready if accounts[name].credit >= -1e-12}
        names = list(demands)
        first = names.index(self._last) + 1 if self._last in demands else 0
        return next(name for name in names[first:] + names[:first] if name in able)

    def _prompt(self, account: _Account, demand: Demand) -> int | None:
        """The prompt of which a chunk is read next; None for a step of the rows."""
        prompts = demand.prompts
        if not prompts:
            return None
        chosen = _next_prompt(account, prompts, demand.chunk_tokens)
        if not demand.decodes:
            account.owed = 0.0
        elif account.owed > 0:
            # A short prompt need not wait until a long chunk is paid for, once.
            short = prompts[chosen] <= demand.chunk_tokens
            if not short or account.owed > account.chunk_seconds:
                return None
        account.passes = account.passes + 1 if chosen else 0
        return chosen


def _next_prompt(account: _Account, prompts: Sequence[int], chunk: int) -> int:
    """The first that one chunk ends, unless a longer one has been passed too often."""
    if prompts[0] <= chunk or account.passes >= MOST_PASSES:
        return 0
    return next((i for i, tokens in enumerate(prompts) if tokens <= chunk), 0)
