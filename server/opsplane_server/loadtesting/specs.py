"""Specifications: an OpenAPI document is analyzed and its endpoints are kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from opsplane_server.loadtesting import names
from opsplane_server.loadtesting.definitions import AnalyzedSpec
from opsplane_server.loadtesting.model import Endpoint, Spec
from opsplane_server.loadtesting.openapi.analyzer import SpecAnalyzer
from opsplane_server.loadtesting.openapi.fetching import SpecFetcher
from opsplane_server.loadtesting.ports import ProjectStore, SpecStore


class Specs:
    """Analyzes and keeps specifications."""

    def __init__(self, projects: ProjectStore, store: SpecStore, fetcher: SpecFetcher, analyzer: SpecAnalyzer) -> None:
        self._projects = projects
        self._store = store
        self._fetcher = fetcher
        self._analyzer = analyzer

    async def analyze(self, parent: str, *, url: str = "", content: str = "", base_url: str = "") -> AnalyzedSpec:
        """Fetches (with `url`) and analyzes a document; keeps nothing.

        Raises NotFound for the project, InvalidArgument for a broken document or a refused URL, Unavailable for a URL
        that does not answer, ResourceExhausted for a document beyond the limits.
        """
        await self._projects.get_project(parent)  # a missing project is said before time is spent on the document
        if url:
            document = await self._fetcher.fetch(url)
            analyzed = await self._analyzer.analyze(document.text, source_url=document.url)
        else:
            analyzed = await self._analyzer.analyze(content)
        if base_url:
            # Every call goes to the URL that the caller names, also of operations with a server of their own.
            analyzed = AnalyzedSpec(
                specification=replace(analyzed.specification, base_url=base_url),
                endpoints=tuple(replace(endpoint, server_url="") for endpoint in analyzed.endpoints),
            )
        return analyzed

    async def keep(self, name: str, analyzed: AnalyzedSpec) -> Spec:
        """Stores what `analyze` found. Raises AlreadyExists, NotFound."""
        return await self._store.insert_spec(describe(name, analyzed), endpoints_of(name, analyzed))


def describe(name: str, analyzed: AnalyzedSpec) -> Spec:
    """The specification as a resource."""
    return Spec(
        name=name,
        specification=analyzed.specification,
        endpoint_count=len(analyzed.endpoints),
        tag_counts=Counter(tag for endpoint in analyzed.endpoints for tag in endpoint.tags),
    )


def endpoints_of(name: str, analyzed: AnalyzedSpec) -> list[Endpoint]:
    """The endpoints as resources; their ids count up in the document's order."""
    project_id, spec_id = names.ids(name)
    return [
        Endpoint(name=names.endpoint(project_id, spec_id, f"e{ordinal}"), definition=endpoint)
        for ordinal, endpoint in enumerate(analyzed.endpoints, start=1)
    ]
