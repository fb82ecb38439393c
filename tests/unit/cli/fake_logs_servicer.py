"""A small server that speaks LogIngest over a real channel and keeps what it gets in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2
from opsplane.logingest.v1 import logingest_pb2, logingest_pb2_grpc, queries_pb2, records_pb2

from tests.unit.cli.fake_servicer import refusal

# What is not written here answers UNIMPLEMENTED; the generated types call that abstract.
_Unimplemented: Any = logingest_pb2_grpc.LogIngestServicer

Context = grpc.aio.ServicerContext[Any, Any]
START = 1_700_000_000


def entry(number: int) -> queries_pb2.LogEntry:
    """The record of second `number`."""
    record = records_pb2.LogRecord(
        level=records_pb2.LEVEL_ERROR if number % 2 else records_pb2.LEVEL_INFO,
        service="orders",
        message=f"line {number} \x1b[31m",
        http_status=500,
        duration_ms=1.5,
        metadata_json='{"order":{"id":42},"text":"a b"}',
        stack_trace="Traceback ...",
    )
    record.timestamp.FromSeconds(START + number)
    return queries_pb2.LogEntry(entry_id=f"e{number}", record=record)


@dataclass
class FakeLogs(_Unimplemented):  # type: ignore[misc]
    """Rejects messages with REJECT in them.

    A write is lost `before` or `after` it was stored, or stored and `never` answered, as `losses` says in turn.
    """

    records: list[records_pb2.LogRecord] = field(default_factory=list)
    answers: dict[tuple[str, str], records_pb2.BatchResult] = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)
    refuse: int = 0
    searches: list[logingest_pb2.SearchLogsRequest] = field(default_factory=list)
    found: int = 5
    tails: list[logingest_pb2.TailLogsRequest] = field(default_factory=list)
    tail_losses: int = 0
    statistics: logingest_pb2.GetStatsRequest | None = None

    @property
    def messages(self) -> list[str]:
        return [record.message for record in self.records]

    async def WriteLogs(
        self, request: logingest_pb2.WriteLogsRequest, context: Context
    ) -> logingest_pb2.WriteLogsResponse:
        if self.refuse:
            info = error_details_pb2.ErrorInfo(reason="TOKEN_MISSING", domain="opsplane.dev")
            raise await refusal(context, self.refuse, "no token", info)
        loss = self.losses.pop(0) if self.losses else ""
        if loss == "before":
            await context.abort(grpc.StatusCode.CANCELLED, "the server goes away")
        result = self._store(request.settings.client_id, request.batch)
        if loss == "after":
            await context.abort(grpc.StatusCode.CANCELLED, "the server goes away")
        if loss == "never":
            await asyncio.Event().wait()
        return logingest_pb2.WriteLogsResponse(result=result)

    async def StreamLogs(
        self, requests: AsyncIterator[logingest_pb2.StreamLogsRequest], context: Context
    ) -> AsyncIterator[logingest_pb2.StreamLogsResponse]:
        client_id, sequence = "", 0
        async for request in requests:
            client_id = request.settings.client_id or client_id
            if request.HasField("batch"):
                sequence += 1
                result = records_pb2.BatchResult()
                result.CopyFrom(self._store(client_id, request.batch))
                result.sequence = sequence
                yield logingest_pb2.StreamLogsResponse(result=result)

    async def SearchLogs(
        self, request: logingest_pb2.SearchLogsRequest, context: Context
    ) -> logingest_pb2.SearchLogsResponse:
        """Pages of at most two, the first of them empty, newest first."""
        copy = logingest_pb2.SearchLogsRequest()
        copy.CopyFrom(request)
        self.searches.append(copy)
        page = logingest_pb2.SearchLogsResponse()
        if not request.page_token:
            page.next_page_token = str(self.found)
        else:
            newest = int(request.page_token)
            oldest = max(newest - min(request.page_size, 2), 0)
            page.entries.extend(entry(number) for number in reversed(range(oldest, newest)))
            page.next_page_token = str(oldest) if oldest else ""
        if page.next_page_token:
            page.searched_back_to.FromSeconds(START + int(page.next_page_token))
        return page

    async def TailLogs(
        self, request: logingest_pb2.TailLogsRequest, context: Context
    ) -> AsyncIterator[logingest_pb2.TailLogsResponse]:
        copy = logingest_pb2.TailLogsRequest()
        copy.CopyFrom(request)
        self.tails.append(copy)
        number = int(request.cursor or 0)
        yield logingest_pb2.TailLogsResponse(
            entries=[entry(number)], dropped_count=7 if number else 0, cursor=str(number + 1)
        )
        if self.tail_losses:
            self.tail_losses -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server goes away")
        await asyncio.Event().wait()

    async def GetStats(
        self, request: logingest_pb2.GetStatsRequest, context: Context
    ) -> logingest_pb2.GetStatsResponse:
        self.statistics = request
        levels = [
            level_count(records_pb2.LEVEL_INFO, 12_000),
            level_count(records_pb2.LEVEL_ERROR, 34),
        ]
        return logingest_pb2.GetStatsResponse(
            total_count=12_034,
            last_24h_count=34,
            levels=levels,
            services=[
                queries_pb2.ServiceStats(service="orders", count=12_000, levels=levels[:1]),
                queries_pb2.ServiceStats(service="web \x1b[31m", count=34, levels=levels[1:]),
            ],
            service_count=3,
            stored_bytes=5_000_000,
        )

    def _store(self, client_id: str, batch: records_pb2.LogBatch) -> records_pb2.BatchResult:
        key = client_id, batch.batch_id
        known = self.answers.get(key)
        if known is not None:
            assert known.stored_count + len(known.rejected_records) == len(batch.records)
            known.duplicate = True
            return known
        result = self.answers[key] = records_pb2.BatchResult(batch_id=batch.batch_id)
        for index, record in enumerate(batch.records):
            if "REJECT" in record.message:
                result.rejected_records.add(index=index, field="message", message="is not wanted")
            else:
                self.records.append(record)
                result.stored_count += 1
        return result


def level_count(level: records_pb2.Level.ValueType, count: int) -> queries_pb2.LevelCount:
    return queries_pb2.LevelCount(level=level, count=count)


@asynccontextmanager
async def serving_logs(servicer: FakeLogs) -> AsyncIterator[str]:
    """Serves on a free port of loopback; the address."""
    server = grpc.aio.server()
    logingest_pb2_grpc.add_LogIngestServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
