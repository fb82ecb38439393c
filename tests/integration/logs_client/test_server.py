"""The shipper against the real server, which is killed in the middle of it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from opsplane.logingest.v1 import records_pb2
from opsplane.logs import Shipper

from tests.logs_crashes import kill_postgres, kill_server
from tests.logs_shippers import database
from tests.ports import free_port
from tests.server_process import ServerProcess, new_server
from tests.waiting import until

pytestmark = pytest.mark.slow

RECORDS = 20_000
KILLS = 3


@pytest.mark.parametrize("kill", [kill_server, kill_postgres])
async def test_all_that_is_logged_is_stored_once_while_the_server_is_killed(
    kill: Callable[[ServerProcess], None], tmp_path: Path
) -> None:
    with new_server(f"--port={free_port()}") as server:
        server.start()
        await asyncio.to_thread(server.wait_ready)
        shipper = Shipper(server.address, service="numbered", spool=tmp_path / "spool", linger_seconds=0.01)

        def log() -> None:
            for number in range(RECORDS):
                assert shipper.log("info", "n", wait=60, request_id=number, nested={"number": number})

        logging = asyncio.create_task(asyncio.to_thread(log))
        for number in range(KILLS):
            await until(lambda number=number: shipper.stats().acknowledged > number * RECORDS // KILLS)  # type: ignore[misc]
            await asyncio.to_thread(kill, server)
        await logging
        assert await asyncio.to_thread(shipper.close, 120)
        assert shipper.stats().acknowledged == RECORDS
        async with database(server) as connection:
            rows = await connection.fetch("SELECT request_id, metadata FROM logingest.records WHERE service='numbered'")
    assert Counter(int(row["request_id"]) for row in rows) == dict.fromkeys(range(RECORDS), 1)
    assert all(json.loads(row["metadata"]) == {"nested": {"number": int(row["request_id"])}} for row in rows)


async def test_the_server_rejects_nothing_that_log_makes_and_says_what_it_rejects(tmp_path: Path) -> None:
    rejected: list[tuple[str, str]] = []
    with new_server() as server:
        server.start()
        await asyncio.to_thread(server.wait_ready)
        shipper = Shipper(
            server.address,
            service="odd",
            spool=tmp_path,
            on_rejected=lambda record, why: rejected.append((record.logger, why.field)),
        )
        odd = ["", "\0", "\ud800", "é" * 600_000, "x" * 2_000_000]
        for text in odd:
            shipper.log("info", text, user_id=text, stack_trace=text, key=text)
            shipper.log("info", text, nested={"a": [text, {text: 10**400}], "f": float("nan")})
        shipper.send(records_pb2.LogRecord(level=records_pb2.LEVEL_INFO, message="m\0", logger="nul"))
        shipper.send(records_pb2.LogRecord(message="m", logger="no level"))
        assert await asyncio.to_thread(shipper.close, 60)
        stats = shipper.stats()
        assert (stats.acknowledged, stats.rejected) == (2 * len(odd), 2)
        assert rejected == [("nul", "message"), ("no level", "level")]
        async with database(server) as connection:
            assert await connection.fetchval("SELECT count(*) FROM logingest.records") == 2 * len(odd)
