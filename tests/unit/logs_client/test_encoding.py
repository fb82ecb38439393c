"""Whatever an application logs becomes a record that the server takes."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from enum import Enum
from typing import Any

import protovalidate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opsplane.logingest.v1 import records_pb2
from opsplane.logs.encoding import MAX_JSON_BYTES, TEXT_FIELDS, Encoder, to_json

ENCODER = Encoder("svc", "prod", "host-1", "1.2")
TEXT = st.text(st.characters()) | st.text(st.sampled_from("a\0\ud800é😀\n"), max_size=30)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT
    | st.binary()
    | st.integers(200, 5000).map(lambda digits: 10**digits)
)
VALUES = st.recursive(
    SCALARS | st.datetimes() | st.sets(st.integers()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | st.integers(), inner, max_size=4),
    max_leaves=20,
)
NAMES = st.sampled_from(
    [*TEXT_FIELDS, "http_status", "duration_ms", "timestamp", "stack_trace", "metadata", "error", "level", "message"]
)


def decode(data: bytes) -> records_pb2.LogRecord:
    (record,) = records_pb2.LogBatch.FromString(data).records
    return record


def values(level: str | int = "info", message: object = "m", **fields: Any) -> records_pb2.LogRecord:
    return decode(ENCODER.values(level, message, fields))


def reject_constant(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def check(record: records_pb2.LogRecord) -> None:
    """As the server would: the rules of the proto, and JSON that jsonb holds."""
    record.ClearField("timestamp")  # any time is for the application to say
    protovalidate.validate(record)
    if record.metadata_json:
        assert isinstance(json.loads(record.metadata_json, parse_constant=reject_constant), dict)
        assert "\\u0000" not in record.metadata_json
        record.metadata_json.encode()


@settings(deadline=None)
@given(st.text() | st.integers(), VALUES, st.dictionaries(NAMES | TEXT, VALUES, max_size=6))
def test_any_values_make_a_record_that_the_server_takes(
    level: str | int, message: object, fields: dict[str, Any]
) -> None:
    check(decode(ENCODER.values(level, message, fields)))


def test_fields_go_where_they_belong() -> None:
    record = values(
        "WARNING",
        "hello",
        user_id=42,
        http_status=404,
        duration_ms=1.5,
        host="other",
        timestamp=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        color="blue",
        metadata={"size": "large"},
        nothing=None,
    )
    assert (record.level, record.message, record.user_id) == (records_pb2.LEVEL_WARN, "hello", "42")
    assert (record.http_status, record.duration_ms, record.host) == (404, 1.5, "other")
    assert (record.service, record.environment, record.service_version) == ("svc", "prod", "1.2")
    assert record.timestamp.ToNanoseconds() == 1767323045_678901_000
    assert record.metadata == {"color": "blue", "size": "large"}
    check(record)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"n": 1, "s": "x"}, {"n": 1, "s": "x"}),
        ({"order": {"id": 42, "items": ["a"]}}, {"order": {"id": 42, "items": ["a"]}}),
        ({"x": float("nan"), "y": float("inf")}, {"x": "nan", "y": "inf"}),
        ({"nul": {"a\0": "b\0"}}, {"nul": {"a\ufffd": "b\ufffd"}}),
        ({"lone": ["\ud800"]}, {"lone": ["?"]}),
        ({"huge": 10**400}, {"huge": hex(10**400)}),
        ({"at": date(2026, 1, 2), "raw": b"ab", "set": {1}}, {"at": "2026-01-02", "raw": "ab", "set": [1]}),
        ({"keys": {1: "a"}}, {"keys": {"1": "a"}}),
        ({"http_status": 7, "duration_ms": -1}, {"http_status": 7, "duration_ms": -1}),
        ({"none": {"a": None, "b": True}}, {"none": {"a": None, "b": True}}),
    ],
)
def test_metadata_that_nests_is_json(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    record = values(**fields)
    assert json.loads(record.metadata_json) == expected
    check(record)


def test_objects_that_know_no_limits() -> None:
    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("no")

    class Color(Enum):
        RED = "red"

    circle: list[Any] = []
    circle.append(circle)
    deep: dict[str, Any] = {}
    for _ in range(2000):
        deep = {"d": deep}
    record = values("info", Hostile(), user_id=Hostile(), hostile=Hostile(), circle=circle, deep=deep, color=Color.RED)
    check(record)
    assert "Hostile" in record.message
    assert json.loads(record.metadata_json)["color"] == "Color.RED"


def test_what_is_too_long_is_cut() -> None:
    record = values("info", "é" * 2_000_000, service="s" * 200, stack_trace="a" * 2_000_000 + "end", key="v" * 100_000)
    check(record)
    assert record.service.endswith("...[cut]")
    assert record.stack_trace.endswith("end")
    assert len(record.message.encode()) <= 1024 * 1024
    many = values(**{f"k{n}": "v" * 1000 for n in range(1000)})
    check(many)
    assert json.loads(many.metadata_json)["opsplane.left_out"] > 500


def test_json_never_exceeds_its_limit() -> None:
    for filler in ("x", "é", "\0", '"'):
        made = to_json({f"{n}": filler * 5000 for n in range(200)})
        assert len(made.encode()) <= MAX_JSON_BYTES


@pytest.mark.parametrize(
    ("level", "expected"),
    [("trace", 1), ("DEBUG", 2), ("info", 3), ("Warn", 4), ("error", 5), ("critical", 6), ("?", 3), (5, 5), (50, 3)],
)
def test_levels(level: str | int, expected: int) -> None:
    assert values(level).level == expected


def test_an_exception_becomes_type_and_trace() -> None:
    try:
        json.loads("{")
    except ValueError as error:
        record = values("error", "failed", error=error)
    assert record.error_type == "json.decoder.JSONDecodeError"
    assert record.stack_trace.startswith("Traceback")
    assert "test_encoding.py" in record.stack_trace
    assert not record.metadata
    check(record)


@pytest.mark.parametrize(
    ("given", "nanoseconds"),
    [
        (1.5, 1_500_000_000),
        (2, 2_000_000_000),
        ("2026-01-02T03:04:05Z", 1767323045_000_000_000),
        (datetime(1969, 12, 31, 23, 59, 59, 500_000, tzinfo=UTC), -500_000_000),
    ],
)
def test_times(given: object, nanoseconds: int) -> None:
    assert values(timestamp=given).timestamp.ToNanoseconds() == nanoseconds


def test_a_record_is_filled_in_but_not_changed() -> None:
    given = records_pb2.LogRecord(level=records_pb2.LEVEL_INFO, message="m", host="mine")
    record = decode(ENCODER.record(given))
    assert (record.service, record.host, record.environment) == ("svc", "mine", "prod")
    assert record.HasField("timestamp")
    assert not given.service
    assert not given.HasField("timestamp")
