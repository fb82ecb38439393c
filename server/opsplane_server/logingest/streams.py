"""The RPCs that write, on undecoded messages.

A decoder of whole messages would refuse a batch for one bad record, and these are decoded in groups anyway. So the
handlers get bytes, and take apart no more than the settings at the head of a stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from opsplane.logingest.v1 import logingest_pb2, records_pb2

from opsplane_server.errors import InvalidArgument, Unavailable
from opsplane_server.logingest import framing
from opsplane_server.logingest.ingest import Ingest
from opsplane_server.logingest.model import Durability, sender_of
from opsplane_server.logingest.quotas import Quotas
from opsplane_server.logingest.wire import Malformed
from opsplane_server.rpc.calls import current_call
from opsplane_server.rpc.interceptors.chain import Context
from opsplane_server.rpc.interceptors.validation import Rules

SERVICE: Final = logingest_pb2.DESCRIPTOR.services_by_name["LogIngest"].full_name

# Batches of a stream that are under way at a time.
_WINDOW_BATCHES: Final = 64
_MAX_INCOMPLETE: Final = 1000

_Result: TypeAlias = records_pb2.BatchResult
_Answer: TypeAlias = asyncio.Future[_Result]


@dataclass(frozen=True, slots=True)
class _Settings:
    sender: str
    durability: Durability


class LogStreams:
    """IngestLogs, StreamLogs and WriteLogs."""

    def __init__(self, ingest: Ingest, quotas: Quotas) -> None:
        self._ingest = ingest
        self._quotas = quotas
        self._rules = Rules()
        self._open: set[_Stream] = set()
        self._draining = False

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The handlers by name of the RPC; requests arrive as bytes."""
        return {
            "IngestLogs": grpc.stream_unary_rpc_method_handler(
                self.ingest_logs, response_serializer=logingest_pb2.IngestLogsResponse.SerializeToString
            ),
            "StreamLogs": grpc.stream_stream_rpc_method_handler(
                self.stream_logs, response_serializer=logingest_pb2.StreamLogsResponse.SerializeToString
            ),
            "WriteLogs": grpc.unary_unary_rpc_method_handler(
                self.write_logs, response_serializer=logingest_pb2.WriteLogsResponse.SerializeToString
            ),
        }

    def drain(self) -> None:
        """Ends the streams: what they have sent is answered, then they are told to go on elsewhere."""
        self._draining = True
        for stream in self._open:
            stream.end()

    async def stream_logs(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Answers each batch after its commit, in the order in which they were sent."""
        async with aclosing(self._results(requests)) as results:
            async for sequence, result in results:
                result.sequence = sequence
                await context.write(logingest_pb2.StreamLogsResponse(result=result))

    async def ingest_logs(self, requests: AsyncIterator[bytes], context: Context) -> logingest_pb2.IngestLogsResponse:
        """Answers once, with a summary."""
        summary = logingest_pb2.IngestLogsResponse()
        async with aclosing(self._results(requests)) as results:
            async for sequence, result in results:
                result.sequence = sequence
                _add(summary, result)
        return summary

    async def write_logs(self, request: bytes, context: Context) -> logingest_pb2.WriteLogsResponse:
        """Stores one batch."""
        try:
            parts = framing.split_top(request)
        except Malformed as error:
            raise InvalidArgument.of("batch", f"the message can not be read: {error}") from None
        settings = self._settings(parts.get(2, b""))
        if 1 not in parts:
            raise InvalidArgument.of("batch", "is needed")
        self._quotas.take(current_call().principal.name, len(request))
        result = await self._ingest.write(settings.sender, parts[1], settings.durability)
        if result.HasField("refusal"):
            raise InvalidArgument.of(
                "batch", result.refusal.message, reason=records_pb2.BatchRefusal.Reason.Name(result.refusal.reason)
            )
        result.sequence = 1
        return logingest_pb2.WriteLogsResponse(result=result)

    async def _results(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[tuple[int, _Result], None]:
        if self._draining:
            raise _shutting_down()
        stream = _Stream()
        stream.reader = asyncio.create_task(self._read(requests, stream), name="read logs")
        self._open.add(stream)
        sequence = 0
        try:
            while (answer := await stream.answers.get()) is not None:
                result = await answer
                stream.window.release()
                sequence += 1
                yield sequence, result
            if stream.ended:
                raise _shutting_down()
            await stream.reader  # raises what was wrong with the stream
        finally:
            self._open.discard(stream)
            stream.reader.cancel()
            await asyncio.gather(stream.reader, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[bytes], stream: _Stream) -> None:
        """Submits batches as they come, as long as there is room for them: whoever sends faster is not read."""
        principal = current_call().principal.name
        settings: _Settings | None = None
        try:
            async for message in requests:
                if settings is None:
                    settings, message = self._begin(message)
                    if not message:
                        continue
                await self._quotas.wait(principal, len(message))
                stream.answers.put_nowait(self._ingest.submit(settings.sender, message, settings.durability))
                # Before the next one is read: what waits here would take memory for every stream that is open.
                await stream.window.acquire()
                await self._ingest.wait_for_room(len(message))
        finally:
            stream.answers.put_nowait(None)

    def _begin(self, message: bytes) -> tuple[_Settings, bytes]:
        """The settings of the first message, and the rest of it; empty when it has no batch."""
        try:
            parts = framing.split_top(message)
        except Malformed:
            return self._settings(b""), message  # refused like any batch that can not be read
        return self._settings(parts.get(1, b"")), framing.join_message(parts[2]) if 2 in parts else b""

    def _settings(self, raw: bytes) -> _Settings:
        settings = logingest_pb2.StreamSettings()
        try:
            settings.ParseFromString(raw)
        except DecodeError:
            raise InvalidArgument.of("settings", "can not be read") from None
        self._rules.check(settings, within="settings")
        sender = sender_of(current_call().principal.name, settings.client_id)
        return _Settings(sender, Durability.of(settings.durability))


class _Stream:
    """A stream under way: answers to come in the order of its batches, None at the end."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[_Answer | None] = asyncio.Queue()
        self.window = asyncio.Semaphore(_WINDOW_BATCHES)
        self.reader: asyncio.Task[None] | None = None
        self.ended = False

    def end(self) -> None:
        """Reads no further."""
        assert self.reader is not None
        self.ended = True
        self.reader.cancel()


def _shutting_down() -> Unavailable:
    return Unavailable("the server shuts down: go on with another stream", reason="SHUTTING_DOWN")


def _add(summary: logingest_pb2.IngestLogsResponse, result: records_pb2.BatchResult) -> None:
    summary.batch_count += 1
    if result.HasField("refusal"):
        summary.refused_batch_count += 1
    elif result.duplicate:
        summary.duplicate_batch_count += 1
    else:
        summary.stored_count += result.stored_count
    summary.rejected_count += len(result.rejected_records)
    incomplete = result.HasField("refusal") or result.rejected_records
    if incomplete and len(summary.incomplete_batches) < _MAX_INCOMPLETE:
        summary.incomplete_batches.append(result)
