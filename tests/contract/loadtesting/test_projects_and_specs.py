"""Projects, specifications and endpoints, as callers see them."""

from __future__ import annotations

import uuid

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from opsplane.loadtesting.v1 import projects_pb2, specs_pb2

from tests.loadtesting_harness import PETS, LoadTesting
from tests.rpc_harness import require_status

Project = projects_pb2.Project
CreateProject = projects_pb2.CreateProjectRequest


async def create(loadtesting: LoadTesting, project_id: str = "shop", title: str = "Shop") -> projects_pb2.Project:
    project: projects_pb2.Project = await loadtesting.stub.CreateProject(
        CreateProject(project=Project(title=title), project_id=project_id)
    )
    return project


async def analyze(loadtesting: LoadTesting) -> specs_pb2.Spec:
    spec: specs_pb2.Spec = await loadtesting.stub.AnalyzeSpec(
        specs_pb2.AnalyzeSpecRequest(parent="projects/shop", content=PETS.read_text(encoding="utf-8"), spec_id="pets")
    )
    return spec


async def test_project_is_created_read_and_listed_newest_first(loadtesting: LoadTesting) -> None:
    first = await create(loadtesting)
    assert first.name == "projects/shop"
    assert first.etag
    assert first.create_time.seconds
    second = await create(loadtesting, "")
    assert second.name.startswith("projects/i")
    assert await loadtesting.stub.GetProject(projects_pb2.GetProjectRequest(name=first.name)) == first
    listed = await loadtesting.stub.ListProjects(projects_pb2.ListProjectsRequest())
    assert [project.name for project in listed.projects] == [second.name, first.name]


async def test_pages_hold_every_project_once(loadtesting: LoadTesting) -> None:
    names = [(await create(loadtesting, f"p{n}")).name for n in range(5)]
    found, token = [], ""
    while True:
        page = await loadtesting.stub.ListProjects(projects_pb2.ListProjectsRequest(page_size=2, page_token=token))
        found += [project.name for project in page.projects]
        token = page.next_page_token
        if not token:
            break
    assert found == names[::-1]
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        await loadtesting.stub.ListProjects(projects_pb2.ListProjectsRequest(page_token="bogus"))


async def test_filter_restricts_and_is_checked(loadtesting: LoadTesting) -> None:
    await create(loadtesting, "a", title="Alpha one")
    await create(loadtesting, "b", title="Beta")
    listed = await loadtesting.stub.ListProjects(projects_pb2.ListProjectsRequest(filter='title:"alpha"'))
    assert [project.name for project in listed.projects] == ["projects/a"]
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "FILTER_INVALID") as refusal:
        await loadtesting.stub.ListProjects(projects_pb2.ListProjectsRequest(filter="nonsense=1"))
    assert refusal.bad_fields == ["filter"]


async def test_create_refuses_what_is_taken_or_wrong(loadtesting: LoadTesting) -> None:
    await create(loadtesting)
    with require_status(grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS"):
        await create(loadtesting)
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT") as refusal:
        await loadtesting.stub.CreateProject(CreateProject(project=Project(), project_id="Bad Id"))
    assert refusal.bad_fields == ["project", "project_id"]


async def test_update_changes_the_mask_and_guards_the_etag(loadtesting: LoadTesting) -> None:
    project = await create(loadtesting)
    changed = await loadtesting.stub.UpdateProject(
        projects_pb2.UpdateProjectRequest(
            project=Project(name=project.name, summary="All pets", title="ignored"),
            update_mask=FieldMask(paths=["summary"]),
            etag=project.etag,
        )
    )
    assert (changed.title, changed.summary) == ("Shop", "All pets")
    assert changed.etag != project.etag
    with require_status(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"):
        await loadtesting.stub.UpdateProject(
            projects_pb2.UpdateProjectRequest(project=Project(name=project.name, title="Late"), etag=project.etag)
        )


async def test_delete_keeps_what_holds_something_unless_forced(loadtesting: LoadTesting) -> None:
    project = await create(loadtesting)
    await analyze(loadtesting)
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "PROJECT_NOT_EMPTY"):
        await loadtesting.stub.DeleteProject(projects_pb2.DeleteProjectRequest(name=project.name))
    await loadtesting.stub.DeleteProject(projects_pb2.DeleteProjectRequest(name=project.name, force=True))
    with require_status(grpc.StatusCode.NOT_FOUND, "NOT_FOUND"):
        await loadtesting.stub.GetProject(projects_pb2.GetProjectRequest(name=project.name))


async def test_specification_is_kept_with_its_endpoints(loadtesting: LoadTesting) -> None:
    await create(loadtesting)
    spec = await analyze(loadtesting)
    assert spec.name == "projects/shop/specs/pets"
    assert (spec.title, spec.version, spec.openapi_version) == ("Pets", "1.2.0", "3.1.0")
    assert spec.base_url == "http://127.0.0.1:8080"
    assert {tag.name: tag.endpoint_count for tag in spec.tags} == {"pets": 3, "admin": 1}
    assert spec.endpoint_count == 4
    assert await loadtesting.stub.GetSpec(specs_pb2.GetSpecRequest(name=spec.name)) == spec
    listed = await loadtesting.stub.ListEndpoints(specs_pb2.ListEndpointsRequest(parent=spec.name))
    assert [(e.method, e.path) for e in listed.endpoints] == [
        ("GET", "/pets"),
        ("POST", "/pets"),
        ("GET", "/pets/{petId}"),
        ("GET", "/health"),
    ]
    assert listed.endpoints[2].parameters[0].sample_json == "7"
    assert "Rex" in listed.endpoints[1].request_body.sample


async def test_endpoints_are_filtered_by_tag_and_paged(loadtesting: LoadTesting) -> None:
    await create(loadtesting)
    spec = await analyze(loadtesting)

    async def paths(filter: str) -> list[str]:
        request = specs_pb2.ListEndpointsRequest(parent=spec.name, filter=filter)
        return [f"{e.method} {e.path}" for e in (await loadtesting.stub.ListEndpoints(request)).endpoints]

    assert await paths('tag="admin"') == ["POST /pets"]
    assert await paths('tag="pets" AND method="GET"') == ["GET /pets", "GET /pets/{petId}"]
    assert await paths('tag!="pets"') == ["GET /health"]
    everywhere = specs_pb2.ListEndpointsRequest(parent="projects/-/specs/-", page_size=3)
    page = await loadtesting.stub.ListEndpoints(everywhere)
    assert len(page.endpoints) == 3
    everywhere.page_token = page.next_page_token
    rest = await loadtesting.stub.ListEndpoints(everywhere)
    assert [endpoint.path for endpoint in rest.endpoints] == ["/health"]
    assert not rest.next_page_token


async def test_validate_only_keeps_nothing(loadtesting: LoadTesting) -> None:
    await create(loadtesting)
    spec = await loadtesting.stub.AnalyzeSpec(
        specs_pb2.AnalyzeSpecRequest(
            parent="projects/shop", content=PETS.read_text(encoding="utf-8"), validate_only=True
        )
    )
    assert spec.endpoint_count == 4
    assert not (await loadtesting.stub.ListSpecs(specs_pb2.ListSpecsRequest(parent="projects/shop"))).specs


async def test_broken_document_is_refused_with_its_place(loadtesting: LoadTesting) -> None:
    await create(loadtesting)
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "SPEC_BROKEN") as refusal:
        await loadtesting.stub.AnalyzeSpec(
            specs_pb2.AnalyzeSpecRequest(parent="projects/shop", content="openapi: 3.1.0\npaths: [\n")
        )
    assert refusal.bad_fields == ["content"]
    assert "line" in refusal.message


async def test_specification_is_deleted(loadtesting: LoadTesting) -> None:
    await create(loadtesting)
    spec = await analyze(loadtesting)
    await loadtesting.stub.DeleteSpec(specs_pb2.DeleteSpecRequest(name=spec.name))
    with require_status(grpc.StatusCode.NOT_FOUND):
        await loadtesting.stub.GetSpec(specs_pb2.GetSpecRequest(name=spec.name))


async def test_request_id_replays_the_first_answer_and_refuses_another_body(loadtesting: LoadTesting) -> None:
    request = CreateProject(project=Project(title="Shop"), project_id="shop", request_id=str(uuid.uuid4()))
    first = await loadtesting.stub.CreateProject(request)
    assert await loadtesting.stub.CreateProject(request) == first
    request.project.title = "Other"
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED") as refusal:
        await loadtesting.stub.CreateProject(request)
    assert refusal.bad_fields == ["request_id"]

    analysis = specs_pb2.AnalyzeSpecRequest(
        parent="projects/shop", content=PETS.read_text(encoding="utf-8"), request_id=str(uuid.uuid4())
    )
    spec = await loadtesting.stub.AnalyzeSpec(analysis)
    assert await loadtesting.stub.AnalyzeSpec(analysis) == spec
    assert len((await loadtesting.stub.ListSpecs(specs_pb2.ListSpecsRequest(parent="projects/shop"))).specs) == 1
    analysis.base_url = "http://127.0.0.1:1"
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED"):
        await loadtesting.stub.AnalyzeSpec(analysis)
