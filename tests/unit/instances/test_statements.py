"""Statements without constants, and the log that they come from."""

from __future__ import annotations

import json
import string
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.instances.engines.postgres.slow_queries import from_log
from opsplane_server.instances.engines.postgres.statements import without_constants
from opsplane_server.instances.sql import SlowQueryOrder

SECRETS = st.text(string.ascii_letters + string.digits + " '\"\\-/*$;(", min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT 1", "SELECT ?"),
        ("SELECT a1, t.b2 FROM t WHERE c = 'x''y' AND d=-1.5e3", "SELECT a1, t.b2 FROM t WHERE c = ? AND d=-?"),
        ("SELECT E'a\\'b' , U&'\\0041', B'01', x'ff'", "SELECT ? , ?, ?, ?"),
        ("SELECT $$body 'x'$$, $tag$ $$ $tag$", "SELECT ?, ?"),
        ("SELECT * FROM t WHERE a = $1 AND b = $22", "SELECT * FROM t WHERE a = ? AND b = ?"),
        ('SELECT "quo""ted 1" FROM "T"', 'SELECT "quo""ted 1" FROM "T"'),
        ("SELECT /* 5 */ 1 -- 'x'\n  FROM t", "SELECT ? FROM t"),
        ("SELECT 1 IN (1, 2,3 , 4)", "SELECT ? IN (?, ...)"),
        ("INSERT INTO t VALUES (1,'a'), (2,'b'),(3,'c')", "INSERT INTO t VALUES (?, ...), ..."),
        ("ALTER ROLE app PASSWORD 'open-secret'", "ALTER ROLE app PASSWORD ?"),
        ("SELECT 'cut o", "SELECT ?"),
        ("SELECT $1::int[], a[1:2], 0xFF, 1_000, .5", "SELECT ?::int[], a[?:?], ?, ?, ?"),
        ("SELECT größe FROM tábla", "SELECT größe FROM tábla"),
        ("  \n ", ""),
    ],
)
def test_constants_become_placeholders(statement: str, expected: str) -> None:
    assert without_constants(statement) == expected


@given(SECRETS)
def test_no_constant_is_left(secret: str) -> None:
    quoted = secret.replace("'", "''")
    assert without_constants(f"ALTER ROLE app PASSWORD '{quoted}'; SELECT 1") == "ALTER ROLE app PASSWORD ?; SELECT ?"


@given(st.text(max_size=200))
def test_any_text_is_taken(text: str) -> None:
    once = without_constants(text)
    assert len(once) <= 10_000
    assert not set(once) & set("123456789") or any(character.isalpha() or character in '_"' for character in once)


def line(message: str, *, user: str = "app", second: int = 0) -> str:
    return json.dumps(
        {
            "timestamp": f"2026-03-01 12:00:{second:02}.500 UTC",
            "user": user,
            "dbname": "shop",
            "error_severity": "LOG",
            "message": message,
        }
    )


LOG = [
    'en":1,"message":"a line that is cut off at its beginning"}',
    line("database system is ready to accept connections", user=""),
    line("duration: 100.5 ms  statement: SELECT * FROM t WHERE a = 1", second=1),
    line("duration: 300.0 ms  execute <unnamed>: SELECT * FROM t\n  WHERE a = $1", second=2),
    line("duration: 50.0 ms  parse <unnamed>: SELECT * FROM t WHERE a = $1", second=3),
    line("duration: 40.0 ms  execute s1/c1: UPDATE t SET a = 'x: y'", second=4),
    line("duration: 999.0 ms  statement: SELECT 1", user="opsplane_admin", second=5),
    line("duration: 70.0 ms", second=6),
    "nonsense",
]


def test_the_log_is_read() -> None:
    found = from_log(LOG, SlowQueryOrder.TOTAL_TIME, 10, threshold=timedelta(milliseconds=40))
    assert not found.statistics
    assert found.threshold == timedelta(milliseconds=40)
    assert found.since_time == datetime(2026, 3, 1, 12, 0, 0, 500000, UTC)
    select, update = found.queries
    assert select.query == "SELECT * FROM t WHERE a = ?"
    assert (select.database, select.user, select.calls) == ("shop", "app", 2)
    assert select.total_time == timedelta(milliseconds=400.5)
    assert select.mean_time == timedelta(milliseconds=200.25)
    assert select.max_time == timedelta(milliseconds=300)
    assert select.last_time == datetime(2026, 3, 1, 12, 0, 2, 500000, UTC)
    assert update.query == "UPDATE t SET a = ?"
    assert select.query_id != update.query_id
    again = from_log(LOG, SlowQueryOrder.CALLS, 1, threshold=timedelta())
    assert [query.query_id for query in again.queries] == [select.query_id]


def test_an_empty_log_is_no_trouble() -> None:
    assert from_log([], SlowQueryOrder.MAX_TIME, 10, threshold=timedelta()).queries == ()
