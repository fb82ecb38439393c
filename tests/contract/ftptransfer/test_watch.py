"""Following transfers over a real channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
from google.protobuf.duration_pb2 import Duration
from opsplane.ftptransfer.v1 import ftptransfer_pb2
from opsplane.ftptransfer.v1 import transfers_pb2 as pb
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, Failure
from opsplane_server.ftptransfer.model import Failed, Progress, Retry, Succeeded

from tests.contract.ftptransfer.test_queue import tree
from tests.contract.ftptransfer.test_transfers import download, submit, submit_many
from tests.ftptransfer_harness import FtpTransfer
from tests.rpc_harness import require_status

LOST = Failure(ErrorCode.CONNECTION_ERROR, ErrorReason.CONNECTION_LOST, "426 gone", 426, True)
DONE = Succeeded(100, sent=100)
SHORT = Duration(nanos=100_000_000)


class Watching:
    """A call to WatchTransfers, and what it told so far."""

    def __init__(self, ftp: FtpTransfer, **fields: object) -> None:
        request = ftptransfer_pb2.WatchTransfersRequest(interval=SHORT, **fields)  # type: ignore[arg-type]
        self._call = ftp.stub.WatchTransfers(request)
        self._messages: AsyncIterator[ftptransfer_pb2.WatchTransfersResponse] = aiter(self._call)
        self.states: dict[str, list[str]] = {}
        self.last: dict[str, pb.Transfer] = {}
        self.counts = pb.TransferCounts()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Reads on until it holds."""
        async with asyncio.timeout(30):
            while not holds():
                await self._read()

    async def end(self) -> None:
        """Reads until the call ends."""
        async with asyncio.timeout(30):
            while await self._read():
                pass

    def cancel(self) -> None:
        self._call.cancel()

    async def _read(self) -> bool:
        message = await anext(self._messages, None)
        if message is None:
            return False
        for transfer in message.transfers:
            path = transfer.source.path
            self.last[path] = transfer
            self.states.setdefault(path, []).append(pb.TransferState.Name(transfer.state)[len("TRANSFER_STATE_") :])
        if message.HasField("counts"):
            self.counts = message.counts
        return True


async def test_named_transfers_are_followed_to_their_end(ftp: FtpTransfer) -> None:
    first = await submit(ftp, download("/a"))
    second = await submit(ftp, download("/b"))
    watching = Watching(ftp, names=[first.name, second.name])
    await watching.until(lambda: len(watching.states) == 2)
    assert watching.counts.pending == 2
    one, two = await ftp.take()
    await ftp.queue.renew("w-1", [Progress(one, 50, 100, 50, 12.5)])
    await watching.until(lambda: watching.last["/a"].bytes_transferred == 50)
    assert watching.last["/a"].bytes_per_second == 12.5
    await ftp.settle((one, DONE), (two, Failed(LOST)))
    await watching.end()
    assert watching.last["/a"].state == pb.TRANSFER_STATE_SUCCEEDED
    assert watching.last["/b"].error.ftp_code == 426
    assert (watching.counts.succeeded, watching.counts.failed, watching.counts.bytes_transferred) == (1, 1, 100)


async def test_what_has_ended_is_told_by_name(ftp: FtpTransfer) -> None:
    submitted = await submit(ftp, download("/a"))
    [task] = await ftp.take()
    await ftp.settle((task, DONE))
    watching = Watching(ftp, names=[submitted.name])
    await watching.end()
    assert watching.states == {"/a": ["SUCCEEDED"]}


async def test_a_name_must_be_there(ftp: FtpTransfer) -> None:
    with require_status(grpc.StatusCode.NOT_FOUND):
        await Watching(ftp, names=["transfers/none"]).end()


async def test_a_wrong_filter_is_refused(ftp: FtpTransfer) -> None:
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "FILTER_INVALID"):
        await Watching(ftp, filter="nothing = 1").end()


async def test_a_group_is_followed_to_its_end(ftp: FtpTransfer) -> None:
    await submit(ftp, download("/other"))
    await submit_many(ftp, [download(f"/{number}", group="nightly") for number in range(3)])
    [other, *tasks] = await ftp.take(4)
    await ftp.settle((tasks[0], DONE), (other, DONE))
    watching = Watching(ftp, filter="group = nightly")
    await watching.until(lambda: len(watching.states) == 2)
    assert "/0" not in watching.states
    await ftp.settle((tasks[1], Retry(LOST, 3600)))
    await watching.until(lambda: watching.states["/1"][-1] == "WAITING")
    await ftp.platform.run("UPDATE ftptransfer.queue SET due = now()")
    [again] = await ftp.take()
    await ftp.settle((again, DONE), (tasks[2], Failed(LOST)))
    await watching.end()
    assert (watching.states["/1"][-1], watching.states["/2"][-1]) == ("SUCCEEDED", "FAILED")
    assert set(watching.states) == {"/1", "/2"}
    assert (watching.counts.succeeded, watching.counts.failed, watching.counts.bytes_transferred) == (2, 1, 200)


async def test_new_ones_are_told_as_they_come(ftp: FtpTransfer) -> None:
    watching = Watching(ftp, filter="group = nightly", follow=True)
    await watching.until(lambda: True)
    await submit(ftp, download("/a", group="nightly"))
    await watching.until(lambda: watching.states.get("/a") == ["PENDING"])
    [task] = await ftp.take()
    await ftp.settle((task, DONE))
    await watching.until(lambda: watching.states["/a"][-1] == "SUCCEEDED")
    await submit(ftp, download("/b", group="nightly"))
    await watching.until(lambda: "/b" in watching.states)
    watching.cancel()


async def test_the_last_state_is_told_of_what_leaves_the_filter(ftp: FtpTransfer) -> None:
    await submit(ftp, download("/a"))
    [task] = await ftp.take()
    watching = Watching(ftp, filter="state = RUNNING")
    await watching.until(lambda: "/a" in watching.states)
    await ftp.settle((task, DONE))
    await watching.end()
    assert watching.states["/a"][-1] == "SUCCEEDED"
    assert watching.counts.running == 0


async def test_counts_alone(ftp: FtpTransfer) -> None:
    await submit_many(ftp, [download(f"/{number}") for number in range(5)])
    watching = Watching(ftp, counts_only=True)
    await watching.until(lambda: watching.counts.pending == 5)
    tasks = await ftp.take(3)
    await watching.until(lambda: watching.counts.running == 3)
    await ftp.settle(*((task, DONE) for task in tasks))
    rest = await ftp.take()
    await ftp.settle(*((task, DONE) for task in rest))
    await watching.end()
    assert (watching.counts.succeeded, watching.counts.bytes_transferred) == (5, 500)
    assert watching.states == {}


async def test_a_trees_files_are_followed_by_its_name(ftp: FtpTransfer) -> None:
    parent = await tree(ftp, "a", "b")
    files = Watching(ftp, filter=f'parent = "transfers/{parent}"')
    itself = Watching(ftp, names=[f"transfers/{parent}"])
    await files.until(lambda: len(files.states) == 2)
    await itself.until(lambda: "/top" in itself.last)
    assert itself.last["/top"].children.pending == 2
    first, second = await ftp.take()
    await ftp.settle((first, DONE))
    await itself.until(lambda: itself.last["/top"].children.succeeded == 1)
    await ftp.settle((second, DONE))
    await files.end()
    await itself.end()
    assert [states[-1] for states in files.states.values()] == ["SUCCEEDED", "SUCCEEDED"]
    assert itself.last["/top"].state == pb.TRANSFER_STATE_SUCCEEDED


async def test_many_are_told_in_messages_that_are_not_too_large(ftp: FtpTransfer) -> None:
    for start in range(0, 600, 200):
        transfers = [download(f"/{number:04}/{'x' * 3900}", group="nightly") for number in range(start, start + 200)]
        await submit_many(ftp, transfers)
    watching = Watching(ftp, filter="group = nightly")
    await watching.until(lambda: len(watching.states) == 600)
    while tasks := await ftp.take(300):
        await ftp.settle(*((task, DONE) for task in tasks))
    await watching.end()
    assert {states[-1] for states in watching.states.values()} == {"SUCCEEDED"}


async def test_watching_ends_when_the_server_does(ftp: FtpTransfer) -> None:
    watching = Watching(ftp, follow=True)
    await watching.until(lambda: True)
    ftp.watcher.drain()
    with require_status(grpc.StatusCode.UNAVAILABLE, "SERVER_SHUTS_DOWN"):
        await watching.end()
