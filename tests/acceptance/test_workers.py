"""Two workers on one port: figures arrive at one, watchers read at the other, and either may be killed."""

from __future__ import annotations

import functools
from contextlib import AsyncExitStack, suppress

import grpc
import pytest
from opsplane.loadtesting.v1 import loadtesting_pb2_grpc, projects_pb2, runs_pb2

from tests.acceptance.pets import create_run, own_channel, replay
from tests.server_process import ServerFailed, ServerProcess, kill, new_server, running_server
from tests.waiting import until

EXPORT = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
GET_PROJECT = "/opsplane.loadtesting.v1.LoadTesting/GetProject"


def served(server: ServerProcess, method: str) -> list[int]:
    """The workers that answered calls of a method, in order."""
    return [r["worker"] for r in server.logs() if r["event"] == "rpc finished" and r["method"] == method]


def has_served(server: ServerProcess, method: str, calls: int) -> bool:
    """Whether so many calls of the method are in the log."""
    return len(served(server, method)) >= calls


async def channel_to(server: ServerProcess, worker: int, stack: AsyncExitStack) -> grpc.aio.Channel:
    """A channel whose connection the kernel has given to this worker."""
    while True:
        channel = await stack.enter_async_context(own_channel(server.address))
        asked = len(served(server, GET_PROJECT)) + 1
        with pytest.raises(grpc.aio.AioRpcError):
            await loadtesting_pb2_grpc.LoadTestingStub(channel).GetProject(
                projects_pb2.GetProjectRequest(name="projects/nobody")
            )
        await until(functools.partial(has_served, server, GET_PROJECT, asked))
        if served(server, GET_PROJECT)[-1] == worker:
            return channel


def pid_of(server: ServerProcess, worker: int) -> int:
    """The process that is this worker now."""
    return int([r["pid"] for r in server.logs() if r["event"] == "worker ready" and r["worker"] == worker][-1])


async def test_watchers_on_any_worker_miss_nothing_when_workers_die(sample_api: str) -> None:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(running_server("--workers", "2", "--log-level", "debug"))
        channel = await stack.enter_async_context(own_channel(server.address))
        stub = loadtesting_pb2_grpc.LoadTestingStub(channel)
        run = await create_run(stub, sample_api, seconds=9)
        await until(lambda: served(server, EXPORT) != [], timeout=30)
        collecting = served(server, EXPORT)[-1]
        watching = 1 - collecting
        watcher = loadtesting_pb2_grpc.LoadTestingStub(await channel_to(server, watching, stack))

        seen: list[runs_pb2.WatchRunResponse] = []

        async def watch(stub: loadtesting_pb2_grpc.LoadTestingStub, cursor: str, *, kill_at: int = 0) -> None:
            async for message in stub.WatchRun(runs_pb2.WatchRunRequest(name=run.name, cursor=cursor)):
                seen.append(message)
                if kill_at and len([m for m in seen if m.HasField("window")]) == kill_at:
                    kill(pid_of(server, watching))

        with pytest.raises(grpc.aio.AioRpcError) as broken:
            await watch(watcher, "", kill_at=3)
        assert broken.value.code() is grpc.StatusCode.UNAVAILABLE
        assert set(served(server, EXPORT)) == {collecting}, "figures arrived at the watcher's worker"

        # The worker that collects dies too: k6 tries again, and what it was told has arrived is there.
        kill(pid_of(server, collecting))
        await until(lambda: len(server.workers()) == 2, timeout=30)
        while not (seen[-1].HasField("run") and seen[-1].run.verdict):
            with suppress(grpc.aio.AioRpcError):
                await watch(stub, seen[-1].cursor)

        windows = [message.window for message in seen if message.HasField("window")]
        assert windows == [message.window for message in await replay(stub, run.name) if message.HasField("window")]
        final = seen[-1].run
        assert final.state == runs_pb2.RUN_STATE_COMPLETED
        assert final.results.total.requests == sum(window.total.requests for window in windows)


def test_second_server_on_the_port_fails_clearly() -> None:
    with running_server() as first, new_server("--port", first.address.rpartition(":")[2]) as second:
        second.start()
        with pytest.raises(ServerFailed):
            second.wait_ready()
        assert second.process.returncode != 0
        [line] = [line for line in second.errors().splitlines() if not line.startswith("{")]
        assert f"port {first.address.rpartition(chr(58))[2]}" in line
