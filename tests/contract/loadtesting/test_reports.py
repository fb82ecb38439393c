"""Comparison and reports of runs whose figures the tests deliver."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from xml.etree import ElementTree

import grpc
import pytest
from opsplane.loadtesting.v1 import projects_pb2, reports_pb2, runs_pb2, scenarios_pb2
from opsplane_server.loadtesting.metrics.results import RunFold, Verdict
from opsplane_server.loadtesting.metrics.targets import judge
from opsplane_server.loadtesting.model import Outcome, RunEnd, RunState
from opsplane_server.loadtesting.tokens import token_hash
from opsplane_server.storage.followers import Position

from tests.loadtesting_harness import LoadTesting, export
from tests.rpc_harness import bearer, require_status

PROJECT = "projects/shop"


@pytest.fixture
async def shop(loadtesting: LoadTesting) -> LoadTesting:
    await loadtesting.stub.CreateProject(
        projects_pb2.CreateProjectRequest(project=projects_pb2.Project(title="Shop"), project_id="shop")
    )
    return loadtesting


async def measured(
    shop: LoadTesting, run_id: str, *, ms: float = 5.0, seconds: int = 12, failed: int = 0, title: str = "Nightly"
) -> str:
    """A completed run of so many seconds, each with ten calls."""
    await active(shop, run_id, title=title)
    name = f"{PROJECT}/runs/{run_id}"
    for second in range(seconds):
        # No two seconds are alike.
        pace = ms * (1 + 0.01 * (second % 3))
        await shop.metrics.Export(export("0", second, failed=failed, ms=pace), metadata=bearer(run_id))
    run = await shop.runs.get_run(name)
    fold = RunFold(0)
    for _, row in await shop.runs.read_windows(run.key, Position.START, 1000, settled_only=False):
        fold.add(row)
    results = fold.results()
    verdict, missed = judge(results, run.plan.test)
    await shop.runs.end_run(name, RunEnd(RunState.COMPLETED, verdict, Outcome(results, missed)))
    return name


async def active(shop: LoadTesting, run_id: str, *, title: str = "Nightly") -> str:
    """A run whose load generator may deliver with its id as token."""
    targets = [
        scenarios_pb2.Target(metric=scenarios_pb2.TARGET_METRIC_RESPONSE_TIME_P95, limit=100),
        scenarios_pb2.Target(metric=scenarios_pb2.TARGET_METRIC_ERROR_RATIO, limit=0.05),
    ]
    run = runs_pb2.Run(title=title, script="export default function () {}", targets=targets)
    created = await shop.stub.CreateRun(runs_pb2.CreateRunRequest(parent=PROJECT, run=run, run_id=run_id))
    await shop.runs.start_run(created.name, token_hash(run_id), "k6 of a test")
    await shop.runs.set_state(created.name, RunState.RUNNING)
    return str(created.name)


async def compare(shop: LoadTesting, runs: Sequence[str] = (), **fields: object) -> reports_pb2.CompareRunsResponse:
    request = reports_pb2.CompareRunsRequest(parent=PROJECT, runs=runs, **fields)  # type: ignore[arg-type]
    found: reports_pb2.CompareRunsResponse = await shop.stub.CompareRuns(request)
    return found


async def exported(
    shop: LoadTesting, name: str, form: reports_pb2.ReportFormat.ValueType, baseline: str = ""
) -> tuple[str, str, str]:
    """File name, media type and text of a report."""
    request = reports_pb2.ExportReportRequest(name=name, format=form, baseline=baseline)
    parts = [part async for part in shop.stub.ExportReport(request)]
    assert all(len(part.content) <= 256 * 1024 for part in parts)
    assert not any(part.file_name or part.content_type for part in parts[1:])
    return parts[0].file_name, parts[0].content_type, b"".join(part.content for part in parts).decode()


def figure(comparison: reports_pb2.RunComparison, name: str, series: str = "") -> reports_pb2.FigureChange:
    return next(one for one in comparison.figures if (one.series, one.figure) == (series, name))


async def test_slower_run_is_worse_and_an_equal_one_is_not(shop: LoadTesting) -> None:
    base, same, slow = (
        await measured(shop, "base"),
        await measured(shop, "same"),
        await measured(shop, "slow", ms=6.0, failed=5),
    )
    found = await compare(shop, [base, same, slow])
    assert found.baseline == base
    equal, worse = found.comparisons
    assert (equal.run, equal.change) == (same, reports_pb2.CHANGE_NONE)
    assert {one.change for one in equal.figures} <= {reports_pb2.CHANGE_NONE, reports_pb2.CHANGE_UNSPECIFIED}
    assert worse.change == reports_pb2.CHANGE_WORSE
    mean = figure(worse, "avg_ms", "GET /pets")
    assert mean.change == reports_pb2.CHANGE_WORSE
    assert mean.change_ratio == pytest.approx(0.2, abs=0.001)
    assert mean.confidence.min <= 0.2 + 1e-6
    assert mean.confidence.max >= 0.2 - 1e-6
    assert figure(worse, "error_ratio").change_ratio == float("inf")
    assert figure(worse, "error_ratio").change == reports_pb2.CHANGE_WORSE
    # 120 calls do not tell a 99th percentile.
    assert figure(worse, "p99_ms").change == reports_pb2.CHANGE_UNSPECIFIED
    better = await compare(shop, [slow, base])
    assert better.comparisons[0].change == reports_pb2.CHANGE_BETTER


async def test_tolerances_of_single_figures(shop: LoadTesting) -> None:
    base, slow = await measured(shop, "base"), await measured(shop, "slow", ms=6.0)
    wide = [reports_pb2.ChangeTolerance(ratio=0.3)]
    assert (await compare(shop, [base, slow], tolerances=wide)).comparisons[0].change == reports_pb2.CHANGE_NONE
    of_another = [*wide, reports_pb2.ChangeTolerance(figure="avg_ms", series="GET /orders", ratio=0.01)]
    assert (await compare(shop, [base, slow], tolerances=of_another)).comparisons[0].change == reports_pb2.CHANGE_NONE
    narrow = [*wide, reports_pb2.ChangeTolerance(figure="avg_ms", series="GET /pets", ratio=0.1)]
    changed = (await compare(shop, [base, slow], tolerances=narrow)).comparisons[0]
    assert [(one.series, one.figure) for one in changed.figures if one.change == reports_pb2.CHANGE_WORSE] == [
        ("GET /pets", "avg_ms")
    ]


async def test_last_runs_are_compared_with_the_oldest_of_them(shop: LoadTesting) -> None:
    for run_id in ("r1", "r2", "r3"):
        await measured(shop, run_id)
    await measured(shop, "other", title="Other")
    await active(shop, "now")
    found = await compare(shop, last=2, title="Nightly")
    assert (found.baseline, [one.run for one in found.comparisons]) == (f"{PROJECT}/runs/r2", [f"{PROJECT}/runs/r3"])
    found = await compare(shop, last=50, baseline=f"{PROJECT}/runs/r2")
    assert found.baseline == f"{PROJECT}/runs/r2"
    assert [one.run.rpartition("/")[2] for one in found.comparisons] == ["r1", "r3", "other"]


async def test_too_little_data_is_said(shop: LoadTesting) -> None:
    short = await compare(shop, [await measured(shop, "a", seconds=4), await measured(shop, "b", seconds=4)])
    assert short.comparisons[0].change == reports_pb2.CHANGE_UNSPECIFIED
    assert not any(one.HasField("confidence") for one in short.comparisons[0].figures)


async def test_runs_that_can_not_be_compared_are_refused(shop: LoadTesting) -> None:
    base, running = await measured(shop, "base"), await active(shop, "now")
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "RUN_ACTIVE"):
        await compare(shop, [base, running])
    empty = await measured(shop, "empty", seconds=0)
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "RESULTS_MISSING"):
        await compare(shop, [base, empty])
    with require_status(grpc.StatusCode.NOT_FOUND):
        await compare(shop, [base, f"{PROJECT}/runs/none"])
    with require_status(grpc.StatusCode.INVALID_ARGUMENT):
        await compare(shop, [base, "projects/other/runs/r1"])
    with require_status(grpc.StatusCode.INVALID_ARGUMENT):
        await compare(shop, [base])
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "RUNS_MISSING"):
        await compare(shop, last=2)
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "RUN_ACTIVE"):
        await exported(shop, running, reports_pb2.REPORT_FORMAT_HTML)
    with require_status(grpc.StatusCode.NOT_FOUND):
        await exported(shop, f"{PROJECT}/runs/none", reports_pb2.REPORT_FORMAT_CSV)


async def test_tables_hold_what_was_measured(shop: LoadTesting) -> None:
    name = await measured(shop, "base", failed=1)
    file_name, media, text = await exported(shop, name, reports_pb2.REPORT_FORMAT_CSV)
    assert (file_name, media) == ("base_stats.csv", "text/csv; charset=utf-8")
    pets, total = csv.DictReader(io.StringIO(text))
    assert (pets["Type"], pets["Name"], pets["Request Count"], pets["Failure Count"]) == ("GET", "/pets", "120", "12")
    assert (total["Name"], total["Request Count"]) == ("Aggregated", "120")
    _, _, text = await exported(shop, name, reports_pb2.REPORT_FORMAT_CSV_HISTORY)
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == 12
    assert [int(line["Total Request Count"]) for line in lines] == list(range(10, 121, 10))
    assert lines[-1]["User Count"] == "3"
    _, _, text = await exported(shop, name, reports_pb2.REPORT_FORMAT_CSV_FAILURES)
    [failure] = csv.DictReader(io.StringIO(text))
    assert (failure["Method"], failure["Name"], failure["Occurrences"]) == ("GET", "/pets", "12")


async def test_json_holds_the_messages_of_the_api(shop: LoadTesting) -> None:
    base, name = await measured(shop, "base"), await measured(shop, "slow", ms=6.0)
    file_name, media, text = await exported(shop, name, reports_pb2.REPORT_FORMAT_JSON, base)
    assert (file_name, media) == ("slow.json", "application/json")
    report = json.loads(text)
    assert report["run"]["name"] == name
    assert report["comparison"]["change"] == "CHANGE_WORSE"
    assert sum(int(window["total"]["requests"]) for window in report["windows"]) == 120


async def test_junit_has_a_case_for_each_target_and_figure(shop: LoadTesting) -> None:
    base, name = await measured(shop, "base"), await measured(shop, "slow", ms=150.0, failed=1)
    run = await shop.runs.get_run(name)
    assert run.verdict is Verdict.FAILED
    _, _, text = await exported(shop, name, reports_pb2.REPORT_FORMAT_JUNIT, base)
    own, against = ElementTree.fromstring(text)  # noqa: S314  # our own
    assert (own.get("tests"), own.get("failures"), own.get("errors")) == ("3", "2", "0")
    failed = [case.get("name") for case in own if case.find("failure") is not None]
    assert failed == ["p95 <= 100 ms", "error_ratio <= 0.05"]
    worse = [case.get("name") for case in against if case.find("failure") is not None]
    assert "p50_ms of GET /pets" in worse


async def test_page_is_the_default_and_stands_alone(shop: LoadTesting) -> None:
    name = await measured(shop, "base", title="<b>Nightly</b>")
    file_name, media, text = await exported(shop, name, reports_pb2.REPORT_FORMAT_UNSPECIFIED)
    assert (file_name, media) == ("base.html", "text/html; charset=utf-8")
    assert "&lt;b&gt;Nightly&lt;/b&gt;" in text
    assert "<b>Nightly" not in text
    assert "GET /pets" in text
    assert "http://" not in text
    assert "https://" not in text
