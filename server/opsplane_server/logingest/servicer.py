"""LogIngest's reading, RPC in and RPC out; `streams` has its writing. Requests are validated before they come here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import grpc
from opsplane.logingest.v1 import logingest_pb2, logingest_pb2_grpc, queries_pb2

from opsplane_server.logingest.convert import (
    entry_to_proto,
    query_from_proto,
    stats_to_proto,
    time_from_proto,
    time_to_proto,
)
from opsplane_server.logingest.ports import StatsReader
from opsplane_server.logingest.queries import EARLIEST_US, LATEST_US, Place, StoredRecord
from opsplane_server.logingest.search import Searcher
from opsplane_server.logingest.tail import LogTail
from opsplane_server.rpc.paging import next_page_token, page_request

Context = grpc.aio.ServicerContext[Any, Any]

_MINUTE_US: Final = 60_000_000
_DEFAULT_SERVICES: Final = 100
# Entries that are made without letting other calls of the process in between.
_ENTRIES_AT_ONCE: Final = 100


class LogIngestServicer(logingest_pb2_grpc.LogIngestServicer):
    """SearchLogs, TailLogs and GetStats of `opsplane.logingest.v1.LogIngest`."""

    def __init__(self, searcher: Searcher, tail: LogTail, stats: StatsReader) -> None:
        self._searcher = searcher
        self._tail = tail
        self._stats = stats

    async def SearchLogs(
        self, request: logingest_pb2.SearchLogsRequest, context: Context
    ) -> logingest_pb2.SearchLogsResponse:
        """See the proto, as for all methods below."""
        query = query_from_proto(request.query)
        asked = logingest_pb2.SearchLogsRequest()
        asked.CopyFrom(request)
        asked.ClearField("page_size")
        asked.ClearField("page_token")
        binding = f"SearchLogs {asked.SerializeToString(deterministic=True).hex()}"
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=(int, int))
        start_us = time_from_proto(request.start_time) if request.HasField("start_time") else EARLIEST_US
        end_us = time_from_proto(request.end_time) if request.HasField("end_time") else LATEST_US
        before = min(_place(page.key), Place(end_us, 0)) if page.key else Place(end_us, 0)
        found = await self._searcher.page(query, start_us, before, page.size)
        return logingest_pb2.SearchLogsResponse(
            entries=await _entries(found.records),
            next_page_token=next_page_token(binding, found.following) if found.following else "",
            searched_back_to=time_to_proto(found.searched_back_to_us),
        )

    async def TailLogs(
        self, request: logingest_pb2.TailLogsRequest, context: Context
    ) -> AsyncIterator[logingest_pb2.TailLogsResponse]:
        """Follows."""
        chunks = self._tail.follow(query_from_proto(request.query), request.cursor, request.backlog)
        try:
            async for chunk in chunks:
                yield logingest_pb2.TailLogsResponse(
                    entries=await _entries(chunk.records),
                    dropped_count=chunk.dropped_count,
                    cursor=chunk.cursor.encode(),
                )
        finally:
            await chunks.aclose()

    async def GetStats(
        self, request: logingest_pb2.GetStatsRequest, context: Context
    ) -> logingest_pb2.GetStatsResponse:
        """Adds up."""
        start_us = time_from_proto(request.start_time) if request.HasField("start_time") else EARLIEST_US
        end_us = time_from_proto(request.end_time) if request.HasField("end_time") else LATEST_US
        stats = await self._stats.stats(
            request.services, start_us // _MINUTE_US * _MINUTE_US, -(-end_us // _MINUTE_US) * _MINUTE_US
        )
        return stats_to_proto(stats, request.max_services or _DEFAULT_SERVICES)


def _place(key: Sequence[Any]) -> Place:
    return Place(*key)


async def _entries(records: Sequence[StoredRecord]) -> list[queries_pb2.LogEntry]:
    entries = []
    for index, record in enumerate(records, 1):
        entries.append(entry_to_proto(record))
        if index % _ENTRIES_AT_ONCE == 0:
            await asyncio.sleep(0)
    return entries
