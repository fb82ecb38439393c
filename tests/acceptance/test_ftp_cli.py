"""The command line of file transfers against a real server and a real FTP server."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ftp_servers.base import PASSWORD, FtpProcess, running, temporary_folder
from tests.ftp_servers.pyftpdlib import Pyftpdlib
from tests.server_process import ServerProcess, running_server
from tests.unit.cli.commands import Outcome, opsplane_command, start
from tests.waiting import until

pytestmark = pytest.mark.slow

LEFT_STATUS = 130


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server("--workers", "2") as running_one:
        yield running_one


@pytest.fixture(scope="module")
def nas() -> Iterator[FtpProcess]:
    with running(Pyftpdlib) as ftp_server:
        yield ftp_server


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """What the connection `here` has."""
    with temporary_folder() as path:
        yield path


@pytest.fixture(autouse=True)
async def connections(server: ServerProcess, nas: FtpProcess, folder: Path) -> None:
    """Creates `nas` and `here` when they are not there."""
    if (await ftp(server, "connections", "show", "nas")).status == 0:
        return
    outcome = await opsplane_command(
        "ftp", "connections", "create", "nas", "--host", nas.host, "--port", str(nas.port), "--user", nas.user,
        "--password-env", "NAS_PASSWORD", "--test",
        address=server.address, environment={"NAS_PASSWORD": PASSWORD},
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert PASSWORD not in outcome.out
    outcome = await ftp(server, "connections", "create", "here", "--folder", str(folder))
    assert outcome.status == 0, outcome.err


async def ftp(server: ServerProcess, *arguments: str) -> Outcome:
    return await opsplane_command("ftp", *arguments, address=server.address)


async def answer(server: ServerProcess, *arguments: str) -> Any:
    outcome = await opsplane_command("-o", "json", "ftp", *arguments, address=server.address)
    assert outcome.status == 0, outcome.err
    return json.loads(outcome.out)


async def test_a_connection_is_tried_and_changed(server: ServerProcess, nas: FtpProcess) -> None:
    tried = await answer(server, "connections", "test", "nas", "--path", "/data")
    assert tried["ok"]
    assert "passive" in (await ftp(server, "connections", "show", "nas")).out
    changed = await answer(
        server, "connections", "update", "nas", "--title", "Storage", "--max-sessions", "5", "--stall-timeout", "20s"
    )
    assert changed["ftp"] == {
        "host": nas.host, "port": nas.port, "user": nas.user, "hasPassword": True, "encoding": "utf-8",
        "maxSessions": 5, "replyTimeout": "30s", "stallTimeout": "20s",
    } | {name: value for name, value in changed["ftp"].items() if name == "idleTimeout"}  # fmt: skip

    broken = ("connections", "create", "broken", "--host", nas.host, "--port", str(nas.port))
    refused = await ftp(server, *broken, "--user", "nobody", "--no-password", "--test")
    assert refused.status == 1
    assert "CONNECTION_ERROR" in refused.out
    assert (await ftp(server, "connections", "show", "broken")).status == 1


async def test_a_tree_is_put_and_put_again_and_listed_and_fetched(
    server: ServerProcess, nas: FtpProcess, folder: Path, tmp_path: Path
) -> None:
    tree = folder / "site"
    contents = {f"{number % 3}/file {number}.bin": bytes([number]) * (1000 + number) for number in range(30)}
    for path, content in contents.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    put = await ftp(server, "put", "-r", str(tree), "nas:/data/www")
    assert put.status == 0, put.err
    assert "30 files, 30.4 kB" in put.out
    arrived = nas.files / "www"
    assert {str(path.relative_to(arrived)): path.read_bytes() for path in arrived.rglob("*.bin")} == contents

    again = await answer(server, "sync", "here:/site", "nas:/data/www")
    assert (again["counts"]["succeeded"], again["counts"]["skipped"]) == ("30", "30")
    (tree / "0" / "new.bin").write_bytes(b"new")
    once_more = await ftp(server, "sync", str(tree), "nas:/data/www")
    assert "31 files" in once_more.out
    assert "30 skipped" in once_more.out
    assert (arrived / "0" / "new.bin").read_bytes() == b"new"

    listed = await answer(server, "ls", "nas:/data/www/**/file 1*.bin")
    names = {Path(file["path"]).name for file in listed["files"]}
    assert names == {f"file {number}.bin" for number in (1, *range(10, 20))}
    plain = await ftp(server, "ls", "nas:/data/www")
    assert [line.split()[:: len(line.split()) - 1] for line in plain.out.splitlines()[1:]] == [
        ["folder", f"/data/www/{number}/"] for number in range(3)
    ]

    got = await ftp(server, "get", "-r", "nas:/data/www", "here:/back")
    assert got.status == 0, got.err
    assert (folder / "back" / "1" / "file 7.bin").read_bytes() == contents["1/file 7.bin"]
    one = await ftp(server, "get", "nas:/data/www/0/new.bin", f"{folder}/copies/")
    assert one.status == 0, one.err
    assert "SUCCEEDED nas:/data/www/0/new.bin -> here:/copies/new.bin  3 B" in one.out
    assert (folder / "copies" / "new.bin").read_bytes() == b"new"


async def test_what_fails_is_told_and_can_be_begun_anew(server: ServerProcess, folder: Path, nas: FtpProcess) -> None:
    (folder / "there.txt").write_text("there")
    failed = await ftp(server, "put", "here:/there.txt", "here:/missing.txt", "nas:/data/in/", "--group", "some")
    assert failed.status == 1
    assert "SUCCEEDED here:/there.txt -> nas:/data/in/there.txt" in failed.out
    assert "FAILED    here:/missing.txt -> nas:/data/in/missing.txt  FILE_NOT_FOUND" in failed.out
    assert "2 files, 5 B, 1 failed" in failed.out
    listed = await ftp(server, "list", "--state", "failed", "--group", "some")
    assert "FILE_NOT_FOUND" in listed.out

    (folder / "missing.txt").write_text("not any more")
    retried = await ftp(server, "retry", "--group", "some")
    assert retried.status == 0, retried.err
    assert (nas.files / "in" / "missing.txt").read_text() == "not any more"
    none = await ftp(server, "retry", "--group", "some")
    assert (none.status, none.err) == (0, "there are none\n")

    wrong = "0" * 64
    refused = await ftp(server, "put", "here:/there.txt", "nas:/data/sum", "--sha256", wrong, "--max-attempts", "1")
    assert refused.status == 1
    assert "SHA-256" in refused.out
    assert not (nas.files / "sum").exists()
    right = hashlib.sha256(b"there").hexdigest()
    assert (await ftp(server, "put", "here:/there.txt", "nas:/data/sum", "--sha256", right)).status == 0

    nowhere = await ftp(server, "put", "here:/there.txt", "none:/x")
    assert nowhere.status == 1
    assert "INVALID_CONFIG" in nowhere.err
    in_tree = await ftp(server, "get", "-r", "nas:/none", "here:/none")
    assert in_tree.status == 1
    assert "FILE_NOT_FOUND" in in_tree.out


async def test_files_that_the_server_has_not_go_by_way_of_a_local_folder(
    server: ServerProcess, nas: FtpProcess, folder: Path, tmp_path: Path
) -> None:
    before = set(folder.iterdir())
    mine = tmp_path / "mine"
    (mine / "deep").mkdir(parents=True)
    (mine / "a.txt").write_bytes(b"a" * 700_000)
    (mine / "deep" / "b.txt").write_text("b")
    outside = await ftp(server, "put", "-r", str(mine), "nas:/data/mine")
    assert outside.status == 2
    assert "no local connection" in outside.err
    put = await ftp(server, "put", "-r", str(mine), "nas:/data/mine", "--via", "here")
    assert put.status == 0, put.err
    assert f"SUCCEEDED {mine}/deep/b.txt -> nas:/data/mine/deep/b.txt  1 B" in put.out
    assert (nas.files / "mine" / "a.txt").read_bytes() == b"a" * 700_000
    got = await ftp(server, "get", "-r", "nas:/data/mine", str(tmp_path / "back"), "--via", "here")
    assert got.status == 0, got.err
    got = await ftp(server, "get", "nas:/data/mine/*.txt", "nas:/data/mine/deep/b.txt", f"{tmp_path}", "--via", "here")
    assert got.status == 0, got.err
    for path in ("back/a.txt", "a.txt"):
        assert (tmp_path / path).read_bytes() == b"a" * 700_000
    for path in ("back/deep/b.txt", "b.txt"):
        assert (tmp_path / path).read_text() == "b"
    assert set(folder.iterdir()) == before
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "back", "a.txt", "b.txt"}


async def test_who_leaves_does_not_end_the_transfers(server: ServerProcess, nas: FtpProcess, folder: Path) -> None:
    (folder / "later.txt").write_text("later")
    nas.stop()
    try:
        process = await start("ftp", "put", "here:/later.txt", "nas:/data/", "--group", "left", address=server.address)

        async def begun() -> bool:
            return bool((await answer(server, "list", "--group", "left")).get("transfers"))

        await until(begun)
        process.send_signal(signal.SIGINT)
        _, said = await process.communicate()
        assert process.returncode == LEFT_STATUS
        assert "the transfers go on; `opsplane ftp watch" in said.decode()
    finally:
        nas.start()
    watched = await ftp(server, "watch", "--group", "left")
    assert watched.status == 0, watched.err
    assert (nas.files / "later.txt").read_text() == "later"

    stats = await ftp(server, "stats")
    assert "postgres, 0 not begun" in stats.out
