"""Messages become transfers exactly once, whoever joins, leaves or dies when."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from opsplane_server.errors import Unavailable
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.queues.kafka.cluster import Topics
from opsplane_server.ftptransfer.queues.kafka.intake import KafkaIntake
from opsplane_server.ftptransfer.queues.kafka.messages import Rejected, TaskMessage
from opsplane_server.ftptransfer.queues.kafka.ports import Admitted
from opsplane_server.ftptransfer.queues.kafka.publisher import ResultPublisher
from opsplane_server.ftptransfer.stores.postgres.kafka import PostgresInbox, PostgresOutbox
from opsplane_server.storage.database import Database
from opsplane_server.storage.signals import Signals

from tests.integration.ftptransfer.kafka_process import INTAKE_POINTS
from tests.integration.ftptransfer.kafka_processes import started
from tests.kafka_broker import KafkaBroker, running_broker
from tests.kafka_harness import (
    MIGRATIONS,
    PARTITIONS,
    cluster,
    new_topics,
    produce,
    producing,
    published,
    task,
)
from tests.postgres_fixtures import migrated
from tests.transfer_intake import transfer_intake
from tests.waiting import until


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    async with migrated(dsn, [MIGRATIONS]) as opened:
        yield opened


@pytest.fixture
async def signals(dsn: str) -> AsyncIterator[Signals]:
    async with Signals(dsn) as opened:
        yield opened


class Inbox(PostgresInbox):
    """Counts what comes, and can be out of order for a while."""

    broken = 0
    messages = 0

    async def admit(self, tasks: Sequence[TaskMessage], rejected: Sequence[Rejected]) -> Admitted:
        self.messages += len(tasks) + len(rejected)
        if self.broken:
            self.broken -= 1
            raise Unavailable("out of order")
        return await super().admit(tasks, rejected)


@asynccontextmanager
async def reading(
    broker: KafkaBroker,
    topics: Topics,
    database: Database,
    signals: Signals,
    *,
    most_pending: int = 100_000,
    broken: int = 0,
) -> AsyncIterator[tuple[TransferFigures, Inbox]]:
    """A member of the group in this process."""
    figures = TransferFigures()
    work, changes = signals.topic("work"), signals.topic("changes")
    inbox = Inbox(database, transfer_intake(database, signals), work=work, changes=changes, worker="here")
    inbox.broken = broken
    async with KafkaIntake(cluster(broker), topics, inbox, figures, most_pending=most_pending, session_seconds=2):
        yield figures, inbox


async def task_ids(database: Database) -> Counter[str]:
    async with database.connection() as connection:
        return Counter(row["task_id"] for row in await connection.fetch("SELECT task_id FROM ftptransfer.transfers"))


async def failures(database: Database) -> Counter[str]:
    """What the outbox has, by why it failed."""
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT error_message FROM ftptransfer.outbox")
    return Counter(row["error_message"] for row in rows)


async def all_there(database: Database, count: int) -> None:
    async def there() -> bool:
        async with database.connection() as connection:
            return bool(await connection.fetchval("SELECT count(*) >= $1 FROM ftptransfer.transfers", count))

    await until(there)


async def committed(broker: KafkaBroker, topics: Topics) -> int:
    """The sum of the group's offsets."""
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await admin.start()
    try:
        places = [TopicPartition(topics.tasks, number) for number in range(PARTITIONS)]
        offsets = await admin.list_consumer_group_offsets(topics.group, partitions=places)
        return sum(max(0, offsets[place].offset) for place in places)
    finally:
        await admin.close()


async def all_committed(broker: KafkaBroker, topics: Topics, count: int) -> None:
    async def done() -> bool:
        return await committed(broker, topics) == count

    await until(done)


async def test_the_console_producer_of_the_ftp_pooler_is_understood(
    kafka: KafkaBroker, database: Database, signals: Signals
) -> None:
    """`echo '{...}' | kafka-console-producer`, an empty line before and after."""
    topics = await new_topics(kafka)
    message = {**task("test-001"), "src_path": "/test.txt", "dst_path": "/downloaded.txt"}
    text = f"\n{json.dumps(message)}\n\n"
    await asyncio.to_thread(kafka.tool, "org.apache.kafka.tools.ConsoleProducer", "--topic", topics.tasks, text=text)
    async with reading(kafka, topics, database, signals) as (figures, _):
        await all_there(database, 1)
        await all_committed(kafka, topics, 3)
    async with database.connection() as connection:
        row = await connection.fetchrow("SELECT * FROM ftptransfer.transfers")
    assert row is not None
    assert (row["task_id"], row["source_path"], row["destination_path"]) == ("test-001", "/test.txt", "/downloaded.txt")
    assert (row["origin_kind"], row["submitter"]) == ("kafka", topics.tasks)
    assert (figures.tasks_received, figures.malformed) == (1, 2)
    assert await failures(database) == Counter()


async def test_what_is_no_task_fails_and_stalls_nothing(
    kafka: KafkaBroker, dsn: str, database: Database, signals: Signals
) -> None:
    topics = await new_topics(kafka)
    other_place = {**task("good-0"), "src_path": "/elsewhere"}
    wrong: list[dict[str, Any] | bytes] = [
        b"\xff",
        b"{",
        b"[]",
        {"task_id": "x"},
        {**task("two"), "src_id": "local"},
        {**task("who"), "dst_id": "nobody"},
    ]
    await produce(kafka, topics.tasks, [task("good-0")])
    async with reading(kafka, topics, database, signals) as (figures, _):
        await all_there(database, 1)
        await produce(kafka, topics.tasks, [*wrong, b"", other_place, *(task(f"good-{n}") for n in range(1, 10))])
        await all_committed(kafka, topics, 18)
        assert (figures.tasks_received, figures.malformed) == (12, 6)
        outbox = PostgresOutbox(database)
        async with ResultPublisher(cluster(kafka), topics, outbox, signals.topic("changes"), figures, owner="here"):
            await until(lambda: figures.results_published == 7)
    told = {(message["task_id"], message["error_message"]) for message in await published(kafka, topics.failures)}
    assert {task_id for task_id, _ in told} == {None, "x", "two", "who", "good-0"}
    assert ("x", "src_id: is missing") in told
    assert ("good-0", "task_id: is that of another task, between other places") in told
    assert len(told) == 7
    assert {message["error_code"] for message in await published(kafka, topics.failures)} == {"INVALID_CONFIG"}
    assert await published(kafka, topics.results) == []


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_messages_may_be_compressed(kafka: KafkaBroker, database: Database, signals: Signals, codec: str) -> None:
    topics = await new_topics(kafka)
    async with producing(kafka, compression_type=codec) as producer:
        await producer.send_and_wait(topics.tasks, json.dumps(task("a", metadata={"text": "x" * 1000})).encode())
    async with reading(kafka, topics, database, signals):
        await all_there(database, 1)


async def test_messages_without_a_task_id_that_are_delivered_again_stay_one_task(
    kafka: KafkaBroker, database: Database, signals: Signals
) -> None:
    topics = await new_topics(kafka)
    nameless = [{name: value for name, value in task("x").items() if name != "task_id"} for _ in range(20)]
    await produce(kafka, topics.tasks, [*nameless, b"no task"])
    async with reading(kafka, topics, database, signals):
        await all_committed(kafka, topics, 21)
    # Another group reads all of it once more.
    again = replace(topics, group=f"{topics.group}-again")
    async with reading(kafka, again, database, signals) as (figures, _):
        await all_committed(kafka, again, 21)
    ids = await task_ids(database)
    assert len(ids) == ids.total() == 20
    assert (await failures(database)).total() == 1
    assert (figures.tasks_received, figures.malformed) == (0, 0)


@pytest.mark.slow
async def test_members_come_and_go_while_messages_flow(
    kafka: KafkaBroker, dsn: str, database: Database, signals: Signals
) -> None:
    topics = await new_topics(kafka)
    sent: list[str] = []
    calm = asyncio.Event()

    async def flow() -> None:
        while len(sent) < 2000 or not calm.is_set():
            names = [f"t{len(sent) + number}" for number in range(20)]
            await produce(kafka, topics.tasks, map(task, names))
            sent.extend(names)

    async with reading(kafka, topics, database, signals):
        flowing = asyncio.create_task(flow())
        async with started("intake", dsn, kafka, topics, owner="second") as second:
            async with started("intake", dsn, kafka, topics, owner="third", point="admitted", time=2) as third:
                await third.lines("at", 1)
                await third.kill()
            await all_there(database, len(sent) + 200)
            assert await second.terminate() == 0
        calm.set()
        await flowing
        await all_committed(kafka, topics, len(sent))
    assert await task_ids(database) == Counter(sent)


@pytest.mark.slow
@pytest.mark.parametrize("point", INTAKE_POINTS)
async def test_kill_9_at_any_point_neither_loses_nor_doubles(
    kafka: KafkaBroker, dsn: str, database: Database, signals: Signals, point: str
) -> None:
    topics = await new_topics(kafka)
    names = [f"t{number}" for number in range(900)]
    await produce(kafka, topics.tasks, [*map(task, names[:600]), b"no task", *map(task, names[600:])])
    async with started("intake", dsn, kafka, topics, owner="first", point=point) as first:
        await first.lines("at", 1)
        await first.kill()
    async with reading(kafka, topics, database, signals):
        await all_committed(kafka, topics, 901)
    assert await task_ids(database) == Counter(names)
    assert (await failures(database)).total() == 1


@pytest.mark.slow
async def test_a_broker_that_is_killed_and_comes_back_is_read_on(database: Database, signals: Signals) -> None:
    names = [f"t{number}" for number in range(600)]
    with running_broker() as broker:
        topics = await new_topics(broker)
        async with reading(broker, topics, database, signals) as (figures, _):
            await produce(broker, topics.tasks, map(task, names[:300]))
            await all_there(database, 100)
            await asyncio.to_thread(broker.kill)
            await until(lambda: not figures.queue_connected)
            await asyncio.to_thread(broker.start)
            await produce(broker, topics.tasks, map(task, names[300:]))
            await all_there(database, 600)
            await until(lambda: figures.queue_connected)
            await all_committed(broker, topics, 600)
    assert await task_ids(database) == Counter(names)


async def test_messages_wait_while_the_database_is_away(
    kafka: KafkaBroker, database: Database, signals: Signals
) -> None:
    topics = await new_topics(kafka)
    names = [f"t{number}" for number in range(30)]
    await produce(kafka, topics.tasks, map(task, names))
    async with reading(kafka, topics, database, signals, broken=3) as (_, inbox):
        await all_committed(kafka, topics, 30)
        assert inbox.broken == 0
    assert await task_ids(database) == Counter(names)


async def test_it_reads_no_more_than_can_be_worked_off(
    kafka: KafkaBroker, database: Database, signals: Signals
) -> None:
    topics = await new_topics(kafka)
    async with reading(kafka, topics, database, signals, most_pending=50) as (_, inbox):
        await produce(kafka, topics.tasks, (task(f"t{number}") for number in range(50)))
        await all_there(database, 50)
        await asyncio.sleep(1.2)  # it looks once a second
        await produce(kafka, topics.tasks, (task(f"u{number}") for number in range(10)))
        # Members that come and go do not make it forget.
        async with reading(kafka, replace(topics), database, signals, most_pending=50) as (_, second):
            await asyncio.sleep(1.5)
            assert (await task_ids(database)).total() == 50
            assert inbox.messages + second.messages == 50
        async with database.connection() as connection:
            await connection.execute("DELETE FROM ftptransfer.queue")
        await all_there(database, 60)
        await all_committed(kafka, topics, 60)


async def test_it_begins_when_the_broker_comes(database: Database, signals: Signals) -> None:
    with running_broker() as broker:
        topics = await new_topics(broker)
        await produce(broker, topics.tasks, [task("a")])
        broker.stop()
        async with reading(broker, topics, database, signals) as (figures, _):
            await asyncio.sleep(0.2)
            assert not figures.queue_connected
            await asyncio.to_thread(broker.start)
            await all_there(database, 1)
            assert figures.queue_connected
