"""Processes that die, by SIGKILL, and what the others make of it."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opsplane.common.v1 import platform_pb2, platform_pb2_grpc

from tests.integration.server.calls import answers, list_operations, open_channel
from tests.platform_harness import connect
from tests.server_process import ServerProcess, alive, kill, running_server
from tests.waiting import until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def database_of(server: ServerProcess) -> str:
    """The address of the embedded database."""
    password = (server.data_dir / "postgres" / "password").read_text()
    return f"postgresql://opsplane:{password}@/opsplane?host={server.data_dir}/postgres/run&port=5432"


async def an_operation(server: ServerProcess) -> str:
    """An operation that nobody ever works on."""
    async with connect(database_of(server)) as platform:
        return (await platform.submit("test.nobody")).name


async def test_a_killed_worker_is_replaced() -> None:
    with running_server("--workers", "2") as server:
        victim, other = server.workers()
        kill(victim)
        await until(lambda: len(server.ever_workers()) == 3)
        await until(lambda: len(server.workers()) == 2)
        assert victim not in server.workers()
        assert other in server.workers()
        died = server.find_log("worker died")
        assert died is not None
        assert died["status"] == "killed by SIGKILL"
        assert await answers(server.address)
        assert server.stop() == 0


async def test_workers_of_a_killed_parent_end_and_the_next_adopts_postgres() -> None:
    with running_server("--workers", "2") as server:
        orphans, postgres = server.workers(), server.postgres()
        server.kill()
        assert alive(postgres)
        server.start()
        server.wait_ready()
        assert not [pid for pid in orphans if alive(pid)]
        assert server.postgres() == postgres
        assert server.find_log("postgres adopted") is not None
        assert await answers(server.address)
        assert server.stop() == 0
        assert not alive(postgres)


async def test_the_next_server_waits_for_workers_that_still_drain() -> None:
    with running_server() as server:
        [orphan] = server.workers()
        port = server.address.rpartition(":")[2]
        async with open_channel(server.address) as channel:
            watching = platform_pb2_grpc.PlatformStub(channel).WatchOperation(
                platform_pb2.WatchOperationRequest(name=await an_operation(server))
            )
            assert await watching.read() is not grpc.aio.EOF
            server.kill()
            second = ServerProcess(server.data_dir.parent, f"--port={port}")
            second.start()
            await until(lambda: second.find_log("workers of a killed server are still ending") is not None)
            assert alive(orphan)
            watching.cancel()
        second.wait_ready()
        try:
            assert not alive(orphan)
            assert second.address == server.address
            assert await answers(second.address)
        finally:
            second.destroy()


async def test_postgres_is_started_again_and_calls_recover() -> None:
    with running_server() as server:
        workers, postgres = server.workers(), server.postgres()
        async with open_channel(server.address) as channel:
            await list_operations(channel)
            kill(postgres)
            await until(lambda: server.find_log("postgres restarted") is not None)

            codes: list[grpc.StatusCode] = []

            async def recovered() -> bool:
                try:
                    await list_operations(channel, timeout=5)
                except grpc.aio.AioRpcError as error:
                    codes.append(error.code())
                    return False
                return True

            await until(recovered)
            assert set(codes) <= {grpc.StatusCode.UNAVAILABLE}
        assert server.postgres() != postgres
        assert server.workers() == workers
        await until(lambda: "opsplane_postgres_restarts_total 1.0" in server.get("/metrics")[1])
        await until(lambda: server.get("/ready")[0] == 200)


async def test_health_says_when_the_database_is_away() -> None:
    with running_server() as server:
        async with open_channel(server.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            with out_of_order(server):
                kill(server.postgres())
                assert (await watch.read()).status == NOT_SERVING
                assert server.get("/ready")[0] == 503
                assert server.find_log("postgres restarted") is None
            assert (await watch.read()).status == SERVING
            await until(lambda: server.get("/ready")[0] == 200)
            watch.cancel()


@contextmanager
def out_of_order(server: ServerProcess) -> Iterator[None]:
    """Keeps PostgreSQL from being started again: it refuses a data folder that others can read."""
    data = server.data_dir / "postgres" / "data"
    data.chmod(0o777)
    try:
        yield
    finally:
        data.chmod(0o700)


async def test_sigterm_lets_open_calls_end() -> None:
    with running_server() as server:
        name = await an_operation(server)
        async with open_channel(server.address) as channel, open_channel(server.address) as probe:
            request = operations_pb2.WaitOperationRequest(name=name)
            request.timeout.FromSeconds(2)
            watch = health_pb2_grpc.HealthStub(probe).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            waiting = asyncio.ensure_future(operations_pb2_grpc.OperationsStub(channel).WaitOperation(request))
            await until(lambda: server.get("/ready")[0] == 200)
            await list_operations(channel)  # sent after the other call, so that one has arrived
            server.signal(signal.SIGTERM)
            assert (await watch.read()).status == NOT_SERVING
            watch.cancel()
            assert server.get("/ready")[0] == 503
            assert (await waiting).name == name
        assert server.wait() == 0
        assert server.find_log("workers do not end and are killed") is None


async def test_a_second_signal_hurries() -> None:
    environment = {"OPSPLANE_SERVER__SHUTDOWN_GRACE_SECONDS": "3000"}
    with running_server(environment=environment) as server:
        async with open_channel(server.address) as channel:
            watching = platform_pb2_grpc.PlatformStub(channel).WatchOperation(
                platform_pb2.WatchOperationRequest(name=await an_operation(server))
            )
            assert await watching.read() is not grpc.aio.EOF
            server.signal(signal.SIGTERM)
            await until(lambda: server.find_log("worker drains") is not None)
            assert server.process.poll() is None
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
        assert server.find_log("worker stopped") is not None
        assert server.find_log("postgres stopped") is not None
