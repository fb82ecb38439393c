"""`opsplane ftp` without `connections`, against a server in memory."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from opsplane.cli.ftp_figures import Progress
from opsplane.cli.ftp_follow import follow
from opsplane.cli.ftp_views import CountsView
from opsplane.cli.root import opsplane
from opsplane.client import connect
from opsplane.ftptransfer.v1 import ftptransfer_pb2
from opsplane.ftptransfer.v1 import transfers_pb2 as pb

from tests.unit.cli.commands import Outcome, opsplane_command, start
from tests.unit.cli.fake_ftp_servicer import FakeFtp, serving_ftp
from tests.waiting import until


async def run(servicer: FakeFtp, *arguments: str) -> Outcome:
    async with serving_ftp(servicer) as address:
        return await opsplane_command(*arguments, address=address)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def test_put_shows_what_came_of_each_file() -> None:
    servicer = FakeFtp()
    outcome = await run(servicer, "ftp", "put", "here:/a.csv", "here:/missing", "nas:/in", "--priority", "high")
    assert outcome.status == 1
    assert outcome.out.splitlines()[:2] == [
        "SUCCEEDED here:/a.csv -> nas:/in/a.csv  1.50 kB",
        "FAILED    here:/missing -> nas:/in/missing  FILE_NOT_FOUND: no such file \N{REPLACEMENT CHARACTER}[31m (550)",
    ]
    assert outcome.out.splitlines()[2].startswith("2 files, 1.50 kB, 1 failed in ")
    first, second = servicer.submitted
    assert first.destination.path == second.destination.path == "/in/"
    assert first.priority == pb.PRIORITY_HIGH
    assert first.group == second.group
    assert first.group.startswith("cli-")


async def test_put_sends_what_was_asked_for() -> None:
    servicer = FakeFtp()
    outcome = await run(
        servicer, "-o", "json", "ftp", "put", "here:a.csv", "nas:b.csv", "--existing", "skip", "--group", "nightly",
        "--max-attempts", "3", "--sha256", "a" * 64,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert servicer.submitted == [
        pb.Transfer(
            name="transfers/t0",
            state=pb.TRANSFER_STATE_RUNNING,
            source=pb.Location(connection="connections/here", path="a.csv"),
            destination=pb.Location(connection="connections/nas", path="b.csv"),
            selection=pb.SELECTION_FILE,
            priority=pb.PRIORITY_NORMAL,
            existing_file=pb.EXISTING_FILE_SKIP,
            group="nightly",
            max_attempts=3,
            sha256="a" * 64,
        )
    ]
    found = json.loads(outcome.out)
    assert found["transfers"][0]["state"] == "TRANSFER_STATE_SUCCEEDED"
    assert (found["counts"]["succeeded"], found["counts"]["skipped"]) == ("1", "1")


async def test_paths_of_this_machine_are_those_of_the_closest_local_connection(tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "a.csv").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a.csv")
    servicer = FakeFtp(base_path=str(tmp_path))
    sources = ("a.csv", "link", "tree", "tree/", "tree/*.gz")
    outcome = await run(servicer, "ftp", "put", "-r", *(f"{tmp_path}/{one}" for one in sources), "nas:")
    assert outcome.status == 0, outcome.err
    ends = [(one.source.path, one.destination.path, one.selection) for one in servicer.submitted]
    assert ends == [
        ("/a.csv", "./", pb.SELECTION_FILE),
        ("/a.csv", "./", pb.SELECTION_FILE),
        ("/tree", "tree", pb.SELECTION_TREE),
        ("/tree/", "tree", pb.SELECTION_TREE),
        ("/tree/*.gz", ".", pb.SELECTION_GLOB),
    ]
    assert {one.source.connection for one in servicer.submitted} == {"connections/here"}
    assert "SUCCEEDED here:/tree -> nas:tree  2 files" not in outcome.out  # its files are listed instead

    servicer.submitted.clear()
    outcome = await run(servicer, "ftp", "get", "nas:/out/x", str(tmp_path))
    assert outcome.status == 0, outcome.err
    assert servicer.submitted[0].destination == pb.Location(connection="connections/here", path="/")


async def test_a_tree_is_counted_by_its_files() -> None:
    servicer = FakeFtp()
    outcome = await run(servicer, "ftp", "sync", "nas:/missing", "here:/in")
    assert outcome.status == 1
    assert "3 files, 3.00 kB, 1 failed" in outcome.out
    assert "FAILED    nas:/missing -> here:/in/missing  FILE_NOT_FOUND" in outcome.out
    assert servicer.filters == ['parent = "transfers/t0"']
    [submitted] = servicer.submitted
    assert submitted.existing_file == pb.EXISTING_FILE_SKIP_SAME
    assert submitted.selection == pb.SELECTION_TREE
    assert submitted.destination.path == "/in"


class Picture(CountsView):
    """A view that shows the files of trees, as one in a terminal does."""

    shows_files = True

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress, sys.stderr)
        self.seen: set[str] = set()

    def show(self, response: ftptransfer_pb2.WatchTransfersResponse) -> None:
        super().show(response)
        self.seen.update(self.progress.under_way)


async def test_the_files_of_a_tree_are_followed_for_the_picture_as_long_as_the_tree() -> None:
    servicer = FakeFtp(waits_for_files=True)
    async with serving_ftp(servicer) as address, asyncio.timeout(60):
        outcome = await opsplane_command("ftp", "sync", "nas:/out", "here:/in", "--no-wait", address=address)
        assert outcome.status == 0, outcome.err
        view = Picture(Progress(["transfers/t0"]))
        async with connect(address) as client, asyncio.TaskGroup() as group:
            group.create_task(follow(client, ["transfers/t0"], view))
            await until(lambda: view.seen == {"transfers/file"})
            servicer.may_end.set()
    assert servicer.watches[1].filter == 'parent = "transfers/t0"'
    assert view.progress.under_way == {}
    assert view.progress.counts.succeeded == 2


async def test_nothing_to_put_is_an_error(tmp_path: Path) -> None:
    outcome = await opsplane_command("ftp", "put", "-r", str(tmp_path), "nas:/in", "--via", "here")
    assert (outcome.status, outcome.err) == (1, "Error: nothing was found\n")


async def test_what_is_refused_is_told_and_the_others_go_on() -> None:
    servicer = FakeFtp()
    outcome = await run(servicer, "ftp", "get", "nas:refused", "nas:good", "here:/in")
    assert outcome.status == 1
    assert "nas:refused was refused: source.path: FILE_NOT_FOUND" in outcome.err
    assert "1 file, 1.50 kB" in outcome.out
    outcome = await run(servicer, "ftp", "get", "nas:refused", "here:/in")
    assert (outcome.status, outcome.out) == (1, "")


async def test_nobody_needs_to_wait() -> None:
    servicer = FakeFtp(endless=True)
    outcome = await run(servicer, "ftp", "put", "here:a", "here:b", "nas:in", "--no-wait", "--group", "g")
    assert outcome.status == 0
    assert outcome.out == "transfers/t0\ntransfers/t1\n"
    assert outcome.err == "`opsplane ftp watch --group g` shows them\n"
    assert servicer.watches == []


async def test_ctrl_c_leaves_and_says_that_transfers_go_on() -> None:
    servicer = FakeFtp(endless=True)
    async with serving_ftp(servicer) as address, asyncio.timeout(60):
        process = await start("ftp", "put", "here:a", "nas:in", address=address)
        await until(lambda: bool(servicer.watches))
        process.send_signal(signal.SIGINT)
        _, said = await process.communicate()
    assert process.returncode == 130
    assert said.decode().strip() == "the transfers go on; `opsplane ftp watch t0` shows them again"
    assert servicer.changed == []


async def test_a_lost_stream_is_begun_anew() -> None:
    servicer = FakeFtp(losses=2)
    outcome = await run(servicer, "ftp", "put", "here:a", "nas:in")
    assert outcome.status == 0, outcome.err
    assert len(servicer.watches) == 3
    assert outcome.err.count("connection lost, reconnecting") == 2


async def test_very_many_are_followed_by_several_calls(tmp_path: Path) -> None:
    for number in range(1001):
        (tmp_path / f"{number}").touch()
    servicer = FakeFtp(base_path=str(tmp_path))
    outcome = await run(servicer, "ftp", "put", *(f"{tmp_path}/{number}" for number in range(1001)), "nas:in")
    assert outcome.status == 0, outcome.err
    assert sorted(len(watch.names) for watch in servicer.watches) == [1, 1000]
    assert outcome.out.startswith("1,001 files, 1.50 MB")


async def test_put_by_way_of_a_folder_of_the_server(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"a" * 600_000)
    (tmp_path / "sub" / "missing").write_bytes(b"b")
    servicer = FakeFtp()
    outcome = await run(servicer, "ftp", "put", "-r", str(tmp_path), "nas:/in", "--via", "here")
    assert outcome.status == 0, outcome.err
    assert {one.destination.path for one in servicer.submitted} == {"/in/a", "/in/sub/missing"}
    assert {one.source.connection for one in servicer.submitted} == {"connections/here"}
    assert f"SUCCEEDED {tmp_path}/a -> nas:/in/a  1.50 kB" in outcome.out
    assert servicer.files == {}
    assert len(servicer.changed) == 2


async def test_get_by_way_of_a_folder_of_the_server(tmp_path: Path) -> None:
    servicer = FakeFtp()
    outcome = await run(servicer, "ftp", "get", "-r", "nas:/out", f"{tmp_path}/in", "--via", "here")
    assert outcome.status == 0, outcome.err
    assert files(tmp_path) == ["in/sub/a b.csv"]
    assert (tmp_path / "in" / "sub" / "a b.csv").read_bytes() == b"abcdef"
    assert "left out, because it is no plain file: /out/link" in outcome.err
    assert "left out, because it is no plain file: /out/../evil" in outcome.err
    [submitted] = servicer.submitted
    assert servicer.changed == [("delete file", submitted.destination.path)]

    servicer.broken = True
    outcome = await run(servicer, "ftp", "get", "nas:/out/x", f"{tmp_path}/cut", "--via", "here")
    assert outcome.status == 1
    assert "3 bytes came instead of 6" in outcome.err
    assert files(tmp_path) == ["in/sub/a b.csv"]


async def test_ls() -> None:
    servicer = FakeFtp()
    outcome = await run(servicer, "ftp", "ls", "nas:/out")
    lines = [line.rstrip().split(maxsplit=1) for line in outcome.out.splitlines()[1:]]
    assert [kind for kind, _ in lines] == ["folder", "file", "link", "file"]
    assert lines[0][1].strip() == "/out/sub/"
    assert lines[1][1].split(maxsplit=1) == ["12,345", "/out/sub/a b.csv"]
    for arguments in (("-o", "json", "ftp", "ls", "nas:2026/*/a?.csv"), ("ftp", "ls", "--json", "nas:2026/*/a?.csv")):
        outcome = await run(servicer, *arguments)
        assert len(json.loads(outcome.out)["files"]) == 4
        assert (servicer.listed[-1].path, servicer.listed[-1].glob) == ("2026", "*/a?.csv")
    await run(servicer, "ftp", "ls", "-R", "nas:")
    assert servicer.listed[-1].recursive
    assert servicer.listed[-1].path == ""


async def test_watch() -> None:
    servicer = FakeFtp()
    await run(servicer, "ftp", "put", "here:/a", "here:/missing", "nas:/in", "--no-wait")
    by_filter = await run(servicer, "ftp", "watch", "--group", "g", "--filter", "priority=HIGH", "--interval", "200ms")
    assert by_filter.status == 1
    assert by_filter.out.splitlines()[:3] == [
        "transfers/t0 RUNNING   here:/a -> nas:/in/a",
        "transfers/t1 RUNNING   here:/missing -> nas:/in/missing",
        "transfers/t0 SUCCEEDED here:/a -> nas:/in/a  1.50 kB",
    ]
    assert servicer.watches[-1].filter == 'priority=HIGH AND group = "g"'
    assert servicer.watches[-1].interval.nanos == 200_000_000
    by_name = await run(servicer, "ftp", "watch", "t0")
    assert by_name.status == 0, by_name.err
    assert list(servicer.watches[-1].names) == ["transfers/t0"]
    assert "1 file, 1.50 kB" in by_name.out
    as_json = await run(servicer, "-o", "json", "ftp", "watch", "--follow", "transfers/t1")
    assert as_json.status == 1
    assert [len(json.loads(line)["transfers"]) for line in as_json.out.splitlines()] == [1, 1]
    assert servicer.watches[-1].follow


async def test_list_and_show() -> None:
    servicer = FakeFtp()
    outcome = await run(servicer, "ftp", "list", "--state", "failed", "--group", "nightly", "--filter", "priority=LOW")
    assert servicer.filters == ['priority=LOW AND group = "nightly" AND state = FAILED']
    assert ["tree", "FAILED", "nas:/missing", "here:/in/", "nightly"] in [
        line.split()[:5] for line in outcome.out.splitlines()
    ]
    missing = await run(servicer, "ftp", "show", "t0")
    assert (missing.status, "transfers/t0 does not exist (NOT_FOUND)" in missing.err) == (1, True)
    await run(servicer, "ftp", "put", "here:/a", "nas:/in", "--no-wait")
    shown = await run(servicer, "ftp", "show", "t0")
    assert ["size", "1,500", "bytes"] in [line.split() for line in shown.out.splitlines()]


async def test_retry_and_cancel() -> None:
    servicer = FakeFtp()
    outcome = await run(servicer, "ftp", "retry", "a", "transfers/b", "--no-wait")
    assert outcome.out == "transfers/a PENDING\ntransfers/b PENDING\n"
    outcome = await run(servicer, "ftp", "cancel", "--group", "g")
    assert sorted(servicer.changed) == [
        ("cancel", "transfers/other-file"),  # its tree is not among them
        ("cancel", "transfers/tree"),
        ("retry", "transfers/a"),
        ("retry", "transfers/b"),
    ]
    assert servicer.filters == ['group = "g" AND state != SUCCEEDED AND state != FAILED AND state != CANCELLED']
    assert "transfers/tree CANCELLED" in outcome.out


async def test_stats() -> None:
    outcome = await run(FakeFtp(), "ftp", "stats")
    assert "kafka, 12,000 not begun" in outcome.out
    assert "no process takes tasks" in outcome.out
    rows = [line.split() for line in outcome.out.splitlines()]
    assert ["IO_ERROR", "7"] in rows
    assert ["pod/1", "1.2.3", "0", "0", "shuts", "down"] in rows
    assert any(row[:5] == ["nas", "3", "2", "0", "0"] for row in rows)


@pytest.mark.parametrize(
    "arguments",
    [
        ("put", "here:a", "/local"),
        ("put", "nowhere-to-be-found", "nas:in"),
        ("put", "/", "nas:in"),
        ("put", "here:folder/", "nas:in"),
        ("put", "here:a", "here:b", "nas:in", "--sha256", "a"),
        ("put", "here:*.csv", "nas:in", "--sha256", "a"),
        ("put", "here:a", "nas:in", "--via", "here"),
        ("put", __file__, "nas:in", "--via", "here", "--no-wait"),
        ("put", __file__, "nas:in", "--via", "here", "--existing", "skip-same"),
        ("get", "local", "here:a"),
        ("get", "nas:a", "b", "--via", "here", "--existing", "fail"),
        ("sync", "nas:*.csv", "here:in"),
        ("sync", __file__, "nas:in"),
        ("ls", "local"),
        ("watch", "t0", "--group", "g"),
        ("watch", "T0"),
        ("retry",),
        ("retry", "t0", "--group", "g"),
        ("cancel",),
    ],
)
def test_wrong_usage_is_status_2_before_any_call(arguments: tuple[str, ...]) -> None:
    outcome = CliRunner().invoke(opsplane, ["ftp", *arguments])
    assert outcome.exit_code == 2, outcome.output
    assert "Error: " in outcome.stderr


def test_files_of_this_machine_are_not_those_of_another_one() -> None:
    outcome = CliRunner().invoke(opsplane, ["--address", "ftp.example.com:1", "ftp", "put", __file__, "nas:in"])
    assert outcome.exit_code == 2
    assert "has not this machine's files" in outcome.stderr


def test_every_command_has_help_with_an_example() -> None:
    commands = ("put", "get", "sync", "ls", "watch", "list", "show", "retry", "cancel", "stats", "connections")
    for command in commands:
        outcome = CliRunner().invoke(opsplane, ["ftp", command, "--help"])
        assert outcome.exit_code == 0
        assert f"opsplane ftp {command}" in outcome.output
