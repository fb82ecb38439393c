"""Tables and JUnit, as the programs that they are for read them."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from opsplane_server.loadtesting.metrics.histograms import Histogram
from opsplane_server.loadtesting.metrics.results import Verdict
from opsplane_server.loadtesting.metrics.rows import ExportRow, Series
from opsplane_server.loadtesting.metrics.slots import SingleSlots
from opsplane_server.loadtesting.model import RunState
from opsplane_server.loadtesting.reports import tables
from opsplane_server.loadtesting.reports.content import Content
from opsplane_server.loadtesting.reports.junit import junit

from tests.unit.loadtesting.comparison.courses import SECOND, START, rows
from tests.unit.loadtesting.reports.contents import content


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def named(*names: str) -> Content:
    """A run with a call of each name."""
    one = Histogram.of(3, 10, [1], zero_count=0, total=5.0)
    series = tuple(Series("s", name, 1, 0, one) for name in names)
    return content([ExportRow("a", START + i * SECOND, START + (i + 1) * SECOND, series) for i in range(3)])


def test_stats_agree_with_the_results() -> None:
    found = content()
    *endpoints, total = read(tables.stats(found))
    results = found.results.total
    assert len(endpoints) == 12
    assert int(total["Request Count"]) == results.requests == sum(int(row["Request Count"]) for row in endpoints)
    assert int(total["Failure Count"]) == results.failed_requests
    assert results.response_time is not None
    assert results.tps is not None
    assert float(total["95%"]) == pytest.approx(results.response_time.p95_ms, rel=1e-4)
    assert float(total["100%"]) == pytest.approx(results.response_time.max_ms, rel=1e-4)
    assert float(total["Median Response Time"]) == float(total["50%"])
    assert float(total["Requests/s"]) == pytest.approx(results.tps.avg, rel=1e-4)
    for row in endpoints:
        shares = [float(row[share]) for share in ("50%", "66%", "75%", "80%", "90%", "95%", "98%", "99%", "99.9%")]
        assert shares == sorted(shares)


def test_history_sums_up() -> None:
    measured = rows(1, seconds=10, failing={"GET /1": 0.5})
    history, slots = tables.History(), SingleSlots()
    lines = read(history.head() + history.lines(slot for row in measured for slot in slots.feed("", row, 0)))
    assert [int(line["Timestamp"]) for line in lines] == [row.time_unix_nano // SECOND for row in measured]
    assert int(lines[-1]["Total Request Count"]) == sum(s.requests for row in measured for s in row.series)
    assert int(lines[-1]["Total Failure Count"]) == sum(s.failed for row in measured for s in row.series) > 0
    assert float(lines[0]["Requests/s"]) == sum(s.requests for s in measured[0].series)
    silent = read(history.head() + history.lines(slots.feed("", ExportRow("a", START, START + 99 * SECOND), 0)))
    assert (silent[0]["50%"], silent[0]["Requests/s"]) == ("N/A", "0.000000")


def test_failures_name_where_they_were() -> None:
    [failure] = read(tables.failures(content()))
    assert (failure["Method"], failure["Name"]) == ("GET", "/2")
    assert failure["First Seen"] < failure["Last Seen"]


def test_names_can_not_become_formulas_or_columns() -> None:
    names = [row["Name"] for row in read(tables.stats(named("=cmd()", 'a,"b"\n', "GET /x", "GETTING on")))]
    assert sorted(names) == sorted(["'=cmd()", 'a,"b"\n', "/x", "GETTING on", "Aggregated"])


def cases(text: str) -> dict[str, ElementTree.Element]:
    [suite] = ElementTree.fromstring(text)  # noqa: S314  # our own
    return {str(case.get("name")): case for case in suite}


def test_junit_of_a_run_that_is_not_to_be_judged() -> None:
    found = content()
    run = replace(found.run, state=RunState.FAILED, failure_reason="TIMEOUT", failure_message="too \x00 long")
    error = cases(junit(replace(found, run=run)))["run"].find("error")
    assert error is not None
    assert error.get("type") == "TIMEOUT"
    assert "too \N{REPLACEMENT CHARACTER} long" in str(error.get("message"))


def test_junit_of_a_run_that_missed_a_target() -> None:
    found = content()
    run = replace(found.run, verdict=Verdict.FAILED)
    by_name = cases(junit(replace(found, run=run)))
    assert by_name["run"].find("error") is None
    assert [name for name, case in by_name.items() if case.find("failure") is not None] == ["p50 of Light <= 1 ms"]
    assert len(by_name) == 1 + 4
