"""Whose step is next on the one device: models share its time, prompts and answers share a model's.

Models share by start-time fair queuing (Goyal, Vin and Cheng, 1996) over measured step time. Each
has a due time on a common clock, which its steps move on by what they took over its weight; whoever
is due first goes next. So a busy model, or one with long steps, takes no more than its weight from
another, and one that had nothing to do for a while saves nothing up.

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
    """What a model has had and owes; times are seconds.

    Attributes:
        due: when its next step is, on the clock that the models share.
        weight: its share of the device's time.
        owed: decode time that its rows are to have before the next chunk of a long prompt; below 0
            they have had more.
        borrowed: whether the last chunk was read although something was owed.
        passes: short prompts that were read since a long one was, while one waited.
    """

    due: float = 0.0
    weight: float = 1.0
    owed: float = 0.0
    borrowed: bool = False
    passes: int = 0


class Schedule:
    """Chooses steps from the queues and the measured times. Each choice costs O(models + prompts).

    `decode_share` is the part of a model's time that its running rows keep while it reads prompts:
    with 0.5 they keep at least half their token rate.
    """

    def __init__(self, decode_share: float = 0.5):
        if not 0 <= decode_share < 1:
            raise ValueError(f"decode_share must be at least 0 and below 1, not {decode_share!r}")
        self._owed_per_second = decode_share / (1 - decode_share)
        self._accounts: dict[str, _Account] = {}  # who stepped last comes last
        self._now = 0.0  # when the last step was due

    def choose(self, demands: Mapping[str, Demand]) -> Step | None:
        """The next step; None if there is nothing to do. `record` it when it is done.

        `demands` has every model, also those with nothing to do: one that is missing is forgotten,
        with what it owes.
        """
        for gone in self._accounts.keys() - demands.keys():
            del self._accounts[gone]
        for name, demand in demands.items():
            self._accounts.setdefault(name, _Account()).weight = demand.weight
        ready = [name for name in self._accounts if demands[name].decodes or demands[name].prompts]
        if not ready:
            return None
        name = min(ready, key=self._due)
        account = self._accounts[name]
        account.due = self._now = self._due(name)
        self._accounts[name] = self._accounts.pop(name)
        return Step(name, _prompt(account, demands[name]))

    def _due(self, name: str) -> float:
        """When its next step is due; who had nothing to do when it was is due now."""
        return max(self._accounts[name].due, self._now)

    def record(self, step: Step, seconds: float, *, decodes: bool) -> None:
        """The step took so long; `decodes`: whether rows of the model waited for it, or took it."""
        account = self._accounts[step.model]
        account.due += seconds / account.weight
        if step.prompt is None:
            # What they have had beyond what was owed counts, but for one step only.
            account.owed = max(account.owed, 0.0) - seconds
        elif decodes:
            account.owed += seconds * self._owed_per_second


def _prompt(account: _Account, demand: Demand) -> int | None:
    """The prompt of which a chunk is read next; None for a step of the rows."""
    prompts = demand.prompts
    if not prompts:
        return None
    chosen = _next_prompt(account, prompts, demand.chunk_tokens)
    if not demand.decodes:
        account.owed = 0.0
    # A short prompt need not wait until a long chunk is paid for, once.
    short = prompts[chosen] <= demand.chunk_tokens
    if account.owed > 0 and (account.borrowed or not short):
        return None
    account.borrowed = account.owed > 0
    account.passes = account.passes + 1 if chosen else 0
    return chosen


def _next_prompt(account: _Account, prompts: Sequence[int], chunk: int) -> int:
    """The first that one chunk ends, unless a longer one has been passed too often."""
    if account.passes >= MOST_PASSES:
        return 0
    return next((i for i, tokens in enumerate(prompts) if tokens <= chunk), 0)
