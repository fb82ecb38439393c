"""Rows that are made up. The same seed, pool, generator and time give the same rows.

Every field has a stream of random numbers of its own, so that a field more or less, or more rows, leave the others as
they were.
"""

from __future__ import annotations

import bisect
import itertools
import random
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import TypeAdapter

from opsplane_server.loadtesting.datasets.model import Rows
from opsplane_server.loadtesting.datasets.values import RowsError, Writer, rfc3339, whole_number
from opsplane_server.loadtesting.users import model
from opsplane_server.loadtesting.users.holes import Filling, Now, OneOf, RowField, parse

GENERATORS: Final = TypeAdapter(model.Generator)

# Templates can repeat what earlier fields hold, again and again.
_MAX_TEXT: Final = 1024 * 1024

Value = str | int
Row = dict[str, Value]
# Makes a value of the row that has been made so far.
Maker = Callable[[Row], Value]
Random = random.Random


def generate(generator: model.Generator, *, pool: str, seed: int, now: datetime) -> Rows:
    """The rows of a generator that `checking` has found right. RowsError when they are too many or too long."""
    makers: list[tuple[str, Maker]] = []
    for field in generator.fields:
        # Nobody must be kept from guessing them.
        source = Random(f"{seed}:{pool}:{field.name}")
        makers.append((field.name, _maker(field.kind, source, now.astimezone(UTC))))
    writer = Writer([name for name, _ in makers])
    for _ in range(generator.rows):
        row: Row = {}
        for name, make in makers:
            row[name] = make(row)
        writer.add(whole_number(value) if isinstance(value, int) else value for value in row.values())
    return writer.rows()


def _maker(kind: object, source: Random, now: datetime) -> Maker:
    match kind:
        case model.IntegerRange(low, high):
            return lambda _: low + _below(source, high - low + 1)
        case model.Sequence(start):
            counter = itertools.count(start)
            return lambda _: next(counter)
        case model.Made.UUID:
            return lambda _: str(uuid.UUID(int=source.getrandbits(128), version=4))
        case model.Made.PRIVATE_IP:
            return lambda _: _private_ip(source)
        case model.Hex(digits):
            return lambda _: f"{source.getrandbits(4 * digits):0{digits}x}"
        case model.TimestampRange(from_ago, to_ago):
            return lambda _: rfc3339(_time(source, now, from_ago, to_ago))
        case Now():
            return lambda _: rfc3339(now.replace(microsecond=0))
        case model.Choice(values, weights):
            return _chooser(values, weights, source)
        case OneOf(words, weights):
            return _chooser([word.text for word in words], weights, source)
        case RowField(name):
            return lambda row: row[name]
        case model.Template(text):
            return _template(text, source, now)
    raise AssertionError(f"{kind} is not for generators")


def _template(text: str, source: Random, now: datetime) -> Maker:
    parts = [_maker(part.value, source, now) if isinstance(part, Filling) else part for part in parse(text)]

    def make(row: Row) -> str:
        pieces = [part if isinstance(part, str) else str(part(row)) for part in parts]
        if sum(map(len, pieces)) > _MAX_TEXT:
            raise RowsError(f"a template gives more than {_MAX_TEXT >> 20} MiB")
        return "".join(pieces)

    return make


def _chooser(values: Sequence[str], weights: Sequence[float], source: Random) -> Maker:
    if not weights:
        return lambda _: values[_below(source, len(values))]
    bounds = list(itertools.accumulate(weights))
    # Rounding may reach the end, where the weight can be 0.
    last = max(index for index, weight in enumerate(weights) if weight > 0)
    return lambda _: values[min(bisect.bisect(bounds, source.random() * bounds[-1]), last)]


def _below(source: Random, bound: int) -> int:
    """Evenly from 0 to below `bound`, by what Python promises to keep: `randrange` may change."""
    bits = bound.bit_length()
    while (value := source.getrandbits(bits)) >= bound:
        pass
    return value


def _time(source: Random, now: datetime, from_ago: timedelta, to_ago: timedelta) -> datetime:
    begin = now.replace(microsecond=0) - from_ago
    return begin + timedelta(seconds=_below(source, int((from_ago - to_ago).total_seconds()) + 1))


def _private_ip(source: Random) -> str:
    """Of one of the three private networks with even odds; never the address of a network or a broadcast."""
    second, third, last = _below(source, 256), _below(source, 256), 1 + _below(source, 254)
    match _below(source, 3):
        case 0:
            return f"10.{second}.{third}.{last}"
        case 1:
            return f"172.{16 + second % 16}.{third}.{last}"
        case _:
            return f"192.168.{third}.{last}"
