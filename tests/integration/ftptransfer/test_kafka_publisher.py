"""Results reach Kafka exactly once, whoever dies when."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.queues.kafka.cluster import Topics
from opsplane_server.ftptransfer.queues.kafka.publisher import ResultPublisher
from opsplane_server.ftptransfer.stores.postgres.kafka import PostgresOutbox
from opsplane_server.storage.database import Database
from opsplane_server.storage.signals import Signals

from tests.integration.ftptransfer.kafka_process import PUBLISHER_POINTS
from tests.integration.ftptransfer.kafka_processes import started
from tests.kafka_broker import KafkaBroker, running_broker
from tests.kafka_harness import MIGRATIONS, cluster, fill_outbox, left_in_outbox, new_topics, published
from tests.postgres_fixtures import migrated
from tests.waiting import until


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    async with migrated(dsn, [MIGRATIONS]) as opened:
        yield opened


@asynccontextmanager
async def publishing(
    broker: KafkaBroker, topics: Topics, dsn: str, database: Database, *, owner: str = "second"
) -> AsyncIterator[TransferFigures]:
    """A publisher in this process."""
    figures = TransferFigures()
    async with Signals(dsn) as signals:
        signal = signals.topic("changes")
        outbox = PostgresOutbox(database)
        async with ResultPublisher(cluster(broker), topics, outbox, signal, figures, owner=owner, lease_seconds=2.0):
            yield figures


async def all_published(database: Database) -> None:
    async def empty() -> bool:
        return await left_in_outbox(database) == 0

    await until(empty)


async def require_each_once(broker: KafkaBroker, topics: Topics, names: Sequence[str], *, failed: int = 0) -> None:
    results = Counter(message["task_id"] for message in await published(broker, topics.results))
    failures = Counter(message["task_id"] for message in await published(broker, topics.failures))
    wanted = len(names) - failed
    assert results == Counter(names[:wanted])
    assert failures == Counter(names[wanted:])


async def test_results_and_failures_go_to_their_topics_in_the_ftp_poolers_form(
    kafka: KafkaBroker, dsn: str, database: Database
) -> None:
    topics = await new_topics(kafka)
    async with publishing(kafka, topics, dsn, database) as figures:
        await fill_outbox(database, ["a", "b"], failed=1)
        await all_published(database)
        await until(lambda: figures.results_published == 2)
    [result] = await published(kafka, topics.results)
    assert list(result)[:6] == ["task_id", "status", "src_id", "src_path", "dst_id", "dst_path"]
    assert list(result)[6:] == ["bytes_transferred", "duration_ms", "timestamp"]
    assert (result["task_id"], result["status"], result["src_path"]) == ("a", "success", "/in/a")
    assert (result["bytes_transferred"], result["duration_ms"]) == (5, 1500)
    [failure] = await published(kafka, topics.failures)
    assert (failure["task_id"], failure["status"]) == ("b", "failed")
    assert (failure["error_code"], failure["error_message"]) == ("IO_ERROR", "no space")


async def test_what_ended_last_is_published_before_it_ends(kafka: KafkaBroker, dsn: str, database: Database) -> None:
    topics = await new_topics(kafka)
    async with publishing(kafka, topics, dsn, database) as figures:
        await fill_outbox(database, ["a"])
        await until(lambda: figures.results_published == 1)
        await fill_outbox(database, ["b", "c"])
    assert await left_in_outbox(database) == 0
    await require_each_once(kafka, topics, ["a", "b", "c"])


@pytest.mark.slow
@pytest.mark.parametrize("point", PUBLISHER_POINTS)
async def test_kill_9_at_any_point_leaves_each_result_once(
    kafka: KafkaBroker, dsn: str, database: Database, point: str
) -> None:
    topics = await new_topics(kafka)
    names = [f"t{number}" for number in range(1200)]
    await fill_outbox(database, names, failed=100)
    async with started("publisher", dsn, kafka, topics, owner="first", point=point, time=2) as process:
        await process.lines("at", 1)
        await process.kill()
    assert await left_in_outbox(database) == (200 if point == "deleted" else 700)
    async with publishing(kafka, topics, dsn, database):
        await all_published(database)
    await require_each_once(kafka, topics, names, failed=100)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["read", "sent", "offsets"])
async def test_a_publisher_that_slept_through_its_lease_publishes_nothing_more(
    kafka: KafkaBroker, dsn: str, database: Database, point: str
) -> None:
    topics = await new_topics(kafka)
    names = [f"t{number}" for number in range(700)]
    await fill_outbox(database, names)
    async with started("publisher", dsn, kafka, topics, owner="first", point=point) as process:
        await process.lines("at", 1)
        async with publishing(kafka, topics, dsn, database):
            await all_published(database)
            process.open_gate()
            await process.lines("refused", 1)
            await fill_outbox(database, ["later"])
            await all_published(database)
        assert await process.terminate() == 0
    await require_each_once(kafka, topics, [*names, "later"])


@pytest.mark.slow
async def test_a_broker_that_is_killed_while_results_flow_gets_each_once(dsn: str, database: Database) -> None:
    names = [f"t{number}" for number in range(3000)]
    with running_broker() as broker:
        topics = await new_topics(broker)
        async with publishing(broker, topics, dsn, database) as figures:
            filling = asyncio.create_task(_fill_slowly(database, names))
            for kill_at in (500, 1500):
                await until(lambda kill_at=kill_at: figures.results_published >= kill_at)  # type: ignore[misc]
                await asyncio.to_thread(broker.kill)
                await asyncio.to_thread(broker.start)
            await filling
            await all_published(database)
        await require_each_once(broker, topics, names)


async def _fill_slowly(database: Database, names: Sequence[str]) -> None:
    for first in range(0, len(names), 20):
        await fill_outbox(database, names[first : first + 20])
        await asyncio.sleep(0.01)


async def test_a_database_without_its_past_publishes_under_another_name(
    kafka: KafkaBroker, dsn: str, database: Database
) -> None:
    """A position that this database never came to says nothing of its results."""
    topics = await new_topics(kafka)
    async with publishing(kafka, topics, dsn, database):
        await fill_outbox(database, ["a"])
        await all_published(database)
    async with database.connection() as connection:
        await connection.execute("UPDATE ftptransfer.publisher SET last_xid = '1', last_id = 0")
        before = await connection.fetchval("SELECT name FROM ftptransfer.publisher")
    async with publishing(kafka, topics, dsn, database):
        await fill_outbox(database, ["b"])
        await all_published(database)
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT name FROM ftptransfer.publisher") != before
    await require_each_once(kafka, topics, ["a", "b"])


async def test_without_a_broker_it_goes_on_trying_and_ends_when_it_is_told(
    dsn: str, database: Database, unused_tcp_port: int
) -> None:
    class Nobody(KafkaBroker):
        address = f"127.0.0.1:{unused_tcp_port}"

        def __init__(self) -> None: ...

    await fill_outbox(database, ["a"])
    async with publishing(Nobody(), Topics(), dsn, database) as figures:

        async def leased() -> bool:
            async with database.connection() as connection:
                return bool(await connection.fetchval("SELECT lease_end > now() FROM ftptransfer.publisher"))

        await until(leased)
    assert figures.results_published == 0
    assert await left_in_outbox(database) == 1
    assert not await leased()
