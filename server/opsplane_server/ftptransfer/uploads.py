"""An attempt to bring a file from a local folder to an FTP server.

Some servers rename over no other file. There the file that is to be replaced is set aside under a temporary name of
its own, and removed when the new one has its name; it comes back when that fails. So one of them is always there.
"""

from __future__ import annotations

import contextlib

from opsplane_server.ftptransfer.attempt import (
    Means,
    Steps,
    Version,
    at_destination,
    changed,
    destination_path,
    has_sha256,
    is_settled_by,
    lease_lost,
    wrong_sha256,
)
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, TransferFailure
from opsplane_server.ftptransfer.local_files import LocalFiles, Source
from opsplane_server.ftptransfer.model import ExistingFile, FileKind, LocalFolder, RemoteFile, Succeeded, Task
from opsplane_server.ftptransfer.ports import RemoteSession
from opsplane_server.ftptransfer.temporary import temporary_path

_REFUSED = frozenset({450, 451, 550, 553})  # what servers say of a folder that is missing, or a name that is taken


class Upload:
    """See `attempt.Attempt`."""

    def __init__(self, task: Task, means: Means, *, earlier: Version | None) -> None:
        assert isinstance(task.source.connection.kind, LocalFolder)
        self.steps = Steps(earlier, means.begun)
        self._task = task
        self._means = means
        self._earlier = earlier
        self._files = LocalFiles(task.source.connection.kind.base_path)
        self._path = destination_path(task)
        self._temporary = temporary_path(self._path, task.id)
        self._aside = temporary_path(self._path, f"{task.id} aside")

    async def run(self) -> Succeeded:
        """See `attempt.Attempt.run`."""
        wanted = await self._checked_version()
        try:
            return await self._bring(wanted)
        except TransferFailure:
            # The server may have given the file its name, and the connection broke before it could say so.
            arrived = await self._arrived() if self.steps.finishing else None
            if arrived is None:
                raise
            return arrived

    async def _bring(self, wanted: Version | None) -> Succeeded:
        async with self._means.sessions.session(self._task.remote) as session:
            self.steps.start()
            with self._files.open(self._task.source.path) as source:
                if wanted is not None and wanted != Version(source.size, source.modify_time):
                    raise changed(self._task.source.path)
                if await self._is_settled(session, source):
                    await self._tidy(session)
                    return self.steps.succeeded(source.size, source.modify_time, skipped=True)
                await self._send(session, source)
                with at_destination():
                    size = await session.stamp(self._temporary, source.modify_time)
                if size is not None and size != source.size:
                    message = f"{self._path} has {size} bytes instead of {source.size}"
                    raise TransferFailure(ErrorReason.SIZE_MISMATCH, message)
                source.check_unchanged()
                return await self._give_name(session, source)

    async def clean_up(self) -> None:
        """See `attempt.Attempt.clean_up`."""
        if not self.steps.begun and self._task.generation == 1:
            return  # nothing was begun
        async with self._means.sessions.session(self._task.remote) as session:
            await session.delete(self._temporary)
            if self._task.generation > 1 or self.steps.finishing:
                await self._bring_back(session)

    async def _arrived(self) -> Succeeded | None:
        """The outcome when the file has its name, which nobody else can have given it; None also if nobody knows."""
        version = self.steps.version
        try:
            async with self._means.sessions.session(self._task.remote) as session:
                found = None
                if await self._look(session, self._temporary) is None:
                    found = await self._look(session, self._path)
                if found is None or version is None or version.size is None or found.size not in (None, version.size):
                    return None
                await session.delete(self._aside)
        except TransferFailure:
            return None
        return self.steps.succeeded(version.size, version.modify_time)

    async def _checked_version(self) -> Version | None:
        """The version that has the SHA-256 that is asked for; None where none is. Needs no session."""
        if not self._task.sha256:
            return None
        with self._files.open(self._task.source.path) as source:
            if not await has_sha256(source.descriptor, self._task.sha256):
                raise wrong_sha256(self._task.source.path)
            source.check_unchanged()
            return Version(source.size, source.modify_time)

    async def _is_settled(self, session: RemoteSession, source: Source) -> bool:
        if self._task.existing_file is ExistingFile.REPLACE and self._task.generation == 1:
            return False
        found = await self._look(session, self._path)
        if found is None:
            return False
        local = RemoteFile(self._task.source.path, FileKind.FILE, source.size, source.modify_time)
        # The server can not tell the SHA-256 of what it has.
        return is_settled_by(self._task, found, local, same_content=not self._task.sha256)

    async def _send(self, session: RemoteSession, source: Source) -> None:
        """Brings the content into the temporary file."""
        version = Version(source.size, source.modify_time)
        offset = 0
        found = await self._look(session, self._temporary) if self._task.generation > 1 else None
        if found is not None:
            if version.is_known_as(self._earlier) and found.size is not None and found.size <= source.size:
                offset = found.size if found.size == source.size or session.supports_resume else 0
            if not offset:
                # Before the new version is noted, nothing of the old one may be there.
                await session.delete(self._temporary)
        if not self._means.allowed():
            raise lease_lost()
        self.steps.begin(version, offset)
        if offset == 0 or offset != source.size:
            try:
                await self._store(session, source, offset)
            except TransferFailure as failure:
                if failure.unanswered:
                    # The server may wait for more, and keep the file locked all the while. A locked file can be
                    # deleted; so that is what the next attempt does with one of which nothing is known.
                    self.steps.version = None
                raise

    async def _store(self, session: RemoteSession, source: Source, offset: int) -> None:
        progress = self.steps.progress
        folder = self._path.rpartition("/")[0]
        try:
            await session.store(self._temporary, source.descriptor, offset=offset, progress=progress)
        except TransferFailure as failure:
            # To look for the folder first would cost a round trip for each file.
            if offset or self.steps.sent or not folder or failure.ftp_code not in _REFUSED:
                raise
            await self._make_folder(session, folder, failure)
            with at_destination():
                await session.store(self._temporary, source.descriptor, progress=progress)

    async def _make_folder(self, session: RemoteSession, folder: str, failure: TransferFailure) -> None:
        try:
            await session.make_folders(folder)
        except TransferFailure as error:
            if not error.ftp_code:
                raise
            # The first refusal says better what is wrong.
            with at_destination():
                raise failure from error

    async def _give_name(self, session: RemoteSession, source: Source) -> Succeeded:
        mode = self._task.existing_file
        if mode in (ExistingFile.SKIP, ExistingFile.FAIL) and await self._look(session, self._path) is not None:
            if mode is ExistingFile.FAIL:
                raise TransferFailure(ErrorReason.EXISTS, f"{self._path} exists")
            await session.delete(self._temporary)
            return self.steps.succeeded(source.size, source.modify_time, skipped=True)
        if not self._means.allowed():
            raise lease_lost()
        self.steps.finishing = True
        try:
            with at_destination():
                await session.rename(self._temporary, self._path)
        except TransferFailure as failure:
            if failure.ftp_code not in _REFUSED or await self._look(session, self._path) is None:
                raise
            await self._replace(session, failure)
        else:
            if self._task.generation > 1:
                await session.delete(self._aside)
        return self.steps.succeeded(source.size, source.modify_time)

    async def _replace(self, session: RemoteSession, failure: TransferFailure) -> None:
        """Gives the file its name where a rename alone was refused."""
        await session.delete(self._aside)
        try:
            await session.rename(self._path, self._aside)
        except TransferFailure as error:
            raise failure from error
        try:
            await session.rename(self._temporary, self._path)
        except TransferFailure as error:
            with contextlib.suppress(TransferFailure):
                await session.rename(self._aside, self._path)
            raise error from failure
        await session.delete(self._aside)

    async def _tidy(self, session: RemoteSession) -> None:
        """Removes what an earlier attempt left, now that the file is there."""
        if self._task.generation > 1:
            await session.delete(self._temporary)
            await session.delete(self._aside)

    async def _bring_back(self, session: RemoteSession) -> None:
        """Ends what a broken `_replace` left."""
        if await self._look(session, self._aside) is None:
            return
        if await self._look(session, self._path) is None:
            await session.rename(self._aside, self._path)
        else:
            await session.delete(self._aside)

    async def _look(self, session: RemoteSession, path: str) -> RemoteFile | None:
        try:
            return await session.stat(path)
        except TransferFailure as failure:
            if failure.code is not ErrorCode.FILE_NOT_FOUND:
                raise
            return None
