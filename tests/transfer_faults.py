"""Transfers while everything on their way breaks, and what must be true of them in the end.

A server of ours moves numbered files, as many up as down, through a proxy that delays, cuts, throttles, truncates and
stalls connections. Meanwhile processes are killed. A task is one of

    sound    must succeed
    hasty    has one attempt: it succeeds, or fails because of its connection or of what came of the file
    missing  its source does not exist
    wrong    its content has another SHA-256 than it asks for; only by RPC, messages of the queue have none
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration
from opsplane.client import connect
from opsplane.ftptransfer.v1 import connections_pb2, ftptransfer_pb2, transfers_pb2
from opsplane_server.ftptransfer.queues.kafka.cluster import Topics
from opsplane_server.ftptransfer.temporary import is_temporary

from tests.ftp_proxy import Fault, FtpProxy
from tests.ftp_servers.base import PASSWORD, FtpProcess
from tests.kafka_broker import KafkaBroker
from tests.kafka_harness import new_topics, produce, published
from tests.logs_crashes import kill_server
from tests.logs_shippers import database, faults
from tests.ports import free_port
from tests.postgres_fixtures import reachable_folder
from tests.server_process import ServerProcess, kill, new_server
from tests.waiting import until

LOCAL: Final = "local"
REMOTE: Final = "remote"
ATTEMPTS: Final = 100
REPLY_SECONDS: Final = 5
STALL_SECONDS: Final = 3
_CODES: Final[Mapping[str, frozenset[str]]] = {
    "sound": frozenset(),
    "hasty": frozenset({"CONNECTION_ERROR", "IO_ERROR"}),
    "missing": frozenset({"FILE_NOT_FOUND"}),
    "wrong": frozenset({"IO_ERROR", "CONNECTION_ERROR"}),  # by its last attempt
}
_MUST_FAIL: Final = frozenset({"missing", "wrong"})


@dataclass(frozen=True, slots=True)
class FaultyTask:
    """A task of this test. `target` is the file on the disk that it is about, `content` what must be in it."""

    task_id: str
    kind: str
    up: bool
    name: str
    target: Path
    content: bytes

    @property
    def ends(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Connection and path of its source and of its destination."""
        local, remote = (
            (LOCAL, f"/{'out' if self.up else 'in'}/{self.name}"),
            (
                REMOTE,
                f"/data/{'in' if self.up else 'out'}/{self.name}",
            ),
        )
        return (local, remote) if self.up else (remote, local)

    def transfer(self) -> transfers_pb2.Transfer:
        """For SubmitTransfers."""
        source, destination = (
            transfers_pb2.Location(connection=f"connections/{connection}", path=path) for connection, path in self.ends
        )
        return transfers_pb2.Transfer(
            source=source,
            destination=destination,
            task_id=self.task_id,
            max_attempts={"hasty": 1, "wrong": 2}.get(self.kind, ATTEMPTS),
            sha256=hashlib.sha256(b"something else").hexdigest() if self.kind == "wrong" else "",
        )

    def message(self) -> dict[str, Any]:
        """For the topic of tasks."""
        (src_id, src_path), (dst_id, dst_path) = self.ends
        retries = ATTEMPTS - 1 if self.kind == "hasty" else 0
        return {
            "task_id": self.task_id,
            "src_id": src_id,
            "src_path": src_path,
            "dst_id": dst_id,
            "dst_path": dst_path,
            "metadata": {"retry_count": retries, "number": self.task_id},
        }


class Trouble:
    """What happens to connections through the proxy: to most of them nothing.

    A task that fails four times in a row waits for minutes, so that must be rare.
    """

    def __init__(self, chance: random.Random, largest: int) -> None:
        self._chance = chance
        self._largest = largest

    def data(self) -> Fault:
        """To the next data connection."""
        chance = self._chance
        if chance.random() > 0.12:
            return Fault()
        where = chance.randrange(self._largest)
        return chance.choice(
            (
                Fault(cut_after=where),
                Fault(truncate_after=where),
                Fault(delay=chance.uniform(0.01, 0.3)),
                Fault(rate=chance.randrange(self._largest // 2, 4 * self._largest)),
                Fault(stall_after=where, delay=0.01),
            )
        )

    def control(self) -> Fault:
        """To the next control connection, which carries many commands."""
        chance = self._chance
        if chance.random() > 0.3:
            return Fault()
        where = chance.randrange(200, 6000)
        return chance.choice(
            (
                Fault(cut_after=where),
                Fault(truncate_after=where),
                Fault(delay=chance.uniform(0.001, 0.02)),
                Fault(stall_after=where),
            )
        )


class FaultySite:
    """A server of ours, an FTP server behind a proxy, a local folder, and the tasks between them."""

    def __init__(
        self,
        server: ServerProcess,
        ftp: FtpProcess,
        local: Path,
        chance: random.Random,
        kafka: tuple[KafkaBroker, Topics] | None,
    ) -> None:
        self.server = server
        self.ftp = ftp
        self.tasks: list[FaultyTask] = []
        self.unexpected: list[object] = []
        """What our server called so in its log."""
        self._open = asyncio.Condition()
        self._opened = 0.0
        self._local = local
        self._chance = chance
        self._kafka = kafka
        self._kinds = ["sound"] * 16 + ["hasty"] * 2 + ["missing", "sound" if kafka else "wrong"]

    def make(self, count: int, largest: int) -> None:
        """Makes so many tasks and the files of those that have one."""
        for folder in (self._local / "in", self._local / "out", self.ftp.files / "in", self.ftp.files / "out"):
            folder.mkdir()
        self.ftp.own(self.ftp.files / "in")
        self.ftp.own(self.ftp.files / "out")
        for number in range(count):
            kind = self._chance.choice(self._kinds)
            content = self._chance.randbytes(
                self._chance.choice((0, self._chance.randrange(1000), self._chance.randrange(largest)))
            )
            up, name = number % 2 == 0, f"file {number}"
            target = (self.ftp.files if up else self._local) / "in" / name
            self.tasks.append(FaultyTask(f"task-{number}", kind, up, name, target, content))
            if kind == "missing":
                continue
            if up:
                (self._local / "out" / name).write_bytes(content)
            else:
                self.ftp.write(f"out/{name}", content)

    async def open(self, share: float) -> None:
        """Lets `submit` go on to this share of the tasks, so that there are some left for each kill."""
        async with self._open:
            self._opened = share
            self._open.notify_all()

    async def submit(self, batch: int = 25) -> None:
        """Hands all tasks in, by RPC or as messages; again where it is not sure, which must double nothing."""
        for start in range(0, len(self.tasks), batch):
            async with self._open:
                await self._open.wait_for(lambda start=start: start < self._opened * len(self.tasks))  # type: ignore[misc]
            tasks = self.tasks[start : start + batch]
            if self._kafka is not None:
                broker, topics = self._kafka
                await produce(broker, topics.tasks, [*(task.message() for task in tasks), tasks[0].message()])
            else:
                await self._call([*tasks, tasks[0]])

    async def _call(self, tasks: Sequence[FaultyTask]) -> None:
        request = ftptransfer_pb2.SubmitTransfersRequest(transfers=[task.transfer() for task in tasks])

        async def requests() -> AsyncIterator[ftptransfer_pb2.SubmitTransfersRequest]:
            yield request

        async with connect(self.server.address) as client:
            while True:
                try:
                    answer = await client.ftp_transfer.SubmitTransfers(requests(), timeout=30)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                        raise
                    await asyncio.sleep(0.2)
                    continue
                assert not answer.rejected_transfers, answer
                return

    # Breaking things

    def progress(self) -> int:
        """Files that have arrived."""
        folders = (self._local / "in", self.ftp.files / "in")
        return sum(not is_temporary(path.name) for folder in folders for path in folder.iterdir())

    async def kill(self, victim: str) -> None:
        """Ends `worker`, `server`, `ftp` or `kafka` by SIGKILL, and returns when it is there again."""
        if victim == "worker":
            kill(self._chance.choice(self.server.workers()))
        elif victim == "server":
            self.unexpected += faults(self.server)
            await asyncio.to_thread(kill_server, self.server)
        elif victim == "ftp":
            await asyncio.to_thread(self.ftp.kill)
            await asyncio.sleep(self._chance.uniform(0.0, 1.0))
            await asyncio.to_thread(self.ftp.start)
        else:
            assert self._kafka is not None
            await asyncio.to_thread(self._kafka[0].kill)
            await asyncio.to_thread(self._kafka[0].start)

    async def ended(self, timeout: float) -> None:
        """Returns when every task has ended, and every result is told."""

        async def is_so() -> bool:
            await asyncio.sleep(0.2)
            async with database(self.server) as connection:
                return bool(
                    await connection.fetchval(
                        """SELECT (SELECT count(*) FROM ftptransfer.endings) >= $1
                               AND NOT EXISTS (SELECT FROM ftptransfer.queue)
                               AND ($2 OR NOT EXISTS (SELECT FROM ftptransfer.outbox))""",
                        len(self.tasks),
                        self._kafka is None,
                    )
                )

        await until(is_so, timeout=timeout)

    # Judging

    async def check(self) -> Mapping[str, int]:
        """Raises AssertionError for anything that is not as it must be. How many tasks ended in which way."""
        self.unexpected += faults(self.server)
        assert not self.unexpected, self.unexpected[:3]
        failures = await self._endings()
        endings = {task: failure.get("code", "") for task, failure in failures.items()}
        failed = {task.task_id for task in self.tasks if endings[task.task_id]}
        wrong: list[tuple[object, ...]] = []
        for task in self.tasks:
            code = endings[task.task_id]
            if code not in (_CODES[task.kind] if task.kind in _MUST_FAIL else _CODES[task.kind] | {""}):
                wrong.append((task.task_id, task.kind, "ended with", failures[task.task_id]))
            if code and task.target.exists() and not self._is_untold(task, code):
                wrong.append((task.task_id, task.kind, failures[task.task_id], "but the file is there"))
            if not code and not (task.target.is_file() and task.target.read_bytes() == task.content):
                wrong.append((task.task_id, task.kind, "done", "but the file is missing or another"))
        assert not wrong, f"{len(wrong)} are wrong: {wrong[:10]}"
        left = {path.name for folder in (self._local / "in", self.ftp.files / "in") for path in folder.iterdir()}
        left -= {
            task.name
            for task in self.tasks
            if task.task_id not in failed or self._is_untold(task, endings[task.task_id])
        }
        assert not left, f"left over: {sorted(left)[:10]}"
        if self._kafka is not None:
            await self._check_results(failed)
        codes = list(endings.values())
        return {code or "SUCCEEDED": codes.count(code) for code in sorted(set(codes))}

    @staticmethod
    def _is_untold(task: FaultyTask, code: str) -> bool:
        """Whether the one attempt gave the file its name, and the connection broke before the server could say so."""
        return (
            task.kind == "hasty"
            and task.up
            and code == "CONNECTION_ERROR"
            and task.target.is_file()
            and task.target.read_bytes() == task.content
        )

    async def _endings(self) -> Mapping[str, Mapping[str, Any]]:
        """The failure of each task, empty for those that are done. Each has ended once."""
        async with database(self.server) as connection:
            rows = await connection.fetch(
                """SELECT t.task_id, e.failure::text AS failure, e.state
                   FROM ftptransfer.transfers t JOIN ftptransfer.endings e ON e.key = t.key"""
            )
        _require_equal("endings", [row["task_id"] for row in rows], [task.task_id for task in self.tasks])
        return {row["task_id"]: json.loads(row["failure"]) if row["state"] == "FAILED" else {} for row in rows}

    async def _check_results(self, failed: set[str]) -> None:
        assert self._kafka is not None
        broker, topics = self._kafka
        results = [message["task_id"] for message in await published(broker, topics.results)]
        failures = [message["task_id"] for message in await published(broker, topics.failures)]
        _require_equal("failures", failures, failed)
        _require_equal("results", results, [task.task_id for task in self.tasks if task.task_id not in failed])


def _require_equal(what: str, found: Iterable[str], expected: Iterable[str]) -> None:
    there, needed = Counter(found), Counter(expected)
    assert there == needed, f"{what}: too many {(there - needed).most_common(10)}, missing {needed - there}"


@asynccontextmanager
async def faulty_site(
    ftp: FtpProcess, *, seed: int, largest: int, workers: int = 2, broker: KafkaBroker | None = None
) -> AsyncIterator[FaultySite]:
    """One that is ready for tasks, which come from `broker` if there is one."""
    chance = random.Random(seed)  # noqa: S311
    trouble = Trouble(chance, largest)
    kafka = None if broker is None else (broker, await new_topics(broker))
    async with AsyncExitStack() as stack:
        local = stack.enter_context(reachable_folder())
        proxy = FtpProxy(ftp.host, ftp.port, control=trouble.control, data=trouble.data)
        await stack.enter_async_context(proxy)
        server = stack.enter_context(
            new_server("--workers", str(workers), f"--port={free_port()}", environment=_environment(kafka))
        )
        server.start()
        await asyncio.to_thread(server.wait_ready)
        async with connect(server.address) as client:
            for name, connection in _connections(proxy, ftp, local).items():
                await client.ftp_transfer.CreateConnection(
                    connections_pb2.CreateConnectionRequest(connection=connection, connection_id=name)
                )
        yield FaultySite(server, ftp, local, chance, kafka)


def _environment(kafka: tuple[KafkaBroker, Topics] | None) -> Mapping[str, str]:
    settings = {"MAX_ATTEMPTS": str(ATTEMPTS)}
    if kafka is not None:
        broker, topics = kafka
        settings |= {
            "KAFKA_BOOTSTRAP_SERVERS": broker.address,
            "KAFKA_INPUT_TOPIC": topics.tasks,
            "KAFKA_RESULT_TOPIC": topics.results,
            "KAFKA_FAIL_TOPIC": topics.failures,
            "KAFKA_CONSUMER_GROUP": topics.group,
        }
    return {f"OPSPLANE_FTPTRANSFER__{name}": value for name, value in settings.items()}


def _connections(proxy: FtpProxy, ftp: FtpProcess, local: Path) -> Mapping[str, connections_pb2.Connection]:
    server = connections_pb2.FtpServer(
        host="127.0.0.1",
        port=proxy.port,
        user=ftp.user,
        password=PASSWORD,
        reply_timeout=Duration(seconds=REPLY_SECONDS),
        stall_timeout=Duration(seconds=STALL_SECONDS),
    )
    folder = connections_pb2.LocalFolder(base_path=str(local))
    return {REMOTE: connections_pb2.Connection(ftp=server), LOCAL: connections_pb2.Connection(local=folder)}
