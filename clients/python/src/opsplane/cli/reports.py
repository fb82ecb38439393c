"""`opsplane loadtest compare|check|report`."""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
from rich.console import RenderableType
from rich.text import Text

from opsplane.cli.figures import milliseconds, percent, rate, verdict_name
from opsplane.cli.names import Command, project_option, run_name
from opsplane.cli.output import clean, console, one_line, print_json, table
from opsplane.cli.results import heading
from opsplane.cli.run_options import RatioType
from opsplane.cli.runs import BAD_VERDICT
from opsplane.cli.session import Session, call, pass_session
from opsplane.client import Client
from opsplane.loadtesting.v1 import reports_pb2, runs_pb2

FIGURES: Final = ("avg_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "tps", "error_ratio")

_FORMATS: Final = {
    "html": reports_pb2.REPORT_FORMAT_HTML,
    "csv": reports_pb2.REPORT_FORMAT_CSV,
    "csv-history": reports_pb2.REPORT_FORMAT_CSV_HISTORY,
    "csv-failures": reports_pb2.REPORT_FORMAT_CSV_FAILURES,
    "json": reports_pb2.REPORT_FORMAT_JSON,
    "junit": reports_pb2.REPORT_FORMAT_JUNIT,
}
_CHANGES: Final = {
    reports_pb2.CHANGE_UNSPECIFIED: ("too little data", "yellow"),
    reports_pb2.CHANGE_NONE: ("no change", "dim"),
    reports_pb2.CHANGE_BETTER: ("better", "bold green"),
    reports_pb2.CHANGE_WORSE: ("worse", "bold red"),
}
_SECONDS: Final = 600.0  # windows of many long runs are read


class LimitType(click.ParamType[reports_pb2.ChangeTolerance]):
    """`p95_ms=20%`, or `GET /pets:p95_ms=20%` of a single endpoint or scenario."""

    name = "figure=share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Fails with an example."""
        if isinstance(value, reports_pb2.ChangeTolerance):
            return value
        what, _, share = str(value).rpartition("=")
        series, _, figure = what.rpartition(":")
        if figure not in FIGURES:
            self.fail(f"{value!r} is no limit; write p95_ms=20%, with one of {', '.join(FIGURES)}", param, ctx)
        ratio = RatioType().convert(share, param, ctx)
        return reports_pb2.ChangeTolerance(figure=figure, series=series, ratio=ratio)


def tolerance_options(command: Command) -> Command:
    """The options that say how much may change."""
    for option in (
        click.option("--limit", "limits", multiple=True, type=LimitType(),
                     help="How much a figure may change, repeatable: p95_ms=20%, 'GET /pets:tps=10%'."),
        click.option("--tolerance", type=RatioType(), default="5%", show_default=True,
                     help="How much every other figure may change."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command()
@click.argument("runs", nargs=-1)
@project_option(required=False)
@click.option("--last", type=click.IntRange(2, 50), help="Compare the last completed runs of the project.")
@click.option("--title", default="", help="With --last: only runs with this title.")
@click.option("--baseline", help="Run to compare the others with. [default: the first, or the oldest of --last]")
@tolerance_options
@click.option("--all", "everything", is_flag=True, help="Also figures that did not change.")
@pass_session
def compare(
    session: Session,
    runs: tuple[str, ...],
    project: str | None,
    last: int | None,
    title: str,
    baseline: str | None,
    tolerance: float,
    limits: tuple[reports_pb2.ChangeTolerance, ...],
    everything: bool,
) -> None:
    """Compare runs with a baseline, and tell change from noise.

    A figure has changed when it is beyond its tolerance for sure, with regard to how much it varies within the runs
    and to how many figures are compared.

    \b
    Examples:
      opsplane loadtest compare shop/monday shop/tuesday
      opsplane loadtest compare -p shop --last 10 --title Nightly
      opsplane loadtest compare shop/a shop/b --limit p99_ms=25% --limit 'GET /pets:tps=10%'
    """
    if bool(runs) == bool(last):
        raise click.UsageError("give either runs or --last")
    if title and not last:
        raise click.UsageError("--title goes with --last")
    if last and project is None:
        raise click.UsageError("--last needs --project")
    names = list(dict.fromkeys(run_name(run, project) for run in runs))
    first = run_name(baseline, project) if baseline else ""
    if first and names and first not in names:
        names.insert(0, first)
    if names and len(names) < 2:
        raise click.UsageError("give two runs or more")
    request = _request(project or _project(names[0]), names, first, tolerance, limits)
    request.last = last or 0
    request.title = title
    found = session.run(lambda client: _compare(client, request))
    if session.as_json:
        print_json(found)
        return
    if len(found.comparisons) > 1:
        console().print(_trend(found))
    for one in found.comparisons:
        _print(one, found.baseline, everything=everything)


@click.command()
@click.argument("run")
@project_option(required=False)
@click.option("--against", "baseline", help="Run that it must not be worse than.")
@tolerance_options
@pass_session
def check(
    session: Session,
    run: str,
    project: str | None,
    baseline: str | None,
    tolerance: float,
    limits: tuple[reports_pb2.ChangeTolerance, ...],
) -> None:
    """Check an ended run, for CI: it kept its targets, and is not worse than a baseline.

    Ends with 0, or with 3 when it did not pass, is worse, or there is too little data to compare.

    \b
    Examples:
      opsplane loadtest check shop/nightly
      opsplane loadtest check shop/nightly --against shop/release --tolerance 10%
    """
    name = run_name(run, project)
    against = run_name(baseline, project) if baseline else ""
    if name == against:
        raise click.UsageError("a run is not compared with itself")
    request = _request(_project(name), [against, name], against, tolerance, limits)

    async def work(client: Client) -> tuple[runs_pb2.Run, reports_pb2.CompareRunsResponse | None]:
        wanted = runs_pb2.GetRunRequest(name=name)
        found = await call(client.load_testing.GetRun, wanted, runs_pb2.Run)
        return found, await _compare(client, request) if against else None

    found, compared = session.run(work)
    if session.as_json:
        print_json(compared if compared is not None else found)
    else:
        console().print(heading(found))
        for missed in found.missed_targets:
            console().print(Text(f"missed: {clean(missed.target)}, measured {missed.actual:.4g}", style="red"))
        for note in found.notes:
            console().print(Text(f"note: {clean(note)}", style="yellow"))
        for one in compared.comparisons if compared is not None else ():
            _print(one, against, everything=False)
    changes = [one.change for one in compared.comparisons] if compared is not None else []
    bad = (reports_pb2.CHANGE_WORSE, reports_pb2.CHANGE_UNSPECIFIED)
    if verdict_name(found) != "PASSED" or any(change in bad for change in changes):
        raise click.exceptions.Exit(BAD_VERDICT)


@click.command()
@click.argument("run")
@project_option(required=False)
@click.option("--format", "-f", "form", type=click.Choice(list(_FORMATS)), default="html", show_default=True,
              help="A page, tables with the columns of Locust, or files for programs and CI.")  # fmt: skip
@click.option("--against", "baseline", help="Run to compare it with in the report.")
@click.option("--to", "target", type=click.Path(path_type=Path, allow_dash=True), default=Path(),
              help="File or folder to write to, - for standard output. [default: this folder]")  # fmt: skip
@pass_session
def report(session: Session, run: str, project: str | None, form: str, baseline: str | None, target: Path) -> None:
    """Write a report of an ended run to a file.

    \b
    Examples:
      opsplane loadtest report shop/nightly
      opsplane loadtest report shop/nightly --against shop/release --to report.html
      opsplane loadtest report shop/nightly -f junit --to - | tee junit.xml
    """
    request = reports_pb2.ExportReportRequest(
        name=run_name(run, project),
        format=_FORMATS[form],
        baseline=run_name(baseline, project) if baseline else "",
    )

    into_folder = target.is_dir()

    async def work(client: Client) -> Path | None:
        # Nothing is written, and no file replaced, before the server has the report.
        parts: AsyncIterator[Any] = aiter(client.load_testing.ExportReport(request, timeout=_SECONDS))
        first = await anext(parts)
        if str(target) == "-":
            await _write(sys.stdout.buffer, first, parts)
            return None
        path = target / Path(first.file_name).name if into_folder else target
        with path.open("wb") as file:
            await _write(file, first, parts)
        return path

    written = session.run(work)
    if written is not None:
        click.echo(f"wrote {written}", err=True)


async def _write(file: BinaryIO, first: reports_pb2.ExportReportResponse, parts: AsyncIterator[Any]) -> None:
    file.write(first.content)
    async for part in parts:
        file.write(part.content)
    file.flush()


async def _compare(client: Client, request: reports_pb2.CompareRunsRequest) -> reports_pb2.CompareRunsResponse:
    found: reports_pb2.CompareRunsResponse = await client.load_testing.CompareRuns(request, timeout=_SECONDS)
    return found


def _request(
    parent: str, names: list[str], baseline: str, tolerance: float, limits: Iterable[reports_pb2.ChangeTolerance]
) -> reports_pb2.CompareRunsRequest:
    # 0 stands for the server's own tolerance; whoever writes 0% means none.
    every = [reports_pb2.ChangeTolerance(ratio=tolerance)]
    return reports_pb2.CompareRunsRequest(parent=parent, runs=names, baseline=baseline, tolerances=[*every, *limits])


def _project(run: str) -> str:
    return run.partition("/runs/")[0]


def _trend(found: reports_pb2.CompareRunsResponse) -> RenderableType:
    """The whole-run figures of each run, in order, so that a drift is seen that no step shows."""
    rows: list[tuple[str | Text, ...]] = []
    for one in found.comparisons:
        whole = {figure.figure: figure for figure in one.figures if not figure.series}
        if not rows:
            values = [_value(name, whole[name].baseline_value) if name in whole else "" for name in FIGURES]
            rows.append((_short(found.baseline), *values, "baseline"))
        words, style = _CHANGES[one.change]
        values = [_value(name, whole[name].value) if name in whole else "" for name in FIGURES]
        rows.append((_short(one.run), *values, Text(words, style=style)))
    return table(("run", *(f">{name}" for name in FIGURES), "change"), rows)


def _print(comparison: reports_pb2.RunComparison, baseline: str, *, everything: bool) -> None:
    words, style = _CHANGES[comparison.change]
    out = console()
    out.print()
    out.print(Text.assemble((_short(comparison.run), "bold"), f" against {_short(baseline)}: ", (words, style)))
    for note in comparison.notes:
        out.print(Text(f"note: {clean(note)}", style="yellow"))
    changed = (reports_pb2.CHANGE_WORSE, reports_pb2.CHANGE_BETTER)
    shown = [figure for figure in comparison.figures if everything or figure.change in changed or not figure.series]
    if shown:
        columns = ("", "figure", ">baseline", ">run", ">change", ">95% between", "")
        out.print(table(columns, [_row(figure) for figure in shown]))


def _row(figure: reports_pb2.FigureChange) -> tuple[str | Text, ...]:
    words, style = _CHANGES[figure.change]
    bounds = figure.confidence
    return (
        one_line(figure.series, 50) or "whole run",
        clean(figure.figure),
        _value(figure.figure, figure.baseline_value),
        _value(figure.figure, figure.value),
        f"{figure.change_ratio:+.1%}" if math.isfinite(figure.change_ratio) else "new",
        f"{bounds.min:+.1%} and {bounds.max:+.1%}" if figure.HasField("confidence") else "",
        Text(words, style=style),
    )


def _value(figure: str, value: float) -> str:
    if figure.endswith("_ms"):
        return milliseconds(value)
    return percent(value) if figure == "error_ratio" else rate(value)


def _short(name: str) -> str:
    return clean("/".join(name.split("/")[1::2]))
