"""`Transfers` over the real store, for which `local` is a folder, and `remote` and `other` are FTP servers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from opsplane_server.ftptransfer.model import Connection, FtpServer, LocalFolder
from opsplane_server.ftptransfer.stores.postgres import PostgresTransferStore
from opsplane_server.ftptransfer.transfers import Transfers
from opsplane_server.storage.database import Database
from opsplane_server.storage.signals import Signals

_CONNECTIONS = {
    "local": Connection("local", LocalFolder(Path("/data"))),
    "remote": Connection("remote", FtpServer("ftp.example.com")),
    "other": Connection("other", FtpServer("ftp.example.org")),
}


class FixedConnections:
    """A `ConnectionSource` of these three."""

    async def resolve(self, ids: Collection[str]) -> Mapping[str, Connection]:
        return {name: _CONNECTIONS[name] for name in ids if name in _CONNECTIONS}


def transfer_intake(database: Database, signals: Signals) -> Transfers:
    """One over this database, which tells the topics `work` and `changes`."""
    return Transfers(
        PostgresTransferStore(database),
        FixedConnections(),
        work=signals.topic("work"),
        changes=signals.topic("changes"),
    )
