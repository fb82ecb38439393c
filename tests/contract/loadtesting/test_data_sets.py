"""Data sets, as callers see them: uploads are read when they are created, queries are kept until they are needed."""

from __future__ import annotations

import hashlib
import uuid

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from opsplane.loadtesting.v1 import datasets_pb2, projects_pb2
from opsplane_server.loadtesting.datasets.secrets import open_password

from tests.loadtesting_harness import LoadTesting
from tests.rpc_harness import require_status

CSV = b"id,name\n838,Rex\n839,Milo\n"
LINES = b'{"id":838,"name":"Rex"}\n{"id":839,"name":"Milo"}'
PASSWORD = "sesame-open-dich"


def uploaded(content: bytes = CSV, form: int = datasets_pb2.ROW_FORMAT_CSV, title: str = "") -> datasets_pb2.DataSet:
    upload = datasets_pb2.UploadedRows(content=content)
    upload.format = form  # type: ignore[assignment]  # also numbers that are none
    return datasets_pb2.DataSet(title=title, upload=upload)


def queried(**changes: object) -> datasets_pb2.DataSet:
    query = {"host": "clickhouse.invalid", "query": "SELECT id FROM users", "password": PASSWORD} | changes
    return datasets_pb2.DataSet(title="Users", clickhouse=datasets_pb2.ClickHouseQuery(**query))  # type: ignore[arg-type]


async def create(
    loadtesting: LoadTesting, data_set: datasets_pb2.DataSet, data_set_id: str = "", request_id: str = ""
) -> datasets_pb2.DataSet:
    created: datasets_pb2.DataSet = await loadtesting.stub.CreateDataSet(
        datasets_pb2.CreateDataSetRequest(
            parent="projects/shop", data_set=data_set, data_set_id=data_set_id, request_id=request_id
        )
    )
    return created


@pytest.fixture(autouse=True)
async def project(loadtesting: LoadTesting) -> None:
    await loadtesting.stub.CreateProject(
        projects_pb2.CreateProjectRequest(project=projects_pb2.Project(title="Shop"), project_id="shop")
    )


async def test_upload_is_kept_with_what_it_has_but_without_its_rows(loadtesting: LoadTesting) -> None:
    created = await create(loadtesting, uploaded(title="Pets"), "pets")
    assert created.name == "projects/shop/dataSets/pets"
    assert (created.title, created.upload.format, created.upload.content) == ("Pets", datasets_pb2.ROW_FORMAT_CSV, b"")
    assert (list(created.fields), created.row_count) == (["id", "name"], 2)
    assert created.sha256 == hashlib.sha256(LINES).hexdigest()
    assert created.create_time.seconds
    assert await loadtesting.stub.GetDataSet(datasets_pb2.GetDataSetRequest(name=created.name)) == created
    rows = await loadtesting.data_sets.get_rows(created.name)
    assert (rows.lines, rows.fields, rows.row_count, rows.sha256) == (LINES, ("id", "name"), 2, created.sha256)


async def test_the_same_rows_are_the_same_in_every_format(loadtesting: LoadTesting) -> None:
    for form, content in (
        (datasets_pb2.ROW_FORMAT_JSON, b"[" + LINES.replace(b"\n", b",") + b"]"),
        (datasets_pb2.ROW_FORMAT_JSON_LINES, LINES),
    ):
        created = await create(loadtesting, uploaded(content, form))
        assert created.sha256 == hashlib.sha256(LINES).hexdigest()
        assert created.upload.format == form


async def test_query_is_kept_without_being_run_and_its_password_is_hidden(loadtesting: LoadTesting) -> None:
    asked = queried(port=9440, database="shop", user="reader", tls=True, timeout=Duration(seconds=7), limit=50)
    created = await create(loadtesting, asked, "users")
    asked.clickhouse.password = ""
    assert created.clickhouse == asked.clickhouse
    assert (list(created.fields), created.row_count, created.sha256) == ([], 0, "")
    found = await loadtesting.stub.GetDataSet(datasets_pb2.GetDataSetRequest(name=created.name))
    listed = await loadtesting.stub.ListDataSets(datasets_pb2.ListDataSetsRequest(parent="projects/shop"))
    assert found == created == listed.data_sets[0]
    stored = await loadtesting.data_sets.get_data_set(created.name)
    assert open_password(loadtesting.secrets, stored) == PASSWORD
    async with loadtesting.platform.database.connection() as connection:
        for table in ("loadtesting.data_sets", "platform.requests", "platform.audit_events"):
            text = await connection.fetchval(f"SELECT string_agg(t::text, ' ') FROM {table} t")
            assert PASSWORD not in str(text)
            assert PASSWORD.encode().hex() not in str(text)


async def test_password_of_another_data_set_cannot_be_read(loadtesting: LoadTesting) -> None:
    for name in ("one", "other"):
        await create(loadtesting, queried(), name)
    async with loadtesting.platform.database.connection() as connection:
        await connection.execute(
            """UPDATE loadtesting.data_sets SET password = (SELECT password FROM loadtesting.data_sets WHERE id = 'one')
               WHERE id = 'other'"""
        )
    stored = await loadtesting.data_sets.get_data_set("projects/shop/dataSets/other")
    with pytest.raises(Exception, match="damaged or belongs elsewhere"):
        open_password(loadtesting.secrets, stored)


UNREADABLE = (
    (uploaded(b"id,id\n1,2\n"), "data_set.upload.content", "line 1: column 'id' is there twice"),
    (uploaded(b"id\n1,2\n"), "data_set.upload.content", "line 2: has 2 values"),
    (uploaded(b"[1]", datasets_pb2.ROW_FORMAT_JSON), "data_set.upload.content", "row 1: an object is expected"),
    (queried(query="INSERT INTO users SELECT 1"), "data_set.clickhouse.query", "must be a SELECT"),
    (queried(query="/* SELECT */ KILL QUERY WHERE 1"), "data_set.clickhouse.query", "must be a SELECT"),
    (queried(host="http://clickhouse"), "data_set.clickhouse.host", "without scheme and port"),
)


async def test_what_cannot_be_read_is_refused_by_both(loadtesting: LoadTesting) -> None:
    for data_set, field, problem in UNREADABLE:
        reason = "ROWS_BROKEN" if "upload" in field else "INVALID_ARGUMENT"
        with require_status(grpc.StatusCode.INVALID_ARGUMENT, reason) as refusal:
            await create(loadtesting, data_set)
        assert refusal.bad_fields == [field]
        assert problem in refusal.message
        request = datasets_pb2.TestDataSetRequest(parent="projects/shop", data_set=data_set)
        with require_status(grpc.StatusCode.INVALID_ARGUMENT, reason) as refusal:
            await loadtesting.stub.TestDataSet(request)
        assert refusal.bad_fields == [field]


AGAINST_RULES = (
    (datasets_pb2.DataSet(title="Empty"), "data_set.source"),
    (uploaded(b""), "data_set.upload.content"),
    (uploaded(b"x" * (16 * 1024 * 1024 + 1)), "data_set.upload.content"),
    (uploaded(form=0), "data_set.upload.format"),
    (uploaded(form=9), "data_set.upload.format"),
    (queried(host=""), "data_set.clickhouse.host"),
    (queried(query=""), "data_set.clickhouse.query"),
    (queried(timeout=Duration(seconds=601)), "data_set.clickhouse.timeout"),
    (queried(limit=1_000_001), "data_set.clickhouse.limit"),
)


async def test_rules_of_the_proto_hold(loadtesting: LoadTesting) -> None:
    for data_set, field in AGAINST_RULES:
        with require_status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT") as refusal:
            await create(loadtesting, data_set)
        assert refusal.bad_fields == [field]


async def test_queries_may_begin_with_comments_and_brackets(loadtesting: LoadTesting) -> None:
    for text in ("SELECT 1", " with 1 AS x select x", "-- all\n(SELECT 1)", "/* a\n*/\tFROM t SELECT x"):
        assert (await create(loadtesting, queried(query=text))).clickhouse.query == text


async def test_missing_project_and_taken_name_are_told(loadtesting: LoadTesting) -> None:
    await create(loadtesting, uploaded(), "pets")
    with require_status(grpc.StatusCode.ALREADY_EXISTS):
        await create(loadtesting, queried(), "pets")
    request = datasets_pb2.CreateDataSetRequest(parent="projects/none", data_set=uploaded())
    with require_status(grpc.StatusCode.NOT_FOUND):
        await loadtesting.stub.CreateDataSet(request)
    with require_status(grpc.StatusCode.NOT_FOUND):
        await loadtesting.stub.TestDataSet(datasets_pb2.TestDataSetRequest(parent="projects/none", data_set=uploaded()))


async def test_repeated_create_gives_the_first_answer(loadtesting: LoadTesting) -> None:
    request_id = str(uuid.uuid4())
    first = await create(loadtesting, queried(), "", request_id)
    assert await create(loadtesting, queried(), "", request_id) == first
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED"):
        await create(loadtesting, queried(password="another"), "", request_id)


async def test_list_is_filtered_and_paged_newest_first(loadtesting: LoadTesting) -> None:
    names = [(await create(loadtesting, uploaded(title=f"Set {n}"), f"s{n}")).name for n in range(3)]
    request = datasets_pb2.ListDataSetsRequest(parent="projects/shop", page_size=2)
    first = await loadtesting.stub.ListDataSets(request)
    request.page_token = first.next_page_token
    second = await loadtesting.stub.ListDataSets(request)
    assert [found.name for found in (*first.data_sets, *second.data_sets)] == names[::-1]
    assert not second.next_page_token
    listed = await loadtesting.stub.ListDataSets(
        datasets_pb2.ListDataSetsRequest(
            parent="projects/shop", filter='title:"set 1" AND create_time>2020-01-01T00:00:00Z'
        )
    )
    assert [found.name for found in listed.data_sets] == [names[1]]
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "FILTER_INVALID"):
        await loadtesting.stub.ListDataSets(datasets_pb2.ListDataSetsRequest(parent="projects/shop", filter="host=a"))


async def test_deleted_data_set_is_gone_with_its_rows(loadtesting: LoadTesting) -> None:
    created = await create(loadtesting, uploaded())
    request = datasets_pb2.DeleteDataSetRequest(name=created.name, request_id=str(uuid.uuid4()))
    for _ in range(2):  # repeated, it is answered the same
        assert await loadtesting.stub.DeleteDataSet(request) == Empty()
    with require_status(grpc.StatusCode.NOT_FOUND):
        await loadtesting.stub.DeleteDataSet(datasets_pb2.DeleteDataSetRequest(name=created.name))
    with require_status(grpc.StatusCode.NOT_FOUND):
        await loadtesting.stub.GetDataSet(datasets_pb2.GetDataSetRequest(name=created.name))
    async with loadtesting.platform.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM loadtesting.data_set_rows") == 0


async def test_project_with_data_sets_is_deleted_by_force_alone(loadtesting: LoadTesting) -> None:
    await create(loadtesting, uploaded())
    await create(loadtesting, queried())
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "PROJECT_NOT_EMPTY") as refusal:
        await loadtesting.stub.DeleteProject(projects_pb2.DeleteProjectRequest(name="projects/shop"))
    assert "2 data sets" in refusal.message
    await loadtesting.stub.DeleteProject(projects_pb2.DeleteProjectRequest(name="projects/shop", force=True))


async def test_upload_is_tried_without_being_kept(loadtesting: LoadTesting) -> None:
    content = b"".join(b'{"n": %d, "big": 18446744073709551615, "deep": {"x": [null, true]}}\n' % n for n in range(7))
    request = datasets_pb2.TestDataSetRequest(
        parent="projects/shop", data_set=uploaded(content, datasets_pb2.ROW_FORMAT_JSON_LINES)
    )
    found = await loadtesting.stub.TestDataSet(request)
    assert (list(found.fields), found.row_count) == (["n", "big", "deep"], 7)
    assert found.duration.ToTimedelta().total_seconds() > 0
    assert [json_format.MessageToDict(sample) for sample in found.samples] == [
        {"n": n, "big": "18446744073709551615", "deep": {"x": [None, True]}} for n in range(5)
    ]
    request.sample_size = 2
    assert len((await loadtesting.stub.TestDataSet(request)).samples) == 2
    listed = await loadtesting.stub.ListDataSets(datasets_pb2.ListDataSetsRequest(parent="projects/shop"))
    assert not listed.data_sets


async def test_samples_stay_within_what_a_caller_takes(loadtesting: LoadTesting) -> None:
    content = b"a\n" + b"\n".join(b"x" * 400_000 for _ in range(20))
    found = await loadtesting.stub.TestDataSet(
        datasets_pb2.TestDataSetRequest(parent="projects/shop", data_set=uploaded(content), sample_size=20)
    )
    assert (found.row_count, len(found.samples)) == (20, 2)


async def test_server_that_cannot_be_found_is_told_without_the_password(loadtesting: LoadTesting) -> None:
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "DATA_SET_FAILED") as refusal:
        await loadtesting.stub.TestDataSet(
            datasets_pb2.TestDataSetRequest(parent="projects/shop", data_set=queried(timeout=Duration(seconds=60)))
        )
    assert "clickhouse.invalid cannot be found" in refusal.message
    assert PASSWORD not in refusal.message
