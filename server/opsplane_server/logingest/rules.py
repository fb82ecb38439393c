"""The rules of a log record, one record at a time: what the API's rules say, and why a record is not stored.

The limits are read from the protos, where every client sees them. `suspects.py` finds in a whole group the few
records that these rules must look at.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import orjson
from buf.validate import validate_pb2
from google.protobuf.descriptor import FieldDescriptor
from opsplane.logingest.v1 import records_pb2

Reason = records_pb2.RejectedRecord

MAX_NANOS: Final = 999_999_999
_RECORD: Final = records_pb2.LogRecord.DESCRIPTOR
_MAX_DEPTH: Final = 64
# What can not be held by PostgreSQL's numeric has at least one of these in it.
_LONG_NUMBER: Final = re.compile(rb"[0-9.]{1000}|[eE]-[0-9]{4}")
_MAX_FRACTION_DIGITS: Final = 16383


@dataclass(frozen=True, slots=True)
class TextRule:
    """Limits of a text: least characters, most characters, most bytes; 0 for none."""

    min_length: int = 0
    max_length: int = 0
    max_bytes: int = 0

    @property
    def safe_bytes(self) -> int:
        """No text of so many bytes is too long: a character has at least one byte."""
        return self.max_bytes or self.max_length


@dataclass(frozen=True, slots=True)
class Violation:
    """The rule that a record breaks."""

    field: str
    reason: Reason.Reason.ValueType
    message: str


@dataclass(frozen=True, slots=True)
class Window:
    """The times that are accepted now, seconds since 1970: `start` included, `end` not."""

    start: int
    end: int


def _rules(field: FieldDescriptor) -> validate_pb2.FieldRules:
    rules: validate_pb2.FieldRules = field.GetOptions().Extensions[validate_pb2.field]
    return rules


def _text_rule(rules: validate_pb2.StringRules) -> TextRule:
    return TextRule(rules.min_len, rules.max_len, rules.max_bytes)


_MAP: Final = _rules(_RECORD.fields_by_name["metadata"]).map
TEXTS: Final[Mapping[str, TextRule]] = {
    field.name: _text_rule(_rules(field).string)
    for field in _RECORD.fields
    if field.type == FieldDescriptor.TYPE_STRING
}
"""The texts of a record, in the order of their numbers."""
KEY: Final = _text_rule(_MAP.keys.string)
VALUE: Final = _text_rule(_MAP.values.string)
MAX_PAIRS: Final = _MAP.max_pairs
LEVELS: Final = frozenset(value.number for value in records_pb2.Level.DESCRIPTOR.values if value.number)
_STATUS: Final = _rules(_RECORD.fields_by_name["http_status"]).int32
STATUS: Final = range(_STATUS.gte, _STATUS.lte + 1)
END_OF_TIME: Final = _rules(_RECORD.fields_by_name["timestamp"]).timestamp.lt.seconds


def violation(record: Mapping[str, Any], window: Window) -> Violation | None:
    """The first field, by number, that breaks a rule; None when the record keeps them all.

    Texts are bytes, `timestamp` a mapping of seconds and nanos or None, `metadata` a sequence of mappings of key and
    value.
    """
    for name, check in _CHECKS:
        found = check(record, window)
        if found is not None:
            return found if found.field else Violation(name, found.reason, found.message)
    return None


def _timestamp(record: Mapping[str, Any], window: Window) -> Violation | None:
    time = record["timestamp"]
    if time is None:
        return None
    seconds, nanos = time["seconds"], time["nanos"]
    if not 0 <= nanos <= MAX_NANOS:
        return Violation("", Reason.REASON_OUT_OF_RANGE, "nanos are 0 to 999,999,999")
    if not 0 <= seconds < END_OF_TIME:
        return Violation("", Reason.REASON_OUT_OF_RANGE, "is from 1970 to before 2100")
    if seconds < window.start:
        return Violation("", Reason.REASON_TIME_NOT_ACCEPTED, "is older than the records that are kept")
    if seconds >= window.end:
        return Violation("", Reason.REASON_TIME_NOT_ACCEPTED, "is too far in the future by the server's clock")
    return None


def _level(record: Mapping[str, Any], window: Window) -> Violation | None:
    level = record["level"]
    if level == 0:
        return Violation("", Reason.REASON_REQUIRED, "is needed")
    return None if level in LEVELS else Violation("", Reason.REASON_UNKNOWN_VALUE, "is none of the levels")


def _text(value: bytes, rule: TextRule) -> Violation | None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return Violation("", Reason.REASON_INVALID_UTF8, "is not UTF-8")
    if len(text) < rule.min_length:
        return Violation("", Reason.REASON_REQUIRED, "is needed")
    if rule.max_length and len(text) > rule.max_length:
        return Violation("", Reason.REASON_TOO_LONG, f"has up to {rule.max_length} characters")
    if rule.max_bytes and len(value) > rule.max_bytes:
        return Violation("", Reason.REASON_TOO_LONG, f"has up to {rule.max_bytes} bytes")
    if "\0" in text:
        return Violation("", Reason.REASON_NUL_CHARACTER, "holds the character NUL")
    return None


def _http_status(record: Mapping[str, Any], window: Window) -> Violation | None:
    status = record["http_status"]
    if status == 0 or status in STATUS:
        return None
    return Violation("", Reason.REASON_OUT_OF_RANGE, f"is {STATUS.start} to {STATUS.stop - 1}, or 0 for none")


def _duration_ms(record: Mapping[str, Any], window: Window) -> Violation | None:
    duration = record["duration_ms"]
    if duration is None or (math.isfinite(duration) and duration >= 0):
        return None
    return Violation("", Reason.REASON_OUT_OF_RANGE, "is 0 or more and finite")


def _metadata(record: Mapping[str, Any], window: Window) -> Violation | None:
    # A key that stands twice counts once, with its last value, as in every reader of maps.
    pairs = {pair["key"]: pair["value"] for pair in record["metadata"]}
    if len(pairs) > MAX_PAIRS:
        return Violation("", Reason.REASON_TOO_MANY, f"has up to {MAX_PAIRS} keys")
    for key, value in pairs.items():
        wrong = _text(key, KEY)
        if wrong is not None:
            return Violation("", wrong.reason, f"a key {wrong.message}")
        wrong = _text(value, VALUE)
        if wrong is not None:
            return Violation(f'metadata["{key.decode()}"]', wrong.reason, wrong.message)
    return None


def _metadata_json(record: Mapping[str, Any], window: Window) -> Violation | None:
    text: bytes = record["metadata_json"]
    if not text:
        return None
    wrong = _text(text, TEXTS["metadata_json"])
    if wrong is not None:
        return wrong
    if record["metadata"]:
        return Violation("", Reason.REASON_CONFLICT, "give metadata or metadata_json, not both")
    wrong_json = json_object_fault(text)
    return None if wrong_json is None else Violation("", Reason.REASON_INVALID_JSON, wrong_json)


def json_object_fault(text: bytes) -> str | None:
    """Why PostgreSQL's jsonb can not hold this text as an object; None when it can."""
    try:
        value = orjson.loads(text)  # refuses lone surrogates, NaN, and numbers that no double can hold
    except ValueError:
        return "is not JSON, or has a lone surrogate or a number beyond the range of doubles"
    if not isinstance(value, dict):
        return "is not a JSON object"
    if text.count(b"{") + text.count(b"[") > _MAX_DEPTH and _deeper(value, _MAX_DEPTH):
        return f"nests deeper than {_MAX_DEPTH}"
    if b"\\u0000" in text and _has_nul(value):
        return "holds the character NUL"
    if _LONG_NUMBER.search(text) is not None and _has_unstorable_number(text):
        return "has a number with too many digits"
    return None


def _children(value: object) -> Sequence[object]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list) else ()


def _deeper(value: object, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [child for one in layer for child in _children(one)]
    return any(isinstance(one, (dict, list)) for one in layer)


def _has_nul(value: object) -> bool:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str) and "\0" in one:
            return True
        waiting.extend(_children(one))
    return False


def _has_unstorable_number(text: bytes) -> bool:
    longest = 0

    def measure(number: str) -> float:
        nonlocal longest
        exponent = Decimal(number).as_tuple().exponent
        assert isinstance(exponent, int)
        longest = max(longest, -exponent)
        return 0.0

    json.loads(text, parse_float=measure, parse_int=lambda _: 0)
    return longest > _MAX_FRACTION_DIGITS


_Check = Callable[[Mapping[str, Any], Window], Violation | None]


def _text_check(name: str) -> _Check:
    rule = TEXTS[name]
    return lambda record, window: _text(record[name], rule)


_SPECIAL: Final[Mapping[str, _Check]] = {
    "timestamp": _timestamp,
    "level": _level,
    "http_status": _http_status,
    "duration_ms": _duration_ms,
    "metadata": _metadata,
    "metadata_json": _metadata_json,
}
_CHECKS: Final = [
    (field.name, _SPECIAL.get(field.name) or _text_check(field.name))
    for field in sorted(_RECORD.fields, key=lambda field: field.number)
]
