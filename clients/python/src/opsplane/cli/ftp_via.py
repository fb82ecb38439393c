"""Files of a machine that the server can not reach: they go through a local folder of the server (`--via`).

What is put there is called `opsplane-cli-...`, lies in the folder itself, so that no folders are left behind, and is
deleted when it has arrived.
"""

from __future__ import annotations

import asyncio
import glob
import os
import posixpath
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import grpc
from google.protobuf.empty_pb2 import Empty
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from opsplane.cli.ftp_places import Place, is_pattern, join, split_pattern
from opsplane.cli.ftp_tasks import Source, destination_of
from opsplane.cli.output import clean, one_line
from opsplane.cli.session import call, pages
from opsplane.client import Client, new_request_id
from opsplane.ftptransfer.v1 import files_pb2, transfers_pb2

_PIECE = 256 * 1024
_MOST_FILES = 100_000


@dataclass(frozen=True, slots=True)
class Item:
    """A file of this machine, its place in the folder between, and the one at the other end."""

    here: Path
    between: Place
    there: Place


def items_to_put(sources: Sequence[Source], destination: Place, via: str) -> list[Item]:
    """The files of this machine that the sources are."""
    found = []
    for source in sources:
        if not source.place.is_here:
            raise click.UsageError(f"--via is for files of this machine: {source.place}")
        target = destination_of(source, destination, many=len(sources) > 1)
        if source.selection == transfers_pb2.SELECTION_FILE:
            path = join(target.path, source.name) if target.path.endswith("/") else target.path
            found.append((Path(source.place.path), path))
        else:
            found += [(Path(folder, name), join(target.path, name)) for folder, name in _files_here(source)]
    return [
        Item(here, between, Place(destination.connection, path))
        for (here, path), between in zip(found, _between(via, len(found)), strict=True)
    ]


async def items_to_get(client: Client, sources: Sequence[Source], destination: Place, via: str) -> list[Item]:
    """The files on connections that the sources are, and where they go on this machine."""
    if not destination.is_here:
        raise click.UsageError(f"--via is for files of this machine: {destination}")
    found: list[tuple[str, Place]] = []
    for source in sources:
        target = destination_of(source, destination, many=len(sources) > 1).path
        if source.selection == transfers_pb2.SELECTION_FILE:
            found.append((join(target, source.name) if target.endswith("/") else target, source.place))
        else:
            folder, names = await _files_there(client, source)
            found += [(join(target, name), Place(source.place.connection, join(folder, name))) for name in names]
    return [
        Item(Path(here), between, there)
        for (here, there), between in zip(found, _between(via, len(found)), strict=True)
    ]


async def upload(client: Client, items: Sequence[Item]) -> None:
    """Sends all into the folder between; when that fails, nothing is left there."""
    done: list[Place] = []
    try:
        with _bar("sending", sum(item.here.stat().st_size for item in items)) as advance:
            for item in items:
                done.append(item.between)
                await _upload(client, item, advance)
    except BaseException:
        await remove(client, done)
        raise


async def download(client: Client, items: Sequence[Item]) -> None:
    """Fetches all from the folder between, each whole or not at all."""
    with _bar("fetching", None) as advance:
        for item in items:
            await _download(client, item, advance)


async def remove(client: Client, places: Sequence[Place]) -> None:
    """Deletes what lies between; what is not there is well."""
    for place in places:
        request = files_pb2.DeleteFileRequest(connection=place.connection, path=place.path, request_id=new_request_id())
        try:
            await call(client.ftp_transfer.DeleteFile, request, Empty)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                click.echo(f"{place} is left behind: {clean(error.details() or '')}", err=True)


async def _upload(client: Client, item: Item, advance: Any) -> None:
    def messages(stream: Any) -> AsyncIterator[files_pb2.UploadFileRequest]:
        async def made() -> AsyncIterator[files_pb2.UploadFileRequest]:
            size = os.fstat(stream.fileno()).st_size
            start = files_pb2.UploadStart(
                connection=item.between.connection,
                path=item.between.path,
                size_bytes=size,
                request_id=new_request_id(),
            )
            yield files_pb2.UploadFileRequest(start=start)
            while piece := await asyncio.to_thread(stream.read, _PIECE):
                yield files_pb2.UploadFileRequest(content=piece)
                advance(len(piece), item.here)

        return made()

    stream = await asyncio.to_thread(item.here.open, "rb")
    with stream:
        await cast(Any, client.ftp_transfer.UploadFile)(messages(stream))


async def _download(client: Client, item: Item, advance: Any) -> None:
    await asyncio.to_thread(item.here.parent.mkdir, parents=True, exist_ok=True)
    descriptor, temporary = await asyncio.to_thread(tempfile.mkstemp, dir=item.here.parent, prefix=".opsplane-")
    request = files_pb2.DownloadFileRequest(connection=item.between.connection, path=item.between.path)
    try:
        count, size = 0, -1
        with os.fdopen(descriptor, "wb") as stream:
            async for message in client.ftp_transfer.DownloadFile(request):
                if message.HasField("file"):
                    size = message.file.size_bytes
                await asyncio.to_thread(stream.write, message.content)
                count += len(message.content)
                advance(len(message.content), item.here)
            stream.flush()
            await asyncio.to_thread(os.fsync, descriptor)
        if count != size:
            raise click.ClickException(f"{item.here}: {count} bytes came instead of {size}")
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, item.here)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _files_here(source: Source) -> Iterator[tuple[str, str]]:
    """The files of a folder or pattern of this machine: the folder that they are in, and their path below it."""
    path = source.place.path
    if source.selection == transfers_pb2.SELECTION_GLOB:
        folder, pattern = split_pattern(path)
        for name in sorted(glob.glob(pattern, root_dir=folder or ".", recursive=True, include_hidden=True)):
            if os.path.isfile(os.path.join(folder, name)):
                yield folder, name
        return
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            if os.path.isfile(os.path.join(folder, name)):
                yield path, os.path.relpath(os.path.join(folder, name), path)


async def _files_there(client: Client, source: Source) -> tuple[str, list[str]]:
    """The folder of a tree or pattern on a connection, and the paths of the files below it."""
    path = source.place.path
    folder, pattern = split_pattern(path) if is_pattern(path) else (path, "")
    request = files_pb2.ListFilesRequest(
        connection=source.place.connection, path=folder, glob=pattern, recursive=not pattern
    )
    listed = await pages(client.ftp_transfer.ListFiles, request, files_pb2.ListFilesResponse, _MOST_FILES)
    if listed.next_page_token:
        raise click.UsageError(f"{source.place} has more than {_MOST_FILES:,} files: too many for --via")
    names = []
    for file in listed.files:
        name = file.path.removeprefix(folder).lstrip("/") if folder else file.path
        if file.kind == files_pb2.FILE_KIND_FILE and ".." not in name.split("/") and name:
            names.append(name)
        elif file.kind != files_pb2.FILE_KIND_FOLDER:
            click.echo(f"left out, because it is no plain file: {one_line(file.path, 200)}", err=True)
    return folder, names


def _between(via: str, count: int) -> list[Place]:
    token = new_request_id()[:13]
    return [Place(via, f"opsplane-cli-{token}-{number}") for number in range(count)]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Any]:
    """A bar on standard error where that is a terminal; gives what to call with bytes and the file."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=total)

        def advance(count: int, file: Path) -> None:
            progress.update(task, advance=count, description=f"{what} {one_line(posixpath.basename(file), 40)}")

        yield advance
