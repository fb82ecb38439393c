"""Our figures against k6's own, of the same run: counts are equal, percentiles within a bucket of the histograms."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from opsplane.loadtesting.v1 import projects_pb2, runs_pb2, scenarios_pb2, specs_pb2
from opsplane_server.loadtesting.metrics.results import RunFold, RunResults
from opsplane_server.loadtesting.model import RunState
from opsplane_server.loadtesting.runners.k6_binary import find_k6
from opsplane_server.loadtesting.runners.k6_environment import k6_environment
from opsplane_server.loadtesting.runners.port import Exporter, Segment, segments
from opsplane_server.loadtesting.tokens import token_hash
from opsplane_server.loadtesting.watch import origin
from opsplane_server.storage.followers import Position

from tests.acceptance.pets import DOCUMENT
from tests.loadtesting_harness import LoadTesting
from tests.loadtesting_harness import loadtesting as loadtesting

TOKEN = "token-of-the-run"
QUANTILES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}


async def started(loadtesting: LoadTesting, base_url: str, *, calls: int, generators: int) -> tuple[runs_pb2.Run, str]:
    """A run of so many calls that takes figures under TOKEN, and its script."""
    await loadtesting.stub.CreateProject(
        projects_pb2.CreateProjectRequest(project=projects_pb2.Project(title="Pets"), project_id="pets")
    )
    spec = await loadtesting.stub.AnalyzeSpec(
        specs_pb2.AnalyzeSpecRequest(
            parent="projects/pets", content=DOCUMENT.read_text(encoding="utf-8"), base_url=base_url
        )
    )
    listed = await loadtesting.stub.ListEndpoints(specs_pb2.ListEndpointsRequest(parent=spec.name))
    pet = next(e for e in listed.endpoints if (e.method, e.path) == ("GET", "/pets/{petId}"))
    scenario = scenarios_pb2.Scenario(
        name="open_pet",
        endpoint=pet.name,
        executor=scenarios_pb2.EXECUTOR_SHARED_ITERATIONS,
        iterations=calls,
        vus=20,
    )
    run = await loadtesting.stub.CreateRun(
        runs_pb2.CreateRunRequest(
            parent="projects/pets",
            run=runs_pb2.Run(title="Exact", scenarios=[scenario], generators=generators),
        )
    )
    await loadtesting.runs.start_run(run.name, token_hash(TOKEN), "k6")
    await loadtesting.runs.set_state(run.name, RunState.RUNNING)
    return run, await loadtesting.runs.get_script(run.name)


async def generate(
    folder: Path, script: str, address: str, instance: str, segment: Segment | None, *options: str
) -> None:
    """Runs k6 as the local runner does, with outputs of its own besides."""
    folder.mkdir()
    (folder / "script.js").write_text(script, encoding="utf-8")
    k6 = await find_k6()
    arguments = [a for a in k6.run_arguments("script.js", segment=segment, thresholds=False) if a != "--no-summary"]
    process = await asyncio.create_subprocess_exec(
        *arguments[:2],
        *options,
        *arguments[2:],
        cwd=folder,
        env=k6_environment(Exporter(address, TOKEN), instance=instance, home=str(folder), thresholds=False, script={}),
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0


async def results(loadtesting: LoadTesting, name: str) -> RunResults:
    """Our figures."""
    run = await loadtesting.runs.get_run(name)
    fold, position = RunFold(origin(run), run.plan.generators), Position.START
    while rows := await loadtesting.runs.read_windows(run.key, position, 500, settled_only=False):
        position = rows[-1][0]
        for _, row in rows:
            fold.add(row)
    return fold.results()


def compare(ours: RunResults, exact: dict[str, float]) -> None:
    """Every percentile is within a bucket; the median error is printed."""
    times = ours.total.response_time
    assert times is not None
    errors = {figure: abs(getattr(times, figure) - value) / value for figure, value in exact.items()}
    print(
        f"relative errors {', '.join(f'{k} {v:.4%}' for k, v in errors.items())}; "
        f"median {statistics.median(errors.values()):.4%}, a bucket {ours.percentile_error_ratio:.4%}"
    )
    assert max(errors.values()) <= ours.percentile_error_ratio


@pytest.mark.slow
async def test_one_generator_agrees_with_k6s_summary(loadtesting: LoadTesting, sample_api: str, tmp_path: Path) -> None:
    run, script = await started(loadtesting, sample_api, calls=50_000, generators=1)
    summary = tmp_path / "summary.json"
    options = (f"--summary-export={summary}", "--summary-trend-stats=avg,min,med,max,p(95),p(99)")
    await generate(tmp_path / "k6", script, loadtesting.address, "0", None, *options)
    metrics = json.loads(summary.read_text(encoding="utf-8"))["metrics"]
    ours = await results(loadtesting, run.name)
    assert ours.total.requests == metrics["http_reqs"]["count"] == 50_000
    assert ours.iterations == metrics["iterations"]["count"]
    duration = metrics["http_req_duration"]
    compare(ours, {"p50_ms": duration["med"], "p95_ms": duration["p(95)"], "p99_ms": duration["p(99)"]})
    assert ours.total.response_time is not None
    assert math.isclose(ours.total.response_time.avg_ms, duration["avg"], rel_tol=1e-6)
    assert math.isclose(ours.total.response_time.max_ms, duration["max"], rel_tol=1e-6)


async def samples(path: Path) -> AsyncIterator[float]:
    """The response times that k6 wrote one by one."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if '"metric":"http_req_duration"' in line and '"type":"Point"' in line:
                yield json.loads(line)["data"]["value"]


@pytest.mark.slow
async def test_two_segments_agree_with_all_samples_pooled(
    loadtesting: LoadTesting, sample_api: str, tmp_path: Path
) -> None:
    run, script = await started(loadtesting, sample_api, calls=10_000, generators=2)
    raw = [tmp_path / f"samples-{n}.json" for n in range(2)]
    await asyncio.gather(
        *(
            generate(tmp_path / f"k6-{n}", script, loadtesting.address, str(n), part, f"--out=json={raw[n]}")
            for n, part in enumerate(segments(2))
        )
    )
    pooled = sorted([value for path in raw async for value in samples(path)])
    ours = await results(loadtesting, run.name)
    assert ours.total.requests == len(pooled) == 10_000
    exact = {}
    for figure, share in QUANTILES.items():
        place = share * (len(pooled) - 1)
        low = math.floor(place)
        exact[figure] = pooled[low] + (pooled[min(low + 1, len(pooled) - 1)] - pooled[low]) * (place - low)
    compare(ours, exact)
