"""How long SearchLogs takes over ten million records, by each filter, on the day under way and on a past one.

The records are made by PostgreSQL itself, half of them today and half yesterday, whose indexes for text and metadata
are built first; about 7 GB of disk while it runs.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from opsplane.logingest.v1 import logingest_pb2, queries_pb2, records_pb2
from opsplane_server.logingest.stores.postgres import PostgresIndexes
from opsplane_server.storage.embedded import EmbeddedPostgres

from tests.bench.loadtest_runs import percentile
from tests.logingest_reading import Reading, reading
from tests.postgres_fixtures import reachable_folder

RECORDS = 10_000_000
PAGE = 50
DEEP_PAGES = 20  # of 1000 records each, before the page that counts as deep
GOAL_SECONDS = 2.0
SECONDS_A_FILTER = 8.0

# A part of the records, to be copied with other times and ids. About 400 bytes each.
_PART = 250_000
_SEED = f"""
CREATE UNLOGGED TABLE public.part AS
SELECT i, (ARRAY[3,3,3,3,3,3,3,2,4,5])[1 + floor(random() * 10)::int]::smallint AS level,
    'service-' || floor(20 * power(random(), 2))::int AS service,
    (ARRAY['Request handled for order', 'Payment accepted by provider', 'Cache miss while loading the basket of',
           'Connection to upstream reset, retrying', 'Stock level updated in warehouse'])[1 + floor(random() * 5)::int]
        || ' ' || floor(random() * 1000000)::int || ' in ' || round((random() * 200)::numeric, 1) || ' ms, shard '
        || floor(random() * 64)::int || ' token ' || substr(md5(random()::text), 1, 12)
        || CASE WHEN random() < 0.001 THEN ' quota exceeded' ELSE '' END AS message,
    'host-' || floor(random() * 50)::int AS host, 'worker-' || floor(random() * 8)::int AS thread,
    'user-' || floor(random() * 100000)::int AS user_id, 's-' || floor(random() * 1000000)::int AS session_id,
    '/api/v1/orders/' || floor(random() * 100000)::int || '/items' AS http_path,
    (ARRAY[200, 200, 200, 201, 404, 500])[1 + floor(random() * 6)::int]::smallint AS http_status,
    random() * 300 AS duration_ms, CASE WHEN random() < 0.03 THEN 'TimeoutError' END AS error_type,
    CASE WHEN random() < 0.01 THEN repeat(E'  at com.example.Foo.bar(Foo.java:17)\\n', 20) END AS stack_trace,
    jsonb_build_object('region', (ARRAY['eu', 'us', 'ap'])[1 + floor(random() * 3)::int], 'attempt',
                       floor(random() * 4)::int::text, 'order', 'o-' || floor(random() * 1000000)::int) AS metadata
FROM generate_series(0, {_PART - 1}) AS i
"""
# $1: number of the part, $2: its first time, $3: how long it lasts. A tenth of a second of disorder.
_COPY = f"""
INSERT INTO logingest.records (id, received_at, timestamp, level, service, message, service_version, environment, host,
    logger, thread, trace_id, span_id, request_id, user_id, session_id, http_method, http_path, http_status,
    duration_ms, error_type, stack_trace, metadata)
SELECT ($1::bigint << 20) + i, at, at + random() * interval '0.1 s', CASE WHEN i % 100000 = 7 THEN 6 ELSE level END,
    service, CASE WHEN i % 125000 = 11 THEN message || ' haystack needle' ELSE message END, '1.2.0', 'production', host,
    'com.example.orders.Handler', thread, md5($1::text || i / 5), substr(md5(i::text), 1, 16), 'req-' || $1 || '-' || i,
    user_id, session_id, 'GET', http_path, http_status, duration_ms, error_type, stack_trace, metadata
FROM (SELECT *, $2::timestamptz + $3::interval * i / {_PART} AS at FROM public.part) AS timed
"""
_GROUP = """
INSERT INTO logingest.groups (id, received_at, record_count, first_time, last_time, minutes, services, levels, counts)
SELECT $1::bigint << 20, now(), sum(n), min(first), max(last), array_agg(minute), array_agg(service), array_agg(level),
       array_agg(n)
FROM (SELECT floor(extract(epoch FROM timestamp) / 60)::int AS minute, service, level, count(*)::int AS n,
             min(timestamp) AS first, max(timestamp) AS last
      FROM logingest.records WHERE id >= $1::bigint << 20 AND timestamp >= $2 AND timestamp <= $2 + $3 + interval '1 s'
      GROUP BY 1, 2, 3) AS counted
"""


@dataclass(frozen=True, slots=True)
class _Day:
    name: str
    start: datetime
    end: datetime


def run(rounds: int) -> list[dict[str, Any]]:
    """Fills and measures, about ten minutes in all; `rounds` does not matter, each filter is asked for many times."""
    return measure(RECORDS)


def measure(records: int) -> list[dict[str, Any]]:
    """The measures over so many records."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with reachable_folder() as folder:
        return asyncio.run(_measure(folder, records))


async def _measure(folder: Path, records: int) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    async with (
        EmbeddedPostgres(folder / "postgres") as postgres,
        reading(postgres.dsn, budget=timedelta(seconds=1.5)) as reader,
    ):
        for day in await _fill(reader, records):
            for title, make in _FILTERS.items():
                entries += await _measure_filter(reader, day, title, make)
    return entries


async def _fill(reader: Reading, records: int) -> list[_Day]:
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    days = [
        _Day("cold", midnight - timedelta(days=1), midnight),
        _Day("hot", midnight, midnight + timedelta(days=1)),
    ]
    began = time.monotonic()
    await reader.partitions.ensure_days([day.start.date() for day in days])
    parts = max(1, records // 2 // _PART)
    span = timedelta(hours=23) / parts
    number = 0
    async with reader.database.connection() as connection:
        await connection.execute(_SEED, timeout=600)
        for day in days:
            for part in range(parts):
                number += 1
                await connection.execute(_COPY, number, day.start + part * span, span, timeout=600)
                await connection.execute(_GROUP, number, day.start + part * span, span, timeout=600)
        await connection.execute("DROP TABLE public.part")
    print(f"filled with {2 * parts * _PART} records in {time.monotonic() - began:.0f} s")
    while await reader.rollups.fold(1):
        pass
    indexes = PostgresIndexes(reader.database)
    for summarize in (indexes.summarize, indexes.summarize_filters):
        began = time.monotonic()
        ranges = await summarize(1_000_000)
        print(f"{summarize.__name__}: {ranges} ranges in {time.monotonic() - began:.1f} s")
    began = time.monotonic()
    await indexes.index_next(days[1].start.date())
    print(f"indexes of the past day in {time.monotonic() - began:.0f} s")
    async with reader.database.connection() as connection:
        for row in await connection.fetch(
            """SELECT relname, pg_size_pretty(pg_total_relation_size(oid)) AS size FROM pg_class
               WHERE relnamespace = 'logingest'::regnamespace AND relname ~ '_[0-9]{8}' ORDER BY relname"""
        ):
            print(f"  {row['relname']}: {row['size']}")
    return days


# --- what is looked for, each time with other values

Make = Callable[[random.Random, _Day, Reading], Awaitable[queries_pb2.LogQuery]]


async def _any(chance: random.Random, day: _Day, reader: Reading, fields: str) -> Any:
    """The fields of some record of the day."""
    at = day.start + (timedelta(hours=22) * chance.random())
    async with reader.database.connection() as connection:
        return await connection.fetchrow(
            f"""SELECT {fields} FROM logingest.records
                WHERE timestamp >= $1 AND timestamp < $1 + interval '30 s' LIMIT 1""",
            at,
        )


def _constant(**fields: Any) -> Make:
    async def make(chance: random.Random, day: _Day, reader: Reading) -> queries_pb2.LogQuery:
        return queries_pb2.LogQuery(**fields)

    return make


def _of_record(fields: str, query: Callable[[Any], queries_pb2.LogQuery]) -> Make:
    async def make(chance: random.Random, day: _Day, reader: Reading) -> queries_pb2.LogQuery:
        return query(await _any(chance, day, reader, fields))

    return make


_FILTERS: dict[str, Make] = {
    "nothing": _constant(),
    "level, a tenth": _constant(min_level=records_pb2.LEVEL_ERROR),
    "level, 1 in 100,000": _constant(levels=[records_pb2.LEVEL_FATAL]),
    "service": _of_record("service", lambda r: queries_pb2.LogQuery(services=[r["service"]])),
    "trace": _of_record("trace_id", lambda r: queries_pb2.LogQuery(trace_id=r["trace_id"])),
    "user": _of_record("user_id", lambda r: queries_pb2.LogQuery(user_id=r["user_id"])),
    "text, a fifth": _constant(text="payment provider"),
    "text, 1 in 1,000": _constant(text="quota"),
    "text, 1 in 125,000": _constant(text="needle"),
    "text, nowhere": _constant(text="unheard"),
    "phrase, 1 in 1,000": _constant(text='"quota exceeded"'),
    "prefix, 1 in 125,000": _constant(text="needl*"),
    "metadata, a third": _constant(metadata={"region": "eu"}),
    "metadata, 1 in 1,000,000": _of_record(
        "metadata->>'order' AS value", lambda r: queries_pb2.LogQuery(metadata={"order": r["value"]})
    ),
    "http_status = 500": _constant(filter="http_status = 500"),
    "request_id": _of_record("request_id", lambda r: queries_pb2.LogQuery(filter=f'request_id = "{r["request_id"]}"')),
    "piece of message, 1 in 125,000": _constant(filter='message : "ystack nee"'),
    "error of a service with a word": _constant(
        services=["service-3"], min_level=records_pb2.LEVEL_ERROR, text="upstream"
    ),
}


async def _measure_filter(reader: Reading, day: _Day, title: str, make: Make) -> list[dict[str, Any]]:
    chance = random.Random(title)  # noqa: S311
    first: list[float] = []
    deep: list[float] = []
    whole: list[float] = []
    pages: list[int] = []
    ends = time.monotonic() + SECONDS_A_FILTER
    while len(first) < 5 or (time.monotonic() < ends and len(first) < 60):
        request = logingest_pb2.SearchLogsRequest(
            query=await make(chance, day, reader), start_time=_time(day.start), end_time=_time(day.end), page_size=PAGE
        )
        seconds, page = await _timed(reader, request)
        first.append(seconds)
        if not page.next_page_token or len(page.entries) < PAGE:
            # Few match: how long until the caller has all.
            count = 1
            while page.next_page_token:
                request.page_token = page.next_page_token
                more, page = await _timed(reader, request)
                seconds += more
                count += 1
            whole.append(seconds)
            pages.append(count)
    request.page_token = ""
    request.page_size = 1000
    for _ in range(DEEP_PAGES):
        _, page = await _timed(reader, request)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    else:
        request.page_size = PAGE
        deep = [(await _timed(reader, request))[0] for _ in range(20)]
    key = f"search_{day.name}_{title}"
    entries = [_entry(f"{key} p95", first, f"first page of {PAGE}", goal=True)]
    if deep:
        entries.append(_entry(f"{key} deep p95", deep, f"page of {PAGE} after {DEEP_PAGES * 1000} records", goal=True))
    if whole:
        entries.append(_entry(f"{key} all p95", whole, f"until all are told, in up to {max(pages)} pages", goal=False))
    for entry in entries:
        print(f"{entry['measure']}: {entry['value']:.3f} s, {entry['reference']}")
    return entries


async def _timed(
    reader: Reading, request: logingest_pb2.SearchLogsRequest
) -> tuple[float, logingest_pb2.SearchLogsResponse]:
    began = time.monotonic()
    page = await reader.stub.SearchLogs(request)
    return time.monotonic() - began, page


def _entry(measure: str, seconds: list[float], what: str, *, goal: bool) -> dict[str, Any]:
    value = percentile(seconds, 0.95)
    return {
        "measure": measure,
        "value": value,
        "unit": "s",
        "reference": f"{what}; p50 {percentile(seconds, 0.5):.3f} s, {len(seconds)} times",
        "goal": f"<= {GOAL_SECONDS:g}" if goal else None,
        "met": value <= GOAL_SECONDS if goal else None,
    }


def _time(moment: datetime) -> Timestamp:
    result = Timestamp()
    result.FromDatetime(moment)
    return result
