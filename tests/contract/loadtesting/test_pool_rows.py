"""Rows of pools, of uploads and made up: what is known of them before a run, and what the run gets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from opsplane.loadtesting.v1 import datasets_pb2, projects_pb2
from opsplane_server.errors import FailedPrecondition, InvalidArgument
from opsplane_server.loadtesting.datasets.pools import DataSetRows
from opsplane_server.loadtesting.users.model import (
    Choice,
    DataPool,
    GeneratedField,
    Generator,
    Hex,
    Template,
    TimestampRange,
)
from opsplane_server.loadtesting.users.model import (
    Sequence as Counting,
)

from tests.loadtesting_harness import LoadTesting

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PETS = "projects/shop/dataSets/pets"
USERS = "projects/shop/dataSets/users"


def made(rows: int, *names: str) -> Generator:
    return Generator(rows, tuple(GeneratedField(name, Hex(8)) for name in names))


async def prepare(
    source: DataSetRows, *pools: DataPool, needed: Mapping[str, Sequence[str]] | None = None, seed: int = 1
) -> tuple[dict[str, list[dict[str, Any]]], tuple[str, ...]]:
    found = await source.prepare(pools, seed=seed, now=NOW, needed=needed or {})
    return {pool: json.loads(file) for pool, file in found.files.items()}, found.notes


@pytest.fixture
async def source(loadtesting: LoadTesting) -> DataSetRows:
    """Rows of a project with an upload, `pets`, and a query that nobody answers, `users`."""
    for project in ("shop", "other"):
        await loadtesting.stub.CreateProject(
            projects_pb2.CreateProjectRequest(project=projects_pb2.Project(title=project), project_id=project)
        )
    upload = datasets_pb2.UploadedRows(format=datasets_pb2.ROW_FORMAT_CSV, content=b"id,name\n1,Rex\n2,Milo\n3,Luna\n")
    query = datasets_pb2.ClickHouseQuery(host="127.0.0.1", port=1, query="SELECT id, session FROM users")
    for name, data_set in (
        (PETS, datasets_pb2.DataSet(upload=upload)),
        (USERS, datasets_pb2.DataSet(clickhouse=query)),
    ):
        await loadtesting.stub.CreateDataSet(
            datasets_pb2.CreateDataSetRequest(
                parent="projects/shop", data_set=data_set, data_set_id=name.rpartition("/")[2]
            )
        )
    return DataSetRows(loadtesting.data_sets, loadtesting.secrets, loadtesting.reader)


async def test_fields_are_known_but_of_queries_that_never_ran(source: DataSetRows) -> None:
    pools = [
        DataPool("pets", PETS),
        DataPool("made", made(1, "a", "b")),
        DataPool("users", USERS),
        DataPool("spare", USERS, fallback=made(1, "session", "id")),
    ]
    fields = await source.fields("projects/shop", pools)
    assert {pool: list(names) for pool, names in fields.items()} == {
        "pets": ["id", "name"],
        "made": ["a", "b"],
        "users": [],
        "spare": ["session", "id"],
    }


async def test_all_that_is_wrong_with_pools_is_told_at_once(source: DataSetRows) -> None:
    wrong = Generator(
        1,
        (
            GeneratedField("a", Template("{{row.z}}")),
            GeneratedField("a", Choice(("x",), (0.0,))),
            GeneratedField("t", TimestampRange(timedelta(), timedelta(days=1))),
        ),
    )
    pools = [
        DataPool("p", "projects/shop/dataSets/none"),
        DataPool("q", PETS, fallback=made(1, "name", "more")),
        DataPool("r", wrong),
        DataPool("s", PETS, fallback=Generator(1, (*made(1, "id", "name").fields, wrong.fields[0]))),
    ]
    with pytest.raises(InvalidArgument) as refusal:
        await source.fields("projects/shop", pools)
    at = "run.user_load.pools"
    assert [violation.field for violation in refusal.value.violations] == [
        f"{at}[0].data_set",
        f"{at}[1].fallback",
        f"{at}[2].generator.fields[0].template",
        f"{at}[2].generator.fields[1].name",
        f"{at}[2].generator.fields[1].choice.weights",
        f"{at}[2].generator.fields[2].timestamp.to_ago",
        f"{at}[3].fallback.fields[2].template",
    ]
    assert "lacks id" in refusal.value.violations[1].description


async def test_data_sets_of_other_projects_are_not_there(source: DataSetRows) -> None:
    with pytest.raises(InvalidArgument, match=f"{PETS} does not exist in projects/other"):
        await source.fields("projects/other", [DataPool("pets", PETS)])


async def test_uploads_are_limited_each_by_its_own(source: DataSetRows) -> None:
    files, notes = await prepare(source, DataPool("all", PETS), DataPool("two", PETS, limit=2), DataPool("m", PETS, 9))
    assert files["all"] == files["m"]
    assert [row["name"] for row in files["all"]] == ["Rex", "Milo", "Luna"]
    assert files["two"] == files["all"][:2]
    assert notes == ()


async def test_made_up_rows_are_those_of_seed_and_pool(source: DataSetRows) -> None:
    pools = (DataPool("a", made(3, "x")), DataPool("b", Generator(3, (GeneratedField("n", Counting(5)),))))
    first, _ = await prepare(source, *pools)
    assert (await prepare(source, *pools))[0] == first
    assert (await prepare(source, *pools, seed=2))[0]["a"] != first["a"]
    assert first["b"] == [{"n": 5}, {"n": 6}, {"n": 7}]


async def test_source_that_fails_is_replaced_by_its_own_fallback_and_that_is_said(source: DataSetRows) -> None:
    files, notes = await prepare(
        source,
        DataPool("users", USERS, fallback=made(1500, "id", "session")),
        DataPool("gone", "projects/shop/dataSets/gone", fallback=made(2, "id")),
        DataPool("pets", PETS, fallback=made(9, "id", "name")),
    )
    assert {pool: len(rows) for pool, rows in files.items()} == {"users": 1500, "gone": 2, "pets": 3}
    assert notes == (
        "pool users: 127.0.0.1:1 cannot be reached: Connection refused; 1,500 rows were made up instead",
        "pool gone: projects/shop/dataSets/gone does not exist; 2 rows were made up instead",
    )
    # It is what a generator of this pool makes.
    assert files["users"] == (await prepare(source, DataPool("users", made(1500, "id", "session"))))[0]["users"]


async def test_source_that_fails_without_a_fallback_fails_the_run(source: DataSetRows) -> None:
    with pytest.raises(FailedPrecondition, match=r"^pool users: 127\.0\.0\.1:1 cannot be reached") as refusal:
        await prepare(source, DataPool("pets", PETS), DataPool("users", USERS))
    assert refusal.value.reason == "DATA_SET_FAILED"


async def test_rows_without_a_field_that_templates_take_are_a_failure(source: DataSetRows) -> None:
    with pytest.raises(FailedPrecondition, match="pool pets: the rows have no field age, but id, name"):
        await prepare(source, DataPool("pets", PETS), needed={"pets": ["id", "age"]})
    files, notes = await prepare(
        source, DataPool("pets", PETS, fallback=made(1, "id", "name", "age")), needed={"pets": ["id", "age"]}
    )
    assert list(files["pets"][0]) == ["id", "name", "age"]
    assert "no field age" in notes[0]


async def test_all_pools_together_are_bounded(loadtesting: LoadTesting, source: DataSetRows) -> None:
    small = DataSetRows(loadtesting.data_sets, loadtesting.secrets, loadtesting.reader, max_bytes=100)
    assert await prepare(small, DataPool("a", PETS))
    with pytest.raises(FailedPrecondition, match="the rows of all pools come to") as refusal:
        await prepare(small, DataPool("a", PETS), DataPool("b", PETS))
    assert refusal.value.reason == "DATA_SET_FAILED"
