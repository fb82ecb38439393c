"""Runs on a real server with real load generators: how they end, and what survives a crash."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import psutil
from opsplane.loadtesting.v1 import loadtesting_pb2_grpc, projects_pb2, runs_pb2, scenarios_pb2

from tests.acceptance.pets import create_run, own_channel, replay
from tests.rpc_harness import require_status
from tests.server_process import ServerProcess, kill, new_server, running_server
from tests.waiting import until

Stub = loadtesting_pb2_grpc.LoadTestingStub


@asynccontextmanager
async def stub_of(server: ServerProcess) -> AsyncIterator[Stub]:
    async with own_channel(server.address) as channel:
        yield loadtesting_pb2_grpc.LoadTestingStub(channel)


async def get(stub: Stub, name: str) -> runs_pb2.Run:
    run: runs_pb2.Run = await stub.GetRun(runs_pb2.GetRunRequest(name=name))
    return run


async def finished(stub: Stub, name: str) -> runs_pb2.Run:
    """The run when it has ended."""
    return (await replay(stub, name))[-1].run


async def measured(stub: Stub, name: str, windows: int) -> None:
    """Waits until so many windows have come."""
    seen = 0
    async for message in stub.WatchRun(runs_pb2.WatchRunRequest(name=name)):
        seen += message.HasField("window")
        if seen == windows:
            return


async def run_script(stub: Stub, script: str) -> runs_pb2.Run:
    """A run of a user's own script, to its end."""
    await stub.CreateProject(
        projects_pb2.CreateProjectRequest(project=projects_pb2.Project(title="Own"), project_id="own")
    )
    run = await stub.CreateRun(
        runs_pb2.CreateRunRequest(parent="projects/own", run=runs_pb2.Run(title="Own", script=script))
    )
    return await finished(stub, run.name)


def generators(server: ServerProcess) -> list[psutil.Process]:
    """The k6 processes that work in this server's data directory."""
    return [
        process
        for process in psutil.process_iter(["name", "cwd"])
        if process.info["name"] == "k6" and str(server.data_dir) in str(process.info["cwd"])
    ]


async def test_cancelled_run_ends_in_seconds_and_keeps_its_figures(sample_api: str) -> None:
    with running_server() as server:
        async with stub_of(server) as stub:
            run = await create_run(stub, sample_api, seconds=120)
            await measured(stub, run.name, 2)
            await stub.CancelRun(runs_pb2.CancelRunRequest(name=run.name))
            ended = await asyncio.wait_for(finished(stub, run.name), 20)
            assert ended.state == runs_pb2.RUN_STATE_CANCELLED
            assert ended.verdict == runs_pb2.VERDICT_INVALID
            assert ended.results.total.requests > 0
            again = await stub.CancelRun(runs_pb2.CancelRunRequest(name=run.name))
            assert again.state == runs_pb2.RUN_STATE_CANCELLED
        assert not generators(server)


async def test_killed_server_goes_on_with_the_load_that_outlived_it(sample_api: str) -> None:
    with running_server() as server:
        async with stub_of(server) as stub:
            # Longer than k6 waits before it tries an export again: that is when it learns that the server is back.
            run = await create_run(stub, sample_api, seconds=25)
            await measured(stub, run.name, 2)
        [generator] = generators(server)
        kill(server.workers()[0])
        server.kill()
        assert generator.is_running()
        port = server.address.rpartition(":")[2]
        restarted = ServerProcess(server.data_dir.parent, f"--port={port}")
        restarted.start()
        try:
            restarted.wait_ready()
            async with stub_of(restarted) as stub:
                ended = await finished(stub, run.name)
                assert ended.state == runs_pb2.RUN_STATE_COMPLETED, ended.failure_message
                windows = [m.window for m in await replay(stub, run.name) if m.HasField("window")]
                assert ended.results.total.requests == sum(w.total.requests for w in windows)
                assert ended.results.duration.seconds >= 22
            assert not generators(restarted)
        finally:
            restarted.destroy()


async def test_killed_load_generator_fails_the_run_and_says_that_figures_lack(sample_api: str) -> None:
    with running_server() as server:
        async with stub_of(server) as stub:
            run = await create_run(stub, sample_api, seconds=60)
            await measured(stub, run.name, 2)
            [generator] = generators(server)
            generator.kill()
            ended = await finished(stub, run.name)
            assert (ended.state, ended.failure_reason) == (runs_pb2.RUN_STATE_FAILED, "GENERATOR_KILLED")
            assert ended.results.total.requests > 0
            assert ended.results.incomplete_reason


async def test_target_that_refuses_fails_the_run_with_that_reason() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        base_url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with running_server() as server:
            async with stub_of(server) as stub:
                run = await create_run(stub, base_url, seconds=2)
                ended = await finished(stub, run.name)
                assert (ended.state, ended.failure_reason) == (runs_pb2.RUN_STATE_FAILED, "TARGET_UNREACHABLE")
                assert "connection refused" in ended.failure_message
                assert ended.results.total.requests > 0
                assert ended.results.total.failed_requests == ended.results.total.requests
                logs = await stub.ListRunLogs(runs_pb2.ListRunLogsRequest(parent=run.name))
                assert any("refused" in line.message for line in logs.lines)


async def test_own_script_is_run_and_a_broken_one_refused(sample_api: str) -> None:
    with running_server() as server:
        async with stub_of(server) as stub:
            script = f"""
                import http from "k6/http";
                export const options = {{ vus: 2, iterations: 40 }};
                export default function () {{ http.get("{sample_api}/pets"); }}
            """
            ended = await run_script(stub, script)
            assert ended.state == runs_pb2.RUN_STATE_COMPLETED, ended.failure_message
            assert ended.results.total.requests == 40
            with require_status(grpc.StatusCode.INVALID_ARGUMENT, "SCRIPT_ERROR") as refusal:
                await stub.CreateRun(
                    runs_pb2.CreateRunRequest(
                        parent="projects/own", run=runs_pb2.Run(title="Broken", script="export default functio () {")
                    )
                )
            assert refusal.bad_fields == ["run.script"]


async def test_missing_k6_ends_the_run_with_that_reason(sample_api: str) -> None:
    with new_server(environment={"OPSPLANE_LOADTESTING__K6_PATH": "/nonexistent/k6"}) as server:
        server.start()
        server.wait_ready()
        async with stub_of(server) as stub:
            run = await create_run(stub, sample_api, seconds=2)
            ended = await finished(stub, run.name)
            assert (ended.state, ended.failure_reason) == (runs_pb2.RUN_STATE_FAILED, "K6_MISSING")
            assert "k6" in ended.failure_message


async def test_target_missed_for_long_ends_the_run(sample_api: str) -> None:
    with running_server() as server:
        async with stub_of(server) as stub:
            target = scenarios_pb2.Target(
                metric=scenarios_pb2.TARGET_METRIC_RESPONSE_TIME_P95, limit=0.0001, abort_on_fail=True
            )
            target.sustained.FromSeconds(2)
            run = await create_run(stub, sample_api, seconds=120, targets=[target])
            ended = await asyncio.wait_for(finished(stub, run.name), 30)
            assert (ended.state, ended.verdict) == (runs_pb2.RUN_STATE_COMPLETED, runs_pb2.VERDICT_FAILED)
            assert [missed.limit for missed in ended.missed_targets] == [0.0001]


async def test_run_that_takes_too_long_is_ended(sample_api: str) -> None:
    with running_server() as server:
        async with stub_of(server) as stub:
            await stub.CreateProject(
                projects_pb2.CreateProjectRequest(project=projects_pb2.Project(title="Own"), project_id="own")
            )
            script = 'import { sleep } from "k6"; export default function () { sleep(60); }'
            run = runs_pb2.Run(title="Long", script=script)
            run.timeout.FromSeconds(2)
            created = await stub.CreateRun(runs_pb2.CreateRunRequest(parent="projects/own", run=run))
            ended = await finished(stub, created.name)
            assert (ended.state, ended.failure_reason) == (runs_pb2.RUN_STATE_FAILED, "TIMEOUT")
        await until(lambda: not generators(server))
