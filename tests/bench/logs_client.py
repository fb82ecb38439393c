"""Streams of this service: a process with some streams, each on a connection of its own, that sends ready-made bytes.

A load: `address`, `batch` (records), `streams`, `window` (batches of a stream without an answer yet), `begin`, `end`,
`run` (part of each batch id, another one each time), and either as fast as the window allows, until `end` or for
`limit` batches a stream, or paced: each stream sends a batch every `interval` seconds, the streams one after the other
from `first` on, `stagger` seconds apart. A paced batch counts from when it was due, whatever kept it from being sent;
others from when they were sent.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from typing import Any

import uvloop
from opsplane.logingest.v1 import logingest_pb2, records_pb2

from tests.bench import logs_records
from tests.bench.logs_children import Counted, serve
from tests.bench.logs_http2 import GrpcStream
from tests.bench.logs_pacing import Pacer

METHOD = "/opsplane.logingest.v1.LogIngest/StreamLogs"
SIZES = (10, 100, 1000)
CONNECT_SECONDS = 10.0


class Stream:
    """One stream of a load."""

    def __init__(self, load: dict[str, Any], number: int, batches: list[tuple[bytes, bytes]], counted: Counted) -> None:
        self._load = load
        self._number = number
        self._batches = itertools.cycle(batches)
        self._counted = counted
        self._sent: deque[float] = deque()
        self._free = asyncio.Semaphore(load["window"])
        self._wrong: list[str] = []

    async def run(self) -> None:
        """Returns when all that was sent is acknowledged. RuntimeError for an answer that is not as it should be."""
        async with asyncio.timeout(CONNECT_SECONDS):
            stream = await GrpcStream.open(self._load["address"], METHOD, self._acknowledged)
        try:
            settings = logingest_pb2.StreamSettings(
                client_id=f"bench/{self._load['run']}/{self._number}", durability=records_pb2.DURABILITY_DURABLE
            )
            stream.send(logingest_pb2.StreamLogsRequest(settings=settings).SerializeToString())
            async with asyncio.TaskGroup() as group:
                group.create_task(stream.ended())
                await (self._send_paced(stream) if "interval" in self._load else self._send_fast(stream))
                stream.end()
        finally:
            stream.close()
        if self._wrong or self._sent:
            raise RuntimeError(f"{len(self._sent)} batches are not acknowledged; wrong answers: {self._wrong[:3]}")

    async def _send_fast(self, stream: GrpcStream) -> None:
        for number, (head, tail) in enumerate(self._batches):
            await self._free.acquire()
            now = time.perf_counter()
            if now >= self._counted.end or number == self._load.get("limit"):
                return
            self._sent.append(now)
            stream.send(b"".join((head, self._id(number), tail)))

    async def _send_paced(self, stream: GrpcStream) -> None:
        first = self._load["first"] + self._number * self._load["stagger"]
        with Pacer(first, self._load["interval"], self._counted.end) as pacer:
            number = 0
            async for due in pacer:
                head, tail = next(self._batches)
                self._sent.append(due)
                stream.send(b"".join((head, self._id(number), tail)))
                number += 1

    def _acknowledged(self, data: bytes) -> None:
        at = time.perf_counter()
        expected = self._load["batch"]
        result = logingest_pb2.StreamLogsResponse.FromString(data).result
        if result.stored_count != expected or result.duplicate:
            self._wrong.append(str(result))
        self._counted.add(expected, self._sent.popleft(), at)
        self._free.release()

    def _id(self, number: int) -> bytes:
        return f"{self._load['run']:08x}-{self._number:08x}-{number:014x}".encode()


async def _streams(load: dict[str, Any], batches: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    counted = Counted(load["begin"], load["end"])
    async with asyncio.TaskGroup() as group:
        for number in load["streams"]:
            # Each begins elsewhere in the pool, so that not all send the same at the same time.
            start = number * 7 % len(batches)
            group.create_task(Stream(load, number, batches[start:] + batches[:start], counted).run())
    return counted.answer()


def main() -> None:
    """Serves loads."""
    records = logs_records.make_records()
    batches = {size: logs_records.batches(records, size) for size in SIZES}
    serve(lambda load: uvloop.run(_streams(load, batches[load["batch"]])))


if __name__ == "__main__":
    main()
