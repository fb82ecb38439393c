"""Data sets with queries to a real ClickHouse: tried by RPC, and read for runs."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from opsplane.loadtesting.v1 import datasets_pb2, projects_pb2
from opsplane_server.errors import FailedPrecondition
from opsplane_server.loadtesting.datasets.pools import DataSetRows
from opsplane_server.loadtesting.users.model import DataPool, GeneratedField, Generator, Hex

from tests.clickhouse_server import ClickHouseServer, running_clickhouse
from tests.integration.loadtesting.datasets.workers import workers
from tests.loadtesting_harness import LoadTesting
from tests.rpc_harness import require_status
from tests.waiting import until

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SESSIONS = "SELECT number AS id, concat('user-', toString(number)) AS user_id FROM numbers(500)"


def data_set(server: ClickHouseServer, query: str, **changes: Any) -> datasets_pb2.DataSet:
    known: dict[str, Any] = {"host": server.host, "port": server.port, "user": server.user, "password": server.password}
    asked = known | {"query": query, "timeout": Duration(seconds=120)} | changes
    return datasets_pb2.DataSet(clickhouse=datasets_pb2.ClickHouseQuery(**asked))


async def create(loadtesting: LoadTesting, server: ClickHouseServer, name: str, query: str, **changes: Any) -> str:
    created = await loadtesting.stub.CreateDataSet(
        datasets_pb2.CreateDataSetRequest(
            parent="projects/shop", data_set=data_set(server, query, **changes), data_set_id=name
        )
    )
    return str(created.name)


@pytest.fixture
async def source(loadtesting: LoadTesting) -> DataSetRows:
    await loadtesting.stub.CreateProject(
        projects_pb2.CreateProjectRequest(project=projects_pb2.Project(title="Shop"), project_id="shop")
    )
    return DataSetRows(loadtesting.data_sets, loadtesting.secrets, loadtesting.reader)


async def test_query_is_tried_by_rpc(
    loadtesting: LoadTesting, source: DataSetRows, clickhouse: ClickHouseServer
) -> None:
    request = datasets_pb2.TestDataSetRequest(
        parent="projects/shop", data_set=data_set(clickhouse, SESSIONS, limit=50), sample_size=2
    )
    found = await loadtesting.stub.TestDataSet(request)
    assert (list(found.fields), found.row_count) == (["id", "user_id"], 50)
    assert [json_format.MessageToDict(sample) for sample in found.samples] == [
        {"id": 0, "user_id": "user-0"},
        {"id": 1, "user_id": "user-1"},
    ]
    request.data_set.clickhouse.password = "guessed"
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "DATA_SET_FAILED") as refusal:
        await loadtesting.stub.TestDataSet(request)
    assert refusal.message == "ClickHouse refuses: Wrong password for user opsplane"


async def test_several_queries_are_read_each_with_its_own_limit_and_noted(
    loadtesting: LoadTesting, source: DataSetRows, clickhouse: ClickHouseServer
) -> None:
    users = await create(loadtesting, clickhouse, "users", SESSIONS, limit=100)
    bundles = await create(loadtesting, clickhouse, "bundles", "SELECT 800 + number AS id FROM numbers(200)")
    pools = (DataPool("users", users, limit=7), DataPool("bundles", bundles), DataPool("all", users))
    assert (await source.fields("projects/shop", pools))["users"] == ()
    prepared = await source.prepare(pools, seed=1, now=NOW, needed={"users": ["user_id"]})
    files = {pool: json.loads(file) for pool, file in prepared.files.items()}
    assert {pool: len(rows) for pool, rows in files.items()} == {"users": 7, "bundles": 200, "all": 100}
    assert files["bundles"][-1] == {"id": 999}
    assert prepared.notes == ()
    found = await loadtesting.stub.GetDataSet(datasets_pb2.GetDataSetRequest(name=bundles))
    assert (list(found.fields), found.row_count, len(found.sha256)) == (["id"], 200, 64)
    assert (await source.fields("projects/shop", pools))["users"] == ("id", "user_id")


async def test_server_that_dies_is_replaced_by_the_fallback_until_it_is_back(
    loadtesting: LoadTesting, source: DataSetRows
) -> None:
    spare = Generator(3, (GeneratedField("id", Hex(4)), GeneratedField("user_id", Hex(32))))
    with running_clickhouse() as server:
        users = await create(loadtesting, server, "users", SESSIONS)
        pool = DataPool("users", users, fallback=spare)
        first = await source.prepare((pool,), seed=1, now=NOW, needed={})
        assert (len(json.loads(first.files["users"])), first.notes) == (500, ())
        server.kill()
        second = await source.prepare((pool,), seed=1, now=NOW, needed={})
        assert len(json.loads(second.files["users"])) == 3
        address = f"{server.host}:{server.port}"
        note = f"pool users: {address} cannot be reached: Connection refused; 3 rows were made up instead"
        assert second.notes == (note,)
        with pytest.raises(FailedPrecondition, match=r"pool bare: .* cannot be reached: Connection refused"):
            await source.prepare((DataPool("bare", users), pool), seed=1, now=NOW, needed={})
        # What it gave last is still told.
        found = await loadtesting.stub.GetDataSet(datasets_pb2.GetDataSetRequest(name=users))
        assert found.row_count == 500
        server.start()
        assert await source.prepare((pool,), seed=1, now=NOW, needed={}) == first


async def test_preparing_can_be_broken_off(loadtesting: LoadTesting, source: DataSetRows) -> None:
    with running_clickhouse() as server:
        users = await create(loadtesting, server, "users", SESSIONS)
        with server.frozen():
            pools = tuple(DataPool(f"p{number}", users) for number in range(3))
            preparing = asyncio.create_task(source.prepare(pools, seed=1, now=NOW, needed={}))
            await until(lambda: len(workers()) == len(pools))
            preparing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await preparing
            assert not workers()
        assert len((await source.prepare(pools, seed=1, now=NOW, needed={})).files) == 3
