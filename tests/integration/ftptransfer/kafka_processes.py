"""Starts `kafka_process` and talks to it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import astuple

from opsplane_server.ftptransfer.queues.kafka.cluster import Topics

from tests.integration.platform.workers import ROOT, Worker
from tests.kafka_broker import KafkaBroker


class KafkaProcess(Worker):
    """One of them; what it is waited for must come within a minute."""

    async def lines(self, word: str, count: int) -> list[list[str]]:
        async with asyncio.timeout(60):
            return await super().lines(word, count)


@asynccontextmanager
async def started(
    kind: str,
    dsn: str,
    broker: KafkaBroker,
    topics: Topics,
    *,
    owner: str,
    point: str = "-",
    time: int = 1,
    lease_seconds: float = 2.0,
) -> AsyncIterator[KafkaProcess]:
    """A process that stops at a point; killed at the end if it still runs."""
    arguments = (kind, dsn, broker.address, ",".join(astuple(topics)), owner, str(lease_seconds), point, str(time))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.ftptransfer.kafka_process",
        *arguments,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        worker = KafkaProcess(process)
        await worker.lines("ready", 1)
        yield worker
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
