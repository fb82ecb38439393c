"""Our side of the comparison of transfers: a running server, and what it does and tells."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import psutil
from google.protobuf.duration_pb2 import Duration
from opsplane.client import connect
from opsplane.ftptransfer.v1 import connections_pb2, ftptransfer_pb2, transfers_pb2
from opsplane.ftptransfer.v1.ftptransfer_pb2_grpc import FtpTransferStub
from prometheus_client.parser import text_string_to_metric_families

from tests.bench.logs_children import cpu_seconds, cpu_seconds_of_tree
from tests.bench.transfers_stage import Stage
from tests.bench.transfers_tools import Load, Run
from tests.ftp_servers.base import PASSWORD
from tests.server_process import ServerProcess, running_server

_MOST_SECONDS: Final = 300.0
_LOCAL: Final = "connections/local"
_REMOTE: Final = "connections/remote"


class Ours:
    """A server with a connection to the stage's FTP server and one to its local folder."""

    def __init__(self, stub: FtpTransferStub, process: ServerProcess, stage: Stage) -> None:
        self._stub = stub
        self._process = process
        self._stage = stage

    async def run(self, load: Load) -> Run:
        """Brings a load by one transfer of a tree: timed from its submission until the last of its files has ended.

        The end is what the server itself keeps of it, because a watcher sees it up to a tenth of a second later.
        """
        folder = "/" + str(Path(load.source if load.up else load.destination).relative_to(self._stage.local))
        local = transfers_pb2.Location(connection=_LOCAL, path=folder)
        remote = transfers_pb2.Location(connection=_REMOTE, path=load.destination if load.up else load.source)
        transfer = transfers_pb2.Transfer(
            source=local if load.up else remote,
            destination=remote if load.up else local,
            selection=transfers_pb2.SELECTION_TREE,
        )
        before = self._cpu()
        began = time.time()
        submitted = await self._stub.SubmitTransfer(ftptransfer_pb2.SubmitTransferRequest(transfer=transfer))
        watch = ftptransfer_pb2.WatchTransfersRequest(names=[submitted.name], interval=Duration(nanos=100_000_000))
        last = submitted
        async for update in self._stub.WatchTransfers(watch, timeout=_MOST_SECONDS):
            last = update.transfers[-1]
        cpu = self._cpu()
        if last.state != transfers_pb2.TRANSFER_STATE_SUCCEEDED or last.children.succeeded != len(load.names):
            raise RuntimeError(f"not all was transferred: {last}")
        end = last.end_time.seconds + last.end_time.nanos / 1e9
        return Run(end - began, {part: cpu[part] - before[part] for part in cpu})

    def metrics(self) -> Mapping[tuple[str, str], float]:
        """The server's metrics by name and bound of a histogram; those of several labels added up."""
        _, text = self._process.get("/metrics")
        values: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name, sample.labels.get("le", "")
                values[key] = values.get(key, 0.0) + sample.value
        return values

    def _cpu(self) -> Mapping[str, float]:
        return {
            "client": cpu_seconds(self._process.workers()),
            "parent": cpu_seconds([self._process.pid]),
            "postgres": cpu_seconds_of_tree(psutil.Process(self._process.postgres())),
        }


@asynccontextmanager
async def running_ours(stage: Stage, *, workers: int, sessions: int) -> AsyncIterator[Ours]:
    """A server that may have so many sessions."""
    server = stage.server
    ftp = connections_pb2.FtpServer(
        host=server.host, port=server.port, user=server.user, password=PASSWORD, max_sessions=sessions
    )
    folder = connections_pb2.LocalFolder(base_path=str(stage.local))
    connections = {
        _REMOTE: connections_pb2.Connection(ftp=ftp),
        _LOCAL: connections_pb2.Connection(local=folder),
    }
    with running_server("--workers", str(workers)) as process:
        async with connect(process.address) as client:
            for name, connection in connections.items():
                await client.ftp_transfer.CreateConnection(
                    connections_pb2.CreateConnectionRequest(connection=connection, connection_id=name.partition("/")[2])
                )
            yield Ours(client.ftp_transfer, process, stage)
