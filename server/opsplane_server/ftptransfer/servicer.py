"""FtpTransfer, RPC in and RPC out. Requests are validated and callers known before they come here."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from opsplane.ftptransfer.v1 import (
    connections_pb2,
    files_pb2,
    ftptransfer_pb2,
    ftptransfer_pb2_grpc,
    transfers_pb2,
)

from opsplane_server.errors import InvalidArgument
from opsplane_server.ftptransfer import convert, convert_transfers, names
from opsplane_server.ftptransfer.connections import ConnectionCatalog, Connections
from opsplane_server.ftptransfer.expansion import join
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.files import Files, Upload
from opsplane_server.ftptransfer.model import Priority, Selection, TransferState
from opsplane_server.ftptransfer.ports import FigureStore, TransferStore
from opsplane_server.ftptransfer.submissions import Submissions
from opsplane_server.ftptransfer.transfers import Transfers
from opsplane_server.ftptransfer.watch import TransferWatcher, WatchUpdate
from opsplane_server.platform.changes import Changes
from opsplane_server.platform.ports import Transactions
from opsplane_server.rpc.calls import current_call
from opsplane_server.rpc.filters import FieldType, parse
from opsplane_server.rpc.ids import new_id
from opsplane_server.rpc.masks import changed_fields
from opsplane_server.rpc.paging import next_page_token, page_request

Context = grpc.aio.ServicerContext[Any, Any]
M = TypeVar("M", bound=Message)

# The full name; taking it from the descriptor also loads the roles of the RPCs, which no message refers to.
SERVICE = ftptransfer_pb2.DESCRIPTOR.services_by_name["FtpTransfer"].full_name

CONNECTION_FILTER: Final[dict[str, FieldType | Collection[str]]] = {
    "title": FieldType.STRING,
    "kind": {"ftp", "local"},
    "host": FieldType.STRING,
    "create_time": FieldType.TIME,
}
TRANSFER_FILTER: Final[dict[str, FieldType | Collection[str]]] = {
    "state": {state.value for state in TransferState},
    "group": FieldType.STRING,
    "task_id": FieldType.STRING,
    "parent": FieldType.STRING,
    "source.connection": FieldType.STRING,
    "source.path": FieldType.STRING,
    "destination.connection": FieldType.STRING,
    "destination.path": FieldType.STRING,
    "selection": {selection.value for selection in Selection},
    "priority": {priority.value for priority in Priority},
    "error.code": {code.value for code in ErrorCode},
    "error.reason": {reason.value for reason in ErrorReason},
    "create_time": FieldType.TIME,
    "end_time": FieldType.TIME,
}

_MESSAGE_BYTES: Final = 1024 * 1024
_DEFAULT_INTERVAL: Final = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What GetStats tells of the configuration; `queue` is `postgres` or `kafka`."""

    queue: str
    max_sessions_per_pod: int
    max_sessions_per_connection: int


class FtpTransferServicer(ftptransfer_pb2_grpc.FtpTransferServicer):
    """`opsplane.ftptransfer.v1.FtpTransfer`."""

    def __init__(
        self,
        changes: Changes,
        transactions: Transactions,
        catalog: ConnectionCatalog,
        connections: Connections,
        transfers: Transfers,
        files: Files,
        watcher: TransferWatcher,
        figures: TransferFigures,
        *,
        transfer_store: TransferStore,
        figure_store: FigureStore,
        limits: Limits,
    ) -> None:
        self._changes = changes
        self._transactions = transactions
        self._catalog = catalog
        self._connections = connections
        self._transfers = transfers
        self._submissions = Submissions(changes, transfers, figures)
        self._files = files
        self._watcher = watcher
        self._figures = figures
        self._transfer_store = transfer_store
        self._figure_store = figure_store
        self._limits = limits

    # --- transfers

    async def SubmitTransfer(
        self, request: ftptransfer_pb2.SubmitTransferRequest, context: Context
    ) -> transfers_pb2.Transfer:
        """See the proto, as for all methods below."""
        submitter = current_call().principal.name
        new = convert_transfers.transfer_from_proto(request.transfer, request.transfer_id or new_id(), submitter)
        received = 0

        async def submit() -> transfers_pb2.Transfer:
            nonlocal received
            transfer, is_new = await self._transfers.submit(new)
            received = int(is_new)
            return convert_transfers.transfer_to_proto(transfer)

        if request.validate_only:
            return await self._tried(submit)
        answer = await self._changes.apply(request, transfers_pb2.Transfer, submit)
        self._figures.received(received)
        self._transfers.tell()
        return answer

    async def SubmitTransfers(
        self, request_iterator: AsyncIterator[ftptransfer_pb2.SubmitTransfersRequest], context: Context
    ) -> ftptransfer_pb2.SubmitTransfersResponse:
        """Keeps each message as it comes."""
        return await self._submissions.take(request_iterator)

    async def GetTransfer(
        self, request: ftptransfer_pb2.GetTransferRequest, context: Context
    ) -> transfers_pb2.Transfer:
        """Reads."""
        return convert_transfers.transfer_to_proto(await self._transfer_store.get(names.transfer_id(request.name)))

    async def ListTransfers(
        self, request: ftptransfer_pb2.ListTransfersRequest, context: Context
    ) -> ftptransfer_pb2.ListTransfersResponse:
        """Reads a page."""
        binding = f"ListTransfers {request.filter}"
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=(int,))
        found = await self._transfer_store.list_transfers(page, parse(request.filter, TRANSFER_FILTER))
        return ftptransfer_pb2.ListTransfersResponse(
            transfers=[convert_transfers.transfer_to_proto(transfer) for transfer in found[: page.size]],
            next_page_token=next_page_token(binding, [found[page.size - 1].key]) if len(found) > page.size else "",
        )

    async def CancelTransfer(
        self, request: ftptransfer_pb2.CancelTransferRequest, context: Context
    ) -> transfers_pb2.Transfer:
        """Cancels; who does the transfer learns of it within a second."""

        async def cancel() -> transfers_pb2.Transfer:
            return convert_transfers.transfer_to_proto(await self._transfers.cancel(names.transfer_id(request.name)))

        answer = await self._changes.apply(request, transfers_pb2.Transfer, cancel)
        self._transfers.tell()
        return answer

    async def RetryTransfer(
        self, request: ftptransfer_pb2.RetryTransferRequest, context: Context
    ) -> transfers_pb2.Transfer:
        """Begins anew."""

        async def retry() -> transfers_pb2.Transfer:
            return convert_transfers.transfer_to_proto(await self._transfers.retry(names.transfer_id(request.name)))

        answer = await self._changes.apply(request, transfers_pb2.Transfer, retry)
        self._transfers.tell()
        return answer

    async def WatchTransfers(
        self, request: ftptransfer_pb2.WatchTransfersRequest, context: Context
    ) -> AsyncIterator[ftptransfer_pb2.WatchTransfersResponse]:
        """Streams from the store, so that any process can serve it."""
        interval = request.interval.ToTimedelta().total_seconds() if request.HasField("interval") else _DEFAULT_INTERVAL
        if request.names:
            updates = self._watcher.watch_named(
                [names.transfer_id(name) for name in request.names], follow=request.follow, interval=interval
            )
        else:
            updates = self._watcher.watch_matching(
                parse(request.filter, TRANSFER_FILTER),
                follow=request.follow,
                interval=interval,
                counts_only=request.counts_only,
            )
        async with aclosing(updates):
            async for update in updates:
                for message in _messages(update, counts_only=request.counts_only):
                    yield message

    async def GetStats(
        self, request: ftptransfer_pb2.GetStatsRequest, context: Context
    ) -> ftptransfer_pb2.GetStatsResponse:
        """Reads what all processes have told."""
        limits = self._limits
        return convert_transfers.figures_to_proto(
            await self._figure_store.read(),
            queue=limits.queue,
            max_sessions_per_pod=limits.max_sessions_per_pod,
            max_sessions_per_connection=limits.max_sessions_per_connection,
        )

    # --- connections

    async def CreateConnection(
        self, request: connections_pb2.CreateConnectionRequest, context: Context
    ) -> connections_pb2.Connection:
        """Creates."""
        wanted = convert.connection_from_proto(request.connection, request.connection_id or new_id())

        async def create() -> connections_pb2.Connection:
            return convert.connection_to_proto(await self._connections.create(wanted))

        return await self._changed(request, connections_pb2.Connection, create, dry=request.validate_only)

    async def GetConnection(
        self, request: connections_pb2.GetConnectionRequest, context: Context
    ) -> connections_pb2.Connection:
        """Reads."""
        return convert.connection_to_proto(await self._catalog.get(names.connection_id(request.name)))

    async def ListConnections(
        self, request: connections_pb2.ListConnectionsRequest, context: Context
    ) -> connections_pb2.ListConnectionsResponse:
        """Reads a page."""
        binding = f"ListConnections {request.filter}"
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=(int, int))
        found = await self._catalog.list_connections(page, parse(request.filter, CONNECTION_FILTER))
        token = ""
        if len(found) > page.size:
            last = found[page.size - 1]
            token = next_page_token(binding, [0 if last.config_section else 1, last.key])
        return connections_pb2.ListConnectionsResponse(
            connections=[convert.connection_to_proto(connection) for connection in found[: page.size]],
            next_page_token=token,
        )

    async def UpdateConnection(
        self, request: connections_pb2.UpdateConnectionRequest, context: Context
    ) -> connections_pb2.Connection:
        """Changes the fields of the mask."""
        fields = changed_fields(request.update_mask, request.connection, convert.UPDATABLE)
        connection_id = names.connection_id(request.connection.name)

        async def update() -> connections_pb2.Connection:
            current = await self._connections.change(connection_id, request.connection.etag)
            changed = convert.changed_connection(current, request.connection, fields, request.update_mask.paths)
            return convert.connection_to_proto(await self._connections.update(changed))

        return await self._changed(request, connections_pb2.Connection, update, dry=request.validate_only)

    async def DeleteConnection(self, request: connections_pb2.DeleteConnectionRequest, context: Context) -> Empty:
        """Deletes."""

        async def delete() -> Empty:
            await self._connections.delete(names.connection_id(request.name), etag=request.etag, force=request.force)
            return Empty()

        return await self._changed(request, Empty, delete, dry=request.validate_only)

    async def TestConnection(
        self, request: connections_pb2.TestConnectionRequest, context: Context
    ) -> connections_pb2.TestConnectionResponse:
        """Tries; a failure is the answer."""
        if request.WhichOneof("target") == "name":
            connection = await self._catalog.get(names.connection_id(request.name))
        else:
            connection = convert.connection_from_proto(request.connection, "")
            self._connections.check(connection)
        answer = convert.probe_to_proto(await self._files.probe(connection, request.path))
        return await self._audited(request, answer)

    # --- files

    async def ListFiles(self, request: files_pb2.ListFilesRequest, context: Context) -> files_pb2.ListFilesResponse:
        """Reads a page of a folder."""
        binding = f"ListFiles {request.connection} {request.path}\n{request.glob}\n{request.recursive}"
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=(str,))
        found = await self._files.list_files(
            names.connection_id(request.connection),
            request.path,
            page,
            glob=request.glob,
            recursive=request.recursive,
        )
        return files_pb2.ListFilesResponse(
            files=[convert.file_to_proto(join(request.path, one.path), one.file) for one in found[: page.size]],
            next_page_token=next_page_token(binding, [found[page.size - 1].path]) if len(found) > page.size else "",
        )

    async def UploadFile(
        self, request_iterator: AsyncIterator[files_pb2.UploadFileRequest], context: Context
    ) -> files_pb2.FileInfo:
        """Takes a file, and keeps the answer when it is whole."""
        first = await anext(request_iterator, None)
        if first is None or not first.HasField("start"):
            raise InvalidArgument.of("start", "is to come first")
        start = first.start
        if (known := await self._changes.replay(start, files_pb2.FileInfo)) is not None:
            return known
        call = current_call()
        key = f"{call.principal.name} {start.request_id}" if start.request_id else new_id()
        upload = Upload(
            connection=names.connection_id(start.connection),
            path=start.path,
            size=start.size_bytes if start.HasField("size_bytes") else None,
            sha256=start.sha256,
            key=hashlib.sha256(key.encode()).hexdigest(),
        )
        path, file = await self._files.upload(upload, _content(request_iterator))
        return await self._audited(start, convert.file_to_proto(path, file))

    async def DownloadFile(
        self, request: files_pb2.DownloadFileRequest, context: Context
    ) -> AsyncIterator[files_pb2.DownloadFileResponse]:
        """Streams a file."""
        await self._audited(request, Empty())
        content = self._files.download(names.connection_id(request.connection), request.path, request.offset)
        async with aclosing(content):
            async for part in content:
                if isinstance(part, bytes):
                    yield files_pb2.DownloadFileResponse(content=part)
                else:
                    yield files_pb2.DownloadFileResponse(file=convert.file_to_proto(request.path, part))

    async def DeleteFile(self, request: files_pb2.DeleteFileRequest, context: Context) -> Empty:
        """Deletes a file; one that is there no more when the same call comes again was deleted by it."""

        async def delete() -> Empty:
            await self._files.delete(names.connection_id(request.connection), request.path)
            return Empty()

        return await self._changes.apply(request, Empty, delete)

    # --- what they share

    async def _changed(
        self, request: Message, response_type: type[M], action: Callable[[], Awaitable[M]], *, dry: bool
    ) -> M:
        if dry:
            return await self._tried(action)
        answer = await self._changes.apply(request, response_type, action)
        self._catalog.expire()
        return answer

    async def _tried(self, action: Callable[[], Awaitable[M]]) -> M:
        """Does it with every check, and then undoes it."""
        answer: list[M] = []
        try:
            async with self._transactions.transaction():
                answer.append(await action())
                raise _Undo
        except _Undo:
            return answer[0]

    async def _audited(self, request: Message, answer: M) -> M:
        """Keeps the audit event, and with a request_id the answer, of what is done already."""

        async def tell() -> M:
            return answer

        return await self._changes.apply(request, type(answer), tell)


class _Undo(Exception):
    pass


async def _content(requests: AsyncIterator[files_pb2.UploadFileRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.HasField("start"):
            raise InvalidArgument.of("start", "is to come once")
        yield request.content


def _messages(update: WatchUpdate, *, counts_only: bool) -> list[ftptransfer_pb2.WatchTransfersResponse]:
    """As many messages as an update needs, none of much more than 1 MiB; the counts are in the last."""
    messages = [ftptransfer_pb2.WatchTransfersResponse()]
    size = 0
    for transfer in () if counts_only else update.transfers:
        message = convert_transfers.transfer_to_proto(transfer)
        size += message.ByteSize()
        if size > _MESSAGE_BYTES and messages[-1].transfers:
            messages.append(ftptransfer_pb2.WatchTransfersResponse())
            size = message.ByteSize()
        messages[-1].transfers.append(message)
    if update.counts is not None:
        messages[-1].counts.CopyFrom(convert_transfers.counts_to_proto(update.counts) or transfers_pb2.TransferCounts())
    return messages
