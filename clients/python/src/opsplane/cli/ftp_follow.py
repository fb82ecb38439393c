"""Following transfers to their end, and telling what came of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import click
import grpc
from google.protobuf.duration_pb2 import Duration

from opsplane.cli.ftp_figures import ENDED, Progress, count, counts_text, ended_count, line_text, total_count
from opsplane.cli.ftp_views import View
from opsplane.cli.output import console, print_json
from opsplane.cli.session import Session, pages
from opsplane.client import Client
from opsplane.ftptransfer.v1 import ftptransfer_pb2, transfers_pb2

FAILED = 1
INTERVAL = timedelta(seconds=0.5)

_NAMES = 1000  # that one call follows
_TREES = 8  # whose files are shown one by one
_LISTED = 20
_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED)
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0
_GIVE_UP_SECONDS = 120.0


async def watch(
    client: Client, request: ftptransfer_pb2.WatchTransfersRequest, on_reconnect: Callable[[], None]
) -> AsyncIterator[ftptransfer_pb2.WatchTransfersResponse]:
    """FtpTransfer.WatchTransfers that survives the loss of its stream: it begins anew, with transfers as they are then.

    Raises AioRpcError when the server can not be reached for two minutes, or refuses.
    """
    loop = asyncio.get_running_loop()
    pause, heard = _FIRST_PAUSE, loop.time()
    while True:
        call = client.ftp_transfer.WatchTransfers(request)
        try:
            async for response in call:
                pause, heard = _FIRST_PAUSE, loop.time()
                yield response
            return
        except grpc.aio.AioRpcError as error:
            if error.code() not in _LOST or loop.time() - heard > _GIVE_UP_SECONDS:
                raise
        finally:
            call.cancel()
        on_reconnect()
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


async def follow(client: Client, names: Sequence[str], view: View, *, interval: timedelta = INTERVAL) -> None:
    """Shows the transfers of these names until all have ended, and the files of some trees as well."""
    trees: dict[str, asyncio.Task[None]] = {}

    async def follow_some(some: Sequence[str]) -> None:
        request = ftptransfer_pb2.WatchTransfersRequest(names=some, interval=duration(interval))
        async for response in watch(client, request, lambda: _say_lost(view)):
            view.show(response)
            for transfer in response.transfers if view.shows_files else ():
                known = trees.get(transfer.name)
                if transfer.state in ENDED:
                    if known is not None:
                        known.cancel()
                elif transfer.HasField("children") and known is None and len(trees) < _TREES:
                    trees[transfer.name] = asyncio.create_task(_follow_files(client, transfer.name, view))

    with view:
        try:
            await _together([follow_some(names[start : start + _NAMES]) for start in range(0, len(names), _NAMES)])
        finally:
            await _end(trees.values())


async def _follow_files(client: Client, tree: str, view: View) -> None:
    """Shows the files of a tree; without them the picture only has less in it."""
    request = ftptransfer_pb2.WatchTransfersRequest(filter=f'parent = "{tree}"', follow=True)
    with suppress(grpc.aio.AioRpcError):
        async for response in watch(client, request, lambda: None):
            view.show(response)


async def _together(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Does all at once; the first that fails ends the others, and its error is raised as it is."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def _end(tasks: Collection[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _say_lost(view: View) -> None:
    view.progress.under_way.clear()
    view.note("connection lost, reconnecting")


async def unless_left(work: Coroutine[Any, Any, None], said: str) -> None:
    """Does it; says something when Ctrl-C ends it."""
    try:
        await work
    except asyncio.CancelledError:
        click.echo(said, err=True)
        raise


async def report(
    session: Session,
    client: Client,
    progress: Progress,
    *,
    seconds: float,
    names: Mapping[str, str] | None = None,
) -> bool:
    """Prints what came of transfers that have ended, the files one by one when they are few; whether all is well.

    `names` are those to show instead of some places. With JSON it is one message: the transfers, files of trees that
    failed, and the counts.
    """
    counts = progress.counts
    files = await _files(client, list(progress.roots.values()), all_of_them=total_count(counts) <= _LISTED)
    good = not counts.failed and not counts.cancelled
    if session.as_json:
        shown = {transfer.name: transfer for transfer in (*progress.roots.values(), *files)}
        print_json(ftptransfer_pb2.WatchTransfersResponse(transfers=shown.values(), counts=counts))
        return good
    out = console()
    out.soft_wrap = True
    for transfer in files[:_LISTED]:
        out.print(line_text(transfer, names))
    rate = f" in {seconds:.1f} s" if seconds else ""
    out.print(counts_text(counts) + rate, style="green" if good else "bold red")
    bad = counts.failed + counts.cancelled
    if bad > _LISTED:
        click.echo(f"{bad:,} failed or were cancelled; `opsplane ftp list --state failed` lists them", err=True)
    return good


async def _files(
    client: Client, roots: Sequence[transfers_pb2.Transfer], *, all_of_them: bool
) -> list[transfers_pb2.Transfer]:
    """The files of these transfers, or those that did not succeed; of each tree the first of them."""
    found = []
    for root in roots:
        good = root.state == transfers_pb2.TRANSFER_STATE_SUCCEEDED
        if good and not all_of_them:
            continue
        own = count([root])
        if not root.HasField("children") or own.failed + own.cancelled > root.children.failed + root.children.cancelled:
            found.append(root)
        if root.HasField("children") and ended_count(root.children):
            states = [""] if all_of_them else [' AND state = "FAILED"', ' AND state = "CANCELLED"']
            for state in states:
                request = ftptransfer_pb2.ListTransfersRequest(filter=f'parent = "{root.name}"{state}')
                listed = await pages(
                    client.ftp_transfer.ListTransfers, request, ftptransfer_pb2.ListTransfersResponse, _LISTED
                )
                found += listed.transfers
    return found


def duration(time: timedelta) -> Duration:
    """As the API has it."""
    result = Duration()
    result.FromTimedelta(time)
    return result
