"""With many writers at once, and whatever dies meanwhile, TailLogs delivers what is in the table, each record once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.logs_crashes import kill_postgres, kill_server
from tests.logs_shippers import Gate, Ledger, Shipper, Tail, database, faults, progress, read_ledger
from tests.ports import free_port
from tests.server_process import ServerProcess, new_server
from tests.waiting import until

pytestmark = pytest.mark.slow

SHIPPERS = 8
RECORDS = 3000  # of each


async def require_equal(server: ServerProcess, tails: list[Tail], shippers: list[Shipper]) -> None:
    """Waits until the tails have all; then what they have is what the table has."""
    total = sum(shipper.records for shipper in shippers)
    await until(lambda: all(len(tail.keys) >= total for tail in tails))
    (await read_ledger(server)).require_all(shippers)
    async with database(server) as connection:
        rows = await connection.fetch("SELECT id::text FROM logingest.records")
    stored = {row["id"] for row in rows}
    for tail in tails:
        Ledger(tail.keys).require_all(shippers)
        assert len(tail.entry_ids) == len(set(tail.entry_ids))
        assert set(tail.entry_ids) <= stored  # those that begin later have fewer markers
        assert tail.dropped == 0


async def ship(server: ServerProcess, tails: list[Tail], *kills: Callable[[ServerProcess], None]) -> None:
    """Ships all while the tails follow, with a kill in the middle of each part of the work but the last."""
    gate = Gate(0)
    shippers = [Shipper(f"s{n}", server.address, records=RECORDS, batch=100, gate=gate) for n in range(SHIPPERS)]
    share = 1 / (len(kills) + 1)
    async with asyncio.TaskGroup() as group:
        following = [group.create_task(tail.run()) for tail in tails]
        for tail in tails:
            await tail.begun()
        shipping = [group.create_task(shipper.run()) for shipper in shippers]
        for number, kill in enumerate(kills):
            gate.open(share * (number + 1))
            moment = SHIPPERS * RECORDS * share * (number + 0.4)
            await until(lambda moment=moment: progress(shippers) >= moment)  # type: ignore[misc]
            await asyncio.to_thread(kill, server)
        gate.open(1)
        await asyncio.gather(*shipping)
        await require_equal(server, tails, shippers)
        for task in following:
            task.cancel()


async def test_tails_on_every_worker_deliver_what_all_workers_stored() -> None:
    with new_server("--workers", "2", f"--port={free_port()}") as server:
        server.start()
        await asyncio.to_thread(server.wait_ready)
        tails = [Tail(server.address) for _ in range(4)]
        await ship(server, tails)
        assert not faults(server)


async def test_a_tail_that_goes_on_after_its_cursor_again_and_again_skips_and_repeats_nothing() -> None:
    with new_server("--workers", "2", f"--port={free_port()}") as server:
        server.start()
        await asyncio.to_thread(server.wait_ready)
        tail = Tail(server.address, turns=1)
        await ship(server, [tail])
        assert tail.streams > 5


async def test_tails_outlive_the_server_and_the_database() -> None:
    with new_server("--workers", "2", f"--port={free_port()}") as server:
        server.start()
        await asyncio.to_thread(server.wait_ready)
        tails = [Tail(server.address) for _ in range(2)]
        await ship(server, tails, kill_server, kill_postgres)
        assert all(tail.streams > 1 for tail in tails)
