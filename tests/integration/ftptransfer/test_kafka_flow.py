"""From messages to results, with everything that can die dying on the way."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.queues.kafka.cluster import KafkaCluster
from opsplane_server.ftptransfer.queues.kafka.intake import KafkaIntake
from opsplane_server.ftptransfer.queues.kafka.publisher import ResultPublisher
from opsplane_server.ftptransfer.stores.postgres.kafka import PostgresInbox, PostgresOutbox
from opsplane_server.storage.database import Database
from opsplane_server.storage.signals import Signals

from tests.ftp_servers.certificates import make_certificate
from tests.integration.ftptransfer.kafka_processes import started
from tests.kafka_broker import running_broker
from tests.kafka_harness import MIGRATIONS, fill_outbox, new_topics, produce, published, task
from tests.postgres_fixtures import migrated
from tests.transfer_intake import transfer_intake
from tests.waiting import until


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    async with migrated(dsn, [MIGRATIONS]) as opened:
        yield opened


@pytest.mark.slow
async def test_each_of_many_tasks_has_one_result_though_workers_and_the_broker_are_killed(
    dsn: str, database: Database
) -> None:
    """Two workers, one of which is killed again and again at random moments, and the broker in between."""
    names = [f"t{number}" for number in range(3000)]
    chance = random.Random(6)  # noqa: S311

    async def all_told() -> bool:
        async with database.connection() as connection:
            return bool(
                await connection.fetchval(
                    """SELECT (SELECT count(*) FROM ftptransfer.transfers) = $1
                           AND NOT EXISTS (SELECT FROM ftptransfer.queue)
                           AND NOT EXISTS (SELECT FROM ftptransfer.outbox)""",
                    len(names),
                )
            )

    with running_broker() as broker:
        topics = await new_topics(broker)

        async def flow() -> None:
            for first in range(0, len(names), 25):
                # A producer that is not sure sends again.
                messages = [task(name) for name in names[first : first + 25]]
                await produce(broker, topics.tasks, [*messages, messages[0], b""])

        async with AsyncExitStack() as stack:
            await stack.enter_async_context(started("all", dsn, broker, topics, owner="steady"))
            flowing = asyncio.create_task(flow())
            for number in range(6):
                async with started("all", dsn, broker, topics, owner=f"victim-{number}") as victim:
                    if number == 3:
                        await asyncio.to_thread(broker.kill)
                        await asyncio.to_thread(broker.start)
                    await asyncio.sleep(chance.uniform(0.2, 1.5))
                    await victim.kill()
            await flowing
            await until(all_told, timeout=120)
        assert Counter(message["task_id"] for message in await published(broker, topics.results)) == Counter(names)
        assert await published(broker, topics.failures) == []


@pytest.mark.slow
async def test_a_cluster_with_tls_and_passwords(dsn: str, database: Database, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    authority, both = tmp_path / "authority.pem", tmp_path / "both.pem"
    authority.write_text(certificate.authority)
    both.write_bytes(certificate.key_file.read_bytes() + certificate.chain_file.read_bytes())
    with running_broker(both) as broker:
        topics = await new_topics(broker)
        cluster = KafkaCluster(
            (broker.secure_address,),
            security_protocol="SASL_SSL",
            sasl_username=broker.user,
            sasl_password=broker.password,
            ssl_ca_file=authority,
        )
        await produce(broker, topics.tasks, [task("a")])
        await fill_outbox(database, ["b"])
        figures = TransferFigures()
        async with Signals(dsn) as signals:
            work, changes = signals.topic("work"), signals.topic("changes")
            inbox = PostgresInbox(
                database, transfer_intake(database, signals), work=work, changes=changes, worker="here"
            )
            async with (
                KafkaIntake(cluster, topics, inbox, figures),
                ResultPublisher(cluster, topics, PostgresOutbox(database), changes, figures, owner="here"),
            ):
                await until(lambda: figures.tasks_received == 1 and figures.results_published == 1)
        assert broker.password not in repr(cluster)
        for wrong in (replace(cluster, sasl_password="wrong"), replace(cluster, ssl_ca_file=None)):
            producer = AIOKafkaProducer(**wrong.options())
            with pytest.raises(Exception, match="bootstrap"):
                await producer.start()
            await producer.stop()
