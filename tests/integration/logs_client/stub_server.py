"""A small LogIngest in a process of its own: stores batches once, and misbehaves as a file says.

    python -m tests.integration.logs_client.stub_server ADDRESS FOLDER

FOLDER/journal has a JSON line for each batch that came: {"client", "batch", "messages", "duplicate", ...}; a batch is a
duplicate when the journal has one of its client and id already, also from before a restart. FOLDER/behaviour is read at
each batch; see `Behaviour`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from opsplane.logingest.v1 import logingest_pb2, logingest_pb2_grpc, records_pb2


@dataclass(slots=True)
class Behaviour:
    """What the server does with a batch."""

    status: str = ""
    """Ends the stream with this status."""
    after_storing: bool = False
    """Ends it when the batch is stored, but not answered."""
    retry_seconds: int | None = None
    """RetryInfo of that status."""
    hold: bool = False
    """Stores, and answers when the behaviour is another one."""
    reject: str = ""
    """Rejects records whose message starts so."""
    refuse: bool = False
    """Refuses batches as a whole."""

    def write(self, folder: Path) -> None:
        """Make it hold from the next batch on."""
        new = folder / "behaviour.new"
        new.write_text(json.dumps(asdict(self)), encoding="utf-8")
        new.rename(folder / "behaviour")

    @classmethod
    def read(cls, folder: Path) -> Behaviour:
        return cls(**json.loads((folder / "behaviour").read_text(encoding="utf-8")))


class Servicer(logingest_pb2_grpc.LogIngestServicer):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._journal = (folder / "journal").open("a+", encoding="utf-8")
        self._journal.seek(0)
        self._known = {(line["client"], line["batch"]) for line in map(json.loads, self._journal) if line["stored"]}

    async def StreamLogs(  # noqa: N802
        self,
        request_iterator: AsyncIterator[logingest_pb2.StreamLogsRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[logingest_pb2.StreamLogsResponse]:
        metadata = {str(key): str(value) for key, value in context.invocation_metadata() or ()}
        client = ""
        sequence = 0
        async for request in request_iterator:
            if request.HasField("settings"):
                client = request.settings.client_id
            if not request.HasField("batch"):
                continue
            sequence += 1
            behaviour = Behaviour.read(self._folder)
            stores = not behaviour.status or behaviour.after_storing
            duplicate = (client, request.batch.batch_id) in self._known
            self._write(
                {
                    "client": client,
                    "batch": request.batch.batch_id,
                    "messages": [record.message for record in request.batch.records],
                    "duplicate": duplicate,
                    "stored": stores,
                    "token": metadata.get("authorization", ""),
                    "durability": request.settings.durability,
                    "peer": context.peer(),
                }
            )
            if stores:
                self._known.add((client, request.batch.batch_id))
            if behaviour.status:
                await context.abort(*_status(behaviour))
            while behaviour.hold:
                await asyncio.sleep(0.01)
                behaviour = Behaviour.read(self._folder)
                if behaviour.status:
                    await context.abort(*_status(behaviour))
            yield logingest_pb2.StreamLogsResponse(result=_result(request.batch, sequence, duplicate, behaviour))

    def _write(self, line: dict[str, object]) -> None:
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()


def _status(behaviour: Behaviour) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    code: grpc.StatusCode = grpc.StatusCode[behaviour.status]
    status = status_pb2.Status(code=code.value[0], message="as the test wants it")
    if behaviour.retry_seconds is not None:
        packed = any_pb2.Any()
        packed.Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=behaviour.retry_seconds)))
        status.details.append(packed)
    made = rpc_status.to_status(status)
    return made.code, made.details, made.trailing_metadata


def _result(
    batch: records_pb2.LogBatch, sequence: int, duplicate: bool, behaviour: Behaviour
) -> records_pb2.BatchResult:
    result = records_pb2.BatchResult(sequence=sequence, batch_id=batch.batch_id, duplicate=duplicate)
    if behaviour.refuse:
        result.refusal.reason = records_pb2.BatchRefusal.REASON_MALFORMED
        result.refusal.message = "as the test wants it"
        return result
    for index, record in enumerate(batch.records):
        if behaviour.reject and record.message.startswith(behaviour.reject):
            result.rejected_records.add(
                index=index, field="message", reason=records_pb2.RejectedRecord.REASON_TOO_LONG, message="too long"
            )
    result.stored_count = len(batch.records) - len(result.rejected_records)
    return result


async def _serve(address: str, folder: Path) -> None:
    server = grpc.aio.server()
    logingest_pb2_grpc.add_LogIngestServicer_to_server(Servicer(folder), server)  # type: ignore[abstract]
    server.add_insecure_port(address)
    await server.start()
    print("up", flush=True)  # noqa: T201
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], Path(sys.argv[2])))
