"""The metrics of all workers as those of one server."""

import json

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.server.calls import list_operations, open_channel
from tests.server_process import ServerProcess, kill, running_server
from tests.waiting import until

METHOD = {"rpc_service": "google.longrunning.Operations", "rpc_method": "ListOperations"}


def samples(server: ServerProcess) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    status, text = server.get("/metrics")
    assert status == 200
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} stands there twice"
            found[key] = sample.value
    return found


def calls(server: ServerProcess, name: str = "rpc_server_requests_total") -> float:
    wanted = METHOD.items()
    return sum(value for (sample, labels), value in samples(server).items() if sample == name and wanted <= labels)


async def call_both(server: ServerProcess, want: int) -> int:
    """Calls over new connections until each worker has had `want` calls at least; returns how many it took."""
    made = 0

    async def enough() -> bool:
        nonlocal made
        async with open_channel(server.address) as channel:
            await list_operations(channel, timeout=10)
        made += 1
        finished = [record["worker"] for record in server.logs() if record["event"] == "rpc finished"]
        return all(finished.count(worker) >= want for worker in (0, 1))

    await until(enough)
    return made


async def test_two_workers_count_as_one_and_totals_never_fall() -> None:
    with running_server("--workers=2", "--log-level=DEBUG") as server:
        made = await call_both(server, 3)
        assert calls(server) == made
        assert calls(server, "rpc_server_call_duration_seconds_count") == made
        before = samples(server)

        kill(server.workers()[0])
        await until(lambda: server.find_log("worker restarted") is not None)
        after = samples(server)
        cumulative = [key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
        assert not [key for key in cumulative if after[key] < before[key]]
        assert after["opsplane_worker_restarts_total", frozenset()] == 1
        assert after["opsplane_workers_serving", frozenset()] == 2

        async with open_channel(server.address) as channel:
            await list_operations(channel, timeout=10)
        await until(lambda: calls(server) == made + 1)


async def test_nothing_tells_workers_apart_but_their_memory() -> None:
    with running_server("--workers=2", "--log-level=DEBUG") as server:
        await call_both(server, 1)
        for name, labels in samples(server):
            assert "worker" not in dict(labels) or name == "opsplane_worker_resident_memory_bytes"
            assert not name.endswith("_created")
            assert not name.startswith(("python_", "process_"))


def test_probes() -> None:
    with running_server() as server:
        assert server.get("/live") == (200, "live\n")
        assert server.get("/ready") == (200, "ready\n")
        status, text = server.get("/health")
        assert status == 200
        assert json.loads(text)["status"] == "ready"
        assert json.loads(text)["workers"][0]["state"] == "serving"
        assert server.get("/nothing")[0] == 404
