"""The dashboard for Grafana asks InfluxDB for what is there."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from opsplane_server.loadtesting.definitions import LoadTest
from opsplane_server.loadtesting.history.series import SeriesNames
from opsplane_server.loadtesting.metrics.figures import SECOND
from opsplane_server.loadtesting.metrics.results import RunFold, Verdict
from opsplane_server.loadtesting.metrics.rows import ExportRow, Series
from opsplane_server.loadtesting.model import Outcome, Run, RunPlan, RunState
from opsplane_server.loadtesting.stores.influx import InfluxClient
from opsplane_server.loadtesting.watch import origin
from opsplane_server.storage.followers import Position

from tests.contract.loadtesting.stored_runs import copying
from tests.influxd import Influxd
from tests.unit.loadtesting.metrics.samples import histogram_of

DASHBOARD = Path(__file__).resolve().parents[3] / "k8s" / "dashboards" / "opsplane-load-tests.json"
START = datetime(2027, 1, 1, tzinfo=UTC)
SECONDS = 20

Records: TypeAlias = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Query:
    title: str
    flux: str


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return content


def panels() -> list[Query]:
    return [Query(one["title"], target["query"]) for one in dashboard()["panels"] for target in one["targets"]]


def variables() -> list[Query]:
    return [Query(one["name"], one["query"]) for one in dashboard()["templating"]["list"] if one["type"] == "query"]


@dataclass(frozen=True, slots=True)
class Grafana:
    """Runs queries as Grafana does, with these values of the dashboard's variables."""

    client: InfluxClient
    values: dict[str, str]

    async def run(self, query: Query) -> Records:
        flux = query.flux
        for name, value in self.values.items():
            flux = flux.replace(f"${{{name}}}", value)
        assert "${" not in flux, "a variable that is not there"
        imports = "".join(re.findall(r"^import .*\n", flux, re.MULTILINE))
        start, stop = (f"{time:%Y-%m-%dT%H:%M:%SZ}" for time in (START, START + timedelta(minutes=5)))
        option = f"option v = {{timeRangeStart: {start}, timeRangeStop: {stop}, windowPeriod: 2s}}\n"
        return [one.values for one in await self.client.query(imports + option + flux.removeprefix(imports))]


def rows(run: Run) -> Iterator[ExportRow]:
    """Two load generators, each with two endpoints."""
    for second in range(SECONDS):
        for generator in ("0", "1"):
            # They export at moments of their own.
            start = origin(run) + second * SECOND + int(generator) * SECOND // 3
            series = (
                Series("browse", "GET /pets", 10, 1, histogram_of([5.0] * 9 + [50.0], 5)),
                Series("browse", "GET /pets/{id}", 4, 0, histogram_of([2.0] * 4, 5)),
            )
            yield ExportRow(generator, start, start + SECOND, series, 14, 1, 5000, 700, vus=3)


@pytest.fixture
async def grafana(influxdb: Influxd) -> AsyncIterator[Grafana]:
    target = influxdb.new_bucket()
    plan = RunPlan(LoadTest("Nightly", "http://127.0.0.1:1", ()), script="//", generators=2)
    run = Run("projects/shop/runs/r1", "Nightly", "", plan, "tests", "", create_time=START)
    fold = RunFold(origin(run), 2)
    placed = []
    for number, row in enumerate(rows(run), 1):
        fold.add(row)
        placed.append((Position(7, number), row))
    ended = replace(
        run,
        state=RunState.COMPLETED,
        verdict=Verdict.PASSED,
        outcome=Outcome(fold.results()),
        end_time=START + timedelta(seconds=SECONDS),
    )
    async with copying(target) as copy:
        await copy.write(ended, 1, placed, SeriesNames())
        await copy.finish(ended, len(placed))
    values = {"bucket": target.bucket, "project": "shop", "run": "r1", "endpoint:regex": ".*"}
    async with InfluxClient(target) as client:
        yield Grafana(client, values)


def test_dashboard_is_complete() -> None:
    content = dashboard()
    assert isinstance(content["schemaVersion"], int)
    assert content["title"]
    assert content["uid"]
    ids = [panel["id"] for panel in content["panels"]]
    assert len(set(ids)) == len(ids)
    names = {variable["name"] for variable in content["templating"]["list"]}
    assert {"project", "run", "endpoint"} <= names
    used = set(re.findall(r"\$\{(\w+)[}:]", DASHBOARD.read_text(encoding="utf-8")))
    assert used - {"__field"} == names
    taken: set[tuple[int, int]] = set()
    for panel in content["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        squares = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not squares & taken, f"{panel['title']} lies over another panel"
        taken |= squares
        assert panel["datasource"]["uid"] == "${datasource}"


async def test_every_query_finds_something(grafana: Grafana) -> None:
    for query in (*panels(), *variables()):
        assert await grafana.run(query), query.title


async def test_panels_show_what_was_measured(grafana: Grafana) -> None:
    found = {query.title: await grafana.run(query) for query in panels()}

    def shown(title: str) -> list[float]:
        return [record["_value"] for record in found[title]]

    assert shown("Calls") == [SECONDS * 28]
    assert shown("Failed calls") == [SECONDS * 2]
    assert shown("Dropped iterations") == [SECONDS * 2]
    assert shown("Most virtual users") == [6]
    assert shown("Slowest call") == [50.0]
    assert shown("Most calls a second") == [pytest.approx(28)]
    assert max(shown("Calls a second")) == pytest.approx(28)
    assert max(shown("Failed calls a second")) == pytest.approx(2)
    assert set(shown("Virtual users")) == {6}
    assert {record["_field"] for record in found["Response times"]} == {"p50_ms", "p90_ms", "p95_ms", "p99_ms"}
    by_endpoint = {(one["endpoint"], round(one["_value"])) for one in found["Calls a second by endpoint"]}
    assert by_endpoint == {("GET /pets", 20), ("GET /pets/{id}", 8)}
    first, second = found["Endpoints"]
    assert (first["endpoint"], first["calls"], first["failed"]) == ("GET /pets", SECONDS * 20, SECONDS * 2)
    assert first["mean"] == pytest.approx(9.5)
    assert (first["slowest"], second["slowest"]) == (50.0, 2.0)
    [run] = found["Ended runs of the project"]
    assert (run["run"], run["verdict"], run["requests"]) == ("r1", "PASSED", SECONDS * 28)
    assert run["seconds"] == pytest.approx(SECONDS, abs=1)


async def test_variables_choose(grafana: Grafana) -> None:
    found = {query.title: [one["_value"] for one in await grafana.run(query)] for query in variables()}
    assert found == {"project": ["shop"], "run": ["r1"], "endpoint": ["GET /pets", "GET /pets/{id}"]}
    # What Grafana makes of a chosen value by `:regex`.
    chosen = Grafana(grafana.client, grafana.values | {"endpoint:regex": r"(GET \/pets\/\{id\})"})
    [table] = [query for query in panels() if query.title == "Endpoints"]
    assert [one["endpoint"] for one in await chosen.run(table)] == ["GET /pets/{id}"]
    other = Grafana(grafana.client, grafana.values | {"run": "r2"})
    assert await other.run(table) == []
