"""Copies of MariaDB and MySQL instances, made while they serve, and restoring them.

Both engines have a tool of their own that copies InnoDB's files with the log written meanwhile: MariaDB's program
mariadb-backup, whose copy is made ready at once, so that a restore only has to copy files; and MySQL's statement CLONE.
Copies are always full ones.
"""

from __future__ import annotations

import asyncio
import shutil
from datetime import UTC, datetime
from typing import Final

import structlog

from opsplane_server.errors import DataLoss, FailedPrecondition, ResourceExhausted, Unavailable
from opsplane_server.instances.engines.mysql.checks import estimated_rows
from opsplane_server.instances.engines.mysql.connecting import connected
from opsplane_server.instances.engines.mysql.databases import list_databases
from opsplane_server.instances.engines.mysql.users import list_users
from opsplane_server.instances.model import Access, Copy, CopySource, Engine
from opsplane_server.instances.ports import Progress
from opsplane_server.instances.providers.local import copies, processes, programs
from opsplane_server.instances.providers.local.bulk import (
    Part,
    Tally,
    in_thread,
    require_space,
    size_of,
    storage_of,
)
from opsplane_server.instances.providers.local.copies import CopyFolder, CopyRecord
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.manifest import Desired, LocalManifest
from opsplane_server.instances.providers.local.mysql import cloning, file_sums, mariabackup
from opsplane_server.instances.providers.local.mysql.engine import MysqlEngine
from opsplane_server.instances.providers.local.mysql.installations import Installation, series
from opsplane_server.storage.accounts import sync_folder

log = structlog.get_logger(__name__)

_COPYING_PROGRAMS: Final = ("mariabackup", "mariadb-backup")
_COPIED_PERCENT: Final = 85
_CHECKED_PERCENT: Final = 30
_POLL_SECONDS: Final = 0.5
_NO_ROOM: Final = "No space left on device"
# What the tools leave beside the data.
_OF_THE_COPY: Final = ("backup-my.cnf", "#clone", "auto.cnf")


class MysqlCopies:
    """The port `Copies` of both engines."""

    def __init__(self, machine: Machine, engine: MysqlEngine) -> None:
        self._machine = machine
        self._layout = machine.layout
        self._engine = engine

    async def copy(self, name: str, copy_id: str, base: str, progress: Progress) -> Copy:
        """See the port; `base` makes no difference."""
        manifest = self._machine.manifests.load(name)
        if manifest.desired is not Desired.RUNNING or not manifest.primary:
            raise FailedPrecondition(f"{name} does not serve", reason="INSTANCE_NOT_SERVING")
        node = self._machine.node(manifest, manifest.primary)
        installation = await self._installation(node)
        async with copies.being_made(self._layout, copy_id, node.account, _COPYING_PROGRAMS) as folder:
            if not folder.record.exists():
                await self._make(node, installation, folder, progress)
            return copies.load(self._layout, copy_id).copy

    async def restore(self, node: LocalNode, source: CopySource, progress: Progress) -> None:
        """See the port."""
        if node.folder.data.exists():
            return
        if source.stop_time is not None:
            raise FailedPrecondition(f"{node.spec.engine} has no archived log", reason="POINT_IN_TIME_NOT_SUPPORTED")
        record = await asyncio.to_thread(copies.load, self._layout, source.location)
        await self._installation(node)
        copied = record.copy
        if copied.engine is not node.spec.engine or series(copied.engine_version) != series(node.version):
            raise FailedPrecondition(
                f"the copy is of {copied.engine} {copied.engine_version}, not of {node.spec.engine} {node.version}",
                reason="COPY_OTHER_VERSION",
            )
        scratch = node.folder.scratch
        async with copies.in_use(self._layout, [source.location]):
            await processes.kill(await asyncio.to_thread(processes.working_on, scratch))
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
            require_space(node.folder.path, copied.restore_size_bytes, "the restored data")
            await self._check(source.location, Part(progress, "checking the copy", 0, _CHECKED_PERCENT))
            part = Part(progress, "copying files", _CHECKED_PERCENT, 100 - _CHECKED_PERCENT)
            await self._copy_files(node, source.location, copied.restore_size_bytes, part)
        await asyncio.to_thread(_finish, node)

    async def check_files(self, location: str, progress: Progress) -> str:
        """See the port."""
        async with copies.in_use(self._layout, [location]):
            await asyncio.to_thread(copies.load, self._layout, location)
            count, size = await self._check(location, Part(progress, "checking files"))
        return f"{count:,} files of {size:,} bytes have their checksums"

    async def check_checksums(self, node: LocalNode, progress: Progress) -> str:
        """See the port. Those of InnoDB's pages."""
        installation = await self._installation(node)
        return await mariabackup.check_pages(installation, node.account, node.folder.data, Part(progress, "reading"))

    def archived(self, manifest: LocalManifest) -> tuple[datetime | None, datetime | None]:
        """See the port: these engines archive nothing here."""
        return None, None

    async def _make(self, node: LocalNode, installation: Installation, folder: CopyFolder, progress: Progress) -> None:
        require_space(folder.path, await asyncio.to_thread(size_of, node.folder.data), "the copy")
        access, start_time = self._engine.access(node), datetime.now(UTC)
        part = Part(progress, "copying", 0, _COPIED_PERCENT)
        await part.tell(0)
        databases, users, tables = await _contents(access)
        if node.spec.engine is Engine.MARIADB:
            cut_time = await mariabackup.copy(installation, node, access, folder, part)
        else:
            cut_time = await cloning.copy(access, folder, part)
        await part.tell(100)
        summed = Part(progress, "reading the copy", _COPIED_PERCENT, 100 - _COPIED_PERCENT)
        tally = Tally(await asyncio.to_thread(size_of, folder.data))
        sums = await in_thread(lambda: file_sums.take(folder.data, tally, durable=True), tally, summed.tell)
        await asyncio.to_thread(file_sums.write, folder.path, sums)
        copy = Copy(
            location=folder.path.name,
            engine=node.spec.engine,
            engine_version=installation.version,
            method="PHYSICAL",
            consistency="TRANSACTION",
            node=node.id,
            databases=databases,
            users=users,
            tables=tables,
            size_bytes=await asyncio.to_thread(storage_of, folder.path),
            restore_size_bytes=sum(each.size for each in sums.values()),
            start_time=start_time,
            cut_time=cut_time,
            complete_time=datetime.now(UTC),
        )
        await asyncio.to_thread(copies.save, folder, CopyRecord(copy, node.spec.name, node.spec.uid))
        log.info("copy made", instance=node.spec.name, location=copy.location, bytes=copy.size_bytes)

    async def _check(self, location: str, part: Part) -> tuple[int, int]:
        copy = self._layout.copy(location)
        wanted = await asyncio.to_thread(file_sums.read, copy)
        size = sum(each.size for each in wanted.values())
        tally = Tally(size)
        await in_thread(lambda: file_sums.compare(copy / "data", wanted, tally), tally, part.tell)
        return len(wanted), size

    async def _copy_files(self, node: LocalNode, location: str, size: int, part: Part) -> None:
        # Where the file system can, the new files share their blocks with the old ones.
        command = ["cp", "-R", "--preserve=mode,timestamps", "--reflink=auto"]
        copying = asyncio.create_task(
            programs.run(
                node.account, [*command, self._layout.copy(location) / "data", node.folder.scratch], check=False
            )
        )
        try:
            while not (await asyncio.wait({copying}, timeout=_POLL_SECONDS))[0]:
                done = await asyncio.to_thread(size_of, node.folder.scratch)
                await part.tell(min(99, done * 100 // max(size, 1)))
            outcome = copying.result()
        finally:
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)
        if outcome.returncode != 0 and _NO_ROOM in outcome.output:
            raise ResourceExhausted("no room for the restored data", reason="NO_SPACE")
        if outcome.returncode != 0:
            raise DataLoss(f"the files can not be copied: {outcome.last_line}", reason="RESTORE_FAILED")

    async def _installation(self, node: LocalNode) -> Installation:
        return await asyncio.to_thread(
            self._engine.installations.reachable, node.spec.engine, node.version, node.account
        )


async def _contents(access: Access) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, int]]:
    async with connected(access) as session:
        databases = tuple(database.name for database in await list_databases(session))
        users = tuple(user.name for user in await list_users(session))
        if (await session.value("SELECT @@GLOBAL.innodb_read_only")) == 1:
            raise Unavailable("the server takes no writes", reason="INSTANCE_NOT_SERVING")
        return databases, users, dict(await estimated_rows(session))


def _finish(node: LocalNode) -> None:
    """Removes what belonged to the copy, makes the data durable and gives them their name. Blocks."""
    scratch = node.folder.scratch
    for path in scratch.iterdir():
        if path.name in _OF_THE_COPY or path.name.startswith(("xtrabackup_", "mariadb_backup_")):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    # InnoDB does not read its pages before it writes them to be whole: they must be on the disk.
    file_sums.sync(scratch)
    scratch.rename(node.folder.data)
    sync_folder(node.folder.path)
