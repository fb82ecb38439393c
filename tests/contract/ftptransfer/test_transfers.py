"""Transfers over a real channel: submitting, reading, cancelling and beginning them anew."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from opsplane.ftptransfer.v1 import connections_pb2, errors_pb2, ftptransfer_pb2
from opsplane.ftptransfer.v1 import transfers_pb2 as pb
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, Failure
from opsplane_server.ftptransfer.model import Failed, Succeeded

from tests.ftptransfer_harness import FtpTransfer
from tests.rpc_harness import require_status

MISSING = Failed(Failure(ErrorCode.FILE_NOT_FOUND, ErrorReason.NOT_FOUND, "550 no such file", 550))
DONE = Succeeded(100, sent=100)


def download(path: str = "/a.txt", **fields: object) -> pb.Transfer:
    return pb.Transfer(
        source=pb.Location(connection="connections/remote-server-a", path=path),
        destination=pb.Location(connection="connections/local", path=path),
        **fields,  # type: ignore[arg-type]
    )


async def submit(ftp: FtpTransfer, transfer: pb.Transfer, **fields: object) -> pb.Transfer:
    request = ftptransfer_pb2.SubmitTransferRequest(transfer=transfer, **fields)  # type: ignore[arg-type]
    submitted: pb.Transfer = await ftp.stub.SubmitTransfer(request)
    return submitted


async def submit_many(
    ftp: FtpTransfer, *messages: Sequence[pb.Transfer], request_ids: Sequence[str] = ()
) -> ftptransfer_pb2.SubmitTransfersResponse:
    ids = request_ids or [""] * len(messages)
    requests = [
        ftptransfer_pb2.SubmitTransfersRequest(transfers=message, request_id=request_id)
        for message, request_id in zip(messages, ids, strict=True)
    ]
    answer: ftptransfer_pb2.SubmitTransfersResponse = await ftp.stub.SubmitTransfers(iter(requests))
    return answer


async def get(ftp: FtpTransfer, name: str) -> pb.Transfer:
    found: pb.Transfer = await ftp.stub.GetTransfer(ftptransfer_pb2.GetTransferRequest(name=name))
    return found


async def listed(ftp: FtpTransfer, text: str = "", page_size: int = 0) -> list[str]:
    """Paths of the sources of all pages."""
    paths: list[str] = []
    token = ""
    while True:
        page = await ftp.stub.ListTransfers(
            ftptransfer_pb2.ListTransfersRequest(filter=text, page_size=page_size, page_token=token)
        )
        paths += [transfer.source.path for transfer in page.transfers]
        token = page.next_page_token
        if not token:
            return paths


async def test_a_transfer_is_submitted(ftp: FtpTransfer) -> None:
    metadata = Struct()
    metadata.update({"customer": "c-17", "parts": [1, 2], "deep": {"er": None}})
    submitted = await submit(
        ftp, download(task_id="t-1", group="nightly", priority=pb.PRIORITY_HIGH, metadata=metadata, sha256="AB" * 32)
    )
    assert submitted.state == pb.TRANSFER_STATE_PENDING
    assert submitted.max_attempts == 5
    assert (submitted.selection, submitted.existing_file) == (pb.SELECTION_FILE, pb.EXISTING_FILE_REPLACE)
    assert (submitted.priority, submitted.group, submitted.sha256) == (pb.PRIORITY_HIGH, "nightly", "ab" * 32)
    assert submitted.metadata == metadata
    assert (submitted.origin.kind, submitted.origin.submitter) == ("rpc", "anonymous")
    assert not submitted.HasField("size_bytes")
    assert not submitted.HasField("error")
    assert await get(ftp, submitted.name) == submitted
    assert ftp.figures.tasks_received == 1


async def test_the_same_task_is_the_same_transfer(ftp: FtpTransfer) -> None:
    first = await submit(ftp, download(task_id="t-1"))
    assert await submit(ftp, download(task_id="t-1")) == first
    with require_status(grpc.StatusCode.ALREADY_EXISTS, "TASK_ID_TAKEN"):
        await submit(ftp, download("/b.txt", task_id="t-1"))
    assert ftp.figures.tasks_received == 1


async def test_a_call_is_safe_to_repeat(ftp: FtpTransfer) -> None:
    request_id = str(uuid.uuid4())
    first = await submit(ftp, download(), request_id=request_id)
    assert await submit(ftp, download(), request_id=request_id) == first
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED"):
        await submit(ftp, download("/b.txt"), request_id=request_id)


async def test_an_id_is_taken_once(ftp: FtpTransfer) -> None:
    assert (await submit(ftp, download(), transfer_id="t-0190a1b2")).name == "transfers/t-0190a1b2"
    with require_status(grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS"):
        await submit(ftp, download(), transfer_id="t-0190a1b2")


async def test_checking_alone_submits_nothing(ftp: FtpTransfer) -> None:
    answer = await submit(ftp, download(task_id="t-1"), validate_only=True)
    assert answer.state == pb.TRANSFER_STATE_PENDING
    assert await listed(ftp) == []
    assert ftp.figures.tasks_received == 0
    assert await ftp.take() == []


@pytest.mark.parametrize(
    ("transfer", "field"),
    [
        (
            pb.Transfer(
                source=pb.Location(connection="connections/remote-server-a", path="/a"),
                destination=pb.Location(connection="connections/other-server", path="/a"),
            ),
            "transfer.destination.connection",
        ),
        (download("../a"), "transfer.destination.path"),
    ],
)
async def test_a_task_that_can_not_be_done_is_refused(ftp: FtpTransfer, transfer: pb.Transfer, field: str) -> None:
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CONFIG") as refusal:
        await submit(ftp, transfer)
    assert refusal.bad_fields == [field]


async def test_two_local_folders_are_refused(ftp: FtpTransfer) -> None:
    await ftp.stub.CreateConnection(
        connections_pb2.CreateConnectionRequest(
            connection_id="second",
            connection=connections_pb2.Connection(local=connections_pb2.LocalFolder(base_path=str(ftp.folder))),
        )
    )
    transfer = download()
    transfer.source.connection = "connections/second"
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CONFIG"):
        await submit(ftp, transfer)


async def test_a_connection_must_be_there(ftp: FtpTransfer) -> None:
    transfer = download()
    transfer.source.connection = "connections/none"
    with require_status(grpc.StatusCode.NOT_FOUND, "CONNECTION_NOT_FOUND"):
        await submit(ftp, transfer)


async def test_metadata_have_a_limit(ftp: FtpTransfer) -> None:
    metadata = Struct()
    metadata.update({"x": "y" * 17_000})
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CONFIG") as refusal:
        await submit(ftp, download(metadata=metadata))
    assert refusal.bad_fields == ["transfer.metadata"]


async def test_many_are_submitted(ftp: FtpTransfer) -> None:
    wrong = download("/../x", task_id="w")
    known = download("/a-0", task_id="k")
    await submit(ftp, known)
    answer = await submit_many(
        ftp, [download(f"/a-{number}") for number in range(3)], [known, wrong, download("/other", task_id="k")]
    )
    assert (answer.submitted_count, answer.duplicate_count, answer.rejected_count) == (3, 1, 2)
    assert [(one.index, one.task_id, one.field) for one in answer.rejected_transfers] == [
        (4, "w", "destination.path"),
        (5, "k", "task_id"),
    ]
    assert answer.rejected_transfers[0].error.code == errors_pb2.ERROR_CODE_INVALID_CONFIG
    assert len(answer.names) == 4
    assert [(await get(ftp, name)).source.path for name in answer.names] == ["/a-0", "/a-1", "/a-2", "/a-0"]


async def test_a_message_of_a_stream_is_safe_to_repeat(ftp: FtpTransfer) -> None:
    request_ids = [str(uuid.uuid4()), str(uuid.uuid4())]
    messages = [[download("/a")], [download("/b"), download("/c")]]
    first = await submit_many(ftp, *messages, request_ids=request_ids)
    again = await submit_many(ftp, *messages, request_ids=request_ids)
    assert (first.submitted_count, first.duplicate_count) == (3, 0)
    assert (again.submitted_count, again.duplicate_count) == (0, 3)
    assert again.names == first.names
    assert ftp.figures.tasks_received == 3


async def test_a_full_queue_takes_nothing(ftp: FtpTransfer) -> None:
    ftp.transfers._queue_limit = 2
    await submit_many(ftp, [download("/a"), download("/b")])
    with require_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"):
        await submit(ftp, download("/c"))
    with require_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"):
        await submit_many(ftp, [download("/c")])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ["/glob/*", "/c", "/b", "/a"]),
        ("state = SUCCEEDED", ["/a"]),
        ('state = "FAILED" AND group = "nightly"', ["/b"]),
        ("state = PENDING", ["/glob/*", "/c"]),
        ("state = RUNNING", []),
        ("state != PENDING", ["/b", "/a"]),
        ('task_id = "t-b"', ["/b"]),
        ("task_id : t-", ["/b", "/a"]),
        ("group = nightly", ["/b", "/a"]),
        ('group = ""', ["/glob/*", "/c"]),
        ("priority = HIGH", ["/c"]),
        ("selection = GLOB", ["/glob/*"]),
        ('source.connection = "connections/remote-server-a" AND source.path : "/b"', ["/b"]),
        ('source.connection = "remote-server-a" AND source.path >= "/c"', ["/glob/*", "/c"]),
        ('destination.connection = "connections/none"', []),
        ("error.code = FILE_NOT_FOUND", ["/b"]),
        ("error.reason = NOT_FOUND", ["/b"]),
        ('create_time > "2000-01-01T00:00:00Z"', ["/glob/*", "/c", "/b", "/a"]),
        ('end_time > "2000-01-01T00:00:00Z"', ["/b", "/a"]),
        ('parent = "transfers/none"', []),
        ('parent != "transfers/none"', ["/glob/*", "/c", "/b", "/a"]),
    ],
)
async def test_lists(ftp: FtpTransfer, text: str, wanted: list[str]) -> None:
    await submit(ftp, download("/a", task_id="t-a", group="nightly"))
    await submit(ftp, download("/b", task_id="t-b", group="nightly"))
    first, second = await ftp.take(2)
    await ftp.settle((first, DONE), (second, MISSING))
    await submit(ftp, download("/c", priority=pb.PRIORITY_HIGH))
    await submit(ftp, download("/glob/*", selection=pb.SELECTION_GLOB))
    assert await listed(ftp, text) == wanted
    assert await listed(ftp, text, page_size=1) == wanted


async def test_a_wrong_filter_is_refused(ftp: FtpTransfer) -> None:
    for text in ("state = WRONG", "nothing = 1", "parent : x"):
        with require_status(grpc.StatusCode.INVALID_ARGUMENT, "FILTER_INVALID"):
            await listed(ftp, text)


async def test_failures_are_told(ftp: FtpTransfer) -> None:
    submitted = await submit(ftp, download())
    [task] = await ftp.take()
    await ftp.settle((task, MISSING))
    found = await get(ftp, submitted.name)
    assert found.state == pb.TRANSFER_STATE_FAILED
    assert found.error.code == errors_pb2.ERROR_CODE_FILE_NOT_FOUND
    assert found.error.reason == errors_pb2.ERROR_REASON_NOT_FOUND
    assert (found.error.message, found.error.ftp_code, found.error.retryable) == ("550 no such file", 550, False)
    assert found.error.HasField("error_time")


async def test_a_transfer_is_cancelled_and_begun_anew(ftp: FtpTransfer) -> None:
    submitted = await submit(ftp, download())
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "TRANSFER_NOT_ENDED"):
        await ftp.stub.RetryTransfer(ftptransfer_pb2.RetryTransferRequest(name=submitted.name))
    cancelled = await ftp.stub.CancelTransfer(ftptransfer_pb2.CancelTransferRequest(name=submitted.name))
    assert cancelled.state == pb.TRANSFER_STATE_CANCELLED
    again = await ftp.stub.RetryTransfer(ftptransfer_pb2.RetryTransferRequest(name=submitted.name))
    assert again.state == pb.TRANSFER_STATE_PENDING
    [task] = await ftp.take()
    await ftp.settle((task, DONE))
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "TRANSFER_SUCCEEDED"):
        await ftp.stub.RetryTransfer(ftptransfer_pb2.RetryTransferRequest(name=submitted.name))
    cancelled = await ftp.stub.CancelTransfer(ftptransfer_pb2.CancelTransferRequest(name=submitted.name))
    assert cancelled.state == pb.TRANSFER_STATE_SUCCEEDED


async def test_what_is_not_there_is_told(ftp: FtpTransfer) -> None:
    name = "transfers/none"
    with require_status(grpc.StatusCode.NOT_FOUND):
        await get(ftp, name)
    with require_status(grpc.StatusCode.NOT_FOUND):
        await ftp.stub.CancelTransfer(ftptransfer_pb2.CancelTransferRequest(name=name))
    with require_status(grpc.StatusCode.NOT_FOUND):
        await ftp.stub.RetryTransfer(ftptransfer_pb2.RetryTransferRequest(name=name))


async def test_a_connection_that_is_needed_is_not_deleted(ftp: FtpTransfer) -> None:
    await ftp.stub.CreateConnection(
        connections_pb2.CreateConnectionRequest(
            connection_id="b", connection=connections_pb2.Connection(ftp=connections_pb2.FtpServer(host="h"))
        )
    )
    transfer = download()
    transfer.source.connection = "connections/b"
    submitted = await submit(ftp, transfer)
    request = connections_pb2.DeleteConnectionRequest(name="connections/b")
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "CONNECTION_IN_USE"):
        await ftp.stub.DeleteConnection(request)
    request.force = True
    await ftp.stub.DeleteConnection(request)
    await ftp.sweep()
    found = await get(ftp, submitted.name)
    assert (found.state, found.source.connection) == (pb.TRANSFER_STATE_CANCELLED, "connections/b")
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "INVALID_CONFIG"):
        await ftp.stub.RetryTransfer(ftptransfer_pb2.RetryTransferRequest(name=submitted.name))


async def test_metadata_of_a_message_that_no_struct_can_hold(ftp: FtpTransfer) -> None:
    submitted = await submit(ftp, download())
    await ftp.platform.run(
        "UPDATE ftptransfer.transfers SET metadata = $1", json.dumps({"big": 10**400, "nul": "a\0b"})
    )
    found = await get(ftp, submitted.name)
    assert found.metadata["big"] == str(10**400)
    assert found.metadata["nul"] == "a\0b"
