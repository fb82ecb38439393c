"""Reading the logs of slow statements of MariaDB and MySQL: no constant may come through."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.instances.engines.mysql.slow_log import normalise, summarise

MARIADB = """\
/usr/sbin/mariadbd, Version: 10.11.6-MariaDB (Debian 12). started with:
Tcp port: 3306  Unix socket: /run/mysqld.sock
Time		    Id Command	Argument
# Time: 261121 18:01:26
# User@Host: app[app] @  [127.0.0.1]
# Thread_id: 7  Schema: shop  QC_hit: No
# Query_time: 0.310444  Lock_time: 0.000000  Rows_sent: 2  Rows_examined: 9
# Rows_affected: 3  Bytes_sent: 66
SET timestamp=1795284086;
SELECT name FROM users
WHERE id IN (1, 2,3) AND note = '# User@Host: x[x]';
# User@Host: app[app] @  [127.0.0.1]
# Thread_id: 7  Schema: shop  QC_hit: No
# Query_time: 0.100000  Lock_time: 0.000000  Rows_sent: 0  Rows_examined: 9
# Rows_affected: 0  Bytes_sent: 66
SET timestamp=1795284099;
SELECT name FROM users WHERE id IN (7) AND note = 'it''s';
# Time: 261121 18:02:26
# User@Host: other[other] @  [127.0.0.1]
# Thread_id: 8  Schema:   QC_hit: No
# Query_time: 1.000000  Lock_time: 0.000000  Rows_sent: 1  Rows_examined: 0
# Rows_affected: 0  Bytes_sent: 66
SET timestamp=1795284150;
select sleep(1);
"""
MYSQL = """\
# Time: 2026-11-21T18:01:49.572846Z
# User@Host: app[app] @  [127.0.0.1]  Id:    11
# Query_time: 0.300470  Lock_time: 0.000000 Rows_sent: 1  Rows_examined: 1
use shop;
SET timestamp=1795284109;
select sleep(0.3);
# Time: 2026-11-21T18:01:50.572846Z
# User@Host: app[app] @  [127.0.0.1]  Id:    11
# Query_time: 0.500000  Lock_time: 0.000000 Rows_sent: 1  Rows_examined: 1
SET timestamp=1795284110;
select sleep(0.5);
"""


def test_mariadbs() -> None:
    queries, since = summarise(MARIADB.splitlines(), 1000)
    assert since == datetime.fromtimestamp(1795284086, UTC)
    found = {query.query: query for query in queries}
    assert set(found) == {"SELECT name FROM users WHERE id IN (?) AND note = ?", "select sleep(?)"}
    users = found["SELECT name FROM users WHERE id IN (?) AND note = ?"]
    assert (users.database, users.user, users.calls, users.rows) == ("shop", "app", 2, 5)
    assert users.max_time == timedelta(seconds=0.310444)
    assert users.total_time == timedelta(seconds=0.410444)
    assert users.last_time == datetime.fromtimestamp(1795284099, UTC)
    assert (found["select sleep(?)"].user, found["select sleep(?)"].database) == ("other", "")


def test_mysqls() -> None:
    queries, _ = summarise(MYSQL.splitlines(), 1000)
    (query,) = queries
    assert (query.query, query.database, query.calls) == ("select sleep(?)", "shop", 2)
    assert query.mean_time == timedelta(seconds=0.400235)


def test_a_log_that_was_cut_begins_at_its_first_whole_statement() -> None:
    lines = MARIADB.splitlines()
    queries, _ = summarise(lines[10:], 10)
    assert [query.query for query in queries] == ["SELECT nam", "select sle"]


@pytest.mark.parametrize(
    ("statement", "shape"),
    [
        ("SELECT 1, -2.5e3, 0xFF, x'00', .5, b'1', N'x', _utf8mb4'x'", "SELECT ?, -?, ?, ?, ?, ?, ?, ?"),
        ("INSERT INTO t2 VALUES (1, 'a'), (2, 'b')", "INSERT INTO t2 VALUES (?)"),
        ("SELECT `col 1`, t1.c2, @v3 FROM `it``s 5`", "SELECT `col 1`, t1.c2, @v3 FROM `it``s 5`"),
        ('SELECT "a\\"b" /* hidden 1 */ -- hidden\n FROM t # hidden', "SELECT ? FROM t"),
        ("SELECT 'never closed", "SELECT ?"),
        ("CALL p('x')", "CALL p(?)"),
        ("  SELECT\n\t1 ; ", "SELECT ?"),
    ],
)
def test_constants_are_left_out(statement: str, shape: str) -> None:
    assert normalise(statement) == shape


@given(st.text(alphabet="secr't\\\"`-#/* \n", max_size=30))
def test_no_quoted_text_comes_through(secret: str) -> None:
    quoted = "'" + secret.replace("\\", "\\\\").replace("'", "''") + "'"
    assert normalise(f"SELECT n FROM t WHERE a = {quoted} AND b = 1") == "SELECT n FROM t WHERE a = ? AND b = ?"


@given(st.lists(st.text(max_size=60), max_size=20))
def test_no_log_breaks_it(lines: list[str]) -> None:
    summarise(["# User@Host: app[app] @ [::1]", "SET timestamp=1;", *lines], 100)
