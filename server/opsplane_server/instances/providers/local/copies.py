"""Copies of instances' data as folders: what is known of each, which builds on which, who works on it.

COPIES/COPY/copy.json    what it is; written last, so that a copy without it is half-made
           /lock         held by whoever makes or removes it, shared by whoever reads it
           /data         the engine's own
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import psutil
import structlog
from pydantic import TypeAdapter, ValidationError

from opsplane_server.errors import DataLoss, InvalidArgument, NotFound
from opsplane_server.instances.model import Copy
from opsplane_server.instances.providers.local import processes
from opsplane_server.instances.providers.local.layout import Layout
from opsplane_server.instances.providers.local.locks import locked
from opsplane_server.instances.providers.local.manifest import write_durably
from opsplane_server.storage.accounts import Account, choose_account, create_folder, private_folder, sync_folder

log = structlog.get_logger(__name__)

_FORMAT = 1
_LOCATION = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_POLL_SECONDS = 0.05
# How long what is being removed may come again.
_WRITING_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class CopyRecord:
    """What is known of a copy. instance, uid: what it is a copy of. details: what the engine needs to restore it."""

    copy: Copy
    instance: str
    uid: str
    details: Mapping[str, str] = field(default_factory=dict)


_RECORD = TypeAdapter(CopyRecord)


@dataclass(frozen=True, slots=True)
class CopyFolder:
    """The files of a copy."""

    path: Path
    account: Account

    @property
    def data(self) -> Path:
        """The engine's own."""
        return self.path / "data"

    @property
    def record(self) -> Path:
        """Its CopyRecord, when it is whole."""
        return self.path / "copy.json"


def account_of(layout: Layout, location: str) -> Account:
    """The account that owns the files of a copy."""
    return choose_account(None, folder_of(layout, location))


def folder_of(layout: Layout, location: str) -> Path:
    """The folder of a copy, which may be missing. InvalidArgument for what can not be a location."""
    if not _LOCATION.fullmatch(location):
        raise InvalidArgument.of("location", f"'{location}' is no location of a copy")
    return layout.copy(location)


def load(layout: Layout, location: str) -> CopyRecord:
    """NotFound when there is none or it is half-made; DataLoss."""
    path = folder_of(layout, location) / "copy.json"
    try:
        return _read(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise NotFound(
            f"there is no copy at '{location}'", reason="COPY_NOT_FOUND", metadata={"location": location}
        ) from None
    except (ValueError, ValidationError) as error:
        raise DataLoss(f"{path} is damaged: {error}", reason="COPY_DAMAGED") from error


@lru_cache(maxsize=4096)
def _read(path: Path, _changed_ns: int) -> CopyRecord:
    """Records never change, and every look at an instance's archived log asks for all of its copies."""
    return _RECORD.validate_python(json.loads(path.read_bytes()))


def save(folder: CopyFolder, record: CopyRecord) -> None:
    """Makes a copy whole; its files are durable already."""
    content = {"format": _FORMAT} | _RECORD.dump_python(record, mode="json")
    write_durably(folder.record, json.dumps(content, indent=1).encode() + b"\n")
    sync_folder(folder.path.parent)


def chain(layout: Layout, location: str) -> list[CopyRecord]:
    """A copy with all that it builds on, the full one first. NotFound; DataLoss when one of those is gone."""
    records = [load(layout, location)]
    while base := records[0].copy.base:
        if any(record.copy.location == base for record in records):
            raise DataLoss(f"the copy at '{location}' builds on itself", reason="COPY_DAMAGED")
        try:
            records.insert(0, load(layout, base))
        except NotFound:
            raise DataLoss(
                f"'{base}', which the copy at '{location}' builds on, is gone", reason="COPY_DAMAGED"
            ) from None
    return records


def of_instance(layout: Layout, uid: str) -> list[CopyRecord]:
    """All copies of an instance, oldest first. What can not be read is left out. Blocks for a moment."""
    records = []
    for path in layout.copies.glob("*/copy.json"):
        with contextlib.suppress(NotFound, DataLoss, InvalidArgument):
            record = load(layout, path.parent.name)
            if record.uid == uid:
                records.append(record)
    return sorted(records, key=lambda record: record.copy.cut_time)


@asynccontextmanager
async def being_made(
    layout: Layout, copy_id: str, account: Account, programs: Collection[str]
) -> AsyncIterator[CopyFolder]:
    """Holds the folder of a new copy, and removes it when the body fails or is cancelled.

    Unless the copy is whole already, the folder is empty: what one of `programs` that outlived a killed process of
    ours is still writing there has ended.
    """
    path = folder_of(layout, copy_id)
    create_folder(layout.copies)
    folder = CopyFolder(path, account)
    async with AsyncExitStack() as held:
        while True:
            private_folder(path, account)
            try:
                await held.enter_async_context(locked(path / "lock"))
                break
            except FileNotFoundError:
                continue  # whoever had it before has removed it all
        if folder.record.exists():
            yield folder
            return
        await _end_programs(path, programs)
        await asyncio.to_thread(_clear, path)
        try:
            yield folder
        except BaseException:
            await asyncio.shield(asyncio.to_thread(_remove, path))
            raise


@asynccontextmanager
async def in_use(layout: Layout, locations: Collection[str]) -> AsyncIterator[None]:
    """Keeps these copies from being removed. NotFound."""
    async with AsyncExitStack() as held:
        for location in locations:
            path = folder_of(layout, location) / "lock"
            while (descriptor := _try_shared(path, location)) is None:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_SECONDS)
            held.callback(os.close, descriptor)
        yield


async def delete(layout: Layout, location: str, programs: Collection[str]) -> None:
    """Removes a copy, whole or half-made, when nobody reads it any more. Harmless when there is none."""
    path = folder_of(layout, location)
    with contextlib.suppress(FileNotFoundError):
        async with locked(path / "lock"):
            await _end_programs(path, programs)
            await asyncio.to_thread(_remove, path)
            log.info("copy removed", location=location)


def _try_shared(path: Path, location: str) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(
            f"there is no copy at '{location}'", reason="COPY_NOT_FOUND", metadata={"location": location}
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    if os.fstat(descriptor).st_nlink == 0:  # removed meanwhile: the next attempt tells
        os.close(descriptor)
        return None
    return descriptor


async def _end_programs(path: Path, programs: Collection[str]) -> None:
    """By name too: a person may be looking at these files with a program of their own."""
    found = await asyncio.to_thread(processes.working_on, path)
    await processes.kill(process for process in found if _program(process) in programs)


def _program(process: psutil.Process) -> str:
    try:
        return Path(process.cmdline()[0]).name
    except (psutil.Error, IndexError):
        return ""


def _clear(path: Path) -> None:
    """Empties a folder of a copy. A server that a killed process of ours had asked for the copy may be writing there
    still, until it finds no folder any more.
    """
    deadline = time.monotonic() + _WRITING_SECONDS
    while True:
        try:
            _clear_once(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)


def _clear_once(path: Path) -> None:
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != "lock":
                os.unlink(entry.path)


def _remove(path: Path) -> None:
    """The record first: what is left after a crash is a half-made copy."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path / "copy.json")
        sync_folder(path)
    _clear(path)
    shutil.rmtree(path)
