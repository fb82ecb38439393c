"""`opsplane ftp`: files between FTP servers and local folders of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import click
from google.protobuf.message import Message
from rich.text import Text

from opsplane.cli.durations import DURATION
from opsplane.cli.ftp_connections import connections
from opsplane.cli.ftp_figures import (
    Progress,
    counts_text,
    error_text,
    place_text,
    size_text,
    state_name,
    state_text,
)
from opsplane.cli.ftp_follow import FAILED, INTERVAL, duration, follow, report, unless_left, watch
from opsplane.cli.ftp_places import PLACE, TRANSFER, Place, is_pattern, on_connection, split_pattern
from opsplane.cli.ftp_send import get, put, sync
from opsplane.cli.ftp_stats import stats
from opsplane.cli.ftp_views import choose_view
from opsplane.cli.output import clean, console, local_time, more, one_line, print_json, print_json_line, short, table
from opsplane.cli.session import Session, call, pages, pass_session
from opsplane.client import Client, new_request_id
from opsplane.ftptransfer.v1 import files_pb2, ftptransfer_pb2, transfers_pb2

_STATES = ("pending", "running", "waiting", "succeeded", "failed", "cancelled")
_MOST = 100_000
_AT_ONCE = 20

_KINDS = {
    files_pb2.FILE_KIND_FILE: "file",
    files_pb2.FILE_KIND_FOLDER: "folder",
    files_pb2.FILE_KIND_LINK: "link",
}


@click.group()
def ftp() -> None:
    """Move files between FTP servers and local folders of the server.

    \b
    A first transfer:
      opsplane ftp connections create nas --host nas.example.com --user backup
      opsplane ftp connections create outgoing --folder /srv/outgoing
      opsplane ftp put outgoing:/report.csv nas:/in/
      opsplane ftp ls nas:/in
    """


ftp.add_command(put)
ftp.add_command(get)
ftp.add_command(sync)
ftp.add_command(connections)
ftp.add_command(stats)


@ftp.command("ls")
@click.argument("place", metavar="CONNECTION:PATH", type=PLACE, callback=on_connection)
@click.option("--recursive", "-R", is_flag=True, help="Also what is in the folders below.")
@click.option("--json", "as_json", is_flag=True, help="The same as `opsplane -o json ftp ls`.")
@click.option("--limit", type=click.IntRange(1, _MOST), default=1000, show_default=True, help="Most entries to list.")
@pass_session
def list_files(session: Session, place: Place, recursive: bool, as_json: bool, limit: int) -> None:
    """List a folder, or what matches a pattern.

    \b
    Examples:
      opsplane ftp ls nas:
      opsplane ftp ls "nas:/out/2026/**/*.gz"
      opsplane -o json ftp ls nas:/out | jq -r '.files[].path'
    """
    folder, glob = split_pattern(place.path) if is_pattern(place.path) else (place.path, "")
    request = files_pb2.ListFilesRequest(
        connection=place.connection, path=folder, glob=glob, recursive=recursive and not glob
    )
    found = session.run(
        lambda client: pages(client.ftp_transfer.ListFiles, request, files_pb2.ListFilesResponse, limit)
    )
    if session.as_json or as_json:
        print_json(found)
        return
    rows = [
        (
            _KINDS.get(file.kind, "?"),
            f"{file.size_bytes:,}" if file.kind == files_pb2.FILE_KIND_FILE else "",
            local_time(file.modify_time),
            clean(file.path) + ("/" if file.kind == files_pb2.FILE_KIND_FOLDER else ""),
        )
        for file in found.files
    ]
    console().print(table(("kind", ">bytes", "modified", "path"), rows))
    more(found.next_page_token)


@ftp.command("watch")
@click.argument("names", metavar="[TRANSFER...]", type=TRANSFER, nargs=-1)
@click.option("--filter", "filter_", default="", help="Instead of names, for example 'destination.connection=nas'.")
@click.option("--group", default="", help="Transfers of this group.")
@click.option("--follow", "-f", is_flag=True, help="Go on when all have ended, with new ones as they come.")
@click.option("--interval", type=DURATION, default="1s", show_default=True, help="Time between updates.")
@pass_session
def watch_transfers(
    session: Session, names: tuple[str, ...], filter_: str, group: str, follow: bool, interval: timedelta
) -> None:
    """Show transfers until they have ended: those that are named, those that match, or all.

    Elsewhere than in a terminal each change of a state is a line; with -o json each update. Ctrl-C leaves, and the
    transfers go on. The exit status is 1 when one of them failed, without names or options when one does so meanwhile.

    \b
    Examples:
      opsplane ftp watch
      opsplane ftp watch --group nightly
      opsplane -o json ftp watch --follow | jq -r '.transfers[]? | [.name, .state] | @tsv'
    """
    if names and (filter_ or group):
        raise click.UsageError("give names, or --filter and --group")
    if names and not follow:
        _watch_named(session, list(dict.fromkeys(names)), interval)
        return
    request = ftptransfer_pb2.WatchTransfersRequest(
        names=list(dict.fromkeys(names)), filter=_filter(filter_, group), follow=follow, interval=duration(interval)
    )
    progress = Progress()
    seen: set[int] = set()

    async def work(client: Client) -> None:
        view = choose_view(session, progress, stream=True)

        async def show() -> None:
            with view:
                async for response in watch(client, request, lambda: view.note("connection lost, reconnecting")):
                    view.show(response)
                    seen.update(transfer.state for transfer in response.transfers)

        await unless_left(show(), "\nthe transfers go on")

    session.run(work)
    if not session.as_json:
        click.echo(counts_text(progress.counts))
    # The counts of all transfers tell of failures of long ago.
    if transfers_pb2.TRANSFER_STATE_FAILED in seen or (request.filter and progress.counts.failed):
        raise click.exceptions.Exit(FAILED)


def _watch_named(session: Session, names: Sequence[str], interval: timedelta) -> None:
    """Follows them to their end, trees with their files, as `put` does."""
    progress = Progress(names)

    async def work(client: Client) -> bool:
        view = choose_view(session, progress, stream=True)
        await unless_left(follow(client, names, view, interval=interval), "\nthe transfers go on")
        if session.as_json:
            return not (progress.counts.failed or progress.counts.cancelled)
        return await report(session, client, progress, seconds=0.0)

    if not session.run(work):
        raise click.exceptions.Exit(FAILED)


@ftp.command("list")
@click.option("--filter", "filter_", default="", help="Restrict them, for example 'error.code=FILE_NOT_FOUND'.")
@click.option("--group", default="", help="Only those of this group.")
@click.option("--state", type=click.Choice(_STATES), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(1, _MOST), default=50, show_default=True, help="Most of them to list.")
@pass_session
def list_transfers(session: Session, filter_: str, group: str, state: str | None, limit: int) -> None:
    """List transfers, newest first. Those that failed are the dead letters.

    \b
    Examples:
      opsplane ftp list --state failed
      opsplane ftp list --group nightly --filter 'create_time>="2026-11-21T00:00:00Z"'
    """
    request = ftptransfer_pb2.ListTransfersRequest(filter=_filter(filter_, group, state))
    found = session.run(lambda client: _listed(client, request.filter, limit))
    if session.as_json:
        print_json(found)
        return
    rows = [
        (
            short(transfer.name),
            state_text(transfer),
            one_line(place_text(transfer.source), 60),
            one_line(place_text(transfer.destination), 60),
            size_text(transfer.size_bytes) if transfer.HasField("size_bytes") else "",
            one_line(transfer.group, 30),
            local_time(transfer.create_time),
            one_line(error_text(transfer.error), 60),
        )
        for transfer in found.transfers
    ]
    columns = ("transfer", "state", "source", "destination", ">size", "group", "created", "failure")
    console().print(table(columns, rows))
    more(found.next_page_token)


@ftp.command("show")
@click.argument("name", metavar="TRANSFER", type=TRANSFER)
@pass_session
def show_transfer(session: Session, name: str) -> None:
    """Show a transfer.

    \b
    Example:
      opsplane ftp show t-0190a1b2
    """
    request = ftptransfer_pb2.GetTransferRequest(name=name)
    found = session.run(lambda client: call(client.ftp_transfer.GetTransfer, request, transfers_pb2.Transfer))
    if session.as_json:
        print_json(found)
        return
    facts: list[tuple[str, str | Text]] = [
        ("state", state_text(found)),
        ("source", place_text(found.source)),
        ("destination", place_text(found.destination)),
        ("selection", transfers_pb2.Selection.Name(found.selection).removeprefix("SELECTION_").lower()),
        ("priority", transfers_pb2.Priority.Name(found.priority).removeprefix("PRIORITY_").lower()),
        ("group", clean(found.group)),
        ("task id", clean(found.task_id)),
        ("parent", short(found.parent)),
        ("files", counts_text(found.children) if found.HasField("children") else ""),
        ("size", f"{found.size_bytes:,} bytes" if found.HasField("size_bytes") else ""),
        ("arrived", f"{found.bytes_transferred:,} bytes"),
        ("attempts", f"{found.attempt_count}"),
        ("next attempt", local_time(found.next_attempt_time)),
        ("created", local_time(found.create_time)),
        ("started", local_time(found.start_time)),
        ("ended", local_time(found.end_time)),
        ("failure", Text(error_text(found.error), style="red")),
    ]
    overview = table(("", ""), [(name, value) for name, value in facts if str(value)], title=found.name)
    overview.show_header = False
    console().print(overview)


@ftp.command("retry")
@click.argument("names", metavar="[TRANSFER...]", type=TRANSFER, nargs=-1)
@click.option("--filter", "filter_", default="", help="Instead of names: those that failed and match.")
@click.option("--group", default="", help="Instead of names: those of this group that failed.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Show them until all have ended.")
@pass_session
def retry(session: Session, names: tuple[str, ...], filter_: str, group: str, wait: bool) -> None:
    """Begin transfers anew that failed or were cancelled; of a tree, the files that did not arrive.

    \b
    Examples:
      opsplane ftp retry t-0190a1b2
      opsplane ftp retry --group nightly
      opsplane ftp retry --filter 'error.code=CONNECTION_ERROR' --no-wait
    """
    _require_which(names, filter_, group)

    async def work(client: Client) -> bool:
        async def again(name: str) -> Message:
            request = ftptransfer_pb2.RetryTransferRequest(name=name, request_id=new_request_id())
            return await call(client.ftp_transfer.RetryTransfer, request, transfers_pb2.Transfer)

        wanted = list(names) or await _names(client, _filter(filter_, group, "failed"))
        await _each(session, wanted, again, tell=not wait)
        if not wait or not wanted:
            return True
        progress = Progress(wanted)
        began = time.monotonic()
        said = "\nthe transfers go on; `opsplane ftp watch` shows them again"
        await unless_left(follow(client, wanted, choose_view(session, progress), interval=INTERVAL), said)
        return await report(session, client, progress, seconds=time.monotonic() - began)

    if not session.run(work):
        raise click.exceptions.Exit(FAILED)


@ftp.command("cancel")
@click.argument("names", metavar="[TRANSFER...]", type=TRANSFER, nargs=-1)
@click.option("--filter", "filter_", default="", help="Instead of names: those that have not ended and match.")
@click.option("--group", default="", help="Instead of names: those of this group that have not ended.")
@pass_session
def cancel(session: Session, names: tuple[str, ...], filter_: str, group: str) -> None:
    """End transfers before their time; of a tree, all files that have not arrived. What had arrived in part is removed.

    \b
    Examples:
      opsplane ftp cancel t-0190a1b2
      opsplane ftp cancel --group nightly
    """
    _require_which(names, filter_, group)

    async def work(client: Client) -> None:
        async def end(name: str) -> Message:
            request = ftptransfer_pb2.CancelTransferRequest(name=name, request_id=new_request_id())
            return await call(client.ftp_transfer.CancelTransfer, request, transfers_pb2.Transfer)

        active = " AND ".join(f"state != {state}" for state in ("SUCCEEDED", "FAILED", "CANCELLED"))
        wanted = list(names) or await _names(client, f"{_filter(filter_, group)} AND {active}")
        await _each(session, wanted, end, tell=True)

    session.run(work)


async def _each(
    session: Session, names: Sequence[str], change: Callable[[str], Awaitable[Message]], *, tell: bool
) -> None:
    """Changes all, some at a time, and tells what they are then; the first failure ends it."""
    if not names:
        click.echo("there are none", err=True)
    for start in range(0, len(names), _AT_ONCE):
        for changed in await asyncio.gather(*(change(name) for name in names[start : start + _AT_ONCE])):
            assert isinstance(changed, transfers_pb2.Transfer)
            if tell and session.as_json:
                print_json_line(changed)
            elif tell:
                click.echo(f"{changed.name} {state_name(changed)}")


async def _names(client: Client, filter_: str) -> list[str]:
    """The transfers that match, without those that are part of others of them."""
    found = (await _listed(client, filter_, _MOST)).transfers
    names = {transfer.name for transfer in found}
    return [transfer.name for transfer in found if transfer.parent not in names]


async def _listed(client: Client, filter_: str, limit: int) -> ftptransfer_pb2.ListTransfersResponse:
    request = ftptransfer_pb2.ListTransfersRequest(filter=filter_)
    return await pages(client.ftp_transfer.ListTransfers, request, ftptransfer_pb2.ListTransfersResponse, limit)


def _require_which(names: Sequence[str], filter_: str, group: str) -> None:
    if bool(names) == bool(filter_ or group):
        raise click.UsageError("give either names, or --filter or --group")


def _filter(filter_: str, group: str, state: str | None = None) -> str:
    """The filter of the options; the group is one word, so that it needs no escapes."""
    parts = [filter_, f'group = "{group}"' if group else "", f"state = {state.upper()}" if state else ""]
    return " AND ".join(part for part in parts if part)
