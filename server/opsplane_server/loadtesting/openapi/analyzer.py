"""Analyzes documents in processes of their own, so that a large or hostile one never holds up the event loop.

One process an analysis: it can be ended at any time, has limits on memory and CPU time of its own, and what a
parser leaves behind goes with it. The endpoints come back a line each, which the event loop takes in between other
work.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import structlog

from opsplane_server.errors import InvalidArgument, OpsplaneError
from opsplane_server.loadtesting.definitions import AnalyzedSpec, Endpoint, Specification
from opsplane_server.loadtesting.openapi.fetching import SpecFetcher
from opsplane_server.loadtesting.openapi.worker import ENDPOINTS, MAX_RESULT_BYTES, SPECIFICATIONS, Kind

log = structlog.get_logger(__name__)

# The longest line of an answer: a kind and one endpoint.
_LINE_LIMIT = MAX_RESULT_BYTES + 100


@dataclass(frozen=True, slots=True)
class AnalysisLimits:
    """What the analysis of one document may take, the documents that it refers to included."""

    timeout: timedelta = timedelta(seconds=60)
    memory_bytes: int = 2 * 1024**3
    max_documents: int = 50
    max_document_bytes: int = 32 * 1024 * 1024
    concurrency: int = 2


class SpecAnalyzer:
    """Turns documents into endpoints. Use as an async context manager; leaving it ends what still runs."""

    def __init__(self, fetcher: SpecFetcher, limits: AnalysisLimits | None = None) -> None:
        self._fetcher = fetcher
        self._limits = limits or AnalysisLimits()
        self._places = asyncio.Semaphore(self._limits.concurrency)
        self._processes: set[asyncio.subprocess.Process] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()

    async def analyze(self, text: str, *, source_url: str = "") -> AnalyzedSpec:
        """Analyzes the document `text`; `source_url` is where it was fetched from, empty when it was given.

        Raises InvalidArgument on `content` or `openapi_url` with the place of what is wrong.
        """
        documents: dict[str, str] = {}
        unavailable: dict[str, str] = {}
        try:
            async with asyncio.timeout(self._limits.timeout.total_seconds()), self._places:
                while True:
                    outcome = await self._run(text, source_url, documents, unavailable)
                    if isinstance(outcome, AnalyzedSpec):
                        return outcome
                    for url in outcome:
                        await self._add(url, documents, unavailable)
        except TimeoutError as error:
            seconds = self._limits.timeout.total_seconds()
            problem = f"the document could not be analyzed within {seconds:g} s"
            raise InvalidArgument.of(_field(source_url), problem, reason="SPEC_TOO_COMPLEX") from error

    async def _add(self, url: str, documents: dict[str, str], unavailable: dict[str, str]) -> None:
        """Fetches another document that the first refers to, or notes why it cannot be had."""
        left = self._limits.max_document_bytes - sum(len(text) for text in documents.values())
        if len(documents) >= self._limits.max_documents or left <= 0:
            unavailable[url] = "the document refers to too many others"
            return
        try:
            documents[url] = (await self._fetcher.fetch(url, max_bytes=left)).text
        except OpsplaneError as error:
            unavailable[url] = error.message.removeprefix("openapi_url: ")

    async def _run(
        self, text: str, source_url: str, documents: Mapping[str, str], unavailable: Mapping[str, str]
    ) -> AnalyzedSpec | list[str]:
        """One pass in a process: the result, or the URLs of other documents that it needs."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "opsplane_server.loadtesting.openapi.worker",
            str(self._limits.memory_bytes),
            str(int(self._limits.timeout.total_seconds()) + 1),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_LINE_LIMIT,
        )
        self._processes.add(process)
        try:
            await _send(process, text, source_url, documents, unavailable)
            return await self._receive(process, source_url)
        finally:
            self._processes.discard(process)
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _receive(self, process: asyncio.subprocess.Process, source_url: str) -> AnalyzedSpec | list[str]:
        assert process.stdout is not None
        specification: Specification | None = None
        endpoints: list[Endpoint] = []
        async for line in process.stdout:
            kind, _, payload = line.partition(b" ")
            match kind:
                case Kind.SPECIFICATION:
                    specification = SPECIFICATIONS.validate_json(payload)
                case Kind.ENDPOINT:
                    endpoints.append(ENDPOINTS.validate_json(payload))
                    await asyncio.sleep(0)
                case Kind.END if specification is not None:
                    return AnalyzedSpec(specification, tuple(endpoints))
                case Kind.MISSING:
                    return list(json.loads(payload))
                case Kind.REFUSED:
                    field, description = json.loads(payload)
                    raise InvalidArgument.of(field, description, reason="SPEC_BROKEN")
                case Kind.CRASHED:
                    log.error("analysis of a document crashed", traceback=json.loads(payload))
                    raise RuntimeError("the analysis of the document crashed")
                case _:
                    break
        # TOO_LARGE, or no whole answer: the process ran into its limit of memory or CPU time.
        problem = "the document needs more memory or time than its analysis may take"
        raise InvalidArgument.of(_field(source_url), problem, reason="SPEC_TOO_COMPLEX")


async def _send(
    process: asyncio.subprocess.Process,
    text: str,
    source_url: str,
    documents: Mapping[str, str],
    unavailable: Mapping[str, str],
) -> None:
    assert process.stdin is not None
    texts = [part.encode("utf-8", "replace") for part in (text, *documents.values())]
    head: dict[str, Any] = {
        "source_url": source_url,
        "text": len(texts[0]),
        "documents": {url: len(part) for url, part in zip(documents, texts[1:], strict=True)},
        "unavailable": dict(unavailable),
    }
    try:
        process.stdin.write(json.dumps(head).encode() + b"\n")
        for part in texts:
            process.stdin.write(part)
            await process.stdin.drain()
        process.stdin.close()
    except (BrokenPipeError, ConnectionResetError, RuntimeError):
        pass  # it ended early (uvloop says RuntimeError then); what it answered, if anything, says why


def _field(source_url: str) -> str:
    return "openapi_url" if source_url else "content"
