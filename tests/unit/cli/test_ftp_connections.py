"""`opsplane ftp connections` against a server in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from google.protobuf.duration_pb2 import Duration
from opsplane.cli.root import opsplane
from opsplane.ftptransfer.v1 import connections_pb2

from tests.unit.cli.commands import Outcome, opsplane_command
from tests.unit.cli.fake_ftp_servicer import FakeFtp, serving_ftp

CREATE = ("connections", "create", "nas")
SERVER = (*CREATE, "--host", "nas.example.com", "--user", "ann")


async def run(servicer: FakeFtp, *arguments: str, **environment: str) -> Outcome:
    async with serving_ftp(servicer) as address:
        return await opsplane_command("ftp", *arguments, address=address, environment=environment)


async def test_a_server_with_everything(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text("PEM")
    password = tmp_path / "password"
    password.write_text("open sesame\nand more\n")
    servicer = FakeFtp()
    outcome = await run(
        servicer, *SERVER, "--title", "Storage", "--port", "2121", "--password-file", str(password),
        "--tls", "explicit", "--tls-ca", str(authority), "--tls-server-name", "storage",
        "--active", "--active-address", "192.0.2.1", "--active-ports", "5000-5010", "--encoding", "euc-kr",
        "--max-sessions", "5", "--idle-timeout", "1m", "--reply-timeout", "10s", "--stall-timeout", "20s", "--test",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    [request] = servicer.created
    assert request.connection_id == "nas"
    assert request.connection == connections_pb2.Connection(
        title="Storage",
        ftp=connections_pb2.FtpServer(
            host="nas.example.com",
            port=2121,
            user="ann",
            password="open sesame",
            tls=connections_pb2.TlsSettings(
                mode=connections_pb2.TLS_MODE_EXPLICIT, ca_certificates="PEM", server_name="storage"
            ),
            active_mode=connections_pb2.ActiveMode(address="192.0.2.1", first_port=5000, last_port=5010),
            encoding="euc-kr",
            max_sessions=5,
            idle_timeout=Duration(seconds=60),
            reply_timeout=Duration(seconds=10),
            stall_timeout=Duration(seconds=20),
        ),
    )
    rows = [line.split() for line in outcome.out.splitlines()]
    assert ["kind", "ftps", "explicit"] in rows
    assert ["password", "kept"] in rows
    assert ["data", "active", "192.0.2.1", "ports", "5000-5010"] in rows
    assert "sesame" not in outcome.out


async def test_a_folder_and_a_server_without_password() -> None:
    servicer = FakeFtp()
    assert (await run(servicer, *CREATE, "--folder", "/srv/outgoing")).status == 0
    assert (await run(servicer, *SERVER, "--no-password")).status == 0
    assert (await run(servicer, *SERVER, "--password-env", "MINE", MINE="öffne dich")).status == 0
    local, without, with_password = (request.connection for request in servicer.created)
    assert local == connections_pb2.Connection(local=connections_pb2.LocalFolder(base_path="/srv/outgoing"))
    assert without.ftp == connections_pb2.FtpServer(host="nas.example.com", user="ann")
    assert with_password.ftp.password == "öffne dich"


async def test_a_try_that_fails_creates_nothing() -> None:
    servicer = FakeFtp(broken=True)
    outcome = await run(servicer, *SERVER, "--no-password", "--test")
    assert outcome.status == 1
    assert "FILE_NOT_FOUND: no such file" in outcome.out
    assert servicer.created == []
    assert (await run(servicer, "connections", "test", "nas")).status == 1
    works = await run(FakeFtp(), "connections", "test", "nas")
    assert works.status == 0
    assert ["greeting", "hello", "\N{REPLACEMENT CHARACTER}[31m"] in [line.split() for line in works.out.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "paths"),
    [
        (("--title", ""), ["title"]),
        (("--folder", "/srv"), ["local.base_path"]),
        (("--host", "h", "--port", "0"), ["ftp.host", "ftp.port"]),
        (("--tls", "none", "--passive"), ["ftp.tls", "ftp.active_mode"]),
        (("--host-address", "--no-password"), ["ftp.use_announced_address", "ftp.password"]),
        (("--stall-timeout", "20s"), ["ftp.stall_timeout"]),
    ],
)
async def test_an_update_changes_what_is_given_alone(arguments: tuple[str, ...], paths: list[str]) -> None:
    servicer = FakeFtp()
    outcome = await run(servicer, "connections", "update", "nas", *arguments)
    assert outcome.status == 0, outcome.err
    [request] = servicer.updated
    assert request.connection.name == "connections/nas"
    assert list(request.update_mask.paths) == paths
    assert request.connection.HasField("local") == ("--folder" in arguments)


async def test_list_and_delete() -> None:
    servicer = FakeFtp()
    outcome = await run(servicer, "connections", "list")
    rows = [line.split() for line in outcome.out.splitlines()]
    assert ["nas", "ftp", "nas.example.com:21", "ann", "connections.ini"] in rows
    assert ["root", "local", "/"] in rows
    async with serving_ftp(servicer) as address:
        as_json = await opsplane_command("-o", "json", "ftp", "connections", "list", address=address)
    assert len(json.loads(as_json.out)["connections"]) == 3
    deleted = await run(servicer, "connections", "delete", "nas", "--force")
    assert deleted.err == "deleted connections/nas\n"
    assert servicer.changed == [("delete", "connections/nas True")]


@pytest.mark.parametrize(
    "arguments",
    [
        CREATE,
        (*CREATE, "--host", "h", "--folder", "/srv"),
        (*CREATE, "--folder", "/srv", "--port", "21"),
        SERVER,  # nobody is there to be asked for the password
        (*SERVER, "--no-password", "--ask-password"),
        (*SERVER, "--password-env", "NOT_SET_ANYWHERE"),
        (*SERVER, "--password", "open sesame"),
        (*SERVER, "--no-password", "--tls-ca", __file__),
        (*SERVER, "--no-password", "--active-ports", "1-2"),
        (*SERVER, "--no-password", "--active", "--active-ports", "many"),
        ("connections", "create", "No", "--host", "h"),
        ("connections", "update", "nas"),
    ],
)
def test_wrong_usage_is_status_2_before_any_call(arguments: tuple[str, ...]) -> None:
    outcome = CliRunner().invoke(opsplane, ["ftp", *arguments])
    assert outcome.exit_code == 2, outcome.output
    assert "Error: " in outcome.stderr


def test_every_command_has_help_with_an_example() -> None:
    for command in ("list", "create", "show", "update", "delete", "test"):
        outcome = CliRunner().invoke(opsplane, ["ftp", "connections", command, "--help"])
        assert outcome.exit_code == 0
        assert f"opsplane ftp connections {command}" in outcome.output
