"""An OTLP log record becomes a record of LogIngest.

| OTLP | here |
|---|---|
| `severity_number` 1-24, else `severity_text`, else nothing | `level`; INFO where neither says one |
| `body`: a string, else its JSON; without a body `event_name`, else `-` | `message` |
| `time_unix_nano`, else `observed_time_unix_nano`, else the arrival | `timestamp` |
| scope name | `logger` |
| attributes of the resource and of the record that conventions name | the fields in `_RESOURCE` and `_ATTRIBUTES` |
| all other attributes, `event_name` (`event.name`), unusual texts of severity (`severity_text`) | metadata |

What does not fit in its field (a status that is no number, a host name that is too long) stays in the metadata under
its own name, so nothing is lost of a record that is stored. Attributes of the record go before those of the scope, and
those before the resource's; one that is overruled stays as `resource.NAME`. Numbers, lists and maps are kept as JSON,
bytes as base64, and what JSON has no number for as text (`NaN`, `Infinity`). Left out are only flags, URLs of schemas,
and the time of observation where the record has its own.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opsplane.logingest.v1 import records_pb2

from opsplane_server.logingest.rules import STATUS, TEXTS

UNKNOWN_SERVICE: Final = "unknown_service"
"""Service of a resource without a name; what OpenTelemetry's own libraries write too."""

# A field is given by the first of its attributes that a resource has.
_RESOURCE: Final = (
    ("service.name", "service"),
    ("service.version", "service_version"),
    ("deployment.environment.name", "environment"),
    ("deployment.environment", "environment"),
    ("host.name", "host"),
    ("k8s.pod.name", "host"),
)
_MAX_CHARACTERS: Final = {name: rule.safe_bytes for name, rule in TEXTS.items()}

_SEVERITIES: Final = {
    name: level
    for level, names in (
        (records_pb2.LEVEL_TRACE, "TRACE FINEST FINER"),
        (records_pb2.LEVEL_DEBUG, "DEBUG FINE VERBOSE"),
        (records_pb2.LEVEL_INFO, "INFO INFORMATION INFORMATIONAL NOTICE"),
        (records_pb2.LEVEL_WARN, "WARN WARNING"),
        (records_pb2.LEVEL_ERROR, "ERROR ERR SEVERE"),
        (records_pb2.LEVEL_FATAL, "FATAL CRITICAL CRIT ALERT EMERGENCY EMERG PANIC"),
    )
    for name in names.split()
}
_SEVERITIES_PER_LEVEL: Final = 4
_MAX_SEVERITY: Final = 24


@dataclass(frozen=True, slots=True)
class Source:
    """What the records of one scope of one resource have in common."""

    fields: Mapping[str, str]
    metadata: Mapping[str, Any]


def source_of(resource: Resource, scope: InstrumentationScope) -> Source:
    """Reads a resource and a scope of it, once for all their records."""
    given = _attributes(resource.attributes)
    fields: dict[str, str] = {}
    for name, field in _RESOURCE:
        value = given.get(name)
        # A service that is too long is left to the rules, which reject the record: it has to have one.
        if isinstance(value, str) and field not in fields and (field == "service" or _fits(field, value)):
            fields[field] = value
            del given[name]
    fields["service"] = fields.get("service") or UNKNOWN_SERVICE
    own = _attributes(scope.attributes)
    if _fits("logger", scope.name):
        fields["logger"] = scope.name
    else:
        own["otel.scope.name"] = scope.name
    if scope.version:
        own["otel.scope.version"] = scope.version
    for message, prefix in ((scope, "otel.scope."), (resource, "resource.")):
        if message.dropped_attributes_count:
            own[f"{prefix}dropped_attributes_count"] = message.dropped_attributes_count
    return Source(fields, _joined(given, own))


def convert(record: LogRecord, source: Source) -> records_pb2.LogRecord:
    """The record as LogIngest has it. It may break LogIngest's rules, which are checked where it is stored."""
    fields: dict[str, Any] = dict(source.fields)
    metadata: dict[str, Any] = {}
    for attribute in record.attributes:
        name, value = attribute.key, attribute.value
        kind = value.WhichOneof("value")
        content = value.string_value if kind == "string_value" else _READ[kind](value)
        read = _ATTRIBUTES.get(name)
        if read is not None:
            field, fitting = read
            if field not in fields and (fit := fitting(field, content)) is not None:
                fields[field] = fit
                continue
        metadata[name] = content
    if "thread" not in fields and (thread := _integer_or_text("thread", metadata.get("thread.id"))) is not None:
        fields["thread"] = thread
        del metadata["thread.id"]

    number, severity = record.severity_number, record.severity_text
    named = _SEVERITIES.get(severity.upper()) if severity else None
    if 1 <= number <= _MAX_SEVERITY:
        level = (number - 1) // _SEVERITIES_PER_LEVEL + records_pb2.LEVEL_TRACE
    else:
        level = named or records_pb2.LEVEL_INFO
    fields["level"] = level
    if severity and named != level:
        metadata.setdefault("severity_text", severity)
    event = record.event_name
    if event:
        metadata.setdefault("event.name", event)
    if record.dropped_attributes_count:
        metadata.setdefault("dropped_attributes_count", record.dropped_attributes_count)
    body = _READ[record.body.WhichOneof("value")](record.body)
    fields["message"] = (body if isinstance(body, str) else "" if body is None else _to_json(body)) or event or "-"
    # Ids of zeros mean none.
    if record.trace_id.strip(b"\0"):
        fields["trace_id"] = record.trace_id.hex()
    if record.span_id.strip(b"\0"):
        fields["span_id"] = record.span_id.hex()
    if source.metadata:
        metadata = _joined(source.metadata, metadata)
    if metadata:
        fields["metadata_json"] = _to_json(metadata)

    result = records_pb2.LogRecord(**fields)
    time = time_of(record)
    if time:
        stamp = result.timestamp
        stamp.seconds, stamp.nanos = divmod(time, 1_000_000_000)
    return result


def time_of(record: LogRecord) -> int:
    """When it happened, or else was seen first, in nanoseconds since 1970; 0 where neither is known."""
    return record.time_unix_nano or record.observed_time_unix_nano


def _to_json(value: object) -> str:
    return orjson.dumps(value).decode()


def _fits(field: str, text: str) -> bool:
    return len(text) <= _MAX_CHARACTERS[field]


def _text(field: str, value: object) -> str | None:
    return value if isinstance(value, str) and len(value) <= _MAX_CHARACTERS[field] else None


def _integer_or_text(field: str, value: object) -> str | None:
    return _text(field, str(value) if type(value) is int else value)


def _status(field: str, value: object) -> int | None:
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdecimal():
        value = int(value)
    return value if type(value) is int and value in STATUS else None


def _joined(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Both in one; what `upper` overrules goes under another name, if nothing has that name yet."""
    joined = dict(upper)
    for name, value in lower.items():
        joined.setdefault(name if name not in upper else f"resource.{name}", value)
    return joined


def _attributes(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    """Attributes as JSON has them. A name that stands twice, which OTLP forbids, counts with its last value."""
    return {attribute.key: _READ[attribute.value.WhichOneof("value")](attribute.value) for attribute in attributes}


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


# Names of today, and those of older semantic conventions that many still send.
_ATTRIBUTES: Final[Mapping[str, tuple[str, Callable[[str, object], str | int | None]]]] = {
    "thread.name": ("thread", _text),
    "http.request.method": ("http_method", _text),
    "http.method": ("http_method", _text),
    "url.path": ("http_path", _text),
    "http.target": ("http_path", _text),
    "http.response.status_code": ("http_status", _status),
    "http.status_code": ("http_status", _status),
    "exception.type": ("error_type", _text),
    "exception.stacktrace": ("stack_trace", _text),
    "user.id": ("user_id", _text),
    "enduser.id": ("user_id", _text),
    "session.id": ("session_id", _text),
}

_READ: Final[Mapping[str | None, Callable[[AnyValue], Any]]] = {
    None: lambda value: None,
    "string_value": lambda value: value.string_value,
    "bool_value": lambda value: value.bool_value,
    "int_value": lambda value: value.int_value,
    "double_value": lambda value: _number(value.double_value),
    "array_value": lambda value: [_READ[each.WhichOneof("value")](each) for each in value.array_value.values],
    "kvlist_value": lambda value: _attributes(value.kvlist_value.values),
    "bytes_value": lambda value: b64encode(value.bytes_value).decode(),
    # An index into a table that only profiles have; there is no text to it here.
    "string_value_strindex": lambda value: value.string_value_strindex,
}
