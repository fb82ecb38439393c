"""`opsplane loadtest`: projects, specifications, endpoints, the runs of `opsplane.cli.runs`, and their reports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import grpc
from google.protobuf.empty_pb2 import Empty

from opsplane.cli import jobs, reports, runs
from opsplane.cli.data_sets import data_sets
from opsplane.cli.endpoints import spec_of
from opsplane.cli.names import PROJECT, project_option, spec_name
from opsplane.cli.output import clean, console, local_time, more, one_line, print_json, short, table
from opsplane.cli.session import Session, call, pages, pass_session
from opsplane.client import Client, new_request_id
from opsplane.loadtesting.v1 import projects_pb2, specs_pb2

_LIMIT = click.option(
    "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most of them to list."
)


@click.group()
def loadtest() -> None:
    """Load-test HTTP APIs.

    \b
    A first test:
      opsplane loadtest analyze openapi.yaml -p shop --create-project
      opsplane loadtest endpoints -p shop
      opsplane loadtest run -p shop -e "GET /pets" --vus 10 --duration 30s
      opsplane loadtest history -p shop
    """


@loadtest.group()
def projects() -> None:
    """Projects, which hold specifications and runs."""


@projects.command("list")
@click.option("--filter", "filter_", default="", help="Restrict them, for example 'title:shop'.")
@_LIMIT
@pass_session
def list_projects(session: Session, filter_: str, limit: int) -> None:
    """List projects, newest first.

    \b
    Examples:
      opsplane loadtest projects list
      opsplane -o json loadtest projects list | jq -r '.projects[].name'
    """
    request = projects_pb2.ListProjectsRequest(filter=filter_)
    found = session.run(
        lambda client: pages(client.load_testing.ListProjects, request, projects_pb2.ListProjectsResponse, limit)
    )
    if session.as_json:
        print_json(found)
        return
    rows = [
        (short(project.name), one_line(project.title), str(project.spec_count), str(project.run_count),
         local_time(project.create_time), one_line(project.summary))
        for project in found.projects
    ]  # fmt: skip
    console().print(table(("project", "title", ">specs", ">runs", "created", "summary"), rows))
    more(found.next_page_token)


@projects.command("create")
@click.argument("project_id", metavar="ID")
@click.option("--title", default="", help="What people call it. [default: ID]")
@click.option("--summary", default="", help="One line about it.")
@click.option("--description", default="", help="All about it.")
@pass_session
def create_project(session: Session, project_id: str, title: str, summary: str, description: str) -> None:
    """Create a project.

    \b
    Example:
      opsplane loadtest projects create shop --title "Web shop"
    """
    request = _create_project_request(project_id, title)
    request.project.summary = summary
    request.project.description = description
    _print_project(
        session, session.run(lambda client: call(client.load_testing.CreateProject, request, projects_pb2.Project))
    )


@projects.command("show")
@click.argument("project", type=PROJECT)
@pass_session
def show_project(session: Session, project: str) -> None:
    """Show a project.

    \b
    Example:
      opsplane loadtest projects show shop
    """
    request = projects_pb2.GetProjectRequest(name=project)
    _print_project(
        session, session.run(lambda client: call(client.load_testing.GetProject, request, projects_pb2.Project))
    )


@projects.command("delete")
@click.argument("project", type=PROJECT)
@click.option("--force", is_flag=True, help="Also delete what it holds.")
@pass_session
def delete_project(session: Session, project: str, force: bool) -> None:
    """Delete a project.

    \b
    Example:
      opsplane loadtest projects delete shop --force
    """
    request = projects_pb2.DeleteProjectRequest(name=project, force=force, request_id=new_request_id())
    session.run(lambda client: call(client.load_testing.DeleteProject, request, Empty))
    click.echo(f"deleted {project}", err=True)


@loadtest.command()
@click.argument("document", metavar="FILE|URL")
@project_option()
@click.option("--create-project", is_flag=True, help="Create the project if it is missing.")
@click.option("--base-url", default="", help="Where the API is, instead of what the document says.")
@click.option("--spec-id", default="", help="Id of the specification; one is made without it.")
@pass_session
def analyze(session: Session, document: str, project: str, create_project: bool, base_url: str, spec_id: str) -> None:
    """Read an OpenAPI document and list the endpoints in it.

    FILE is sent to the server, `-` is standard input; a URL is fetched by the server.

    \b
    Examples:
      opsplane loadtest analyze openapi.yaml -p shop --create-project
      opsplane loadtest analyze https://api.example.com/openapi.json -p shop
      curl -s http://127.0.0.1:8080/openapi.json | opsplane loadtest analyze - -p shop --base-url http://127.0.0.1:8080
    """
    request = specs_pb2.AnalyzeSpecRequest(
        parent=project, base_url=base_url, spec_id=spec_id, request_id=new_request_id()
    )
    if document.startswith(("http://", "https://")):
        request.openapi_url = document
    else:
        request.content = _read_document(document)

    async def work(client: Client) -> tuple[specs_pb2.Spec, specs_pb2.ListEndpointsResponse]:
        if create_project:
            await _ensure_project(client, project)
        spec = await call(client.load_testing.AnalyzeSpec, request, specs_pb2.Spec)
        listing = specs_pb2.ListEndpointsRequest(parent=spec.name)
        most = max(1, spec.endpoint_count)
        return spec, await pages(client.load_testing.ListEndpoints, listing, specs_pb2.ListEndpointsResponse, most)

    spec, found = session.run(work)
    if session.as_json:
        print_json(spec)
        return
    click.echo(f"{clean(spec.title)} {clean(spec.version)} (OpenAPI {clean(spec.openapi_version)})  {spec.name}")
    click.echo(f"base URL {clean(spec.base_url) or '(none: give --base-url)'}")
    for warning in spec.warnings:
        click.echo(f"warning: {clean(warning)}", err=True)
    _print_endpoints(found.endpoints)


@loadtest.group()
def specs() -> None:
    """Specifications: analyzed OpenAPI documents."""


@specs.command("list")
@project_option(required=False)
@_LIMIT
@pass_session
def list_specs(session: Session, project: str | None, limit: int) -> None:
    """List specifications, newest first, of a project or of all.

    \b
    Example:
      opsplane loadtest specs list -p shop
    """
    request = specs_pb2.ListSpecsRequest(parent=project or "projects/-")
    found = session.run(
        lambda client: pages(client.load_testing.ListSpecs, request, specs_pb2.ListSpecsResponse, limit)
    )
    if session.as_json:
        print_json(found)
        return
    rows = [
        (spec.name, one_line(spec.title), one_line(spec.version), spec.openapi_version, str(spec.endpoint_count),
         one_line(spec.base_url), local_time(spec.create_time))
        for spec in found.specs
    ]  # fmt: skip
    console().print(table(("spec", "title", "version", "openapi", ">endpoints", "base url", "created"), rows))
    more(found.next_page_token)


@specs.command("delete")
@click.argument("spec")
@project_option(required=False)
@pass_session
def delete_spec(session: Session, spec: str, project: str | None) -> None:
    """Delete a specification and its endpoints. Runs that used it stay readable.

    \b
    Example:
      opsplane loadtest specs delete shop/v1
    """
    request = specs_pb2.DeleteSpecRequest(name=spec_name(spec, project), request_id=new_request_id())
    session.run(lambda client: call(client.load_testing.DeleteSpec, request, Empty))
    click.echo(f"deleted {request.name}", err=True)


@loadtest.command()
@project_option()
@click.option("--spec", help="Only of this specification, by id or name.")
@click.option("--tag", default="", help="Only with this tag.")
@click.option("--method", default="", help="Only with this HTTP method.")
@_LIMIT
@pass_session
def endpoints(session: Session, project: str, spec: str | None, tag: str, method: str, limit: int) -> None:
    """List the endpoints of a project.

    \b
    Examples:
      opsplane loadtest endpoints -p shop
      opsplane loadtest endpoints -p shop --spec v1 --tag pets --method GET
    """
    conditions = [f"{field}={_quoted(value)}" for field, value in (("tag", tag), ("method", method.upper())) if value]
    request = specs_pb2.ListEndpointsRequest(
        parent=spec_name(spec, project) if spec else f"{project}/specs/-", filter=" AND ".join(conditions)
    )
    found = session.run(
        lambda client: pages(client.load_testing.ListEndpoints, request, specs_pb2.ListEndpointsResponse, limit)
    )
    if session.as_json:
        print_json(found)
        return
    _print_endpoints(found.endpoints)
    more(found.next_page_token)


for command in (
    data_sets,
    runs.run,
    runs.watch,
    runs.show,
    reports.compare,
    reports.check,
    reports.report,
    runs.history,
    runs.cancel,
    runs.delete,
    runs.script,
    jobs.jobs,
    jobs.logs,
):
    loadtest.add_command(command)


def _read_document(document: str) -> str:
    try:
        return sys.stdin.read() if document == "-" else Path(document).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{document}: {error}") from None


async def _ensure_project(client: Client, project: str) -> None:
    request = _create_project_request(short(project), "")
    try:
        await call(client.load_testing.CreateProject, request, projects_pb2.Project)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
            raise


def _create_project_request(project_id: str, title: str) -> projects_pb2.CreateProjectRequest:
    return projects_pb2.CreateProjectRequest(
        project=projects_pb2.Project(title=title or project_id), project_id=project_id, request_id=new_request_id()
    )


def _print_project(session: Session, project: projects_pb2.Project) -> None:
    if session.as_json:
        print_json(project)
        return
    facts: dict[str, Any] = {
        "name": project.name,
        "title": project.title,
        "summary": project.summary,
        "specs": project.spec_count,
        "runs": project.run_count,
        "created": local_time(project.create_time),
        "description": project.description,
    }
    rows = [(name, clean(str(value))) for name, value in facts.items() if value != ""]
    result = table(("", ""), rows)
    result.show_header = False
    console().print(result)


def _print_endpoints(found: Any) -> None:
    several = len({spec_of(endpoint) for endpoint in found}) > 1
    rows = [
        (clean(endpoint.method), one_line(endpoint.path), one_line(endpoint.operation_id, 40),
         one_line(", ".join(endpoint.tags), 30), one_line(endpoint.summary, 60),
         *([short(spec_of(endpoint))] if several else []))
        for endpoint in found
    ]  # fmt: skip
    console().print(table(("method", "path", "operation", "tags", "summary", *(["spec"] if several else [])), rows))


def _quoted(value: str) -> str:
    """A string of a filter."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
