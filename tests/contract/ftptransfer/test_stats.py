"""GetStats over a real channel: what all processes have told."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from opsplane.ftptransfer.v1 import errors_pb2, ftptransfer_pb2
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, Failure
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.model import Failed, PoolFigures, Released, Succeeded
from opsplane_server.ftptransfer.stats import Heartbeat

from tests.contract.ftptransfer.test_transfers import download, submit_many
from tests.ftptransfer_fakes import FolderServer
from tests.ftptransfer_harness import FtpTransfer
from tests.waiting import until

TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
REFUSED = Failure(ErrorCode.CONNECTION_ERROR, ErrorReason.UNREACHABLE, "refused", 0, True)


class Pool(FolderServer):
    pools: Mapping[str, PoolFigures]

    def figures(self) -> Mapping[str, PoolFigures]:
        return self.pools


def heartbeat(ftp: FtpTransfer, worker: str, figures: TransferFigures, **pools: PoolFigures) -> Heartbeat:
    sessions = Pool(ftp.folder)
    sessions.pools = pools
    return Heartbeat(ftp.figure_store, figures, sessions, worker=worker, draining=lambda: worker == "w-2")


async def stats(ftp: FtpTransfer) -> ftptransfer_pb2.GetStatsResponse:
    answer: ftptransfer_pb2.GetStatsResponse = await ftp.stub.GetStats(ftptransfer_pb2.GetStatsRequest())
    return answer


async def test_a_new_server_has_nothing_to_tell(ftp: FtpTransfer) -> None:
    answer = await stats(ftp)
    assert not answer.running
    assert (answer.pool.max_sessions_per_pod, answer.pool.max_sessions_per_connection) == (100, 10)
    assert answer.consumer.queue == "postgres"
    assert not answer.consumer.HasField("oldest_age")
    assert answer.transfer.since_time.seconds > 0
    assert (answer.transfer.tasks_total, answer.consumer.tasks_received, len(answer.workers)) == (0, 0, 0)


async def test_processes_are_added_up(ftp: FtpTransfer) -> None:
    one, two = TransferFigures(), TransferFigures()
    one.begun()
    failure = Failure(ErrorCode.CONNECTION_ERROR, ErrorReason.LOGIN, "530", 530, False, TIME)
    pool = PoolFigures(sessions=3, busy=2, limit=10, waiting=1)
    other = PoolFigures(sessions=1, limit=4, circuit_open=True, retry_time=TIME, last_failure=failure)
    async with heartbeat(ftp, "w-1", one, a=pool), heartbeat(ftp, "w-2", two, a=other, b=pool):
        await ftp.queue.renew("w-1", [])
        answer = await stats(ftp)
        assert answer.running
        assert answer.pool.total_sessions == 7
        found = answer.pool.pools["a"]
        assert (found.sessions, found.busy, found.session_limit, found.waiting) == (4, 2, 10, 1)
        assert found.circuit_open
        assert found.retry_time.seconds == int(TIME.timestamp())
        assert (found.last_error.ftp_code, found.last_error.error_time.seconds) == (530, int(TIME.timestamp()))
        assert answer.transfer.tasks_in_progress == 1
        workers = [(worker.worker, worker.sessions, worker.draining) for worker in answer.workers]
        assert workers == [("w-1", 3, False), ("w-2", 4, True)]
        assert all(worker.version and worker.start_time.seconds for worker in answer.workers)

        one.begun()

        async def told() -> bool:
            return (await stats(ftp)).transfer.tasks_in_progress == 2

        await until(told)
    assert len((await stats(ftp)).workers) == 0


async def test_what_has_ended_is_counted_once(ftp: FtpTransfer) -> None:
    await submit_many(ftp, [download(f"/{number}", task_id=f"t-{number}") for number in range(5)])
    await submit_many(ftp, [download("/0", task_id="t-0")])
    answer = await stats(ftp)
    assert (answer.consumer.tasks_received, answer.consumer.backlog) == (5, 5)
    assert answer.consumer.HasField("oldest_age")
    tasks = await ftp.take(4)
    await ftp.settle((tasks[0], Succeeded(100, sent=90)), (tasks[1], Failed(REFUSED, sent=5)), (tasks[2], Released(7)))
    await ftp.settle((tasks[0], Succeeded(100, sent=90)))
    answer = await stats(ftp)
    assert (answer.consumer.tasks_received, answer.consumer.backlog) == (5, 2)
    found = answer.transfer
    assert (found.tasks_total, found.tasks_success_total, found.tasks_failed_total) == (2, 1, 1)
    assert found.bytes_transferred_total == 102
    assert [(error.code, error.count) for error in found.errors] == [(errors_pb2.ERROR_CODE_CONNECTION_ERROR, 1)]
