"""connections.ini."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.ftptransfer.connections_file import ConnectionsFile, ConnectionsFileError, parse
from opsplane_server.ftptransfer.model import ActiveMode, FtpServer, LocalFolder, TlsMode, TlsSettings

from tests.waiting import until

FILE = Path("connections.ini")

SEED = """
[remote-server-a]
type = ftp
host = ftp.example.com
port = 21
user = username
pass = password
passive = true

[local]
type = local
base_path = /data/storage
"""


def server(**lines: str) -> FtpServer:
    """The FTP server of a section with these keys."""
    text = "\n".join(["[a]", *(f"{key} = {value}" for key, value in lines.items())])
    [connection] = parse(text, FILE)
    assert isinstance(connection.kind, FtpServer)
    return connection.kind


def test_the_file_of_the_seed() -> None:
    remote, local = parse(SEED, FILE)
    assert (remote.id, remote.config_section) == ("remote-server-a", "remote-server-a")
    assert remote.kind == FtpServer("ftp.example.com", 21, "username", "password")
    assert (local.id, local.kind) == ("local", LocalFolder(Path("/data/storage")))


def test_passive_false_is_active_mode() -> None:
    assert server(type="ftp", host="h", passive="false").active == ActiveMode()
    ports = server(type="ftp", host="h", passive="no", active_address="192.0.2.10", active_ports="50000-50100")
    assert ports.active == ActiveMode("192.0.2.10", 50000, 50100)


def test_what_is_not_said_has_its_default() -> None:
    assert server(type="ftp", host="h") == FtpServer("h")
    assert server(type="ftps", host="h") == FtpServer("h", tls=TlsSettings(TlsMode.EXPLICIT))
    assert server(type="ftps", host="h", tls="implicit").port == 990


def test_what_goes_beyond_the_seed() -> None:
    found = server(
        type="FTPS",
        host="h",
        server_name="other",
        encoding="euc-kr",
        max_sessions="4",
        idle_timeout="120",
        reply_timeout="2.5",
        stall_timeout="9",
        use_announced_address="yes",
    )
    assert found == FtpServer(
        "h",
        tls=TlsSettings(TlsMode.EXPLICIT, server_name="other"),
        use_announced_address=True,
        encoding="euc-kr",
        max_sessions=4,
        idle_timeout=120,
        reply_timeout=2.5,
        stall_timeout=9,
    )


PASSWORDS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp", "Zs"]), min_size=1, max_size=40)


@given(PASSWORDS)
def test_a_password_is_taken_as_it_is(password: str) -> None:
    assert server(type="ftp", host="h", **{"pass": password}).password == password


@given(st.lists(st.text(st.characters(exclude_characters="[]", exclude_categories=["Cs", "Cc", "Zl", "Zp", "Zs"]), min_size=1), unique=True, max_size=8))  # fmt: skip  # noqa: E501
def test_every_section_gets_an_id_of_its_own(names: list[str]) -> None:
    names = [name for name in names if name != "DEFAULT"]
    found = parse("".join(f"[{name}]\ntype = local\nbase_path = /a\n" for name in names), FILE)
    assert [connection.config_section for connection in found] == names
    ids = [connection.id for connection in found]
    assert len(set(ids)) == len(ids)
    for connection_id in ids:
        assert 0 < len(connection_id) <= 63
        assert connection_id[0].isascii()
        assert connection_id[0].islower()
        assert set(connection_id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert not connection_id.endswith("-")


def test_an_id_is_kept_for_the_section_that_is_called_so() -> None:
    text = "[Server A]\ntype=local\nbase_path=/1\n[server-a]\ntype=local\nbase_path=/2\n"
    first, second = parse(text, FILE)
    assert second.id == "server-a"
    assert first.id.startswith("server-a-")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nhost = h", "connections.ini: [a] type: is missing"),
        ("[a]\ntype = sftp", "connections.ini: [a] type: is none of ftp, ftps, local"),
        ("[a]\ntype = ftp", "connections.ini: [a] host: is missing"),
        ("[a]\ntype = ftp\nhost = h\nport = 99999", "connections.ini: [a] port: is not a value that it can have"),
        ("[a]\ntype = ftp\nhost = h\npassword = secret", "connections.ini: [a] password: is not a key of this type"),
        ("[a]\ntype = ftp\nhost = h\npassive = maybe", "connections.ini: [a] passive: is neither true nor false"),
        ("[a]\ntype = ftp\nhost = h\ntls = explicit", "connections.ini: [a] tls: is not a key of this type"),
        ("[a]\ntype = local\nbase_path = storage", "connections.ini: [a] base_path: is not an absolute path"),
        ("[a]\n[a]", "connections.ini: not an INI file in line 2: another section [a]"),
        ("pass = secret", "connections.ini: not an INI file in line 1: a line before the first section"),
        ("[a]\nsecret", "connections.ini: not an INI file in line 2: neither a section nor a key with a value"),
    ],
)
def test_what_is_wrong_is_named_without_a_value(text: str, message: str) -> None:
    with pytest.raises(ConnectionsFileError) as caught:
        parse(text, FILE)
    assert str(caught.value) == message


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConnectionsFileError):
        parse(text, FILE)


async def test_a_change_of_the_file_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "connections.ini"
    file.write_text(SEED)
    async with ConnectionsFile(file) as connections:
        assert list(connections.connections) == ["remote-server-a", "local"]
        assert connections.connections["local"].revision == 1
        _replace(file, SEED.replace("/data/storage", "/data/other"))
        await until(lambda: connections.connections["local"].revision == 2)
        assert connections.connections["local"].kind == LocalFolder(Path("/data/other"))
        assert connections.connections["remote-server-a"].revision == 1


async def test_a_change_that_is_wrong_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "connections.ini"
    file.write_text(SEED)
    async with ConnectionsFile(file) as connections:
        file.write_text("[a]\ntype = nothing\n")
        _replace(file, SEED + "\n[more]\ntype = local\nbase_path = /more\n")
        await until(lambda: "more" in connections.connections)
        assert len(connections.connections) == 3


async def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConnectionsFileError, match="No such file"):
        await ConnectionsFile(tmp_path / "none.ini").__aenter__()


async def test_without_a_file_there_are_none() -> None:
    async with ConnectionsFile(None) as connections:
        assert connections.connections == {}
        assert connections.find("local") is None


def _replace(file: Path, text: str) -> None:
    """At once, as an editor does it."""
    other = file.with_suffix(".new")
    other.write_text(text)
    os.replace(other, file)
