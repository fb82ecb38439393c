"""The service FtpTransfer over a channel: it takes an archive from the export folder and sends it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import PurePosixPath
from typing import Final

from opsplane.ftptransfer.v1 import (
    connections_pb2,
    errors_pb2,
    files_pb2,
    ftptransfer_pb2,
    ftptransfer_pb2_grpc,
    transfers_pb2,
)

from opsplane_server.backups.ports import Shipment
from opsplane_server.backups.remote.errors import answered
from opsplane_server.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OpsplaneError,
    PermissionDenied,
    ResourceExhausted,
)
from opsplane_server.rpc.peers import Peers

_SERVICE: Final = "ftptransfer"
_SECONDS: Final = 60.0

# The local folder from which archives are sent: the one above those of the single exports.
CONNECTION: Final = "backup-exports"

_ERRORS: Final[dict[int, type[OpsplaneError]]] = {
    errors_pb2.ERROR_REASON_EXISTS: AlreadyExists,
    errors_pb2.ERROR_REASON_ACCESS_DENIED: PermissionDenied,
    errors_pb2.ERROR_REASON_NO_SPACE: ResourceExhausted,
    errors_pb2.ERROR_REASON_NOT_FOUND: NotFound,
}


class RemoteTransfers:
    """`ports.Shipping` through generated stubs."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def served(self) -> bool:
        """See the port."""
        return _SERVICE in self._peers

    async def check(self, connection: str) -> None:
        """See the port."""
        async with answered():
            found = await self._stub().GetConnection(
                connections_pb2.GetConnectionRequest(name=connection), timeout=_SECONDS
            )
        if found.WhichOneof("kind") != "ftp":
            raise InvalidArgument.of("ftp.connection", f"{connection} is no FTP server")

    async def send(
        self, file: str, connection: str, destination: str, *, sha256: str, overwrite: bool, request_id: str
    ) -> str:
        """See the port."""
        folder, path = _split(file)
        await self._provide(folder)
        fail, replace = transfers_pb2.EXISTING_FILE_FAIL, transfers_pb2.EXISTING_FILE_REPLACE
        request = ftptransfer_pb2.SubmitTransferRequest(
            transfer=transfers_pb2.Transfer(
                source=transfers_pb2.Location(connection=f"connections/{CONNECTION}", path=path),
                destination=transfers_pb2.Location(connection=connection, path=destination),
                existing_file=replace if overwrite else fail,
                sha256=sha256,
                group="backups",
            ),
            request_id=request_id,
        )
        async with answered():
            return (await self._stub().SubmitTransfer(request, timeout=_SECONDS)).name

    async def watch(self, transfer: str) -> AsyncGenerator[Shipment, None]:
        """See the port."""
        async with answered():
            call = self._stub().WatchTransfers(ftptransfer_pb2.WatchTransfersRequest(names=[transfer]))
            try:
                async for update in call:
                    for found in update.transfers:
                        yield _shipment(found)
            finally:
                call.cancel()

    async def cancel(self, transfer: str) -> None:
        """See the port."""
        async with answered():
            await self._stub().CancelTransfer(ftptransfer_pb2.CancelTransferRequest(name=transfer), timeout=_SECONDS)

    async def remove(self, file: str, request_id: str) -> None:
        """See the port."""
        _, path = _split(file)
        request = files_pb2.DeleteFileRequest(connection=f"connections/{CONNECTION}", path=path, request_id=request_id)
        try:
            async with answered():
                await self._stub().DeleteFile(request, timeout=_SECONDS)
        except NotFound:
            return

    async def _provide(self, folder: str) -> None:
        """Makes the connection to the folder where there is none."""
        local = connections_pb2.Connection(
            title="Backups on their way", local=connections_pb2.LocalFolder(base_path=folder)
        )
        request = connections_pb2.CreateConnectionRequest(connection=local, connection_id=CONNECTION)
        try:
            async with answered():
                await self._stub().CreateConnection(request, timeout=_SECONDS)
        except AlreadyExists:
            return
        except InvalidArgument as error:
            raise FailedPrecondition(
                f"FtpTransfer does not send files from the export folder {folder}: {error.message}",
                reason="EXPORT_FOLDER_NOT_ALLOWED",
            ) from error

    def _stub(self) -> ftptransfer_pb2_grpc.FtpTransferStub:
        return ftptransfer_pb2_grpc.FtpTransferStub(self._peers.channel(_SERVICE))


def _split(file: str) -> tuple[str, str]:
    """The folder of all archives that are sent, and the path below it: each has a folder of its own there."""
    path = PurePosixPath(file)
    return str(path.parent.parent), f"{path.parent.name}/{path.name}"


def _shipment(message: transfers_pb2.Transfer) -> Shipment:
    state = message.state
    done = state in (
        transfers_pb2.TRANSFER_STATE_SUCCEEDED,
        transfers_pb2.TRANSFER_STATE_FAILED,
        transfers_pb2.TRANSFER_STATE_CANCELLED,
    )
    error = None
    if state == transfers_pb2.TRANSFER_STATE_FAILED:
        # Whatever it was, FtpTransfer has tried it as often as is of use.
        kind = _ERRORS.get(message.error.reason, FailedPrecondition)
        error = kind(message.error.message, reason=errors_pb2.ErrorReason.Name(message.error.reason))
    return Shipment(
        transfer=message.name,
        done=done,
        bytes_transferred=message.bytes_transferred,
        error=error,
        cancelled=state == transfers_pb2.TRANSFER_STATE_CANCELLED,
    )
