"""What `estimate` says of an architecture's tiny model, beside what the model really takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from tests.engine import truth
from wiredactors.engine.estimating import estimate
from wiredactors.memory.measurement import WiredMemoryMeasurement

#: Prompt tokens in one step at most.
STEP = 128


@attrs.frozen
class Case:
    """A prompt: tokens of each row, rows, and bits of a quantized cache."""

    tokens: int
    rows: int = 1
    kv_bits: int | None = None

    def __str__(self) -> str:
        bits = "" if self.kv_bits is None else f", {self.kv_bits}-bit cache"
        return f"{self.rows} x {self.tokens} tokens{bits}"


#: Three lengths: less than a chunk, some chunks, and more than a cache's second growth.
LENGTHS = (40, 300, 700)

EVERY_CASE = tuple(
    Case(tokens, rows, bits) for bits in (None, 8) for rows in (1, 4) for tokens in LENGTHS
)


@attrs.frozen(kw_only=True)
class Compared:
    """One prompt, predicted and run.

    Attributes:
        refusal: why mlx-lm cannot run it; None where it ran.
        ignored: whether mlx-lm ran it and left the cache as it was, in spite of `kv_bits`.
        predicted: what `estimate` said; None where it refused.
        refused: the message with which it refused.
    """

    case: Case
    taken: truth.Truth | None = None
    refusal: str | None = None
    ignored: bool = False
    predicted: WiredMemoryMeasurement | None = None
    refused: str | None = None

    @property
    def agree(self) -> bool:
        """Whether `estimate` refuses what mlx-lm cannot do or leaves undone, and nothing else."""
        return (self.refused is not None) == (self.refusal is not None or self.ignored)

    @property
    def weights(self) -> tuple[int, int]:
        """Bytes predicted and taken."""
        assert self.predicted is not None
        assert self.taken is not None
        return self.predicted.weight_bytes, self.taken.weight_bytes

    @property
    def kv(self) -> tuple[int, int]:
        """Bytes of the cache predicted and taken."""
        assert self.predicted is not None
        assert self.taken is not None
        return self.predicted.kv_bytes, self.taken.kv_bytes

    @property
    def peak(self) -> tuple[int, int]:
        """Bytes at the worst moment, predicted and taken."""
        assert self.predicted is not None
        assert self.taken is not None
        return self.predicted.peak_active_bytes, self.taken.peak_bytes

    @property
    def workspace(self) -> tuple[int, int]:
        """Bytes of the workspace, predicted and taken."""
        assert self.predicted is not None
        assert self.taken is not None
        return self.predicted.workspace_bytes, self.taken.workspace_bytes


def sweep(path: Path, cases: Sequence[Case] = EVERY_CASE) -> list[Compared]:
    """Predict and run these prompts, one after the other."""
    taken: dict[Case, truth.Truth] = {}
    return [_predicted(path, _run(path, case, taken)) for case in cases]


def _run(path: Path, case: Case, taken: dict[Case, truth.Truth]) -> Compared:
    """Run one prompt; what it took is noted down in `taken`."""
    try:
        if case.kv_bits is not None and case.tokens <= STEP:
            _decode(path, case)  # before that nobody has read the packed cache
        took = taken[case] = _measure(path, case)
    except Exception as error:  # whatever a model's code trips over
        return Compared(case=case, refusal=f"{type(error).__name__}: {error}")
    plain = attrs.evolve(case, kv_bits=None)
    if plain not in taken:
        taken[plain] = _measure(path, plain)
    ignored = case != plain and took.kv_bytes == taken[plain].kv_bytes
    return Compared(case=case, taken=took, ignored=ignored)


def _measure(path: Path, case: Case) -> truth.Truth:
    return truth.measure(
        path,
        token_count=case.tokens,
        prefill_step_size=STEP,
        batch_size=case.rows,
        kv_bits=case.kv_bits,
    )


def _decode(path: Path, case: Case) -> None:
    truth.measure_decode(
        path, token_count=case.tokens, prefill_step_size=STEP, steps=1, kv_bits=case.kv_bits
    )


def _predicted(path: Path, compared: Compared) -> Compared:
    case = compared.case
    try:
        predicted = estimate(
            path,
            token_count=case.tokens,
            prefill_step_size=STEP,
            batch_size=case.rows,
            kv_bits=case.kv_bits,
        )
    except ValueError as error:
        return attrs.evolve(compared, refused=str(error))
    return attrs.evolve(compared, predicted=predicted)
