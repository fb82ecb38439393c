"""Making the data of a replica: a copy of the primary's, or an old primary's own, wound back to where they part."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path

import psutil
import structlog

from opsplane_server.errors import FailedPrecondition
from opsplane_server.instances.model import ADMIN_USER, REPLICATION_USER
from opsplane_server.instances.ports import Progress
from opsplane_server.instances.providers.local import processes, programs
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.postgres import shared_memory, timelines
from opsplane_server.instances.providers.local.postgres.replication import conninfo
from opsplane_server.instances.providers.local.postgres.sessions import session
from opsplane_server.instances.providers.local.programs import Installation
from opsplane_server.storage.accounts import sync_folder

log = structlog.get_logger(__name__)

_SIGNAL = "standby.signal"
_PROGRAMS = ("pg_basebackup", "pg_rewind", "postgres")
_QUIET = "-c log_min_duration_statement=-1"  # the log of slow statements is about the owner's
_KNOWS_PROMOTED = 16  # first major version
_CHECKPOINT_SECONDS = 300.0
_PERCENT = re.compile(r"\((\d+)%\)")


def is_replica(node: LocalNode) -> bool:
    """Whether its data are a replica's: the server starts as one, and stays one until it is promoted."""
    return (node.folder.data / _SIGNAL).exists()


def mark_replica(node: LocalNode, data: Path) -> None:
    """Makes these data a replica's, durably."""
    descriptor = os.open(data / _SIGNAL, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.geteuid() == 0:
            os.fchown(descriptor, node.account.uid, node.account.gid)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(data)


async def copy_primary(node: LocalNode, primary: LocalNode, installation: Installation, progress: Progress) -> None:
    """Replaces the node's data, if it has any, by a copy of what the primary has. Its server is down.

    The old data stay until the copy is whole: they may be all that is left of something.
    """
    scratch = node.folder.scratch
    await _end_leftovers(node)
    if not (scratch / _SIGNAL).exists():
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

        async def told(line: str) -> None:
            match = _PERCENT.search(line)
            if match:
                await progress(f"copying data to {node.id}", int(match[1]))

        await programs.run(
            node.account,
            [
                installation.program("pg_basebackup"),
                f"--pgdata={scratch}",
                f"--dbname={_address(primary, user=REPLICATION_USER)}",
                "--checkpoint=fast",
                "--wal-method=stream",
                "--no-manifest",
                "--no-password",
                "--progress",
            ],
            on_line=told,
        )
        mark_replica(node, scratch)
    old = node.folder.path / "data.old"
    await asyncio.to_thread(shutil.rmtree, old, ignore_errors=True)
    if node.folder.data.exists():
        await asyncio.to_thread(shared_memory.discard, node.folder.data)
        node.folder.data.rename(old)
    scratch.rename(node.folder.data)
    sync_folder(node.folder.path)
    _rewinding(node).unlink(missing_ok=True)
    await asyncio.to_thread(shutil.rmtree, old, ignore_errors=True)
    log.info("replica copied", node=node.id, source=primary.id)


async def rewind(node: LocalNode, primary: LocalNode, installation: Installation) -> bool:
    """Makes a replica of an old primary, or of a replica that went another way. Its server is down, for certain.

    False when that does not work: then the data are of no use any more, and `copy_primary` replaces them.
    """
    data, marker = node.folder.data, _rewinding(node)
    await _end_leftovers(node)
    if not (data / "global" / "pg_control").exists() or marker.exists():
        return False  # broken off in the middle, they are neither what they were nor what they should be
    ancestry = await timelines.ancestry(primary)
    if not await asyncio.to_thread(timelines.agree, node, primary, ancestry[-1]):
        log.warning("replica of another history of the same number", node=node.id, timeline=ancestry[-1])
        return False
    if int(installation.major) < _KNOWS_PROMOTED:
        # By its control file, all that these versions look at, it is still on the timeline that it left.
        async with session(primary, timeout=_CHECKPOINT_SECONDS) as connection:
            await connection.execute("CHECKPOINT")
    marker.touch()
    sync_folder(node.folder.path)
    # Of the dead server; its number may be another process's by now, and then pg_rewind would not go on.
    (data / "postmaster.pid").unlink(missing_ok=True)
    # It recovers the data by a server of its own first, which is not to be a replica.
    (data / _SIGNAL).unlink(missing_ok=True)
    try:
        outcome = await programs.run(
            node.account,
            [
                installation.program("pg_rewind"),
                f"--target-pgdata={data}",
                f"--source-server={_address(primary, user=ADMIN_USER, dbname='postgres', options=_QUIET)}",
                f"--config-file={node.folder.conf / 'postgresql.conf'}",
            ],
        )
    except FailedPrecondition as error:
        log.warning("replica not rewound", node=node.id, error=error.message)
        return False
    # It leaves log of the way that is given up, whose number a later primary may take again.
    await asyncio.to_thread(timelines.remove_others, node, ancestry)
    mark_replica(node, data)
    marker.unlink()
    sync_folder(node.folder.path)
    log.info("replica rewound", node=node.id, source=primary.id, outcome=outcome.last_line)
    return True


def remove(node: LocalNode) -> None:
    """Removes all files of a node whose server is down. Blocks."""
    for folder in (node.folder.run, node.folder.path):
        if folder.exists():
            shutil.rmtree(folder)


async def _end_leftovers(node: LocalNode) -> None:
    """Ends programs that a killed process of ours has left at work on this node: two at once would spoil the data."""

    def found() -> list[psutil.Process]:
        return [process for process in processes.working_on(node.folder.path) if _name(process) in _PROGRAMS]

    await processes.kill(await asyncio.to_thread(found))


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _rewinding(node: LocalNode) -> Path:
    return node.folder.path / "rewinding"


def _address(primary: LocalNode, **words: str) -> str:
    return conninfo(host=str(primary.folder.run), port=str(primary.port), connect_timeout="5", **words)
