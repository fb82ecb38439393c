"""Load tests of the paced API, whose endpoints take a known time, and comparisons of them."""

from __future__ import annotations

import json

from opsplane.loadtesting.v1 import loadtesting_pb2_grpc, projects_pb2, reports_pb2, runs_pb2, scenarios_pb2, specs_pb2

from tests.acceptance.paced_api import DOCUMENT
from tests.acceptance.pets import replay

Stub = loadtesting_pb2_grpc.LoadTestingStub

PROJECT = "projects/paced"
SECONDS = 16
CALLS_PER_SECOND = 25  # of each endpoint


async def prepared(stub: Stub) -> list[str]:
    """The project with the API's endpoints; their names."""
    await stub.CreateProject(
        projects_pb2.CreateProjectRequest(project=projects_pb2.Project(title="Paced"), project_id="paced")
    )
    spec = await stub.AnalyzeSpec(
        specs_pb2.AnalyzeSpecRequest(parent=PROJECT, content=json.dumps(DOCUMENT), base_url="http://127.0.0.1:1")
    )
    listed = await stub.ListEndpoints(specs_pb2.ListEndpointsRequest(parent=spec.name))
    return [endpoint.name for endpoint in listed.endpoints]


async def run(stub: Stub, endpoints: list[str], url: str, run_id: str) -> str:
    """Runs a load test to its end; its name."""
    stage = scenarios_pb2.Stage(target=CALLS_PER_SECOND)
    stage.duration.FromSeconds(SECONDS)
    scenarios = [
        scenarios_pb2.Scenario(
            name=f"s{number}",
            endpoint=endpoint,
            executor=scenarios_pb2.EXECUTOR_CONSTANT_ARRIVAL_RATE,
            stages=[stage],
            vus=CALLS_PER_SECOND,
        )
        for number, endpoint in enumerate(endpoints)
    ]
    wanted = runs_pb2.Run(title="Paced", scenarios=scenarios, base_url=url)
    created = await stub.CreateRun(runs_pb2.CreateRunRequest(parent=PROJECT, run=wanted, run_id=run_id))
    ended = (await replay(stub, created.name))[-1].run
    assert ended.state == runs_pb2.RUN_STATE_COMPLETED, ended.failure_message
    assert all(scenario.target_tps == CALLS_PER_SECOND for scenario in ended.results.scenarios)
    return str(created.name)


async def compared(stub: Stub, baseline: str, other: str) -> reports_pb2.RunComparison:
    request = reports_pb2.CompareRunsRequest(parent=PROJECT, runs=[baseline, other])
    [comparison] = (await stub.CompareRuns(request)).comparisons
    return comparison


def worse(comparison: reports_pb2.RunComparison) -> list[tuple[str, str, str]]:
    return [
        (one.series, one.figure, f"{one.change_ratio:+.1%}")
        for one in comparison.figures
        if one.change == reports_pb2.CHANGE_WORSE
    ]
