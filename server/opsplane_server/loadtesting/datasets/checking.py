"""Rules of generators that their messages cannot say."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from opsplane_server.errors import FieldViolation
from opsplane_server.loadtesting.users.holes import Captured, Filling, PoolField, RowField, UserField, parse
from opsplane_server.loadtesting.users.model import Choice, Generator, Template, TimestampRange
from opsplane_server.loadtesting.users.parsing import TemplateError


def check_generator(generator: Generator, place: str) -> Iterator[FieldViolation]:
    """What is wrong with a generator; `place` is its field in the request."""
    known: list[str] = []
    for number, field in enumerate(generator.fields):
        at = f"{place}.fields[{number}]"
        if field.name in known:
            yield FieldViolation(f"{at}.name", f"{field.name!r} is the name of another field")
        match field.kind:
            case Choice(weights=weights) if weights and not sum(weights) > 0:
                yield FieldViolation(f"{at}.choice.weights", "one of them must be above 0")
            case TimestampRange(from_ago, to_ago) if to_ago > from_ago:
                yield FieldViolation(f"{at}.timestamp.to_ago", "must not be above from_ago")
            case Template(text):
                yield from (FieldViolation(f"{at}.template", problem) for problem in _template_problems(text, known))
        known.append(field.name)


def _template_problems(text: str, known: Collection[str]) -> Iterator[str]:
    try:
        parts = parse(text)
    except TemplateError as error:
        yield str(error)
        return
    for part in parts:
        if not isinstance(part, Filling):
            continue
        match part.value:
            case RowField(name) if name not in known:
                there = f"the fields before it are {', '.join(known)}" if known else "it is the first field"
                yield f"at character {part.position}: there is no field {name!r} before this one; {there}"
            case PoolField() | Captured() | UserField():
                problem = "pools, captured values and users are not there yet when rows are made up"
                yield f"at character {part.position}: {problem}"
