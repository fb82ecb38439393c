"""Runs without load generators: the tests play their part."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from opsplane.loadtesting.v1 import projects_pb2, reports_pb2, runs_pb2, scenarios_pb2, specs_pb2
from opsplane_server.loadtesting.compaction import Compactor
from opsplane_server.loadtesting.metrics.results import RunFold, Verdict
from opsplane_server.loadtesting.model import Outcome, RunEnd, RunState
from opsplane_server.loadtesting.stores.postgres import PostgresWindowCompaction
from opsplane_server.loadtesting.tokens import token_hash

from tests.loadtesting_harness import PETS, LoadTesting, export
from tests.rpc_harness import bearer, require_status

TOKEN = "run-token"


def scenario(name: str = "browse", number: int = 1) -> scenarios_pb2.Scenario:
    stage = scenarios_pb2.Stage(target=5)
    stage.duration.FromSeconds(10)
    return scenarios_pb2.Scenario(name=name, endpoint=f"projects/shop/specs/pets/endpoints/e{number}", stages=[stage])


@pytest.fixture
async def shop(loadtesting: LoadTesting) -> LoadTesting:
    """With the project and specification that all runs here are of."""
    await loadtesting.stub.CreateProject(
        projects_pb2.CreateProjectRequest(project=projects_pb2.Project(title="Shop"), project_id="shop")
    )
    await loadtesting.stub.AnalyzeSpec(
        specs_pb2.AnalyzeSpecRequest(parent="projects/shop", spec_id="pets", content=PETS.read_text(encoding="utf-8"))
    )
    return loadtesting


def wanted(run_id: str = "r1", **fields: Any) -> runs_pb2.CreateRunRequest:
    run = runs_pb2.Run(title="Browse", scenarios=[scenario()])
    run.MergeFrom(runs_pb2.Run(**fields))
    return runs_pb2.CreateRunRequest(parent="projects/shop", run=run, run_id=run_id)


async def started(shop: LoadTesting) -> runs_pb2.Run:
    """A run whose load generator may deliver."""
    run: runs_pb2.Run = await shop.stub.CreateRun(wanted())
    await shop.runs.start_run(run.name, token_hash(TOKEN), "k6 test")
    await shop.runs.set_state(run.name, RunState.RUNNING)
    return run


async def ended(shop: LoadTesting, name: str) -> None:
    results = RunFold(0).results()
    await shop.runs.end_run(name, RunEnd(RunState.COMPLETED, Verdict.PASSED, Outcome(results)))


async def test_run_is_created_with_its_plan(shop: LoadTesting) -> None:
    run = await shop.stub.CreateRun(wanted(target_tps=50.0, labels={"team": "a"}))
    assert run.name == "projects/shop/runs/r1"
    assert run.state == runs_pb2.RUN_STATE_PENDING
    assert run.planned_duration.ToTimedelta() == timedelta(seconds=10)
    assert run.scenarios[0].executor == scenarios_pb2.EXECUTOR_CONSTANT_VUS
    assert run.creator == "anonymous"
    assert await shop.stub.GetRun(runs_pb2.GetRunRequest(name=run.name)) == run
    brief = await shop.stub.ListRuns(runs_pb2.ListRunsRequest(parent="projects/-", filter="state=PENDING"))
    assert [(r.name, len(r.scenarios)) for r in brief.runs] == [(run.name, 0)]
    script = await shop.stub.GetRunScript(runs_pb2.GetRunScriptRequest(name=run.name))
    assert "browse" in script.script
    assert script.run.scenarios == run.scenarios


async def test_run_can_be_repeated_by_request_id_only_with_the_same_body(shop: LoadTesting) -> None:
    request = wanted(run_id="", labels={"a": "b"})
    request.request_id = str(uuid.uuid4())
    first = await shop.stub.CreateRun(request)
    assert await shop.stub.CreateRun(request) == first
    assert len((await shop.stub.ListRuns(runs_pb2.ListRunsRequest(parent="projects/shop"))).runs) == 1
    request.run.title = "Other"
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED"):
        await shop.stub.CreateRun(request)


async def test_unknown_endpoint_is_named(shop: LoadTesting) -> None:
    request = wanted()
    request.run.scenarios.append(scenario("other", 99))
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "ENDPOINT_NOT_FOUND") as refusal:
        await shop.stub.CreateRun(request)
    assert refusal.bad_fields == ["run.scenarios[1].endpoint"]


async def test_history_outlives_the_specification(shop: LoadTesting) -> None:
    run = await started(shop)
    await shop.stub.DeleteSpec(specs_pb2.DeleteSpecRequest(name="projects/shop/specs/pets"))
    await ended(shop, run.name)
    kept = await shop.stub.GetRun(runs_pb2.GetRunRequest(name=run.name))
    assert kept.scenarios == run.scenarios


async def test_credentials_are_never_returned_or_stored_in_clear(shop: LoadTesting) -> None:
    request = wanted()
    request.run.credentials.bearer_token = "very-secret-token"
    run = await shop.stub.CreateRun(request)
    script = await shop.stub.GetRunScript(runs_pb2.GetRunScriptRequest(name=run.name))
    assert not run.HasField("credentials")
    assert "very-secret-token" not in script.script
    async with shop.platform.database.connection() as connection:
        row = await connection.fetchrow("SELECT * FROM loadtesting.runs")
    assert row is not None
    assert "very-secret-token" not in str(dict(row))


async def test_figures_need_the_token_of_an_active_run(shop: LoadTesting) -> None:
    run = await started(shop)
    with require_status(grpc.StatusCode.UNAUTHENTICATED):
        await shop.metrics.Export(export("a", 0), metadata=bearer("wrong"))
    with require_status(grpc.StatusCode.PERMISSION_DENIED, "NOT_A_RUN"):
        await shop.metrics.Export(export("a", 0))
    with require_status(grpc.StatusCode.UNAUTHENTICATED):
        await shop.stub.GetRun(runs_pb2.GetRunRequest(name=run.name), metadata=bearer(TOKEN))
    await shop.metrics.Export(export("a", 0), metadata=bearer(TOKEN))
    await ended(shop, run.name)
    with require_status(grpc.StatusCode.PERMISSION_DENIED):
        await shop.metrics.Export(export("a", 1), metadata=bearer(TOKEN))


async def test_watcher_sees_each_window_once_and_the_end(shop: LoadTesting) -> None:
    run = await started(shop)
    for second in range(3):
        await shop.metrics.Export(export("a", second, requests=10 + second, failed=1), metadata=bearer(TOKEN))
    # OTLP repeats what was not answered.
    await shop.metrics.Export(export("a", 2, requests=12), metadata=bearer(TOKEN))
    stream = shop.stub.WatchRun(runs_pb2.WatchRunRequest(name=run.name))
    first = await read(stream)
    assert first.run.state == runs_pb2.RUN_STATE_RUNNING
    replayed = [await read(stream) for _ in range(3)]
    assert [message.window.total.requests for message in replayed] == [10, 11, 12]
    assert replayed[2].window.total_requests == 33
    assert replayed[2].window.vus == 3
    assert [s.name for s in replayed[0].window.endpoints] == ["GET /pets"]
    await shop.metrics.Export(export("a", 3), metadata=bearer(TOKEN))
    assert (await read(stream)).window.index == replayed[2].window.index + 1
    await ended(shop, run.name)
    last = await read(stream)
    assert last.run.state == runs_pb2.RUN_STATE_COMPLETED
    assert last.run.verdict == runs_pb2.VERDICT_PASSED
    assert await stream.read() is grpc.aio.EOF


async def test_cursor_goes_on_where_the_watcher_was(shop: LoadTesting) -> None:
    run = await started(shop)
    for second in range(5):
        await shop.metrics.Export(export("a", second), metadata=bearer(TOKEN))
    await ended(shop, run.name)
    whole = [m async for m in messages(shop, run.name, "") if m.HasField("window")]
    assert len(whole) == 5
    for place, message in enumerate(whole):
        rest = [m.window for m in [x async for x in messages(shop, run.name, message.cursor)] if m.HasField("window")]
        assert rest == [m.window for m in whole[place + 1 :]]
    with require_status(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        _ = [m async for m in messages(shop, run.name, "bogus")]
    assert "cursor" in refusal.message


async def test_jobs_are_the_load_generators_at_work(shop: LoadTesting) -> None:
    await shop.stub.CreateRun(wanted("waiting"))
    run = await started(shop)
    listed = await shop.stub.ListJobs(reports_pb2.ListJobsRequest())
    assert [(job.run, job.title, job.overdue) for job in listed.jobs] == [(run.name, "Browse", False)]
    await ended(shop, run.name)
    assert not (await shop.stub.ListJobs(reports_pb2.ListJobsRequest())).jobs


async def test_late_commit_is_not_skipped(shop: LoadTesting) -> None:
    """A row that gets its number first and is committed last comes first, and nothing overtakes it."""
    run = await started(shop)
    stream = shop.stub.WatchRun(runs_pb2.WatchRunRequest(name=run.name))
    assert (await read(stream)).HasField("run")
    async with shop.platform.database.transaction() as connection:
        await connection.execute("SELECT pg_current_xact_id()")

        async def other() -> None:
            await shop.metrics.Export(export("a", 1), metadata=bearer(TOKEN))

        await asyncio.create_task(other())
        reading = asyncio.create_task(stream.read())
        done, _ = await asyncio.wait({reading}, timeout=0.6)
        assert not done, "a window overtook an older transaction"
    message = await asyncio.wait_for(reading, 10)
    assert isinstance(message, runs_pb2.WatchRunResponse)
    assert message.window.total.requests == 10
    stream.cancel()


async def read(stream: grpc.aio.UnaryStreamCall) -> runs_pb2.WatchRunResponse:  # type: ignore[type-arg]
    message = await asyncio.wait_for(stream.read(), 10)
    assert isinstance(message, runs_pb2.WatchRunResponse), "the stream has ended"
    return message


async def messages(shop: LoadTesting, name: str, cursor: str) -> AsyncIterator[runs_pb2.WatchRunResponse]:
    async for message in shop.stub.WatchRun(runs_pb2.WatchRunRequest(name=name, cursor=cursor)):
        yield message


async def test_finished_run_is_compacted_once_and_keeps_its_figures(shop: LoadTesting) -> None:
    run = await started(shop)
    for second in range(405):
        await shop.metrics.Export(export("a", second), metadata=bearer(TOKEN))
    compactor = Compactor(PostgresWindowCompaction(shop.platform.database), age=timedelta())
    assert await compactor.compact() == 0, "a run at work was compacted"
    await ended(shop, run.name)
    before = [m.window async for m in messages(shop, run.name, "") if m.HasField("window")]
    assert await compactor.compact() == 1
    after = [m.window async for m in messages(shop, run.name, "") if m.HasField("window")]
    assert (len(before), len(after)) == (405, 41)
    assert [w.total.requests for w in after] == [100] * 40 + [50]
    assert after[-1].total_requests == before[-1].total_requests
    assert after[0].total.response_time == before[0].total.response_time
    assert await compactor.compact() == 0
