"""The steps of a change of primary: finding out who has received most, promoting, telling what may be lost."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from opsplane_server.errors import FailedPrecondition, Unavailable
from opsplane_server.instances.providers.local import programs
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.postgres.replication import Quorum
from opsplane_server.instances.providers.local.postgres.sessions import Standing, session, standings
from opsplane_server.instances.providers.local.postgres.timelines import SEGMENT, lsn, position
from opsplane_server.instances.providers.local.programs import Installation
from opsplane_server.storage.accounts import sync_folder

log = structlog.get_logger(__name__)

_DRAIN_SECONDS = 0.25
_ANSWER_SECONDS = 1.0
_LONGEST_ANSWER_SECONDS = 5.0
_POLL_SECONDS = 0.005
_PROMOTE_SECONDS = 60.0
_WRITE_SECONDS = 15.0
_PAGE = 8192


async def received(candidates: Sequence[LocalNode], needed: Quorum) -> Mapping[str, Standing]:
    """How far those replicas are that answer, when nothing more comes from a primary that is gone: what it sent last
    may still be on its way to their disks. Nobody waits long for one that hangs unless it is needed.
    """
    deadline = asyncio.get_running_loop().time() + _DRAIN_SECONDS
    while True:
        found = await _replicas(candidates, _ANSWER_SECONDS)
        if not found or not needed.is_safe(len(found)):
            return await _replicas(candidates, _LONGEST_ANSWER_SECONDS)
        draining = any(standing.streaming for standing in found.values())
        if not draining or asyncio.get_running_loop().time() > deadline:
            return found
        await asyncio.sleep(_POLL_SECONDS)


async def _replicas(candidates: Sequence[LocalNode], timeout: float) -> dict[str, Standing]:
    found = await standings(candidates, timeout=timeout)
    return {node: standing for node, standing in found.items() if standing.recovering}


def best(found: Mapping[str, Standing]) -> str:
    """The one that has received most. There is one."""
    return max(found, key=lambda node: found[node].position)


async def promote(node: LocalNode) -> None:
    """Returns when the server takes writes, at once if it is a primary. Unavailable."""
    async with session(node, timeout=_PROMOTE_SECONDS) as connection:
        if await connection.fetchval("SELECT pg_is_in_recovery()"):
            await connection.execute("SELECT pg_promote(false)")
        while True:
            if not await connection.fetchval("SELECT pg_is_in_recovery()"):
                break
            await asyncio.sleep(_POLL_SECONDS)
    log.info("replica promoted", node=node.id)


async def take_write(node: LocalNode) -> bool:
    """Commits something that changes nothing, as clients do; False when that is not through after some seconds.

    Clients get no answer before the synchronous replicas have it, therefore it waits for them too.
    """
    try:
        async with session(node, timeout=_WRITE_SECONDS) as connection:
            await connection.execute("SET synchronous_commit = on")
            await connection.execute("SELECT pg_logical_emit_message(true, 'opsplane', '')")
    except Unavailable as error:
        log.warning("new primary does not take writes yet", node=node.id, error=error.message)
        return False
    return True


async def end_of_log(node: LocalNode, installation: Installation, timeline: int, start: int) -> int | None:
    """Where the log of a dead server ends, read from its files from `start` on, the end of a record; None if it can
    not be read.
    """
    folder = node.folder.data / "pg_wal"
    limit = await asyncio.to_thread(_limit, folder, timeline, start)
    if limit <= start:
        return start
    outcome = await programs.run(
        node.account,
        [
            installation.program("pg_waldump"),
            "--quiet",
            f"--timeline={timeline}",
            f"--start={lsn(start)}",
            f"--end={lsn(limit)}",  # it would wait seconds for a file that does not come
            f"--path={folder}",
        ],
        check=False,
    )
    if outcome.returncode == 0:
        return limit
    # The common end is an error: that of the place where there is no record any more.
    if re.search(r"could not find a valid record after", outcome.output):
        return start
    ended = re.search(r"error in WAL record at [0-9A-F]+/[0-9A-F]+: .*? at ([0-9A-F]+/[0-9A-F]+)", outcome.output)
    return position(ended[1]) if ended else None


def shutdown_checkpoint(node: LocalNode, facts: Mapping[str, str]) -> int:
    """Where the last record of a server that was stopped in good order begins. FailedPrecondition if it was not.

    facts: what pg_controldata says.
    """
    if facts.get("Database cluster state") != "shut down":
        raise FailedPrecondition(f"{node.id} was not stopped in good order", reason="NOT_SHUT_DOWN")
    return position(facts["Latest checkpoint location"])


def copy_log(old: LocalNode, new: LocalNode, timeline: int, start: int, end: int) -> None:
    """Adds the log from `start` to `end` to a replica's, which replays all that it has before it becomes a primary.

    In place, as its receiver would: its processes have the files open. Nobody else writes them now. Blocks.
    """
    source, target = old.folder.data / "pg_wal", new.folder.data / "pg_wal"
    size = _segment_size(source)
    place = start - start % _PAGE
    while place < end:
        name, offset = _segment_name(timeline, place, size), place % size
        length = min(size - offset, end + -end % _PAGE - place)
        with (source / name).open("rb") as stream:
            content = os.pread(stream.fileno(), length, offset)
        if (target / name).exists():
            with (target / name).open("r+b") as stream:
                os.pwrite(stream.fileno(), content, offset)
                os.fsync(stream.fileno())
        else:
            _copy_segment(source / name, target / name, new)
        place += length
    sync_folder(target)


def _copy_segment(source: Path, target: Path, node: LocalNode) -> None:
    scratch = target.with_name(f"xlogtemp.{target.name}")  # PostgreSQL removes such files when it starts
    shutil.copyfile(source, scratch)
    scratch.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(scratch, node.account.uid, node.account.gid)
    with scratch.open("rb") as stream:
        os.fsync(stream.fileno())
    scratch.rename(target)


def _limit(folder: Path, timeline: int, start: int) -> int:
    """The end of the last file of the log that follows on `start` without a gap."""
    size = _segment_size(folder)
    place = start - start % size
    while (folder / _segment_name(timeline, place, size)).exists():
        place += size
    return place


def _segment_size(folder: Path) -> int:
    """The size of the log's files: it is the same for all of them."""
    return next((folder / name).stat().st_size for name in os.listdir(folder) if SEGMENT.fullmatch(name))


def _segment_name(timeline: int, place: int, size: int) -> str:
    number, each = place // size, 2**32 // size
    return f"{timeline:08X}{number // each:08X}{number % each:08X}"
