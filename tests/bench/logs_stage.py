"""Everything that the logs benchmark needs at once, and one load of any kind on it.

One PostgreSQL with the settings that the server starts it with; two servers of this project on it, with one and two
workers, and two of the classic design; processes that load them. All write to the partition of today, which the server
made. Before each load it is emptied and a checkpoint made; WAL has the same room for all (WAL_SIZE).
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import psutil
from opsplane_server.logingest.stores.postgres.partitions import PostgresPartitions, partition_name
from opsplane_server.storage.database import Database
from opsplane_server.storage.embedded import EmbeddedPostgres

from tests.bench.logs_children import Child, children, cpu_seconds, cpu_seconds_of_tree
from tests.bench.logs_postgres import Connection
from tests.ports import free_port
from tests.postgres_fixtures import reachable_folder
from tests.server_process import ServerProcess, running_server

ROOT = Path(__file__).resolve().parent.parent.parent
MB = 1_000_000
WAL_SIZE = "4GB"
WORKERS = (1, 2)
COPY_PROCESSES = 4
CLIENT_PROCESSES = 2
CONNECTIONS = 200
RAMP_SECONDS = 1.0  # before a load counts
PACE_SECONDS = 0.3  # of that, with batches
START_SECONDS = 30.0
LOOK_SECONDS = 0.05
EMPTIED = ("records", "groups", "batches")

Pids = Mapping[str, Sequence[int]]
"""Processes by role."""


@dataclass(slots=True)
class Load:
    """What came of a load. `latencies` counts batches by milliseconds; CPU seconds are by role; memory is in MB."""

    records: int
    seconds: float
    latencies: Mapping[float, int]
    cpu: Mapping[str, float]
    looks: Sequence[tuple[float, float]]
    progress: Sequence[tuple[float, int]]

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / self.seconds

    def latency(self, share: float) -> float:
        """The smallest that at least this share of batches does not exceed; not a number where there are none."""
        needed = share * sum(self.latencies.values())
        ranked = sorted(self.latencies)
        upto = itertools.accumulate(self.latencies[milliseconds] for milliseconds in ranked)
        return next((value for value, batches in zip(ranked, upto, strict=True) if batches >= needed), math.nan)

    def cpu_ms(self, role: str) -> float:
        """CPU milliseconds of these processes for 1000 records."""
        return self.cpu[role] / self.records * 1e6 if self.records else math.nan

    @property
    def memory(self) -> float:
        """The most that one server worker had at a look."""
        return max((size for _, size in self.looks), default=0.0)


@dataclass(frozen=True, slots=True)
class Service:
    """A server to load: its processes by role, and where it listens."""

    address: str
    pids: Pids


@dataclass(slots=True)
class Stage:
    """See the module; `ours` and `classic` are by number of workers."""

    admin: Connection
    postmaster: psutil.Process
    table: str
    ours: dict[int, Service]
    classic: dict[int, Service]
    copiers: list[Child]
    clients: list[Child]
    posters: list[Child]
    _run: int = 0

    def copy(self, connections: int, rows: int, seconds: float, *, rate: float | None = None) -> Load:
        """Raw COPY, as fast as it goes or paced to `rate` rows a second in all."""
        begin = time.perf_counter() + RAMP_SECONDS
        base = {"rows": rows, "begin": begin, "end": begin + seconds}
        loads = [dict(base) for _ in range(connections)]
        if rate is not None:
            for number, load in enumerate(loads):
                gap = rows / rate
                load |= {"interval": gap * connections, "first": begin - PACE_SECONDS + number * gap}
        return self._load(list(zip(self.copiers, loads, strict=False)), {})

    def stream(
        self,
        workers: int,
        batch: int,
        streams: int,
        window: int,
        seconds: float,
        *,
        rate: float | None = None,
        limit: int | None = None,
    ) -> Load:
        """This service, by so many streams; with `limit` until each has sent so many batches."""
        service = self.ours[workers]
        self._run += 1
        begin = time.perf_counter() + RAMP_SECONDS
        base: dict[str, Any] = {
            "address": service.address, "batch": batch, "window": window, "run": self._run + os.getpid() * 1000,
            "begin": begin, "end": begin + seconds,
        }  # fmt: skip
        if rate is not None:
            gap = batch / rate
            base |= {"interval": gap * streams, "stagger": gap, "first": begin - PACE_SECONDS}
        if limit is not None:
            base |= {"begin": begin - RAMP_SECONDS, "limit": limit}
        return self._load(self._shared(self.clients, base, "streams", streams), service.pids)

    def post(self, workers: int, batch: int, connections: int, seconds: float) -> Load:
        """The classic design, with a request under way on each connection."""
        service = self.classic[workers]
        begin = time.perf_counter() + RAMP_SECONDS
        base = {"port": int(service.address), "batch": batch, "begin": begin, "end": begin + seconds}
        return self._load(self._shared(self.posters, base, "connections", connections), service.pids)

    @staticmethod
    def _shared(processes: Sequence[Child], base: dict[str, Any], key: str, count: int) -> list[tuple[Child, Any]]:
        """The load shared out among processes: each has every second one."""
        used = processes[:count]
        return [(child, {**base, key: list(range(count))[number :: len(used)]}) for number, child in enumerate(used)]

    def _load(self, loads: Sequence[tuple[Child, dict[str, Any]]], pids: Pids) -> Load:
        begin, end = loads[0][1]["begin"], loads[0][1]["end"]
        pids = {**pids, "client": [child.pid for child, _ in loads]}
        looks: list[tuple[float, float]] = []
        stop = threading.Event()
        looking = threading.Thread(target=_look, args=(pids.get("worker", ()), looks, stop))
        for child, load in loads:
            child.start(load)
        looking.start()
        time.sleep(max(0.0, begin - time.perf_counter()))
        before = self._cpu(pids)
        limited = "limit" in loads[0][1]
        if not limited:
            time.sleep(max(0.0, end - time.perf_counter()))
            after = self._cpu(pids)
        try:
            answers = [child.answer() for child, _ in loads]
        finally:
            stop.set()
            looking.join()
        if limited:
            end, after = time.perf_counter(), self._cpu(pids)
        self._clear(sum(answer["total"] for answer in answers))
        return Load(
            records=sum(answer["records"] for answer in answers),
            seconds=end - begin,
            latencies=sum((_by_number(answer["latencies"]) for answer in answers), Counter()),
            cpu={role: after[role] - before[role] for role in after},
            looks=looks,
            progress=sorted((at, total) for answer in answers for at, total in answer["progress"]),
        )

    def _cpu(self, pids: Pids) -> dict[str, float]:
        seconds = {role: cpu_seconds(found) for role, found in pids.items()}
        return {**seconds, "postgres": cpu_seconds_of_tree(self.postmaster)}

    def _clear(self, expected: int) -> None:
        """Empties the tables. RuntimeError if what is stored is not exactly what was acknowledged."""
        (stored,) = self.admin.run("SELECT count(*) FROM logingest.records")
        if int(stored) != expected:
            raise RuntimeError(f"{stored} records are stored, {expected} were acknowledged")
        self.admin.run("TRUNCATE " + ", ".join(f"logingest.{name}" for name in EMPTIED))
        self.admin.run("CHECKPOINT")


@contextmanager
def stage() -> Iterator[Stage]:
    """All of it, until the block ends."""
    with ExitStack() as stack:
        folder = stack.enter_context(reachable_folder())
        postgres = EmbeddedPostgres(folder / "postgres", max_connections=CONNECTIONS)
        asyncio.run(postgres.start())
        stack.callback(lambda: asyncio.run(postgres.stop()))
        admin = stack.enter_context(Connection(postgres.dsn))
        for name in ("max_wal_size", "min_wal_size"):
            admin.run(f"ALTER SYSTEM SET {name} = '{WAL_SIZE}'")
        admin.run("SELECT pg_reload_conf()")
        ours = {workers: _ours(stack, postgres.dsn, workers) for workers in WORKERS}
        today = datetime.now(UTC).date()
        asyncio.run(_partition(postgres.dsn, today))
        table = f"logingest.{partition_name(today)}"
        yield Stage(
            admin=admin,
            postmaster=psutil.Process(postgres.pid),
            table=table,
            ours=ours,
            classic={workers: stack.enter_context(_classic(postgres.dsn, table, workers)) for workers in WORKERS},
            copiers=stack.enter_context(children("logs_copy", COPY_PROCESSES, postgres.dsn, table)),
            clients=stack.enter_context(children("logs_client", CLIENT_PROCESSES)),
            posters=stack.enter_context(children("logs_classic.client", CLIENT_PROCESSES)),
        )


def _by_number(counts: Mapping[str, int]) -> Counter[float]:
    return Counter({float(name): count for name, count in counts.items()})


async def _partition(dsn: str, day: date) -> None:
    async with Database(dsn, min_size=1, max_size=1) as database:
        await PostgresPartitions(database).ensure_days([day])


def _ours(stack: ExitStack, dsn: str, workers: int) -> Service:
    parts = urlsplit(dsn)
    environment = {
        "OPSPLANE_DATABASE__HOST": parse_qs(parts.query)["host"][0],
        "OPSPLANE_DATABASE__USER": unquote(parts.username or ""),
        "OPSPLANE_DATABASE__PASSWORD": unquote(parts.password or ""),
        "OPSPLANE_DATABASE__NAME": parts.path.removeprefix("/"),
    }
    server: ServerProcess = stack.enter_context(running_server("--workers", str(workers), environment=environment))
    return Service(server.address, {"worker": server.workers(), "parent": [server.pid]})


@contextmanager
def _classic(dsn: str, table: str, workers: int) -> Iterator[Service]:
    port = free_port()
    command = [
        sys.executable, "-m", "uvicorn", "tests.bench.logs_classic.app:app", "--host", "127.0.0.1", "--port", str(port),
        "--workers", str(workers), "--loop", "uvloop", "--http", "httptools", "--no-access-log",
        "--log-level", "warning",
    ]  # fmt: skip
    environment = {**os.environ, "CLASSIC_DSN": dsn, "CLASSIC_TABLE": table}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL) as process:
        try:
            _wait_for_answer(port, process)
            found = [child.pid for child in psutil.Process(process.pid).children()]
            pids = {"worker": found, "parent": [process.pid]} if found else {"worker": [process.pid]}
            yield Service(str(port), pids)
        finally:
            process.terminate()


def _wait_for_answer(port: int, process: subprocess.Popen[bytes]) -> None:
    """Any answer: with several workers the port is open before one of them is there."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                if connection.recv(1):
                    return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the classic server does not start")
        time.sleep(0.05)


def _look(workers: Sequence[int], looks: list[tuple[float, float]], stop: threading.Event) -> None:
    """Notes the memory of the largest worker, now and then."""
    processes = [psutil.Process(pid) for pid in workers]
    while processes and not stop.wait(LOOK_SECONDS):
        looks.append((time.perf_counter(), max(process.memory_info().rss for process in processes) / MB))
