"""Seeing runs through, with a runner that is told what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from opsplane.loadtesting.v1 import loadtesting_pb2_grpc, projects_pb2, runs_pb2
from opsplane_server.loadtesting.runners.port import Exited, Lost, Status
from opsplane_server.storage.secrets import SecretBox

from tests.fake_runner import FakeRunner, supervising
from tests.loadtesting_harness import LoadTesting
from tests.waiting import until

SCRIPT = "export default function () {}"


@pytest.fixture
def box(tmp_path: Path) -> SecretBox:
    return SecretBox.from_key_file(tmp_path / "supervisor.key", create=True)


async def created(loadtesting: LoadTesting, run_id: str = "r1", generators: int = 1) -> str:
    stub: loadtesting_pb2_grpc.LoadTestingStub = loadtesting.stub
    await stub.CreateProject(
        projects_pb2.CreateProjectRequest(project=projects_pb2.Project(title="Own"), project_id="own")
    )
    run = runs_pb2.Run(title="Own", script=SCRIPT, generators=generators)
    return (await stub.CreateRun(runs_pb2.CreateRunRequest(parent="projects/own", run=run, run_id=run_id))).name


async def ended(loadtesting: LoadTesting, name: str) -> runs_pb2.Run:
    messages = [m async for m in loadtesting.stub.WatchRun(runs_pb2.WatchRunRequest(name=name))]
    return messages[-1].run


async def test_run_goes_through_its_states(loadtesting: LoadTesting, box: SecretBox) -> None:
    runner = FakeRunner()
    async with supervising(loadtesting, runner, box):
        name = await created(loadtesting, generators=3)
        await until(lambda: len(runner.specs) == 3)
        assert [spec.instance for spec in runner.specs] == ["0", "1", "2"]
        assert len({spec.name for spec in runner.specs}) == 3
        assert len({spec.exporter.token for spec in runner.specs}) == 1
        runner.end(Exited(0))
        run = await ended(loadtesting, name)
        assert run.state == runs_pb2.RUN_STATE_COMPLETED
        assert run.generator_version == "k6 of a test"
        await until(lambda: len(runner.cleaned) == 3)
        logs = await loadtesting.stub.ListRunLogs(runs_pb2.ListRunLogsRequest(parent=name))
        assert [(line.source, line.message) for line in logs.lines] == [
            ("event", "k6 of a test started"),
            *[("console", "hello")] * 3,
            ("event", "run ended: COMPLETED"),
        ]


@pytest.mark.parametrize(("refusals", "state"), [(2, "COMPLETED"), (3, "FAILED")])
async def test_generator_that_can_not_start_now_is_tried_again(
    loadtesting: LoadTesting, box: SecretBox, refusals: int, state: str
) -> None:
    runner = FakeRunner(refusals=refusals)
    async with supervising(loadtesting, runner, box):
        name = await created(loadtesting)
        if state == "COMPLETED":
            await until(lambda: bool(runner.specs))
            runner.end(Exited(0))
        run = await ended(loadtesting, name)
    assert runs_pb2.RunState.Name(run.state) == f"RUN_STATE_{state}"
    assert run.failure_reason == ("" if state == "COMPLETED" else "GENERATOR_UNAVAILABLE")


async def test_run_cancelled_before_anybody_took_it_up_never_starts(loadtesting: LoadTesting, box: SecretBox) -> None:
    name = await created(loadtesting)
    await loadtesting.stub.CancelRun(runs_pb2.CancelRunRequest(name=name))
    runner = FakeRunner()
    async with supervising(loadtesting, runner, box):
        assert (await ended(loadtesting, name)).state == runs_pb2.RUN_STATE_CANCELLED
    assert not runner.specs


async def test_next_process_goes_on_with_the_same_generators(loadtesting: LoadTesting, box: SecretBox) -> None:
    runner = FakeRunner()
    async with supervising(loadtesting, runner, box, owner="one"):
        name = await created(loadtesting)
        await until(lambda: bool(runner.specs))
    assert (await loadtesting.runs.get_run(name)).state.value in ("PENDING", "RUNNING")
    async with supervising(loadtesting, runner, box, owner="two"):
        runner.end(Exited(0))
        assert (await ended(loadtesting, name)).state == runs_pb2.RUN_STATE_COMPLETED
    assert len(runner.specs) == 1


@pytest.mark.parametrize(
    ("status", "reason"), [(Lost(), "GENERATOR_LOST"), (Exited(107), "SCRIPT_ERROR"), (Exited(-9), "GENERATOR_KILLED")]
)
async def test_bad_end_fails_the_run_with_its_reason(
    loadtesting: LoadTesting, box: SecretBox, status: Status, reason: str
) -> None:
    runner = FakeRunner()
    async with supervising(loadtesting, runner, box):
        name = await created(loadtesting)
        await until(lambda: bool(runner.specs))
        runner.end(status)
        run = await ended(loadtesting, name)
    assert (run.state, run.failure_reason) == (runs_pb2.RUN_STATE_FAILED, reason)
    assert run.verdict == runs_pb2.VERDICT_INVALID


async def test_run_whose_generator_has_no_cpu_left_is_not_judged(
    loadtesting: LoadTesting, box: SecretBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A look at a generator counts for as long as it is since the last one.
    monkeypatch.setattr("opsplane_server.loadtesting.effort.SHORTEST_SECONDS", 0.01)
    monkeypatch.setattr("opsplane_server.loadtesting.effort.STEP_SECONDS", 0.001)
    runner = FakeRunner(busy=True)
    async with supervising(loadtesting, runner, box):
        name = await created(loadtesting)
        await until(lambda: len(runner.specs) == 1)
        seen = runner.polls
        await until(lambda: runner.polls > seen + 10)
        runner.end(Exited(0))
        run = await ended(loadtesting, name)
    assert (run.state, run.verdict) == (runs_pb2.RUN_STATE_COMPLETED, runs_pb2.VERDICT_INVALID)
    assert any("no CPU left" in note for note in run.notes)
