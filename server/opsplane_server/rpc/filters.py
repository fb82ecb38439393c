"""The `filter` of List methods: a small part of AIP-160, `field OP value` joined by AND.

    state = RUNNING AND create_time >= "2026-01-01T00:00:00Z" AND display_name : "check out"

Parsing yields typed conditions; `opsplane_server.storage.filters` makes SQL of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from opsplane_server.errors import InvalidArgument

_MAX_LENGTH = 2048  # as the protos say

Value = str | int | float | bool | datetime


class FieldType(Enum):
    """What a field of a filter holds."""

    STRING = "a string"
    INTEGER = "a whole number"
    NUMBER = "a number"
    BOOLEAN = "true or false"
    TIME = "a time such as 2026-01-31T08:00:00Z"


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison: `op` is one of = != < <= > >= and : (contains); times are in UTC."""

    field: str
    op: str
    value: Value


_EQUALITY = ("=", "!=")
_ORDER = (*_EQUALITY, "<", "<=", ">", ">=")
_TEXT = (*_ORDER, ":")

_TOKEN = re.compile(
    r"""
      (?P<op>!=|<=|>=|=|<|>|:)
    | "(?P<quoted>(?:[^"\\]|\\["\\])*)"
    | (?P<word>[^\s"()!=<>:\\]+)
    """,
    re.VERBOSE,
)
_BARE_TIME = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|[+-]\d\d:\d\d)?")
_SPACE = re.compile(r"\s*")
_ESCAPE = re.compile(r"\\(.)")
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")


def parse(text: str, fields: Mapping[str, FieldType | Collection[str]]) -> list[Condition]:
    """Parse a filter over the given fields; a field is of a type, or one of a few names (an enum).

    Blank text gives no condition. Raises InvalidArgument on `filter`, which says where and why.
    """
    if len(text) > _MAX_LENGTH:
        raise InvalidArgument.of("filter", f"is longer than {_MAX_LENGTH} characters")
    return _Parser(text, fields).conditions()


class _Parser:
    def __init__(self, text: str, fields: Mapping[str, FieldType | Collection[str]]) -> None:
        self._text = text
        self._fields = fields
        self._at = 0
        self._skip_space()

    def conditions(self) -> list[Condition]:
        found: list[Condition] = []
        while self._at < len(self._text):
            if found:
                self._and()
            found.append(self._condition())
        return found

    def _condition(self) -> Condition:
        start = self._at
        field = self._next("word", "a field")
        kind = self._fields.get(field)
        if kind is None:
            raise self._fault(start, f"no field {field!r}: choose of {', '.join(sorted(self._fields))}")
        start = self._at
        op = self._next("op", "one of = != < <= > >= :")
        allowed = _operators(kind)
        if op not in allowed:
            raise self._fault(start, f"{op!r} does not fit {field}: choose of {' '.join(allowed)}")
        start = self._at
        value = self._value(kind)
        try:
            return Condition(field, op, _typed(value, kind))
        except ValueError as error:
            raise self._fault(start, str(error)) from None

    def _value(self, kind: FieldType | Collection[str]) -> str:
        # A time holds colons, which elsewhere are operators; people write times without quotes.
        if kind is FieldType.TIME and (bare := _BARE_TIME.match(self._text, self._at)):
            self._advance(bare.end())
            return bare.group()
        token = _TOKEN.match(self._text, self._at)
        if token is None or token.lastgroup == "op":
            raise self._fault(self._at, "expected a value, in double quotes if it holds special characters")
        self._advance(token.end())
        quoted = token["quoted"]
        return token["word"] if quoted is None else _ESCAPE.sub(r"\1", quoted)

    def _and(self) -> None:
        start = self._at
        if self._next("word", "AND") != "AND":
            raise self._fault(start, "expected AND: nothing else joins comparisons")

    def _next(self, group: str, wanted: str) -> str:
        token = _TOKEN.match(self._text, self._at)
        if token is None or token.lastgroup != group:
            raise self._fault(self._at, f"expected {wanted}")
        self._advance(token.end())
        return token.group()

    def _advance(self, to: int) -> None:
        self._at = to
        self._skip_space()

    def _skip_space(self) -> None:
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at

    def _fault(self, at: int, what: str) -> InvalidArgument:
        return InvalidArgument.of("filter", f"at position {at + 1}: {what}", reason="FILTER_INVALID")


def _operators(kind: FieldType | Collection[str]) -> tuple[str, ...]:
    if kind is FieldType.STRING:
        return _TEXT
    if isinstance(kind, FieldType) and kind is not FieldType.BOOLEAN:
        return _ORDER
    return _EQUALITY


def _typed(value: str, kind: FieldType | Collection[str]) -> Value:
    """Return the value as its field holds it; ValueError says what is wrong."""
    if not isinstance(kind, FieldType):
        if value not in kind:
            raise ValueError(f"{value!r} is none of {', '.join(sorted(kind))}")
        return value
    if kind is FieldType.STRING:
        return _string(value)
    if kind is FieldType.INTEGER and _INTEGER.fullmatch(value) and -(2**63) <= int(value) < 2**63:
        return int(value)
    if kind is FieldType.NUMBER and _NUMBER.fullmatch(value) and math.isfinite(float(value)):
        return float(value)
    if kind is FieldType.BOOLEAN and value in ("true", "false"):
        return value == "true"
    if kind is FieldType.TIME and (time := _time(value)) is not None:
        return time
    raise ValueError(f"{value!r} is not {kind.value}")


def _string(value: str) -> str:
    if "\0" in value:
        raise ValueError("a string can not hold NUL")
    return value


def _time(value: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(value)
        return None if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
