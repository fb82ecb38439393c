"""Finds the files of folders and patterns, and makes transfers of globs and trees into one for each file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from opsplane_server.ftptransfer.beneath import is_usable, refused
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, TransferFailure
from opsplane_server.ftptransfer.local_files import LocalFiles
from opsplane_server.ftptransfer.model import Child, FileKind, RemoteFile, Selection, Task
from opsplane_server.ftptransfer.patterns import Pattern, States, split_pattern
from opsplane_server.ftptransfer.temporary import is_temporary

_CHUNK: Final = 500
_MOST_FOLDERS: Final = 200_000
_DEEPEST: Final = 200


class Listing(Protocol):
    """Where files are looked for; a RemoteSession is one."""

    async def list(self, path: str) -> list[RemoteFile]:
        """The entries of a folder."""
        ...

    async def stat(self, path: str) -> RemoteFile:
        """A file or folder, after links."""
        ...


class LocalListing:
    """A local folder as a Listing: reads in threads."""

    def __init__(self, files: LocalFiles) -> None:
        self._files = files

    async def list(self, path: str) -> list[RemoteFile]:
        """The entries of a folder."""
        return await asyncio.to_thread(self._files.list, path)

    async def stat(self, path: str) -> RemoteFile:
        """A file or folder, after links."""
        return await asyncio.to_thread(self._files.stat, path)


@dataclass(frozen=True, slots=True)
class Found:
    """An entry, and its path below the folder in which was looked."""

    path: str
    file: RemoteFile


async def walk(listing: Listing, folder: str, *, glob: str = "", recursive: bool = False) -> AsyncIterator[Found]:
    """The entries of a folder, each folder's by name; those that match, and with `recursive` those below as well.

    Links to folders are not followed, so that it ends. With a glob it goes as deep as that says.
    """
    pattern = Pattern(glob) if glob else None
    start = pattern.start if pattern is not None else frozenset()
    ahead: list[tuple[str, States]] = [("", start)]
    folders = 0
    while ahead:
        below, states = ahead.pop()
        folders += 1
        if folders > _MOST_FOLDERS or below.count("/") > _DEEPEST:
            raise TransferFailure(
                ErrorReason.UNSPECIFIED, f"{folder} has too many folders", code=ErrorCode.IO_ERROR, retryable=False
            )
        deeper = []
        for file in sorted(await listing.list(join(folder, below)), key=lambda file: file.name):
            path = join(below, file.name)
            reached = pattern.step(states, file.name) if pattern is not None else states
            if pattern is None or pattern.matches(reached):
                yield Found(path, file)
            if file.kind is FileKind.FOLDER and (recursive if pattern is None else pattern.leads_on(reached)):
                deeper.append((path, reached))
        ahead += reversed(deeper)


async def expand(task: Task, listing: Listing, add: Callable[[Sequence[Child]], Awaitable[None]]) -> None:
    """Gives `add` all files of the glob or tree, in chunks. A link to a file counts as that file.

    A name that can not be transferred fails the task, rather than to leave the file out in silence.
    """
    if task.selection is Selection.GLOB:
        folder, glob = split_pattern(task.source.path)
    else:
        folder, glob = task.source.path, ""
    children: list[Child] = []
    async for found in walk(listing, folder, glob=glob, recursive=True):
        if not is_usable(found.file.name):
            raise refused(f"{found.path!r} can not be transferred, because of its name")
        if found.file.kind is FileKind.FOLDER or is_temporary(found.file.name):
            continue
        source = join(folder, found.path)
        file = found.file if found.file.kind is FileKind.FILE else await _resolved(listing, source)
        if file is None:
            continue
        children.append(Child(source, join(task.destination.path, found.path), file.size))
        if len(children) == _CHUNK:
            await add(children)
            children = []
    if children:
        await add(children)


def join(folder: str, path: str) -> str:
    """A path below a folder; either may be empty."""
    if not folder or not path:
        return folder or path
    return f"{folder}{path}" if folder.endswith("/") else f"{folder}/{path}"


async def _resolved(listing: Listing, path: str) -> RemoteFile | None:
    """The file that a link or an entry of unknown kind is; None when it is none."""
    try:
        file = await listing.stat(path)
    except TransferFailure as failure:
        if failure.code in (ErrorCode.FILE_NOT_FOUND, ErrorCode.INVALID_CONFIG):
            return None
        raise
    return file if file.kind is FileKind.FILE else None
