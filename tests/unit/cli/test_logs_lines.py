import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane.cli.logs_lines import Entry, Joiner, level_of, parse, parse_time
from opsplane.logingest.v1 import records_pb2
from opsplane.logs.encoding import Encoder

INFO, WARN, ERROR = records_pb2.LEVEL_INFO, records_pb2.LEVEL_WARN, records_pb2.LEVEL_ERROR


def joined(text: str | bytes) -> list[list[bytes]]:
    """The lines of each record of a text."""
    joiner = Joiner()
    lines = (text.encode() if isinstance(text, str) else text).split(b"\n")
    groups = [joiner.add(line, place) for place, line in enumerate(lines)]
    return [group.lines for group in (*groups, joiner.finish()) if group is not None]


def entry(text: str) -> Entry:
    """The one record of a text."""
    joiner = Joiner()
    for line in text.encode().split(b"\n"):
        assert joiner.add(line, 0) is None
    group = joiner.finish()
    assert group is not None
    return parse(group, INFO)


PYTHON = """ERROR it failed
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    raise KeyError("x")
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 3, in <module>
orders.errors.OutOfStock: none left"""

JAVA = """2026-11-21 09:30:00,123 ERROR [main] Order - failed
java.lang.IllegalStateException: no
\tat shop.Order.place(Order.java:10)
Caused by: java.io.IOException: gone
\tat shop.Net.read(Net.java:7)
\t... 3 more"""


def test_tracebacks_are_joined() -> None:
    assert [len(lines) for lines in joined(f"INFO before\n{PYTHON}\nINFO after\n{PYTHON}\nKeyError: not of it")] == [
        1, 11, 1, 11, 1,
    ]  # fmt: skip
    assert [len(lines) for lines in joined(f"{JAVA}\nnext: Exception\n{JAVA}")] == [6, 1, 6]


def test_a_traceback_without_a_line_before_it_is_a_record() -> None:
    [record] = joined(PYTHON.partition("\n")[2])
    assert len(record) == 10


def test_blank_lines_are_no_records() -> None:
    assert joined("\n\none\n \n\t\ntwo\n\r\n") == [[b"one", b" ", b"\t"], [b"two"]]


def test_a_record_has_an_end() -> None:
    groups = joined("start\n" + "\n".join(" " + "x" * 1000 for _ in range(2000)))
    assert len(groups) == 2


def test_the_parts_of_a_record_with_a_traceback() -> None:
    record = entry(PYTHON)
    assert record.level == ERROR
    assert record.message == "ERROR it failed"
    assert record.fields["stack_trace"] == PYTHON.partition("\n")[2]
    assert record.fields["error_type"] == "orders.errors.OutOfStock"
    assert entry(JAVA).fields["error_type"] == "java.lang.IllegalStateException"
    assert entry(JAVA).fields["stack_trace"] == JAVA.partition("\n")[2]


@pytest.mark.parametrize(
    ("line", "level", "time"),
    [
        ("plain text", INFO, None),
        ("an error happened", INFO, None),
        ("ERROR it", ERROR, None),
        ("2026-11-21T09:30:00.123456Z WARN it", WARN, datetime(2026, 11, 21, 9, 30, 0, 123456, UTC)),
        ("2026-11-21 09:30:00,123 +0100 [err] it", ERROR, datetime(2026, 11, 21, 8, 30, 0, 123000, UTC)),
        ("[2026-11-21 09:30:00+00:00] <Warning> it", WARN, datetime(2026, 11, 21, 9, 30, tzinfo=UTC)),
        ('time="now" level=warning msg="it"', WARN, None),
        (
            '10.0.0.1 - - [21/Nov/2026:09:30:00 +0100] "GET / HTTP/1.1" 200 12',
            INFO,
            datetime(2026, 11, 21, 8, 30, tzinfo=UTC),
        ),
        ("2026-99-21T09:30:00Z CRITICAL it", records_pb2.LEVEL_FATAL, None),
    ],
)
def test_plain_text(line: str, level: int, time: datetime | None) -> None:
    record = entry(line)
    assert (record.level, record.message, record.fields.get("timestamp")) == (level, line, time)


def test_a_time_without_a_zone_is_of_this_machine() -> None:
    local = datetime(2026, 11, 21, 9, 30).astimezone()
    assert parse_time("2026-11-21 09:30:00") == local


@pytest.mark.parametrize(
    "value",
    [
        1_795_253_400,
        1_795_253_400.0,
        "1795253400",
        "1795253400.000",
        1_795_253_400_000,
        "1795253400000000",
        1_795_253_400_000_000_000,
        "2026-11-21T09:30:00Z",
        "2026-11-21T10:30:00.000000000+01:00",
        "2026-11-21 09:30:00 +0000",
        "21/Nov/2026:09:30:00 +0000",
    ],
)
def test_times(value: object) -> None:
    assert parse_time(value) == datetime(2026, 11, 21, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "value", ["", "soon", 0, -1, 12.5, True, None, [], "1e999", 1e300, float("nan"), 10**40, "9" * 20]
)
def test_no_times(value: object) -> None:
    assert parse_time(value) is None


@pytest.mark.parametrize(
    ("value", "level"),
    [
        ("Warning", WARN),
        ("err", ERROR),
        ("30", INFO),
        (50, ERROR),
        (60, 6),
        (7, None),
        (True, None),
        ("", None),
        ("?", None),
    ],
)
def test_levels(value: object, level: int | None) -> None:
    assert level_of(value) == level


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param(
            {
                "asctime": "2026-11-21T09:30:00Z",
                "levelname": "WARNING",
                "name": "orders",
                "message": "x",
                "threadName": "T",
            },
            Entry(
                WARN, "x", {"timestamp": datetime(2026, 11, 21, 9, 30, tzinfo=UTC), "logger": "orders", "thread": "T"}
            ),
            id="python",
        ),
        pytest.param(
            {
                "level": 50,
                "time": 1_795_253_400_000,
                "pid": 7,
                "hostname": "web-1",
                "msg": "x",
                "err": {"type": "E", "stack": "S"},
            },
            Entry(
                ERROR,
                "x",
                {
                    "timestamp": datetime(2026, 11, 21, 9, 30, tzinfo=UTC),
                    "host": "web-1",
                    "error_type": "E",
                    "stack_trace": "S",
                    "metadata": {"pid": 7},
                },
            ),
            id="pino",
        ),
        pytest.param(
            {
                "@timestamp": "2026-11-21T09:30:00Z",
                "log": {"level": "error", "logger": "l", "more": 1},
                "service": {"name": "orders", "version": "2"},
                "http": {"request": {"method": "GET"}, "response": {"status_code": "500"}},
                "trace": {"id": "t"},
                "message": "x",
            },
            Entry(
                ERROR,
                "x",
                {
                    "timestamp": datetime(2026, 11, 21, 9, 30, tzinfo=UTC),
                    "logger": "l",
                    "service": "orders",
                    "service_version": "2",
                    "http_method": "GET",
                    "http_status": 500,
                    "trace_id": "t",
                    "metadata": {"log": {"more": 1}},
                },
            ),
            id="ecs",
        ),
        pytest.param(
            {"event": "placed", "user_id": 17, "duration_ms": 1.5, "empty": {}, "nothing": None},
            Entry(
                INFO,
                "placed",
                {"user_id": "17", "duration_ms": 1.5, "metadata": {"empty": {}, "nothing": None}},
            ),
            id="structlog",
        ),
        pytest.param(
            {"event": "not it", "msg": "nor this", "message": "x", "level": "odd", "http_status": 7, "ts": "soon"},
            Entry(
                INFO,
                "x",
                {"metadata": {"msg": "nor this", "event": "not it", "level": "odd", "http_status": 7, "ts": "soon"}},
            ),
            id="what does not fit stays",
        ),
    ],
)
def test_json(line: dict[str, Any], expected: Entry) -> None:
    assert entry(json.dumps(line)) == expected


@pytest.mark.parametrize("line", ['{"a": 1', "{}x", "[1]", '{"a":' * 3000])
def test_what_is_no_json_object_is_text(line: str) -> None:
    assert entry(line).message == line


def test_json_without_a_message_is_its_own() -> None:
    assert entry('{"level":"error","code":7}') == Entry(ERROR, '{"level":"error","code":7}', {"metadata": {"code": 7}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["level", "time", "ts", "msg", "message", "log", "http.status", "duration_ms", "user_id", "x"])


@given(st.binary(max_size=200) | st.dictionaries(KEYS, JSON, max_size=6).map(lambda value: json.dumps(value).encode()))
def test_any_line_becomes_a_record_of_the_api(line: bytes) -> None:
    encoder = Encoder("service", "", "host", "")
    for lines in joined(line):
        joiner = Joiner()
        for one in lines:
            joiner.add(one, 0)
        group = joiner.finish()
        assert group is not None
        found = parse(group, INFO)
        [record] = records_pb2.LogBatch.FromString(encoder.values(found.level, found.message, found.fields)).records
        assert record.message
        assert record.level in range(1, 7)
        assert timedelta() < record.timestamp.ToDatetime(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
