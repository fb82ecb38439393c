"""Lines of a log become records: JSON objects or plain text, told apart line by line.

Lines that go on with the record before them (indented ones, tracebacks of Python and Java) are joined to it. A record
keeps all that its lines say: what is not recognized stays in the metadata, and the message of plain text is its whole
first line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from opsplane.logingest.v1 import records_pb2
from opsplane.logs.encoding import LEVELS, TEXT_FIELDS

MAX_LINE_BYTES = 1024 * 1024
_MAX_JOINED_BYTES = 1024 * 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Entry(NamedTuple):
    """A record: number of its level, message, and fields as `Shipper.log` takes them."""

    level: int
    message: str
    fields: dict[str, Any]


@dataclass(slots=True)
class Group:
    """Lines of one record, without their ends. They stand in the file from `start` on, in bytes."""

    start: int
    lines: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, line: bytes) -> None:
        """Takes one more."""
        self.lines.append(line)
        self.size += len(line) + 1


class Joiner:
    """Puts the lines together that belong together."""

    def __init__(self) -> None:
        self._group: Group | None = None
        self._traceback = _Traceback.NONE

    @property
    def start(self) -> int | None:
        """Where the record begins that waits for lines which may still come; None without one."""
        return None if self._group is None else self._group.start

    def add(self, line: bytes, start: int) -> Group | None:
        """Takes the next line, which stands at `start`; returns the record before it if that is complete now."""
        group = self._group
        if group is not None and self._goes_on(line) and group.size + len(line) <= _MAX_JOINED_BYTES:
            group.add(line)
            return None
        finished = self.finish()
        if line.strip():
            self._group = Group(start)
            self._group.add(line)
            self._traceback = _Traceback.OPEN if line.startswith(_TRACEBACK) else _Traceback.NONE
        return finished

    def finish(self) -> Group | None:
        """Returns what waits: nothing more comes."""
        group, self._group = self._group, None
        self._traceback = _Traceback.NONE
        return group

    def _goes_on(self, line: bytes) -> bool:
        if line.startswith(_TRACEBACK):
            self._traceback = _Traceback.OPEN
            return True
        if line[:1] in (b" ", b"\t"):
            return True
        if not line.strip():
            return self._traceback is _Traceback.ENDED
        if self._traceback is _Traceback.OPEN:  # the line with the exception ends it
            self._traceback = _Traceback.ENDED
            return _EXCEPTION.match(line) is not None
        return line.startswith(_LINKS) or _JAVA_EXCEPTION.match(line) is not None


class _Traceback:
    NONE, OPEN, ENDED = range(3)


_TRACEBACK = b"Traceback (most recent call last)"
_LINKS = (b"Caused by: ", b"During handling of the above exception", b"The above exception was the direct cause")
_JAVA_EXCEPTION = re.compile(rb"((?:[a-z_]\w*\.)+[A-Z]\w*(?:Exception|Error|Throwable))(?::|\s*$)")
_EXCEPTION = re.compile(rb"([A-Za-z_][\w.]*)(?:: |:?$)")


def parse(group: Group, level: int) -> Entry:
    """The record of these lines; `level` is that of a line which does not tell its own."""
    text = group.lines[0].decode(errors="replace").rstrip()
    entry = _parse_json(text, level) or _parse_plain(text, level)
    more = [line.decode(errors="replace") for line in group.lines[1:]]
    if more:
        entry.fields.setdefault("stack_trace", "\n".join(more).rstrip())
        error = _error_type(group.lines)
        if error and "error_type" not in entry.fields:
            entry.fields["error_type"] = error
    return entry


def parse_time(value: object) -> datetime | None:
    """A moment as logs write them: ISO 8601, `21/Nov/2026:09:30:00 +0000`, or (milli-, micro-, nano-)seconds.

    A time without a zone is one of this machine. None for what is no time between 1980 and 2100.
    """
    try:
        if isinstance(value, str):
            found = _of_text(value.strip())
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found = _of_number(value)
        else:
            return None
    except (ValueError, OverflowError, OSError):
        return None
    return found if found is not None and 1980 <= found.year < 2100 else None


def level_of(value: object) -> int | None:
    """The level of a name, of pino's numbers (30 is info) or of a syslog-like abbreviation; None for what is none."""
    if isinstance(value, str):
        name = value.strip().lower()
        return _LEVEL_NAMES.get(name) or (level_of(int(name)) if name.isascii() and name.isdigit() else None)
    if isinstance(value, int) and not isinstance(value, bool) and 10 <= value <= 60:
        return value // 10
    return None


_LEVEL_NAMES: Mapping[str, int] = {
    **LEVELS,
    **dict.fromkeys(("finest", "finer", "verbose"), records_pb2.LEVEL_TRACE),
    **dict.fromkeys(("fine", "dbg", "d"), records_pb2.LEVEL_DEBUG),
    **dict.fromkeys(("information", "informational", "inf", "i", "log", "success"), records_pb2.LEVEL_INFO),
    **dict.fromkeys(("wrn", "w"), records_pb2.LEVEL_WARN),
    **dict.fromkeys(("err", "severe", "e"), records_pb2.LEVEL_ERROR),
    **dict.fromkeys(("crit", "alert", "emerg", "emergency", "panic", "f"), records_pb2.LEVEL_FATAL),
}


def _of_text(text: str) -> datetime | None:
    if _NUMBER.fullmatch(text):
        return _of_number(float(text) if "." in text else int(text))
    if _ACCESS_LOG.fullmatch(text):
        return datetime.strptime(text, "%d/%b/%Y:%H:%M:%S %z")
    if not _ISO_LIKE.match(text):
        return None
    moment = datetime.fromisoformat(_ZONE_APART.sub("", text.replace(",", ".", 1)))
    return moment.astimezone(UTC) if moment.tzinfo is None else moment


def _of_number(value: float) -> datetime | None:
    """Which unit it is tells its size: all of them are of this century."""
    for unit, most in ((1, 4_102_444_800), (1e3, 4_102_444_800_000), (1e6, 4_102_444_800_000_000), (1e9, None)):
        if most is None or value < most:
            micro = value * 1_000_000 / unit if isinstance(value, float) else int(value) * 1_000_000 // int(unit)
            return _EPOCH + timedelta(microseconds=int(micro)) if micro > 0 else None
    return None


_NUMBER = re.compile(r"[0-9]{9,20}(?:\.[0-9]+)?")
_ZONE_APART = re.compile(r" (?=Z$|[+-][0-9]{2}:?[0-9]{2}$)")
_ISO_LIKE = re.compile(r"[0-9]{4}-?[0-9]{2}-?[0-9]{2}[T ][0-9]{2}")
_ACCESS_LOG = re.compile(r"[0-9]{2}/[A-Z][a-z]{2}/[0-9]{4}:[0-9]{2}:[0-9]{2}:[0-9]{2} [+-][0-9]{4}")


def _parse_plain(text: str, level: int) -> Entry:
    fields: dict[str, Any] = {}
    head = text[:200]
    for pattern in (_LEADING_TIME, _ACCESS_TIME):
        found = pattern.search(head)
        if found and (moment := parse_time(found[1])) is not None:
            fields["timestamp"] = moment
            break
    word = _LEVEL_WORD.search(head)
    return Entry((level_of(word[1] or word[2]) if word else None) or level, text, fields)


_LEADING_TIME = re.compile(
    r"^[\[(]?([0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}"
    r"(?::[0-9]{2}(?:[.,][0-9]+)?)?(?: ?(?:Z|[+-][0-9]{2}:?[0-9]{2}))?)"
)
_ACCESS_TIME = re.compile(r"\[([0-9]{2}/[A-Z][a-z]{2}/[0-9]{4}:[0-9:]{8} [+-][0-9]{4})\]")
# Words in capitals, or in brackets or after `level=` in any case: an "error" in a sentence is no level.
_NAMES = "trace|debug|info|notice|warn|warning|error|err|severe|critical|crit|fatal|alert|emerg|panic"
_LEVEL_WORD = re.compile(rf"\b({_NAMES.upper()})\b|(?i:[\[<(]|\b(?:level|lvl|severity)=\"?)((?i:{_NAMES}))\b")


def _parse_json(text: str, level: int) -> Entry | None:
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    found = _Found({})
    # Where several could be the message, these are.
    first = {name: value.pop(name) for name in ("message", "msg") if isinstance(value.get(name), str)}
    rest = {**found.take("", first, depth=0), **found.take("", value, depth=0)}
    fields = found.fields
    message = fields.pop("message", "")
    if not message:  # nothing that is known to be the message: the whole line is
        message = text
    own = fields.pop("level", None)
    if rest:
        fields["metadata"] = rest
    return Entry(own or level, message, fields)


@dataclass(slots=True)
class _Found:
    """Gathers the fields of a record from a JSON object and those inside of it."""

    fields: dict[str, Any]

    def take(self, prefix: str, values: Mapping[str, Any], depth: int) -> dict[str, Any]:
        """Takes what has a field; returns the rest, in its places."""
        rest: dict[str, Any] = {}
        for name, value in values.items():
            known = _KEYS.get(f"{prefix}{name}".lower())
            if known is not None and known not in self.fields and (read := _READ[known](known, value)) is not None:
                self.fields[known] = read
            elif isinstance(value, dict) and depth < _NESTED_NAMES:
                inner = self.take(f"{prefix}{name}.", value, depth + 1)
                if inner or not value:
                    rest[name] = inner
            else:
                rest[name] = value
        return rest


def _text(name: str, value: object) -> str | None:
    """What is too long for its field stays in the metadata as it is."""
    return value if isinstance(value, str) and value and len(value) <= TEXT_FIELDS.get(name, MAX_LINE_BYTES) else None


def _text_or_number(name: str, value: object) -> str | None:
    return _text(name, str(value) if isinstance(value, int) and not isinstance(value, bool) else value)


def _status(name: str, value: object) -> int | None:
    number = int(value) if isinstance(value, str) and re.fullmatch("[1-9][0-9]{2}", value) else value
    return number if isinstance(number, int) and 100 <= number <= 999 else None


def _milliseconds(name: str, value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15
    return float(value) if good else None  # type: ignore[arg-type]


_NESTED_NAMES = 2  # `http.request.method` is two deep
_KEYS: Mapping[str, str] = {
    name: known
    for known, names in {
        "level": "level severity levelname log.level loglevel lvl severity_text severitytext",
        "message": "message msg body event log text",
        "timestamp": "timestamp @timestamp time ts datetime date asctime t eventtime event_time",
        "service": "service service.name service_name servicename app application",
        "service_version": "service_version service.version version app_version",
        "environment": "environment env deployment.environment deployment.environment.name service.environment",
        "host": "host hostname host.name host_name",
        "logger": "logger logger_name loggername log.logger name",
        "thread": "thread threadname thread_name thread.name process.thread.name thread_id threadid thread.id",
        "trace_id": "trace_id traceid trace.id dd.trace_id oteltraceid",
        "span_id": "span_id spanid span.id dd.span_id otelspanid",
        "request_id": "request_id requestid request.id req_id http.request.id x-request-id correlation_id",
        "user_id": "user_id userid user.id enduser.id",
        "session_id": "session_id sessionid session.id",
        "http_method": "http_method http.method http.request.method method request_method",
        "http_path": "http_path path url.path http.target request_path request_uri",
        "http_status": "http_status status status_code http.status_code http.response.status_code",
        "duration_ms": "duration_ms durationms elapsed_ms latency_ms response_time_ms responsetime",
        "error_type": "error_type error.type exception.type exc_type exception_type err.type",
        "stack_trace": (
            "stack_trace stacktrace stack error.stack_trace error.stack exception.stacktrace err.stack"
            " exc_info exc_text exception traceback"
        ),
    }.items()
    for name in names.split()
}
_READ: Mapping[str, Callable[[str, object], Any]] = {
    **dict.fromkeys(_KEYS.values(), _text),
    "level": lambda name, value: level_of(value),
    "timestamp": lambda name, value: parse_time(value),
    "thread": _text_or_number,
    "trace_id": _text_or_number,
    "span_id": _text_or_number,
    "request_id": _text_or_number,
    "user_id": _text_or_number,
    "session_id": _text_or_number,
    "http_status": _status,
    "duration_ms": _milliseconds,
}


def _error_type(lines: list[bytes]) -> str:
    """Class of the exception that the last traceback of Python ends with, or the first of Java begins with."""
    in_traceback = False
    found = b""
    for line in lines:
        if line.startswith(_TRACEBACK):
            in_traceback = True
        elif in_traceback and line[:1] not in (b" ", b"\t", b""):
            in_traceback = False
            match = _EXCEPTION.match(line)
            found = match[1] if match else found
        elif not found and (match := _JAVA_EXCEPTION.match(line)):
            found = match[1]
    return found.decode() if len(found) <= TEXT_FIELDS["error_type"] else ""
