"""The classic design as a service: FastAPI, Pydantic, gzip JSON, a pool of asyncpg with copy_records_to_table.

Run by uvicorn. Its database and table come from CLASSIC_DSN and CLASSIC_TABLE (`schema.name`). It is written as its
frameworks' manuals advise; the table is the one that the service under test writes to.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import asyncpg
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from tests.bench.logs_records import COLUMNS

Short = Annotated[str, Field(max_length=100)]
Name = Annotated[str, Field(max_length=255)]
Trace = Annotated[str, Field(max_length=64)]


class Level(StrEnum):
    """In the order of the numbers that are stored, from 1."""

    TRACE = "TRACE"
    DEBUG = "DEBUG"
    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"
    FATAL = "FATAL"


NUMBERS = {level: number for number, level in enumerate(Level, start=1)}


class LogEntry(BaseModel):
    """The 21 fields."""

    timestamp: datetime | None = None
    level: Level
    service: Annotated[str, Field(min_length=1, max_length=100)]
    message: Annotated[str, Field(min_length=1, max_length=1048576)]
    service_version: Short | None = None
    environment: Short | None = None
    host: Name | None = None
    logger: Name | None = None
    thread: Name | None = None
    trace_id: Trace | None = None
    span_id: Trace | None = None
    request_id: Name | None = None
    user_id: Name | None = None
    session_id: Name | None = None
    http_method: Annotated[str, Field(max_length=20)] | None = None
    http_path: Annotated[str, Field(max_length=8192)] | None = None
    http_status: Annotated[int, Field(ge=100, le=999)] | None = None
    duration_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    error_type: Name | None = None
    stack_trace: Annotated[str, Field(max_length=1048576)] | None = None
    metadata: dict[str, Any] | None = None


class LogBatch(BaseModel):
    """What is posted."""

    logs: Annotated[list[LogEntry], Field(min_length=1, max_length=1000)]


class Saved(BaseModel):
    """What is answered."""

    saved: int
    status: str = "success"


class GzipRequest(Request):
    """A request whose body may be compressed."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            body = await super().body()
            if "gzip" in self.headers.getlist("Content-Encoding"):
                body = gzip.decompress(body)
            self._body = body
        return self._body


class GzipRoute(APIRoute):
    """Hands such requests to its endpoint."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(GzipRequest(request.scope, request.receive))

        return handle


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["CLASSIC_DSN"], min_size=10, max_size=20, command_timeout=60) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)
app.router.route_class = GzipRoute
_schema, _table = os.environ["CLASSIC_TABLE"].split(".")
_ids = itertools.count()


@app.post("/logs")
async def save(batch: LogBatch) -> Saved:
    """Stores a batch and answers after its commit."""
    received = datetime.now(UTC)
    rows = [_row(entry, received) for entry in batch.logs]
    async with app.state.pool.acquire() as connection:
        await connection.copy_records_to_table(_table, schema_name=_schema, records=rows, columns=COLUMNS)
    return Saved(saved=len(rows))


def _row(entry: LogEntry, received: datetime) -> tuple[object, ...]:
    return (
        next(_ids),
        received,
        entry.timestamp or received,
        NUMBERS[entry.level],
        entry.service,
        entry.message,
        entry.service_version,
        entry.environment,
        entry.host,
        entry.logger,
        entry.thread,
        entry.trace_id,
        entry.span_id,
        entry.request_id,
        entry.user_id,
        entry.session_id,
        entry.http_method,
        entry.http_path,
        entry.http_status,
        entry.duration_ms,
        entry.error_type,
        entry.stack_trace,
        None if entry.metadata is None else json.dumps(entry.metadata),
    )
