"""Values of rows as JSON that JavaScript reads without changing them."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final

import orjson

from opsplane_server.loadtesting.datasets.model import MAX_ROWS, Rows

# JavaScript's numbers are doubles: beyond it they stand for several whole numbers each.
MAX_SAFE_INTEGER: Final = 2**53 - 1
# So many digits of a decimal number are the same in a double.
_EXACT_DIGITS: Final = 15

MAX_JSON_BYTES: Final = 64 * 1024 * 1024
MAX_FIELDS: Final = 1000
MAX_DEPTH: Final = 32

_FIELD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class RowsError(Exception):
    """Rows that cannot be used; the message is for people and says where."""


def check_fields(fields: Sequence[str], what: str) -> None:
    """RowsError unless templates can take the fields by name; `what` they are called in the message: a column."""
    for name in fields:
        if not _FIELD.fullmatch(name):
            raise RowsError(
                f"the name of {what} {name[:100]!r} can be used in no template: "
                "1 to 64 letters, digits and _, not starting with a digit"
            )
    twice = [name for name in fields if fields.count(name) > 1] if len(set(fields)) < len(fields) else []
    if twice:
        raise RowsError(f"{what} {twice[0]!r} is there twice")
    if not fields:
        raise RowsError("the rows have no fields")
    if len(fields) > MAX_FIELDS:
        raise RowsError(f"the rows have {len(fields):,} fields, at most {MAX_FIELDS:,} can be used")


def whole_number(value: int) -> int | str:
    """Itself, or its digits as text where JavaScript would change it."""
    return value if abs(value) <= MAX_SAFE_INTEGER else str(value)


def plain(value: Any) -> Any:
    """What a database gave, as JSON has it.

    Whole numbers beyond 2^53 - 1 and decimal numbers of more than 15 digits become text, times RFC 3339 in UTC, bytes
    that are no UTF-8 hexadecimal digits, and NaN and infinity null.
    """
    kind = type(value)
    if kind is str or value is None or kind is bool:  # most values; the rest is slower
        return value
    match value:
        case int():
            return whole_number(value)
        case float():
            return value if math.isfinite(value) else None
        case datetime():
            return rfc3339(value)
        case date():
            return value.isoformat()
        case Decimal():
            return _decimal(value)
        case bytes():
            return _text(value)
        case list() | tuple():
            return [plain(item) for item in value]
        case Mapping():
            return {str(plain(key)): plain(item) for key, item in value.items()}
        case _:  # UUIDs, addresses, intervals
            return str(value)


def rfc3339(moment: datetime) -> str:
    """A time in UTC, with as many digits of its second as it has; one without a zone is in UTC."""
    utc = moment.astimezone(UTC) if moment.tzinfo else moment
    whole = utc.strftime("%Y-%m-%dT%H:%M:%S") if utc.year >= 1000 else utc.replace(tzinfo=None).isoformat()[:19]
    return f"{whole}{f'.{utc.microsecond:06}'.rstrip('0') if utc.microsecond else ''}Z"


def _decimal(value: Decimal) -> float | int | str | None:
    if not value.is_finite():
        return None
    if len(value.normalize().as_tuple().digits) > _EXACT_DIGITS or abs(value.adjusted()) > _EXACT_DIGITS:
        return format(value, "f")
    return int(value) if value == value.to_integral_value() else float(value)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()


class Writer:
    """Collects rows as lines of JSON, within bounds."""

    def __init__(self, fields: Sequence[str]) -> None:
        self._fields = tuple(fields)
        self._count = 0
        # Not a list: orjson keeps about 1 KiB for every line, however short.
        self._lines = bytearray()

    def add(self, values: Iterable[Any]) -> None:
        """A row, of as many values as there are fields. Raises RowsError."""
        if self._count >= MAX_ROWS:
            raise RowsError(f"there are more than {MAX_ROWS:,} rows")
        try:
            line = orjson.dumps(dict(zip(self._fields, values, strict=True)))
        except orjson.JSONEncodeError as error:
            raise RowsError(f"row {self._count + 1} cannot be written as JSON: {error}") from None
        if self._count:
            self._lines += b"\n"
        self._lines += line
        self._count += 1
        if len(self._lines) > MAX_JSON_BYTES:
            raise RowsError(f"the rows come to more than {MAX_JSON_BYTES >> 20} MiB of JSON")

    def rows(self) -> Rows:
        """All of them. Raises RowsError when there is none."""
        if not self._count:
            raise RowsError("there are no rows")
        lines = bytes(self._lines)
        return Rows(self._fields, self._count, hashlib.sha256(lines).hexdigest(), lines)
