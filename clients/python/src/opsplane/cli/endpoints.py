"""Finding the endpoints that people name: `GET /pets`, an operation id, or the resource name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence

import click

from opsplane.cli.output import clean
from opsplane.cli.session import call, pages
from opsplane.client import Client
from opsplane.loadtesting.v1 import projects_pb2, specs_pb2

_MOST = 100_000
_RESOURCE = re.compile(r"projects/[^/]+/specs/[^/]+/endpoints/[^/]+")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]+")
_NAME_LENGTH = 64


def is_resource_name(text: str) -> bool:
    """True for `projects/*/specs/*/endpoints/*`."""
    return _RESOURCE.fullmatch(text) is not None


class Catalog:
    """The endpoints of a project. Where several specifications have what is asked for, the newest goes first."""

    def __init__(self, endpoints: Sequence[specs_pb2.Endpoint]) -> None:
        self._by_name: dict[str, specs_pb2.Endpoint] = {}
        for endpoint in endpoints:
            for name in (endpoint.name, label(endpoint), endpoint.operation_id):
                if name:
                    self._by_name.setdefault(name, endpoint)

    def find(self, text: str) -> specs_pb2.Endpoint:
        """Raises UsageError with names that come close."""
        method, _, path = text.strip().partition(" ")
        wanted = f"{method.upper()} {path.strip()}" if path else method
        found = self._by_name.get(wanted)
        if found is None:
            close = difflib.get_close_matches(wanted, self._by_name, n=3)
            hint = f"; did you mean {clean(' or '.join(close))}?" if close else ""
            raise click.UsageError(f"the project has no endpoint {text!r}{hint}")
        return found


async def load_catalog(client: Client, project: str, spec: str | None = None) -> Catalog:
    """Reads the endpoints of one specification, or of all of a project."""
    stub = client.load_testing
    if spec is not None:
        found = await pages(
            stub.ListEndpoints, specs_pb2.ListEndpointsRequest(parent=spec), specs_pb2.ListEndpointsResponse, _MOST
        )
        return Catalog(found.endpoints)
    specs = await pages(stub.ListSpecs, specs_pb2.ListSpecsRequest(parent=project), specs_pb2.ListSpecsResponse, _MOST)
    if not specs.specs:
        await call(stub.GetProject, projects_pb2.GetProjectRequest(name=project), projects_pb2.Project)
        raise click.UsageError(f"{project} has no specification yet: `opsplane loadtest analyze` reads one")
    newest_first = {listed.name: place for place, listed in enumerate(specs.specs)}
    found = await pages(
        stub.ListEndpoints,
        specs_pb2.ListEndpointsRequest(parent=f"{project}/specs/-"),
        specs_pb2.ListEndpointsResponse,
        _MOST,
    )
    return Catalog(sorted(found.endpoints, key=lambda endpoint: newest_first.get(spec_of(endpoint), len(newest_first))))


def label(endpoint: specs_pb2.Endpoint) -> str:
    """Method and path: how people and figures call an endpoint."""
    return f"{endpoint.method} {endpoint.path}"


def spec_of(endpoint: specs_pb2.Endpoint) -> str:
    """The name of the specification that it is of."""
    return endpoint.name.partition("/endpoints/")[0]


def scenario_name(endpoint: specs_pb2.Endpoint, taken: Collection[str]) -> str:
    """A name for a scenario on this endpoint that is not taken yet."""
    words = endpoint.operation_id or f"{endpoint.method.lower()}{endpoint.path}"
    name = _NOT_IN_NAMES.sub("_", words).strip("_-") or "scenario"
    if not (name[0].isalpha() or name[0] == "_"):
        name = f"_{name}"
    candidate, number = name[:_NAME_LENGTH], 1
    while candidate in taken:
        number += 1
        candidate = f"{name[: _NAME_LENGTH - len(f'_{number}')]}_{number}"
    return candidate
