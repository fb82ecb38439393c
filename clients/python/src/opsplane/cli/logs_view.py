"""Log records as people read them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from rich.text import Text

from opsplane.cli.output import clean, one_line
from opsplane.logingest.v1 import queries_pb2, records_pb2

LEVEL_STYLES = {
    records_pb2.LEVEL_TRACE: "dim",
    records_pb2.LEVEL_DEBUG: "dim",
    records_pb2.LEVEL_INFO: "green",
    records_pb2.LEVEL_WARN: "yellow",
    records_pb2.LEVEL_ERROR: "red",
    records_pb2.LEVEL_FATAL: "bold red",
}
_SHOWN_ELSEWHERE = frozenset({"timestamp", "level", "service", "message", "stack_trace", "metadata", "metadata_json"})
_VALUE_CHARACTERS = 60


def level_name(level: int) -> str:
    """`ERROR` for LEVEL_ERROR; the number for one that this version does not know."""
    try:
        return records_pb2.Level.Name(records_pb2.Level.ValueType(level)).removeprefix("LEVEL_")
    except ValueError:
        return str(level)


def entry_text(entry: queries_pb2.LogEntry, *, full: bool) -> Text:
    """A record: time, level, service, message, and its other fields with their names.

    The message keeps its lines. `full` also shows where it is stored, the stack trace, and values uncut.
    """
    record = entry.record
    style = LEVEL_STYLES.get(record.level, "")
    text = Text.assemble(
        (moment(record.timestamp), "dim"),
        " ",
        (f"{level_name(record.level):5}", style),
        " ",
        (one_line(record.service, 100), "cyan"),
        "  ",
        clean(record.message),
    )
    for name, value in _others(record):
        shown = clean(value) if full else one_line(value, _VALUE_CHARACTERS)
        text.append(f"  {clean(name)}=", style="dim")
        text.append(shown, style="dim")
    if full:
        text.append(f"  entry_id={entry.entry_id}", style="dim")
        if record.stack_trace:
            text.append("\n" + clean(record.stack_trace).rstrip(), style=style)
    return text


def moment(time: Timestamp) -> str:
    """A time to the millisecond in the zone of this machine."""
    return time.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _others(record: records_pb2.LogRecord) -> Iterator[tuple[str, str]]:
    for field, value in record.ListFields():
        if field.name not in _SHOWN_ELSEWHERE:
            yield field.name, f"{value:g}" if isinstance(value, float) else str(value)
    for name, value in _metadata(record).items():
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _metadata(record: records_pb2.LogRecord) -> dict[str, Any]:
    if not record.metadata_json:
        return dict(sorted(record.metadata.items()))
    found: dict[str, Any] = json.loads(record.metadata_json)
    return found
