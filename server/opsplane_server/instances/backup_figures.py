"""What Backups tells of an instance's backups: the newest usable one, and the bytes of all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC
from typing import Final

import grpc
from opsplane.backups.v1 import backup_pb2, backups_pb2, backups_pb2_grpc

from opsplane_server.errors import Unavailable
from opsplane_server.instances.records import BackupFigures
from opsplane_server.rpc.peers import Peers

_SERVICE: Final = "backups"
_PAGE: Final = 1000
_TIMEOUT_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class InstanceBackups:
    """The backups of an instance, which may be deleted."""

    instance: str
    figures: BackupFigures


class BackupCatalog:
    """Asks the service Backups, where it is served."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def read(self) -> dict[str, InstanceBackups] | None:
        """By uid of the instance; None where the service is not served. Raises Unavailable."""
        if _SERVICE not in self._peers:
            return None
        stub = backups_pb2_grpc.BackupsStub(self._peers.channel(_SERVICE))
        found: dict[str, InstanceBackups] = {}
        token = ""
        while True:
            request = backups_pb2.ListBackupsRequest(page_size=_PAGE, page_token=token)
            try:
                page = await stub.ListBackups(request, timeout=_TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as error:
                raise Unavailable(
                    f"backups can not be listed: {error.details()}", reason="BACKUPS_UNAVAILABLE"
                ) from error
            for backup in page.backups:
                _add(found, backup)
            token = page.next_page_token
            if not token:
                return found


def _add(found: dict[str, InstanceBackups], backup: backup_pb2.Backup) -> None:
    known = found.get(backup.instance_uid) or InstanceBackups(backup.instance, BackupFigures())
    figures = replace(known.figures, size_bytes=known.figures.size_bytes + backup.size_bytes)
    # Of each instance one backup is marked as the newest usable one.
    if backup.last_good:
        figures = replace(figures, name=backup.name, cut_time=backup.cut_time.ToDatetime(tzinfo=UTC))
    found[backup.instance_uid] = replace(known, figures=figures)
