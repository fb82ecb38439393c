"""Writing over a real channel into a real database: what is stored, what is answered, and what is stored once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import grpc
import pytest
from opsplane.logingest.v1 import logingest_pb2, records_pb2
from opsplane_server.logingest import framing

from tests.logingest_harness import LogIngest, batch, request
from tests.rpc_harness import require_status

Refusal = records_pb2.BatchRefusal
Rejected = records_pb2.RejectedRecord


async def test_every_field_is_stored_as_it_was_sent(logs: LogIngest) -> None:
    record = records_pb2.LogRecord(
        level=records_pb2.LEVEL_ERROR,
        service="сервис",
        message='日本語 "quoted" \\ back\tslash',
        service_version="1.0",
        environment="prod",
        host="h",
        logger="l",
        thread="t",
        trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
        span_id="00f067aa0ba902b7",
        request_id="r",
        user_id="u",
        session_id="s",
        http_method="GET",
        http_path="/p",
        http_status=503,
        duration_ms=0.0,
        error_type="E",
        stack_trace="at x\nat y",
        metadata={"k": 'v"\\\n', "語": "", "": ""} | {"k2": "\x01"},
    )
    del record.metadata[""]
    record.timestamp.GetCurrentTime()
    record.timestamp.nanos = 123_456_789
    document = '{"a": {"b": [1, 2.50]}, "n": null}'
    nested = records_pb2.LogRecord(level=records_pb2.LEVEL_FATAL, service="a", message="m", metadata_json=document)
    bare = records_pb2.LogRecord(level=records_pb2.LEVEL_TRACE, service="b", message="n")
    before = datetime.now(UTC)
    answer = await logs.stub.WriteLogs(
        logingest_pb2.WriteLogsRequest(batch=records_pb2.LogBatch(records=[record, nested, bare]))
    )
    assert answer.result == records_pb2.BatchResult(sequence=1, stored_count=3)
    first, second, third = await logs.rows()
    names = [field.name for field in record.DESCRIPTOR.fields]
    for name in set(names) - {"timestamp", "metadata", "metadata_json"}:
        assert first[name] == getattr(record, name), name
    seconds, nanos = record.timestamp.seconds, record.timestamp.nanos
    assert first["timestamp"] == datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanos // 1000)
    async with logs.database.connection() as connection:
        assert await connection.fetchval("SELECT metadata ->> 'k' FROM logingest.records WHERE level = 5") == 'v"\\\n'
        pairs = await connection.fetch("SELECT * FROM logingest.records, jsonb_each_text(metadata) WHERE level = 5")
        assert {row["key"]: row["value"] for row in pairs} == dict(record.metadata)
        assert await connection.fetchval("SELECT metadata FROM logingest.records WHERE level = 6") == document
    assert [row["id"] - first["id"] for row in (first, second, third)] == [0, 1, 2]
    assert all(third[name] is None for name in (*names[4:16], "http_status", "duration_ms", "stack_trace", "metadata"))
    assert before <= third["timestamp"] == third["received_at"] <= datetime.now(UTC)


async def test_answers_come_in_order_with_what_is_wrong(logs: LogIngest) -> None:
    bad = batch("b2", "one", "", "three")
    bad.records[2].level = records_pb2.LEVEL_UNSPECIFIED
    answers = await logs.stream([request(batch("b1", "x", "y"), client_id="c"), request(bad), request(batch("", "z"))])
    assert [(answer.sequence, answer.batch_id, answer.stored_count) for answer in answers] == [
        (1, "b1", 2),
        (2, "b2", 1),
        (3, "", 1),
    ]
    rejected = answers[1].rejected_records
    assert [(one.index, one.field, one.reason) for one in rejected] == [
        (1, "message", Rejected.REASON_REQUIRED),
        (2, "level", Rejected.REASON_REQUIRED),
    ]
    assert await logs.messages() == ["one", "x", "y", "z"]


async def test_a_batch_that_is_sent_again_is_stored_once_and_answered_alike(logs: LogIngest) -> None:
    sent = batch("b1", "one", "")
    [first] = await logs.stream([request(sent)])
    [again] = await logs.stream([request(sent)])
    assert again.duplicate
    assert not first.duplicate
    again.duplicate = False
    assert again == first
    write = await logs.stub.WriteLogs(logingest_pb2.WriteLogsRequest(batch=sent))
    assert write.result.duplicate
    [other] = await logs.stream([request(batch("b1", "other"))])
    assert other.refusal.reason == Refusal.REASON_BATCH_ID_REUSED
    [elsewhere] = await logs.stream([request(sent, client_id="somebody-else")])
    assert not elsewhere.duplicate
    assert await logs.messages() == ["one", "one"]


async def test_twins_at_the_same_time_are_stored_once(logs: LogIngest) -> None:
    streams = [[request(batch(f"b{number % 10}", f"m{number % 10}")) for number in range(40)] for _ in range(8)]
    answers = await asyncio.gather(*(logs.stream(messages) for messages in streams))
    assert await logs.messages() == sorted(f"m{number}" for number in range(10))
    assert sum(not answer.duplicate for stream in answers for answer in stream) == 10
    assert all(answer.stored_count == 1 for stream in answers for answer in stream)


async def test_one_stream_may_send_a_batch_twice(logs: LogIngest) -> None:
    answers = await logs.stream([request(batch("same", "m"))] * 5)
    # Several connections store at the same time, so any of them may be the one.
    assert sorted(answer.duplicate for answer in answers) == [False, True, True, True, True]
    assert await logs.messages() == ["m"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\xff\xff\xff", Refusal.REASON_MALFORMED),
        (b"\x12\x05abc", Refusal.REASON_MALFORMED),
        (b"\x12\x02\x12\x09", Refusal.REASON_MALFORMED),
        (request(records_pb2.LogBatch(batch_id="e")), Refusal.REASON_EMPTY),
        (b"\x12\x00", Refusal.REASON_EMPTY),
        (request(batch("t", *["m"] * 1001)), Refusal.REASON_TOO_MANY_RECORDS),
        (request(batch("t", *["m" * 2000] * 1001)), Refusal.REASON_TOO_MANY_RECORDS),
        (request(batch("not an id", "m")), Refusal.REASON_INVALID_BATCH_ID),
        (request(batch("x" * 65, "m")), Refusal.REASON_INVALID_BATCH_ID),
    ],
)
async def test_a_batch_that_is_none_is_refused_and_the_stream_goes_on(
    logs: LogIngest, message: bytes, reason: Refusal.Reason.ValueType
) -> None:
    answers = await logs.stream([request(batch("b1", "before")), message, request(batch("b2", "after"))])
    assert [answer.refusal.reason for answer in answers] == [0, reason, 0]
    assert [answer.stored_count for answer in answers] == [1, 0, 1]
    assert await logs.messages() == ["after", "before"]


async def test_a_record_that_is_none_costs_its_neighbours_nothing(logs: LogIngest) -> None:
    good = [record.SerializeToString() for record in batch("", "one", "three").records]
    broken_off = b"\x1a\x05api"
    message = framing.join_message(framing.join_batch(b"mixed", [good[0], broken_off, good[1], b"\x22\xff"]))
    [answer] = await logs.stream([message])
    assert answer.batch_id == "mixed"
    assert [(one.index, one.reason) for one in answer.rejected_records] == [
        (1, Rejected.REASON_MALFORMED),
        (3, Rejected.REASON_MALFORMED),
    ]
    assert await logs.messages() == ["one", "three"]


async def test_what_only_postgresql_refuses_costs_its_neighbours_nothing(logs: LogIngest) -> None:
    await logs.stream([request(batch("", "the first makes the partition"))])
    async with logs.database.connection() as connection:
        table = await connection.fetchval("SELECT tableoid::regclass::text FROM logingest.records")
        await connection.execute(f"ALTER TABLE {table} ADD CHECK (message <> 'cursed')")
    sent = [batch(f"b{number}", *(f"{number}-{index}" for index in range(50))) for number in range(6)]
    sent[2].records[7].message = "cursed"
    sent[2].records[49].message = "cursed"
    answers = await logs.stream([request(one) for one in sent])
    assert [answer.stored_count for answer in answers] == [50, 50, 48, 50, 50, 50]
    assert [(one.index, one.reason) for one in answers[2].rejected_records] == [
        (7, Rejected.REASON_STORAGE),
        (49, Rejected.REASON_STORAGE),
    ]
    [again] = await logs.stream([request(sent[2])])
    assert again.duplicate
    assert again.rejected_records == answers[2].rejected_records
    assert len(await logs.rows()) == 299


async def test_a_stream_that_is_answered_at_its_end(logs: LogIngest) -> None:
    await logs.stream([request(batch("known", "m", "n"), client_id="c")])
    sent = [batch("b1", "one", ""), batch("known", "m", "n"), batch("bad id", "x"), batch("", "two")]

    async def requests() -> AsyncIterator[logingest_pb2.IngestLogsRequest]:
        yield logingest_pb2.IngestLogsRequest(settings=logingest_pb2.StreamSettings(client_id="c"))
        for one in sent:
            yield logingest_pb2.IngestLogsRequest(batch=one)

    summary = await logs.stub.IngestLogs(requests())
    assert (summary.batch_count, summary.duplicate_batch_count, summary.refused_batch_count) == (4, 1, 1)
    assert (summary.stored_count, summary.rejected_count) == (2, 1)
    assert [one.sequence for one in summary.incomplete_batches] == [1, 3]


async def test_settings_that_are_wrong_end_the_stream(logs: LogIngest) -> None:
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT") as refusal:
        await logs.stream([request(batch("b", "m"), client_id="no good")])
    assert refusal.bad_fields == ["settings.client_id"]
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT") as refusal:
        await logs.stream([request(batch("b1", "m")), request(batch("b2", "n"), client_id="late")])
    assert refusal.bad_fields == ["settings"]


async def test_fast_is_stored_too(logs: LogIngest) -> None:
    fast = request(batch("b", "m"), durability=records_pb2.DURABILITY_FAST)
    durable = request(batch("b2", "n"), durability=records_pb2.DURABILITY_DURABLE)
    await asyncio.gather(logs.stream([fast]), logs.stream([durable]))
    assert await logs.messages() == ["m", "n"]


async def test_gzip(logs: LogIngest) -> None:
    answer = await logs.stub.WriteLogs(
        logingest_pb2.WriteLogsRequest(batch=batch("b", *["m" * 1000] * 100)), compression=grpc.Compression.Gzip
    )
    assert answer.result.stored_count == 100


async def test_records_of_several_days_go_to_their_partitions(logs: LogIngest) -> None:
    sent = batch("days", "old", "new")
    sent.records[0].timestamp.FromSeconds(int(datetime.now(UTC).timestamp()) - 3 * 86400)
    await logs.stream([request(sent)])
    async with logs.database.connection() as connection:
        tables = await connection.fetch("SELECT tableoid::regclass::text AS name FROM logingest.records")
    assert len({row["name"] for row in tables}) == 2


async def test_counts_of_a_group_add_up(logs: LogIngest) -> None:
    sent = batch("b", *"abcdef")
    for index, record in enumerate(sent.records):
        record.service = f"s{index % 2}"
        record.level = records_pb2.LEVEL_WARN if index < 3 else records_pb2.LEVEL_INFO
        record.timestamp.FromSeconds(int(datetime.now(UTC).timestamp()) - 60 * index)
    await logs.stream([request(sent)])
    async with logs.database.connection() as connection:
        counted = await connection.fetch(
            """SELECT u.* FROM logingest.groups,
                      unnest(minutes, services, levels, counts) AS u (minute, service, level, n)"""
        )
        real = await connection.fetch(
            """SELECT floor(extract(epoch FROM timestamp) / 60)::int AS minute, service, level, count(*)::int AS n
               FROM logingest.records GROUP BY 1, 2, 3"""
        )
    assert sorted(map(tuple, counted)) == sorted(map(tuple, real))


async def test_connections_that_are_cut_lose_and_double_nothing(logs: LogIngest) -> None:
    """Sessions are ended again and again while 60 batches go in; whoever is not answered sends again."""
    ended = asyncio.Event()

    async def cut() -> None:
        while not ended.is_set():
            async with logs.database.connection() as connection:
                await connection.execute(
                    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE datname = current_database() AND query ~ 'COPY logingest|COMMIT|INSERT INTO logingest'
                         AND pid <> pg_backend_pid()"""
                )
            await asyncio.sleep(0.02)

    async def send(number: int) -> None:
        for index in range(20):
            one = batch(f"{number}-{index}", *(f"{number}-{index}-{i}" for i in range(200)))
            [answer] = await logs.stream([request(one)])
            assert answer.stored_count == 200

    cutting = asyncio.create_task(cut())
    try:
        await asyncio.gather(*(send(number) for number in range(3)))
    finally:
        ended.set()
        await asyncio.gather(cutting, return_exceptions=True)
    expected = sorted(f"{number}-{index}-{i}" for number in range(3) for index in range(20) for i in range(200))
    assert await logs.messages() == expected


async def test_streams_are_told_to_go_elsewhere_when_the_server_ends(logs: LogIngest) -> None:
    call = logs.stub.StreamLogs()
    await call.write(request(batch("b", "m")))
    answer = await call.read()
    assert isinstance(answer, logingest_pb2.StreamLogsResponse)
    assert answer.result.stored_count == 1
    logs.streams.drain()
    with require_status(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"):
        await call.read()


async def test_a_removed_partition_is_made_again(logs: LogIngest) -> None:
    await logs.stream([request(batch("b1", "m"))])
    async with logs.database.connection() as connection:
        [table] = await connection.fetch("SELECT DISTINCT tableoid::regclass::text AS name FROM logingest.records")
        await connection.execute(f"DROP TABLE {table['name']}")
    [answer] = await logs.stream([request(batch("b2", "n"))])
    assert answer.stored_count == 1
    assert await logs.messages() == ["n"]
