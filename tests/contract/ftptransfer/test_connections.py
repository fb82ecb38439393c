"""Connections over a real channel: by RPC, and those of connections.ini."""

from __future__ import annotations

import uuid
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from opsplane.ftptransfer.v1 import connections_pb2 as pb
from opsplane_server.ftptransfer.model import FtpServer

from tests.ftptransfer_harness import FtpTransfer
from tests.rpc_harness import require_status
from tests.waiting import until


def server(**fields: object) -> pb.Connection:
    return pb.Connection(ftp=pb.FtpServer(host="ftp.example.com", **fields))  # type: ignore[arg-type]


async def create(
    ftp: FtpTransfer, connection: pb.Connection, connection_id: str = "a", **fields: object
) -> pb.Connection:
    request = pb.CreateConnectionRequest(connection=connection, connection_id=connection_id, **fields)  # type: ignore[arg-type]  # fmt: skip
    created: pb.Connection = await ftp.stub.CreateConnection(request)
    return created


async def update(ftp: FtpTransfer, connection: pb.Connection, *paths: str) -> pb.Connection:
    request = pb.UpdateConnectionRequest(connection=connection, update_mask=FieldMask(paths=paths))
    updated: pb.Connection = await ftp.stub.UpdateConnection(request)
    return updated


async def password(ftp: FtpTransfer, connection_id: str) -> str:
    kind = (await ftp.connections.get(connection_id)).kind
    assert isinstance(kind, FtpServer)
    return kind.password


async def test_a_connection_comes_back_without_its_password(ftp: FtpTransfer) -> None:
    created = await create(ftp, server(user="u", password="secret"))
    assert created.name == "connections/a"
    assert (created.ftp.port, created.ftp.encoding, created.ftp.has_password) == (21, "utf-8", True)
    assert created.ftp.password == ""
    assert not created.ftp.HasField("idle_timeout")
    assert created.ftp.stall_timeout == Duration(seconds=60)
    assert await ftp.stub.GetConnection(pb.GetConnectionRequest(name="connections/a")) == created
    assert await password(ftp, "a") == "secret"


async def test_a_password_is_kept_encrypted(ftp: FtpTransfer) -> None:
    await create(ftp, server(password="tell-nobody"))
    kept = await ftp.value("SELECT c::text FROM ftptransfer.connections c")
    assert "tell-nobody" not in str(kept)
    assert b"tell-nobody".hex() not in str(kept)


async def test_all_settings_come_back(ftp: FtpTransfer) -> None:
    wanted = server(
        tls=pb.TlsSettings(mode=pb.TLS_MODE_IMPLICIT, certificate_sha256="AB" * 32),
        active_mode=pb.ActiveMode(address="192.0.2.10", first_port=50000, last_port=50100),
        use_announced_address=True,
        encoding="euc-kr",
        max_sessions=4,
        idle_timeout=Duration(seconds=120),
        reply_timeout=Duration(seconds=5),
        stall_timeout=Duration(seconds=7),
    )
    wanted.title = "Archive"
    created = await create(ftp, wanted)
    wanted.ftp.port, wanted.ftp.user = 990, "anonymous"
    wanted.ftp.tls.certificate_sha256 = "ab" * 32
    assert created.ftp == wanted.ftp
    assert created.title == "Archive"


async def test_an_id_is_made_and_names_are_taken_once(ftp: FtpTransfer) -> None:
    made = await create(ftp, server(), "")
    assert made.name.startswith("connections/")
    await create(ftp, server(), "b")
    with require_status(grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS"):
        await create(ftp, server(), "b")
    with require_status(grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS"):
        await create(ftp, server(), "local")


async def test_creating_is_safe_to_repeat(ftp: FtpTransfer) -> None:
    request_id = str(uuid.uuid4())
    first = await create(ftp, server(), "", request_id=request_id)
    assert await create(ftp, server(), "", request_id=request_id) == first


async def test_checking_alone_creates_nothing(ftp: FtpTransfer) -> None:
    answer = await create(ftp, server(), validate_only=True)
    assert answer.name == "connections/a"
    with require_status(grpc.StatusCode.NOT_FOUND):
        await ftp.stub.GetConnection(pb.GetConnectionRequest(name="connections/a"))
    with require_status(grpc.StatusCode.ALREADY_EXISTS):
        await create(ftp, server(), "local", validate_only=True)


async def test_an_encoding_must_be_one(ftp: FtpTransfer) -> None:
    for encoding in ("klingon", "base64"):
        with require_status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT") as refusal:
            await create(ftp, server(encoding=encoding))
        assert refusal.bad_fields == ["connection.ftp.encoding"]


async def test_what_the_server_keeps_for_itself_is_no_local_folder(ftp: FtpTransfer) -> None:
    for folder in (ftp.folder.parent, ftp.folder.parent / "data", ftp.folder.parent / "data" / "x", Path("/")):
        with require_status(grpc.StatusCode.INVALID_ARGUMENT, "FOLDER_NOT_ALLOWED"):
            await create(ftp, pb.Connection(local=pb.LocalFolder(base_path=str(folder))))
    await create(ftp, pb.Connection(local=pb.LocalFolder(base_path=str(ftp.folder))))


async def test_an_update_changes_what_is_named(ftp: FtpTransfer) -> None:
    created = await create(ftp, server(user="u", password="one", max_sessions=3))
    changed = await update(
        ftp,
        pb.Connection(name=created.name, title="Server A", ftp=pb.FtpServer(password="two")),
        "title",
        "ftp.password",
    )
    assert (changed.title, changed.ftp.user, changed.ftp.max_sessions) == ("Server A", "u", 3)
    assert changed.etag != created.etag
    assert await password(ftp, "a") == "two"


async def test_an_update_without_a_mask_changes_what_is_set(ftp: FtpTransfer) -> None:
    created = await create(ftp, server(user="u", password="one"))
    changed = await update(ftp, pb.Connection(name=created.name, ftp=pb.FtpServer(host="other")))
    assert (changed.ftp.host, changed.ftp.user, changed.ftp.has_password) == ("other", "u", True)


async def test_a_password_is_taken_away_by_its_name_alone(ftp: FtpTransfer) -> None:
    created = await create(ftp, server(password="one"))
    kept = await update(ftp, pb.Connection(name=created.name, ftp=pb.FtpServer(host="other")), "*")
    assert (kept.ftp.has_password, kept.ftp.user) == (True, "anonymous")
    assert not (await update(ftp, pb.Connection(name=created.name), "ftp.password")).ftp.has_password


async def test_the_port_follows_tls_where_it_was_not_chosen(ftp: FtpTransfer) -> None:
    created = await create(ftp, server())
    implicit = pb.FtpServer(tls=pb.TlsSettings(mode=pb.TLS_MODE_IMPLICIT))
    assert (await update(ftp, pb.Connection(name=created.name, ftp=implicit), "ftp.tls")).ftp.port == 990
    assert (await update(ftp, pb.Connection(name=created.name), "ftp.tls")).ftp.port == 21
    chosen = pb.FtpServer(port=2121)
    await update(ftp, pb.Connection(name=created.name, ftp=chosen), "ftp.port")
    assert (await update(ftp, pb.Connection(name=created.name, ftp=implicit), "ftp.tls")).ftp.port == 2121


async def test_an_old_etag_and_another_kind_are_refused(ftp: FtpTransfer) -> None:
    created = await create(ftp, server())
    await update(ftp, pb.Connection(name=created.name, title="new"), "title")
    with require_status(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"):
        await update(ftp, pb.Connection(name=created.name, title="newer", etag=created.etag), "title")
    with require_status(grpc.StatusCode.INVALID_ARGUMENT, "CONNECTION_KIND"):
        await update(ftp, pb.Connection(name=created.name, local=pb.LocalFolder(base_path="/a")))
    with require_status(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await update(ftp, pb.Connection(name=created.name), "ftp.host")
    assert "must not be empty" in refusal.message
    with require_status(grpc.StatusCode.NOT_FOUND):
        await update(ftp, pb.Connection(name="connections/none", title="x"), "title")


async def test_deleting(ftp: FtpTransfer) -> None:
    created = await create(ftp, server())
    await ftp.stub.DeleteConnection(pb.DeleteConnectionRequest(name=created.name, validate_only=True))
    await ftp.stub.DeleteConnection(pb.DeleteConnectionRequest(name=created.name, etag=created.etag))
    with require_status(grpc.StatusCode.NOT_FOUND):
        await ftp.stub.DeleteConnection(pb.DeleteConnectionRequest(name=created.name))


async def test_connections_of_the_file_are_shown_and_not_changed(ftp: FtpTransfer) -> None:
    found = await ftp.stub.GetConnection(pb.GetConnectionRequest(name="connections/other-server"))
    assert (found.config_section, found.ftp.host, found.ftp.has_password) == ("Other Server", "other.example.com", True)
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "CONNECTION_FROM_FILE"):
        await update(ftp, pb.Connection(name=found.name, title="x"), "title")
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "CONNECTION_FROM_FILE"):
        await ftp.stub.DeleteConnection(pb.DeleteConnectionRequest(name=found.name))


async def test_a_change_of_the_file_is_seen(ftp: FtpTransfer) -> None:
    other = ftp.connections_file.with_suffix(".new")
    other.write_text(f"[more]\ntype = local\nbase_path = {ftp.folder}\n")
    other.replace(ftp.connections_file)

    async def listed() -> list[str]:
        answer = await ftp.stub.ListConnections(pb.ListConnectionsRequest())
        return [connection.name for connection in answer.connections]

    async def changed() -> bool:
        return await listed() == ["connections/more"]

    await until(changed)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ["remote-server-a", "other-server", "local", "c", "b", "a"]),
        ('kind = "ftp"', ["remote-server-a", "other-server", "c", "b", "a"]),
        ("kind = local", ["local"]),
        ("host : other", ["other-server"]),
        ('title = "Two"', ["b"]),
        ('create_time > "2000-01-01T00:00:00Z" AND host = "ftp.example.com"', ["remote-server-a", "c", "b", "a"]),
    ],
)
async def test_lists(ftp: FtpTransfer, text: str, wanted: list[str]) -> None:
    for name, title in (("a", "One"), ("b", "Two"), ("c", "Three")):
        connection = server()
        connection.title = title
        await create(ftp, connection, name)
    for size in (1, 2, 50):
        names: list[str] = []
        token = ""
        while True:
            page = await ftp.stub.ListConnections(
                pb.ListConnectionsRequest(page_size=size, page_token=token, filter=text)
            )
            assert len(page.connections) <= size
            names += [connection.name.removeprefix("connections/") for connection in page.connections]
            token = page.next_page_token
            if not token:
                break
        assert names == wanted


async def test_a_connection_is_tried(ftp: FtpTransfer) -> None:
    answer = await ftp.stub.TestConnection(pb.TestConnectionRequest(name="connections/remote-server-a"))
    assert answer.ok
    assert (answer.last_step, answer.greeting, list(answer.features)) == ("list", "220 a folder", ["MLST", "UTF8"])
    assert ftp.server.probed == FtpServer("ftp.example.com", user="username", password="hunter2")
    await ftp.stub.TestConnection(pb.TestConnectionRequest(connection=server(user="u", password="p")))
    assert ftp.server.probed == FtpServer("ftp.example.com", user="u", password="p")
    with require_status(grpc.StatusCode.NOT_FOUND):
        await ftp.stub.TestConnection(pb.TestConnectionRequest(name="connections/none"))


async def test_a_local_folder_is_tried(ftp: FtpTransfer) -> None:
    (ftp.folder / "a").write_text("a")
    answer = await ftp.stub.TestConnection(pb.TestConnectionRequest(name="connections/local"))
    assert (answer.ok, answer.last_step, answer.entry_count) == (True, "write", 1)
    assert [path.name for path in ftp.folder.iterdir()] == ["a"]
    answer = await ftp.stub.TestConnection(pb.TestConnectionRequest(name="connections/local", path="none"))
    assert (answer.ok, answer.last_step) == (False, "read")
    assert answer.error.code != 0


async def test_changes_are_audited(ftp: FtpTransfer) -> None:
    created = await create(ftp, server())
    await ftp.stub.TestConnection(pb.TestConnectionRequest(name=created.name))
    await ftp.stub.DeleteConnection(pb.DeleteConnectionRequest(name=created.name))
    async with ftp.platform.database.connection() as connection:
        rows = await connection.fetch("SELECT method, resource FROM platform.audit_events ORDER BY id")
    service = "/opsplane.ftptransfer.v1.FtpTransfer"
    assert [tuple(row) for row in rows] == [
        (f"{service}/{method}", created.name) for method in ("CreateConnection", "TestConnection", "DeleteConnection")
    ]
