"""Runs by simulated users: what may be asked for, what is kept of it, and the rows that their users draw from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from opsplane.loadtesting.v1 import (
    datasets_pb2,
    projects_pb2,
    reports_pb2,
    runs_pb2,
    scenarios_pb2,
    specs_pb2,
    users_pb2,
)
from opsplane_server.loadtesting.datasets.pools import DataSetRows
from opsplane_server.loadtesting.datasets.preparing import PreparedRows
from opsplane_server.loadtesting.metrics.results import RunFold
from opsplane_server.loadtesting.metrics.targets import judge
from opsplane_server.loadtesting.model import Outcome, RunEnd, RunState
from opsplane_server.loadtesting.runners.port import Exited
from opsplane_server.loadtesting.tokens import token_hash
from opsplane_server.loadtesting.users.model import DataPool
from opsplane_server.storage.followers import Position
from opsplane_server.storage.secrets import SecretBox

from tests.fake_runner import FakeRunner, supervising
from tests.loadtesting_harness import PETS, LoadTesting, export
from tests.rpc_harness import bearer, require_status
from tests.waiting import until

PROJECT = "projects/shop"
ENDPOINT = f"{PROJECT}/specs/pets/endpoints/e1"

ROWS = {"rows": 5, "fields": [{"name": "id", "sequence": "1"}]}
LOOK = {"request": {"method": "GET", "path": "/pets/{{pool.pets.id}}"}, "weight": 3}
FEED = {"name": "feed", "request": {"method": "POST", "path": "/food", "body": '{"pet": {{pool.pets.id}}}'}}


def load(**fields: Any) -> users_pb2.UserLoad:
    """Four users of two classes that draw from a pool, for ten seconds."""
    wanted = {
        "users": 4,
        "spawnRate": 2,
        "runTime": "10s",
        "classes": [
            {"name": "Heavy", "tasks": [LOOK, FEED], "onStart": [{"request": {"method": "POST", "path": "/login"}}]},
            {"name": "Light", "weight": 3, "waitTime": {"constant": "0.5s"}, "tasks": [LOOK]},
        ],
        "pools": [{"name": "pets", "generator": ROWS}],
    }
    return json_format.ParseDict(wanted | fields, users_pb2.UserLoad())


def wanted(run_id: str = "r1", *, users: users_pb2.UserLoad | None = None, **fields: Any) -> runs_pb2.CreateRunRequest:
    run = runs_pb2.Run(title="Users", base_url="http://127.0.0.1:8080", user_load=users or load(), **fields)
    return runs_pb2.CreateRunRequest(parent=PROJECT, run=run, run_id=run_id)


@pytest.fixture
async def shop(loadtesting: LoadTesting) -> LoadTesting:
    """With the project that all runs here are of."""
    await loadtesting.stub.CreateProject(
        projects_pb2.CreateProjectRequest(project=projects_pb2.Project(title="Shop"), project_id="shop")
    )
    return loadtesting


async def specified(shop: LoadTesting, *specs: str) -> None:
    """Gives the project specifications."""
    content = PETS.read_text(encoding="utf-8")
    for spec in specs:
        await shop.stub.AnalyzeSpec(specs_pb2.AnalyzeSpecRequest(parent=PROJECT, spec_id=spec, content=content))


# --- what is asked for --------------------------------------------------------------------------------------------


async def test_run_shows_its_load_with_the_seed_that_was_chosen_and_lists_show_it_in_full(shop: LoadTesting) -> None:
    request = wanted()
    run = await shop.stub.CreateRun(request)
    assert run.user_load.seed > 0
    request.run.user_load.seed = run.user_load.seed
    assert run.user_load == request.run.user_load
    assert run.planned_duration.ToTimedelta() == timedelta(seconds=10)
    assert not run.notes
    assert await shop.stub.GetRun(runs_pb2.GetRunRequest(name=run.name)) == run
    brief = await shop.stub.ListRuns(runs_pb2.ListRunsRequest(parent=PROJECT))
    assert [one.HasField("user_load") for one in brief.runs] == [False]
    full = await shop.stub.ListRuns(runs_pb2.ListRunsRequest(parent=PROJECT, view=runs_pb2.RUN_VIEW_FULL))
    assert list(full.runs) == [run]


async def test_run_can_be_repeated_exactly(shop: LoadTesting) -> None:
    first = await shop.stub.CreateRun(wanted())
    kept = await shop.stub.GetRunScript(runs_pb2.GetRunScriptRequest(name=first.name))
    second = await shop.stub.CreateRun(runs_pb2.CreateRunRequest(parent=PROJECT, run=kept.run, run_id="r2"))
    again = await shop.stub.GetRunScript(runs_pb2.GetRunScriptRequest(name=second.name))
    assert again.script == kept.script
    assert again.run == kept.run


async def test_nothing_starts_where_it_is_only_checked(shop: LoadTesting) -> None:
    request = wanted()
    request.validate_only = True
    run = await shop.stub.CreateRun(request)
    assert run.user_load.seed
    assert not (await shop.stub.ListRuns(runs_pb2.ListRunsRequest(parent=PROJECT))).runs
    shown = await shop.stub.GenerateScript(runs_pb2.GenerateScriptRequest(parent=PROJECT, run=request.run))
    assert "Heavy" in shown.script


async def test_endpoints_are_of_any_specification_of_the_project(shop: LoadTesting) -> None:
    await specified(shop, "pets", "more")
    other = f"{PROJECT}/specs/more/endpoints/e2"
    users = load(classes=[{"name": "A", "tasks": [{"endpoint": ENDPOINT}, {"endpoint": other}]}], pools=[])
    run = await shop.stub.CreateRun(wanted(users=users))
    assert [task.endpoint for task in run.user_load.classes[0].tasks] == [ENDPOINT, other]
    # The run keeps its own copy.
    await shop.stub.DeleteSpec(specs_pb2.DeleteSpecRequest(name=f"{PROJECT}/specs/more"))
    assert await shop.stub.GetRun(runs_pb2.GetRunRequest(name=run.name)) == run


async def test_preset_gives_what_is_not_said(shop: LoadTesting) -> None:
    users = load(preset="LOAD_PRESET_SMOKE")
    users.users, users.spawn_rate = 0, 0
    users.ClearField("run_time")
    run = await shop.stub.CreateRun(wanted(users=users))
    assert run.planned_duration.ToTimedelta() == timedelta(seconds=60)
    assert (run.user_load.preset, run.user_load.users) == (users_pb2.LOAD_PRESET_SMOKE, 0)


async def test_class_without_users_is_noted(shop: LoadTesting) -> None:
    users = load(users=1)
    run = await shop.stub.CreateRun(wanted(users=users))
    assert len(run.notes) == 1
    assert "Heavy" in run.notes[0]
    assert (await shop.stub.GetRun(runs_pb2.GetRunRequest(name=run.name))).notes == run.notes


# --- what is refused ----------------------------------------------------------------------------------------------


def of(*tasks: Mapping[str, Any], **fields: Any) -> users_pb2.UserLoad:
    """A load of one class with these tasks."""
    return load(classes=[{"name": "A", "tasks": list(tasks)}], **fields)


WRONG = "INVALID_ARGUMENT"
REFUSED = {
    "class twice": (load(classes=[{"name": "A", "tasks": [LOOK]}] * 2), WRONG, ["run.user_load.classes[1].name"]),
    "pool twice": (load(pools=[{"name": "pets", "generator": ROWS}] * 2), WRONG, ["run.user_load.pools[1].name"]),
    "no users": (load(users=0), WRONG, ["run.user_load.users"]),
    "stages and users": (
        load(stages=[{"duration": "5s", "users": 2}]),
        WRONG,
        ["run.user_load.users", "run.user_load.spawn_rate", "run.user_load.run_time"],
    ),
    "unknown endpoint": (
        of(LOOK, {"endpoint": f"{PROJECT}/specs/pets/endpoints/e99"}),
        "ENDPOINT_NOT_FOUND",
        ["run.user_load.classes[0].tasks[1].endpoint"],
    ),
    "endpoint of another project": (
        of({"endpoint": "projects/other/specs/pets/endpoints/e1"}),
        "ENDPOINT_NOT_FOUND",
        ["run.user_load.classes[0].tasks[0].endpoint"],
    ),
    "unknown parameter": (
        of({"endpoint": ENDPOINT, "parameters": {"colour": "red"}}),
        WRONG,
        ["run.user_load.classes[0].tasks[0].parameters['colour']"],
    ),
    "body without endpoint": (of(LOOK | {"body": "{}"}), WRONG, ["run.user_load.classes[0].tasks[0].body"]),
    "unknown field": (
        of(LOOK, {"request": {"method": "POST", "path": "/", "body": "{{pool.pets.name}}"}}),
        "TEMPLATE_WRONG",
        ["run.user_load.classes[0].tasks[1].request.body"],
    ),
    "unknown data set": (
        load(pools=[{"name": "pets", "dataSet": f"{PROJECT}/dataSets/none"}]),
        "POOL_WRONG",
        ["run.user_load.pools[0].data_set"],
    ),
    "text that can not be kept": (
        of({"request": {"method": "POST", "path": "/", "body": "a\0b"}}),
        WRONG,
        ["run"],
    ),
    "broken script": (
        of(LOOK, {"script": "user.request('GET', '/pets');"}, {"script": "const a = 1;\nconst b = ;"}),
        "SCRIPT_ERROR",
        ["run.user_load.classes[0].tasks[2].script"],
    ),
}


async def test_field_that_can_not_be_is_named(shop: LoadTesting) -> None:
    await specified(shop, "pets")
    for case, (users, reason, fields) in REFUSED.items():
        with require_status(grpc.StatusCode.INVALID_ARGUMENT, reason) as refusal:
            await shop.stub.CreateRun(wanted(users=users))
        assert refusal.bad_fields == fields, (case, refusal.message)
        if case == "broken script":
            assert "line 2" in refusal.message


async def test_script_is_not_generated_of_what_can_not_be(shop: LoadTesting) -> None:
    users, reason, fields = REFUSED["unknown field"]
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, reason) as refusal:
        await shop.stub.GenerateScript(runs_pb2.GenerateScriptRequest(parent=PROJECT, run=wanted(users=users).run))
    assert refusal.bad_fields == fields


async def test_base_url_is_required_where_tasks_have_paths_alone(shop: LoadTesting) -> None:
    await specified(shop, "pets")
    request = wanted()
    request.run.base_url = ""
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, WRONG) as refusal:
        await shop.stub.CreateRun(request)
    assert refusal.bad_fields == ["run.base_url"]
    request.run.user_load.CopyFrom(of({"endpoint": ENDPOINT}, pools=[]))
    run = await shop.stub.CreateRun(request)
    assert run.base_url == ""


async def test_target_is_of_a_class(shop: LoadTesting) -> None:
    target = scenarios_pb2.Target(metric=scenarios_pb2.TARGET_METRIC_TPS, limit=1, scenario="Light")
    run = await shop.stub.CreateRun(wanted(targets=[target]))
    assert list(run.targets) == [target]
    target.scenario = "Nobody"
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, WRONG) as refusal:
        await shop.stub.CreateRun(wanted("r2", targets=[target]))
    assert refusal.bad_fields == ["run.targets[0].scenario"]


async def test_load_must_end_before_the_run_is_ended(shop: LoadTesting) -> None:
    request = wanted()
    request.run.timeout.FromSeconds(10)
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "TIMEOUT_SHORT") as refusal:
        await shop.stub.CreateRun(request)
    assert refusal.bad_fields == ["run.timeout"]


# --- rows ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def box(tmp_path: Path) -> SecretBox:
    return SecretBox.from_key_file(tmp_path / "supervisor.key", create=True)


class Gate:
    """The rows of data sets, once a test lets them come; what they were asked for is in `asked`."""

    def __init__(self, shop: LoadTesting, *, is_open: bool) -> None:
        self._rows = DataSetRows(shop.data_sets, shop.secrets, shop.reader)
        self._open = is_open
        self.asked: list[tuple[int, datetime, Mapping[str, Sequence[str]]]] = []
        self.ended = 0

    async def fields(self, parent: str, pools: Sequence[DataPool]) -> Mapping[str, Sequence[str]]:
        return await self._rows.fields(parent, pools)

    async def prepare(
        self, pools: Sequence[DataPool], *, seed: int, now: datetime, needed: Mapping[str, Sequence[str]]
    ) -> PreparedRows:
        self.asked.append((seed, now, needed))
        try:
            if not self._open:
                await asyncio.Event().wait()
            return await self._rows.prepare(pools, seed=seed, now=now, needed=needed)
        finally:
            self.ended += 1


async def ended(shop: LoadTesting, name: str) -> runs_pb2.Run:
    messages = [m async for m in shop.stub.WatchRun(runs_pb2.WatchRunRequest(name=name))]
    return messages[-1].run


def pool_of(runner: FakeRunner, number: int = 0) -> list[dict[str, int]]:
    """The rows that stand beside the script of a load generator."""
    rows: list[dict[str, int]] = json.loads(runner.specs[number].files["pool-pets.json"])
    return rows


async def test_rows_stand_beside_the_script_of_every_generator(shop: LoadTesting, box: SecretBox) -> None:
    runner, rows = FakeRunner(), Gate(shop, is_open=True)
    async with supervising(shop, runner, box, rows=rows):
        run = await shop.stub.CreateRun(wanted(users=load(seed=100), generators=2))
        await until(lambda: len(runner.specs) == 2)
        runner.end(Exited(0))
        assert (await ended(shop, run.name)).state == runs_pb2.RUN_STATE_COMPLETED
    assert [sorted(spec.files) for spec in runner.specs] == [["pool-pets.json", "script.js"]] * 2
    assert pool_of(runner, 0) == pool_of(runner, 1) == [{"id": 1 + number} for number in range(5)]
    assert rows.asked == [(100, run.create_time.ToDatetime(tzinfo=rows.asked[0][1].tzinfo), {"pets": ["id"]})]


UNREACHABLE = {"name": "pets", "dataSet": f"{PROJECT}/dataSets/pets"}


async def unreachable(shop: LoadTesting) -> None:
    """A data set of a server that is not there."""
    query = datasets_pb2.ClickHouseQuery(host="127.0.0.1", port=1, query="SELECT 1 AS id")
    await shop.stub.CreateDataSet(
        datasets_pb2.CreateDataSetRequest(
            parent=PROJECT, data_set_id="pets", data_set=datasets_pb2.DataSet(clickhouse=query)
        )
    )


async def test_fallback_is_noted(shop: LoadTesting, box: SecretBox) -> None:
    runner = FakeRunner()
    await unreachable(shop)
    async with supervising(shop, runner, box):
        run = await shop.stub.CreateRun(wanted(users=load(pools=[UNREACHABLE | {"fallback": ROWS}])))
        await until(lambda: bool(runner.specs))
        noted = await shop.stub.GetRun(runs_pb2.GetRunRequest(name=run.name))
        runner.end(Exited(0))
        over = await ended(shop, run.name)
    [note] = noted.notes
    assert note.startswith("pool pets: ")
    assert note in over.notes
    assert len(pool_of(runner)) == 5


async def test_source_that_fails_without_fallback_fails_the_run(shop: LoadTesting, box: SecretBox) -> None:
    runner = FakeRunner()
    await unreachable(shop)
    async with supervising(shop, runner, box):
        run = await shop.stub.CreateRun(wanted(users=load(pools=[UNREACHABLE])))
        over = await ended(shop, run.name)
    assert (over.state, over.failure_reason) == (runs_pb2.RUN_STATE_FAILED, "DATA_SET_FAILED")
    assert over.failure_message.startswith("pool pets: ")
    assert over.verdict == runs_pb2.VERDICT_INVALID
    assert not runner.specs


async def test_cancel_ends_a_long_query(shop: LoadTesting, box: SecretBox) -> None:
    runner, rows = FakeRunner(), Gate(shop, is_open=False)
    async with supervising(shop, runner, box, rows=rows):
        run = await shop.stub.CreateRun(wanted())
        await until(lambda: len(rows.asked) == 1)
        await shop.stub.CancelRun(runs_pb2.CancelRunRequest(name=run.name))
        over = await ended(shop, run.name)
        assert over.state == runs_pb2.RUN_STATE_CANCELLED
        assert rows.ended == 1
    assert not runner.specs


async def test_next_process_prepares_rows_that_were_not_kept(shop: LoadTesting, box: SecretBox) -> None:
    runner, rows = FakeRunner(), Gate(shop, is_open=False)
    async with supervising(shop, runner, box, owner="one", rows=rows):
        run = await shop.stub.CreateRun(wanted(users=load(seed=1)))
        await until(lambda: len(rows.asked) == 1)
    assert (rows.ended, len(runner.specs)) == (1, 0)
    async with supervising(shop, runner, box, owner="two"):
        await until(lambda: bool(runner.specs))
        runner.end(Exited(0))
        assert (await ended(shop, run.name)).state == runs_pb2.RUN_STATE_COMPLETED
    assert len(pool_of(runner)) == 5


async def test_next_process_starts_with_the_rows_that_were_kept(shop: LoadTesting, box: SecretBox) -> None:
    first, rows = FakeRunner(refusals=1_000_000), Gate(shop, is_open=True)
    async with supervising(shop, first, box, owner="one", rows=rows, max_retry=1_000_000):
        run = await shop.stub.CreateRun(wanted(users=load(seed=1)))
        await until(lambda: first.refusals < 1_000_000)
    runner, none = FakeRunner(), Gate(shop, is_open=False)
    async with supervising(shop, runner, box, owner="two", rows=none):
        await until(lambda: bool(runner.specs))
        runner.end(Exited(0))
        assert (await ended(shop, run.name)).state == runs_pb2.RUN_STATE_COMPLETED
    assert (len(rows.asked), len(none.asked)) == (1, 0)
    assert pool_of(runner)[0] == {"id": 1}


async def test_rows_are_deleted_with_their_run(shop: LoadTesting, box: SecretBox) -> None:
    runner = FakeRunner()
    async with supervising(shop, runner, box):
        run = await shop.stub.CreateRun(wanted())
        await until(lambda: bool(runner.specs))
        runner.end(Exited(0))
        await ended(shop, run.name)
    assert await shop.platform.value("SELECT count(*) FROM loadtesting.run_rows") == 1
    await shop.stub.DeleteRun(runs_pb2.DeleteRunRequest(name=run.name))
    assert await shop.platform.value("SELECT count(*) FROM loadtesting.run_rows") == 0


# --- what comes of it ---------------------------------------------------------------------------------------------


async def measured(shop: LoadTesting, run_id: str, users: users_pb2.UserLoad) -> str:
    """A completed run of a class `browse`."""
    run = await shop.stub.CreateRun(wanted(run_id, users=users))
    await shop.runs.start_run(run.name, token_hash(run_id), "k6 of a test")
    await shop.runs.set_state(run.name, RunState.RUNNING)
    for second in range(12):
        await shop.metrics.Export(export("0", second, ms=5 + second % 3), metadata=bearer(run_id))
    stored, fold = await shop.runs.get_run(run.name), RunFold(0)
    for _, row in await shop.runs.read_windows(stored.key, Position.START, 1000, settled_only=False):
        fold.add(row)
    results = fold.results()
    verdict, missed = judge(results, stored.plan.test)
    await shop.runs.end_run(run.name, RunEnd(RunState.COMPLETED, verdict, Outcome(results, missed)))
    return str(run.name)


async def test_runs_of_other_seeds_are_of_the_same_load(shop: LoadTesting) -> None:
    browse = {"classes": [{"name": "browse", "tasks": [LOOK]}]}
    said = [{"duration": "2s", "users": 4}, {"duration": "8s", "users": 4}]
    by_stages = load(**browse, users=0, spawnRate=0, stages=said)
    by_stages.ClearField("run_time")
    runs = [
        await measured(shop, "first", load(**browse)),
        await measured(shop, "second", load(**browse)),
        await measured(shop, "stages", by_stages),
        await measured(shop, "more", load(**browse, users=5)),
    ]
    found = await shop.stub.CompareRuns(reports_pb2.CompareRunsRequest(parent=PROJECT, runs=runs))
    same, stages, more = found.comparisons
    assert not same.notes
    assert not stages.notes
    assert list(more.notes) == ["the load was another one than in the baseline"]
    assert same.change == reports_pb2.CHANGE_NONE
    assert {figure.series for figure in same.figures} == {"", "browse", "GET /pets"}


async def test_report_speaks_of_classes(shop: LoadTesting) -> None:
    name = await measured(shop, "first", load(classes=[{"name": "browse", "tasks": [LOOK]}]))
    request = reports_pb2.ExportReportRequest(name=name)
    page = b"".join([part.content async for part in shop.stub.ExportReport(request)]).decode()
    assert "<h2>User classes</h2>" in page
    assert "<td>browse</td>" in page
