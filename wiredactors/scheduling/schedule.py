"""Whose step is next on the one device: models share its time, prompts and answers share a model's.

Models share by start-time fair queuing (Goyal, Vin and Cheng, 1996) over measured step time. Each
has a due time on a common clock, which its steps move on by what they took over its weight; whoever
is due first goes next. So a busy model, or one with long steps, takes no more than its weight from
another, and one that had nothing to do for a while saves nothing up.

Within a model a long prompt is read chunk by chunk. What a chunk takes from the rows that decode is
owed to them: their steps come next, until they have had their share of the time. Short prompts go
first, and as many share a chunk as fit in it.
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
    """The next step: of which model, and of which of its prompts; none is a step of its rows."""

    model: str
    prompts: tuple[int, ...] = ()


@attrs.define
class _Account:
    """What a model has had and owes; times are seconds.

    Attributes:
        due: when its next step is, on the clock that the models share.
        weight: its share of the device's time.
        owed: decode time that its rows are to have before the next chunk of a long prompt; below 0
            they have had more.
        borrowed: whether the last chunk was read although something was owed.
        waited: short prompts that waited when the last chunk was chosen, if it was of such.
        passes: short prompts that were read since a long one was, while one waited.
    """

    due: float = 0.0
    weight: float = 1.0
    owed: float = 0.0
    borrowed: bool = False
    waited: int = 1
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
        return Step(name, _prompts(account, demands[name]))

    def _due(self, name: str) -> float:
        """When its next step is due; who had nothing to do when it was is due now."""
        return max(self._accounts[name].due, self._now)

    def record(self, step: Step, seconds: float, *, decodes: bool) -> None:
        """The step took so long; `decodes`: whether rows of the model waited for it, or took it."""
        account = self._accounts[step.model]
        account.due += seconds / account.weight
        if not step.prompts:
            # What they have had beyond what was owed counts, but for one step only.
            account.owed = max(account.owed, 0.0) - seconds
        elif decodes:
            # Prompts of a burst are rows themselves when it has been read: the sooner, the more
            # share each step. So what a burst takes is owed about once, however many they are.
            account.owed += seconds * self._owed_per_second / account.waited


def _prompts(account: _Account, demand: Demand) -> tuple[int, ...]:
    """The prompts of which a chunk is read next; none for a step of the rows."""
    prompts, chunk = demand.prompts, demand.chunk_tokens
    if not prompts:
        return ()
    if not demand.decodes:
        account.owed = 0.0
    short = [number for number, tokens in enumerate(prompts) if tokens <= chunk]
    chosen = short[0] if short and account.passes < MOST_PASSES else 0
    is_short = prompts[chosen] <= chunk
    # A short prompt need not wait until a long chunk is paid for, once.
    if account.owed > 0 and (account.borrowed or not is_short):
        return ()
    account.borrowed = account.owed > 0
    account.passes = account.passes + 1 if chosen else 0
    if not is_short:
        account.waited = 1
        return (chosen,)
    account.waited = len(short)
    return _together(prompts, short, chunk)


def _together(prompts: Sequence[int], short: Sequence[int], chunk: int) -> tuple[int, ...]:
    """The first of the short prompts that one chunk reads, padded to the longest of them."""
    taken: list[int] = []
    longest = 1
    for number in short:
        longest = max(longest, prompts[number])
        if taken and (len(taken) + 1) * longest > chunk:
            break
        taken.append(number)
    return tuple(taken)
