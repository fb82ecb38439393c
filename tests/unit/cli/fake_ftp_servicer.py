"""A small server that speaks FtpTransfer over a real channel: what is submitted succeeds, unless its path says else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.rpc import code_pb2, error_details_pb2
from opsplane.ftptransfer.v1 import connections_pb2, errors_pb2, files_pb2, ftptransfer_pb2, ftptransfer_pb2_grpc
from opsplane.ftptransfer.v1 import transfers_pb2 as pb

from tests.unit.cli.fake_servicer import refusal

# What is not written here answers UNIMPLEMENTED; the generated types call that abstract.
_Unimplemented: Any = ftptransfer_pb2_grpc.FtpTransferServicer

Context = grpc.aio.ServicerContext[Any, Any]
MISSING = errors_pb2.TransferError(
    code=errors_pb2.ERROR_CODE_FILE_NOT_FOUND,
    reason=errors_pb2.ERROR_REASON_NOT_FOUND,
    message="no such file \x1b[31m",
    ftp_code=550,
)
SIZE = 1500


def ended(transfer: pb.Transfer) -> pb.Transfer:
    """How it ends: FAILED with `missing` in its path; a tree has two files, a third with `missing` that fails."""
    result = pb.Transfer()
    result.CopyFrom(transfer)
    bad = "missing" in transfer.source.path
    result.state = pb.TRANSFER_STATE_FAILED if bad else pb.TRANSFER_STATE_SUCCEEDED
    if transfer.selection in (pb.SELECTION_GLOB, pb.SELECTION_TREE):
        result.children.CopyFrom(
            pb.TransferCounts(succeeded=2, failed=int(bad), size_bytes=2 * SIZE, bytes_transferred=2 * SIZE)
        )
        if bad:
            result.error.code = errors_pb2.ERROR_CODE_UNKNOWN_ERROR
            result.error.reason = errors_pb2.ERROR_REASON_CHILDREN_FAILED
    elif bad:
        result.error.CopyFrom(MISSING)
    else:
        result.size_bytes = result.bytes_transferred = SIZE
        result.skipped = transfer.existing_file == pb.EXISTING_FILE_SKIP
    return result


@dataclass
class FakeFtp(_Unimplemented):  # type: ignore[misc]
    """Keeps what it is asked. A path with `refused` is rejected; `endless` keeps transfers under way.

    A stream of a watcher is lost after its first message as often as `losses` says.
    """

    base_path: str = "/nowhere"
    endless: bool = False
    losses: int = 0
    submitted: list[pb.Transfer] = field(default_factory=list)
    watches: list[ftptransfer_pb2.WatchTransfersRequest] = field(default_factory=list)
    filters: list[str] = field(default_factory=list)
    changed: list[tuple[str, str]] = field(default_factory=list)
    created: list[connections_pb2.CreateConnectionRequest] = field(default_factory=list)
    updated: list[connections_pb2.UpdateConnectionRequest] = field(default_factory=list)
    listed: list[files_pb2.ListFilesRequest] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    broken: bool = False
    waits_for_files: bool = False
    """Whether a tree ends only when the test says so."""
    may_end: asyncio.Event = field(default_factory=asyncio.Event)

    async def SubmitTransfers(
        self, requests: AsyncIterator[ftptransfer_pb2.SubmitTransfersRequest], context: Context
    ) -> ftptransfer_pb2.SubmitTransfersResponse:
        answer = ftptransfer_pb2.SubmitTransfersResponse()
        async for request in requests:
            for index, transfer in enumerate(request.transfers):
                if "refused" in transfer.source.path:
                    answer.rejected_count += 1
                    answer.rejected_transfers.add(index=index, field="source.path", error=MISSING)
                    continue
                transfer.name = f"transfers/t{len(self.submitted)}"
                transfer.state = pb.TRANSFER_STATE_RUNNING
                if transfer.selection in (pb.SELECTION_GLOB, pb.SELECTION_TREE):
                    transfer.children.SetInParent()
                self.submitted.append(transfer)
                answer.names.append(transfer.name)
                answer.submitted_count += 1
        return answer

    async def WatchTransfers(
        self, request: ftptransfer_pb2.WatchTransfersRequest, context: Context
    ) -> AsyncIterator[ftptransfer_pb2.WatchTransfersResponse]:
        copy = ftptransfer_pb2.WatchTransfersRequest()
        copy.CopyFrom(request)
        self.watches.append(copy)
        if request.filter.startswith("parent"):
            file = pb.Transfer(name="transfers/file", parent="transfers/t0", state=pb.TRANSFER_STATE_RUNNING)
            yield ftptransfer_pb2.WatchTransfersResponse(transfers=[file])
            await asyncio.Event().wait()
        found = [one for one in self.submitted if one.name in request.names or not request.names]
        counts = pb.TransferCounts(running=len(found))
        yield ftptransfer_pb2.WatchTransfersResponse(transfers=found, counts=counts)
        if self.losses:
            self.losses -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server goes away")
        if self.waits_for_files:
            await self.may_end.wait()
        if self.endless:
            await asyncio.Event().wait()
        last = [ended(one) for one in found]
        failed = sum(one.state == pb.TRANSFER_STATE_FAILED for one in last)
        counts = pb.TransferCounts(succeeded=len(last) - failed, failed=failed)
        yield ftptransfer_pb2.WatchTransfersResponse(transfers=last, counts=counts)

    async def ListTransfers(
        self, request: ftptransfer_pb2.ListTransfersRequest, context: Context
    ) -> ftptransfer_pb2.ListTransfersResponse:
        """A tree that failed, one of its files, and one of another tree."""
        self.filters.append(request.filter)
        places: Any = {
            "source": pb.Location(connection="connections/nas", path="/missing"),
            "destination": pb.Location(connection="connections/here", path="/in/"),
            "state": pb.TRANSFER_STATE_FAILED,
            "error": MISSING,
            "group": "nightly",
        }
        return ftptransfer_pb2.ListTransfersResponse(
            transfers=[
                pb.Transfer(name="transfers/file", parent="transfers/tree", **places),
                pb.Transfer(name="transfers/other-file", parent="transfers/other-tree", **places),
                pb.Transfer(name="transfers/tree", **places),
            ]
        )

    async def GetTransfer(self, request: ftptransfer_pb2.GetTransferRequest, context: Context) -> pb.Transfer:
        if not self.submitted:
            info = error_details_pb2.ErrorInfo(reason="NOT_FOUND", domain="opsplane.dev")
            raise await refusal(context, code_pb2.NOT_FOUND, f"{request.name} does not exist", info)
        return ended(self.submitted[-1])

    async def RetryTransfer(self, request: ftptransfer_pb2.RetryTransferRequest, context: Context) -> pb.Transfer:
        return self._change("retry", request.name, pb.TRANSFER_STATE_PENDING)

    async def CancelTransfer(self, request: ftptransfer_pb2.CancelTransferRequest, context: Context) -> pb.Transfer:
        return self._change("cancel", request.name, pb.TRANSFER_STATE_CANCELLED)

    def _change(self, what: str, name: str, state: pb.TransferState.ValueType) -> pb.Transfer:
        self.changed.append((what, name))
        return pb.Transfer(name=name, state=state)

    async def GetStats(
        self, request: ftptransfer_pb2.GetStatsRequest, context: Context
    ) -> ftptransfer_pb2.GetStatsResponse:
        return ftptransfer_pb2.GetStatsResponse(
            pool=ftptransfer_pb2.PoolStats(
                max_sessions_per_pod=100,
                total_sessions=3,
                pools={
                    "nas": ftptransfer_pb2.ConnectionPool(sessions=3, busy=2, circuit_open=True, last_error=MISSING)
                },
            ),
            consumer=ftptransfer_pb2.ConsumerStats(queue="kafka", backlog=12_000),
            transfer=ftptransfer_pb2.TransferStats(
                tasks_total=5,
                errors=[ftptransfer_pb2.ErrorCount(code=errors_pb2.ERROR_CODE_IO_ERROR, count=7)],
            ),
            workers=[ftptransfer_pb2.WorkerStats(worker="pod/1", version="1.2.3", draining=True)],
        )

    async def ListConnections(
        self, request: connections_pb2.ListConnectionsRequest, context: Context
    ) -> connections_pb2.ListConnectionsResponse:
        self.filters.append(request.filter)
        local = connections_pb2.LocalFolder
        found = [
            connections_pb2.Connection(name="connections/root", local=local(base_path="/")),
            connections_pb2.Connection(name="connections/here", local=local(base_path=self.base_path)),
        ]
        if request.filter != "kind = local":
            server = connections_pb2.FtpServer(host="nas.example.com", port=21, user="ann")
            found.append(connections_pb2.Connection(name="connections/nas", ftp=server, config_section="NAS"))
        return connections_pb2.ListConnectionsResponse(connections=found)

    async def CreateConnection(
        self, request: connections_pb2.CreateConnectionRequest, context: Context
    ) -> connections_pb2.Connection:
        self.created.append(request)
        answer = connections_pb2.Connection()
        answer.CopyFrom(request.connection)
        answer.name = f"connections/{request.connection_id}"
        if answer.ftp.password:
            answer.ftp.password, answer.ftp.has_password = "", True
        return answer

    async def UpdateConnection(
        self, request: connections_pb2.UpdateConnectionRequest, context: Context
    ) -> connections_pb2.Connection:
        self.updated.append(request)
        return connections_pb2.Connection(name=request.connection.name)

    async def DeleteConnection(self, request: connections_pb2.DeleteConnectionRequest, context: Context) -> Empty:
        self.changed.append(("delete", f"{request.name} {request.force}"))
        return Empty()

    async def TestConnection(
        self, request: connections_pb2.TestConnectionRequest, context: Context
    ) -> connections_pb2.TestConnectionResponse:
        if self.broken:
            return connections_pb2.TestConnectionResponse(error=MISSING, last_step="list")
        return connections_pb2.TestConnectionResponse(
            ok=True, last_step="list", greeting="hello \x1b[31m", entry_count=4
        )

    async def ListFiles(self, request: files_pb2.ListFilesRequest, context: Context) -> files_pb2.ListFilesResponse:
        self.listed.append(request)
        files = [
            files_pb2.FileInfo(path=f"{request.path}/sub", kind=files_pb2.FILE_KIND_FOLDER),
            files_pb2.FileInfo(path=f"{request.path}/sub/a b.csv", kind=files_pb2.FILE_KIND_FILE, size_bytes=12_345),
            files_pb2.FileInfo(path=f"{request.path}/link", kind=files_pb2.FILE_KIND_LINK),
            files_pb2.FileInfo(path=f"{request.path}/../evil", kind=files_pb2.FILE_KIND_FILE),
        ]
        return files_pb2.ListFilesResponse(files=files)

    async def UploadFile(
        self, requests: AsyncIterator[files_pb2.UploadFileRequest], context: Context
    ) -> files_pb2.FileInfo:
        path, content, size = "", b"", -1
        async for request in requests:
            if request.HasField("start"):
                path, size = request.start.path, request.start.size_bytes
            content += request.content
        assert len(content) == size
        self.files[path] = content
        return files_pb2.FileInfo(path=path)

    async def DownloadFile(
        self, request: files_pb2.DownloadFileRequest, context: Context
    ) -> AsyncIterator[files_pb2.DownloadFileResponse]:
        yield files_pb2.DownloadFileResponse(file=files_pb2.FileInfo(path=request.path, size_bytes=6))
        yield files_pb2.DownloadFileResponse(content=b"abc")
        if not self.broken:
            yield files_pb2.DownloadFileResponse(content=b"def")

    async def DeleteFile(self, request: files_pb2.DeleteFileRequest, context: Context) -> Empty:
        self.files.pop(request.path, None)
        self.changed.append(("delete file", request.path))
        return Empty()


@asynccontextmanager
async def serving_ftp(servicer: FakeFtp) -> AsyncIterator[str]:
    """Serves on a free port of loopback; the address."""
    server = grpc.aio.server()
    ftptransfer_pb2_grpc.add_FtpTransferServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
