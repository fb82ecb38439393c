"""Templates as JavaScript: what fills their holes as expressions, written as the place where they stand needs it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence as Parts
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from itertools import accumulate, groupby
from typing import assert_never
from urllib.parse import quote

from pydantic import JsonValue

from opsplane_server.loadtesting.k6.literals import Raw, literal, string
from opsplane_server.loadtesting.users.holes import (
    Captured,
    Filling,
    Now,
    OneOf,
    Part,
    PoolField,
    RowField,
    UserField,
    Value,
    json_text,
)
from opsplane_server.loadtesting.users.model import Hex, IntegerRange, Made, Sequence, TimestampRange
from opsplane_server.loadtesting.users.templates import in_strings

_PROPERTY = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*\Z")
_PLAIN = re.compile(r"[A-Za-z0-9_.-]*\Z")
_MILLISECOND = timedelta(milliseconds=1)
_LINE = 110


class Place(Enum):
    """Where a value stands; the values are the functions of the runtime that write it so."""

    TEXT = "text"
    JSON = "json"
    JSON_STRING = "json_text"
    URL = "url"
    HEADER = "header"


@dataclass(slots=True)
class Values:
    """Writes values as expressions for one script; collects the constants that they need.

    `plain_ids` are those ids of the class at hand which nothing has to escape.
    """

    constants: dict[str, str] = field(default_factory=dict)
    plain_ids: frozenset[UserField] = frozenset()
    _sequences: int = 0

    def concatenation(self, parts: Parts[Part], place: Place, indent: str = "") -> str:
        """The expression of a whole text, a string. In JSON, each value is written as where it stands needs it.

        It is broken into lines where it is long; `indent` is that of the line it starts on.
        """
        places = [place] * len(parts)
        if place is Place.JSON:
            places = [Place.JSON_STRING if inside else Place.JSON for inside in in_strings(parts)]
        pieces: list[str | Raw] = []
        for part, where in zip(parts, places, strict=True):
            if isinstance(part, str):
                pieces.append(part)
            elif where is Place.JSON and self._is_plain(part.value):
                pieces += ['"', Raw(self.expression(part.value, where)), '"']
            else:
                pieces.append(Raw(self.expression(part.value, where)))
        if not parts or _is_number(parts[0]):
            pieces.insert(0, "")
        return _joined(pieces, indent)

    def expression(self, value: Value, place: Place) -> str:
        """The expression of one value; `rows_of` says which rows must have been drawn."""
        match value:
            case PoolField(pool, name, None):
                return _written(f"{row_name(pool)}{_member(name)}", place)
            case PoolField(pool, name, low, high):
                write = f"(row) => {_written(f'row{_member(name)}', place)}"
                return f"several(user, pools{_member(pool)}, {low}, {high}, {write})"
            case Captured(name):
                return _written(f"user.captured{_member(name)}", place)
            case UserField.NUMBER:
                return "user.number"
            case UserField() if value in self.plain_ids:
                return f"user.{value}"
            case UserField():
                return _written(f"user.{value}", place)
            case OneOf():
                return self._one_of(value, place)
            case Made.UUID:
                return "uuid()"
            case Made.PRIVATE_IP:
                return "private_ip()"
            case Hex(digits):
                return f"hex({digits})"
            case Now():
                return _written("now()", place) if place is Place.URL else "now()"
            case TimestampRange(from_ago, to_ago):
                call = f"timestamp({-from_ago // _MILLISECOND}, {-to_ago // _MILLISECOND})"
                return _written(call, place) if place is Place.URL else call
            case IntegerRange(low, high):
                return f"int({low}, {high})"
            case Sequence(start):
                self._sequences += 1
                return f"sequence(user, {self._sequences - 1}, {start})"
            case RowField():
                raise ValueError("rows are made up before a run starts")
            case _:
                assert_never(value)

    def _one_of(self, value: OneOf, place: Place) -> str:
        """Choices are written when the script is made, not whenever one is taken."""
        words: list[JsonValue]
        match place:
            case Place.JSON:
                words = [json_text(word) for word in value.words]
            case Place.JSON_STRING:
                words = [json.dumps(word.text, ensure_ascii=False)[1:-1] for word in value.words]
            case Place.URL:
                words = [quote(word.text.encode("utf-8", "replace"), safe="") for word in value.words]
            case Place.HEADER:
                words = [re.sub(r"[\x00-\x1f\x7f]+", " ", word.text) for word in value.words]
            case Place.TEXT:
                words = [word.text for word in value.words]
        values = self._constant(words)
        if value.weights:
            return (
                f"weighted({values}, {self._constant([plain_number(weight) for weight in accumulate(value.weights)])})"
            )
        return f"choice({values})"

    def is_plain(self, parts: Parts[Part]) -> bool:
        """True for a text that is the same wherever it stands, but for quotes around it in JSON."""
        return all(
            bool(_PLAIN.match(part)) if isinstance(part, str) else self._is_plain(part.value) or _is_number(part)
            for part in parts
        )

    def _is_plain(self, value: Value) -> bool:
        return isinstance(value, Made | Hex) or value in self.plain_ids or isinstance(value, Now | TimestampRange)

    def _constant(self, values: list[JsonValue]) -> str:
        """The name of a constant list."""
        return self.constants.setdefault(literal(values), f"list_{len(self.constants) + 1}")


def plain_number(number: float) -> float | int:
    """A whole number without its decimal point."""
    return int(number) if number == int(number) else number


def rows_of(texts: Parts[Parts[Part]]) -> list[str]:
    """The pools of which these texts take fields of one row, in order of their first use."""
    pools = [
        part.value.pool
        for parts in texts
        for part in parts
        if isinstance(part, Filling) and isinstance(part.value, PoolField) and part.value.low is None
    ]
    return list(dict.fromkeys(pools))


def draws(pools: Parts[str], indent: str) -> str:
    """Statements that draw a row of each pool."""
    return "".join(f"{indent}const {row_name(pool)} = draw(user, pools{_member(pool)});\n" for pool in pools)


def row_name(pool: str) -> str:
    """The variable of the row that was drawn from a pool."""
    return f"row_{pool}"


def _member(name: str) -> str:
    return f".{name}" if _PROPERTY.match(name) else f"[{string(name)}]"


def _written(expression: str, place: Place) -> str:
    return f"{place.value}({expression})"


def _is_number(part: Part) -> bool:
    return isinstance(part, Filling) and (
        isinstance(part.value, IntegerRange | Sequence) or part.value is UserField.NUMBER
    )


def _joined(pieces: Parts[str | Raw], indent: str) -> str:
    """Text and expressions joined by `+`; neighbouring texts become one."""
    terms: list[str] = []
    for is_raw, group in groupby(pieces, key=lambda piece: isinstance(piece, Raw)):
        neighbours = list(group)
        terms += neighbours if is_raw else [string("".join(neighbours))]
    lines = [terms[0]]
    for term in terms[1:]:
        if len(lines[-1]) + len(term) + len(indent) < _LINE:
            lines[-1] += f" + {term}"
        else:
            lines.append(f"  + {term}")
    return f"\n{indent}".join(lines)
