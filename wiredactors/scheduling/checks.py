"""How requests are checked where they are made: validators and converters of their fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs


def positive(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{attribute.name} must be an integer from 1, not {value!r}")


def not_negative(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{attribute.name} must be a number from 0, not {value!r}")


def above_zero(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{attribute.name} must be a number above 0, not {value!r}")


def count(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{attribute.name} must be an integer from 0, not {value!r}")


def share(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} must lie between 0 and 1, not {value!r}")


def optional_seed(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"{attribute.name} must be an integer or None, not {value!r}")


def stops(value: str | Sequence[str]) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"stop must be texts of at least one character, not {value!r}")
    return texts


def flag(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name} must be True or False, not {value!r}")


def bias(
    value: Mapping[int, float] | Iterable[tuple[int, float]] | None,
) -> tuple[tuple[int, float], ...]:
    pairs = tuple(value.items() if isinstance(value, Mapping) else value or ())
    for token, added in pairs:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise ValueError(f"logit_bias maps token ids, integers from 0, and not {token!r}")
        # An infinite score would leave no probability to compute.
        if isinstance(added, bool) or not isinstance(added, (int, float)) or not added < math.inf:
            raise ValueError(f"the bias of token {token} must be a number, not {added!r}")
    return pairs


def functions(value: Iterable[Callable[..., Any]] | None) -> tuple[Callable[..., Any], ...]:
    taken = tuple(value or ())
    if not all(callable(function) for function in taken):
        raise ValueError(f"logits_processors must be functions, not {taken!r}")
    return taken


def one_of(*values: int | None) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """A validator that, unlike attrs' own, does not take 4.0 for 4."""
    words = ", ".join(map(str, values))

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in values or isinstance(value, float):
            raise ValueError(f"{attribute.name} must be one of {words}, not {value!r}")

    return check


def optional_function(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not callable(value):
        raise ValueError(f"{attribute.name} must be a function or None, not {value!r}")
