"""The archived write-ahead log: kept by each server as it fills a segment, played back up to a moment, pruned.

    ARCHIVE/UID/SYSTEM/000000010000000000000007    complete segments, with holes where there are only zeros
                      /00000002.history            of a timeline

SYSTEM is PostgreSQL's own identifier of the data. An upgrade makes new data, and after its undoing the old data go on
under the same names of segments, so the two must not meet in one folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

import asyncpg
import structlog

from opsplane_server.errors import InvalidArgument, NotFound, Unavailable
from opsplane_server.instances.model import InstanceSpec
from opsplane_server.instances.providers.local import copies
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.layout import Layout
from opsplane_server.instances.providers.local.postgres import queries
from opsplane_server.storage.accounts import Account, create_folder, private_folder, sync_folder

log = structlog.get_logger(__name__)

_NAME = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})(\.partial|\.[0-9A-F]{8}\.backup)?")
INCREMENTAL_FROM = 17
"""First major version that makes incremental copies."""

_SUMMARIES_KEPT = "35d"
_TIMEOUT = "60s"  # how much of the newest log a loss of the whole machine can cost
_BEHIND = timedelta(minutes=2)
_FLUSH_SECONDS = 60.0
_POLL_SECONDS = 0.05
_SETTLED_NS = 2_000_000_000  # changes within a tick of the file system's clock leave the same time


@dataclass(frozen=True, slots=True)
class Window:
    """The moments that can be restored; None where there are none."""

    start: datetime | None = None
    end: datetime | None = None


def system_identifier(data: Path) -> str:
    """Which data these are: the first eight bytes of the control file, whatever the version."""
    content = (data / "global" / "pg_control").read_bytes()
    return str(struct.unpack_from("=Q", content)[0])


def major_version(data: Path) -> int:
    """Of the server that these data are for; 0 while there are none."""
    try:
        return int((data / "PG_VERSION").read_text())
    except FileNotFoundError:
        return 0


def log_folder(layout: Layout, uid: str, system: str) -> Path:
    """Where the log of these data of an instance is archived."""
    return layout.archived_log(uid) / system


def parameters(layout: Layout, spec: InstanceSpec, data: Path, account: Account) -> Mapping[str, str]:
    """What a server of this instance, primary or not, must have in its settings for copies and the archived log.

    Makes the folder. Archiving is on in any case, for switching it on takes a restart: without point in time recovery
    the command does nothing. Replicas archive too ("always"): a segment that the primary could no more archive is
    still kept. Blocks for a moment.
    """
    settings = {"archive_mode": "always", "archive_command": "exit 0", "archive_timeout": "0"}
    if spec.point_in_time_recovery is not None and (data / "global" / "pg_control").exists():
        folder = log_folder(layout, spec.uid, system_identifier(data))
        create_folder(layout.archive)
        private_folder(folder.parent, account)
        private_folder(folder, account)
        settings |= {"archive_command": _archive_command(folder), "archive_timeout": _TIMEOUT}
    # A promotion waits for the summaries of the log before, and those of a server that was promoted earlier never
    # come: the file that they need has another name since. No replica could take over, and all log would be kept.
    promoted = any((data / "pg_wal").glob("*.partial"))
    if major_version(data) >= INCREMENTAL_FROM and spec.high_availability is None and not promoted:
        # Incremental copies are made from these summaries; they are small.
        settings |= {"summarize_wal": "on", "wal_summary_keep_time": _SUMMARIES_KEPT}
    return settings


def restore_command(folder: Path) -> str:
    """What gets an archived segment back."""
    return f"cp {_quoted(folder)}/%f %p"


def _archive_command(folder: Path) -> str:
    """Durable, and never replaces what is there: it succeeds when that is the same, as when two servers archive it.

    `ln` fails where the name is taken; what counts is that in the end the file is whole and on the disk.
    """
    place = _quoted(folder)
    return (
        f"f={place}/%f; t={place}/.%f.$$; "
        'if ! test -e "$f"; then cp --sparse=always --preserve=timestamps %p "$t" && sync "$t" && ln "$t" "$f"; '
        'rm -f "$t"; fi; '
        f'cmp -s %p "$f" && sync {place}'
    )


def _quoted(folder: Path) -> str:
    return shlex.quote(str(folder)).replace("%", "%%")


async def flush(primary: LocalNode) -> None:
    """Has a primary archive all that it has committed so far. Unavailable when it is away or that takes too long."""
    try:
        async with queries.connected(primary) as connection:
            segment = await connection.fetchval("SELECT pg_walfile_name(pg_switch_wal() - 1)")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise Unavailable(f"{primary.id} does not answer: {error}", reason="INSTANCE_NOT_SERVING") from error
    data = primary.folder.data
    status = data / "pg_wal" / "archive_status"
    try:
        async with asyncio.timeout(_FLUSH_SECONDS):
            while any(name <= segment for name in _waiting(status)):  # noqa: ASYNC110
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise Unavailable(
            f"the write-ahead log is not archived: {segment} still waits", reason="ARCHIVE_BEHIND"
        ) from None


def _waiting(status: Path) -> list[str]:
    """Names of segments that are still to be archived."""
    try:
        names = [os.path.splitext(name) for name in os.listdir(status)]
    except FileNotFoundError:
        return []
    return [name for name, kind in names if kind == ".ready" and _NAME.fullmatch(name)]


def behind(data: Path, now: datetime) -> bool:
    """Whether archiving does not get on: a segment has waited for minutes. Blocks for a moment."""
    status = data / "pg_wal" / "archive_status"
    for name in _waiting(status):
        with contextlib.suppress(FileNotFoundError):
            if now - _changed(status / f"{name}.ready") > _BEHIND:
                return True
    return False


def window(layout: Layout, uid: str, system: str, *, now: datetime | None) -> Window:
    """The moments of an instance that can be restored. Blocks for a moment.

    now: the time, when the primary serves and archives, for then a restore gets the rest of the log from it.
    """
    run = _newest_run(layout, uid, system)
    if run is None:
        return Window()
    for record in copies.of_instance(layout, uid):
        if record.details.get("system_identifier") != system:
            continue
        # A copy brings the log up to its own end; what comes then must be here without a gap.
        if run.first - 1 <= int(record.details["last_segment"]) <= run.last:
            return Window(record.copy.cut_time, max(now or run.end, record.copy.cut_time))
    return Window()


def archived_until(layout: Layout, uid: str, system: str) -> datetime | None:
    """Every commit up to this moment is in the archived log; None without one. Blocks for a moment."""
    run = _newest_run(layout, uid, system)
    return run.end if run is not None else None


@dataclass(frozen=True, slots=True)
class _Run:
    """Archived segments without a gap, by number. end: when the last was filled."""

    first: int
    last: int
    end: datetime


def _newest_run(layout: Layout, uid: str, system: str) -> _Run | None:
    folder = log_folder(layout, uid, system)
    try:
        changed = folder.stat().st_mtime_ns
        if time.time_ns() - changed < _SETTLED_NS:
            return _read_run(folder)
        return _settled_run(folder, changed)
    except FileNotFoundError:
        return None


@lru_cache(maxsize=256)
def _settled_run(folder: Path, _changed_ns: int) -> _Run | None:
    """Read again when the folder has changed."""
    return _read_run(folder)


def _read_run(folder: Path) -> _Run | None:
    files: dict[int, Path] = {}
    size = 0
    for name in os.listdir(folder):
        match = _NAME.fullmatch(name)
        if match and match[4] is None:
            size = size or (folder / name).stat().st_size
            files[segment_number(name, size)] = folder / name
    if not files:
        return None
    first = last = max(files)
    while first - 1 in files:
        first -= 1
    return _Run(first, last, _changed(files[last]))


def segment_number(name: str, size: int) -> int:
    """Counts segments of `size` bytes from the start of the log, whatever the timeline."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is no segment of a write-ahead log")
    return int(match[2], 16) * (2**32 // size) + int(match[3], 16)


def _changed(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def delete(layout: Layout, uid: str, keep_from: str) -> None:
    """See `Provider.delete_archive`. Blocks."""
    if not re.fullmatch(r"[A-Za-z0-9-]+", uid):
        raise InvalidArgument.of("archive", f"'{uid}' is no uid of an instance")
    top = layout.archived_log(uid)
    if not top.is_dir():
        return
    try:
        kept = copies.load(layout, keep_from) if keep_from else None
    except NotFound:
        log.warning("archived log kept, the copy that it is for is gone", uid=uid, location=keep_from)
        return
    useless = [path for path in top.glob("*/*") if kept is None or _is_useless(path, kept)]
    for path in useless:
        path.unlink(missing_ok=True)
    if kept is None and not _exists(layout, uid):
        with contextlib.suppress(OSError):  # somebody else's file is in there
            for folder in list(top.iterdir()):
                folder.rmdir()
            top.rmdir()
            sync_folder(top.parent)
    log.info("archived log pruned", uid=uid, keep_from=keep_from, files=len(useless))


def _is_useless(path: Path, kept: copies.CopyRecord) -> bool:
    match = _NAME.fullmatch(path.name)
    if match is None:  # histories of timelines are small; what a killed archiver left begins with a dot
        return path.name.startswith(".") and _changed(path) < kept.copy.start_time
    if kept.details.get("system_identifier") == path.parent.name:
        size = int(kept.details["segment_bytes"])
        return segment_number(path.name, size) < int(kept.details["first_segment"])
    # Of data before or after an upgrade: what was complete before the copy was begun is of no use to any kept one.
    return _changed(path) < kept.copy.start_time


def _exists(layout: Layout, uid: str) -> bool:
    for path in layout.instances.glob("*/manifest.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            if json.loads(path.read_bytes())["spec"]["uid"] == uid:
                return True
    return False
