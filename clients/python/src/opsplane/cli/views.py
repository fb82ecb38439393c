"""What a run looks like while it runs: a live picture in a terminal, lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self, TextIO

import click
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from opsplane.cli.durations import format_duration
from opsplane.cli.figures import Progress, milliseconds, percent, rate, sparkline, state_name
from opsplane.cli.output import clean, one_line, print_json_line, table
from opsplane.cli.picture import LivePicture
from opsplane.cli.results import heading
from opsplane.cli.user_classes import users_by_class
from opsplane.loadtesting.v1 import metrics_pb2, runs_pb2

_MOST_ENDPOINTS = 15
_CLASS_COLUMNS = ("class", ">users", ">tps", ">p50", ">p95", ">p99", ">errors")
_ENDPOINT_COLUMNS = ("endpoint", ">tps", ">p50", ">p95", ">p99", ">errors", ">requests", ">failed")


class View(Protocol):
    """Shows a run under way; a context manager around all of it."""

    progress: Progress

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, response: runs_pb2.WatchRunResponse) -> None:
        """Takes in and shows what is new."""

    def note(self, text: str) -> None:
        """Tells people something beside the run's own figures."""


class LiveView(LivePicture):
    """A picture that is drawn over itself."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress()
        super().__init__(console)

    def show(self, response: runs_pb2.WatchRunResponse) -> None:
        """See View."""
        self.progress.add(response)
        self._note = ""

    def picture(self) -> RenderableType:
        """What is seen now."""
        progress = self.progress
        lines: list[RenderableType] = []
        if progress.run.name:
            lines.append(heading(progress.run))
        if progress.window is None:
            self._spinner.update(text=f" {_waiting_for(progress.run)}")
            lines.append(self._spinner)
        else:
            lines += [_bar(progress), _figures(progress.window), Text()]
            width = max(10, min(60, self._live.console.width - 30))
            for name, values, unit, style in (
                ("tps", progress.tps, rate, "cyan"),
                ("p95", progress.p95, milliseconds, "magenta"),
            ):
                bars = sparkline(list(values), width)
                lines.append(Text.assemble((f"{name}  ", "bold"), (bars, style), f"  peak {unit(max(values))}"))
            if progress.run.HasField("user_load"):
                lines += [Text(), _classes(progress.run, progress.window)]
            lines += [Text(), _endpoints(progress)]
        return Group(*lines, *self._notes())


class LineView:
    """A line for each window and change of state, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self.progress = Progress()
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, response: runs_pb2.WatchRunResponse) -> None:
        """See View."""
        before = state_name(self.progress.run)
        self.progress.add(response)
        if response.HasField("window"):
            click.echo(self.progress.line(), file=self._stream)
        elif response.HasField("run") and state_name(response.run) != before:
            click.echo(f"{response.run.name} {state_name(response.run)}", file=self._stream)

    def note(self, text: str) -> None:
        """A line of standard error."""
        click.echo(clean(text), err=True)


class JsonView(LineView):
    """Each update as a line of JSON on standard output."""

    def show(self, response: runs_pb2.WatchRunResponse) -> None:
        """See View."""
        self.progress.add(response)
        print_json_line(response)


def _waiting_for(run: runs_pb2.Run) -> str:
    return {
        runs_pb2.RUN_STATE_PENDING: "waiting for the load generator",
        runs_pb2.RUN_STATE_RUNNING: "waiting for the first figures",
        runs_pb2.RUN_STATE_STOPPING: "waiting for the last figures",
    }.get(run.state, "connecting")


def _bar(progress: Progress) -> RenderableType:
    done = progress.done_ratio
    planned = progress.run.planned_duration.ToTimedelta()
    line = Table.grid(padding=(0, 1))
    line.add_row(
        ProgressBar(total=1.0, completed=done or 0.0, width=40, pulse=done is None),
        f"{done * 100:.0f}%" if done is not None else "",
        f"{format_duration(progress.elapsed)}{f' of {format_duration(planned)}' if planned else ''}",
        f"vus {progress.window.vus}" if progress.window else "",
    )
    return line


def _figures(window: metrics_pb2.Window) -> Text:
    total = window.total
    times = total.response_time
    figures = [("tps", rate(total.tps), "bold cyan")]
    if total.requests:
        figures += [
            (name, milliseconds(value), "bold magenta")
            for name, value in (("p50", times.p50_ms), ("p95", times.p95_ms), ("p99", times.p99_ms))
        ]
    figures += [
        ("errors", percent(total.error_ratio), "bold red" if total.failed_requests else "bold green"),
        ("total", f"{window.total_requests:,}", "bold"),
        ("failed", f"{window.total_failed_requests:,}", "bold red" if window.total_failed_requests else "bold"),
    ]
    if window.dropped_iterations:
        figures.append(("dropped", f"{window.dropped_iterations:,}", "bold red"))
    return Text("   ").join(Text.assemble(f"{name} ", (value, style)) for name, value, style in figures)


def _classes(run: runs_pb2.Run, window: metrics_pb2.Window) -> Table:
    """The users of each class, and their calls in the last window."""
    called = {series.name: series.stats for series in window.scenarios}
    rows = [
        (one_line(name, 50), f"{users:,}", *_window_figures(called.get(name, metrics_pb2.CallStats())))
        for name, users in users_by_class(run, window.vus).items()
    ]
    return table(_CLASS_COLUMNS, rows[:_MOST_ENDPOINTS])


def _window_figures(stats: metrics_pb2.CallStats) -> tuple[str, ...]:
    times = stats.response_time
    called = stats.requests > 0
    return (
        rate(stats.tps),
        *(milliseconds(value) if called else "-" for value in (times.p50_ms, times.p95_ms, times.p99_ms)),
        percent(stats.error_ratio),
    )


def _endpoints(progress: Progress) -> Table:
    rows = []
    busiest = sorted(progress.endpoints.items(), key=lambda item: -item[1].requests)
    for name, totals in busiest[:_MOST_ENDPOINTS]:
        rows.append(
            (
                one_line(name, 50),
                *_window_figures(totals.last),
                f"{totals.requests:,}",
                f"{totals.failed:,}",
            )
        )
    return table(_ENDPOINT_COLUMNS, rows)
