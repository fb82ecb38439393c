"""Posts ready-made bodies over connections that are kept alive: a process with some, one body at a time on each.

A load: `port`, `batch` (records), `connections`, `begin`, `end`.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import uvloop

from tests.bench import logs_records
from tests.bench.logs_children import Counted, serve

SIZES = (10, 100, 1000)


async def _post(load: dict[str, Any], requests: list[bytes], start: int, counted: Counted) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", load["port"])
    expected = f'{{"saved":{load["batch"]},"status":"success"}}'.encode()
    for request in itertools.cycle(requests[start:] + requests[:start]):
        since = time.perf_counter()
        if since >= counted.end:
            break
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(len(expected))
        if not head.startswith(b"HTTP/1.1 200 ") or body != expected:
            raise RuntimeError(f"not stored: {head!r} {body!r}")
        counted.add(load["batch"], since, time.perf_counter())
    writer.close()


async def _posts(load: dict[str, Any], requests: list[bytes]) -> dict[str, Any]:
    counted = Counted(load["begin"], load["end"])
    async with asyncio.TaskGroup() as group:
        for number in load["connections"]:
            group.create_task(_post(load, requests, number * 7 % len(requests), counted))
    return counted.answer()


def _request(body: bytes) -> bytes:
    head = (
        "POST /logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main() -> None:
    """Serves loads."""
    records = logs_records.make_records()
    requests = {size: [_request(body) for body in logs_records.bodies(records, size)] for size in SIZES}
    serve(lambda load: uvloop.run(_posts(load, requests[load["batch"]])))


if __name__ == "__main__":
    main()
