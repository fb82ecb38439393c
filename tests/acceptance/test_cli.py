"""The command line against a real server, a real load generator and a real API under test."""

from __future__ import annotations

import asyncio
import json
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server_process import ServerProcess, kill, running_server
from tests.unit.cli.commands import Outcome, opsplane_command, start
from tests.unit.cli.sample_api import sample_api

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "petstore.yaml"
CANCELLED_STATUS = 3
LEFT_STATUS = 130


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server("--workers", "2") as running:
        yield running


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    with sample_api() as url:
        yield url


@pytest.fixture(scope="module")
def document(api: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("openapi") / "openapi.json"
    with urllib.request.urlopen(f"{api}/openapi.json", timeout=20) as response:  # noqa: S310
        file.write_bytes(response.read())
    return file


async def analyzed(server: ServerProcess, document: Path, project: str) -> None:
    outcome = await command(server, "analyze", str(document), "-p", project, "--create-project")
    assert outcome.status == 0, outcome.err


async def command(server: ServerProcess, *arguments: str) -> Outcome:
    return await opsplane_command("loadtest", *arguments, address=server.address)


async def answer(server: ServerProcess, *arguments: str) -> Any:
    outcome = await opsplane_command("-o", "json", "loadtest", *arguments, address=server.address)
    assert outcome.status == 0, outcome.err
    return json.loads(outcome.out)


async def line_with(process: asyncio.subprocess.Process, part: str) -> str:
    """The next line of the process's output that holds `part`."""
    assert process.stdout is not None
    async with asyncio.timeout(60):
        async for line in process.stdout:
            if part in line.decode():
                return line.decode()
    raise AssertionError(f"it ended without {part!r}")


async def test_from_a_document_to_stored_results(server: ServerProcess, document: Path) -> None:
    outcome = await command(server, "analyze", str(document), "-p", "shop", "--create-project")
    assert outcome.status == 0, outcome.err
    assert "GET     /pets/{petId}" in outcome.out

    tagged = await answer(server, "endpoints", "-p", "shop", "--tag", "pets", "--method", "post")
    assert [endpoint["operationId"] for endpoint in tagged["endpoints"]] == ["createPet"]

    outcome = await command(
        server, "run", "-p", "shop", "-e", "GET /pets", "-e", "getPet", "--vus", "2", "--duration", "3s",
        "--think-time", "5ms", "--target-errors", "1%", "--run-id", "first", "--title", "First",
    )  # fmt: skip
    assert outcome.status == 0, outcome.out + outcome.err
    assert sum("tps " in line and "vus " in line for line in outcome.out.splitlines()) >= 2
    assert "COMPLETED  PASSED" in outcome.out

    stored = await answer(server, "show", "shop/first")
    assert stored["title"] == "First"
    total = int(stored["results"]["total"]["requests"])
    assert total > 0
    assert total == sum(int(part["stats"]["requests"]) for part in stored["results"]["endpoints"])
    assert {part["name"] for part in stored["results"]["endpoints"]} == {"GET /pets", "GET /pets/{petId}"}

    runs = await answer(server, "history", "-p", "shop", "--full")
    assert [run["name"] for run in runs["runs"]] == ["projects/shop/runs/first"]
    assert f"{total:,}" in (await command(server, "history")).out

    script = await command(server, "script", "shop/first")
    assert "export const options" in script.out

    logs = await command(server, "logs", "shop/first")
    assert "run ended: COMPLETED" in logs.out
    assert (await answer(server, "jobs")) == {}

    assert (await command(server, "delete", "shop/first")).status == 0
    assert (await command(server, "show", "shop/first")).status == 1


async def test_a_missed_target_is_status_3(server: ServerProcess, document: Path) -> None:
    await analyzed(server, document, "missed")
    outcome = await command(
        server, "run", "-p", "missed", "-e", "getAdoptionReport", "--duration", "2s", "--target-p95", "1ms"
    )
    assert outcome.status == 3, outcome.err
    assert "missed: " in outcome.out
    assert "FAILED" in outcome.out


async def test_a_refusal_names_the_field(server: ServerProcess, document: Path) -> None:
    await analyzed(server, document, "refused")
    outcome = await command(server, "run", "-p", "refused", "-e", "listPets", "--base-url", "not a url")
    assert outcome.status == 1
    assert outcome.err.startswith("Error: run.base_url: ")
    assert len(outcome.err.splitlines()) == 1


async def test_the_script_of_the_example_file(server: ServerProcess, document: Path) -> None:
    await analyzed(server, document, "example")
    outcome = await command(server, "script", "-p", "example", "-f", str(EXAMPLE))
    assert outcome.status == 0, outcome.err
    for name in ("browse", "open_pet", "offers"):
        assert name in outcome.out


async def test_ctrl_c_cancels_a_run_and_shows_what_was_measured(server: ServerProcess, document: Path) -> None:
    await analyzed(server, document, "cancelled")
    process = await start(
        "loadtest", "run", "-p", "cancelled", "-e", "listPets", "--duration", "10m", "--run-id", "long",
        address=server.address,
    )  # fmt: skip
    try:
        await line_with(process, "tps ")
        process.send_signal(signal.SIGINT)
        await line_with(process, "CANCELLED")
        async with asyncio.timeout(60):
            await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == CANCELLED_STATUS
    stored = await answer(server, "show", "cancelled/long")
    assert stored["state"] == "RUN_STATE_CANCELLED"
    assert int(stored["results"]["total"]["requests"]) > 0


async def test_ctrl_c_leaves_a_watched_run_alone(server: ServerProcess, document: Path) -> None:
    await analyzed(server, document, "left")
    options = ("run", "-p", "left", "-e", "listPets", "--duration", "10m", "--think-time", "100ms", "--run-id", "long")
    assert (await command(server, *options, "--detach")).status == 0
    process = await start("loadtest", "watch", "left/long", address=server.address)
    await line_with(process, "tps ")
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(60):
        _, said = await process.communicate()
    assert process.returncode == LEFT_STATUS
    assert b"the run goes on" in said
    assert (await answer(server, "show", "left/long"))["state"] == "RUN_STATE_RUNNING"
    assert (await command(server, "cancel", "left/long")).status == 0


async def test_a_watcher_misses_no_window_when_its_worker_is_killed(server: ServerProcess, document: Path) -> None:
    await analyzed(server, document, "killed")
    options = ("run", "-p", "killed", "-e", "listPets", "--duration", "8s", "--think-time", "20ms", "--run-id", "long")
    assert (await command(server, *options, "--detach")).status == 0
    watcher = await start("-o", "json", "loadtest", "watch", "killed/long", address=server.address)
    lines = [await line_with(watcher, '"window"') for _ in range(2)]
    before = server.workers()
    for pid in before:  # one of them serves the watcher
        kill(pid)
    async with asyncio.timeout(120):
        out, said = await watcher.communicate()
    lines += out.decode().splitlines()
    seen = [json.loads(line)["window"].get("index", "0") for line in lines if '"window"' in line]
    assert b"reconnecting" in said

    replay = await opsplane_command("-o", "json", "loadtest", "watch", "killed/long", address=server.address)
    updates = [json.loads(line) for line in replay.out.splitlines()]
    assert seen == [update["window"].get("index", "0") for update in updates if "window" in update]
    assert len(seen) == len(set(seen))
