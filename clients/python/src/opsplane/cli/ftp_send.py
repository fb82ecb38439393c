"""`opsplane ftp put`, `get` and `sync`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import click

from opsplane.cli import ftp_via
from opsplane.cli.ftp_figures import Progress, error_text, place_text
from opsplane.cli.ftp_follow import FAILED, follow, report, unless_left
from opsplane.cli.ftp_places import CONNECTION, PLACE, Place, on_connection, resolve
from opsplane.cli.ftp_tasks import (
    Source,
    TaskOptions,
    build,
    destination_of,
    existing_option,
    source_of,
    submit,
    task_options,
)
from opsplane.cli.ftp_views import choose_view
from opsplane.cli.output import clean, print_json, short
from opsplane.cli.session import Session, pass_session
from opsplane.client import Client, new_request_id
from opsplane.ftptransfer.v1 import ftptransfer_pb2, transfers_pb2

Command = TypeVar("Command", bound=Callable[..., Any])


def _file_options(command: Command) -> Command:
    for option in reversed(
        (
            click.option("--recursive", "-r", is_flag=True, help="Whole folders, with all that is below them."),
            existing_option,
            click.option("--sha256", default="", metavar="HEX", help="SHA-256 that the one file must have."),
            click.option(
                "--via",
                type=CONNECTION,
                metavar="CONNECTION",
                help="Local folder of the server through which files of this machine go, where it has not these files.",
            ),
            task_options,
        )
    ):
        command = option(command)
    return command


@click.command()
@click.argument("sources", metavar="LOCAL...", type=PLACE, nargs=-1, required=True)
@click.argument("destination", metavar="CONNECTION:PATH", type=PLACE, callback=on_connection)
@_file_options
@pass_session
def put(
    session: Session,
    /,
    sources: tuple[Place, ...],
    destination: Place,
    recursive: bool,
    sha256: str,
    via: str | None,
    wait: bool,
    **options: Any,
) -> None:
    """Bring files to an FTP server.

    LOCAL is CONNECTION:PATH of a local folder of the server, or a path of this machine: one that is in such a folder,
    when the server runs here too, or any with --via. A PATH that ends with "/" is a folder, in which files and folders
    keep their names; otherwise it is the new name of the file, or the folder for what is in a folder.

    It shows the transfers until all have ended; the exit status is 1 when one failed. Ctrl-C leaves, and the transfers
    go on.

    \b
    Examples:
      opsplane ftp put report.csv nas:/in/
      opsplane ftp put "outgoing:2026/*.csv" nas:/in --priority high
      opsplane ftp put -r ./site nas:/www --existing skip-same
      opsplane ftp put report.csv nas:/in/ --via outgoing
    """
    task = _options(options, sha256=sha256)
    found = [source_of(source, recursive=recursive) for source in sources]
    _check_sha256(found, sha256)
    if via is None:
        session.run(lambda client: _send(session, client, found, destination, task, wait=wait))
        return
    _check_via(wait, task, existing=("skip-same",))
    items = ftp_via.items_to_put(found, destination, via)
    if not items:
        raise click.ClickException("nothing was found")

    async def work(client: Client) -> None:
        await ftp_via.upload(client, items)
        transfers = [_file(item.between, item.there, task) for item in items]
        run = _Run(session, names={str(item.between): str(item.here) for item in items})
        try:
            await run.submit(client, transfers)
        except BaseException:
            if not run.names_taken:
                await ftp_via.remove(client, [item.between for item in items])
            raise
        await run.wait(client, also=f"their copies stay in {short(via)}")
        kept = run.places(succeeded=False)
        await ftp_via.remove(client, [item.between for item in items if str(item.between) not in kept])
        if kept:
            click.echo(f"what did not arrive stays in {short(via)}, for `opsplane ftp retry`", err=True)
        await run.end(client)

    session.run(work)


@click.command()
@click.argument("sources", metavar="CONNECTION:PATH...", type=PLACE, nargs=-1, required=True, callback=on_connection)
@click.argument("destination", metavar="LOCAL", type=PLACE)
@_file_options
@pass_session
def get(
    session: Session,
    /,
    sources: tuple[Place, ...],
    destination: Place,
    recursive: bool,
    sha256: str,
    via: str | None,
    wait: bool,
    **options: Any,
) -> None:
    """Fetch files from an FTP server.

    PATH may be a pattern, in quotes: * and ? match within a name, ** any number of folders. LOCAL is CONNECTION:PATH
    of a local folder of the server, or a path of this machine: one that is in such a folder, when the server runs here
    too, or any with --via. One that ends with "/" is a folder, in which files and folders keep their names.

    It shows the transfers until all have ended; the exit status is 1 when one failed. Ctrl-C leaves, and the transfers
    go on.

    \b
    Examples:
      opsplane ftp get nas:/out/report.csv .
      opsplane ftp get "nas:/out/2026/**/*.gz" incoming:/2026
      opsplane ftp get -r nas:/www ./www
      opsplane ftp get nas:/out/report.csv . --via incoming
    """
    task = _options(options, sha256=sha256)
    found = [source_of(source, recursive=recursive) for source in sources]
    _check_sha256(found, sha256)
    if via is None:
        session.run(lambda client: _send(session, client, found, destination, task, wait=wait))
        return
    _check_via(wait, task, existing=("skip-same", "skip", "fail"))

    async def work(client: Client) -> None:
        items = await ftp_via.items_to_get(client, found, destination, via)
        if not items:
            raise click.ClickException("nothing was found")
        run = _Run(session, names={str(item.between): str(item.here) for item in items})
        await run.submit(client, [_file(item.there, item.between, task) for item in items])
        await run.wait(client, also=f"they stay in {short(via)}")
        good = run.places(succeeded=True)
        arrived = [item for item in items if str(item.between) in good]
        try:
            await ftp_via.download(client, arrived)
        finally:
            await ftp_via.remove(client, [item.between for item in arrived])
        await run.end(client)

    session.run(work)


@click.command()
@click.argument("source", metavar="SRC", type=PLACE)
@click.argument("destination", metavar="DST", type=PLACE)
@task_options
@pass_session
def sync(session: Session, /, source: Place, destination: Place, wait: bool, **options: Any) -> None:
    """Bring what is new or changed in a folder, and below it, to another one.

    Files of the same size that are not older are left. Nothing is deleted. Both are CONNECTION:PATH; the local one may
    be a path of this machine, see put.

    \b
    Examples:
      opsplane ftp sync outgoing:/ nas:/in
      opsplane ftp sync nas:/out ./incoming
    """
    task = _options(options, existing="skip-same")
    if source_of(source, recursive=True).selection != transfers_pb2.SELECTION_TREE:
        raise click.UsageError(f"{source} is no folder")
    tree = Source(source, transfers_pb2.SELECTION_TREE, "")
    session.run(lambda client: _send(session, client, [tree], destination, task, wait=wait))


async def _send(
    session: Session, client: Client, sources: Sequence[Source], destination: Place, task: TaskOptions, *, wait: bool
) -> None:
    targets = [destination_of(source, destination, many=len(sources) > 1) for source in sources]
    ends = await resolve(client, [*(source.place for source in sources), *targets])
    transfers = [
        build(replace(source, place=start), end, task)
        for source, start, end in zip(sources, ends[: len(sources)], ends[len(sources) :], strict=True)
    ]
    run = _Run(session)
    await run.submit(client, transfers)
    if not wait:
        run.tell()
        return
    await run.wait(client)
    await run.end(client)


@dataclass(slots=True)
class _Run:
    """Transfers of one command, from their submission to the exit status. `names` are those to show for places."""

    session: Session
    names: Mapping[str, str] | None = None
    answer: ftptransfer_pb2.SubmitTransfersResponse | None = None
    progress: Progress | None = None
    group: str = ""
    seconds: float = 0.0

    @property
    def names_taken(self) -> bool:
        """Whether the server has some of them."""
        return self.answer is not None and bool(self.answer.names)

    async def submit(self, client: Client, transfers: Sequence[transfers_pb2.Transfer]) -> None:
        """Submits them; several get a group, so that they can be found together."""
        self.group = transfers[0].group or (f"cli-{new_request_id()[:8]}" if len(transfers) > 1 else "")
        for transfer in transfers:
            transfer.group = self.group
        submitting = asyncio.ensure_future(submit(client, transfers))
        try:
            self.answer = await asyncio.shield(submitting)
        except asyncio.CancelledError:
            # The server may have taken them already: who leaves now is told of it.
            self.answer = await submitting
            if self.answer.names:
                click.echo(self.how_to_go_on, err=True)
            raise
        for rejected in self.answer.rejected_transfers:
            source = place_text(transfers[rejected.index].source)
            click.echo(f"{source} was refused: {rejected.field}: {error_text(rejected.error)}", err=True)
        if not self.answer.names:
            raise click.exceptions.Exit(FAILED)

    @property
    def how_to_watch(self) -> str:
        """The command that shows them."""
        assert self.answer is not None
        if len(self.answer.names) == 1:
            return f"opsplane ftp watch {short(self.answer.names[0])}"
        return f"opsplane ftp watch --group {self.group}"

    @property
    def how_to_go_on(self) -> str:
        """What is said to those who leave."""
        return f"\nthe transfers go on; `{self.how_to_watch}` shows them again"

    def tell(self) -> None:
        """Prints that they were submitted."""
        answer = self.answer
        assert answer is not None
        if self.session.as_json:
            print_json(answer)
        else:
            for name in answer.names:
                click.echo(name)
            click.echo(f"`{self.how_to_watch}` shows them", err=True)
        if answer.rejected_count:
            raise click.exceptions.Exit(FAILED)

    async def wait(self, client: Client, *, also: str = "") -> None:
        """Shows them until all have ended."""
        assert self.answer is not None
        self.progress = Progress(self.answer.names)
        began = time.monotonic()
        await unless_left(
            follow(client, self.answer.names, choose_view(self.session, self.progress)),
            f"{self.how_to_go_on}; {also}" if also else self.how_to_go_on,
        )
        self.seconds = time.monotonic() - began

    def places(self, *, succeeded: bool) -> set[str]:
        """Both ends, `CONNECTION:PATH`, of the transfers that did succeed, or that did not."""
        assert self.progress is not None
        return {
            place_text(end)
            for transfer in self.progress.roots.values()
            if (transfer.state == transfers_pb2.TRANSFER_STATE_SUCCEEDED) == succeeded
            for end in (transfer.source, transfer.destination)
        }

    async def end(self, client: Client) -> None:
        """Prints what came of them and ends with the exit status."""
        assert self.answer is not None
        assert self.progress is not None
        good = await report(self.session, client, self.progress, seconds=self.seconds, names=self.names)
        if not good or self.answer.rejected_count:
            raise click.exceptions.Exit(FAILED)


def _file(source: Place, destination: Place, task: TaskOptions) -> transfers_pb2.Transfer:
    return build(Source(source, transfers_pb2.SELECTION_FILE, ""), destination, task)


def _options(options: Mapping[str, Any], **more: str) -> TaskOptions:
    return TaskOptions(**{**options, "max_attempts": options["max_attempts"] or 0, **more})


def _check_sha256(sources: Sequence[Source], sha256: str) -> None:
    if sha256 and (len(sources) > 1 or sources[0].selection != transfers_pb2.SELECTION_FILE):
        raise click.UsageError("--sha256 is for one file")


def _check_via(wait: bool, task: TaskOptions, *, existing: Sequence[str]) -> None:
    if not wait:
        raise click.UsageError("--via needs --wait, to delete the copies that it makes")
    if task.existing in existing:
        raise click.UsageError(f"--existing {clean(task.existing)} does not go with --via")
