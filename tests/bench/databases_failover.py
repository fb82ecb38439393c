"""How long writes fail when the primary of a highly available PostgreSQL dies, and when it is changed on purpose.

Three nodes with a database of 1 GB, a commit waits for one replica, four clients that write all the time: two by the
list of all nodes, two by the one stable port. The supervisor is a process of its own, as in production. A failover is
measured from `kill -9` of the primary's main process to the first write that was acknowledged on a connection made
after it; a switchover by the longest time without an acknowledged write. After each the run waits until all
nodes serve again. In the end every acknowledged write must be there.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
from opsplane_server.instances.model import Engine, FailoverKind, HighAvailability

from tests import instances_harness as harness
from tests.instances_harness import silent
from tests.integration.instances.ha import HighlyAvailable
from tests.waiting import until

GOAL_SECONDS = 2.0
FAILOVERS = 20
SWITCHOVERS = 5
DATABASE_BYTES = 1 << 30
WRITERS = 4
_ROW_BYTES = 1000
_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


@dataclasses.dataclass
class _Client:
    """A client that writes. acknowledged: when, and since when its connection has been there, in seconds."""

    name: int
    uri: str
    acknowledged: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    numbers: list[int] = dataclasses.field(default_factory=list)

    async def run(self) -> None:
        number = 0
        while True:
            began = time.monotonic()
            try:
                connection = await asyncpg.connect(self.uri, timeout=20)
            except _ERRORS:
                await asyncio.sleep(0.01)
                continue
            try:
                while True:
                    number += 1
                    await connection.execute("INSERT INTO written VALUES ($1, $2)", self.name, number)
                    self.acknowledged.append((time.monotonic(), began))
                    self.numbers.append(number)
            except _ERRORS:
                pass
            finally:
                connection.terminate()


def run(rounds: int) -> list[dict[str, Any]]:
    """Twenty failovers and five switchovers whatever the number of rounds: a 99th percentile needs them."""
    failovers, switchovers, lost = asyncio.run(_measure())
    worst = max(failovers)
    print(f"  failovers, s: {' '.join(f'{each:.2f}' for each in sorted(failovers))}")
    print(f"  switchovers, s: {' '.join(f'{each:.2f}' for each in sorted(switchovers))}")
    return [
        _entry("failover_p99_s", worst, "s (longest of 20)", "kill -9 of the primary", GOAL_SECONDS),
        _entry("failover_p50_s", statistics.median(failovers), "s", "kill -9 of the primary", None),
        _entry("switchover_s", max(switchovers), "s (longest of 5)", "longest time without a write", GOAL_SECONDS),
        _entry("failover_lost_writes", lost, "writes", "acknowledged in synchronous mode", 0),
    ]


def _entry(measure: str, value: float, unit: str, reference: str, goal: float | None) -> dict[str, Any]:
    met = None if goal is None else value <= goal
    wanted = None if goal is None else f"<= {goal:g}"
    return {"measure": measure, "value": value, "unit": unit, "reference": reference, "goal": wanted, "met": met}


async def _measure() -> tuple[list[float], list[float], int]:
    with harness.machine_folder() as folder:
        async with _filled(folder) as instance:
            info = await instance.info()
            clients = [
                _Client(number, info.rw.uri if number % 2 else info.rw.multi_host_uri) for number in range(WRITERS)
            ]
            tasks = [asyncio.create_task(client.run()) for client in clients]
            await until(lambda: all(client.numbers for client in clients))
            failovers = [await _fail(instance, clients) for _ in range(FAILOVERS)]
            switchovers = [await _switch(instance, clients) for _ in range(SWITCHOVERS)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return failovers, switchovers, await _lost(instance, clients)


@asynccontextmanager
async def _filled(folder: Path) -> AsyncIterator[HighlyAvailable]:
    """Filled as a single server, then made highly available."""
    machine = harness.machine(folder)
    provider = harness.provider(machine)
    single = harness.spec(
        "orders",
        version=provider.versions(Engine.POSTGRESQL)[0],
        memory_bytes=512 * harness.MIB,
        storage_bytes=8 * DATABASE_BYTES,
    )
    spec = dataclasses.replace(single, high_availability=HighAvailability(3, synchronous_replicas=1))
    instance = HighlyAvailable(machine, provider, spec, harness.passwords())
    status = await provider.create(single, instance.secrets, None, silent)
    assert status.endpoints is not None
    async with instance.session(status.endpoints.rw.port) as session:
        await session.execute("CREATE TABLE written (writer bigint, n bigint, PRIMARY KEY (writer, n))")
        await session.execute("CREATE TABLE filling (n bigint, content text)")
        for _ in range(16):  # in parts, for a short log
            await session.execute(
                "INSERT INTO filling SELECT n, rpad(n::text, $1, 'x') FROM generate_series(1, $2) AS n",
                _ROW_BYTES - 36,
                DATABASE_BYTES // _ROW_BYTES // 16,
            )
    await provider.update(spec, silent)
    with _supervisor(folder):
        await instance.whole(timeout=600)
        yield instance


@contextmanager
def _supervisor(folder: Path) -> Iterator[None]:
    """Supervises in a process of its own."""
    with subprocess.Popen([sys.executable, "-m", "tests.bench.databases_failover", str(folder)]) as child:
        try:
            yield
        finally:
            child.terminate()


async def _fail(instance: HighlyAvailable, clients: Sequence[_Client]) -> float:
    old = instance.manifest.primary
    killed = time.monotonic()
    instance.kill(old, signal.SIGKILL)

    def first() -> float | None:
        """A session of the dead server may still get through for a moment: that is no recovery."""
        times = [at for client in clients for at, began in client.acknowledged[-1000:] if began > killed]
        return min(times, default=None)

    await until(lambda: first() is not None)
    answered = first()
    assert answered is not None
    await until(lambda: instance.manifest.primary != old)
    await instance.whole(timeout=300)
    return answered - killed


async def _switch(instance: HighlyAvailable, clients: Sequence[_Client]) -> float:
    began = time.monotonic()
    await instance.provider.failover(instance.spec.name, "", FailoverKind.SWITCHOVER, "bench", silent)
    await instance.whole(timeout=300)
    ended = time.monotonic()
    await until(lambda: any(client.acknowledged[-1][0] > ended for client in clients))
    times = sorted(at for client in clients for at, _ in client.acknowledged if at > began - 1)
    return max(later - earlier for earlier, later in itertools.pairwise(times))


async def _lost(instance: HighlyAvailable, clients: Sequence[_Client]) -> int:
    status = await instance.status()
    assert status.endpoints is not None
    async with instance.session(status.endpoints.rw.port) as session:
        rows = await session.fetch("SELECT writer, n FROM written")
    there = {(row["writer"], row["n"]) for row in rows}
    return sum((client.name, number) not in there for client in clients for number in client.numbers)


async def _supervise(folder: Path) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await harness.provider(harness.machine(folder)).supervise(lambda name: None)


if __name__ == "__main__":
    asyncio.run(_supervise(Path(sys.argv[1])))
