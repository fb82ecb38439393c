"""The command line of logs against a real server: shipped, found, followed, counted, whatever is killed meanwhile."""

from __future__ import annotations

import asyncio
import functools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server_process import ServerProcess, kill, running_server
from tests.unit.cli.commands import Outcome, opsplane_command, start
from tests.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server("--workers", "2") as running:
        yield running


async def logs(server: ServerProcess, *arguments: str, folder: Path | None = None) -> Outcome:
    environment = {} if folder is None else {"OPSPLANE_SHIP_STATE": str(folder / "places")}
    return await opsplane_command("logs", *arguments, address=server.address, environment=environment)


async def found(server: ServerProcess, *arguments: str) -> list[dict[str, Any]]:
    outcome = await opsplane_command(
        "-o", "json", "logs", "search", "--limit", "100000", *arguments, address=server.address
    )
    assert outcome.status == 0, outcome.err
    return [json.loads(line)["record"] for line in outcome.out.splitlines()]


async def test_from_a_file_to_a_search(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_text(
        '{"level": "warn", "msg": "stock is low", "order": {"id": 42}, "trace_id": "t-1", "status": 503}\n'
        "ERROR it failed\nTraceback (most recent call last):\n  ...\nKeyError: 'x'\n"
        "an old one\n"
        '{"time": "1999-12-31T00:00:00Z", "msg": "from another age"}\n'
    )
    shipped = await logs(server, "ship", str(file), "-s", "first", folder=tmp_path)
    assert shipped.status == 3, shipped.err
    assert "timestamp is older than the records that are kept" in shipped.err
    assert "3 records stored, 1 rejected" in shipped.err

    assert len(await found(server, "-s", "first")) == 3
    [low] = await found(
        server, "-s", "first", "--meta", "order.id=42", "--trace", "t-1", "--filter", "http_status >= 500"
    )
    assert low["message"] == "stock is low"
    [failed] = await found(server, "-s", "first", "KeyError", "--level", "error")
    assert failed["errorType"] == "KeyError"
    shown = await logs(server, "search", "-s", "first", "--only", "info", "--full")
    assert "INFO  first  an old one" in shown.out
    assert await found(server, "-s", "first", "--since", "2999-01-01") == []

    async def counted() -> bool:
        outcome = await opsplane_command("-o", "json", "logs", "stats", "-s", "first", address=server.address)
        return bool(json.loads(outcome.out).get("totalCount") == "3")

    await until(counted)


async def test_a_follower_sees_what_another_ships(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.touch()
    environment = {"OPSPLANE_SHIP_STATE": str(tmp_path / "places")}
    tail = await start("-o", "json", "logs", "tail", "-s", "followed", "-n", "0", address=server.address)
    shipper = await start(
        "logs", "ship", "-f", str(file), "-s", "followed", address=server.address, environment=environment
    )
    seen: list[str] = []

    async def watch() -> None:
        assert tail.stdout is not None
        async for line in tail.stdout:
            seen.append(json.loads(line)["record"]["message"])  # noqa: PERF401  # it is read while it grows

    watching = asyncio.create_task(watch())
    try:
        with file.open("a") as stream:

            def first_seen() -> bool:
                # The follower begins at a moment of its own: only what comes later is for it.
                stream.write("hello\n")
                stream.flush()
                return "hello" in seen

            await until(first_seen)
            stream.write("".join(f"line {number}\n" for number in range(500)))
            stream.flush()
            await until(lambda: "line 499" in seen)
            for pid in server.workers():  # each serves one of the two, or both
                kill(pid)
            stream.write("".join(f"line {number}\n" for number in range(500, 1000)))
            stream.flush()
            await until(lambda: "line 999" in seen, timeout=120)
        shipper.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            _, said = await shipper.communicate()
        assert shipper.returncode == 0, said
    finally:
        for process in (tail, shipper):
            if process.returncode is None:
                process.kill()
                await process.wait()
        await watching
    lines = [message for message in seen if message.startswith("line ")]
    assert sorted(lines) == sorted(f"line {number}" for number in range(1000))
    assert len([record for record in await found(server, "-s", "followed") if record["message"] in lines]) == 1000


async def test_a_shipper_and_its_server_are_killed_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    count = 60_000
    file = tmp_path / "app.log"
    file.write_text("".join(f"line {number}\n" for number in range(count)))
    environment = {"OPSPLANE_SHIP_STATE": str(tmp_path / "places")}
    place = tmp_path / "places"
    with running_server() as server:
        for victim in ("shipper", "shipper", "worker"):
            before = remembered(place)
            process = await start(
                "logs", "ship", str(file), "-s", "killed", address=server.address, environment=environment
            )

            await until(functools.partial(has_changed, place, before))
            if victim == "shipper":
                process.kill()
            else:
                for pid in server.workers():
                    kill(pid)
            async with asyncio.timeout(120):
                await process.communicate()
        last = await logs(server, "ship", str(file), "-s", "killed", folder=tmp_path)
        assert last.status == 0, last.err
        messages = [record["message"] for record in await found(server, "-s", "killed")]
    assert len(messages) == count
    assert set(messages) == {f"line {number}" for number in range(count)}


def remembered(folder: Path) -> list[str]:
    """What the shipper wrote down."""
    return [file.read_text() for file in folder.glob("*.json")]


def has_changed(folder: Path, before: list[str]) -> bool:
    return remembered(folder) != before
