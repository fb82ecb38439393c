"""What templates can ask for, between `{{` and `}}`, each with its arguments checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

from opsplane_server.loadtesting.users.model import Hex, IntegerRange, Made, Sequence, TimestampRange
from opsplane_server.loadtesting.users.parsing import Hole, TemplateError, Word, split

MAX_DRAWN: Final = 1000

_MAX_INTEGER = 2**53 - 1
_INTEGER = re.compile(r"[+-]?\d{1,16}\Z")
_SPAN = re.compile(r"([+-]?)((?:\d{1,9}(?:\.\d{1,3})?(?:ms|[smhdw]))+)\Z")
_SPAN_PART = re.compile(r"([\d.]+)(ms|[smhdw])")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_MAX_SPAN = timedelta(days=36500)


@dataclass(frozen=True, slots=True)
class PoolField:
    """A field of a pool's row; with `low` and `high` the field of so many different rows, with commas between."""

    pool: str
    field: str
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Captured:
    """What a task kept from its answer."""

    name: str


class UserField(StrEnum):
    """What every user has; the values are the names in scripts."""

    ID = "id"
    NUMBER = "number"
    SESSION_ID = "session_id"


@dataclass(frozen=True, slots=True)
class RowField:
    """A field of the row that is being made up."""

    name: str


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of the words, which are values of JSON where they read as such and stand in no quotes: `true`, `20`."""

    words: tuple[Word, ...]
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Now:
    """The time at which the template is filled in."""


Value = (
    PoolField | Captured | UserField | RowField | OneOf | Now | Hex | IntegerRange | Made | Sequence | TimestampRange
)


@dataclass(frozen=True, slots=True)
class Filling:
    """A hole with what fills it. `position` is that of its first brace, from 1."""

    value: Value
    position: int


Part = str | Filling


def parse(text: str) -> tuple[Part, ...]:
    """The text around holes, and what fills them. A hole that is one quoted word is text: `{{"{{"}}`.

    Raises TemplateError with the position and what is expected there.
    """
    parts: list[Part] = []
    for part in split(text):
        if isinstance(part, str):
            parts.append(part)
        elif part.words[0].quoted and len(part.words) == 1:
            parts.append(part.words[0].text)
        else:
            parts.append(Filling(_value(part), part.position))
    return tuple(parts)


def json_text(word: Word) -> str:
    """A word of a choice as a value of JSON."""
    if not word.quoted:
        try:
            value = json.loads(word.text, parse_constant=_refuse)
        except ValueError:
            pass
        else:
            if value is None or isinstance(value, bool | int | float):
                return word.text
    return json.dumps(word.text, ensure_ascii=False)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _value(hole: Hole) -> Value:
    name, arguments = hole.words[0].text, hole.words[1:]
    kind, dot, rest = name.partition(".")
    try:
        if dot:
            return _dotted(kind, rest, arguments)
        if name not in _FUNCTIONS:
            raise TemplateError(f"there is no {name!r}; there are {', '.join(_FUNCTIONS)}, {', '.join(_DOTTED)}")
        read, usage = _FUNCTIONS[name]
        value = read(arguments)
        if value is None:
            raise TemplateError(f"{name} is written {usage}")
        return value
    except TemplateError as error:
        raise TemplateError(f"at character {hole.position}: {error}") from None


_DOTTED = ("pool.NAME.FIELD", "captured.NAME", "user.id", "user.number", "user.session_id", "row.NAME")


def _dotted(kind: str, rest: str, arguments: tuple[Word, ...]) -> Value:
    match kind:
        case "pool":
            pool, dot, field = rest.partition(".")
            counts = [_integer(argument) for argument in arguments]
            if not (pool and dot and field) or len(counts) > 2 or not _is_count(counts):
                usage = "{{pool.NAME.FIELD}}, or with how many different rows {{pool.NAME.FIELD 1 3}}, at most"
                raise TemplateError(f"a field of a pool is written {usage} {MAX_DRAWN}")
            return PoolField(pool, field, *(counts if len(counts) != 1 else counts * 2))
        case "user" if not arguments:
            try:
                return UserField(rest)
            except ValueError:
                raise TemplateError(f"a user has id, number and session_id, not {rest!r}") from None
        case "captured" if rest and not arguments:
            return Captured(rest)
        case "row" if rest and not arguments:
            return RowField(rest)
        case "user" | "captured" | "row":
            raise TemplateError(f"{kind} is written {{{{{kind}.NAME}}}}, without more words")
    raise TemplateError(f"there is no {kind + '.' + rest!r}; there are {', '.join(_DOTTED)}")


def _is_count(counts: list[int | None]) -> bool:
    known = [count for count in counts if count is not None]
    return known == counts and known == sorted(known) and all(0 <= count <= MAX_DRAWN for count in known)


def _integer(word: Word) -> int | None:
    if not _INTEGER.match(word.text):
        return None
    value = int(word.text)
    return value if abs(value) <= _MAX_INTEGER else None


def _span(word: Word) -> timedelta | None:
    match = _SPAN.match(word.text)
    if match is None:
        return None
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _SPAN_PART.findall(match[2]))
    if seconds > _MAX_SPAN.total_seconds():
        return None
    return timedelta(seconds=-seconds if match[1] == "-" else seconds)


# --- functions: None when the arguments are wrong ---


def _bare(value: Value) -> Callable[[tuple[Word, ...]], Value | None]:
    return lambda arguments: None if arguments else value


def _hex(arguments: tuple[Word, ...]) -> Hex | None:
    digits = _integer(arguments[0]) if len(arguments) == 1 else None
    return Hex(digits) if digits is not None and 1 <= digits <= 256 else None


def _int(arguments: tuple[Word, ...]) -> IntegerRange | None:
    if len(arguments) != 2:
        return None
    low, high = map(_integer, arguments)
    return None if low is None or high is None or high < low else IntegerRange(low, high)


def _choice(arguments: tuple[Word, ...]) -> OneOf | None:
    return OneOf(arguments) if arguments else None


def _weighted(arguments: tuple[Word, ...]) -> OneOf | None:
    if not arguments or len(arguments) % 2:
        return None
    try:
        weights = tuple(float(word.text) for word in arguments[::2])
    except ValueError:
        return None
    total = sum(weights)
    return OneOf(arguments[1::2], weights) if min(weights) >= 0 and 0 < total < math.inf else None


def _timestamp(arguments: tuple[Word, ...]) -> TimestampRange | None:
    if len(arguments) not in (1, 2):
        return None
    begin, end = _span(arguments[0]), _span(arguments[1]) if len(arguments) == 2 else timedelta()
    return None if begin is None or end is None or end < begin else TimestampRange(-begin, -end)


def _sequence(arguments: tuple[Word, ...]) -> Sequence | None:
    start = _integer(arguments[0]) if len(arguments) == 1 else 1
    return Sequence(start) if start is not None and len(arguments) < 2 else None


_FUNCTIONS: dict[str, tuple[Callable[[tuple[Word, ...]], Value | None], str]] = {
    "uuid": (_bare(Made.UUID), "{{uuid}}"),
    "hex": (_hex, "{{hex DIGITS}} with 1 to 256 digits"),
    "int": (_int, "{{int MIN MAX}} with whole numbers up to 2^53, the first not above the second"),
    "choice": (_choice, '{{choice VALUE VALUE ...}}; values with spaces stand in quotes: {{choice a "b c"}}'),
    "weighted": (_weighted, "{{weighted WEIGHT VALUE WEIGHT VALUE ...}} with a weight above 0"),
    "now": (_bare(Now()), "{{now}}"),
    "timestamp": (_timestamp, "{{timestamp FROM TO}} with times from now such as -24h, -1h30m, -7d, 0s, in order"),
    "private_ip": (_bare(Made.PRIVATE_IP), "{{private_ip}}"),
    "sequence": (_sequence, "{{sequence START}} with a whole number, or {{sequence}} from 1"),
}
