"""What a newcomer does with grpcurl and nothing else: services by reflection, then a whole load test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any

import pytest

from tests.acceptance.pets import DOCUMENT, parse_stream
from tests.components import cache_folder, lacking
from tests.server_process import running_server

SERVICE = "opsplane.loadtesting.v1.LoadTesting"


@pytest.fixture(scope="module")
def grpcurl() -> str:
    """The program, from the cache of `make tools` or the PATH."""
    found = shutil.which("grpcurl", path=f"{cache_folder() / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        problem = "grpcurl is not here; `make tools` builds it where Go is"
        lacking(problem)
    return found


def call(grpcurl: str, address: str, method: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers to a call."""
    done = subprocess.run(
        [grpcurl, "-plaintext", "-d", "@", address, f"{SERVICE}/{method}"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return parse_stream(done.stdout)


def test_load_test_from_reflection_to_verdict(grpcurl: str, sample_api: str) -> None:
    with running_server() as server:
        listed = subprocess.run(
            [grpcurl, "-plaintext", server.address, "list"], capture_output=True, text=True, timeout=30, check=True
        ).stdout.split()
        assert {SERVICE, "opsplane.common.v1.Platform", "google.longrunning.Operations"} <= set(listed)

        [project] = call(grpcurl, server.address, "CreateProject", {"project": {"title": "Pets"}, "projectId": "pets"})
        [spec] = call(
            grpcurl,
            server.address,
            "AnalyzeSpec",
            {"parent": project["name"], "content": DOCUMENT.read_text(encoding="utf-8"), "baseUrl": sample_api},
        )
        assert spec["endpoint_count"] > 3
        [endpoints] = call(grpcurl, server.address, "ListEndpoints", {"parent": spec["name"]})
        pets = next(e for e in endpoints["endpoints"] if (e["method"], e["path"]) == ("GET", "/pets"))
        run = {
            "title": "Performance Test",
            "targetTps": 1,
            "scenarios": [
                {
                    "name": "browse",
                    "endpoint": pets["name"],
                    "executor": "EXECUTOR_CONSTANT_VUS",
                    "thinkTime": "0.05s",
                    "stages": [{"duration": "3s", "target": 3}],
                }
            ],
        }
        [created] = call(grpcurl, server.address, "CreateRun", {"parent": project["name"], "run": run})
        assert created["state"] == "RUN_STATE_PENDING"
        messages = call(grpcurl, server.address, "WatchRun", {"name": created["name"]})
        windows = [message["window"] for message in messages if "window" in message]
        assert sum(int(window["total"].get("requests", 0)) for window in windows) > 30
        last = messages[-1]["run"]
        assert (last["state"], last["verdict"]) == ("RUN_STATE_COMPLETED", "VERDICT_PASSED")
        [kept] = call(grpcurl, server.address, "GetRun", {"name": created["name"]})
        assert kept["results"] == last["results"]
        total = sum(int(window["total"].get("requests", 0)) for window in windows)
        assert int(kept["results"]["total"]["requests"]) == total
        [history] = call(grpcurl, server.address, "ListRuns", {"parent": "projects/-"})
        assert [entry["name"] for entry in history["runs"]] == [created["name"]]


def test_errors_name_the_field(grpcurl: str) -> None:
    with running_server() as server:
        done = subprocess.run(
            [
                *(grpcurl, "-plaintext", "-format-error", "-d", '{"project_id": "Bad Id"}'),
                *(server.address, f"{SERVICE}/CreateProject"),
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode != 0
    assert "project_id" in done.stderr
    assert "INVALID_ARGUMENT" in done.stderr
