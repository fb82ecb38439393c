"""Nothing that was acknowledged is lost or doubled, whatever dies in the middle of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.logs_crashes import kill_postgres, kill_server
from tests.logs_shippers import Gate, Shipper, acknowledged, faults, progress, read_ledger
from tests.ports import free_port
from tests.server_process import ServerProcess, new_server
from tests.waiting import until

pytestmark = pytest.mark.slow

SHIPPERS = 8
RECORDS = 5000  # of each
KILLS = 3


@asynccontextmanager
async def a_server(workers: int) -> AsyncIterator[ServerProcess]:
    """A server that keeps its port over restarts."""
    with new_server("--workers", str(workers), f"--port={free_port()}") as server:
        server.start()
        await asyncio.to_thread(server.wait_ready)
        yield server
        assert not faults(server)


async def hurt(server: ServerProcess, kill: Callable[[ServerProcess], None], *, ids: bool = True) -> list[Shipper]:
    """Ships all, and kills again and again in the middle of it. After each time all that was acknowledged is there."""
    chance = random.Random(7)  # noqa: S311
    gate = Gate(0)
    shippers = [Shipper(f"s{n}", server.address, records=RECORDS, ids=ids, gate=gate) for n in range(SHIPPERS)]
    share = 1 / (KILLS + 1)
    async with asyncio.TaskGroup() as group:
        for shipper in shippers:
            group.create_task(shipper.run())
        for number in range(KILLS):
            gate.open(share * (number + 1))
            moment = SHIPPERS * RECORDS * share * (number + chance.uniform(0.1, 0.6))
            await until(lambda moment=moment: progress(shippers) >= moment)  # type: ignore[misc]
            await asyncio.to_thread(kill, server)
            so_far = acknowledged(shippers)
            (await read_ledger(server)).require(so_far)
        gate.open(1)
    return shippers


@pytest.mark.parametrize("workers", [1, 2])
async def test_kill_9_of_the_server_loses_and_doubles_nothing(workers: int) -> None:
    async with a_server(workers) as server:
        shippers = await hurt(server, kill_server)
        (await read_ledger(server)).require_all(shippers)
        assert all(shipper.broken_streams >= KILLS for shipper in shippers)


@pytest.mark.parametrize("workers", [1, 2])
async def test_kill_9_of_postgres_loses_and_doubles_nothing(workers: int) -> None:
    async with a_server(workers) as server:
        shippers = await hurt(server, kill_postgres)
        (await read_ledger(server)).require_all(shippers)


@pytest.mark.parametrize("kill", [kill_server, kill_postgres])
async def test_batches_without_an_id_are_never_doubled_by_the_server(kill: Callable[[ServerProcess], None]) -> None:
    async with a_server(1) as server:
        shippers = await hurt(server, kill, ids=False)
        (await read_ledger(server)).require(acknowledged(shippers))
