"""Data of a new instance from copies and, up to a moment, from the archived log of the instance they are of.

All recovery is done here, by a server in single-user mode, which listens to nobody and takes the time that it needs:
what is left in the data folder was shut down in good order, and starts at once.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog

from opsplane_server.errors import DataLoss, FailedPrecondition, ResourceExhausted, Unavailable
from opsplane_server.instances.model import CopySource
from opsplane_server.instances.ports import Progress
from opsplane_server.instances.providers.local import copies, processes, programs
from opsplane_server.instances.providers.local.bulk import Part, require_space, size_of
from opsplane_server.instances.providers.local.copies import CopyRecord
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.manifest import Desired
from opsplane_server.instances.providers.local.postgres import archiving, checking, single_user
from opsplane_server.instances.providers.local.programs import Installation, Outcome
from opsplane_server.storage.accounts import sync_folder

log = structlog.get_logger(__name__)

# Of making the instance; starting the server comes after it.
_CHECKED_PERCENT = 15
_COPIED_PERCENT = 60
_POLL_SECONDS = 0.5
_NO_ROOM = "No space left on device"
_UNREACHABLE = "POINT_IN_TIME_UNREACHABLE"
_TOO_EARLY = "recovery ended before configured recovery target was reached"
_TOO_LATE = "requested recovery stop point is before consistent recovery point"
_PLAYED_BACK = re.compile(r"restored log file \"([0-9A-F]{24})\"")


async def restore(
    machine: Machine, installation: Installation, node: LocalNode, source: CopySource, progress: Progress
) -> None:
    """See `Copies.restore`."""
    if node.folder.data.exists():
        return
    records = await asyncio.to_thread(copies.chain, machine.layout, source.location)
    wanted = records[-1].copy
    if wanted.engine_version.partition(".")[0] != installation.major:
        raise FailedPrecondition(
            f"the copy is of PostgreSQL {wanted.engine_version}, not of {node.version}", reason="COPY_OTHER_VERSION"
        )
    if source.stop_time is not None and source.stop_time < wanted.cut_time:
        # The server would not say so: it stops where the copy is whole, with what was committed until then.
        raise FailedPrecondition(f"the moment lies before the copy, {wanted.cut_time.isoformat()}", reason=_UNREACHABLE)
    async with copies.in_use(machine.layout, [record.copy.location for record in records]):
        await _clear(node)
        require_space(node.folder.path, wanted.restore_size_bytes, "the restored data")
        folders = [machine.layout.copy(record.copy.location) / "data" for record in records]
        for number, folder in enumerate(folders):
            width = _CHECKED_PERCENT // len(folders)
            part = Part(progress, "checking the copy", number * width, width)
            await checking.check_copy(folder, installation, node.account, part.tell)
        part = Part(progress, "copying files", _CHECKED_PERCENT, _COPIED_PERCENT - _CHECKED_PERCENT)
        await _copy(installation, node, folders, wanted.restore_size_bytes, part)
    await progress("recovering", _COPIED_PERCENT)
    if source.stop_time is None:
        await _recover(installation, node, [], progress)
    else:
        await _recover_until(machine, installation, node, records[-1], source.archive, source.stop_time, progress)
    await asyncio.to_thread(_finish, node)


async def _clear(node: LocalNode) -> None:
    """Ends what a killed process of ours left at work there, and removes its files."""
    left = await asyncio.to_thread(processes.working_on, node.folder.scratch, node.account)
    await processes.kill(left)
    await asyncio.to_thread(shutil.rmtree, node.folder.scratch, ignore_errors=True)


async def _copy(installation: Installation, node: LocalNode, folders: Sequence[Path], size: int, part: Part) -> None:
    await part.tell(0)
    # Neither syncs: the server does so for all files before it recovers.
    if len(folders) > 1:
        command: list[str | Path] = [
            installation.program("pg_combinebackup"),
            "--no-sync",
            "-o",
            node.folder.scratch,
            *folders,
        ]
    else:
        # Where the file system can, the new files share their blocks with the old ones.
        command = ["cp", "-R", "--preserve=mode,timestamps", "--reflink=auto", folders[0], node.folder.scratch]
    watch = asyncio.create_task(_watch(node.folder.scratch, size, part))
    run = asyncio.create_task(programs.run(node.account, command, check=False))
    try:
        await asyncio.wait({watch, run}, return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            watch.result()
        outcome = await run
    finally:
        for task in (watch, run):
            task.cancel()
        await asyncio.gather(watch, run, return_exceptions=True)
    _raise_failure(outcome, "the files can not be copied")


async def _watch(scratch: Path, size: int, part: Part) -> None:
    """Tells how far the copying program is."""
    while True:
        await asyncio.sleep(_POLL_SECONDS)
        done = await asyncio.to_thread(size_of, scratch)
        await part.tell(min(99, done * 100 // max(size, 1)))


async def _recover_until(
    machine: Machine,
    installation: Installation,
    node: LocalNode,
    record: CopyRecord,
    uid: str,
    moment: datetime,
    progress: Progress,
) -> None:
    """Plays the archived log back up to `moment`."""
    system = record.details["system_identifier"]
    folder = archiving.log_folder(machine.layout, uid, system)
    complete = await _archived_until(machine, uid, system)
    options = [f"restore_command={archiving.restore_command(folder)}"]
    target = [f"recovery_target_time={moment.astimezone(UTC).isoformat(sep=' ')}", "recovery_target_action=promote"]
    signal = node.folder.scratch / "recovery.signal"
    await asyncio.to_thread(_create, signal, node)
    try:
        await _recover(installation, node, [*options, *target], progress)
    except _EndOfLog:
        # The server can not know that nothing more was committed up to then, but it is so when all was archived.
        if complete is None or complete < moment:
            raise FailedPrecondition(
                f"the archived log ends before {moment.isoformat()}"
                + (f", at {complete.isoformat()}" if complete is not None else ""),
                reason=_UNREACHABLE,
            ) from None
        log.info("nothing was committed between the end of the log and the moment", instance=node.spec.name)
        await _recover(installation, node, options, progress)


async def _archived_until(machine: Machine, uid: str, system: str) -> datetime | None:
    """Every commit up to this moment is in the archived log. The instance, if it serves, hands over what it has."""
    for manifest in await asyncio.to_thread(lambda: list(machine.manifests.all())):
        if manifest.spec.uid != uid or manifest.desired is not Desired.RUNNING or not manifest.primary:
            continue
        primary = machine.node(manifest, manifest.primary)
        try:
            now = datetime.now(UTC)
            if archiving.system_identifier(primary.folder.data) == system:
                await archiving.flush(primary)
                return now
        except (Unavailable, OSError) as error:
            log.warning("the newest log could not be had", instance=manifest.name, error=str(error))
    return await asyncio.to_thread(archiving.archived_until, machine.layout, uid, system)


class _EndOfLog(Exception):
    """The log ended before the moment that was asked for."""


async def _recover(installation: Installation, node: LocalNode, options: Sequence[str], progress: Progress) -> None:
    """Ends with data that were shut down in good order."""

    async def line(text: str) -> None:
        match = _PLAYED_BACK.search(text)
        if match:
            await progress(f"playing back the log: {match[1]}", _COPIED_PERCENT)

    outcome = await single_user.recover(installation, node.account, node.folder.scratch, options=options, on_line=line)
    if outcome.returncode != 0 and _TOO_EARLY in outcome.output:
        raise _EndOfLog
    if outcome.returncode != 0 and _TOO_LATE in outcome.output:
        raise FailedPrecondition("the moment lies before the copy, by the clock at that time", reason=_UNREACHABLE)
    _raise_failure(outcome, "the data can not be recovered")


def _raise_failure(outcome: Outcome, what: str) -> None:
    if outcome.returncode == 0:
        return
    log.warning("restore failed", status=outcome.returncode, output=outcome.output[-2000:])
    if _NO_ROOM in outcome.output:
        raise ResourceExhausted(f"{what}: no room", reason="NO_SPACE")
    raise DataLoss(f"{what}: {outcome.last_line}", reason="RESTORE_FAILED")


def _create(path: Path, node: LocalNode) -> None:
    path.touch(mode=0o600)
    if os.geteuid() == 0:
        os.chown(path, node.account.uid, node.account.gid)


def _finish(node: LocalNode) -> None:
    """Removes what belonged to the source, and gives the data their name. Blocks."""
    scratch = node.folder.scratch
    for name in ("backup_manifest", "backup_label.old", "tablespace_map.old"):
        (scratch / name).unlink(missing_ok=True)
    sync_folder(scratch)
    os.rename(scratch, node.folder.data)
    sync_folder(node.folder.path)
