"""Reports of made-up runs for tests."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from opsplane_server.loadtesting import definitions
from opsplane_server.loadtesting.comparison.comparing import RunComparison
from opsplane_server.loadtesting.comparison.figures import Tolerance, compare, overall
from opsplane_server.loadtesting.metrics.course import CourseFold
from opsplane_server.loadtesting.metrics.results import RunFold
from opsplane_server.loadtesting.metrics.rows import ExportRow
from opsplane_server.loadtesting.metrics.targets import judge
from opsplane_server.loadtesting.model import Outcome, Run, RunPlan, RunState
from opsplane_server.loadtesting.reports.content import Content

from tests.unit.loadtesting.comparison.courses import START, course, rows

NAME = "projects/shop/runs/nightly"
BASELINE = "projects/shop/runs/yesterday"
TITLE = 'Nightly <script>alert("no")</script> & co'

TARGETS = (
    definitions.Target(definitions.TargetMetric.RESPONSE_TIME_P95, 1000.0),
    definitions.Target(definitions.TargetMetric.RESPONSE_TIME_P50, 1.0, "Light"),
    definitions.Target(definitions.TargetMetric.ERROR_RATIO, 0.5, "", timedelta(seconds=5)),
)


def content(measured: list[ExportRow] | None = None, *, baseline: bool = False) -> Content:
    """The report of a run with targets, failures and, if wanted, a baseline."""
    measured = rows(1, seconds=40, failing={"GET /2": 0.05}) if measured is None else measured
    fold, results = CourseFold(START), RunFold(START)
    fold.add(measured)
    for row in measured:
        results.add(row)
    figures = replace(results.results(), incomplete_reason="", dropped_iterations=3)
    test = definitions.LoadTest(TITLE, "http://127.0.0.1", (), target_tps=400.0, targets=TARGETS)
    verdict, missed = judge(figures, test)
    points = fold.points()
    comparison = None
    if baseline:
        changes = compare(course(2, seconds=40, slower={"GET /3": 0.7}), points, [Tolerance(0.05)])
        comparison = RunComparison(NAME, overall(changes), changes, ("the load was another one",))
    start = datetime.fromtimestamp(START // 1_000_000_000, UTC)
    run = Run(
        NAME,
        TITLE,
        "All of the shop",
        RunPlan(test),
        creator="ci",
        trace_id="0" * 32,
        state=RunState.COMPLETED,
        verdict=verdict,
        notes=("a note",),
        generator_version="k6 of a test",
        outcome=Outcome(figures, missed),
        create_time=start,
        start_time=start,
        end_time=start + timedelta(seconds=40),
    )
    return Content(run, figures, points, comparison, BASELINE if baseline else "")
