from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.errors import InvalidArgument
from opsplane_server.rpc.filters import Condition, FieldType, Value, parse

STATES = frozenset({"RUNNING", "SUCCEEDED"})
FIELDS: dict[str, Any] = {
    "name": FieldType.STRING,
    "count": FieldType.INTEGER,
    "ratio": FieldType.NUMBER,
    "done": FieldType.BOOLEAN,
    "create_time": FieldType.TIME,
    "state": STATES,
}
EQUALITY = ["=", "!="]
ORDER = [*EQUALITY, "<", "<=", ">", ">="]

strings = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def conditions() -> st.SearchStrategy[Condition]:
    def one(field: str, ops: list[str], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Condition]:
        return st.builds(Condition, st.just(field), st.sampled_from(ops), values)

    return st.one_of(
        one("name", [*ORDER, ":"], strings),
        one("count", ORDER, st.integers(-(2**63), 2**63 - 1)),
        one("ratio", ORDER, st.floats(allow_nan=False, allow_infinity=False)),
        one("done", EQUALITY, st.booleans()),
        one("create_time", ORDER, st.datetimes(timezones=st.just(UTC))),
        one("state", EQUALITY, st.sampled_from(sorted(STATES))),
    )


def written(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)


@given(st.lists(conditions(), max_size=5), st.sampled_from(["", " ", "\n\t "]))
def test_round_trip(expected: list[Condition], space: str) -> None:
    text = " AND ".join(f"{each.field}{space}{each.op}{space}{written(each.value)}" for each in expected)
    assert parse(text, FIELDS) == expected


@given(st.text(max_size=60) | st.text('namecount"\\=!<>: AND1T-Z.+', max_size=40))
def test_any_text_is_parsed_or_refused_with_its_place(text: str) -> None:
    try:
        found = parse(text, FIELDS)
    except InvalidArgument as error:
        [violation] = error.violations
        assert violation.field == "filter"
        assert violation.description.startswith("at position ")
    else:
        assert bool(found) == bool(text.strip())


@given(st.datetimes(), zones)
def test_times_are_turned_to_utc(time: datetime, zone: timezone) -> None:
    text = time.replace(tzinfo=zone).isoformat()
    try:
        expected = datetime.fromisoformat(text).astimezone(UTC)
    except OverflowError:
        refused(f"create_time={text}", "is not a time", 13)
    else:
        assert parse(f"create_time={text}", FIELDS) == [Condition("create_time", "=", expected)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("   ", []),
        ("name=ci", [Condition("name", "=", "ci")]),
        ("name=projects/shop", [Condition("name", "=", "projects/shop")]),
        ('name : "check out"', [Condition("name", ":", "check out")]),
        ('name="a AND b"AND count>=-3', [Condition("name", "=", "a AND b"), Condition("count", ">=", -3)]),
        ("ratio<1", [Condition("ratio", "<", 1.0)]),
        ("create_time>2026-01-31T08:00:00Z", [Condition("create_time", ">", datetime(2026, 1, 31, 8, tzinfo=UTC))]),
        ('create_time>"2026-01-31"', None),
    ],
)
def test_examples(text: str, expected: list[Condition] | None) -> None:
    if expected is None:
        refused(text, "is not a time", 13)
    else:
        assert parse(text, FIELDS) == expected


@pytest.mark.parametrize(
    ("text", "what", "position"),
    [
        ("nome=ci", "no field 'nome'", 1),
        ("name", "expected one of =", 5),
        ("name=", "expected a value", 6),
        ("name='a b'", "expected AND", 9),
        ('name="open', "expected a value", 6),
        ('name="bad \\n escape"', "expected a value", 6),
        ("name=a OR name=b", "expected AND", 8),
        ("(name=a)", "expected a field", 1),
        ("name=a AND", "expected a field", 11),
        ("count=1.5", "is not a whole number", 7),
        ("count=9223372036854775808", "is not a whole number", 7),
        ("count=１", "is not a whole number", 7),
        ("count:1", "does not fit count", 6),
        ("ratio=nan", "is not a number", 7),
        ("ratio=1e999", "is not a number", 7),
        ("done=yes", "is not true or false", 6),
        ("done<true", "does not fit done", 5),
        ("create_time=2026-01-31T08:00:00", "is not a time", 13),
        ("state=STOPPED", "is none of RUNNING, SUCCEEDED", 7),
        ("state>RUNNING", "does not fit state", 6),
        ("name=a\0", "NUL", 6),
    ],
)
def test_refusals(text: str, what: str, position: int) -> None:
    refused(text, what, position)


def refused(text: str, what: str, position: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(text, FIELDS)
    [violation] = caught.value.violations
    assert violation.field == "filter"
    assert what in violation.description
    assert violation.description.startswith(f"at position {position}: ")


def test_too_long_a_filter_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="longer than 2048"):
        parse("name=" + "a" * 2048, FIELDS)


def test_numbers_are_finite() -> None:
    [condition] = parse("ratio=1e308", FIELDS)
    assert isinstance(condition.value, float)
    assert math.isfinite(condition.value)
