"""The Kafka queue in a process of its own, to be killed or stopped at any point.

    python -m tests.integration.ftptransfer.kafka_process KIND DSN ADDRESS TOPICS OWNER LEASE_SECONDS POINT TIME

KIND is `publisher` or `intake`, or `all`: both, and between them one who says of every task that it is done.
The TIME-th time that it comes to POINT it prints `at POINT` and waits for a line on standard input. A POINT of `-` is
nowhere. `refused` tells that Kafka or the database did not let it go on.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.model import Succeeded
from opsplane_server.ftptransfer.queues.kafka import intake, publisher
from opsplane_server.ftptransfer.queues.kafka.cluster import KafkaCluster, Topics
from opsplane_server.ftptransfer.queues.kafka.messages import Rejected, Result, TaskMessage
from opsplane_server.ftptransfer.queues.kafka.ports import Admitted
from opsplane_server.ftptransfer.stores.postgres import PostgresSweeps, PostgresTransferQueue, queue_database
from opsplane_server.ftptransfer.stores.postgres.kafka import PostgresInbox, PostgresOutbox
from opsplane_server.ftptransfer.upkeep import Upkeep
from opsplane_server.storage.database import Database
from opsplane_server.storage.followers import Position
from opsplane_server.storage.signals import Signal, Signals

from tests.transfer_intake import FixedConnections, transfer_intake

PUBLISHER_POINTS = ("read", "sent", "offsets", "committed", "deleted")
INTAKE_POINTS = ("polled", "admitted", "committed")

Reach = Callable[[str], Awaitable[None]]


class _Stop:
    def __init__(self, point: str, time: int) -> None:
        self._point = point
        self._left = time

    async def reach(self, point: str) -> None:
        if point != self._point:
            return
        self._left -= 1
        if self._left == 0:
            sys.stdout.write(f"at {point}\n")
            sys.stdout.flush()
            await asyncio.to_thread(sys.stdin.readline)


class _Outbox(PostgresOutbox):
    reach: Reach

    async def unpublished(self, after: Position, limit: int) -> Sequence[tuple[Position, Result]]:
        rows = await super().unpublished(after, limit)
        if rows:
            await self.reach("read")
        return rows

    async def published(self, through: Position) -> None:
        await self.reach("committed")
        await super().published(through)
        await self.reach("deleted")


class _Inbox(PostgresInbox):
    reach: Reach

    async def admit(self, tasks: Sequence[TaskMessage], rejected: Sequence[Rejected]) -> Admitted:
        await self.reach("polled")
        admitted = await super().admit(tasks, rejected)
        await self.reach("admitted")
        return admitted


def _instrument(reach: Reach) -> None:
    class Producer(AIOKafkaProducer):  # type: ignore[misc]  # aiokafka is not typed
        async def send_offsets_to_transaction(self, offsets: Mapping[Any, Any], group_id: str) -> None:
            # The first transaction of each turn carries no results.
            marks = all(offset.offset == 0 for offset in offsets.values())
            if not marks:
                await self.flush()
                await reach("sent")
            await super().send_offsets_to_transaction(offsets, group_id)
            if not marks:
                await reach("offsets")

    class Consumer(AIOKafkaConsumer):  # type: ignore[misc]  # aiokafka is not typed
        async def commit(self, offsets: Mapping[Any, Any] | None = None) -> None:
            await super().commit(offsets)
            await reach("committed")

    publisher.AIOKafkaProducer = Producer  # type: ignore[attr-defined]
    intake.AIOKafkaConsumer = Consumer  # type: ignore[attr-defined]


async def main() -> None:
    kind, dsn, address, names, owner, lease_seconds, point, time = sys.argv[1:]
    structlog.configure(
        processors=[_tell, structlog.processors.KeyValueRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    reach = _Stop(point, int(time)).reach
    _instrument(reach)
    cluster, topics = KafkaCluster((address,)), Topics(*names.split(","))
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(dsn))
        signals = await stack.enter_async_context(Signals(dsn))
        changes = signals.topic("changes")
        figures = TransferFigures()
        work = signals.topic("work")
        if kind != "publisher":
            inbox = _Inbox(database, transfer_intake(database, signals), work=work, changes=changes, worker=owner)
            inbox.reach = reach
            await stack.enter_async_context(intake.KafkaIntake(cluster, topics, inbox, figures, session_seconds=2))
        if kind != "intake":
            outbox = _Outbox(database)
            outbox.reach = reach
            lease = float(lease_seconds)
            await stack.enter_async_context(
                publisher.ResultPublisher(cluster, topics, outbox, changes, figures, owner=owner, lease_seconds=lease)
            )
        if kind == "all":
            connections = await stack.enter_async_context(queue_database(dsn))
            queue = PostgresTransferQueue(
                connections, FixedConnections(), work=work, changes=changes, lease_seconds=float(lease_seconds)
            )
            upkeep = Upkeep(PostgresSweeps(database), work=work, changes=changes, keep=timedelta(days=1))
            await stack.enter_async_context(upkeep)
            doing = asyncio.create_task(_do_all(queue, work, owner))
            stack.callback(doing.cancel)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await stopped.wait()


async def _do_all(queue: PostgresTransferQueue, work: Signal, worker: str) -> None:
    while True:
        seen = work.generation
        tasks = await queue.take(worker, 50, without=())
        if not tasks:
            await work.changed(seen, 0.2)
        # The last ones first, for no order is promised.
        await queue.settle(worker, [(task, Succeeded(5, sent=5)) for task in reversed(tasks)])


def _tell(logger: object, method: str, event: Any) -> Any:
    if event["event"] in ("results not published", "kafka offsets not committed"):
        sys.stdout.write("refused\n")
        sys.stdout.flush()
    return event


if __name__ == "__main__":
    asyncio.run(main())
