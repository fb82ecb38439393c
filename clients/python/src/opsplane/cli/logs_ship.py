"""`opsplane logs ship`: lines of files or of standard input become log records."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from opsplane.cli.logs_filters import LEVEL
from opsplane.cli.logs_lines import MAX_LINE_BYTES, Group, Joiner, parse
from opsplane.cli.logs_places import PlaceError, PlaceFile
from opsplane.cli.logs_shipping import Counts, FileShipment, Options
from opsplane.cli.output import clean
from opsplane.cli.session import Session, pass_session
from opsplane.client import Client
from opsplane.logingest.v1 import records_pb2
from opsplane.logs import Shipper
from opsplane.logs.encoding import Encoder

REJECTED = 3
INTERRUPTED = 130

_STDIN = "-"
_POLL_SECONDS = 0.2
_LINGER_SECONDS = 1.0
_FLUSH_SECONDS = 120.0
_LEAVE_SECONDS = 5.0
_FOREVER_SECONDS = 1e9
_PROGRESS_SECONDS = 0.5


@click.command()
@click.argument("files", metavar="FILE...|-", nargs=-1, required=True)
@click.option("--follow", "-f", is_flag=True, help="Go on at the end, through rotation and truncation, until Ctrl-C.")
@click.option("--service", "-s", default="", help="Service of lines that do not name one. [default: name of the file]")
@click.option("--level", type=LEVEL, default="info", show_default=True, help="Level of lines that do not tell one.")
@click.option("--environment", default="", help="Environment of lines that do not name one, such as production.")
@click.option("--host", default="", help="Host of lines that do not name one. [default: this one]")
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="OPSPLANE_SHIP_STATE",
    show_envvar=True,
    help="Folder that remembers how far files were shipped. [default: ~/.local/state/opsplane/ship]",
)
@pass_session
def ship(
    session: Session,
    files: tuple[str, ...],
    follow: bool,
    service: str,
    level: int,
    environment: str,
    host: str,
    state: Path | None,
) -> None:
    """Ship the lines of log files, or of standard input (-).

    Each line is JSON or plain text; time, level, message, trace and so on are found under their usual names, and all
    else is kept as metadata. Indented lines and tracebacks are joined to the record before them. How far a file was
    shipped is remembered: the next run goes on there, and each record is stored once, whatever was interrupted. What
    comes by standard input and can not be sent goes to the spool of `opsplane.logs`, so that its writer does not wait.

    \b
    Examples:
      opsplane logs ship /var/log/app.log --service orders
      opsplane logs ship -f /var/log/app/*.log --environment production
      ./server 2>&1 | opsplane logs ship - --service server

    Exit status: 3 if the server rejected records; the first of them are shown.
    """
    if _STDIN in files:
        if len(files) > 1 or follow:
            raise click.UsageError("standard input is shipped alone, and always to its end")
        _ship_stdin(session, service or "stdin", level, environment, host)
        return
    paths = [Path(os.path.abspath(name)) for name in files]
    for path in paths:
        if not path.is_file() and (path.exists() or not follow):
            raise click.UsageError(f"{path} is no file")
    counts = Counts()
    started = time.monotonic()
    shipments = _Files(session, paths, follow, service, level, environment, host, state or _state_folder(), counts)
    try:
        session.run(shipments.run)
    except PlaceError as error:
        raise click.ClickException(str(error)) from None
    finally:
        _print_counts(session, counts, time.monotonic() - started)
    if counts.rejected:
        raise click.exceptions.Exit(REJECTED)


class _Files:
    """Ships some files side by side."""

    def __init__(
        self,
        session: Session,
        paths: list[Path],
        follow: bool,
        service: str,
        level: int,
        environment: str,
        host: str,
        state: Path,
        counts: Counts,
    ) -> None:
        self._session = session
        self._paths = paths
        self._follow = follow
        self._service = service
        self._level = level
        self._environment = environment
        self._host = host or socket.gethostname()
        self._state = state
        self._counts = counts

    async def run(self, client: Client) -> None:
        """Returns when all are shipped; with `follow`, after the first Ctrl-C or SIGTERM."""
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def stop() -> None:
            if stopped.is_set():
                task.cancel()
            stopped.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        progress = asyncio.create_task(self._show_progress()) if sys.stderr.isatty() else None
        try:
            await self._ship_all(client, stopped)
        except ExceptionGroup as failed:
            error: Exception = failed
            while isinstance(error, ExceptionGroup):  # all for the same reason, mostly
                error = error.exceptions[0]
            raise error from None
        except asyncio.CancelledError:
            raise click.exceptions.Exit(INTERRUPTED) from None
        finally:
            if progress is not None:
                progress.cancel()
                click.echo("\x1b[K", nl=False, err=True)
        if stopped.is_set() and not self._follow:
            raise click.exceptions.Exit(INTERRUPTED)

    async def _ship_all(self, client: Client, stopped: asyncio.Event) -> None:
        with ExitStack() as stack:
            places = [stack.enter_context(PlaceFile(self._state, path, self._session.address)) for path in self._paths]
            async with asyncio.TaskGroup() as shipments:
                for path, place in zip(self._paths, places, strict=True):
                    shipment = FileShipment(client, path, place, self._options(path), self._counts, stopped, _note)
                    shipments.create_task(shipment.run())

    def _options(self, path: Path) -> Options:
        encoder = Encoder(self._service or path.stem, self._environment, self._host, "")
        return Options(encoder, self._level, self._follow)

    async def _show_progress(self) -> None:
        started = time.monotonic()
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            counts = self._counts
            seconds = time.monotonic() - started
            click.echo(
                f"\r\x1b[K{counts.stored:,} stored  {counts.rejected:,} rejected  {counts.read_bytes / 1e6:,.1f} MB"
                f"  {counts.stored / seconds:,.0f}/s\r",
                nl=False,
                err=True,
            )


def _ship_stdin(session: Session, service: str, level: int, environment: str, host: str) -> None:
    counts = Counts()
    started = time.monotonic()

    def rejected(record: records_pb2.LogRecord, rejection: records_pb2.RejectedRecord) -> None:
        counts.reject("standard input", f"{rejection.field} {rejection.message}".strip())

    shipper = Shipper(
        session.address,
        token=session.token,
        tls=session.tls,
        plaintext=session.plaintext,
        service=service,
        environment=environment,
        host=host,
        client_id=re.sub(r"[^A-Za-z0-9._:/-]", "_", f"ship:{service}")[:128],
        on_rejected=rejected,
    )
    stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for group in _groups_of_stdin(counts, lambda: stopped):
            entry = parse(group, level)
            shipper.log_fields(entry.level, entry.message, entry.fields, wait=_FOREVER_SECONDS)
        if not stopped:
            shipper.flush(_FLUSH_SECONDS)
    except KeyboardInterrupt:
        pass
    finally:
        left = not shipper.close(_LEAVE_SECONDS)
        for number, handler in before.items():
            signal.signal(number, handler)
    stats = shipper.stats()
    counts.stored = stats.acknowledged
    _print_counts(session, counts, time.monotonic() - started)
    if left:
        click.echo(
            f"{stats.pending:,} records are in {shipper.settings.spool} and go with the next run "
            f"for this service: {clean(stats.error)}",
            err=True,
        )
    if counts.rejected or left or stopped:
        raise click.exceptions.Exit(REJECTED if counts.rejected else 1 if left else INTERRUPTED)


def _groups_of_stdin(counts: Counts, stopped: Callable[[], bool]) -> Iterator[Group]:
    """The records of standard input as they come; one that waits for more lines waits a second at most."""
    source = sys.stdin.fileno()
    joiner = Joiner()
    buffer = b""
    data = b"-"
    quiet_since = time.monotonic()
    while data and not stopped():
        lines: list[bytes] = []
        if select.select([source], [], [], _POLL_SECONDS)[0]:
            data = os.read(source, MAX_LINE_BYTES)
            quiet_since = time.monotonic()
            counts.read_bytes += len(data)
            *lines, buffer = (buffer + data).split(b"\n")
        if len(buffer) > MAX_LINE_BYTES:
            lines.append(buffer)
            buffer = b""
        for line in lines:
            for place in range(0, max(len(line), 1), MAX_LINE_BYTES):
                group = joiner.add(line[place : place + MAX_LINE_BYTES], 0)
                if group is not None:
                    yield group
        if time.monotonic() - quiet_since > _LINGER_SECONDS and (waiting := joiner.finish()) is not None:
            yield waiting
    if buffer and (group := joiner.add(buffer, 0)) is not None:
        yield group
    if (waiting := joiner.finish()) is not None:
        yield waiting


def _print_counts(session: Session, counts: Counts, seconds: float) -> None:
    if session.as_json:
        figures: dict[str, Any] = {
            "stored": counts.stored,
            "storedBefore": counts.repeated,
            "rejected": counts.rejected,
            "seconds": round(seconds, 3),
        }
        click.echo(json.dumps(figures))
        return
    before = f", {counts.repeated:,} stored by an earlier run" if counts.repeated else ""
    click.echo(f"{counts.stored:,} records stored{before}, {counts.rejected:,} rejected, in {seconds:.1f} s", err=True)


def _note(text: str) -> None:
    click.echo(clean(text), err=True)


def _state_folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "opsplane" / "ship"
