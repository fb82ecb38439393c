"""SearchLogs over a real database: what it finds is what a plain filter over all records finds."""

from __future__ import annotations

import asyncio
import json
import random
import re
import string
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from opsplane.logingest.v1 import logingest_pb2, queries_pb2, records_pb2
from opsplane_server.errors import Unavailable
from opsplane_server.logingest import search as search_module
from opsplane_server.logingest.queries import LATEST_US, LogQuery, Place
from opsplane_server.logingest.search import Searcher
from opsplane_server.logingest.stores.postgres import PostgresIndexes, PostgresRecordSearch

from tests.logingest_reading import NOON, Reading, reading, record
from tests.rpc_harness import require_status

Record = dict[str, Any]
DAY_US = 86_400_000_000
WORDS = (
    "timeout",
    "order",
    "Order-77",
    "/api/v1/orders",
    "a.b.c",
    "주문",
    "TIME_OUT",
    "user@example.com",
    "1e5abc",
    "b",
)


@pytest.fixture
async def reader(dsn: str) -> AsyncIterator[Reading]:
    async with reading(dsn) as opened:
        yield opened


async def search(reader: Reading, query: queries_pb2.LogQuery | None = None, **fields: Any) -> list[str]:
    """The messages that are found, over all pages."""
    found: list[str] = []
    request = logingest_pb2.SearchLogsRequest(query=query, **fields)
    while True:
        page = await reader.stub.SearchLogs(request)
        found += [entry.record.message for entry in page.entries]
        assert page.HasField("searched_back_to") == bool(page.next_page_token)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def timestamp(moment: datetime) -> Timestamp:
    result = Timestamp()
    result.FromDatetime(moment)
    return result


# --- a plain filter, in the words of the proto


def tokens(text: str | None) -> list[str]:
    # PostgreSQL takes a number with an exponent for a word of its own.
    return re.findall(r"\d+e\d+(?![0-9])|[0-9A-Za-z\x80-\U0010ffff]+", (text or "").lower())


def speaks(record: Record, term: str) -> bool:
    prefix = term.endswith("*")
    wanted = tokens(term)
    for text in (record["message"], record["error_type"], record["stack_trace"]):
        words = tokens(text)
        for at in range(len(words)):
            piece = words[at : at + len(wanted)]
            if piece == wanted or (
                prefix and piece[:-1] == wanted[:-1] and len(piece) == len(wanted) and piece[-1].startswith(wanted[-1])
            ):
                return True
    return False


def holds(record: Record, key: str, value: str) -> bool:
    metadata = json.loads(record["metadata"] or "{}")
    if key in metadata:
        found = metadata[key]
    else:
        found = metadata
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, (dict, list)) or found is None:
        return False
    return (found if isinstance(found, str) else json.dumps(found)) == value


def random_records(chance: random.Random, count: int) -> list[Record]:
    def maybe(values: Sequence[Any]) -> Any:
        return chance.choice([None, *values])

    return [
        record(
            f"{' '.join(chance.choices(WORDS, k=chance.randint(1, 4)))} #{number}",
            timestamp=NOON
            - timedelta(microseconds=chance.choice([0, 1, 10**6, chance.randint(0, 3 * 86_400 * 10**6)])),
            level=chance.randint(1, 6),
            service=chance.choice(["orders", "payments", "o'hara", "검색"]),
            trace_id=maybe(["t1", "t2"]),
            user_id=maybe(["u1", "u2", "u\\3"]),
            request_id=maybe(["r1", "r2"]),
            host=maybe(["web-1", "web-2"]),
            http_path=maybe(["/orders/1", "/Orders/2"]),
            http_status=maybe([200, 404, 500]),
            duration_ms=maybe([0.0, 1.5, 1000.0]),
            error_type=maybe(["TimeoutError", "b c"]),
            stack_trace=maybe(["at com.example.Foo(Foo.java:12)\n  at b order"]),
            metadata=maybe(
                [
                    {"a": "1"},
                    {"a": 1, "order": {"id": 42, "open": True}},
                    {"a": 1.50, "order.id": "x", "order": {"id": "42"}},
                    {"order": {"id": [42], "open": "true", "deep": {"er": "ü"}}},
                ]
            ),
        )
        for number in range(count)
    ]


def random_query(chance: random.Random) -> tuple[queries_pb2.LogQuery, Callable[[Record], bool]]:
    query = queries_pb2.LogQuery()
    tests: list[Callable[[Record], bool]] = []

    def level() -> None:
        query.min_level = least = records_pb2.Level.ValueType(chance.randint(1, 6))
        tests.append(lambda r: r["level"] >= least)

    def levels() -> None:
        wanted = chance.sample(range(1, 7), 2)
        query.levels.extend(records_pb2.Level.ValueType(number) for number in wanted)
        tests.append(lambda r: r["level"] in wanted)

    def services() -> None:
        wanted = chance.sample(["orders", "payments", "o'hara", "검색", "none"], 2)
        query.services.extend(wanted)
        tests.append(lambda r: r["service"] in wanted)

    def trace() -> None:
        query.trace_id = wanted = chance.choice(["t1", "t2", "t3"])
        tests.append(lambda r: r["trace_id"] == wanted)

    def user() -> None:
        query.user_id = wanted = chance.choice(["u1", "u\\3"])
        tests.append(lambda r: r["user_id"] == wanted)

    def text() -> None:
        terms = chance.choices(
            ["timeout", "ORDER", "ord*", '"order 77"', "order-77", "api/v1/or*", '"a b c"', "주*", "TimeoutError",
             "foo", '"order b"', "java.12", "1e5abc", "1e5*", "user@example.com", "b", "x'y", "a\\b"],
            k=chance.randint(1, 2),
        )  # fmt: skip
        query.text = " ".join(terms)
        wanted = [term.strip('"') for term in terms]
        tests.append(lambda r: all(speaks(r, term) for term in wanted))

    def metadata() -> None:
        key, value = chance.choice(
            [("a", "1"), ("a", "1.5"), ("a", "1.50"), ("order.id", "42"), ("order.id", "x"), ("order.open", "true"),
             ("order.deep.er", "ü"), ("order", "42"), ("order.id.0", "42"), ("nope", "")]
        )  # fmt: skip
        query.metadata[key] = value
        tests.append(lambda r: holds(r, key, value))

    def condition() -> None:
        text, test = chance.choice(CONDITIONS)
        query.filter = text
        tests.append(test)

    for add in chance.sample([level, levels, services, trace, user, text, metadata, condition], chance.randint(0, 3)):
        add()
    return query, lambda r: all(test(r) for test in tests)


CONDITIONS: list[tuple[str, Callable[[Record], bool]]] = [
    ("http_status >= 404", lambda r: (r["http_status"] or 0) >= 404),
    ("http_status = 99999999999", lambda r: False),
    ('http_path : "/orders"', lambda r: "/orders" in (r["http_path"] or "").lower()),
    ('host = "" AND duration_ms > 1', lambda r: not r["host"] and (r["duration_ms"] or 0) > 1),
    ("duration_ms = 0", lambda r: r["duration_ms"] == 0),
    ("host != web-1", lambda r: r["host"] != "web-1"),
    ("request_id = r1", lambda r: r["request_id"] == "r1"),
    ('request_id = ""', lambda r: not r["request_id"]),
    ("error_type : out", lambda r: "out" in (r["error_type"] or "").lower()),
    ("message : ORDER", lambda r: "order" in r["message"].lower()),
]


@pytest.mark.parametrize(("seed", "slice_rows", "indexed"), [(1, 20_000, False), (2, 40, False), (3, 40, True)])
async def test_finds_what_a_plain_filter_finds(
    reader: Reading, monkeypatch: pytest.MonkeyPatch, seed: int, slice_rows: int, indexed: bool
) -> None:
    # So small that the few records of a test are searched in many slices, and past days by their indexes.
    for name in ("_FIRST_ROWS", "_FIRST_ROWS_POINTED", "_LEAST_ROWS", "_ROWS_FOR_POINTS"):
        monkeypatch.setattr(search_module, name, slice_rows)
    monkeypatch.setattr(search_module, "_ROWS_BEFORE_INDEXES", 0 if indexed else 150_000)
    chance = random.Random(seed)  # noqa: S311
    records = random_records(chance, 400)
    ids: dict[str, int] = {}
    for part in (records[:150], records[150:390], records[390:]):
        await reader.rollups.fold(10)  # all but the last
        group = await reader.store(*part)
        ids |= {r["message"]: group + place for place, r in enumerate(part)}
    if indexed:
        indexes = PostgresIndexes(reader.database)
        assert [await indexes.index_next(date(2026, 11, 20)) for _ in range(2)] == [
            date(2026, 11, 19),
            date(2026, 11, 18),
        ]
    newest_first = sorted(records, key=lambda r: (r["timestamp"], ids[r["message"]]), reverse=True)
    matched = 0
    for _ in range(50):
        query, matches = random_query(chance)
        start = NOON - timedelta(microseconds=chance.choice([0, 1, DAY_US, 4 * DAY_US]))
        end = NOON + timedelta(microseconds=chance.choice([1, 2]))
        expected = [r["message"] for r in newest_first if start <= r["timestamp"] < end and matches(r)]
        found = await search(
            reader, query, start_time=timestamp(start), end_time=timestamp(end), page_size=chance.choice([7, 50, 1000])
        )
        assert found == expected, query
        matched += bool(expected)
    assert matched > 12


async def test_pages_stay_as_they_are_while_records_arrive(reader: Reading) -> None:
    moments = [NOON - timedelta(seconds=number // 3) for number in range(90)]  # three at a time
    await reader.store(*(record(str(number), timestamp=moment) for number, moment in enumerate(moments)))
    request = logingest_pb2.SearchLogsRequest(page_size=10)
    found: list[queries_pb2.LogEntry] = []
    for page_number in range(20):
        page = await reader.stub.SearchLogs(request)
        found += page.entries
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
        await reader.store(record("new", timestamp=NOON + timedelta(seconds=page_number)))
        await reader.rollups.fold(100)
    assert sorted(int(entry.record.message) for entry in found) == list(range(90))
    order = [(entry.record.timestamp.ToNanoseconds(), int(entry.entry_id)) for entry in found]
    assert order == sorted(order, reverse=True)


async def test_answers_with_what_it_has_when_its_time_is_over(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "_FIRST_ROWS", 10)
    monkeypatch.setattr(search_module, "_GROWTH", 1)
    monkeypatch.setattr(search_module, "_LEAST_ROWS", 10)
    async with reading(dsn, budget=timedelta(0)) as reader:
        await reader.store(*(record(f"m{n}", timestamp=NOON - timedelta(minutes=n)) for n in range(100)))
        query = queries_pb2.LogQuery(text="m99")
        pages: list[logingest_pb2.SearchLogsResponse] = []
        request = logingest_pb2.SearchLogsRequest(query=query)
        while not pages or pages[-1].next_page_token:
            request.page_token = pages[-1].next_page_token if pages else ""
            pages.append(await reader.stub.SearchLogs(request))
    assert len(pages) > 2
    assert [entry.record.message for page in pages for entry in page.entries] == ["m99"]
    back_to = [page.searched_back_to.ToDatetime(UTC) for page in pages[:-1]]
    assert back_to == sorted(back_to, reverse=True)
    assert not pages[-1].HasField("searched_back_to")


async def test_entries_are_what_was_stored(reader: Reading) -> None:
    moment = datetime(2026, 11, 20, 7, 30, 15, 123456, tzinfo=UTC)
    group = await reader.store(
        record(
            "first",
            timestamp=moment,
            level=5,
            trace_id="t",
            http_path="/x",
            http_status=404,
            duration_ms=0.0,
            stack_trace="at x",
            metadata={"a": "1", "ü": ""},
        ),
        record("second", timestamp=NOON, metadata='{"n": ' + "9" * 5000 + ', "deep": {"a": null}}'),
    )
    page = await reader.stub.SearchLogs(logingest_pb2.SearchLogsRequest())
    second, first = page.entries
    assert [int(first.entry_id), int(second.entry_id)] == [group, group + 1]
    assert first.record == records_pb2.LogRecord(
        timestamp=timestamp(moment),
        level=records_pb2.LEVEL_ERROR,
        service="orders",
        message="first",
        trace_id="t",
        http_path="/x",
        http_status=404,
        duration_ms=0.0,
        stack_trace="at x",
        metadata={"a": "1", "ü": ""},
    )
    assert first.record.HasField("duration_ms")
    assert not second.record.HasField("duration_ms")
    assert json.loads(second.record.metadata_json, parse_int=str) == {"n": "9" * 5000, "deep": {"a": None}}
    assert first.receive_time == timestamp(NOON)


async def test_a_page_of_large_records_fits_a_message(reader: Reading) -> None:
    await reader.store(*(record(string.ascii_letters * 20_000 + str(number)) for number in range(9)))
    request = logingest_pb2.SearchLogsRequest()
    sizes = []
    while True:
        page = await reader.stub.SearchLogs(request)  # the client takes 4 MiB
        sizes.append(len(page.entries))
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert sum(sizes) == 9
    assert max(sizes) == 3


async def test_words_beyond_64_kib_are_not_looked_for(reader: Reading) -> None:
    await reader.store(record("inside " + "x " * 40_000 + "outside", stack_trace="y " * 40_000 + "z"))
    assert len(await search(reader, queries_pb2.LogQuery(text="inside"))) == 1
    assert await search(reader, queries_pb2.LogQuery(text="outside")) == []
    assert await search(reader, queries_pb2.LogQuery(text="z")) == []


async def test_finds_nothing_where_nothing_is(reader: Reading) -> None:
    assert await search(reader) == []
    await reader.store(record())
    contradiction = queries_pb2.LogQuery(min_level=records_pb2.LEVEL_ERROR, levels=[records_pb2.LEVEL_INFO])
    assert await search(reader, contradiction) == []
    future = Timestamp(seconds=253402300799)
    assert await search(reader, start_time=future) == []
    assert await search(reader, end_time=Timestamp(seconds=-1)) == []
    assert await search(reader, start_time=Timestamp(seconds=-1), end_time=future) == ["hello"]


async def test_a_day_that_is_removed_meanwhile_is_left_out(reader: Reading) -> None:
    await reader.store(record("old", timestamp=NOON - timedelta(days=1)), record("new"))
    await reader.value("DROP TABLE logingest.records_20261119")
    assert await search(reader) == ["new"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"text": '"open'}, "query.text"),
        ({"text": "*"}, "query.text"),
        ({"text": "가" * 700}, "query.text"),
        ({"filter": "nope = 1"}, "filter"),
        ({"filter": "message"}, "filter"),
    ],
)
async def test_refuses_what_it_can_not_look_for(reader: Reading, query: dict[str, Any], field: str) -> None:
    with require_status(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await reader.stub.SearchLogs(logingest_pb2.SearchLogsRequest(query=queries_pb2.LogQuery(**query)))
    assert field in refusal.message


async def test_a_page_token_belongs_to_its_search(reader: Reading) -> None:
    await reader.store(record(), record())
    page = await reader.stub.SearchLogs(logingest_pb2.SearchLogsRequest(page_size=1))
    other = logingest_pb2.SearchLogsRequest(query=queries_pb2.LogQuery(trace_id="t"), page_token=page.next_page_token)
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        await reader.stub.SearchLogs(other)


async def test_a_search_that_takes_too_long_says_so(reader: Reading) -> None:
    await reader.store(record())
    hurried = Searcher(PostgresRecordSearch(reader.database, statement_seconds=0.5))
    async with reader.database.transaction() as connection:
        await connection.execute("LOCK TABLE logingest.records_20261120 IN ACCESS EXCLUSIVE MODE")
        searching = asyncio.create_task(hurried.page(LogQuery(), 0, Place(LATEST_US, 0), 10))
        with pytest.raises(Unavailable):
            await searching


async def test_a_page_that_is_full_where_a_day_begins_is_not_the_last(reader: Reading) -> None:
    midnight = datetime(2026, 11, 20, tzinfo=UTC)
    for day in range(4):
        await reader.store(*(record(f"{day}.{n}", timestamp=midnight - timedelta(days=day)) for n in range(2)))
    for size in (1, 2, 3, 4):
        expected = [f"{day}.{n}" for day in range(4) for n in (1, 0)]
        assert await search(reader, start_time=timestamp(midnight - timedelta(days=3)), page_size=size) == expected
