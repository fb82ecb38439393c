"""Queries to a real ClickHouse: what rows become, what is refused, and how it says what is wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from opsplane_server.errors import FailedPrecondition
from opsplane_server.loadtesting.datasets.model import DEFAULT_LIMIT, ClickHouseQuery, Rows
from opsplane_server.loadtesting.datasets.reading import ReadingLimits, RowReader

from tests.clickhouse_server import ClickHouseServer, running_clickhouse
from tests.integration.loadtesting.datasets.workers import workers
from tests.waiting import until

LONG = timedelta(seconds=120)
SHORT = timedelta(seconds=2)
READERS = ("opsplane", "reader", "settings")


@pytest.fixture
async def reader() -> AsyncIterator[RowReader]:
    async with RowReader() as reader:
        yield reader


def query(server: ClickHouseServer, text: str, **changes: Any) -> ClickHouseQuery:
    known: dict[str, Any] = {"host": server.host, "port": server.port, "user": server.user, "timeout": LONG}
    return ClickHouseQuery(**(known | {"query": text} | changes))


async def read(reader: RowReader, server: ClickHouseServer, text: str, most: int = 0, **changes: Any) -> Rows:
    password = changes.pop("password", server.password)
    return await reader.query(query(server, text, **changes), password, limit=most)


async def refusal(reader: RowReader, server: ClickHouseServer, text: str = "SELECT 1 AS a", **changes: Any) -> str:
    with pytest.raises(FailedPrecondition) as caught:
        await read(reader, server, text, **changes)
    assert caught.value.reason == "DATA_SET_FAILED"
    assert server.password not in caught.value.message
    return caught.value.message


async def test_columns_of_all_types_become_json(reader: RowReader, clickhouse: ClickHouseServer) -> None:
    rows = await read(
        reader,
        clickhouse,
        """SELECT toUInt64(18446744073709551615) AS big, toInt64(-5) AS small, toUInt8(1) AS flag,
                  toDateTime('2024-01-15 10:00:00') AS local, toDateTime('2024-01-15 10:00:00', 'UTC') AS utc,
                  toDate('2024-01-15') AS day, 'ö' AS text, unhex('ff00') AS bytes, toFixedString('ab', 4) AS fixed,
                  CAST(NULL AS Nullable(Int32)) AS nothing, [1, 2] AS list, ['a', 'b'] AS words,
                  toDecimal64(12.5, 4) AS price, toFloat64(1.5) AS half, 0 / 0 AS nan,
                  CAST('y' AS Enum8('x' = 1, 'y' = 2)) AS kind, (1, 'a') AS pair,
                  toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0') AS id""",
    )
    assert json.loads(rows.file) == [
        {
            "big": "18446744073709551615", "small": -5, "flag": 1,
            # The server's zone is nine hours ahead.
            "local": "2024-01-15T01:00:00Z", "utc": "2024-01-15T10:00:00Z",
            "day": "2024-01-15", "text": "ö", "bytes": "ff00", "fixed": "ab",
            "nothing": None, "list": [1, 2], "words": ["a", "b"], "price": 12.5, "half": 1.5, "nan": None,
            "kind": "y", "pair": [1, "a"], "id": "61f0c404-5cb3-11e7-907b-a6006ad3dba0",
        }
    ]  # fmt: skip


async def test_no_more_rows_come_than_the_least_limit(reader: RowReader, clickhouse: ClickHouseServer) -> None:
    async def check(user: str, own: int, given: int, expected: int) -> None:
        rows = await read(reader, clickhouse, "SELECT number FROM system.numbers", given, user=user, limit=own)
        assert [json.loads(line)["number"] for line in rows.lines.split(b"\n")] == list(range(expected)), user

    limits = ((0, 0, DEFAULT_LIMIT), (7, 0, 7), (7, 3, 3), (7, 30, 7))
    await asyncio.gather(*(check(user, *each) for user in READERS for each in limits))


async def test_queries_cannot_write_whoever_asks(reader: RowReader, clickhouse: ClickHouseServer) -> None:
    clickhouse.run("CREATE TABLE kept (a Int8) ENGINE = Memory")
    clickhouse.run("INSERT INTO kept VALUES", [(1,), (2,)])
    always = ("INSERT INTO kept SELECT 3", "SET readonly = 0", "SELECT 1 AS a SETTINGS readonly = 0")
    once = (
        "DROP TABLE kept",
        "CREATE TABLE other (a Int8) ENGINE = Memory",
        "RENAME TABLE kept TO other",
        "SYSTEM SHUTDOWN",
    )
    asked = [*((user, text) for user in READERS for text in always), *((READERS[0], text) for text in once)]
    found = await asyncio.gather(*(refusal(reader, clickhouse, text, user=user) for user, text in asked))
    assert all("readonly mode" in answer or "Cannot execute SET" in answer for answer in found), found
    assert clickhouse.run("SELECT a FROM kept ORDER BY a") == [(1,), (2,)]
    assert clickhouse.run("EXISTS TABLE other") == [(0,)]


async def test_what_is_wrong_is_said_in_words(reader: RowReader, clickhouse: ClickHouseServer) -> None:
    expected: tuple[tuple[dict[str, Any], str], ...] = (
        ({"password": "wrong"}, "ClickHouse refuses: Wrong password for user opsplane"),
        ({"user": "nobody"}, "ClickHouse refuses: Unknown user nobody"),
        ({"database": "none"}, "ClickHouse refuses: Database none doesn't exist"),
        ({"text": "SELECT x FROM nowhere"}, "ClickHouse refuses: Table default.nowhere doesn't exist"),
        ({"text": "SELECT 1 +"}, "ClickHouse refuses: Syntax error"),
        ({"text": "SELECT 1; SELECT 2"}, "ClickHouse refuses: Syntax error (Multi-statements are not allowed)"),
        ({"text": "SELECT 1 AS a WHERE 0"}, "there are no rows"),
        ({"text": "SELECT count() FROM system.one"}, "the name of column 'count()' can be used in no template"),
        ({"port": 1}, "127.0.0.1:1 cannot be reached: Connection refused"),
        ({"host": "clickhouse.invalid"}, "clickhouse.invalid cannot be found"),
        ({"host": "169.254.169.254"}, "169.254.169.254 has only addresses that are not allowed"),
        ({"port": clickhouse.secure_port}, "it may want TLS"),
        ({"tls": True}, "it may not speak TLS"),
    )
    found = await asyncio.gather(*(refusal(reader, clickhouse, **changes) for changes, _ in expected))
    for answer, (_, problem) in zip(found, expected, strict=True):
        assert problem in answer
        assert "Stack trace" not in answer


async def test_tls_is_checked_with_the_authorities_of_the_system(
    reader: RowReader, clickhouse: ClickHouseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure: dict[str, Any] = {"tls": True, "port": clickhouse.secure_port}
    assert "certificate verify failed" in await refusal(reader, clickhouse, **secure)
    monkeypatch.setenv("SSL_CERT_FILE", str(clickhouse.authority_file))
    for host in ("127.0.0.1", "localhost"):
        rows = await read(reader, clickhouse, "SELECT 1 AS a", host=host, **secure)
        assert rows.lines == b'{"a":1}'
    answer = await refusal(reader, clickhouse, host=clickhouse.unnamed_host, **secure)
    assert "IP address mismatch, certificate is not valid for '127.0.0.2'" in answer


async def test_query_beyond_its_time_is_ended_on_the_server_too(
    reader: RowReader, clickhouse: ClickHouseServer
) -> None:
    text = "SELECT count() AS endless FROM system.numbers"
    for answer in await asyncio.gather(
        *(refusal(reader, clickhouse, text, user=user, timeout=SHORT) for user in READERS)
    ):
        assert "was not done within 2 s" in answer or "Timeout exceeded" in answer
    await until(lambda: not clickhouse.run("SELECT 1 FROM system.processes WHERE query LIKE 'SELECT count() AS endl%'"))


async def test_query_that_nobody_waits_for_is_ended_on_the_server_too(
    reader: RowReader, clickhouse: ClickHouseServer
) -> None:
    text = "SELECT count() AS unwanted FROM system.numbers"

    def running() -> bool:
        return bool(clickhouse.run("SELECT 1 FROM system.processes WHERE query LIKE 'SELECT count() AS unw%'"))

    # This user cannot set how long queries may take, and 18.16 does not mind that the connection is gone.
    waiting = asyncio.create_task(read(reader, clickhouse, text, user="reader"))
    await until(running)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: not running())


async def test_server_that_hangs_dies_or_comes_back(reader: RowReader) -> None:
    with running_clickhouse() as server:
        with server.frozen():
            assert "does not answer in time" in await refusal(reader, server, timeout=SHORT)
            waiting = asyncio.create_task(read(reader, server, "SELECT 1 AS a"))
            await until(lambda: bool(workers()))
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert not workers()
        waiting = asyncio.create_task(read(reader, server, "SELECT sleep(1) AS a FROM system.numbers"))
        await until(lambda: bool(server.run("SELECT 1 FROM system.processes WHERE query LIKE 'SELECT sleep%'")))
        server.kill()
        with pytest.raises(FailedPrecondition, match="ClickHouse breaks off"):
            await waiting
        assert "Connection refused" in await refusal(reader, server)
        server.start()
        assert (await read(reader, server, "SELECT 1 AS a")).row_count == 1


async def test_rows_beyond_the_bound_are_refused_and_not_kept(reader: RowReader, clickhouse: ClickHouseServer) -> None:
    found = await refusal(reader, clickhouse, "SELECT toString(range(20000)) AS a FROM numbers(1000)")
    assert "the rows come to more than 64 MiB of JSON" in found


async def test_answer_beyond_the_memory_of_its_process_is_refused(clickhouse: ClickHouseServer) -> None:
    async with RowReader(ReadingLimits(memory_bytes=300 * 1024 * 1024)) as reader:
        found = await refusal(reader, clickhouse, "SELECT toString(range(3000000)) AS a FROM numbers(30)")
    assert "more memory" in found
    assert not workers()
