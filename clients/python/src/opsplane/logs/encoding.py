"""From what an application logs to bytes: a LogBatch with the one record, so that joining them makes a batch.

Nothing that an application logs may cost it the record. Texts are cut to the limits of LogRecord, what is not Unicode
or holds NUL is replaced, and metadata becomes JSON that the server takes. Encoding happens in the thread that logs:
values may change afterwards, and the bytes are what memory is bounded by. It takes some microseconds.
"""

from __future__ import annotations

import json
import math
import re
import time
import traceback
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from opsplane.logingest.v1 import records_pb2

MAX_TEXT_BYTES = 1024 * 1024
MAX_JSON_BYTES = 256 * 1024
MAX_VALUE_BYTES = 16 * 1024
_MAX_KEYS = 128
_MAX_KEY_CHARS = 255
_MAX_DEPTH = 60  # the server takes 64
_MAX_NUMBER = 10**300  # PostgreSQL holds more, a double does not
_CUT = "...[cut]"
# Numbers of Python are unbounded, those of PostgreSQL are not. Digits in a text only cost the careful way.
_LONG_NUMBER = re.compile(r"\d{300}")

# Fields of LogRecord that are short texts, with their limits in characters.
TEXT_FIELDS = {
    "service": 100,
    "service_version": 100,
    "environment": 100,
    "host": 255,
    "logger": 255,
    "thread": 255,
    "trace_id": 64,
    "span_id": 64,
    "request_id": 255,
    "user_id": 255,
    "session_id": 255,
    "http_method": 20,
    "http_path": 8192,
    "error_type": 255,
}
LEVELS = {
    "trace": records_pb2.LEVEL_TRACE,
    "debug": records_pb2.LEVEL_DEBUG,
    "info": records_pb2.LEVEL_INFO,
    "notice": records_pb2.LEVEL_INFO,
    "warn": records_pb2.LEVEL_WARN,
    "warning": records_pb2.LEVEL_WARN,
    "error": records_pb2.LEVEL_ERROR,
    "exception": records_pb2.LEVEL_ERROR,
    "fatal": records_pb2.LEVEL_FATAL,
    "critical": records_pb2.LEVEL_FATAL,
}


class Encoder:
    """Makes records. The defaults are for fields that a record leaves empty."""

    def __init__(self, service: str, environment: str, host: str, service_version: str) -> None:
        given = {"service": service, "environment": environment, "host": host, "service_version": service_version}
        self._defaults = {name: text(value, TEXT_FIELDS[name]) for name, value in given.items() if value}

    def record(self, record: records_pb2.LogRecord) -> bytes:
        """Encodes a record as it is, with what it leaves empty filled in. The given one is not changed."""
        batch = records_pb2.LogBatch(records=[record])
        copy = batch.records[0]
        for name, value in self._defaults.items():
            if not getattr(copy, name):
                setattr(copy, name, value)
        if not copy.HasField("timestamp"):
            copy.timestamp.FromNanoseconds(time.time_ns())
        return batch.SerializeToString()

    def values(self, level: str | int, message: object, fields: Mapping[str, Any]) -> bytes:
        """Encodes values; see `Shipper.log`."""
        batch = records_pb2.LogBatch()
        nanoseconds, known, extra = self._sort(fields)
        known["level"] = level_of(level)
        known["message"] = long_text(message) or "(no message)"
        try:
            record = batch.records.add(**known)
        except (ValueError, TypeError):  # a text with lone surrogates, mostly
            batch.Clear()
            record = batch.records.add(**{name: _clean(value) for name, value in known.items()})
        timestamp = record.timestamp
        timestamp.seconds, timestamp.nanos = divmod(nanoseconds, 1_000_000_000)
        if extra:
            _set_metadata(record, extra)
        return batch.SerializeToString()

    def _sort(self, fields: Mapping[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """Tells apart time, fields of the record, and the rest, which is metadata."""
        nanoseconds = None
        known: dict[str, Any] = dict(self._defaults)
        extra: dict[str, Any] = {}
        for name, value in fields.items():
            if value is None:
                continue
            if (limit := TEXT_FIELDS.get(name)) is not None:
                plain = type(value) is str and len(value) <= limit and "\0" not in value
                known[name] = value if plain else text(value, limit)
            elif name == "error" and isinstance(value, BaseException):
                known.setdefault("error_type", error_type(value))
                known.setdefault("stack_trace", long_text(stack_trace(value)))
            elif name == "stack_trace":
                known[name] = long_text(value)
            elif name == "http_status" and _is_number(value) and 100 <= value <= 999:
                known[name] = int(value)
            elif name == "duration_ms" and _is_number(value) and 0 <= value < _MAX_NUMBER:
                known[name] = float(value)
            elif name == "timestamp" and (at := _nanoseconds(value)) is not None:
                nanoseconds = at
            elif name == "metadata" and isinstance(value, Mapping):
                extra.update(value)
            else:
                extra[name] = value
        return time.time_ns() if nanoseconds is None else nanoseconds, known, extra


def level_of(level: str | int) -> int:
    """The level of a name, or of a number of `Level`; what is none of them is INFO, so that the record is kept."""
    if isinstance(level, str):
        return LEVELS.get(level.lower(), records_pb2.LEVEL_INFO)
    return level if 1 <= level <= records_pb2.LEVEL_FATAL else records_pb2.LEVEL_INFO


def error_type(error: BaseException) -> str:
    """Class of an exception with its module, which is left out for those built in."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return text(name, TEXT_FIELDS["error_type"])


def stack_trace(error: BaseException) -> str:
    """The traceback as Python prints it, with causes."""
    return "".join(traceback.format_exception(error))


def text(value: object, limit: int) -> str:
    """A text of up to `limit` characters without NUL."""
    made = value if type(value) is str else _str(value)
    if "\0" in made:
        made = made.replace("\0", "\ufffd")
    return made if len(made) <= limit else made[: max(limit - len(_CUT), 0)] + _CUT[:limit]


def long_text(value: object, limit: int = MAX_TEXT_BYTES) -> str:
    """A text of up to `limit` bytes without NUL. A longer one loses its middle: both ends tell the most."""
    made = value if type(value) is str else _str(value)
    if "\0" in made:
        made = made.replace("\0", "\ufffd")
    if len(made) <= limit // 4:  # a character has at most four bytes
        return made
    data = made.encode(errors="replace")
    if len(data) <= limit:
        return made
    half = (limit - len(_CUT)) // 2
    return data[:half].decode(errors="ignore") + _CUT + data[-half:].decode(errors="ignore")


def _set_metadata(record: records_pb2.LogRecord, extra: Mapping[Any, Any]) -> None:
    """Texts alone go to `metadata`; with numbers, lists or objects it is `metadata_json`."""
    if _is_flat(extra):
        try:
            metadata = record.metadata
            for key, value in extra.items():  # twice as fast as `update`
                metadata[key] = value
        except ValueError:  # a lone surrogate
            record.metadata.clear()
        else:
            return
    record.metadata_json = to_json(extra)


def _is_flat(extra: Mapping[Any, Any]) -> bool:
    for key, value in extra.items():
        if type(value) is not str or len(value) > MAX_VALUE_BYTES // 4 or "\0" in value:
            return False
        if type(key) is not str or not 0 < len(key) <= _MAX_KEY_CHARS or "\0" in key:
            return False
    return len(extra) <= _MAX_KEYS


def to_json(extra: Mapping[Any, Any]) -> str:
    """JSON of an object that the server takes, whatever is in it; what does not fit is cut, and it says so."""
    try:
        made = _JSON.encode(extra)
        harmless = (
            len(made) <= MAX_JSON_BYTES // 4
            and "\\u0000" not in made
            and made.count("[") + made.count("{") < _MAX_DEPTH
            and (made.isascii() or made.encode())
        )
        if harmless and not _LONG_NUMBER.search(made):
            return made
    except (ValueError, TypeError, RecursionError):  # NaN, keys that are no texts, circles, lone surrogates
        pass
    return _careful_json(extra)


_JSON = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=lambda value: _plain(value)
)


def _careful_json(extra: Mapping[Any, Any]) -> str:
    kept: dict[str, Any] = {}
    size = 2
    left_out = 0
    for key, value in _items(extra):
        name = _clean(text(key, _MAX_KEY_CHARS))
        made = json.dumps({name: _harmless(value, _MAX_DEPTH)}, ensure_ascii=False)
        cost = len(made.encode()) + 2
        if size + cost > MAX_JSON_BYTES - 100:
            left_out += 1
            continue
        size += cost
        kept[name] = json.loads(made)[name]
    if left_out:
        kept["opsplane.left_out"] = left_out
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":"))


def _harmless(value: Any, depth: int) -> Any:
    """The value without anything that PostgreSQL's jsonb does not hold."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _clean(long_text(value, MAX_VALUE_BYTES))
    if isinstance(value, int):
        return int(value) if abs(value) < _MAX_NUMBER else hex(value)[:MAX_VALUE_BYTES]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if depth > 1 and isinstance(value, Mapping):
        return {_clean(text(key, _MAX_KEY_CHARS)): _harmless(item, depth - 1) for key, item in _items(value)}
    if depth > 1 and isinstance(value, (list, tuple, set, frozenset)):
        return [_harmless(item, depth - 1) for item in list(value)]
    return _clean(long_text(_str(_plain(value)), MAX_VALUE_BYTES))


def _items(mapping: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
    return list(mapping.items())


def _plain(value: Any) -> Any:
    """What stands for a value that JSON does not know."""
    if isinstance(value, (set, frozenset)):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode(errors="replace")
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return _str(value)


def _str(value: object) -> str:
    try:
        return str(value)
    except Exception:  # an object that cannot be shown must not cost the record
        return f"<{type(value).__qualname__}>"


def _clean(value: Any) -> Any:
    """A text without NUL and lone surrogates; what is no text stays."""
    if not isinstance(value, str):
        return value
    return value.replace("\0", "\ufffd").encode(errors="replace").decode()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _nanoseconds(value: object) -> int | None:
    """Nanoseconds since 1970 of a datetime, seconds or an ISO 8601 text; None for what is none of them."""
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            # Whole seconds apart from the microseconds, which a float would not hold exactly.
            return int(value.replace(microsecond=0).timestamp()) * 1_000_000_000 + value.microsecond * 1000
        if _is_number(value):
            return int(value * 1_000_000_000)  # type: ignore[operator]
    except (ValueError, OverflowError, OSError):
        pass
    return None
