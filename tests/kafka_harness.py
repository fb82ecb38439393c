"""What tests of the Kafka queue share: topics that exist, messages in, results out, the tables in between."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from opsplane_server.ftptransfer.queues.kafka.cluster import KafkaCluster, Topics
from opsplane_server.storage.database import Database
from opsplane_server.storage.migrations import Migrations

from tests.kafka_broker import KafkaBroker

MIGRATIONS = Migrations("ftptransfer", "opsplane_server.ftptransfer")
PARTITIONS = 3


def cluster(broker: KafkaBroker) -> KafkaCluster:
    """How to reach it."""
    return KafkaCluster((broker.address,))


async def new_topics(broker: KafkaBroker, *, partitions: int = PARTITIONS) -> Topics:
    """Topics and a group of one test, which exist."""
    name = uuid.uuid4().hex[:8]
    topics = Topics(f"tasks-{name}", f"results-{name}", f"failures-{name}", f"group-{name}")
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await admin.start()
    try:
        names = (topics.tasks, topics.results, topics.failures)
        await admin.create_topics([NewTopic(topic, partitions, 1) for topic in names])
    finally:
        await admin.close()
    return topics


@asynccontextmanager
async def producing(broker: KafkaBroker, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
    """A plain producer, as anybody has one."""
    producer = AIOKafkaProducer(bootstrap_servers=broker.address, **options)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def produce(broker: KafkaBroker, topic: str, messages: Iterable[dict[str, Any] | bytes]) -> None:
    """Writes messages, round the partitions."""
    async with producing(broker) as producer:
        sent = [
            await producer.send(
                topic,
                message if isinstance(message, bytes) else json.dumps(message).encode(),
                partition=number % PARTITIONS,
            )
            for number, message in enumerate(messages)
        ]
        await asyncio.gather(*sent)


async def published(broker: KafkaBroker, topic: str) -> list[dict[str, Any]]:
    """All messages of a topic that are committed, as anybody sees them who reads only such.

    It reads past all that was written before, so that a transaction whose end is still being written counts too.
    """
    places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    async with _consuming(broker, "read_uncommitted") as consumer:
        ends = await consumer.end_offsets(places)
    async with _consuming(broker, "read_committed") as consumer:
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        found = []
        while any([await consumer.position(place) < ends[place] for place in places]):
            batches = await consumer.getmany(timeout_ms=200)
            found += [json.loads(message.value) for messages in batches.values() for message in messages]
        return found


@asynccontextmanager
async def _consuming(broker: KafkaBroker, isolation: str) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker.address, isolation_level=isolation, enable_auto_commit=False, fetch_max_wait_ms=50
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def fill_outbox(database: Database, task_ids: Sequence[str], *, failed: int = 0) -> None:
    """Puts results into the outbox as transfers do that end: the last `failed` of them are failures."""
    async with database.connection() as connection:
        await connection.executemany(
            """INSERT INTO ftptransfer.outbox (status, message, bytes_transferred, duration, error_code, error_message)
               VALUES ($1, $2, 5, '1.5 s', $3, $4)""",
            [
                (
                    "success" if number < len(task_ids) - failed else "failed",
                    json.dumps(task(task_id)),
                    None if number < len(task_ids) - failed else "IO_ERROR",
                    None if number < len(task_ids) - failed else "no space",
                )
                for number, task_id in enumerate(task_ids)
            ],
        )


async def left_in_outbox(database: Database) -> int:
    """How many results are not published, as the database knows."""
    async with database.connection() as connection:
        return int(await connection.fetchval("SELECT count(*) FROM ftptransfer.outbox"))


def task(task_id: str, **fields: Any) -> dict[str, Any]:
    """A message of the seed's form."""
    return {
        "task_id": task_id,
        "src_id": "remote",
        "src_path": f"/in/{task_id}",
        "dst_id": "local",
        "dst_path": f"/out/{task_id}",
        **fields,
    }
