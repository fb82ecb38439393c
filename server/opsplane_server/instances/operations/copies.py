"""Copies of instances' data, for the service Backups."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from opsplane.instances.v1 import copies_pb2 as pb

from opsplane_server.instances.convert_copies import copy_message
from opsplane_server.instances.model import ProviderKind
from opsplane_server.instances.operations.frame import Frame, cancellable
from opsplane_server.platform.execution import Execution


class Copies:
    """The work of COPY, ARCHIVE_COPY and DELETE_COPY. exports: folder below which archives are written."""

    def __init__(self, frame: Frame, *, exports: Path) -> None:
        self._frame = frame
        self._exports = exports

    async def copy(self, execution: Execution) -> Message:
        """Copies an instance while it serves."""
        frame = self._frame
        request = execution.request(pb.CopyInstanceRequest)
        instance = await frame.store.get(request.name)
        provider = frame.provider_of(instance)
        made = await cancellable(
            execution, provider.copy(instance.name, request.copy_id, request.base, frame.progress(execution))
        )
        answer = copy_message(made, instance)
        await frame.done(execution, answer)
        return answer

    async def undo_copy(self, execution: Execution, error: Exception) -> None:
        """Removes what was copied."""
        request = execution.request(pb.CopyInstanceRequest)
        instance = await self._frame.store.find(request.name)
        kind = instance.spec.provider if instance is not None else ProviderKind.LOCAL
        # A provider names a copy by its id.
        await self._frame.provider(kind).delete_copy(request.copy_id)

    async def archive(self, execution: Execution) -> Message:
        """Writes a copy as one archive."""
        frame = self._frame
        request = execution.request(pb.ArchiveCopyRequest)
        size, sha256 = await cancellable(
            execution,
            frame.provider(ProviderKind.LOCAL).archive_copy(
                request.location,
                request.path,
                request.packing,
                frame.progress(execution),
                overwrite=request.overwrite,
            ),
        )
        answer = pb.CopyArchive(
            path=request.path, size_bytes=size, sha256=sha256, file=str(self._exports / request.path)
        )
        await frame.done(execution, answer)
        return answer

    async def delete(self, execution: Execution) -> Message:
        """Removes a copy, and archived log that no copy needs any more."""
        request = execution.request(pb.DeleteCopyRequest)
        provider = self._frame.provider(ProviderKind.LOCAL)
        if request.location:
            await provider.delete_copy(request.location)
        if request.archive:
            await provider.delete_archive(request.archive, request.keep_from)
        await self._frame.done(execution, Empty())
        return Empty()
