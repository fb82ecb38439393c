"""Reports of runs, from what is stored of them, as files in parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum

from google.protobuf import json_format
from google.protobuf.message import Message

from opsplane_server.errors import FailedPrecondition, InvalidArgument
from opsplane_server.loadtesting import convert_reports, convert_runs, names
from opsplane_server.loadtesting.comparison.comparing import DEFAULT_TOLERANCE, Comparisons, RunComparison, course
from opsplane_server.loadtesting.history.port import MetricStore
from opsplane_server.loadtesting.metrics.rows import ExportRow
from opsplane_server.loadtesting.metrics.slots import AlignedSlots, SingleSlots, Slot
from opsplane_server.loadtesting.metrics.windows import Window, WindowAssembler
from opsplane_server.loadtesting.model import Run
from opsplane_server.loadtesting.ports import RunStore
from opsplane_server.loadtesting.reports import tables
from opsplane_server.loadtesting.reports.content import Content
from opsplane_server.loadtesting.reports.junit import junit
from opsplane_server.loadtesting.reports.page import page
from opsplane_server.loadtesting.watch import origin

PART_BYTES = 256 * 1024


class Format(StrEnum):
    """Formats of reports; the names are those of the API without their prefix."""

    HTML = "HTML"
    CSV = "CSV"
    CSV_HISTORY = "CSV_HISTORY"
    CSV_FAILURES = "CSV_FAILURES"
    JSON = "JSON"
    JUNIT = "JUNIT"


# The names of CSVs are Locust's.
_FILES = {
    Format.HTML: (".html", "text/html; charset=utf-8"),
    Format.CSV: ("_stats.csv", "text/csv; charset=utf-8"),
    Format.CSV_HISTORY: ("_stats_history.csv", "text/csv; charset=utf-8"),
    Format.CSV_FAILURES: ("_failures.csv", "text/csv; charset=utf-8"),
    Format.JSON: (".json", "application/json"),
    Format.JUNIT: (".xml", "application/xml"),
}
_WHOLE: dict[Format, Callable[[Content], str]] = {
    Format.HTML: page,
    Format.CSV: tables.stats,
    Format.CSV_FAILURES: tables.failures,
    Format.JUNIT: junit,
}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a file. Name and media type are in the first one."""

    content: bytes
    file_name: str = ""
    content_type: str = ""


class Reports:
    """Makes reports of stored runs."""

    def __init__(self, store: RunStore, history: MetricStore, comparisons: Comparisons) -> None:
        self._store = store
        self._history = history
        self._comparisons = comparisons

    async def export(self, name: str, form: Format, baseline: str = "") -> AsyncGenerator[Part, None]:
        """The parts of a report. Raises NotFound, InvalidArgument, FailedPrecondition when a run has not ended."""
        run = await self._store.get_run(name)
        if run.outcome is None or not run.state.ended:
            raise FailedPrecondition(f"{name} has not ended", reason="RUN_ACTIVE")
        project = names.project(names.ids(name)[0])
        if baseline and not baseline.startswith(f"{project}/"):
            raise InvalidArgument.of("baseline", f"{baseline} is not of {project}")
        suffix, content_type = _FILES[form]
        first = Part(b"", f"{names.ids(name)[1]}{suffix}", content_type)
        async for content in _parts(self._text(run, form, baseline)):
            yield Part(content, first.file_name, first.content_type)
            first = Part(b"")

    async def _text(self, run: Run, form: Format, baseline: str) -> AsyncGenerator[str, None]:
        if form is Format.CSV_HISTORY:
            history = tables.History()
            yield history.head()
            async for slots in self._slots(run):
                yield await asyncio.to_thread(history.lines, slots)
        elif form is Format.JSON:
            async for text in self._json(run, baseline):
                yield text
        else:
            yield await asyncio.to_thread(_WHOLE[form], await self._content(run, baseline))

    async def _content(self, run: Run, baseline: str) -> Content:
        assert run.outcome is not None
        points = await course(self._history, run)
        comparison: RunComparison | None = None
        if baseline:
            comparison = await self._comparisons.pair(baseline, run, points, DEFAULT_TOLERANCE)
        by_users = run.plan.users is not None
        return Content(run, run.outcome.results, points, comparison, baseline, by_users)

    async def _json(self, run: Run, baseline: str) -> AsyncGenerator[str, None]:
        """`run`, `comparison` where there is a baseline, and `windows`: the JSON forms of the API's messages."""
        yield f'{{"run": {_json(convert_runs.run_to_proto(run))}'
        if baseline:
            points = await course(self._history, run)
            comparison = await self._comparisons.pair(baseline, run, points, DEFAULT_TOLERANCE)
            yield f',\n"comparison": {_json(convert_reports.run_comparison_to_proto(comparison))}'
        yield ',\n"windows": ['
        separator = "\n"
        assembler = WindowAssembler(origin(run), run.plan.generators)

        def read(rows: list[ExportRow]) -> str:
            now = max(row.time_unix_nano for row in rows)
            return ",\n".join(_window(window) for window in assembler.feed((("", row) for row in rows), now))

        async for rows in self._rows(run):
            if text := await asyncio.to_thread(read, rows):
                yield separator + text
                separator = ",\n"
        if text := ",\n".join(_window(window) for window in assembler.finish()):
            yield separator + text
        yield "\n]}\n"

    async def _slots(self, run: Run) -> AsyncGenerator[list[Slot], None]:
        slots: SingleSlots | AlignedSlots = SingleSlots()
        if run.plan.generators > 1:
            slots = AlignedSlots(origin(run), run.plan.generators)
        async for rows in self._rows(run):
            now = max(row.time_unix_nano for row in rows)
            yield [slot for row in rows for slot in slots.feed("", row, now)]
        yield list(slots.finish())

    async def _rows(self, run: Run) -> AsyncGenerator[list[ExportRow], None]:
        async with aclosing(self._history.read(run)) as batches:
            async for batch in batches:
                yield [row for _, row in batch]


async def _parts(texts: AsyncIterator[str]) -> AsyncGenerator[bytes, None]:
    """The texts as parts of a bounded size, at least one."""
    waiting = bytearray()
    async for text in texts:
        waiting += text.encode()
        while len(waiting) > PART_BYTES:
            yield bytes(waiting[:PART_BYTES])
            del waiting[:PART_BYTES]
    yield bytes(waiting)


def _window(window: Window) -> str:
    return _json(convert_runs.window_to_proto(window))


def _json(message: Message) -> str:
    return json_format.MessageToJson(message, indent=None, ensure_ascii=False)
