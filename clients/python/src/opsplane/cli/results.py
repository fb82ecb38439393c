"""The stored results of a run, and lists of runs, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from opsplane.cli.durations import format_duration
from opsplane.cli.figures import Progress, milliseconds, percent, rate, sparkline, state_name, verdict_name
from opsplane.cli.output import clean, local_time, one_line, short, table
from opsplane.cli.user_classes import in_words, scenario_label
from opsplane.loadtesting.v1 import metrics_pb2, runs_pb2

_STYLES = {
    "PASSED": "bold green",
    "FAILED": "bold red",
    "INVALID": "bold yellow",
    "RUNNING": "bold cyan",
    "STOPPING": "cyan",
    "CANCELLED": "yellow",
}
_FIGURES = (">requests", ">failed", ">errors", ">tps", ">tps max", ">avg", ">p50", ">p95", ">p99", ">max")
_SPARK_WIDTH = 60


def styled(word: str) -> Text:
    """A state or verdict in its colour."""
    return Text(word, style=_STYLES.get(word, ""))


def heading(run: runs_pb2.Run) -> Text:
    """Title, name, state and verdict on one line."""
    parts = [Text(one_line(run.title, 120), style="bold"), Text(run.name), styled(state_name(run))]
    if run.verdict:
        parts.append(styled(verdict_name(run)))
    return Text("  ").join(parts)


def print_results(console: Console, run: runs_pb2.Run, progress: Progress | None = None) -> None:
    """Prints everything about an ended run; with `progress` also the course that was watched."""
    console.print(Group(*_report(run, progress)))


def _report(run: runs_pb2.Run, progress: Progress | None) -> Iterable[RenderableType]:
    yield heading(run)
    yield from _reasons(run)
    if run.HasField("results"):
        results = run.results
        classes = in_words(run, round(results.vus.max))
        facts = [
            f"duration {format_duration(results.duration.ToTimedelta())}",
            f"vus max {results.vus.max:.0f}{f' ({classes})' if classes else ''}",
            f"iterations {results.iterations:,}",
            f"received {_bytes(results.received_bytes)}",
            f"sent {_bytes(results.sent_bytes)}",
        ]
        if results.checks_passed or results.checks_failed:
            facts.append(f"checks {results.checks_passed:,} of {results.checks_passed + results.checks_failed:,}")
        if results.dropped_iterations:
            facts.append(f"dropped iterations {results.dropped_iterations:,}")
        yield Text("  ".join(facts))
        for part in results.scenarios:
            if part.target_tps:
                reached = f"{rate(part.stats.tps.avg)} of {rate(part.target_tps)} calls a second"
                yield Text(f"{one_line(part.name)}: {reached}", style="" if _kept_up(part) else "yellow")
        if progress is not None and len(progress.tps) > 1:
            yield Text(f"tps  {sparkline(list(progress.tps), _SPARK_WIDTH)}", style="cyan")
            yield Text(f"p95  {sparkline(list(progress.p95), _SPARK_WIDTH)}", style="magenta")
        yield Text()
        yield results_table(run)
        if results.incomplete_reason:
            yield Text(f"incomplete: {clean(results.incomplete_reason)}", style="yellow")


def _kept_up(part: metrics_pb2.ScenarioResults) -> bool:
    return part.stats.tps.avg >= 0.99 * part.target_tps


def _reasons(run: runs_pb2.Run) -> Iterable[Text]:
    if run.failure_message or run.failure_reason:
        reason = f" ({run.failure_reason})" if run.failure_reason else ""
        yield Text(f"failed: {clean(run.failure_message)}{reason}", style="red")
    for missed in run.missed_targets:
        yield Text(f"missed: {clean(missed.target)}, measured {missed.actual:.4g}", style="red")
    for note in run.notes:
        yield Text(f"note: {clean(note)}", style="yellow")


def results_table(run: runs_pb2.Run) -> Table:
    """A row for the whole run, and one for each scenario or class of users, and each endpoint."""
    results = run.results
    users = round(results.vus.max)
    rows: list[Sequence[str | Text]] = [(Text("all", style="bold"), *_figures(results.total))]
    rows += [(scenario_label(run, part.name, users), *_figures(part.stats)) for part in results.scenarios]
    rows += [(one_line(part.name), *_figures(part.stats)) for part in results.endpoints]
    return table(("", *_FIGURES), rows)


def _figures(stats: metrics_pb2.ResultStats) -> Sequence[str]:
    times = stats.response_time
    return (
        f"{stats.requests:,}",
        f"{stats.failed_requests:,}",
        percent(stats.error_ratio.avg),
        rate(stats.tps.avg),
        rate(stats.tps.max),
        *(
            milliseconds(value) if stats.requests else "-"
            for value in (times.avg_ms, times.p50_ms, times.p95_ms, times.p99_ms, times.max_ms)
        ),
    )


def history_table(runs: Iterable[runs_pb2.Run], *, full: bool) -> Table:
    """A row a run; in full also one for each of its scenarios."""
    rows: list[Sequence[str | Text]] = []
    for run in runs:
        total = run.results.total
        known = run.HasField("results")
        rows.append(
            (
                f"{run.name.split('/')[1]}/{short(run.name)}" if "/" in run.name else run.name,
                one_line(run.title, 40),
                styled(state_name(run)),
                styled(verdict_name(run)),
                local_time(run.create_time),
                format_duration(run.results.duration.ToTimedelta()) if known else "",
                *(_figures(total)[:9] if known else ("",) * 9),
            )
        )
        if full:
            rows += [
                ("", f"  {one_line(part.name, 38)}", "", "", "", format_duration(part.duration.ToTimedelta()),
                 *_figures(part.stats)[:9])
                for part in run.results.scenarios
            ]  # fmt: skip
    return table(("run", "title", "state", "verdict", "created", ">duration", *_FIGURES[:9]), rows)


def _bytes(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
