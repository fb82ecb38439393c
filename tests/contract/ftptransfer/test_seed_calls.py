"""Every call of docs/seed-calls/ftp-pooler.md, made in its order."""

from __future__ import annotations

import re
from typing import Any

from opsplane.ftptransfer.v1 import connections_pb2, files_pb2
from opsplane.ftptransfer.v1 import transfers_pb2 as pb

from tests.contract.ftptransfer.test_transfers import download, submit
from tests.ftptransfer_harness import FtpTransfer
from tests.unit.test_seed_calls import Example, examples, request_of
from tests.waiting import until

_METHOD = re.compile(r"FtpTransfer/(\w+)\n")


async def test_every_call_of_the_page_works(ftp: FtpTransfer) -> None:
    await _without_file(ftp)
    (ftp.folder / "downloaded.txt").write_text("content")
    (ftp.server.folder / "remote" / "path").mkdir(parents=True)
    (ftp.server.folder / "remote" / "path" / "file.txt").write_text("content")
    await ftp.stub.CreateConnection(
        connections_pb2.CreateConnectionRequest(
            connection_id="remote-ftp", connection=connections_pb2.Connection(ftp=connections_pb2.FtpServer(host="h"))
        )
    )
    made = 0
    for example in examples():
        if not example.place.startswith("ftp-pooler.md"):
            continue
        found = _METHOD.search(example.text)
        assert found, example.place
        await _made(ftp, found[1], example)
        made += 1
    assert made > 20
    assert (ftp.folder / "out" / "a.csv").read_bytes() == b""
    assert not (ftp.folder / "downloaded.txt").exists()


async def _made(ftp: FtpTransfer, method: str, example: Example) -> None:
    request: Any = request_of(example)
    call = getattr(ftp.stub, method)
    match method:
        case "CreateConnection" if request.connection.HasField("local"):
            request.connection.local.base_path = str(ftp.folder)
            await call(request)
        case "SubmitTransfers" | "UploadFile":
            answer = await call(iter([request]))
            assert method == "UploadFile" or (answer.submitted_count, answer.rejected_count) == (2, 0)
        case "WatchTransfers":
            following = call(request)
            assert (await following.read()).counts.pending == 2
            following.cancel()
        case "DownloadFile":
            messages: list[files_pb2.DownloadFileResponse] = [message async for message in call(request)]
            assert b"".join(message.content for message in messages) == b"content"
        case "GetTransfer":
            await submit(ftp, download("/more"), transfer_id="t-0190a1b2")
            await call(request)
        case "ListFiles":
            assert [file.path for file in (await call(request)).files] == ["/remote/path/file.txt"]
        case "ListTransfers" if "task_id" in request.filter:
            assert (await call(request)).transfers[0].priority == pb.PRIORITY_HIGH
        case _:
            await call(request)


async def _without_file(ftp: FtpTransfer) -> None:
    """Takes the connections of the file away: the page makes them by RPC."""
    ftp.connections_file.write_text("")

    async def gone() -> bool:
        answer = await ftp.stub.ListConnections(connections_pb2.ListConnectionsRequest())
        return not answer.connections

    await until(gone)
