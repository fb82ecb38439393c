"""A report as one HTML file that needs nothing else: no scripts, no fonts, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from html import escape
from importlib import resources
from math import isfinite

from opsplane_server.loadtesting.comparison.comparing import RunComparison
from opsplane_server.loadtesting.comparison.figures import Change, FigureChange
from opsplane_server.loadtesting.k6.loads import target_rate
from opsplane_server.loadtesting.metrics.results import Verdict
from opsplane_server.loadtesting.model import RunState
from opsplane_server.loadtesting.reports.charts import Line, chart, clock, milliseconds, ranges, sparkline
from opsplane_server.loadtesting.reports.content import Content, Series

_MOST_RANGES = 30
_MOST_ROWS = 200

_VERDICTS = {Verdict.PASSED: "good", Verdict.FAILED: "bad", Verdict.INVALID: "unsure"}
_CHANGES = {
    Change.BETTER: ("good", "better"),
    Change.WORSE: ("bad", "worse"),
    Change.NONE: ("soft", "no change"),
    Change.UNSPECIFIED: ("soft", "too little data"),
}


def page(content: Content) -> str:
    """The whole file."""
    title = escape(content.run.title)
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{style}</style></head><body><main>"
        f"{''.join(_body(content))}</main></body></html>\n"
    )


def _body(content: Content) -> Iterator[str]:
    yield _heading(content)
    yield _tiles(content)
    yield from _remarks(content)
    yield from _targets(content)
    if content.comparison is not None:
        yield from _comparison(content.comparison, content.baseline)
    if content.points:
        yield "<h2>Course of the run</h2>"
        yield _course(content)
        kind = "User classes" if content.user_classes else "Scenarios"
        scenarios, endpoints = content.scenarios(), content.endpoints()
        if scenarios:
            yield f"<h2>{kind}</h2>{_series_table(scenarios)}{_rates(content)}"
        if endpoints:
            yield f"<h2>Endpoints</h2>{_series_table(endpoints)}"
            yield f'<div style="margin-top:14px">{_ranges(endpoints)}</div>'
    yield _footer(content)


def _heading(content: Content) -> str:
    run = content.run
    verdict = ""
    if run.verdict:
        verdict = f'<span class="badge {_VERDICTS[run.verdict]}">{run.verdict.value}</span>'
    state = "" if run.state is RunState.COMPLETED else f'<span class="badge">{run.state.value}</span>'
    span = " to ".join(_moment(moment) for moment in (run.start_time, run.end_time) if moment)
    description = f"<p>{escape(run.description)}</p>" if run.description else ""
    return (
        f'<h1>{escape(run.title)}</h1><p class="soft">{escape(run.name)}</p>'
        f'<p>{verdict}{state}<span class="soft">{span}</span></p>{description}'
    )


def _tiles(content: Content) -> str:
    results = content.results
    total, times = results.total, results.total.response_time
    tiles = [
        (f"{total.requests:,}", "calls", f"{total.failed_requests:,} failed"),
        (
            _rate(total.tps.avg if total.tps else 0.0),
            "calls a second",
            f"most {_rate(total.tps.max)}" if total.tps else "",
        ),
        (_percent(total.error_ratio.avg if total.error_ratio else 0.0), "failed", ""),
    ]
    if times is not None:
        tiles += [
            (milliseconds(times.p50_ms), "median", f"mean {milliseconds(times.avg_ms)}"),
            (milliseconds(times.p95_ms), "95th percentile", f"90th {milliseconds(times.p90_ms)}"),
            (milliseconds(times.p99_ms), "99th percentile", f"longest {milliseconds(times.max_ms)}"),
        ]
    if results.vus is not None:
        tiles.append((f"{results.vus.max:,.0f}", "virtual users", f"mean {results.vus.avg:,.0f}"))
    tiles.append((clock(results.duration.total_seconds()), "duration", f"{results.iterations:,} iterations"))
    asked = results.iterations + results.dropped_iterations
    if results.dropped_iterations:
        tiles.append(
            (
                _percent(results.iterations / asked),
                "of the load started",
                f"{results.dropped_iterations:,} calls dropped",
            )
        )
    body = "".join(
        f'<div class="tile"><b>{escape(figure)}</b><span>{escape(name)}</span><small>{escape(more)}</small></div>'
        for figure, name, more in tiles
    )
    return f'<div class="tiles">{body}</div>'


def _remarks(content: Content) -> Iterator[str]:
    run = content.run
    remarks = [("bad", f"{run.failure_message} ({run.failure_reason})")] if run.failure_reason else []
    remarks += [("unsure", note) for note in run.notes]
    if content.results.incomplete_reason:
        remarks.append(("unsure", f"Figures may lack a part: {content.results.incomplete_reason}"))
    if remarks:
        lines = "".join(f'<li class="{css}">{escape(text)}</li>' for css, text in remarks)
        yield f"<h2>Remarks</h2><ul>{lines}</ul>"


def _targets(content: Content) -> Iterator[str]:
    targets = content.targets
    if not targets:
        return
    rows = []
    for target in targets:
        if target.missed is None:
            cells = ["", '<span class="good">kept</span>']
        else:
            cells = [f"{target.missed.actual:.4g}", '<span class="bad">missed</span>']
        rows.append([escape(target.words), *cells])
    yield f"<h2>Targets</h2>{_table(['Target', 'Measured', ''], rows)}"


def _comparison(comparison: RunComparison, baseline: str) -> Iterator[str]:
    css, words = _CHANGES[comparison.change]
    yield f'<h2>Compared with {escape(baseline)}: <span class="{css}">{words}</span></h2>'
    if comparison.notes:
        yield f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in comparison.notes)}</ul>"
    # What changed comes first, then the whole run; the rest would only hide it.
    changed = [f for f in comparison.figures if f.change in (Change.WORSE, Change.BETTER)]
    rest = [f for f in comparison.figures if f not in changed and not f.series]
    rows = [_change_row(figure) for figure in (*changed[:_MOST_ROWS], *rest)]
    if rows:
        yield _table(["", "Figure", "Baseline", "This run", "Change", "95% between", ""], rows)


def _change_row(figure: FigureChange) -> list[str]:
    css, words = _CHANGES[figure.change]
    between = " and ".join(f"{bound:+.1%}" for bound in figure.bounds) if figure.bounds else ""
    return [
        escape(figure.series or "whole run"),
        escape(figure.figure),
        _figure(figure.figure, figure.baseline),
        _figure(figure.figure, figure.value),
        f"{figure.ratio:+.1%}" if isfinite(figure.ratio) else "new",
        between,
        f'<span class="{css}">{words}</span>',
    ]


def _course(content: Content) -> str:
    seconds, total = content.seconds, content.total()
    percentiles = [
        Line(name, name, total.quantiles(share)) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    ]
    target = content.run.plan.test.target_tps or None
    wanted = f", at least {target:g} wanted" if target else ""
    users = [None if point.vus is None else float(point.vus) for point in content.points]
    charts = [
        chart("Response time", "ms", seconds, percentiles),
        chart(f"Throughput{wanted}", "calls/s", seconds, [Line("calls", "rate", total.rates())], limit=target),
        chart("Failures", "failed calls/s", seconds, [Line("failed", "errors", total.failures())]),
        chart("Virtual users", "users", seconds, [Line("users", "users", users)]),
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _series_table(series: Sequence[Series]) -> str:
    rows = []
    for one in series[:_MOST_ROWS]:
        histogram = one.response_time
        times = histogram.quantiles(0.5, 0.9, 0.95, 0.99) if histogram.count else []
        cells = [milliseconds(value) for value in (histogram.mean, *times, histogram.max)] if times else ["-"] * 6
        css = ' class="bad"' if one.failed else ""
        rows.append(
            [
                escape(one.name),
                f"{one.requests:,}",
                f"<span{css}>{one.failed:,}</span>",
                f"<span{css}>{_percent(min(one.failed / one.requests, 1.0) if one.requests else 0.0)}</span>",
                *cells,
                sparkline(one.quantiles(0.95), "p95"),
                sparkline(one.rates(), "rate"),
                sparkline(one.failures(), "errors") if one.failed else "",
            ]
        )
    columns = ["", "Calls", "Failed", "", "Mean", "p50", "p90", "p95", "p99", "Max", "p95 over time", "Calls/s"]
    return _table([*columns, "Failures"], rows) + _more(len(series) - _MOST_ROWS)


def _rates(content: Content) -> str:
    """What arrival rates asked for, and what was reached of it."""
    test = content.run.plan.test
    asked = {scenario.name: target_rate(test, scenario) for scenario in test.scenarios}
    reached = {one.name: one.stats.tps.avg for one in content.results.scenarios if one.stats.tps}
    words = [
        f"{escape(name)}: {_rate(reached.get(name, 0.0))} of {_rate(rate)} calls a second reached"
        for name, rate in asked.items()
        if rate
    ]
    return f'<p class="soft">{"<br>".join(words)}</p>' if words else ""


def _ranges(endpoints: Sequence[Series]) -> str:
    rows = []
    for one in endpoints[:_MOST_RANGES]:
        if one.response_time.count:
            p50, p95, p99 = one.response_time.quantiles(0.5, 0.95, 0.99)
            rows.append((one.name, p50, p95, p99))
    return ranges(rows) if rows else ""


def _footer(content: Content) -> str:
    run = content.run
    exactness = content.results.percentile_error_ratio
    parts = [
        f"run by {run.creator}" if run.creator else "",
        run.generator_version,
        f"{run.plan.generators} load generators" if run.plan.generators > 1 else "",
        f"percentiles are exact to {exactness:.1%}" if exactness else "",
        f"trace {run.trace_id}" if run.trace_id else "",
    ]
    return f"<footer>{escape(' · '.join(part for part in parts if part))}</footer>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _more(count: int) -> str:
    return f'<p class="soft">and {count} more with fewer calls; the CSV has them all</p>' if count > 0 else ""


def _figure(figure: str, value: float) -> str:
    if figure.endswith("_ms"):
        return milliseconds(value)
    return _percent(value) if figure == "error_ratio" else _rate(value)


def _rate(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _percent(ratio: float) -> str:
    if ratio <= 0:
        return "0%"
    return "<0.01%" if ratio < 0.0001 else f"{ratio:.2%}" if ratio < 0.1 else f"{ratio:.1%}"


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
