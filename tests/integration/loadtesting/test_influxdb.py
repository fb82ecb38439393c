"""A whole server with an InfluxDB beside its PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from opsplane.loadtesting.v1 import loadtesting_pb2_grpc, reports_pb2, runs_pb2
from opsplane_server.loadtesting.stores.influx import InfluxClient, InfluxTarget

from tests.acceptance.pets import create_run, own_channel, replay
from tests.contract.loadtesting.test_metric_writer import answering
from tests.influxd import running_influxd
from tests.integration.loadtesting.test_runs import Stub, finished, measured
from tests.server_process import ServerProcess, new_server
from tests.waiting import until

FORMATS = (
    reports_pb2.REPORT_FORMAT_JSON,
    reports_pb2.REPORT_FORMAT_CSV,
    reports_pb2.REPORT_FORMAT_CSV_HISTORY,
    reports_pb2.REPORT_FORMAT_HTML,
)


def settings(target: InfluxTarget, history: str = "postgres") -> dict[str, str]:
    return {
        "OPSPLANE_INFLUXDB__URL": target.url,
        "OPSPLANE_INFLUXDB__ORG": target.org,
        "OPSPLANE_INFLUXDB__BUCKET": target.bucket,
        "OPSPLANE_INFLUXDB__TOKEN": target.token,
        "OPSPLANE_LOADTESTING__HISTORY": history,
    }


@dataclass(frozen=True, slots=True)
class History:
    """All that can be read of two runs."""

    windows: list[runs_pb2.WatchRunResponse]
    windows_behind_a_cursor: list[runs_pb2.WatchRunResponse]
    comparison: reports_pb2.CompareRunsResponse
    reports: Mapping[reports_pb2.ReportFormat.ValueType, bytes]


async def history(stub: Stub, first: str, second: str) -> History:
    windows = await replay(stub, first)
    request = runs_pb2.WatchRunRequest(name=first, cursor=windows[len(windows) // 2].cursor)
    reports = {}
    for form in FORMATS:
        wanted = reports_pb2.ExportReportRequest(name=second, format=form, baseline=first)
        reports[form] = b"".join([part.content async for part in stub.ExportReport(wanted)])
    return History(
        windows,
        [message async for message in stub.WatchRun(request)],
        await stub.CompareRuns(reports_pb2.CompareRunsRequest(parent="projects/pets", runs=[first, second])),
        reports,
    )


async def copied(target: InfluxTarget, runs: int) -> None:
    """Waits until so many runs can be read from InfluxDB."""
    query = f"""from(bucket: "{target.bucket}") |> range(start: 0)
        |> filter(fn: (r) => r._measurement == "opsplane_history" and r._field == "rows") |> group() |> count()"""
    async with InfluxClient(target) as client:

        async def are_there() -> bool:
            return [record.values["_value"] for record in await client.query(query)] == [runs]

        await until(are_there)


def reads(server: ServerProcess) -> dict[str, float]:
    """How many reads of ended runs each store has answered."""
    _, text = server.get("/metrics")
    found = re.findall(r'^opsplane_history_reads_total\{store="(\w+)"\} (\S+)$', text, re.MULTILINE)
    return {store: float(count) for store, count in found}


@pytest.mark.slow
async def test_both_stores_give_the_same_history_also_after_influxdb_was_killed_in_the_middle(sample_api: str) -> None:
    with running_influxd() as influx:
        target = influx.new_bucket()
        with new_server(environment=settings(target)) as server:
            server.start()
            server.wait_ready()
            async with own_channel(server.address) as channel:
                stub = loadtesting_pb2_grpc.LoadTestingStub(channel)
                run = await create_run(stub, sample_api, seconds=10)
                await measured(stub, run.name, 2)
                influx.kill()
                await measured(stub, run.name, 5)
                await until(lambda: server.find_log("figures are not copied now, and will be later") is not None)
                influx.start()
                ended = await finished(stub, run.name)
                assert ended.state == runs_pb2.RUN_STATE_COMPLETED
                assert not ended.results.incomplete_reason
                again = runs_pb2.Run(title="Browse", scenarios=run.scenarios)
                again.scenarios[0].stages[0].duration.FromSeconds(7)
                other = await stub.CreateRun(runs_pb2.CreateRunRequest(parent="projects/pets", run=again))
                await finished(stub, other.name)
                before = await history(stub, run.name, other.name)
                counted = sum(message.window.total.requests for message in before.windows)
                assert counted == ended.results.total.requests > 0
                await copied(target, 2)
            assert reads(server) == {}
            assert target.token not in server.errors()
            server.stop()

            reading = ServerProcess(server.data_dir.parent, environment=settings(target, "influxdb"))
            reading.start()
            try:
                reading.wait_ready()
                async with own_channel(reading.address) as channel:
                    after = await history(loadtesting_pb2_grpc.LoadTestingStub(channel), run.name, other.name)
                assert reads(reading).keys() == {"copy"}
            finally:
                reading.destroy()
    assert after.windows == before.windows
    assert after.windows_behind_a_cursor == before.windows_behind_a_cursor
    assert 0 < len(after.windows_behind_a_cursor) < len(after.windows)
    assert after.comparison == before.comparison
    assert after.reports == before.reports
    assert all(after.reports.values())


async def test_server_of_version_1_is_named_and_keeps_nobody_from_working() -> None:
    async with answering("204 No Content\r\nX-Influxdb-Version: 1.8.10") as url:
        target = InfluxTarget(url, "tests", "k6", "not-to-be-told")
        with new_server(environment=settings(target)) as server:
            server.start()
            server.wait_ready()
            await until(lambda: server.find_log("figures are not copied now, and will be later") is not None)
            [line] = [one for one in server.logs() if one["event"].startswith("figures are not copied")]
            assert line["level"] == "error"
            assert "InfluxDB 1.8.10" in line["detail"]
            assert "influxdb.token" in line["detail"]
            assert server.get("/ready")[0] == 200
            assert "opsplane_metric_copy_up 0.0" in server.get("/metrics")[1]
            assert target.token not in server.errors()
