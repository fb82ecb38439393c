"""More than ten thousand wrong messages against a running server: it stays up and keeps every good record."""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from collections.abc import Iterator
from random import Random
from typing import Any

import grpc
import pytest
from opsplane.logingest.v1 import logingest_pb2, records_pb2

from tests.logs_malformed import Case, Maker, batch_message, ld
from tests.logs_shippers import Key, Ledger, faults, numbered, read_ledger
from tests.server_process import ServerProcess, running_server

pytestmark = pytest.mark.slow

STREAM = "/opsplane.logingest.v1.LogIngest/StreamLogs"
WRITE = "/opsplane.logingest.v1.LogIngest/WriteLogs"
STREAMS = 4
MESSAGES = 3500  # of each stream, three of four wrong
CALLS = 500
WINDOW = 32
LIMIT = 64 * 1024 * 1024
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """One for all tests here: none of them may harm it."""
    with running_server() as server:
        workers = server.workers()
        yield server
        assert server.workers() == workers
        assert server.ever_workers() == set(workers)
        assert not faults(server)


@pytest.fixture
async def kept(server: ServerProcess) -> Any:
    """What must be in the table after the test; each test has its own names of shippers."""
    keys: set[Key] = set()
    yield keys
    tests = {name.split(".")[0] for name, _ in keys}
    ledger = await read_ledger(server)
    found = Ledger(key for key in ledger.counts.elements() if key[0].split(".")[0] in tests)
    found.require(keys)
    assert not found.counts.keys() - keys, "records are stored that were answered as wrong"


def open_channel(server: ServerProcess) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(server.address, options=UNLIMITED)


async def stream(channel: grpc.aio.Channel, cases: list[Case]) -> None:
    """Sends all by one stream and checks each answer."""
    call: Any = channel.stream_stream(STREAM, response_deserializer=logingest_pb2.StreamLogsResponse.FromString)()
    free = asyncio.Semaphore(WINDOW)
    wrong: list[str] = []

    async def read() -> None:
        number = 0
        async for response in call:
            assert response.result.sequence == number + 1
            try:
                cases[number].check(response.result)
            except AssertionError as error:
                wrong.append(str(error))
            number += 1
            free.release()
        assert number == len(cases)

    reading = asyncio.create_task(read())
    settings = logingest_pb2.StreamSettings(client_id="malformed")
    await call.write(logingest_pb2.StreamLogsRequest(settings=settings).SerializeToString())
    for case in cases:
        acquired = asyncio.create_task(free.acquire())
        await asyncio.wait((acquired, reading), return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            await reading
        await call.write(case.message)
    await call.done_writing()
    await reading
    assert not wrong, f"{len(wrong)} wrong answers, such as: " + "\n".join(sorted(wrong)[:: len(wrong) // 20 + 1])


async def write(channel: grpc.aio.Channel, batch: bytes) -> records_pb2.BatchResult:
    return await write_raw(channel, ld(1, batch))


async def write_raw(channel: grpc.aio.Channel, request: bytes) -> records_pb2.BatchResult:
    call: Any = channel.unary_unary(WRITE, response_deserializer=logingest_pb2.WriteLogsResponse.FromString)
    response: logingest_pb2.WriteLogsResponse = await call(request)
    return response.result


async def require_serving(server: ServerProcess, name: str, kept: set[Key]) -> None:
    """A good record is taken in by a new connection."""
    kept.add((name, 0))
    async with open_channel(server) as channel:
        result = await write(channel, ld(2, numbered(name, 0).SerializeToString()))
    assert result.stored_count == 1


async def test_of_streams_with_wrong_messages_every_good_record_is_kept(server: ServerProcess, kept: set[Key]) -> None:
    makers = [Maker(f"streams.{number}", seed=1) for number in range(STREAMS)]
    cases = [[maker.case() for _ in range(MESSAGES)] for maker in makers]
    wrong = sum(bool(case.refusals or case.rejected) for some in cases for case in some)
    assert wrong >= 10_000
    async with open_channel(server) as channel, asyncio.TaskGroup() as group:
        for some in cases:
            group.create_task(stream(channel, some))
    kept.update(key for some in cases for case in some for key in case.keys)


async def test_noise_in_place_of_messages_ends_a_stream_at_most(server: ServerProcess, kept: set[Key]) -> None:
    """What is noise may say anything, even settings where none may be: then the stream ends, and says so."""
    chance = Random(3)  # noqa: S311
    answered = ended = 0
    async with open_channel(server) as channel:
        while answered + ended < 500:
            call: Any = channel.stream_stream(
                STREAM, response_deserializer=logingest_pb2.StreamLogsResponse.FromString
            )()
            try:
                await call.write(chance.randbytes(chance.randrange(1, 60)))
                for _ in range(20):
                    await call.write(chance.randbytes(chance.randrange(1, 60)))
                await call.done_writing()
            except asyncio.InvalidStateError:
                pass  # it has ended, and reading tells why
            try:
                async for response in call:
                    assert response.result.HasField("refusal")
                    answered += 1
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                    raise
                ended += 1
    assert answered > ended
    await require_serving(server, "noise", kept)


async def test_calls_with_wrong_batches_keep_every_good_record(server: ServerProcess, kept: set[Key]) -> None:
    maker = Maker("calls", seed=2, number=1)
    async with open_channel(server) as channel:
        for _ in range(CALLS):
            case = maker.case()
            try:
                result = await write_raw(channel, case.message)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.INVALID_ARGUMENT or not case.refusals:
                    raise AssertionError(case) from error
            else:
                case.check(result)
                kept.update(case.keys)


async def test_a_batch_id_is_bound_to_its_number_of_records(server: ServerProcess, kept: set[Key]) -> None:
    good = [numbered("bound", number).SerializeToString() for number in range(3)]
    kept.update({("bound", 0), ("bound", 1)})

    def batch(records: list[bytes]) -> bytes:
        return ld(1, b"bound") + b"".join(ld(2, record) for record in records)

    async with open_channel(server) as channel:
        results = [await write(channel, batch(good[:2]))]
        with pytest.raises(grpc.aio.AioRpcError, match="was used for a batch of 2 records"):
            await write(channel, batch(good))
        results.append(await write(channel, batch(good[:2])))
    assert [result.duplicate for result in results] == [False, True]
    assert [result.stored_count for result in results] == [2, 2]


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_a_message_beyond_the_limit_ends_its_call_alone(
    server: ServerProcess, kept: set[Key], compression: grpc.Compression
) -> None:
    """Also one that only decompression makes so large: 64 MiB of zeros are 64 KiB on the wire."""
    name = f"large-{compression.name}"
    kept.add((name, 1))
    async with open_channel(server) as channel:
        call: Any = channel.stream_stream(STREAM)(compression=compression)
        await call.write(batch_message(b"", [numbered(name, 1).SerializeToString()]))
        assert logingest_pb2.StreamLogsResponse.FromString(await call.read()).result.stored_count == 1
        await call.write(bytes(LIMIT + 1))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await require_serving(server, name, kept)


async def test_a_large_message_within_the_limit_is_answered(server: ServerProcess, kept: set[Key]) -> None:
    """60 MiB in one batch, of which most are records that are too large each by itself."""
    raw = [numbered("sixty", 0).SerializeToString() + ld(4, b"x" * (10 << 20))] * 6
    kept.add(("sixty", 1))
    async with open_channel(server) as channel:
        result = await write(channel, b"".join(ld(2, one) for one in (*raw, numbered("sixty", 1).SerializeToString())))
    assert result.stored_count == 1
    assert [one.reason for one in result.rejected_records] == [records_pb2.RejectedRecord.REASON_TOO_LONG] * 6


async def test_what_is_not_grpc_on_the_port_harms_nobody(server: ServerProcess, kept: set[Key]) -> None:
    host, _, port = server.address.rpartition(":")
    for noise in _port_noise():
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            try:
                connection.sendall(noise)
                connection.shutdown(socket.SHUT_WR)
                while await asyncio.to_thread(connection.recv, 65536):
                    pass
            except ConnectionError:
                pass  # cut off by the server, which is as good
    await require_serving(server, "port", kept)


def _port_noise() -> list[bytes]:
    """Noise, HTTP/1.1, broken HTTP/2, and calls with a compressed message that is none."""
    chance = Random(4)  # noqa: S311
    begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b"")
    zipped = gzip.compress(bytes(1000))
    messages = [
        b"\x01" + struct.pack("!I", len(body)) + body for body in (b"not gzip", zipped[:-9], zipped[:20] + b"\xff" * 30)
    ]
    words = ((":method", "POST"), (":scheme", "http"), (":path", STREAM), (":authority", "x"), ("te", "trailers"))
    headers = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in (*words, ("content-type", "application/grpc"), ("grpc-encoding", "gzip"))
    )
    return [
        *(chance.randbytes(chance.randrange(1, 5000)) for _ in range(20)),
        b"POST /logs HTTP/1.1\r\nHost: x\r\n\r\n",
        begin + chance.randbytes(1000),
        begin + _frame(0, 1, 1, b"data without headers"),
        *(begin + _frame(1, 4, 1, headers) + _frame(0, 1, 1, message) for message in messages),
        begin + _frame(1, 4, 1, headers) + _frame(0, 1, 1, b"\x00\xff\xff\xff\xffshort"),
        begin + _frame(1, 4, 1, headers) + _frame(0, 1, 1, b"\x02" + bytes(4)),
    ]


def _frame(kind: int, flags: int, stream_id: int, body: bytes) -> bytes:
    return struct.pack("!I", len(body))[1:] + struct.pack("!BBI", kind, flags, stream_id) + body
