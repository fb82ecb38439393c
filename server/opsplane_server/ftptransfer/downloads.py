"""An attempt to bring a file from an FTP server into a local folder."""

from __future__ import annotations

from opsplane_server.ftptransfer.attempt import (
    LOOK_AGAIN_SECONDS,
    Means,
    Steps,
    Version,
    changed,
    destination_path,
    has_sha256,
    is_settled_by,
    lease_lost,
    wrong_sha256,
)
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, TransferFailure
from opsplane_server.ftptransfer.local_files import Finish, LocalFiles, Target
from opsplane_server.ftptransfer.model import ExistingFile, FileKind, LocalFolder, RemoteFile, Succeeded, Task
from opsplane_server.ftptransfer.ports import RemoteSession


class Download:
    """See `attempt.Attempt`."""

    def __init__(self, task: Task, means: Means, *, earlier: Version | None) -> None:
        assert isinstance(task.destination.connection.kind, LocalFolder)
        self.steps = Steps(earlier, means.begun)
        self._task = task
        self._means = means
        self._earlier = earlier
        self._files = LocalFiles(task.destination.connection.kind.base_path)
        self._path = destination_path(task)

    async def run(self) -> Succeeded:
        """See `attempt.Attempt.run`."""
        skipped = self._skips()
        if skipped is not None:
            return skipped
        async with self._means.sessions.session(self._task.remote) as session:
            self.steps.start()
            source = await session.stat(self._task.source.path)
            if source.kind is FileKind.FOLDER:
                raise TransferFailure(
                    ErrorReason.UNSPECIFIED,
                    f"{self._task.source.path} is a folder",
                    code=ErrorCode.IO_ERROR,
                    retryable=False,
                )
            found = self._existing()
            if found is not None and await self._is_settled(found, source):
                self._files.remove_temporary(self._path, self._task.id)
                return self.steps.succeeded(source.size or 0, source.modify_time, skipped=True)
            if not self._means.allowed():
                raise lease_lost()
            target = self._files.begin(self._path, self._task.id)
            try:
                size = await self._retrieve(session, source, target)
            except BaseException:
                target.leave()
                raise
        try:
            return await self._finish(target, size, source)
        except TransferFailure as failure:
            if failure.reason is ErrorReason.EXISTS and self._task.existing_file is ExistingFile.SKIP:
                await self.clean_up()
                return self.steps.succeeded(source.size or 0, source.modify_time, skipped=True)
            raise

    async def clean_up(self) -> None:
        """See `attempt.Attempt.clean_up`."""
        if self.steps.version is None and self._task.generation == 1:
            return  # nothing was begun
        self._files.remove_temporary(self._path, self._task.id)

    def _skips(self) -> Succeeded | None:
        """The outcome where the FTP server need not be asked, because there is a file."""
        if self._task.existing_file not in (ExistingFile.SKIP, ExistingFile.FAIL):
            return None
        found = self._existing()
        if found is None:
            return None
        if self._task.existing_file is ExistingFile.SKIP:
            self._files.remove_temporary(self._path, self._task.id)
            return self.steps.succeeded(found.size or 0, None, skipped=True)
        if self._task.generation == 1:
            raise TransferFailure(ErrorReason.EXISTS, f"{self._path} exists")
        return None

    def _existing(self) -> RemoteFile | None:
        """What is at the destination, where that matters."""
        if self._task.existing_file is ExistingFile.REPLACE and self._task.generation == 1:
            return None
        try:
            return self._files.stat(self._path)
        except TransferFailure as failure:
            if failure.reason is ErrorReason.NOT_FOUND:
                return None
            raise

    async def _is_settled(self, found: RemoteFile, source: RemoteFile) -> bool:
        if found.size != source.size or not self._task.sha256:
            return is_settled_by(self._task, found, source)
        with self._files.open(self._path) as file:
            same = await has_sha256(file.descriptor, self._task.sha256)
        return is_settled_by(self._task, found, source, same_content=same)

    async def _retrieve(self, session: RemoteSession, source: RemoteFile, target: Target) -> int:
        """Brings the content into the temporary file; its size then."""
        version = Version(source.size, source.modify_time)
        offset = target.size
        if offset and not (
            version.is_known_as(self._earlier)
            and source.size is not None
            and (offset == source.size or (offset < source.size and session.supports_resume))
        ):
            target.start_over()
            offset = 0
        self.steps.begin(version, offset)
        if offset == 0 or offset != source.size:
            path, progress = self._task.source.path, self.steps.progress
            offset += await session.retrieve(path, target.descriptor, offset=offset, progress=progress)
        if offset != source.size or self.steps.resumed or self.steps.seconds > LOOK_AGAIN_SECONDS:
            await self._compare(session, source, offset)
        return offset

    async def _compare(self, session: RemoteSession, source: RemoteFile, size: int) -> None:
        """Fails when the source is not what it was, or not all of it has come."""
        now = await session.stat(self._task.source.path)
        if (now.size, now.modify_time) != (source.size, source.modify_time):
            raise changed(self._task.source.path)
        if source.size is not None and size != source.size:
            raise TransferFailure(
                ErrorReason.SIZE_MISMATCH, f"{size} bytes of {self._task.source.path} came instead of {source.size}"
            )

    async def _finish(self, target: Target, size: int, source: RemoteFile) -> Succeeded:
        try:
            if self._task.sha256 and not await has_sha256(target.descriptor, self._task.sha256):
                target.start_over()
                raise wrong_sha256(self._task.source.path)
            if not self._means.allowed():
                raise lease_lost()
        except BaseException:
            target.leave()
            raise
        self.steps.finishing = True
        finish = Finish(
            size=size,
            modify_time=source.modify_time,
            existing_ok=self._task.existing_file not in (ExistingFile.SKIP, ExistingFile.FAIL),
            allowed=self._means.allowed,
        )
        await self._means.finisher.finish(target, finish)
        return self.steps.succeeded(size, source.modify_time)
