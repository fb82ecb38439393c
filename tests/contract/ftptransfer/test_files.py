"""Files of connections over a real channel."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from opsplane.ftptransfer.v1 import files_pb2 as pb
from opsplane_server.ftptransfer.failures import ErrorReason, TransferFailure

from tests.ftptransfer_harness import FtpTransfer
from tests.rpc_harness import require_status
from tests.waiting import until

CONTENT = os.urandom(700_000)


async def upload(
    ftp: FtpTransfer, content: Sequence[bytes], path: str = "/out/a.bin", connection: str = "local", **fields: object
) -> pb.FileInfo:
    start = pb.UploadStart(connection=f"connections/{connection}", path=path, **fields)  # type: ignore[arg-type]
    requests = [pb.UploadFileRequest(start=start), *(pb.UploadFileRequest(content=piece) for piece in content)]
    sent: pb.FileInfo = await ftp.stub.UploadFile(iter(requests))
    return sent


async def download(ftp: FtpTransfer, path: str, offset: int = 0) -> tuple[pb.FileInfo, bytes]:
    request = pb.DownloadFileRequest(connection="connections/local", path=path, offset=offset)
    messages = [message async for message in ftp.stub.DownloadFile(request)]
    assert all(len(message.content) <= 256 * 1024 for message in messages)
    assert not any(message.HasField("file") for message in messages[1:])
    return messages[0].file, b"".join(message.content for message in messages)


async def listed(ftp: FtpTransfer, connection: str = "local", page_size: int = 0, **fields: object) -> list[str]:
    paths: list[str] = []
    token = ""
    while True:
        request = pb.ListFilesRequest(
            connection=f"connections/{connection}",
            page_size=page_size,
            page_token=token,
            **fields,  # type: ignore[arg-type]
        )
        page = await ftp.stub.ListFiles(request)
        paths += [file.path for file in page.files]
        token = page.next_page_token
        if not token:
            return paths


def files(ftp: FtpTransfer) -> list[str]:
    """All files of the local folder, temporary ones too."""
    return sorted(str(path.relative_to(ftp.folder)) for path in ftp.folder.rglob("*") if path.is_file())


async def test_a_file_is_sent_and_read_again(ftp: FtpTransfer) -> None:
    sent = await upload(
        ftp,
        [CONTENT[:300_000], CONTENT[300_000:]],
        size_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest().upper(),
    )
    assert (sent.path, sent.size_bytes, sent.kind) == ("/out/a.bin", len(CONTENT), pb.FILE_KIND_FILE)
    assert (ftp.folder / "out" / "a.bin").read_bytes() == CONTENT
    file, content = await download(ftp, "/out/a.bin")
    assert content == CONTENT
    assert file == sent
    assert (await download(ftp, "out/a.bin", 699_999))[1] == CONTENT[699_999:]
    assert (await download(ftp, "out/a.bin", 700_000))[1] == b""


async def test_a_file_is_replaced_whole(ftp: FtpTransfer) -> None:
    await upload(ftp, [b"one"], "a")
    await upload(ftp, [b"two", b"!"], "a")
    assert (ftp.folder / "a").read_bytes() == b"two!"
    await upload(ftp, [], "a")
    assert (ftp.folder / "a").read_bytes() == b""
    assert files(ftp) == ["a"]


@pytest.mark.parametrize(
    "fields", [{"size_bytes": 4}, {"size_bytes": 2}, {"size_bytes": 3, "sha256": "00" * 32}, {"sha256": "00" * 32}]
)
async def test_what_is_not_as_it_was_told_is_not_kept(ftp: FtpTransfer, fields: dict[str, Any]) -> None:
    (ftp.folder / "a").write_text("before")
    with require_status(grpc.StatusCode.DATA_LOSS):
        await upload(ftp, [b"abc"], "a", **fields)
    assert files(ftp) == ["a"]
    assert (ftp.folder / "a").read_text() == "before"


async def test_a_file_may_be_too_large(ftp: FtpTransfer) -> None:
    with require_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "FILE_TOO_LARGE"):
        await upload(ftp, [b"x" * 1_000_000] * 11, "a")
    assert files(ftp) == []


async def test_a_repeated_upload_is_kept_once(ftp: FtpTransfer) -> None:
    request_id = str(uuid.uuid4())
    first = await upload(ftp, [b"one"], "a", request_id=request_id)
    (ftp.folder / "a").unlink()
    assert await upload(ftp, [b"one"], "a", request_id=request_id) == first
    assert files(ftp) == []


async def test_messages_out_of_order_are_refused(ftp: FtpTransfer) -> None:
    start = pb.UploadFileRequest(start=pb.UploadStart(connection="connections/local", path="a"))
    content = pb.UploadFileRequest(content=b"x")
    for messages in ([content], [], [start, content, start]):
        with require_status(grpc.StatusCode.INVALID_ARGUMENT):
            await ftp.stub.UploadFile(iter(messages))
    assert files(ftp) == []


async def test_an_upload_that_breaks_off_leaves_nothing(ftp: FtpTransfer) -> None:
    call = ftp.stub.UploadFile()
    await call.write(pb.UploadFileRequest(start=pb.UploadStart(connection="connections/local", path="a")))
    await call.write(pb.UploadFileRequest(content=b"x"))
    call.cancel()
    await upload(ftp, [b"later"], "b")
    await until(lambda: files(ftp) == ["b"])


@pytest.mark.parametrize("path", ["../a", "/a/../../b", "out/"])
async def test_a_path_does_not_lead_out(ftp: FtpTransfer, path: str) -> None:
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "PATH"):
        await upload(ftp, [b"x"], path)


async def test_a_link_does_not_lead_out(ftp: FtpTransfer) -> None:
    (ftp.folder.parent / "secret").write_text("s")
    (ftp.folder / "link").symlink_to(ftp.folder.parent / "secret")
    (ftp.folder / "up").symlink_to("..")
    for path in ("link", "up/secret"):
        with require_status(grpc.StatusCode.INVALID_ARGUMENT, "PATH"):
            await download(ftp, path)
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "PATH"):
        await upload(ftp, [b"x"], "up/secret")
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "PATH"):
        await ftp.stub.DeleteFile(pb.DeleteFileRequest(connection="connections/local", path="up/secret"))
    assert (ftp.folder.parent / "secret").read_text() == "s"


async def test_an_ftp_server_is_no_local_folder(ftp: FtpTransfer) -> None:
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "NOT_A_LOCAL_FOLDER"):
        await upload(ftp, [b"x"], connection="remote-server-a")
    with require_status(grpc.StatusCode.NOT_FOUND):
        await upload(ftp, [b"x"], connection="none")


async def test_what_is_not_there_is_told(ftp: FtpTransfer) -> None:
    with require_status(grpc.StatusCode.NOT_FOUND, "FILE_NOT_FOUND"):
        await download(ftp, "none")
    (ftp.folder / "a").write_text("abc")
    with require_status(grpc.StatusCode.OUT_OF_RANGE):
        await download(ftp, "a", 4)
    request = pb.DeleteFileRequest(connection="connections/local", path="a")
    await ftp.stub.DeleteFile(request)
    with require_status(grpc.StatusCode.NOT_FOUND, "FILE_NOT_FOUND"):
        await ftp.stub.DeleteFile(request)


@pytest.mark.parametrize("connection", ["local", "remote-server-a"])
@pytest.mark.parametrize("page_size", [0, 1, 2])
async def test_folders_are_listed(ftp: FtpTransfer, connection: str, page_size: int) -> None:
    folder = ftp.folder if connection == "local" else ftp.server.folder
    for path in ("b.csv", "a.txt", "x/c.csv", "x/y/d.csv", "w/e.csv"):
        (folder / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / path).write_text(path)

    async def found(**fields: object) -> list[str]:
        return await listed(ftp, connection, page_size, **fields)

    assert await found() == ["in"]
    assert await found(path="/in") == ["/in/a.txt", "/in/b.csv", "/in/w", "/in/x"]
    assert await found(path="in", glob="*.csv") == ["in/b.csv"]
    assert await found(path="in", glob="**/*.csv") == ["in/b.csv", "in/w/e.csv", "in/x/c.csv", "in/x/y/d.csv"]
    assert await found(path="in/", recursive=True) == [
        "in/a.txt", "in/b.csv", "in/w", "in/x", "in/w/e.csv", "in/x/c.csv", "in/x/y", "in/x/y/d.csv",
    ]  # fmt: skip
    with require_status(grpc.StatusCode.NOT_FOUND, "FILE_NOT_FOUND"):
        await found(path="none")


async def test_what_the_ftp_server_refuses_is_told(ftp: FtpTransfer) -> None:
    def fail(reason: ErrorReason) -> None:
        def hook(step: str) -> None:
            raise TransferFailure(reason, "told")

        ftp.server.hook = hook

    fail(ErrorReason.ACCESS_DENIED)
    with require_status(grpc.StatusCode.PERMISSION_DENIED, "ACCESS_DENIED"):
        await listed(ftp, "remote-server-a")
    for reason in (ErrorReason.UNREACHABLE, ErrorReason.LOGIN):
        fail(reason)
        with require_status(grpc.StatusCode.UNAVAILABLE, "CONNECTION_ERROR"):
            await listed(ftp, "remote-server-a")
