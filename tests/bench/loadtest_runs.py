"""Load tests of one endpoint, made and followed as any client of the server would."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.duration_pb2 import Duration
from opsplane.client import Client
from opsplane.loadtesting.v1 import projects_pb2, runs_pb2, scenarios_pb2, specs_pb2

PROJECT = "projects/bench"
DOCUMENT: dict[str, Any] = {
    "openapi": "3.0.3",
    "info": {"title": "Target", "version": "1"},
    "paths": {
        "/pets/{petId}": {
            "get": {
                "parameters": [
                    {"name": "petId", "in": "path", "required": True, "schema": {"type": "integer"}, "example": 7}
                ],
                "responses": {"200": {"description": "A pet"}},
            }
        }
    },
}

# k6 puts a sample into a window when it flushes: a sample may be older than its window by this much.
FLUSH_SECONDS = 0.2


@dataclass(slots=True)
class Followed:
    """A run as its watcher saw it. Delays are seconds, an upper bound for all samples of each window."""

    run: runs_pb2.Run
    delays: list[float] = field(default_factory=list)


async def prepare(client: Client, base_url: str) -> str:
    """The project with the target's document; the name of its endpoint."""
    project = projects_pb2.Project(title="Benchmark")
    await client.load_testing.CreateProject(projects_pb2.CreateProjectRequest(project=project, project_id="bench"))
    spec = await client.load_testing.AnalyzeSpec(
        specs_pb2.AnalyzeSpecRequest(parent=PROJECT, content=json.dumps(DOCUMENT), base_url=base_url)
    )
    listed = await client.load_testing.ListEndpoints(specs_pb2.ListEndpointsRequest(parent=spec.name))
    name: str = listed.endpoints[0].name
    return name


def plan(
    endpoint: str, executor: scenarios_pb2.Executor.ValueType, target: int, seconds: int, *, vus: int = 0
) -> runs_pb2.Run:
    """A run of one scenario with one stage."""
    stage = scenarios_pb2.Stage(target=target, duration=Duration(seconds=seconds))
    scenario = scenarios_pb2.Scenario(name="open_pet", endpoint=endpoint, executor=executor, stages=[stage], vus=vus)
    return runs_pb2.Run(title="Benchmark", scenarios=[scenario])


async def script(client: Client, run: runs_pb2.Run) -> str:
    """The script of a run."""
    request = runs_pb2.GenerateScriptRequest(parent=PROJECT, run=run)
    answer: runs_pb2.GenerateScriptResponse = await client.load_testing.GenerateScript(request)
    return answer.script


async def follow(client: Client, run: runs_pb2.Run, seen: Callable[[runs_pb2.Run], None] = lambda _: None) -> Followed:
    """Starts a run and follows it to its end; `seen` is told each state. RuntimeError if it does not complete.

    The clocks of k6 and of the watcher must be the same.
    """
    request = runs_pb2.CreateRunRequest(parent=PROJECT, run=run)
    followed = Followed(await client.load_testing.CreateRun(request))
    async for update in client.watch_run(followed.run.name):
        arrived = time.time_ns()
        if update.HasField("window"):
            followed.delays.append((arrived - update.window.start_time.ToNanoseconds()) / 1e9 + FLUSH_SECONDS)
        else:
            followed.run = update.run
            seen(update.run)
    if followed.run.state != runs_pb2.RUN_STATE_COMPLETED:
        raise RuntimeError(f"{followed.run.name} did not complete: {followed.run.failure_message}")
    return followed


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ranked = sorted(values)
    return ranked[max(-int(-share * len(ranked) // 1) - 1, 0)]
