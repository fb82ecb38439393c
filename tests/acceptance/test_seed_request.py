"""The load-test request of the platform that Opsplane replaces, mapped field by field, with all of its history."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from opsplane.loadtesting.v1 import loadtesting_pb2_grpc, projects_pb2, runs_pb2, specs_pb2

from tests.acceptance.pets import DOCUMENT, own_channel, replay
from tests.server_process import running_server

# As its documentation sends it to POST /load-testing.
SEED: dict[str, Any] = {
    "title": "Performance Test",
    "description": "API 성능 테스트",
    "target_tps": 100,
    "scenarios": [
        {
            "name": "login_test",
            "endpoint_id": 1,
            "executor": "constant-vus",
            "think_time": 1.0,
            "stages": [{"duration": "30s", "target": 10}],
        }
    ],
}


def mapped(seed: dict[str, Any], endpoints: dict[int, str]) -> dict[str, Any]:
    """The run in our API's JSON: names instead of numbers, an enum, and durations with their unit."""
    return {
        "title": seed["title"],
        "description": seed["description"],
        "target_tps": seed["target_tps"],
        "scenarios": [
            {
                "name": scenario["name"],
                "endpoint": endpoints[scenario["endpoint_id"]],
                "executor": "EXECUTOR_" + scenario["executor"].upper().replace("-", "_"),
                "think_time": f"{scenario['think_time']}s",
                "stages": scenario["stages"],
            }
            for scenario in seed["scenarios"]
        ],
    }


@pytest.mark.slow
async def test_seeds_request_runs_and_gives_every_figure_of_its_history(sample_api: str) -> None:
    with running_server() as server:
        async with own_channel(server.address) as channel:
            stub = loadtesting_pb2_grpc.LoadTestingStub(channel)
            project = await stub.CreateProject(
                projects_pb2.CreateProjectRequest(
                    project=projects_pb2.Project(
                        title="My API Project", summary="테스트 프로젝트", description="상세 설명"
                    )
                )
            )
            spec = await stub.AnalyzeSpec(
                specs_pb2.AnalyzeSpecRequest(
                    parent=project.name, content=DOCUMENT.read_text(encoding="utf-8"), base_url=sample_api
                )
            )
            listed = await stub.ListEndpoints(specs_pb2.ListEndpointsRequest(parent=spec.name))
            endpoints = {number: endpoint.name for number, endpoint in enumerate(listed.endpoints, start=1)}
            run = json_format.ParseDict(mapped(SEED, endpoints), runs_pb2.Run())
            created = await stub.CreateRun(runs_pb2.CreateRunRequest(parent=project.name, run=run))
            assert created.planned_duration.seconds == 30
            last = (await replay(stub, created.name))[-1].run

            assert last.state == runs_pb2.RUN_STATE_COMPLETED, last.failure_message
            # Ten users who rest a second after each call can not make a hundred calls a second.
            assert last.verdict == runs_pb2.VERDICT_FAILED
            assert [target.limit for target in last.missed_targets] == [100]
            results = last.results
            assert 270 <= results.total.requests <= 310
            assert (results.vus.max, results.vus.min) == (10, 10)
            assert 28 <= results.duration.seconds <= 31
            for stats in (results.total, results.scenarios[0].stats, results.endpoints[0].stats):
                # The mean is over the whole load, the extremes over its full seconds.
                assert 0 < stats.tps.min <= stats.tps.max
                assert 9 < stats.tps.avg < 11
                times = stats.response_time
                assert 0 < times.min_ms <= times.p50_ms <= times.p95_ms <= times.p99_ms <= times.max_ms
                assert times.min_ms <= times.avg_ms <= times.max_ms
                assert (stats.failed_requests, stats.error_ratio.max) == (0, 0)
            assert results.scenarios[0].name == "login_test"
            assert results.scenarios[0].endpoint == endpoints[1]
            kept = await stub.GetRun(runs_pb2.GetRunRequest(name=created.name))
            assert kept.scenarios == created.scenarios
            assert (kept.scenarios[0].stages[0].duration.seconds, kept.scenarios[0].stages[0].target) == (30, 10)

            simple = await stub.ListRuns(runs_pb2.ListRunsRequest(parent="projects/-"))
            of_project = await stub.ListRuns(runs_pb2.ListRunsRequest(parent=project.name, view=runs_pb2.RUN_VIEW_FULL))
            assert not simple.runs[0].scenarios
            assert simple.runs[0].results.total == results.total
            assert of_project.runs[0] == kept
