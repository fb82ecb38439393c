"""`opsplane logs ship` against a server in memory: every record once, whatever is interrupted."""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from google.rpc import code_pb2
from opsplane.cli.logs_lines import MAX_LINE_BYTES
from opsplane.logingest.v1 import records_pb2

from tests.unit.cli.commands import Outcome, opsplane_command, start
from tests.unit.cli.fake_logs_servicer import FakeLogs, serving_logs
from tests.waiting import until


def lines(numbers: Iterable[int]) -> str:
    return "".join(f"line {number}\n" for number in numbers)


def messages(numbers: Iterable[int]) -> list[str]:
    return [f"line {number}" for number in numbers]


def in_order(servicer: FakeLogs) -> list[str]:
    """All messages by their time: batches are under way side by side."""
    return [record.message for record in sorted(servicer.records, key=lambda record: record.timestamp.ToNanoseconds())]


async def ship(address: str, folder: Path, *arguments: str) -> Outcome:
    """Ships to the end."""
    return await opsplane_command("logs", "ship", *arguments, address=address, environment=places(folder))


def places(folder: Path) -> dict[str, str]:
    """Where the command remembers what it did."""
    return {"OPSPLANE_SHIP_STATE": str(folder / "places"), "OPSPLANE_LOGS_SPOOL": str(folder / "spool")}


@asynccontextmanager
async def following(address: str, folder: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Follows files while the block lasts."""
    process = await start("logs", "ship", "-f", *arguments, address=address, environment=places(folder))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def stop(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Stops a follower as systemd does; its status, and what it said."""
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(60):
        _, said = await process.communicate()
    return process.returncode, said.decode()


async def test_each_run_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_text(lines(range(2500)))
    servicer = FakeLogs()
    async with serving_logs(servicer) as address:
        first = await ship(address, tmp_path, str(file))
        again = await ship(address, tmp_path, str(file))
        with file.open("a") as stream:
            stream.write(lines(range(2500, 2510)) + "no end")
        third = await ship(address, tmp_path, str(file), "--service", "orders", "--host", "web-1", "--level", "warn")
    assert (first.status, again.status, third.status) == (0, 0, 0), first.err
    assert in_order(servicer) == [*messages(range(2510)), "no end"]
    assert first.err.startswith("2,500 records stored, 0 rejected, in ")
    assert again.err.startswith("0 records stored, 0 rejected, in ")
    assert {record.service for record in servicer.records[:2500]} == {"app"}
    record = servicer.records[-1]
    assert (record.service, record.host, record.level) == ("orders", "web-1", records_pb2.LEVEL_WARN)
    assert record.HasField("timestamp")
    assert sorted(len(answer.rejected_records) + answer.stored_count for answer in servicer.answers.values()) == [
        11, 500, 1000, 1000,
    ]  # fmt: skip


async def test_lines_become_records(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_bytes(
        b'\xef\xbb\xbf{"level": "error", "msg": "one", "service": "web", "order": {"id": 42}}\r\n'
        b"two\n  of two\n\nbad \xff NUL \0\n" + "ü".encode() * (MAX_LINE_BYTES // 2 + 1) + b"\nlast\n"
    )
    servicer = FakeLogs()
    async with serving_logs(servicer) as address:
        assert (await ship(address, tmp_path, str(file))).status == 0
    one, two, bad, long, rest, last = sorted(servicer.records, key=lambda record: record.timestamp.ToNanoseconds())
    assert (one.level, one.message, one.service) == (records_pb2.LEVEL_ERROR, "one", "web")
    assert json.loads(one.metadata_json) == {"order": {"id": 42}}
    assert (two.message, two.stack_trace) == ("two", "  of two")
    assert bad.message == "bad \ufffd NUL \ufffd"
    assert long.message + rest.message == "ü" * (MAX_LINE_BYTES // 2 + 1)
    assert last.message == "last"


async def test_a_lost_answer_doubles_nothing(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_text(lines(range(3000)))
    servicer = FakeLogs(losses=["after", "before", "after", "after"])
    async with serving_logs(servicer) as address:
        outcome = await ship(address, tmp_path, str(file))
    assert outcome.status == 0, outcome.err
    assert sorted(servicer.messages) == sorted(messages(range(3000)))
    assert "waiting: the server goes away (CANCELLED)" in outcome.err


async def test_a_program_that_was_killed_doubles_nothing(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_text(lines(range(2500)) + "with\n  a stack\n")
    servicer = FakeLogs(losses=["", "never", "never"])
    async with serving_logs(servicer) as address:
        process = await start("logs", "ship", str(file), address=address, environment=places(tmp_path))
        await until(lambda: len(servicer.records) == 2501)
        process.kill()
        await process.communicate()
        with file.open("a") as stream:
            stream.write("  after\nmore\n")
        outcome = await ship(address, tmp_path, str(file), "-s", "other")
    assert outcome.status == 0, outcome.err
    assert sorted(servicer.messages) == sorted([*messages(range(2500)), "with", "  after", "more"])
    assert re.match("2 records stored, [12],501 stored by an earlier run, 0 rejected", outcome.err)


async def test_rejected_records_are_told_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_text("good\nREJECT this\ngood too\n")
    async with serving_logs(FakeLogs()) as address:
        outcome = await ship(address, tmp_path, str(file))
        as_json = await opsplane_command("-o", "json", "logs", "ship", str(file), address=address)
    assert outcome.status == 3
    told, counted = outcome.err.splitlines()
    assert told == f"{file} at byte 5: rejected: message is not wanted"
    assert counted.startswith("2 records stored, 1 rejected")
    assert json.loads(as_json.out)["rejected"] == 1
    assert as_json.status == 3


async def test_a_refusal_ends_the_command_and_the_next_one_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_text(lines(range(10)))
    servicer = FakeLogs(refuse=code_pb2.UNAUTHENTICATED)
    async with serving_logs(servicer) as address:
        refused = await ship(address, tmp_path, str(file))
        servicer.refuse = 0
        outcome = await ship(address, tmp_path, str(file))
    assert refused.status == 1
    assert "Error: no token; give a token with OPSPLANE_TOKEN (UNAUTHENTICATED)" in refused.err
    assert outcome.status == 0
    assert servicer.messages == messages(range(10))


async def test_following_through_rotation_and_truncation(tmp_path: Path) -> None:
    file, other = tmp_path / "app.log", tmp_path / "other.log"
    servicer = FakeLogs()
    async with (
        serving_logs(servicer) as address,
        following(address, tmp_path, str(file), str(other)) as process,
        asyncio.timeout(60),
    ):
        file.write_text("first\n  with a second line\n")
        await until(lambda: servicer.messages == ["first"])
        with file.open("a") as stream:
            stream.write("half of")
            stream.flush()
            other.write_text("other\n")
            await until(lambda: "other" in servicer.messages)
            assert len(servicer.messages) == 2
            stream.write(" a line\n")
            stream.flush()
            await until(lambda: "half of a line" in servicer.messages)

            file.rename(tmp_path / "app.log.1")
            stream.write("late\n")
        file.write_text("new\n")
        await until(lambda: servicer.messages[-1] == "new")
        assert servicer.messages[-2] == "late"

        file.write_text("cut\n")
        await until(lambda: servicer.messages[-1] == "cut")
        status, said = await stop(process)
    assert status == 0, said
    assert servicer.messages == ["first", "other", "half of a line", "late", "new", "cut"]
    assert servicer.records[0].stack_trace == "  with a second line"
    assert said.startswith("6 records stored, 0 rejected")


async def test_what_was_written_before_a_rotation_is_shipped_after_it(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_text(lines(range(5)))
    servicer = FakeLogs()
    async with serving_logs(servicer) as address:
        await ship(address, tmp_path, str(file))
        with file.open("a") as stream:
            stream.write(lines(range(5, 8)))
        file.rename(tmp_path / "app.log.1")
        file.write_text(lines(range(8, 10)))
        rotated = await ship(address, tmp_path, str(file))
        (tmp_path / "app.log.1").unlink()
        file.unlink()
        file.write_text("a new one\n")
        lost = await ship(address, tmp_path, str(file))
    assert (rotated.status, lost.status) == (0, 0)
    assert servicer.messages == [*messages(range(10)), "a new one"]
    assert "is not there any more" not in rotated.err
    assert "the file that was shipped up to byte 14 is not there any more" in lost.err


async def test_following_goes_on_after_the_server_was_away(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_text(lines(range(3)))
    servicer = FakeLogs(losses=["after", "before", "before"])
    async with serving_logs(servicer) as address, following(address, tmp_path, str(file)) as process:
        await until(lambda: len(servicer.records) == 3)
        with file.open("a") as stream:
            stream.write("more\n")
        await until(lambda: len(servicer.records) == 4)
        assert (await stop(process))[0] == 0
    assert servicer.messages == [*messages(range(3)), "more"]


async def test_a_file_is_shipped_by_one_program_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_text("one\n")
    servicer = FakeLogs()
    async with serving_logs(servicer) as address, following(address, tmp_path, str(file)):
        await until(lambda: servicer.messages == ["one"])
        outcome = await ship(address, tmp_path, str(file))
    assert outcome.status == 1
    assert "is shipped by another program already" in outcome.err


async def test_a_damaged_place_is_said_and_nothing_is_shipped_twice(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_text("one\n")
    servicer = FakeLogs()
    async with serving_logs(servicer) as address:
        await ship(address, tmp_path, str(file))
        [place] = (tmp_path / "places").glob("*.json")
        place.write_text("{")
        outcome = await ship(address, tmp_path, str(file))
    assert outcome.status == 1
    assert f"{place} is damaged" in outcome.err
    assert servicer.messages == ["one"]


async def test_standard_input(tmp_path: Path) -> None:
    servicer = FakeLogs()
    async with serving_logs(servicer) as address, asyncio.timeout(60):
        process = await start(
            "logs", "ship", "-", "-s", "orders", address=address, environment=places(tmp_path),
            stdin=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(b'{"level":"warn","msg":"one","id":1}\ntwo\n  of two\n')
        await until(lambda: servicer.messages == ["one", "two"])  # before there is an end
        _, said = await process.communicate(b"REJECT\nthree")
    assert process.returncode == 3, said
    assert servicer.messages == ["one", "two", "three"]
    assert servicer.records[1].stack_trace == "  of two"
    assert {record.service for record in servicer.records} == {"orders"}
    assert b"3 records stored, 1 rejected" in said


async def test_standard_input_is_spooled_while_the_server_is_away(tmp_path: Path) -> None:
    process = await start(
        "logs", "ship", "-", "-s", "orders", address="127.0.0.1:1", environment=places(tmp_path),
        stdin=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(b"one\ntwo\n")
    await process.stdin.drain()
    assert process.stderr is not None
    async with asyncio.timeout(60):
        await process.stderr.readline()  # it says that it waits for the server
        process.send_signal(signal.SIGTERM)
        _, said = await process.communicate()
    assert process.returncode == 1
    assert b"2 records are in " in said, said


@pytest.mark.parametrize(
    "arguments",
    [
        ("ship",),
        ("ship", "/no/such/file"),
        ("ship", "-", "/etc/hostname"),
        ("ship", "-f", "-"),
        ("ship", "-f", "/etc"),
        ("ship", "--level", "loud", "/etc/hostname"),
    ],
)
async def test_wrong_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    outcome = await opsplane_command("logs", *arguments)
    assert outcome.status == 2
    assert "Error: " in outcome.err
