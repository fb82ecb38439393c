"""Reads tasks from Kafka into the database.

A batch of messages becomes transfers in one transaction of the database, and then its offsets are committed. Whatever
dies or moves between the two, messages are delivered again and found to be known: nothing is lost or doubled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from opsplane_server.errors import OpsplaneError
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.queues.kafka.cluster import KafkaCluster, Topics, end
from opsplane_server.ftptransfer.queues.kafka.messages import Record, Rejected, TaskMessage, parse
from opsplane_server.ftptransfer.queues.kafka.ports import Inbox

log = structlog.get_logger(__name__)

_BATCH: Final = 500
_POLL_SECONDS: Final = 0.5
_COMMIT_SECONDS: Final = 10.0
_STOP_SECONDS: Final = 10.0
_RECONNECT_SECONDS: Final = (0.5, 5.0)  # first, longest
_BACKLOG_SECONDS: Final = 1.0
_CHECK_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 5.0

# A rebalance takes everything from everybody and waits for all: who needs longer than this to let go is left out of it.
_REBALANCE_SECONDS: Final = 60
_SESSION_SECONDS: Final = 15

_Batches = Mapping[TopicPartition, Sequence[ConsumerRecord]]


class KafkaIntake:
    """A member of the consumer group, for as long as it is entered. Several processes may run it at once.

    It reads no more while `most_pending` transfers have not ended, and goes on when a tenth of them has. While Kafka
    or the database is away it tries again, ever more rarely.
    """

    def __init__(
        self,
        cluster: KafkaCluster,
        topics: Topics,
        inbox: Inbox,
        figures: TransferFigures,
        *,
        most_pending: int = 100_000,
        session_seconds: int = _SESSION_SECONDS,
    ) -> None:
        self._cluster = cluster
        self._topics = topics
        self._inbox = inbox
        self._figures = figures
        self._most_pending = most_pending
        self._session_seconds = session_seconds
        self._ending = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._cluster.options()  # what is wrong with the settings is told now
        self._task = asyncio.create_task(self._run(), name="kafka intake")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._ending = True
        await end(self._task)

    async def _run(self) -> None:
        delay, longest = _RECONNECT_SECONDS
        while not self._ending:
            member = _Member(self._consumer(), self._inbox, self._figures, self._most_pending)
            try:
                await member.join(self._topics.tasks)
                self._figures.queue_connected = True
                log.info("kafka queue joined", topic=self._topics.tasks, group=self._topics.group)
                delay = _RECONNECT_SECONDS[0]
                await member.read()
            except KafkaError as error:
                log.warning("kafka queue away", error=_words(error), retry_seconds=delay)
            except Exception:
                log.exception("kafka queue failed", retry_seconds=delay)
            finally:
                self._figures.queue_connected = False
                await member.leave()
            await asyncio.sleep(delay)
            delay = min(delay * 2, longest)

    def _consumer(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            **self._cluster.options(),
            group_id=self._topics.group,
            client_id="opsplane-ftp",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            session_timeout_ms=self._session_seconds * 1000,
            heartbeat_interval_ms=self._session_seconds * 1000 // 5,
            rebalance_timeout_ms=_REBALANCE_SECONDS * 1000,
            max_poll_records=_BATCH,
        )


class _Member(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is not typed
    """One membership of the group, from joining to leaving."""

    def __init__(self, consumer: AIOKafkaConsumer, inbox: Inbox, figures: TransferFigures, most_pending: int) -> None:
        self._consumer = consumer
        self._inbox = inbox
        self._figures = figures
        self._most_pending = most_pending
        # Held from the first look at a batch until its offsets are committed: partitions are not let go in between.
        self._working = asyncio.Lock()
        self._held_back = False
        self._next_look = 0.0
        self._next_check = 0.0

    async def join(self, topic: str) -> None:
        self._consumer.subscribe([topic], listener=self)
        await self._consumer.start()

    async def leave(self) -> None:
        """Gives the partitions to others. A broker that does not answer is not waited for."""
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._consumer.stop()
        except TimeoutError:
            log.warning("kafka consumer not closed in time")

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """Waits until the batch that is worked on is committed."""
        async with self._working:
            pass

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """What is new is held back like the rest, for a pause does not outlive a rebalance."""
        if self._held_back:
            self._consumer.pause(*assigned)
        log.info("kafka partitions assigned", partitions=sorted(partition.partition for partition in assigned))

    async def read(self) -> None:
        """Never ends, and never stops asking, not even when it holds back: a silent member is thrown out."""
        while True:
            await self._mind_backlog()
            await self._check()
            batches = await self._consumer.getmany(timeout_ms=int(_POLL_SECONDS * 1000))
            if not batches:
                continue
            async with self._working:
                # A rebalance may have got in between: what others read now is theirs.
                owned = self._consumer.assignment()
                batches = {partition: records for partition, records in batches.items() if partition in owned}
                if batches:
                    await self._take(batches)

    async def _take(self, batches: _Batches) -> None:
        try:
            await self._admit(batches)
        except OpsplaneError as error:
            log.warning("tasks not taken", error=error.message)
            self._give_back(batches)
            return
        try:
            async with asyncio.timeout(_COMMIT_SECONDS):
                await self._consumer.commit(
                    {partition: records[-1].offset + 1 for partition, records in batches.items()}
                )
        except (CommitFailedError, IllegalStateError, TimeoutError) as error:
            # The next one says it too, and what is delivered again is known.
            log.info("kafka offsets not committed", error=_words(error))

    async def _admit(self, batches: _Batches) -> None:
        tasks: list[TaskMessage] = []
        rejected: list[Rejected] = []
        empty = 0
        for record in map(_record, (message for records in batches.values() for message in records)):
            if record.is_empty:
                empty += 1
                continue
            message = parse(record)
            if isinstance(message, TaskMessage):
                tasks.append(message)
            else:
                rejected.append(message)
        if tasks or rejected:
            admitted = await self._inbox.admit(tasks, rejected)
            self._figures.received(admitted.new)
            self._figures.not_a_task(admitted.rejected)
        self._figures.not_a_task(empty)

    def _give_back(self, batches: _Batches) -> None:
        """Reads them again later; meanwhile Kafka is asked for nothing, and knows that this member lives."""
        for partition, records in batches.items():
            self._consumer.seek(partition, records[0].offset)
        self._hold_back()

    def _hold_back(self) -> None:
        self._held_back = True
        self._consumer.pause(*self._consumer.assignment())

    async def _check(self) -> None:
        """Asks Kafka now and then for something that it must answer: without messages its silence means nothing."""
        now = asyncio.get_running_loop().time()
        if now < self._next_check:
            return
        self._next_check = now + _CHECK_SECONDS
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._consumer.end_offsets(self._consumer.assignment())
        except (KafkaError, TimeoutError) as error:
            if self._figures.queue_connected:
                log.warning("kafka queue away", error=_words(error))
            self._figures.queue_connected = False
        else:
            if not self._figures.queue_connected:
                log.info("kafka queue back")
            self._figures.queue_connected = True

    async def _mind_backlog(self) -> None:
        """Looks once a second how much there is to do, and whether the database answers."""
        now = asyncio.get_running_loop().time()
        if now < self._next_look:
            return
        self._next_look = now + _BACKLOG_SECONDS
        try:
            backlog = await self._inbox.backlog()
        except OpsplaneError as error:
            log.warning("kafka queue held back", error=error.message)
            self._hold_back()
            return
        if self._held_back and backlog <= self._most_pending * 9 // 10:
            self._held_back = False
            self._consumer.resume(*self._consumer.assignment())
        elif not self._held_back and backlog >= self._most_pending:
            log.info("kafka queue held back", backlog=backlog)
            self._hold_back()


def _record(message: ConsumerRecord) -> Record:
    return Record(message.topic, message.partition, message.offset, message.timestamp, message.value)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
