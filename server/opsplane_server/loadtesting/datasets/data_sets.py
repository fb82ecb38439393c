"""Data sets: files become rows that are kept, queries are kept to be run, and both can be tried before."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final

import orjson

from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.datasets.model import ClickHouseQuery, DataSet, Rows, UploadedRows
from opsplane_server.loadtesting.datasets.ports import DataSetStore
from opsplane_server.loadtesting.datasets.reading import RowReader
from opsplane_server.loadtesting.datasets.secrets import seal_password
from opsplane_server.loadtesting.ports import ProjectStore
from opsplane_server.storage.secrets import SecretBox

DEFAULT_SAMPLES: Final = 5
# Callers take no more than 4 MiB in an answer.
_MAX_SAMPLE_BYTES: Final = 1024 * 1024

_HOST: Final = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?")
# Comments and brackets may come first.
_SELECT: Final = re.compile(r"(?:\s|\(|--[^\n]*\n|#[!\s][^\n]*\n|/\*.*?\*/)*(?:SELECT|WITH|FROM)\b", re.I | re.S)


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from, with what is not kept as it is: the file of an upload, the password of a query."""

    kind: UploadedRows | ClickHouseQuery
    content: bytes = field(default=b"", repr=False)
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Trial:
    """What a source gave. `samples` are its first rows."""

    rows: Rows
    samples: list[dict[str, Any]]
    duration: timedelta


class DataSets:
    """Reads, creates and tries data sets."""

    def __init__(self, projects: ProjectStore, store: DataSetStore, secrets: SecretBox, reader: RowReader) -> None:
        self._projects = projects
        self._store = store
        self._secrets = secrets
        self._reader = reader

    async def read(self, parent: str, source: Source) -> Rows | None:
        """The rows of an upload; None for a query, which is run when a run needs it and not before.

        Raises NotFound for the project, InvalidArgument for a file that cannot be read or a query that cannot be.
        """
        await self._projects.get_project(parent)
        if isinstance(source.kind, UploadedRows):
            return await self._reader.parse(source.kind.format, source.content)
        _check(source.kind)
        return None

    async def create(self, data_set: DataSet, source: Source, rows: Rows | None) -> DataSet:
        """Stores what `read` has read. Joins the caller's transaction. Raises AlreadyExists, NotFound."""
        sealed = seal_password(self._secrets, data_set.name, source.password)
        return await self._store.insert_data_set(replace(data_set, password=sealed), rows)

    async def test(self, parent: str, source: Source, sample_size: int) -> Trial:
        """Reads all rows and keeps nothing; 0 samples mean 5.

        Raises as `read`, and FailedPrecondition `DATA_SET_FAILED` when a query fails or gives no rows.
        """
        started = time.monotonic()
        rows = await self.read(parent, source)
        if rows is None:
            assert isinstance(source.kind, ClickHouseQuery)
            rows = await self._reader.query(source.kind, source.password)
        duration = timedelta(seconds=time.monotonic() - started)
        samples, size = [], 0
        for line in rows.first(sample_size or DEFAULT_SAMPLES).lines.split(b"\n"):
            size += len(line)
            if size > _MAX_SAMPLE_BYTES:
                break
            samples.append(orjson.loads(line))
        return Trial(rows, samples, duration)


def _check(query: ClickHouseQuery) -> None:
    if not _HOST.fullmatch(query.host):
        raise InvalidArgument.of("data_set.clickhouse.host", "must be a name or an address, without scheme and port")
    if not _SELECT.match(query.query):
        raise InvalidArgument.of("data_set.clickhouse.query", "must be a SELECT")
