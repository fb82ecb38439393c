"""What holds for tasks wherever they come from, and whoever asks what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

import pytest
from opsplane_server.ftptransfer.failures import ErrorReason, TransferFailure
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.model import Failed, Location, NewTransfer, Origin, Outcome, Priority, Succeeded, Task
from opsplane_server.ftptransfer.ports import TransferStore
from opsplane_server.ftptransfer.queues.kafka.cluster import Topics
from opsplane_server.ftptransfer.queues.kafka.intake import KafkaIntake
from opsplane_server.ftptransfer.queues.kafka.publisher import ResultPublisher
from opsplane_server.ftptransfer.stores.postgres import PostgresTransferQueue, PostgresTransferStore, queue_database
from opsplane_server.ftptransfer.stores.postgres.kafka import PostgresInbox, PostgresOutbox
from opsplane_server.ftptransfer.transfers import Transfers
from opsplane_server.rpc.ids import new_id
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.database import Database
from opsplane_server.storage.signals import Signals

from tests.kafka_broker import KafkaBroker
from tests.kafka_harness import MIGRATIONS, cluster, left_in_outbox, new_topics, produce, published, task
from tests.postgres_fixtures import migrated
from tests.transfer_intake import FixedConnections, transfer_intake
from tests.waiting import until

Result = tuple[str, str, str]
"""Id of the task, `SUCCEEDED` or `FAILED`, and the class of the failure."""


class Source(Protocol):
    """Tasks in, by messages of the seed's form; results out."""

    async def submit(self, messages: Sequence[dict[str, Any]]) -> None:
        """Returns when all of them are taken in, or known, or refused."""
        ...

    async def results(self) -> Counter[Result]:
        """All that were told, those of wrong tasks included."""
        ...


class FromCallers:
    """Tasks that come by RPC: transfers are asked for, and wrong ones are told in the answer."""

    def __init__(self, transfers: Transfers, store: TransferStore) -> None:
        self._transfers = transfers
        self._store = store
        self._wrong: Counter[Result] = Counter()

    async def submit(self, messages: Sequence[dict[str, Any]]) -> None:
        submissions = await self._transfers.submit_many([_new(message) for message in messages])
        for message, submission in zip(messages, submissions, strict=True):
            if submission.wrong is not None:
                self._wrong[(message["task_id"], "FAILED", submission.wrong.failure.code)] += 1

    async def results(self) -> Counter[Result]:
        transfers = await self._store.list_transfers(PageRequest(1000, None), ())
        return self._wrong + Counter(
            (transfer.task_id, transfer.state.value, transfer.failure.code.value if transfer.failure else "")
            for transfer in transfers
            if transfer.state.ended
        )


class FromKafka:
    """Tasks that come as messages, with results as messages."""

    def __init__(self, broker: KafkaBroker, topics: Topics, inbox: _Counting, database: Database) -> None:
        self._broker = broker
        self._topics = topics
        self._inbox = inbox
        self._database = database
        self._submitted = 0

    async def submit(self, messages: Sequence[dict[str, Any]]) -> None:
        await produce(self._broker, self._topics.tasks, messages)
        self._submitted += len(messages)
        await until(lambda: self._inbox.admitted == self._submitted)

    async def results(self) -> Counter[Result]:
        async def all_out() -> bool:
            return await left_in_outbox(self._database) == 0

        await until(all_out)
        successes = await published(self._broker, self._topics.results)
        failures = await published(self._broker, self._topics.failures)
        assert {message["status"] for message in successes} <= {"success"}
        assert {message["status"] for message in failures} <= {"failed"}
        return Counter((message["task_id"], "SUCCEEDED", "") for message in successes) + Counter(
            (message["task_id"], "FAILED", message["error_code"]) for message in failures
        )


class _Counting(PostgresInbox):
    admitted = 0

    async def admit(self, tasks: Any, rejected: Any) -> Any:
        admitted = await super().admit(tasks, rejected)
        self.admitted += len(tasks) + len(rejected)
        return admitted


def _new(message: dict[str, Any]) -> NewTransfer:
    metadata = message.get("metadata", {})
    return NewTransfer(
        id=new_id(),
        source=Location(message["src_id"], message["src_path"]),
        destination=Location(message["dst_id"], message["dst_path"]),
        origin=Origin("rpc", "somebody"),
        priority=Priority(metadata.get("priority", "normal").upper()),
        retry_count=metadata.get("retry_count", 0),
        task_id=message["task_id"],
        task_key=message["task_id"],
    )


class Desk:
    """A source, and the queue that its tasks come out of."""

    def __init__(self, source: Source, queue: PostgresTransferQueue) -> None:
        self.source = source
        self.queue = queue

    async def take(self, limit: int = 100, *, worker: str = "worker") -> Sequence[Task]:
        return await self.queue.take(worker, limit, without=())

    async def settle(self, *outcomes: tuple[Task, Outcome], worker: str = "worker") -> None:
        await self.queue.settle(worker, outcomes)


@pytest.fixture(params=["callers", pytest.param("kafka", marks=pytest.mark.slow)])
async def desk(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[Desk]:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(migrated(dsn, [MIGRATIONS]))
        queue_connections = await stack.enter_async_context(queue_database(dsn))
        signals = await stack.enter_async_context(Signals(dsn))
        work, changes = signals.topic("work"), signals.topic("changes")
        queue = PostgresTransferQueue(queue_connections, FixedConnections(), work=work, changes=changes)
        transfers = transfer_intake(database, signals)
        source: Source = FromCallers(transfers, PostgresTransferStore(database))
        if request.param == "kafka":
            broker: KafkaBroker = request.getfixturevalue("kafka")
            source = await stack.enter_async_context(_kafka(broker, transfers, database, signals))
        yield Desk(source, queue)


@asynccontextmanager
async def _kafka(
    broker: KafkaBroker, transfers: Transfers, database: Database, signals: Signals
) -> AsyncIterator[FromKafka]:
    topics, figures = await new_topics(broker), TransferFigures()
    changes = signals.topic("changes")
    inbox = _Counting(database, transfers, work=signals.topic("work"), changes=changes, worker="here")
    async with (
        KafkaIntake(cluster(broker), topics, inbox, figures),
        ResultPublisher(cluster(broker), topics, PostgresOutbox(database), changes, figures, owner="here"),
    ):
        yield FromKafka(broker, topics, inbox, database)


def failed() -> Failed:
    return Failed(TransferFailure(ErrorReason.NOT_FOUND, "no such file").failure)


def path(task: Task) -> str:
    return task.source.path


async def test_each_task_comes_out_once_whoever_takes(desk: Desk) -> None:
    await desk.source.submit([task(f"t{number}") for number in range(300)])
    taken = [*await desk.take(120, worker="first"), *await desk.take(120, worker="second")]
    taken += await desk.take(120, worker="first")
    assert Counter(map(path, taken)) == Counter(f"/in/t{number}" for number in range(300))
    assert {(one.source.connection.id, one.destination.connection.id) for one in taken} == {("remote", "local")}
    assert await desk.take() == []


async def test_a_task_that_comes_again_stays_one(desk: Desk) -> None:
    messages = [task("a"), task("b")]
    await desk.source.submit(messages)
    await desk.source.submit(messages)
    taken = await desk.take()
    assert sorted(map(path, taken)) == ["/in/a", "/in/b"]
    await desk.settle(*((one, Succeeded(5)) for one in taken))
    await desk.source.submit(messages)
    assert await desk.take() == []
    assert await desk.source.results() == Counter([("a", "SUCCEEDED", ""), ("b", "SUCCEEDED", "")])


async def test_high_goes_before_normal_before_low(desk: Desk) -> None:
    for number, priority in enumerate(["low", "normal", "high", "low", "high", "normal"]):
        await desk.source.submit([task(f"{priority}-{number}", metadata={"priority": priority})])
    order = [path((await desk.take(1))[0]) for _ in range(6)]
    assert order == [f"/in/{name}" for name in ("high-2", "high-4", "normal-1", "normal-5", "low-0", "low-3")]


async def test_retries_that_were_made_elsewhere_count(desk: Desk) -> None:
    await desk.source.submit([task("a", metadata={"retry_count": 4}), task("b")])
    by_path = {path(one): one for one in await desk.take()}
    assert by_path["/in/a"].retry_count == 4
    assert by_path["/in/a"].is_last_attempt
    assert not by_path["/in/b"].is_last_attempt


async def test_tasks_may_end_in_any_order(desk: Desk) -> None:
    names = [f"t{number}" for number in range(40)]
    await desk.source.submit([task(name) for name in names])
    taken = list(await desk.take())
    first, *others, last = reversed(taken)
    await desk.settle((first, Succeeded(5)))
    await desk.settle(*((one, failed()) for one in others))
    assert (await desk.source.results()).total() == 39
    await desk.settle((last, Succeeded(5)))
    results = await desk.source.results()
    assert Counter(name for name, _, _ in results.elements()) == Counter(names)
    assert Counter((state, code) for _, state, code in results.elements()) == {
        ("SUCCEEDED", ""): 2,
        ("FAILED", "FILE_NOT_FOUND"): 38,
    }


async def test_a_result_is_told_once_though_it_is_settled_again(desk: Desk) -> None:
    await desk.source.submit([task("a")])
    [taken] = await desk.take()
    await desk.settle((taken, Succeeded(5)))
    await desk.settle((taken, failed()))
    assert await desk.source.results() == Counter([("a", "SUCCEEDED", "")])


async def test_a_worker_that_lost_a_task_tells_nothing_of_it(desk: Desk) -> None:
    await desk.source.submit([task("a")])
    [lost] = await desk.take(worker="first")
    await desk.queue.leave("first")
    [again] = await desk.take(worker="second")
    await desk.settle((lost, failed()), worker="first")
    assert await desk.source.results() == Counter()
    await desk.settle((again, Succeeded(5)), worker="second")
    assert await desk.source.results() == Counter([("a", "SUCCEEDED", "")])


async def test_wrong_tasks_are_refused_and_stall_no_other(desk: Desk) -> None:
    wrong = [
        task("both-local", src_id="local"),
        task("both-remote", dst_id="other"),
        task("unknown", src_id="nobody"),
        task("outside", dst_path="/../etc/passwd"),
    ]
    await desk.source.submit([task("a"), *wrong, task("b")])
    await desk.source.submit([task("a", dst_path="/elsewhere"), task("c")])
    taken = await desk.take()
    assert sorted(map(path, taken)) == ["/in/a", "/in/b", "/in/c"]
    await desk.settle(*((one, Succeeded(5)) for one in taken))
    refused = [(message["task_id"], "FAILED", "INVALID_CONFIG") for message in wrong]
    done = [(name, "SUCCEEDED", "") for name in "abc"]
    assert await desk.source.results() == Counter([*refused, ("a", "FAILED", "INVALID_CONFIG"), *done])
