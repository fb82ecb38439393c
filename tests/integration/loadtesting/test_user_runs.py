"""Runs by simulated users on a real server with real load generators: what the API under test sees of them."""

from __future__ import annotations

import asyncio
import csv
import io
import socket
from collections.abc import Iterator, Sequence

import pytest
from google.protobuf import json_format
from opsplane.loadtesting.v1 import datasets_pb2, loadtesting_pb2_grpc, projects_pb2, reports_pb2, runs_pb2

from tests.acceptance.pets import own_channel, replay
from tests.integration.loadtesting.recording_api import Call, RecordingApi, recording_api
from tests.server_process import alive, kill, running_server
from tests.waiting import until

Stub = loadtesting_pb2_grpc.LoadTestingStub

PROJECT = "projects/shop"
DATA_SET = f"{PROJECT}/dataSets/pets"

PETS = {"rows": 40, "fields": [{"name": "id", "sequence": "100"}, {"name": "name", "template": "pet {{row.id}}"}]}
LOOK = {"request": {"method": "GET", "path": "/pets/{{pool.pets.id}}"}, "weight": 3}
FEED = {
    "name": "feed",
    "request": {
        "method": "POST",
        "path": "/food",
        "headers": {"Authorization": "Bearer {{captured.token}}"},
        "body": '{"pet": {{pool.pets.id}}, "name": "{{pool.pets.name}}", "grams": {{int 1 1000}}}',
    },
}
OWN = "user.request('GET', '/own/' + user.pool('pets').id, { name: 'own' });"
LOGIN = {"request": {"method": "POST", "path": "/login"}, "captures": {"token": "data.token"}}
REST = {"headers": {"X-User": "{{user.id}}"}, "sessionHeader": "X-Session-Id", "waitTime": {"constant": "0.1s"}}

RUN = {
    "title": "Users",
    "userLoad": {
        "users": 4,
        "spawnRate": 4,
        "runTime": "3s",
        "classes": [
            {"name": "Heavy", "tasks": [LOOK, FEED], "onStart": [LOGIN]} | REST,
            {
                "name": "Light",
                "weight": 3,
                "tasks": [LOOK, {"script": OWN}],
            }
            | REST,
        ],
        "pools": [{"name": "pets", "dataSet": DATA_SET, "fallback": PETS, "rowsPerUser": 10, "overlapRatio": 0.3}],
    },
    # Nobody answers in no time.
    "targets": [{"metric": "TARGET_METRIC_RESPONSE_TIME_P95", "limit": 1e-6, "scenario": "Light"}],
}


@pytest.fixture(scope="module")
def api() -> Iterator[RecordingApi]:
    with recording_api() as running:
        yield running


async def create_project(stub: Stub, clickhouse_port: int) -> None:
    """The project, with a data set of a ClickHouse server at this port."""
    await stub.CreateProject(
        projects_pb2.CreateProjectRequest(project=projects_pb2.Project(title="Shop"), project_id="shop")
    )
    query = datasets_pb2.ClickHouseQuery(host="127.0.0.1", port=clickhouse_port, query="SELECT id, name FROM pets")
    await stub.CreateDataSet(
        datasets_pb2.CreateDataSetRequest(
            parent=PROJECT, data_set_id="pets", data_set=datasets_pb2.DataSet(clickhouse=query)
        )
    )


def run_of(base_url: str) -> runs_pb2.Run:
    run = json_format.ParseDict(RUN, runs_pb2.Run())
    run.base_url = base_url
    return run


async def carried_out(stub: Stub, run: runs_pb2.Run) -> runs_pb2.Run:
    """The run when it has ended."""
    created = await stub.CreateRun(runs_pb2.CreateRunRequest(parent=PROJECT, run=run))
    return (await replay(stub, created.name))[-1].run


def by_user(calls: Sequence[Call]) -> dict[str, list[Call]]:
    """The calls of every user in order."""
    found: dict[str, list[Call]] = {}
    for call in calls:
        found.setdefault(call.user, []).append(call)
    return found


async def exported(stub: Stub, name: str, form: reports_pb2.ReportFormat.ValueType) -> str:
    request = reports_pb2.ExportReportRequest(name=name, format=form)
    return b"".join([part.content async for part in stub.ExportReport(request)]).decode()


async def test_users_do_as_they_were_told_and_the_same_seed_does_the_same(api: RecordingApi) -> None:
    with running_server() as server:
        async with own_channel(server.address) as channel:
            stub = loadtesting_pb2_grpc.LoadTestingStub(channel)
            await create_project(stub, 1)
            first = await carried_out(stub, run_of(api.base_url))
            calls = list(api.calls)
            check_results(first, calls)
            check_calls(calls)
            await check_reports(stub, first)
            asked = await stub.GetRunScript(runs_pb2.GetRunScriptRequest(name=first.name))
            second = await carried_out(stub, asked.run)
            assert second.user_load == first.user_load
            check_same(by_user(calls), by_user(api.calls[len(calls) :]))
            compared = await stub.CompareRuns(
                reports_pb2.CompareRunsRequest(parent=PROJECT, runs=[first.name, second.name])
            )
            assert not compared.comparisons[0].notes
            assert {"Heavy", "Light", "feed"} <= {figure.series for figure in compared.comparisons[0].figures}


def check_results(run: runs_pb2.Run, calls: Sequence[Call]) -> None:
    """Its figures are those that the API has seen, class by class."""
    assert run.state == runs_pb2.RUN_STATE_COMPLETED, run.failure_message
    assert (run.verdict, [missed.scenario for missed in run.missed_targets]) == (runs_pb2.VERDICT_FAILED, ["Light"])
    [note] = run.notes
    assert note.startswith("pool pets: ")
    assert run.results.total.requests == len(calls)
    assert run.results.total.failed_requests == 0
    logins = [call for call in calls if call.path == "/login"]
    of_heavy = [call for call in calls if call.user.startswith("Heavy-") and call not in logins]
    of_light = [call for call in calls if call.user.startswith("Light-")]
    assert {one.name: one.stats.requests for one in run.results.scenarios} == {
        "Heavy": len(of_heavy),
        "Heavy:on_start": len(logins),
        "Light": len(of_light),
    }
    endpoints = {one.name: one.stats.requests for one in run.results.endpoints}
    assert endpoints["POST /login (on start)"] == len(logins) == 1
    assert endpoints["feed"] == len([call for call in calls if call.path == "/food"])
    assert endpoints["GET /pets/{pool.pets.id}"] == len([call for call in calls if call.path.startswith("/pets/")])


def check_calls(calls: Sequence[Call]) -> None:
    """Every user has one session, the token that it was given, and rows of its own part."""
    users = by_user(calls)
    assert sorted(user.partition("-")[0] for user in users) == ["Heavy", "Light", "Light", "Light"]
    assert len({call.session for call in calls}) == 4
    for user, own in users.items():
        assert len({call.session for call in own}) == 1
        assert len(own[0].session) == 32
        assert {call.authorization for call in own if call.path == "/food"} <= {f"Bearer of {user}"}
        start = (int(user.partition("-")[2]) - 1) * 7
        part = {100 + (start + place) % 40 for place in range(10)}
        assert {int(call.path.rpartition("/")[2]) for call in own if call.method == "GET"} <= part


async def check_reports(stub: Stub, run: runs_pb2.Run) -> None:
    """Reports speak of classes, and keep first steps apart."""
    text = await exported(stub, run.name, reports_pb2.REPORT_FORMAT_CSV)
    lines = {(line["Type"], line["Name"]): int(line["Request Count"]) for line in csv.DictReader(io.StringIO(text))}
    assert lines["POST", "/login (on start)"] == 1
    assert lines["", "Aggregated"] == run.results.total.requests
    assert sum(lines.values()) == 2 * run.results.total.requests
    page = await exported(stub, run.name, reports_pb2.REPORT_FORMAT_HTML)
    assert "<h2>User classes</h2>" in page
    assert all(f"<td>{name}</td>" in page for name in ("Heavy", "Heavy:on_start", "Light"))


def check_same(first: dict[str, list[Call]], second: dict[str, list[Call]]) -> None:
    """Users of both runs did the same as far as both went; of four users at least two are of the same class."""
    both = [user for user in first if user in second]
    assert len(both) >= 2
    for user in both:
        went = min(len(first[user]), len(second[user]))
        assert went > 1
        assert first[user][:went] == second[user][:went]


async def test_next_process_prepares_again_when_one_is_killed(api: RecordingApi) -> None:
    """It is killed while it waits for a query that never ends; the next one finds nobody there and makes rows up."""
    with socket.create_server(("127.0.0.1", 0)) as clickhouse, running_server() as server:
        clickhouse.setblocking(False)
        async with own_channel(server.address) as channel:
            stub = loadtesting_pb2_grpc.LoadTestingStub(channel)
            await create_project(stub, clickhouse.getsockname()[1])
            run = await stub.CreateRun(runs_pb2.CreateRunRequest(parent=PROJECT, run=run_of(api.base_url)))
            async with asyncio.timeout(60):
                query, _ = await asyncio.get_running_loop().sock_accept(clickhouse)
        [worker] = server.workers()
        kill(worker)
        await until(lambda: not alive(worker))
        query.close()
        clickhouse.close()
        async with own_channel(server.address) as channel:
            stub = loadtesting_pb2_grpc.LoadTestingStub(channel)
            watched = stub.WatchRun(runs_pb2.WatchRunRequest(name=run.name), wait_for_ready=True)
            ended = [message async for message in watched][-1].run
    assert ended.state == runs_pb2.RUN_STATE_COMPLETED, ended.failure_message
    assert [note.startswith("pool pets: ") for note in ended.notes] == [True]
    assert ended.results.total.requests > 0
