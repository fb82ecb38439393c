"""Publishes what came of tasks, each result exactly once.

Results wait in the outbox, a table to which the transactions that end transfers append. The publisher writes a batch of
them to Kafka in a transaction of Kafka's that also holds its position in the outbox, kept as an offset of a consumer
group of its own. Only then the rows are deleted. Whoever begins to publish, after a crash or in place of another, first
asks Kafka for the position: rows up to it were published, rows behind it were not, whatever became of the process.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata

from opsplane_server.errors import InvalidArgument, OpsplaneError, Unavailable
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.queues.kafka.cluster import KafkaCluster, Topics, end
from opsplane_server.ftptransfer.queues.kafka.messages import Result
from opsplane_server.ftptransfer.queues.kafka.ports import Outbox
from opsplane_server.storage.followers import Position
from opsplane_server.storage.signals import Signal

log = structlog.get_logger(__name__)

_BATCH: Final = 500
_POLL_SECONDS: Final = 1.0
_GATHER_SECONDS: Final = 0.1
_TRANSACTION_SECONDS: Final = 30.0
_CLOSE_SECONDS: Final = 5.0
_MARK_SECONDS: Final = 0.02
_RETRY_SECONDS: Final = (0.5, 5.0)  # first, longest


class ResultPublisher:
    """Publishes while it is entered and it is its turn: one process at a time does, by a lease in the database.

    `signal` tells that transfers have ended. The lease only saves work: what keeps two from publishing the same is
    Kafka, which ends the transactions of the one that came before. `connected` says whether it is publishing now.
    """

    def __init__(
        self,
        cluster: KafkaCluster,
        topics: Topics,
        outbox: Outbox,
        signal: Signal,
        figures: TransferFigures,
        *,
        owner: str,
        lease_seconds: float = 15.0,
    ) -> None:
        self._cluster = cluster
        self._topics = topics
        self._outbox = outbox
        self._signal = signal
        self._figures = figures
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._name: str | None = None
        self._next_renewal = 0.0
        self._delay = _RETRY_SECONDS[0]
        self._ending = False
        self._task: asyncio.Task[None] | None = None
        self.connected = False

    async def __aenter__(self) -> Self:
        self._cluster.options()  # what is wrong with the settings is told now
        self._task = asyncio.create_task(self._run(), name="kafka publisher")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publishes what there is, if it was publishing."""
        assert self._task is not None
        self._ending = True
        if self.connected:
            self._signal.notify()
            await asyncio.wait((self._task,), timeout=_CLOSE_SECONDS)
        await end(self._task)

    async def _run(self) -> None:
        try:
            while not self._ending:
                try:
                    if not await self._publish():
                        await asyncio.sleep(self._lease_seconds / 3)
                    continue
                except OpsplaneError as error:
                    log.warning("results not published", error=error.message, retry_seconds=self._delay)
                except Exception:
                    log.exception("results not published", retry_seconds=self._delay)
                await asyncio.sleep(self._delay)
                self._delay = min(self._delay * 2, _RETRY_SECONDS[1])
        finally:
            await self._leave()

    async def _publish(self) -> bool:
        """Publishes until it is another one's turn, or something goes wrong; False if it is another one's already."""
        name = await self._lease()
        if name is None:
            return False
        async with _Publication(self._cluster, self._topics, name) as publication:
            position = await publication.position()
            if position is None:
                position = Position.START
            elif not await self._outbox.confirm(position):
                log.error("the database was taken back to an older state: results may be published again")
                await self._outbox.rename(self._owner)
                self._next_renewal = 0.0
                return True
            log.info("publishing results", topics=[self._topics.results, self._topics.failures])
            self._delay = _RETRY_SECONDS[0]
            self.connected = True
            try:
                await self._follow(publication, position, name)
            finally:
                self.connected = False
        return True

    async def _follow(self, publication: _Publication, position: Position, name: str) -> None:
        while await self._lease() == name:
            seen = self._signal.generation
            rows = await self._outbox.unpublished(position, _BATCH)
            if not rows:
                if self._ending:
                    return
                await self._signal.changed(seen, _POLL_SECONDS)
                continue
            position = rows[-1][0]
            await publication.publish([result for _, result in rows], position)
            await self._outbox.published(position)
            self._figures.published(len(rows))
            if len(rows) < _BATCH:
                # A transaction of Kafka's costs more than a hundred results: let some come together.
                await asyncio.sleep(_GATHER_SECONDS)

    async def _lease(self) -> str | None:
        """The name of the outbox while it is our turn; the database is asked three times as often as it must be."""
        now = asyncio.get_running_loop().time()
        if now >= self._next_renewal:
            self._name = await self._outbox.lease(self._owner, self._lease_seconds)
            self._next_renewal = now + (self._lease_seconds / 3 if self._name is not None else 0.0)
        return self._name

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._outbox.leave(self._owner)
        except (OpsplaneError, TimeoutError):
            log.warning("the turn to publish ends by itself", seconds=self._lease_seconds)


def _partition(key: bytes | None, partitions: Sequence[int], available: Sequence[int]) -> int:
    """Results of one task go to one partition. The driver's own hash, in Python, takes a quarter of the whole time."""
    return random.choice(available or partitions) if key is None else partitions[zlib.crc32(key) % len(partitions)]  # noqa: S311


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    """Raises Unavailable for whatever Kafka has against the block, and when it takes too long."""
    try:
        async with asyncio.timeout(_TRANSACTION_SECONDS):
            yield
    except (KafkaError, TimeoutError) as error:
        raise Unavailable(f"kafka: {error!r}", reason="KAFKA_UNAVAILABLE") from error


class _Publication:
    """Transactions of Kafka's under the name of an outbox. Entering it ends those that anybody else began under it.

    Every error is Unavailable, and after one it is not to be used any more: leave it and enter another.
    """

    def __init__(self, cluster: KafkaCluster, topics: Topics, name: str) -> None:
        self._topics = topics
        self._group = f"{topics.group}-results-{name}"
        # Both are kept by the same broker in the same log. Of topics that exist: others are refused.
        self._place = TopicPartition(topics.results, 0)
        self._mark = TopicPartition(topics.tasks, 0)
        options = cluster.options()
        self._producer = AIOKafkaProducer(**options, transactional_id=self._group, acks="all", partitioner=_partition)
        self._admin = AIOKafkaAdminClient(**options)

    async def __aenter__(self) -> Self:
        try:
            async with _in_time():
                await self._producer.start()
                await self._admin.start()
                for topic in (self._topics.tasks, self._topics.results, self._topics.failures):
                    await self._producer.partitions_for(topic)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def position(self) -> Position | None:
        """Up to where results were published; None if Kafka knows nothing of it.

        A transaction that a crash interrupted is decided by now, but brokers before 4.0 show the offsets of one that
        was committed only a little later. Ours is behind it in the same log: when it is seen, so is what came before.
        """
        mark = secrets.token_hex(8)
        async with _in_time():
            await self._producer.begin_transaction()
            await self._producer.send_offsets_to_transaction({self._mark: OffsetAndMetadata(0, mark)}, self._group)
            await self._producer.commit_transaction()
            while True:
                offsets = await self._admin.list_consumer_group_offsets(
                    self._group, partitions=[self._place, self._mark]
                )
                if offsets[self._mark].metadata == mark:
                    break
                await asyncio.sleep(_MARK_SECONDS)
        text = offsets[self._place].metadata
        if not text:
            return None
        try:
            return Position.decode(text)
        except InvalidArgument:
            raise Unavailable(
                f"the consumer group {self._group} has an offset that is not of the outbox: {text!r}"
            ) from None

    async def publish(self, results: Sequence[Result], position: Position) -> None:
        """Writes all of them and the position behind them, or nothing."""
        producer = self._producer
        async with _in_time():
            await producer.begin_transaction()
            delivered = []
            for result in results:
                topic = self._topics.failures if result.is_failure else self._topics.results
                key, value = result.encode()
                delivered.append(await producer.send(topic, value, key=key))
            offset = OffsetAndMetadata(position.id, position.encode())
            await producer.send_offsets_to_transaction({self._place: offset}, self._group)
            await producer.commit_transaction()
            await asyncio.gather(*delivered)

    async def _close(self) -> None:
        sender = self._producer._sender.sender_task
        if sender is not None and not sender.done():
            # Without a broker `stop` waits for what is not sent yet, for ever. It must not be sent any more: the
            # transaction is over, or is ended by the next one who begins under its name.
            sender.cancel()
            await asyncio.wait((sender,), timeout=_CLOSE_SECONDS)
        self._producer._message_accumulator.fail_all(KafkaError("given up"))
        for client in (self._producer.stop, self._admin.close):
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await client()
            except (KafkaError, TimeoutError) as error:
                log.warning("a connection to kafka was not closed", error=repr(error))
