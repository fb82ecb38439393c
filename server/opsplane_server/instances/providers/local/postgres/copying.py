"""Copies of PostgreSQL instances: pg_basebackup from the primary, checked right after against its manifest.

An incremental copy holds the blocks that changed since its base; PostgreSQL has them from 17 on, while it keeps
summaries of its log. The copy has all log that it needs, so it can be restored without the archived one.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import structlog

from opsplane_server.errors import FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from opsplane_server.instances.model import REPLICATION_USER, Copy, CopySource, NodeRole
from opsplane_server.instances.ports import Progress
from opsplane_server.instances.providers.local import copies, programs
from opsplane_server.instances.providers.local.bulk import Part, require_space, size_of, storage_of, together
from opsplane_server.instances.providers.local.copies import CopyFolder, CopyRecord
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.manifest import Desired, LocalManifest
from opsplane_server.instances.providers.local.postgres import (
    archiving,
    backup_manifest,
    checking,
    contents,
    queries,
    restoring,
)
from opsplane_server.instances.providers.local.postgres.backup_manifest import BackupManifest, position
from opsplane_server.instances.providers.local.postgres.installations import Installations
from opsplane_server.instances.providers.local.programs import Installation
from opsplane_server.storage import postmaster

log = structlog.get_logger(__name__)

_COPIED_PERCENT = 85
_PROGRESS = re.compile(r"\s*(\d+)/(\d+) kB")
_STARTED = "write-ahead log start point:"
_NO_ROOM = "No space left on device"


class PostgresCopies:
    """The port `Copies` of the engine."""

    def __init__(self, machine: Machine, installations: Installations) -> None:
        self._machine = machine
        self._layout = machine.layout
        self._installations = installations

    async def copy(self, name: str, copy_id: str, base: str, progress: Progress) -> Copy:
        """See the port."""
        manifest = self._machine.manifests.load(name)
        if manifest.desired is not Desired.RUNNING or not manifest.primary:
            raise FailedPrecondition(f"{name} does not serve", reason="INSTANCE_NOT_SERVING")
        node = self._machine.node(manifest, manifest.primary)
        installation = await asyncio.to_thread(self._installations.reachable, node.version, node.account)
        async with copies.being_made(self._layout, copy_id, node.account, ("pg_basebackup",)) as folder:
            if not folder.record.exists():
                making = _Making(self._layout.copies, node, installation, folder, progress)
                await self._make(making, base)
            return copies.load(self._layout, copy_id).copy

    async def restore(self, node: LocalNode, source: CopySource, progress: Progress) -> None:
        """See the port."""
        installation = await asyncio.to_thread(self._installations.reachable, node.version, node.account)
        await restoring.restore(self._machine, installation, node, source, progress)

    async def check_files(self, location: str, progress: Progress) -> str:
        """See the port."""
        records = await asyncio.to_thread(copies.chain, self._layout, location)
        async with copies.in_use(self._layout, [record.copy.location for record in records]):
            checks = []
            for number, record in enumerate(records):
                account = copies.account_of(self._layout, record.copy.location)
                version = record.copy.engine_version
                installation = await asyncio.to_thread(self._installations.reachable, version, account)
                part = Part(progress, "checking files", number * 100 // len(records), 100 // len(records))
                data = self._layout.copy(record.copy.location) / "data"
                checks.append(await checking.check_copy(data, installation, account, part.tell))
        files, size = sum(len(found.files) for found in checks), sum(found.size for found in checks)
        among = f" in {len(records)} copies that build on each other" if len(records) > 1 else ""
        return f"{files:,} files of {size:,} bytes{among} are those of the manifest"

    async def check_checksums(self, node: LocalNode, progress: Progress) -> str:
        """See the port."""
        installation = await asyncio.to_thread(self._installations.reachable, node.version, node.account)
        part = Part(progress, "checking pages")
        return await checking.check_pages(node.folder.data, installation, node.account, part.tell)

    def archived(self, manifest: LocalManifest) -> tuple[datetime | None, datetime | None]:
        """See the port."""
        primary = self._machine.node(manifest, manifest.primary)
        data, now = primary.folder.data, datetime.now(UTC)
        try:
            system = archiving.system_identifier(data)
        except FileNotFoundError:
            return None, None
        gets_on = postmaster.find(data) is not None and not archiving.behind(data, now)
        window = archiving.window(self._layout, manifest.spec.uid, system, now=now if gets_on else None)
        return window.start, window.end

    async def _make(self, making: _Making, base: str) -> None:
        if base:
            try:
                async with copies.in_use(self._layout, [base]):
                    record = copies.load(self._layout, base)
                    making.require_base(record)
                    await making.run(record)
                    return
            except NotFound as error:
                reason = error.message
            except _NotIncremental as error:
                reason = str(error)
            log.info("copy is a full one after all", instance=making.node.spec.name, base=base, reason=reason)
            await asyncio.to_thread(shutil.rmtree, making.folder.data, ignore_errors=True)
        await making.run(None)


class _NotIncremental(Exception):
    """PostgreSQL can not build on this base, for example because summaries of its log are gone."""


class _Making:
    """One copy that is being made."""

    def __init__(
        self, copies_folder: Path, node: LocalNode, installation: Installation, folder: CopyFolder, progress: Progress
    ) -> None:
        self.node = node
        self.folder = folder
        self._copies = copies_folder
        self._installation = installation
        self._progress = progress
        self._system = archiving.system_identifier(node.folder.data)
        self._part = Part(progress, "copying", 0, _COPIED_PERCENT)
        self._start_point: datetime | None = None

    def require_base(self, base: CopyRecord) -> None:
        """Raises _NotIncremental for one that can not be built on."""
        if int(self._installation.major) < archiving.INCREMENTAL_FROM:
            raise _NotIncremental(f"PostgreSQL {self._installation.major} makes no incremental copies")
        if base.uid != self.node.spec.uid or base.details.get("system_identifier") != self._system:
            raise _NotIncremental("the base is a copy of other data")

    async def run(self, base: CopyRecord | None) -> None:
        """Makes it, checks it and writes its record."""
        before, size = await together(contents.read(self.node), asyncio.to_thread(size_of, self.node.folder.data))
        if base is None:
            require_space(self.folder.path, size, "the copy")
        start_time = datetime.now(UTC)
        await self._part.tell(0)
        await self._copy(base)
        await asyncio.to_thread(_thin_out, self.folder.data / "pg_wal")
        checked = Part(self._progress, "checking files", _COPIED_PERCENT, 100 - _COPIED_PERCENT)
        after, manifest = await together(
            contents.read(self.node),
            checking.check_copy(self.folder.data, self._installation, self.folder.account, checked.tell),
        )
        found = after.also_in(before)
        # PostgreSQL notes no time when a copy ends, but commits have one: the last that is in it, or, when there is
        # none since the copy began, that moment. Every commit up to this time is in the copy, and none after it.
        commit = await checking.last_commit(self.folder.data, manifest, self._installation, self.folder.account)
        begun = self._start_point or start_time
        storage, restored = await asyncio.to_thread(self._sizes, manifest)
        copy = Copy(
            location=self.folder.path.name,
            engine=self.node.spec.engine,
            engine_version=self._installation.version,
            method="PHYSICAL",
            consistency="TRANSACTION",
            node=self.node.id,
            databases=found.databases,
            users=found.users,
            tables=found.tables,
            size_bytes=storage,
            restore_size_bytes=restored,
            start_time=start_time,
            cut_time=max(begun, commit) if commit is not None else begun,
            complete_time=datetime.now(UTC),
            base=base.copy.location if base is not None else "",
        )
        record = CopyRecord(copy, self.node.spec.name, self.node.spec.uid, await asyncio.to_thread(self._log, manifest))
        await asyncio.to_thread(copies.save, self.folder, record)
        log.info(
            "copy made", instance=self.node.spec.name, location=copy.location, base=copy.base, bytes=copy.size_bytes
        )

    async def _copy(self, base: CopyRecord | None) -> None:
        # The replication account needs no password over the socket. The log comes over a second connection meanwhile.
        command: list[str | Path] = [self._installation.program("pg_basebackup"), "-D", self.folder.data]
        command += ["-h", self.node.folder.run, "-p", str(self.node.port), "-U", REPLICATION_USER, "-w"]
        command += ["-c", "fast", "-X", "stream", "-P", "-v", "-l", f"opsplane {self.folder.path.name}"]
        if base is not None:
            command.append(f"--incremental={self._copies / base.copy.location / 'data' / 'backup_manifest'}")
        outcome = await programs.run(self.folder.account, command, on_line=self._line, check=False)
        if outcome.returncode == 0:
            return
        log.warning("pg_basebackup failed", instance=self.node.spec.name, output=outcome.output[-2000:])
        if _NO_ROOM in outcome.output:
            raise ResourceExhausted(f"no room for the copy: {outcome.last_line}", reason="NO_SPACE")
        # Its own words for a lost connection are many; whether the primary is still there is one question.
        if (await queries.view(self.node)).role is not NodeRole.PRIMARY:
            raise Unavailable(f"{self.node.id} is no more the primary", reason="INSTANCE_NOT_SERVING")
        if base is not None:
            raise _NotIncremental(outcome.last_line)
        raise FailedPrecondition(f"the copy could not be made: {outcome.last_line}", reason="COPY_FAILED")

    async def _line(self, text: str) -> None:
        match = _PROGRESS.match(text)
        if match and int(match[2]):
            await self._part.tell(min(100, int(match[1]) * 100 // int(match[2])))
        elif _STARTED in text:
            self._start_point = datetime.now(UTC)

    def _sizes(self, manifest: BackupManifest) -> tuple[int, int]:
        return storage_of(self.folder.path), backup_manifest.restored_size(self.folder.data, manifest)

    def _log(self, manifest: BackupManifest) -> Mapping[str, str]:
        """Which segments of the log it holds, for those who prune or play back the archived one."""
        size = checking.segment_bytes(self.folder.data)
        return {
            "system_identifier": self._system,
            "segment_bytes": str(size),
            "first_segment": str(min(position(part.start) for part in manifest.log) // size),
            "last_segment": str((max(position(part.end) for part in manifest.log) - 1) // size),
        }


def _thin_out(log_folder: Path) -> None:
    """Gives the empty end of each segment of the log back to the disk; what is read stays the same. Blocks."""
    for path in log_folder.glob("[0-9A-F]" * 24):
        with path.open("r+b") as stream:
            size = os.fstat(stream.fileno()).st_size
            used = len(stream.read().rstrip(b"\0"))
            if used < size:
                stream.truncate(used)
                stream.truncate(size)
                os.fsync(stream.fileno())
