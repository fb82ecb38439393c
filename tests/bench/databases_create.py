"""How long CreateInstance takes until the instance is READY, against initdb and the start of the server alone.

Ours is the whole way: a call to a real server, its operation, the instance's first user and database. The bare tools
make the same version's data with their defaults, start it and wait for the first connection. They take turns, so that
both see the same noise; the result is the median of the rounds' ratios.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import statistics
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import asyncpg
import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from opsplane.instances.v1 import instance_pb2, instances_pb2, instances_pb2_grpc
from opsplane_server.instances.providers.local import processes, programs
from opsplane_server.storage.accounts import choose_account, private_folder
from opsplane_server.storage.binaries import reachable_binaries, wheel_binaries

from tests.instances_harness import end_all, port_range
from tests.postgres_fixtures import reachable_folder
from tests.server_process import new_server
from tests.waiting import until

GOAL = 2.0


def run(rounds: int) -> list[dict[str, Any]]:
    """Measures in `rounds` rounds of some seconds each."""
    first, last = port_range()
    ports = {"OPSPLANE_INSTANCES__FIRST_PORT": str(first), "OPSPLANE_INSTANCES__LAST_PORT": str(last)}
    with new_server("--services=instances", environment=ports) as server, reachable_folder() as folder:
        server.start()
        server.wait_ready()
        try:
            pairs = asyncio.run(_measure(server.address, folder, rounds))
        finally:
            end_all(server.data_dir / "instances")
    return [
        {
            "measure": "create_vs_initdb",
            "value": statistics.median(ours / bare for ours, bare in pairs),
            "unit": "ratio",
            "reference": f"initdb + start: {statistics.median(bare for _, bare in pairs):.2f} s",
            "goal": f"<= {GOAL:g}",
            "met": statistics.median(ours / bare for ours, bare in pairs) <= GOAL,
        }
    ]


async def _measure(address: str, folder: Path, rounds: int) -> list[tuple[float, float]]:
    async with grpc.aio.insecure_channel(address) as channel:
        pairs = []
        for number in range(rounds + 1):
            name = f"bench-{number}"
            ours = await _timed(_create(channel, name))
            await _delete(channel, name)
            bare = await _bare(folder / f"bare-{number}")
            if number:  # the first has the programs read from disk
                pairs.append((ours, bare))
        return pairs


async def _timed(work: Awaitable[None]) -> float:
    begun = time.perf_counter()
    await work
    return time.perf_counter() - begun


async def _create(channel: grpc.aio.Channel, name: str) -> None:
    instance = instance_pb2.Instance(engine=instance_pb2.ENGINE_POSTGRESQL)
    request = instances_pb2.CreateInstanceRequest(instance_id=name, instance=instance)
    await _done(channel, await instances_pb2_grpc.InstancesStub(channel).CreateInstance(request))


async def _delete(channel: grpc.aio.Channel, name: str) -> None:
    request = instances_pb2.DeleteInstanceRequest(name=f"instances/{name}")
    await _done(channel, await instances_pb2_grpc.InstancesStub(channel).DeleteInstance(request))


async def _done(channel: grpc.aio.Channel, operation: operations_pb2.Operation) -> None:
    while not operation.done:
        request = operations_pb2.WaitOperationRequest(name=operation.name)
        operation = await operations_pb2_grpc.OperationsStub(channel).WaitOperation(request)
    if operation.HasField("error"):
        raise RuntimeError(operation.error.message)


async def _bare(folder: Path) -> float:
    """Seconds until a server made by the bare tools takes its first connection; it is gone afterwards."""
    account = choose_account(None, folder)
    private_folder(folder, account)
    tree = reachable_binaries(wheel_binaries(), account, folder.parent)
    data = folder / "data"

    async def make() -> None:
        await programs.run(account, [tree / "bin" / "initdb", "-D", data, "-U", "bench"])
        command = [tree / "bin" / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses="]
        processes.launch(account, [str(word) for word in command], folder / "log")
        await until(lambda: _connects(folder))

    try:
        return await _timed(make())
    finally:
        end_all(folder)
        shutil.rmtree(folder, ignore_errors=True)


async def _connects(folder: Path) -> bool:
    with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection = await asyncpg.connect(host=str(folder), user="bench", database="postgres")
        await connection.close()
        return True
    return False
