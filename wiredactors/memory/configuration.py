"""The manager's configuration, and the ceiling that follows from it and the device."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import attrs

from wiredactors.memory.units import GIB, checked_size

WiredMode = Literal["policy", "off", "fit"]


def _optional_size(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        checked_size(value, attribute.name)


def _is_number(value: object) -> bool:
    # bool is an int to Python, but True seconds are somebody's mistake.
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bool(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name} must be True or False, not {value!r}")


def _mode(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value not in get_args(WiredMode):
        raise ValueError(f"wired_mode must be 'policy', 'off' or 'fit', not {value!r}")


def _seconds(instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not (_is_number(value) and 0 <= value < math.inf):
        raise ValueError(f"{attribute.name} must be a number of seconds from 0, not {value!r}")


def _ratio(instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not (_is_number(value) and 0 <= value <= 1):
        raise ValueError(f"{attribute.name} must lie between 0 and 1, not {value!r}")


def _count(instance: object, attribute: attrs.Attribute[Any], value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{attribute.name} must be a whole number from 0, not {value!r}")


def _positive_count(instance: object, attribute: attrs.Attribute[Any], value: int) -> None:
    _count(instance, attribute, value)
    if value == 0:
        raise ValueError(f"{attribute.name} must be at least 1")


def _optional_count(instance: object, attribute: attrs.Attribute[Any], value: int | None) -> None:
    if value is not None:
        _count(instance, attribute, value)


def _buffer(instance: object, attribute: attrs.Attribute[Any], value: int) -> None:
    if not isinstance(value, int) or value < 1000:
        raise ValueError(f"{attribute.name} must be a whole number from 1000, not {value!r}")


def _aging(instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    _seconds(instance, attribute, value)
    if value == 0:
        raise ValueError("aging_seconds must be more than 0 (a large number is: no aging)")


@attrs.frozen(kw_only=True)
class WiredMemoryConfiguration:
    """How the manager behaves. Times are seconds, sizes are bytes.

    Attributes:
        shrink_threshold_ratio: while work is active the limit shrinks only by at least this
            part of itself (0 to 1).
        shrink_cooldown: and only this long after the last write of any kind.
        policy_only_when_unsupported: where the wired limit cannot be set: True computes and
            admits all the same and applies nothing; False makes every ticket a no-op.
        baseline_override: the limit to come back to; None takes the one in force before.
        use_recommended_working_set_when_unsupported: without the wired limit, True takes the
            default ceiling; False has none unless `admission_ceiling` is given.
        admission_ceiling: what all tickets together may hold; None is the device's recommended
            working set, or total memory less a reserve.
        max_waiters: how many tickets may wait; None is no bound.
        overtake_count: how often a waiting ticket may be passed by later ones that fit.
        overtake_seconds: and how long it may wait, before its room is kept free for it.
        aging_seconds: each such time waited raises a ticket's priority by one.
        switches_per_minute: how often those who wait may make models go, at even distances: with
            60, one second after the last time at the earliest. Models that are asked together
            count as one.
        turn_seconds: how long one must have waited, and a model that is in use have served (for 1
            second at least), before that is asked to finish for it, where it would never fit
            beside that.
        wired_mode: "policy" applies what the policies ask for, "off" never touches the limit,
            "fit" applies the baseline and exactly the bytes of all tickets.
        watch_seconds: how often the machine's free memory is read; what others take of it beyond
            what the ceiling leaves to them tightens admission. 0 is never.
        debug_events: False closes every event stream at once (the seed's release build).
        event_buffer: events that a subscriber may lag behind before it misses some.
    """

    shrink_threshold_ratio: float = attrs.field(default=0.25, validator=_ratio)
    shrink_cooldown: float = attrs.field(default=1.0, validator=_seconds)
    policy_only_when_unsupported: bool = attrs.field(default=True, validator=_bool)
    baseline_override: int | None = attrs.field(default=None, validator=_optional_size)
    use_recommended_working_set_when_unsupported: bool = attrs.field(default=True, validator=_bool)
    admission_ceiling: int | None = attrs.field(default=None, validator=_optional_size)
    max_waiters: int | None = attrs.field(default=None, validator=_optional_count)
    overtake_count: int = attrs.field(default=100, validator=_count)
    overtake_seconds: float = attrs.field(default=30.0, validator=_seconds)
    aging_seconds: float = attrs.field(default=60.0, validator=_aging)
    switches_per_minute: int = attrs.field(default=60, validator=_positive_count)
    turn_seconds: float = attrs.field(default=30.0, validator=_seconds)
    wired_mode: WiredMode = attrs.field(default="policy", validator=_mode)
    watch_seconds: float = attrs.field(default=5.0, validator=_seconds)
    debug_events: bool = attrs.field(default=True, validator=_bool)
    event_buffer: int = attrs.field(default=4096, validator=_buffer)


def reserve_bytes(total_memory: int) -> int:
    """What to leave to the rest of the machine: `min(max(8 GiB, 35 %), 50 %)` of it.

    Wiring nearly everything froze machines of 16 GB; 35 % or 8 GB left free did not
    (vmlx-swift#421).
    """
    return min(max(8 * GIB, total_memory * 35 // 100), total_memory // 2)


def ceiling_of(
    configuration: WiredMemoryConfiguration,
    *,
    supported: bool,
    recommended_bytes: int | None,
    total_memory: int,
    pool_bytes: int = 0,
) -> int | None:
    """The ceiling in bytes over all tickets, None for none.

    Args:
        supported: whether the device has a wired limit.
        recommended_bytes: its recommended working set, where it reports one.
        total_memory: bytes of memory that the device has.
        pool_bytes: the bound of the allocator's pool of freed buffers, which no ticket holds.
    """
    if configuration.admission_ceiling is not None:
        ceiling = configuration.admission_ceiling
    elif not (supported or configuration.use_recommended_working_set_when_unsupported):
        return None
    elif recommended_bytes is not None:
        ceiling = recommended_bytes
    else:
        ceiling = total_memory - reserve_bytes(total_memory)
    return max(0, ceiling - pool_bytes)
