"""Files of connections: lists of both kinds, and the content of local folders."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

from opsplane_server.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OpsplaneError,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from opsplane_server.ftptransfer import names
from opsplane_server.ftptransfer.connections import ConnectionCatalog
from opsplane_server.ftptransfer.expansion import Found, Listing, LocalListing, walk
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, TransferFailure
from opsplane_server.ftptransfer.local_files import Finish, LocalFiles, Source, Target
from opsplane_server.ftptransfer.model import Connection, FtpServer, LocalFolder, Probe, RemoteFile
from opsplane_server.ftptransfer.ports import Sessions
from opsplane_server.rpc.paging import PageRequest

P = ParamSpec("P")
T = TypeVar("T")

_CHUNK: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that is sent: where to, how large (None: as it comes), and with which SHA-256 (empty: not checked).

    `key` is the same when the same upload is tried again.
    """

    connection: str
    path: str
    size: int | None
    sha256: str
    key: str


class Files:
    """Reads folders of all connections, and reads and writes files of local folders.

    max_upload_bytes: of a file that is sent. What fails is raised as the errors that the RPCs promise.
    """

    def __init__(self, connections: ConnectionCatalog, sessions: Sessions, *, max_upload_bytes: int) -> None:
        self._connections = connections
        self._sessions = sessions
        self._max_upload_bytes = max_upload_bytes

    async def list_files(
        self, connection_id: str, path: str, page: PageRequest, *, glob: str, recursive: bool
    ) -> list[Found]:
        """Up to `page.size + 1` entries after the path that is the page's key, in the order of `_place`."""
        connection = await self._connections.get(connection_id)
        after = _place(str(page.key[0])) if page.key else ()
        found: list[Found] = []
        with _told("path"):
            async with self._listing(connection) as listing:
                async for entry in walk(listing, path, glob=glob, recursive=recursive):
                    if _place(entry.path) > after:
                        found.append(entry)
                    if len(found) > page.size:
                        break
        return found

    async def probe(self, connection: Connection, path: str) -> Probe:
        """Tries a connection. Failures are the answer."""
        if isinstance(connection.kind, FtpServer):
            return await self._sessions.probe(connection.kind, path)
        return await asyncio.to_thread(_probe_local, LocalFiles(connection.kind.base_path), path)

    async def upload(self, upload: Upload, content: AsyncIterator[bytes]) -> tuple[str, RemoteFile]:
        """Writes a file from the pieces of its content; its path and how it is then."""
        files = await self._local(upload.connection)
        with _told("start.path"):
            target = files.begin(upload.path, upload.key)
            await self._fill(target, upload, content)
            await _in_thread(target.finish, Finish(size=upload.size, modify_time=None))
            file = await asyncio.to_thread(files.stat, upload.path)
        return upload.path, file

    async def download(self, connection_id: str, path: str, offset: int) -> AsyncGenerator[RemoteFile | bytes, None]:
        """The file, then its content from `offset` on."""
        files = await self._local(connection_id)
        with _told("path"), files.open(path) as source:
            if offset > source.size:
                raise OutOfRange(f"{path} has {source.size} bytes", reason="OFFSET_BEYOND_END")
            yield await asyncio.to_thread(files.stat, path)
            while offset < source.size:
                piece = await _in_thread(_read, source, offset)
                offset += len(piece)
                if not piece:
                    break
                yield piece
            source.check_unchanged()

    async def delete(self, connection_id: str, path: str) -> None:
        """Deletes a file."""
        files = await self._local(connection_id)
        with _told("path"):
            await asyncio.to_thread(files.delete, path)

    async def _fill(self, target: Target, upload: Upload, content: AsyncIterator[bytes]) -> None:
        """Writes the content, or removes the file."""
        try:
            target.start_over()
            digest, size = hashlib.sha256(), 0
            async for piece in content:
                size += len(piece)
                if size > self._max_upload_bytes:
                    raise ResourceExhausted(
                        f"files of at most {self._max_upload_bytes} bytes are taken", reason="FILE_TOO_LARGE"
                    )
                if upload.size is not None and size > upload.size:
                    raise DataLoss(f"more than the {upload.size} bytes came that were told", reason="SIZE_MISMATCH")
                await _in_thread(_write, target.descriptor, piece, digest)
            if upload.size is not None and size != upload.size:
                raise DataLoss(f"{size} bytes came instead of {upload.size}", reason="SIZE_MISMATCH")
            if upload.sha256 and digest.hexdigest() != upload.sha256.lower():
                raise DataLoss("the content has another SHA-256", reason="CHECKSUM_MISMATCH")
        except BaseException:
            target.discard()
            raise

    async def _local(self, connection_id: str) -> LocalFiles:
        connection = await self._connections.get(connection_id)
        if not isinstance(connection.kind, LocalFolder):
            raise InvalidArgument.of(
                "connection", f"{names.connection(connection_id)} is not a local folder", reason="NOT_A_LOCAL_FOLDER"
            )
        return LocalFiles(connection.kind.base_path)

    @asynccontextmanager
    async def _listing(self, connection: Connection) -> AsyncIterator[Listing]:
        if isinstance(connection.kind, LocalFolder):
            yield LocalListing(LocalFiles(connection.kind.base_path))
        else:
            async with self._sessions.session(connection) as session:
                yield session


@contextmanager
def _told(field: str) -> Iterator[None]:
    """Raises what a failure means to the caller of an RPC; `field` is the request's path."""
    try:
        yield
    except TransferFailure as failure:
        raise _as_error(failure, field) from failure


def _as_error(failure: TransferFailure, field: str) -> OpsplaneError:
    message, reason = failure.message, failure.reason
    if reason is ErrorReason.PATH:
        return InvalidArgument.of(field, message, reason=reason)
    if failure.code is ErrorCode.FILE_NOT_FOUND:
        return NotFound(message, reason=failure.code)
    if reason is ErrorReason.ACCESS_DENIED:
        return PermissionDenied(message, reason=reason)
    if reason is ErrorReason.NO_SPACE:
        return ResourceExhausted(message, reason=reason)
    if reason is ErrorReason.SOURCE_CHANGED:
        return Aborted(message, reason=reason)
    if reason is ErrorReason.SIZE_MISMATCH:
        return DataLoss(message, reason=reason)
    if failure.code is ErrorCode.CONNECTION_ERROR or failure.retryable:
        return Unavailable(message, reason=failure.code)
    return FailedPrecondition(message, reason=failure.code)


def _place(path: str) -> tuple[tuple[bool, str], ...]:
    """Where a path comes in a list: a folder's own entries by name, then what is below each of its folders."""
    *folders, name = path.split("/")
    return (*((True, folder) for folder in folders), (False, name))


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like asyncio.to_thread, but returns when the thread is done, even if it is cancelled meanwhile.

    The thread uses a descriptor that is closed then, and whose number the next file gets.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((running,))
        running.exception()  # of no use any more
        raise


def _read(source: Source, offset: int) -> bytes:
    return os.pread(source.descriptor, min(_CHUNK, source.size - offset), offset)


def _write(descriptor: int, piece: bytes, digest: hashlib._Hash) -> None:
    digest.update(piece)
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


def _probe_local(files: LocalFiles, path: str) -> Probe:
    began = time.monotonic()
    step, count = "read", 0
    failure = None
    try:
        count = len(files.list(path))
        step = "write"
        files.check_writable()
    except TransferFailure as error:
        failure = error.failure
    return Probe(failure, step, time.monotonic() - began, entry_count=count)
