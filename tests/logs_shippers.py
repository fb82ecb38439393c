"""Numbered records, clients that ship them whatever happens to the server, and what became of them.

    shippers = [Shipper(f"s{n}", server.address, records=5000) for n in range(8)]
    await asyncio.gather(*(shipper.run() for shipper in shippers))
    ledger = await read_ledger(server)
    ledger.require_all(shippers)

A shipper is as simple as a right client can be: it keeps a window of batches under way, and after a broken stream sends
again whatever has no answer, under the same batch ids. The server keeps its address over restarts. In the table
`logger` is the shipper's name and `duration_ms` the number.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import asyncpg
import grpc
from opsplane.logingest.v1 import logingest_pb2, logingest_pb2_grpc, records_pb2

from tests.server_process import ServerProcess
from tests.waiting import until

Key: TypeAlias = tuple[str, int]
"""A record: its shipper and its number."""

# What a sender meets when a server or its database goes away; anything else is a fault.
_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
# What gRPC's client itself says of a write to a stream that breaks in this moment.
_BROKEN_WRITE = "Internal error from Core"
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]
_RETRY_SECONDS = 0.05
MARKER = "marker"
"""The shipper of records that only show that a tail has begun."""


def is_lost(error: grpc.aio.AioRpcError) -> bool:
    """Whether the stream broke because somebody went away, so that a client goes on with another one."""
    return error.code() in _LOST or error.details() == _BROKEN_WRITE


def numbered(shipper: str, number: int) -> records_pb2.LogRecord:
    """A record that can be told from all others."""
    return records_pb2.LogRecord(
        level=records_pb2.LEVEL_INFO,
        service=f"service-{number % 7}",
        message=f"record {number} of {shipper}",
        logger=shipper,
        duration_ms=number,
        metadata={"number": str(number), "parity": "odd" if number % 2 else "even"},
    )


class Gate:
    """Holds shippers back: so that there is work left whenever something is killed."""

    def __init__(self, share: float = 1.0) -> None:
        self._share = share
        self._changed = asyncio.Event()

    def open(self, share: float) -> None:
        """Lets them send so large a part of what they have."""
        self._share = share
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, share: float) -> None:
        """Returns when they may send what lies at `share` of all they have."""
        while share >= self._share and self._share < 1:
            await self._changed.wait()


class Shipper:
    """Ships the numbers from 0 to before `records`, in batches of up to `batch`, `window` of them at a time.

    With `ids` a batch whose stream broke is sent again, else never: then nobody can know what became of it.
    `acknowledged` are the batches that were answered; `again` counts those of them that were answered as duplicates.
    """

    def __init__(
        self,
        name: str,
        address: str,
        *,
        records: int,
        batch: int = 50,
        window: int = 4,
        ids: bool = True,
        seed: int = 0,
        gate: Gate | None = None,
    ) -> None:
        self.name = name
        self._gate = gate or Gate()
        self.records = records
        self._address = address
        self._window = window
        self._ids = ids
        chance = random.Random(f"{name} {seed}")  # noqa: S311
        self._batches: list[range] = []
        while not self._batches or self._batches[-1].stop < records:
            start = self._batches[-1].stop if self._batches else 0
            self._batches.append(range(start, min(records, start + chance.randint(1, batch))))
        self.acknowledged: set[int] = set()
        self._given_up: set[int] = set()
        self.broken_streams = 0
        self.again = 0

    @property
    def acknowledged_records(self) -> int:
        """How many records were acknowledged."""
        return sum(len(self._batches[index]) for index in self.acknowledged)

    def acknowledged_keys(self) -> set[Key]:
        """The records that were acknowledged so far."""
        return {(self.name, number) for index in self.acknowledged for number in self._batches[index]}

    def all_keys(self) -> set[Key]:
        """All its records."""
        return {(self.name, number) for number in range(self.records)}

    async def run(self) -> None:
        """Returns when every batch was acknowledged, or without ids: was acknowledged or lost with its stream."""
        while waiting := self._waiting():
            try:
                await self._stream(waiting)
            except grpc.aio.AioRpcError as error:
                if not is_lost(error):
                    raise
                self.broken_streams += 1
                # A server that answers without its database would be asked again and again.
                await asyncio.sleep(_RETRY_SECONDS)

    def _waiting(self) -> list[int]:
        done = self.acknowledged | self._given_up
        return [index for index in range(len(self._batches)) if index not in done]

    async def _stream(self, waiting: Sequence[int]) -> None:
        async with grpc.aio.insecure_channel(self._address, options=_OPTIONS) as channel:
            call: Any = logingest_pb2_grpc.LogIngestStub(channel).StreamLogs()
            settings = logingest_pb2.StreamSettings(client_id=f"test/{self.name}")
            sent: deque[int] = deque()
            free = asyncio.Semaphore(self._window)
            reading = asyncio.create_task(self._read(call, sent, free))
            try:
                await call.write(logingest_pb2.StreamLogsRequest(settings=settings))
                for index in waiting:
                    await _first(self._gate.wait(index / len(self._batches)), reading)
                    await _first(free.acquire(), reading)
                    sent.append(index)
                    if not self._ids:
                        self._given_up.add(index)
                    await call.write(logingest_pb2.StreamLogsRequest(batch=self._batch(index)))
                await call.done_writing()
                await reading
            except asyncio.InvalidStateError:  # written to a stream that has ended: reading it tells why
                await reading
                raise
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    def _batch(self, index: int) -> records_pb2.LogBatch:
        return records_pb2.LogBatch(
            batch_id=f"{self.name}-{index}" if self._ids else "",
            records=[numbered(self.name, number) for number in self._batches[index]],
        )

    async def _read(self, call: Any, sent: deque[int], free: asyncio.Semaphore) -> None:
        sequence = 0
        async for response in call:
            result, index = response.result, sent.popleft()
            sequence += 1
            assert result.sequence == sequence, result
            assert result.batch_id == (f"{self.name}-{index}" if self._ids else ""), result
            assert result.stored_count == len(self._batches[index]), result
            assert not result.rejected_records, result
            assert not result.HasField("refusal"), result
            self.again += result.duplicate
            self.acknowledged.add(index)
            free.release()
        if sent:
            raise AssertionError(f"the stream ended well with {len(sent)} batches not answered")


async def _first(wanted: Any, reading: asyncio.Task[None]) -> None:
    """Waits for `wanted`, unless the reader has something to say first."""
    waiting = asyncio.ensure_future(wanted)
    await asyncio.wait((waiting, reading), return_when=asyncio.FIRST_COMPLETED)
    if not waiting.done():
        waiting.cancel()
        await reading
        raise AssertionError("the stream ended before all was sent")


class Ledger:
    """How often each record is somewhere."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.counts = Counter(keys)

    def require(self, keys: set[Key]) -> None:
        """AssertionError unless each of `keys` is there, and nothing is there twice."""
        doubled = [key for key, count in self.counts.items() if count > 1]
        assert not doubled, f"{len(doubled)} records are doubled: {sorted(doubled)[:5]}"
        lost = keys - self.counts.keys()
        assert not lost, f"{len(lost)} records are lost: {sorted(lost)[:5]}"

    def require_all(self, shippers: Sequence[Shipper]) -> None:
        """AssertionError unless every record of these shippers is there once, and nothing else."""
        expected = everything(shippers)
        self.require(expected)
        foreign = self.counts.keys() - expected
        assert not foreign, f"{len(foreign)} records are of nobody: {sorted(foreign)[:5]}"


def acknowledged(shippers: Sequence[Shipper]) -> set[Key]:
    """The records of these shippers that were acknowledged so far."""
    return set().union(*(shipper.acknowledged_keys() for shipper in shippers))


def progress(shippers: Sequence[Shipper]) -> int:
    """How many records that is; less work to tell."""
    return sum(shipper.acknowledged_records for shipper in shippers)


def everything(shippers: Sequence[Shipper]) -> set[Key]:
    """All records of these shippers."""
    return set().union(*(shipper.all_keys() for shipper in shippers))


def database_of(server: ServerProcess) -> str:
    """The address of a server's embedded database."""
    password = (server.data_dir / "postgres" / "password").read_text()
    return f"postgresql://opsplane:{password}@/opsplane?host={server.data_dir}/postgres/run&port=5432"


@asynccontextmanager
async def database(server: ServerProcess) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection to it."""
    connection = await asyncpg.connect(database_of(server))
    try:
        yield connection
    finally:
        await connection.close()


def faults(server: ServerProcess) -> list[object]:
    """What the server itself calls unexpected, since its last start."""
    return [
        record.get("exception")
        for record in server.logs()
        if record.get("level") == "error" and record["logger"].startswith("opsplane_server") and "exception" in record
    ]


async def read_ledger(server: ServerProcess) -> Ledger:
    """All records in the table, but for those that tails begin with."""
    async with database(server) as connection:
        rows = await connection.fetch("SELECT logger, duration_ms FROM logingest.records WHERE logger <> $1", MARKER)
    return Ledger((row["logger"], int(row["duration_ms"])) for row in rows)


class Tail:
    """Follows all records and goes on after its last cursor whenever its stream breaks.

    With `turns` it breaks off by itself after so many messages with records, again and again.
    """

    def __init__(self, address: str, *, turns: int = 0) -> None:
        self._address = address
        self._turns = turns
        self._cursor = ""
        self._markers = 0
        self.keys: list[Key] = []
        self.entry_ids: list[str] = []
        self.dropped = 0
        self.streams = 0

    async def begun(self) -> None:
        """Returns when whatever is stored from now on will be delivered; `run` must be under way."""
        async with grpc.aio.insecure_channel(self._address, options=_OPTIONS) as channel:
            stub = logingest_pb2_grpc.LogIngestStub(channel)
            batch = records_pb2.LogBatch(records=[numbered(MARKER, 0)])

            async def delivered() -> bool:
                await stub.WriteLogs(logingest_pb2.WriteLogsRequest(batch=batch))
                return self._markers > 0

            await until(delivered)

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        while True:
            try:
                await self._stream()
            except grpc.aio.AioRpcError as error:
                if not is_lost(error):
                    raise
                await asyncio.sleep(_RETRY_SECONDS)

    async def _stream(self) -> None:
        self.streams += 1
        async with grpc.aio.insecure_channel(self._address, options=_OPTIONS) as channel:
            request = logingest_pb2.TailLogsRequest(cursor=self._cursor)
            messages = 0
            async for response in logingest_pb2_grpc.LogIngestStub(channel).TailLogs(request):
                self._take(response)
                messages += bool(response.entries)
                if messages and messages == self._turns:
                    return

    def _take(self, response: logingest_pb2.TailLogsResponse) -> None:
        self.dropped += response.dropped_count
        self._cursor = response.cursor or self._cursor
        for entry in response.entries:
            self.entry_ids.append(entry.entry_id)
            if entry.record.logger == MARKER:
                self._markers += 1
            else:
                self.keys.append((entry.record.logger, int(entry.record.duration_ms)))
