"""The messages of the queue: the FTP Pooler's JSON, in and out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from opsplane_server.ftptransfer.failures import ErrorCode
from opsplane_server.ftptransfer.model import Location, NewTransfer, Origin, Priority
from opsplane_server.rpc.ids import new_id

_NAME_CHARACTERS: Final = 200
_PATH_BYTES: Final = 4096
_METADATA_BYTES: Final = 16 * 1024
_MOST_RETRIES: Final = 100
_RAW_CHARACTERS: Final = 8192

_FIELDS: Final = ("task_id", "src_id", "src_path", "dst_id", "dst_path", "metadata")
_PRIORITIES: Final = {priority.value.lower(): priority for priority in Priority}
_CONTROL: Final = re.compile(r"[\x00-\x1f]")
_BREAK: Final = re.compile(r"[\x00\r\n]")
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True, slots=True)
class Record:
    """A message as Kafka keeps it; `time` is its timestamp in milliseconds."""

    topic: str
    partition: int
    offset: int
    time: int
    value: bytes | None

    @property
    def is_empty(self) -> bool:
        """True for one that says nothing, such as the empty line of a console producer."""
        return self.value is None or not self.value.strip()

    @property
    def text(self) -> str:
        """What it says, cut off where that is very long; what is not UTF-8 is written as escapes."""
        value = (self.value or b"")[: 4 * _RAW_CHARACTERS]
        return value.decode("utf-8", "backslashreplace").replace("\x00", "\\x00")[:_RAW_CHARACTERS]


@dataclass(frozen=True, slots=True)
class TaskMessage:
    """A message that is a task. The locations of `transfer` name connections as the message does."""

    record: Record
    transfer: NewTransfer


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message that is not taken as a task, and why. `content` are those of its fields that are a task's, as JSON."""

    record: Record
    why: str
    content: str = ""


class _Malformed(Exception):
    """Says what is wrong."""


def parse(record: Record) -> TaskMessage | Rejected:
    """Reads a message that is not empty.

    Fields of other names are ignored, as the FTP Pooler did; so is what `metadata` has as `priority` and `retry_count`
    and can not be these.
    """
    known: dict[str, Any] = {}
    try:
        fields = _object(record.value or b"")
        known = {name: fields[name] for name in _FIELDS if name in fields}
        return TaskMessage(record, _transfer(record, known))
    except _Malformed as error:
        return Rejected(record, str(error), _repeatable(known))


def derived_task_id(record: Record) -> str:
    """The id of a task that has none: the same whenever the message is delivered again.

    The time is part of it because a topic that was made anew counts its offsets from 0 again.
    """
    return f"{record.topic}-{record.partition}-{record.offset}-{record.time}"


def _object(value: bytes) -> dict[str, Any]:
    try:
        content = orjson.loads(value.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise _Malformed(f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise _Malformed(f"a JSON object is expected, not {_kind(content)}")
    return content


def _transfer(record: Record, fields: dict[str, Any]) -> NewTransfer:
    task_id = _task_id(fields.get("task_id")) or derived_task_id(record)
    metadata = _metadata(fields.get("metadata"))
    source = Location(_name(fields, "src_id"), _path(fields, "src_path"))
    destination = Location(_name(fields, "dst_id"), _path(fields, "dst_path"))
    message = orjson.dumps({**fields, "task_id": task_id})
    if b"u0000" in message and _NUL.search(message):
        raise _Malformed("metadata: has NUL in a text")
    return NewTransfer(
        id=new_id(),
        source=source,
        destination=destination,
        origin=Origin("kafka", record.topic, record.partition, record.offset),
        priority=_priority(metadata.pop("priority", None)),
        retry_count=_retry_count(metadata.pop("retry_count", None)),
        task_id=task_id,
        task_key=task_id,
        metadata=metadata or None,
        message=message.decode(),
    )


def _task_id(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Malformed(f"task_id: text is expected, not {_kind(value)}")
    if len(value) > _NAME_CHARACTERS or _CONTROL.search(value):
        raise _Malformed(f"task_id: at most {_NAME_CHARACTERS} characters are expected, and no control characters")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        raise _Malformed(f"{name}: is missing")
    if not isinstance(value, str):
        raise _Malformed(f"{name}: text is expected, not {_kind(value)}")
    if not value:
        raise _Malformed(f"{name}: is empty")
    return value


def _name(fields: Mapping[str, Any], name: str) -> str:
    value = _text(fields, name)
    if len(value) > _NAME_CHARACTERS or _CONTROL.search(value):
        raise _Malformed(f"{name}: no connection has such a name")
    return value


def _path(fields: Mapping[str, Any], name: str) -> str:
    value = _text(fields, name)
    if len(value.encode()) > _PATH_BYTES:
        raise _Malformed(f"{name}: longer than {_PATH_BYTES} bytes")
    if _BREAK.search(value):
        raise _Malformed(f"{name}: has NUL or line breaks")
    return value


def _metadata(value: object) -> dict[str, Any]:
    """A copy of it."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _Malformed(f"metadata: a JSON object is expected, not {_kind(value)}")
    if len(orjson.dumps(value)) > _METADATA_BYTES:
        raise _Malformed(f"metadata: more than {_METADATA_BYTES // 1024} KiB")
    return dict(value)


def _priority(value: object) -> Priority:
    return _PRIORITIES.get(value.lower(), Priority.NORMAL) if isinstance(value, str) else Priority.NORMAL


def _retry_count(value: object) -> int:
    return max(0, min(value, _MOST_RETRIES)) if isinstance(value, int) and not isinstance(value, bool) else 0


def _repeatable(fields: Mapping[str, Any]) -> str:
    """What a failure repeats of a message that is no task, if it is short, and text for the database."""
    content = orjson.dumps(fields)
    return "" if not fields or len(content) > _RAW_CHARACTERS or _NUL.search(content) else content.decode()


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return "text"
        case int() | float():
            return "a number"
        case list():
            return "a list"
    return "an object"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a message. `status` is `success`, `failed` or `cancelled`, `duration` in seconds.

    content: the fields of the message, as JSON; empty when it is no object.
    record: the message itself, when it is no task.
    """

    status: str
    content: str
    bytes_transferred: int
    duration: float
    end_time: datetime
    error_code: str = ""
    error_message: str = ""
    record: Record | None = None

    @property
    def is_failure(self) -> bool:
        """Whether it goes to the topic of failures."""
        return self.status != "success"

    def encode(self) -> tuple[bytes | None, bytes]:
        """Key and value of the message that is published. The key is the task's id."""
        fields = {**_NOTHING, **(orjson.loads(self.content) if self.content else {})}
        fields["status"] = self.status
        fields["bytes_transferred"] = self.bytes_transferred
        fields["duration_ms"] = round(self.duration * 1000)
        fields["timestamp"] = self.end_time.astimezone(UTC).isoformat(timespec="microseconds")
        if self.is_failure:
            fields["error_code"] = self.error_code or ErrorCode.UNKNOWN_ERROR.value
            fields["error_message"] = self.error_message or self.status
        if self.record is not None:
            fields["source_message"] = {
                "topic": self.record.topic,
                "partition": self.record.partition,
                "offset": self.record.offset,
                "text": self.record.text,
            }
        task_id = fields["task_id"]
        return (task_id.encode() or None) if isinstance(task_id, str) else None, orjson.dumps(fields)


# The order in which results have the fields, whether or not their message had them.
_NOTHING: Final[Mapping[str, Any]] = {"task_id": None, "status": "", **dict.fromkeys(_FIELDS[1:5])}
