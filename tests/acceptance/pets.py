"""The sample API of the examples as a process, and load tests of it, for acceptance tests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest
from opsplane.loadtesting.v1 import loadtesting_pb2_grpc, projects_pb2, runs_pb2, scenarios_pb2, specs_pb2

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
DOCUMENT = EXAMPLES / "petstore.openapi.json"


@pytest.fixture
def sample_api() -> Iterator[str]:
    """The base URL of a running sample API."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "sample_api.py"), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, process.stdout as output:
        try:
            line = output.readline()
            yield next(word.rstrip("/,.;") for word in line.split() if word.startswith("http://"))
        finally:
            process.terminate()


async def create_run(
    stub: loadtesting_pb2_grpc.LoadTestingStub,
    base_url: str,
    *,
    seconds: int,
    vus: int = 4,
    targets: Sequence[scenarios_pb2.Target] = (),
) -> runs_pb2.Run:
    """A project with the sample API's endpoints and a run of constant users on the first of them."""
    project = await stub.CreateProject(
        projects_pb2.CreateProjectRequest(project=projects_pb2.Project(title="Pets"), project_id="pets")
    )
    spec = await stub.AnalyzeSpec(
        specs_pb2.AnalyzeSpecRequest(
            parent=project.name, content=DOCUMENT.read_text(encoding="utf-8"), base_url=base_url, spec_id="v1"
        )
    )
    listed = await stub.ListEndpoints(
        specs_pb2.ListEndpointsRequest(parent=spec.name, filter='method="GET" AND path="/pets"')
    )
    stage = scenarios_pb2.Stage(target=vus)
    stage.duration.FromSeconds(seconds)
    scenario = scenarios_pb2.Scenario(name="browse", endpoint=listed.endpoints[0].name, stages=[stage])
    scenario.think_time.FromMilliseconds(20)
    run: runs_pb2.Run = await stub.CreateRun(
        runs_pb2.CreateRunRequest(
            parent=project.name, run=runs_pb2.Run(title="Browse", scenarios=[scenario], targets=targets), run_id="r1"
        )
    )
    return run


async def replay(stub: loadtesting_pb2_grpc.LoadTestingStub, name: str) -> list[runs_pb2.WatchRunResponse]:
    """All that WatchRun sends of a run, from its start to its end."""
    return [message async for message in stub.WatchRun(runs_pb2.WatchRunRequest(name=name))]


def own_channel(address: str) -> grpc.aio.Channel:
    """A channel with a connection of its own, which the kernel gives to one of the workers."""
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


def parse_stream(text: str) -> list[dict[str, object]]:
    """The JSON objects that grpcurl prints one after the other."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        value, at = decoder.raw_decode(text, at)
        found.append(value)
    return found
