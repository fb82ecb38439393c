"""`compare`, `check` and `report` against a server that answers what the tests say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from opsplane.loadtesting.v1 import metrics_pb2, reports_pb2, runs_pb2

from tests.unit.cli.commands import opsplane_command
from tests.unit.cli.fake_servicer import NAME, FakeLoadTesting, script, serving

BASE = "projects/shop/runs/base"
Context = grpc.aio.ServicerContext[Any, Any]


def change(what: reports_pb2.Change.ValueType, run: str = NAME) -> reports_pb2.RunComparison:
    figures = [
        reports_pb2.FigureChange(figure="p95_ms", baseline_value=4, value=5, change_ratio=0.25, change=what),
        reports_pb2.FigureChange(
            series="GET /\x1b[31m",
            figure="error_ratio",
            value=0.1,
            change_ratio=float("inf"),
            change=reports_pb2.CHANGE_WORSE,
        ),
        reports_pb2.FigureChange(series="GET /same", figure="tps", change=reports_pb2.CHANGE_NONE),
    ]
    figures[0].confidence.CopyFrom(metrics_pb2.Range(min=0.2, avg=0.25, max=0.3))
    return reports_pb2.RunComparison(run=run, change=what, figures=figures, notes=["another \x1b load"])


@dataclass
class Reporting(FakeLoadTesting):
    """Compares as it is told, and sends a report in two parts."""

    changes: list[reports_pb2.RunComparison] = field(default_factory=lambda: [change(reports_pb2.CHANGE_WORSE)])
    file_name: str = "nightly.html"
    compared: list[reports_pb2.CompareRunsRequest] = field(default_factory=list)
    reported: list[reports_pb2.ExportReportRequest] = field(default_factory=list)

    async def CompareRuns(  # noqa: N802
        self, request: reports_pb2.CompareRunsRequest, context: Context
    ) -> reports_pb2.CompareRunsResponse:
        self.compared.append(request)
        return reports_pb2.CompareRunsResponse(baseline=BASE, comparisons=self.changes)

    async def ExportReport(  # noqa: N802
        self, request: reports_pb2.ExportReportRequest, context: Context
    ) -> AsyncIterator[reports_pb2.ExportReportResponse]:
        self.reported.append(request)
        await self._refuse_unknown(request.name, context)
        yield reports_pb2.ExportReportResponse(file_name=self.file_name, content_type="text/html", content=b"<p>one")
        yield reports_pb2.ExportReportResponse(content=b" two</p>\n")


async def test_compare_shows_what_changed() -> None:
    servicer = Reporting()
    async with serving(servicer) as address:
        outcome = await opsplane_command(
            "loadtest", "compare", "shop/base", "shop/nightly", "--limit", "GET /a:p95_ms=20%", address=address
        )
    assert outcome.status == 0, outcome.err
    [request] = servicer.compared
    assert (request.parent, list(request.runs)) == ("projects/shop", [BASE, NAME])
    assert [(one.figure, one.series, one.ratio) for one in request.tolerances] == [
        ("", "", 0.05),
        ("p95_ms", "GET /a", 0.2),
    ]
    assert "shop/nightly against shop/base: worse" in outcome.out
    assert "+25.0%" in outcome.out
    assert "+20.0% and +30.0%" in outcome.out
    assert "new" in outcome.out
    assert "GET /same" not in outcome.out
    assert "\x1b" not in outcome.out


async def test_compare_of_several_shows_the_trend() -> None:
    changes = [change(reports_pb2.CHANGE_NONE, f"projects/shop/runs/r{n}") for n in range(3)]
    servicer = Reporting(changes=changes)
    async with serving(servicer) as address:
        outcome = await opsplane_command(
            "loadtest", "compare", "-p", "shop", "--last", "4", "--title", "Nightly", "--all", address=address
        )
        as_json = await opsplane_command(
            "-o", "json", "loadtest", "compare", "-p", "shop", "--last", "4", address=address
        )
    assert outcome.status == 0, outcome.err
    assert (servicer.compared[0].last, servicer.compared[0].title) == (4, "Nightly")
    first = outcome.out.splitlines()[:5]
    assert first[0].split()[:2] == ["run", "avg_ms"]
    assert [line.split()[0] for line in first[1:]] == ["shop/base", "shop/r0", "shop/r1", "shop/r2"]
    assert "GET /same" in outcome.out
    assert len(json.loads(as_json.out)["comparisons"]) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("shop/a",),
        ("shop/a", "shop/b", "--last", "3"),
        ("--last", "3"),
        ("shop/a", "shop/b", "--limit", "p95=20%"),
        ("shop/a", "shop/b", "--title", "x"),
    ],
)
async def test_wrong_usage_of_compare(arguments: tuple[str, ...]) -> None:
    assert (await opsplane_command("loadtest", "compare", *arguments)).status == 2


@pytest.mark.parametrize(
    ("what", "verdict", "status"),
    [
        (reports_pb2.CHANGE_NONE, runs_pb2.VERDICT_PASSED, 0),
        (reports_pb2.CHANGE_BETTER, runs_pb2.VERDICT_PASSED, 0),
        (reports_pb2.CHANGE_WORSE, runs_pb2.VERDICT_PASSED, 3),
        (reports_pb2.CHANGE_UNSPECIFIED, runs_pb2.VERDICT_PASSED, 3),
        (reports_pb2.CHANGE_NONE, runs_pb2.VERDICT_FAILED, 3),
        (reports_pb2.CHANGE_NONE, runs_pb2.VERDICT_INVALID, 3),
    ],
)
async def test_check_ends_for_ci(
    what: reports_pb2.Change.ValueType, verdict: runs_pb2.Verdict.ValueType, status: int
) -> None:
    async with serving(Reporting(changes=[change(what)], updates=script(verdict))) as address:
        outcome = await opsplane_command("loadtest", "check", "shop/nightly", "--against", "base", "-p", "shop",
                                         address=address)  # fmt: skip
    assert outcome.status == status, outcome.err
    assert "against shop/base" in outcome.out


async def test_check_without_a_baseline_is_the_verdict() -> None:
    servicer = Reporting()
    async with serving(servicer) as address:
        assert (await opsplane_command("loadtest", "check", "shop/nightly", address=address)).status == 0
        assert (await opsplane_command("loadtest", "check", "shop/other", address=address)).status == 1
    assert not servicer.compared


async def test_report_is_written_to_a_folder_a_file_or_the_output(tmp_path: Path) -> None:
    servicer = Reporting()
    async with serving(servicer) as address:
        for target in (tmp_path, tmp_path / "own.html"):
            outcome = await opsplane_command(
                "loadtest", "report", "shop/nightly", "--against", "shop/base", "--to", str(target), address=address
            )
            assert outcome.status == 0, outcome.err
        printed = await opsplane_command(
            "loadtest", "report", "shop/nightly", "-f", "csv-history", "--to", "-", address=address
        )
    for name in ("nightly.html", "own.html"):
        assert (tmp_path / name).read_text() == "<p>one two</p>\n"
    assert printed.out == "<p>one two</p>\n"
    assert [(one.format, one.baseline) for one in servicer.reported] == [
        (reports_pb2.REPORT_FORMAT_HTML, BASE),
        (reports_pb2.REPORT_FORMAT_HTML, BASE),
        (reports_pb2.REPORT_FORMAT_CSV_HISTORY, ""),
    ]


async def test_a_refused_report_replaces_no_file_and_none_leaves_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    kept = folder / "kept.html"
    kept.write_text("before")
    async with serving(Reporting(file_name="../../evil.html")) as address:
        refused = await opsplane_command("loadtest", "report", "shop/other", "--to", str(kept), address=address)
        written = await opsplane_command("loadtest", "report", "shop/nightly", "--to", str(folder), address=address)
    assert refused.status == 1
    assert kept.read_text() == "before"
    assert written.status == 0
    assert sorted(path.name for path in folder.iterdir()) == ["evil.html", "kept.html"]
