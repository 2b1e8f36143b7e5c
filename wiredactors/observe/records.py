"""Events as structlog records: the kind under `event`, the fields flat beside it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import structlog

from wiredactors.memory.events import EventKind, Snapshot, WiredMemoryEvent

#: Fields of an event that a record carries always; the others only where they have a value.
_ALWAYS = ("sequence", "timestamp", "active_count", "waiter_count")
_SPECIAL = ("kind", "details", "snapshot")


def event_record(event: WiredMemoryEvent) -> dict[str, Any]:
    """The fields of an event as one flat mapping of plain values, without its kind.

    `details` stand beside the others under their own names. A snapshot is spelled out under
    `snapshot`.
    """
    fields = {
        field.name: getattr(event, field.name)
        for field in attrs.fields(type(event))
        if field.name not in _SPECIAL
    }
    record = {name: value for name, value in fields.items() if name in _ALWAYS or value is not None}
    record |= event.details
    if event.snapshot is not None:
        record["snapshot"] = _plain(event.snapshot)
    return record


def _plain(snapshot: Snapshot) -> dict[str, Any]:
    return attrs.asdict(snapshot)


async def log_events(events: AsyncIterable[WiredMemoryEvent], logger: Any = None) -> None:
    """Log each event as one record at level info, until the stream ends.

    The library never configures structlog: the records go wherever your configuration sends those
    of the logger "wiredactors", or to `logger`.
    """
    logger = structlog.get_logger("wiredactors") if logger is None else logger
    async for event in events:
        logger.info(str(event.kind), **event_record(event))


@contextlib.contextmanager
def open_event_log(path: Path) -> Iterator[Any]:
    """A structlog logger that writes JSON lines to `path`, one whole line at a time.

    For programs that do not configure structlog themselves. Each line is flushed, so that a crash
    loses at most the last one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", buffering=1) as file:
        yield structlog.wrap_logger(
            structlog.PrintLogger(file),
            processors=[structlog.processors.JSONRenderer(serializer=_to_json)],
            cache_logger_on_first_use=False,
        )


def _to_json(record: dict[str, Any], **_: Any) -> str:
    # The kind first, then the number: a person reads the file too.
    kind = record.pop("event")
    return json.dumps({"event": kind, **record}, ensure_ascii=False, default=str)


def read_event_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log. A torn last line, of a program that crashed, is left out.

    Raises:
        ValueError: another line is no JSON object; the message has its number.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except ValueError:
            if number == len(lines):  # no newline came after it
                break
            raise ValueError(f"{path}, line {number}: not a JSON object") from None
        if not isinstance(record, dict) or record.get("event") not in set(EventKind):
            raise ValueError(f"{path}, line {number}: not a record of an event")
        records.append(record)
    return records
