"""What transfers under way look like: bars in a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, Self, TextIO

import click
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from opsplane.cli.ftp_figures import (
    Progress,
    counts_text,
    ended_count,
    error_text,
    line_text,
    remaining,
    size_text,
    total_count,
    way_text,
)
from opsplane.cli.output import clean, console, one_line, print_json_line
from opsplane.cli.picture import LivePicture
from opsplane.cli.session import Session
from opsplane.ftptransfer.v1 import ftptransfer_pb2, transfers_pb2

_MOST_FILES = 10
_BAR = 24
_COUNTS_SECONDS = 5.0


class View(Protocol):
    """Shows transfers under way; a context manager around all of it."""

    progress: Progress
    shows_files: bool
    """Whether it has a use for the files of trees."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, response: ftptransfer_pb2.WatchTransfersResponse) -> None:
        """Takes in and shows what is new."""

    def note(self, text: str) -> None:
        """Tells people something beside the transfers."""


def choose_view(session: Session, progress: Progress, *, stream: bool = False) -> View:
    """Bars in a terminal; elsewhere lines, on standard error where standard output is for JSON.

    With `stream`, each change of a transfer is a line, and with JSON each message; otherwise the counts now and then.
    """
    if session.as_json:
        return JsonView(progress) if stream else CountsView(progress, sys.stderr)
    if sys.stdout.isatty():
        return LiveView(progress, console())
    return LineView(progress, sys.stdout) if stream else CountsView(progress, sys.stdout)


class LiveView(LivePicture):
    """A picture that is drawn over itself: a bar for all files, and one for each under way."""

    shows_files = True

    def __init__(self, progress: Progress, console: Console) -> None:
        self.progress = progress
        super().__init__(console, " waiting for the transfers")

    def show(self, response: ftptransfer_pb2.WatchTransfersResponse) -> None:
        """See View."""
        self.progress.add(response)
        self._note = ""

    def picture(self) -> RenderableType:
        """What is seen now."""
        counts = self.progress.counts
        parts: list[RenderableType] = [_total(counts) if total_count(counts) else self._spinner]
        if self.progress.under_way:
            parts.append(self._files())
        return Group(*parts, *self._notes())

    def _files(self) -> Table:
        rows = Table.grid(padding=(0, 1))
        # Those that move first.
        files = sorted(self.progress.under_way.values(), key=lambda file: (file.state, file.start_time.ToNanoseconds()))
        width = max(20, self._live.console.width - _BAR - 30)
        for file in files[:_MOST_FILES]:
            waiting = file.state == transfers_pb2.TRANSFER_STATE_WAITING
            rows.add_row(
                Text(one_line(way_text(file), width)),
                _bar(file.bytes_transferred, file.size_bytes if file.HasField("size_bytes") else None),
                Text(one_line(error_text(file.error), 40), style="yellow")
                if waiting
                else f"{size_text(file.bytes_per_second)}/s",
            )
        if len(files) > _MOST_FILES:
            rows.add_row(Text(f"and {len(files) - _MOST_FILES:,} more", style="dim"))
        return rows


class CountsView:
    """A line with the counts every few seconds."""

    shows_files = False

    def __init__(self, progress: Progress, stream: TextIO) -> None:
        self.progress = progress
        self._stream = stream
        self._due = time.monotonic() + _COUNTS_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, response: ftptransfer_pb2.WatchTransfersResponse) -> None:
        """See View."""
        self.progress.add(response)
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _COUNTS_SECONDS
            click.echo(counts_text(self.progress.counts), file=self._stream)

    def note(self, text: str) -> None:
        """A line of standard error."""
        click.echo(clean(text), err=True)


class LineView(CountsView):
    """A line for each change of a transfer's state."""

    def show(self, response: ftptransfer_pb2.WatchTransfersResponse) -> None:
        """See View."""
        for transfer in self.progress.add(response):
            click.echo(f"{transfer.name} {line_text(transfer).plain}", file=self._stream)


class JsonView(CountsView):
    """Each message as a line of JSON on standard output."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress, sys.stdout)

    def show(self, response: ftptransfer_pb2.WatchTransfersResponse) -> None:
        """See View."""
        self.progress.add(response)
        print_json_line(response)


def _total(counts: transfers_pb2.TransferCounts) -> RenderableType:
    line = Table.grid(padding=(0, 1))
    by_bytes = counts.size_bytes > 0 and not counts.skipped
    done, total = (
        (counts.bytes_transferred, counts.size_bytes) if by_bytes else (ended_count(counts), total_count(counts))
    )
    line.add_row(_bar(done, total), f"{done * 100 // total}%" if total else "", counts_text(counts), remaining(counts))
    return line


def _bar(done: int, total: int | None) -> ProgressBar:
    return ProgressBar(total=float(total or 1), completed=float(done if total else 0), width=_BAR, pulse=total is None)
