"""Analysis in processes: results, refusals, limits, and documents that refer to others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import psutil
import pytest
from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.openapi.analysis import analyze
from opsplane_server.loadtesting.openapi.analyzer import AnalysisLimits, SpecAnalyzer
from opsplane_server.loadtesting.openapi.fetching import FetchLimits, SpecFetcher

from tests.unit.loadtesting.openapi.local_server import Answer, LocalServer, local_server

LIMITS = AnalysisLimits(timeout=timedelta(seconds=30))


@pytest.fixture
async def fetcher() -> AsyncIterator[SpecFetcher]:
    async with SpecFetcher(FetchLimits(allow_private=True)) as ready:
        yield ready


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with local_server() as running:
        yield running


def workers() -> list[psutil.Process]:
    """The processes of analyses; others are children of the test session too."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "opsplane_server.loadtesting.openapi.worker" in child.cmdline()
    ]


def large_document(operations: int) -> str:
    operation = {"get": {"description": "ä" * 100, "parameters": [{"name": "q", "in": "query", "example": "x" * 500}]}}
    return json.dumps({"openapi": "3.1.0", "paths": {f"/p{n}": operation for n in range(operations)}})


async def test_the_result_is_that_of_the_pure_function(fetcher: SpecFetcher) -> None:
    text = large_document(2000)
    async with SpecAnalyzer(fetcher, LIMITS) as analyzer:
        assert await analyzer.analyze(text) == analyze(text)
    assert workers() == []


async def test_a_broken_document_is_refused_with_its_place(fetcher: SpecFetcher) -> None:
    async with SpecAnalyzer(fetcher, LIMITS) as analyzer:
        with pytest.raises(InvalidArgument, match="line 1, column") as caught:
            await analyzer.analyze("{,}")
        assert caught.value.violations[0].field == "content"
        with pytest.raises(InvalidArgument, match="#/paths") as caught:
            await analyzer.analyze("openapi: 3.0.0\npaths: 1", source_url="https://example.com/o")
        assert caught.value.violations[0].field == "openapi_url"


async def test_more_than_its_time_ends_the_analysis(fetcher: SpecFetcher) -> None:
    async with SpecAnalyzer(fetcher, replace(LIMITS, timeout=timedelta(milliseconds=1))) as analyzer:
        with pytest.raises(InvalidArgument, match=r"within 0\.001 s") as caught:
            await analyzer.analyze(large_document(10))
    assert caught.value.reason == "SPEC_TOO_COMPLEX"
    assert workers() == []


async def test_more_than_its_memory_ends_the_analysis(fetcher: SpecFetcher) -> None:
    hungry = '{"openapi": "3.1.0", "x": [' + "[]," * 4_000_000 + "[]]}"
    async with SpecAnalyzer(fetcher, replace(LIMITS, memory_bytes=300 * 1024**2)) as analyzer:
        with pytest.raises(InvalidArgument, match="more memory or time"):
            await analyzer.analyze(hungry)
        assert (await analyzer.analyze(large_document(1))).endpoints


async def test_an_answer_without_measure_is_refused(fetcher: SpecFetcher) -> None:
    example = {"example": "x" * 150_000}
    body = {"content": {"text/plain": {"schema": {"$ref": "#/x"}}}}
    operation = {"post": {"requestBody": body}}
    text = json.dumps({"openapi": "3.1.0", "x": example, "paths": {f"/{n}": operation for n in range(1000)}})
    async with SpecAnalyzer(fetcher, LIMITS) as analyzer:
        with pytest.raises(InvalidArgument, match="more memory or time"):
            await analyzer.analyze(text)


async def test_cancelling_ends_the_process(fetcher: SpecFetcher) -> None:
    async with SpecAnalyzer(fetcher, LIMITS) as analyzer:
        task = asyncio.create_task(analyzer.analyze(large_document(10_000)))
        while not workers():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert workers() == []


async def test_other_documents_are_fetched(fetcher: SpecFetcher, server: LocalServer) -> None:
    server.answers["/paths.yaml"] = Answer(b"a:\n  post:\n    requestBody: {$ref: 'deep/body.json#/body'}\n")
    server.answers["/deep/body.json"] = Answer(
        b'{"body": {"content": {"application/json": {"schema": {"properties": {"a": {"$ref": "gone.json"}}}}}}}'
    )
    text = "openapi: 3.0.0\npaths: {/a: {$ref: 'paths.yaml#/a'}}"
    async with SpecAnalyzer(fetcher, LIMITS) as analyzer:
        analyzed = await analyzer.analyze(text, source_url=server.url("/openapi.yaml"))
    assert [endpoint.label for endpoint in analyzed.endpoints] == ["POST /a"]
    assert analyzed.specification.base_url == server.url("")
    (warning,) = [warning for warning in analyzed.specification.warnings if "gone.json" in warning]
    assert "answered 404" in warning


async def test_other_documents_are_counted_and_measured(fetcher: SpecFetcher, server: LocalServer) -> None:
    for n in range(10):
        server.answers[f"/{n}"] = Answer(b"get: {parameters: [{$ref: '%d'}]}" % (n + 1))
    text = "openapi: 3.0.0\npaths: {/a: {$ref: '0'}, /b: {$ref: '5'}}"
    source_url = server.url("/openapi.yaml")
    for limits in (replace(LIMITS, max_documents=1), replace(LIMITS, max_document_bytes=10)):
        async with SpecAnalyzer(fetcher, limits) as analyzer:
            with pytest.raises(InvalidArgument, match="cannot be had"):
                await analyzer.analyze(text, source_url=source_url)
