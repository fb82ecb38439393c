"""Copies as one file for people, their removal, and that of archived log; the same for every engine."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath

import structlog

from opsplane_server.errors import AlreadyExists, InvalidArgument, ResourceExhausted
from opsplane_server.instances.ports import Progress
from opsplane_server.instances.providers.local import copies
from opsplane_server.instances.providers.local.bulk import Part, Tally, in_thread, require_space, size_of
from opsplane_server.instances.providers.local.layout import Layout
from opsplane_server.instances.providers.local.locks import locked
from opsplane_server.instances.providers.local.packing import write_tar
from opsplane_server.instances.providers.local.postgres import archiving
from opsplane_server.storage.accounts import create_folder, sync_folder

log = structlog.get_logger(__name__)

_COPYING_PROGRAMS = ("pg_basebackup", "mariabackup", "mariadb-backup", "xtrabackup")
_MARK = "user.opsplane.copy"
_PART = re.compile(r"[A-Za-z0-9_@%+=:,.~ -]+")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


async def archive_copy(
    layout: Layout, location: str, path: str, packing: str, progress: Progress, *, overwrite: bool
) -> tuple[int, str]:
    """See `Provider.archive_copy`. In the archive each copy of the chain is a folder of its location's name."""
    target = export_path(layout, path)
    records = await asyncio.to_thread(copies.chain, layout, location)
    locations = [record.copy.location for record in records]
    async with copies.in_use(layout, locations):
        create_folder(target.parent)
        if target.is_dir():
            raise InvalidArgument.of("path", f"'{path}' is a folder")
        mark = f"{location} {packing}"
        # Named for what it will be: who comes again after a crash finds and replaces what was left.
        scratch = target.with_name(f".{hashlib.sha256(f'{mark} {target.name}'.encode()).hexdigest()[:24]}.part")
        lock = scratch.with_suffix(".lock")
        async with locked(lock):
            try:
                if target.exists() and not overwrite:
                    # Called again after it was broken off: this may be what it has written.
                    made = await asyncio.to_thread(_made_before, target, mark)
                    if made is None:
                        raise AlreadyExists(f"there is a file '{path}' already", metadata={"path": path})
                    return made
                folders = [layout.copy(name) for name in locations]
                made = await _pack(scratch, folders, packing, mark, progress)
                _publish(scratch, target, path, overwrite=overwrite)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                raise ResourceExhausted(f"no room for '{path}': {error.strerror}", reason="NO_SPACE") from error
            finally:
                scratch.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
    log.info("copy archived", location=location, path=path, bytes=made[0])
    return made


def export_path(layout: Layout, path: str) -> Path:
    """The file of `path` below the export folder. InvalidArgument for one that would leave it."""
    parts = PurePosixPath(path).parts
    if not parts or any(part in (".", "..") or part.startswith(".") or not _PART.fullmatch(part) for part in parts):
        raise InvalidArgument.of(
            "path", "must be a relative path of letters, digits, spaces and _@%+=:,.~- whose parts begin with no dot"
        )
    target = layout.exports.joinpath(*parts)
    if not target.parent.resolve().is_relative_to(layout.exports.resolve()):
        raise InvalidArgument.of("path", "leads out of the export folder")
    return target


def _entries(folder: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Folders too: PostgreSQL needs its empty ones."""
    yield folder, name
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path), f"{name}/{entry.name}")
        elif entry.is_file(follow_symlinks=False) and entry.name != "lock":
            yield Path(entry.path), f"{name}/{entry.name}"


async def _pack(scratch: Path, folders: list[Path], packing: str, mark: str, progress: Progress) -> tuple[int, str]:
    total = await asyncio.to_thread(lambda: sum(size_of(folder) for folder in folders))
    if packing == "TAR":
        require_space(scratch.parent, total, "the archive")
    tally = Tally(total)
    return await in_thread(
        lambda: _write(scratch, folders, packing, tally, mark), tally, Part(progress, "packing").tell
    )


def _write(scratch: Path, folders: list[Path], packing: str, tally: Tally, mark: str) -> tuple[int, str]:
    with open(scratch, "wb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as stream:
        entries = chain.from_iterable(_entries(folder, folder.name) for folder in folders)
        size, digest = write_tar(stream, entries, packing, tally)
        stream.flush()
        with contextlib.suppress(OSError):  # not every file system has attributes
            os.setxattr(stream.fileno(), _MARK, f"{mark} {digest}".encode())
        os.fsync(stream.fileno())
    return size, digest


def _made_before(target: Path, mark: str) -> tuple[int, str] | None:
    """Bytes and SHA-256 of an archive that this very call has written before, and nobody has changed since. Blocks."""
    with target.open("rb") as stream:
        try:
            noted = os.getxattr(stream.fileno(), _MARK).decode()
        except OSError:
            return None
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return (os.fstat(stream.fileno()).st_size, digest) if noted == f"{mark} {digest}" else None


def _publish(scratch: Path, target: Path, path: str, *, overwrite: bool) -> None:
    if overwrite:
        os.rename(scratch, target)
    else:
        try:
            os.link(scratch, target)  # unlike rename it never replaces a file that came meanwhile
        except FileExistsError:
            raise AlreadyExists(f"there is a file '{path}' already", metadata={"path": path}) from None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
    sync_folder(target.parent)


async def delete_copy(layout: Layout, location: str) -> None:
    """See `Provider.delete_copy`."""
    await copies.delete(layout, location, _COPYING_PROGRAMS)


async def delete_archive(layout: Layout, uid: str, keep_from: str) -> None:
    """See `Provider.delete_archive`; PostgreSQL alone has an archived log."""
    await asyncio.to_thread(archiving.delete, layout, uid, keep_from)
