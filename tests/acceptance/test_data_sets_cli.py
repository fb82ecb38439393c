"""Data sets on the command line, against a real server and a real ClickHouse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clickhouse_server import ClickHouseServer
from tests.server_process import ServerProcess, running_server
from tests.unit.cli.commands import Outcome, opsplane_command

pytestmark = pytest.mark.slow

SESSIONS = "SELECT number AS id, concat('user-', toString(number)) AS user_id FROM numbers(5000)"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server() as running:
        yield running


async def command(server: ServerProcess, *arguments: str, as_json: bool = False, **variables: str) -> Outcome:
    options = ("-o", "json") if as_json else ()
    return await opsplane_command(*options, "loadtest", *arguments, address=server.address, environment=variables)


async def test_files_and_queries_are_created_shown_and_deleted(
    server: ServerProcess, clickhouse: ClickHouseServer, tmp_path: Path
) -> None:
    variables: dict[str, Any] = {
        "CLICKHOUSE_HOST": clickhouse.host,
        "CLICKHOUSE_PORT": str(clickhouse.port),
        "CLICKHOUSE_USER": clickhouse.user,
        "CLICKHOUSE_PASSWORD": clickhouse.password,
    }
    assert (await command(server, "projects", "create", "shop")).status == 0
    file = tmp_path / "bundles.csv"
    file.write_text("id,name\n838,Größe\n839,\n")
    created = await command(server, "data-sets", "create", "bundles", "-p", "shop", "--file", str(file))
    assert created.status == 0, created.err
    assert "CSV" in created.out
    query = ("data-sets", "create", "sessions", "-p", "shop", "--title", "Sessions", "--query", SESSIONS)
    created = await command(server, *query, "--rows", "300", **variables)
    assert created.status == 0, created.err

    listed = await command(server, "data-sets", "list", "-p", "shop")
    newest, oldest = listed.out.splitlines()[1:]
    assert newest.split()[:2] == ["sessions", "Sessions"]
    assert f"ClickHouse {clickhouse.host}:{clickhouse.port}" in newest
    assert oldest.split()[:4] == ["bundles", "CSV", "2", "id,"]

    shown = await command(server, "data-sets", "show", "shop/sessions")
    assert "300 rows" in shown.out
    assert SESSIONS in shown.out
    whole = await command(server, "data-sets", "show", "sessions", "-p", "shop", as_json=True)
    assert json.loads(whole.out)["clickhouse"]["user"] == clickhouse.user
    assert clickhouse.password not in created.out + shown.out + whole.out + listed.out

    assert (await command(server, "data-sets", "delete", "shop/bundles")).status == 0
    assert (await command(server, "data-sets", "show", "shop/bundles")).status == 1


async def test_sources_are_tried_and_say_what_is_wrong(
    server: ServerProcess, clickhouse: ClickHouseServer, tmp_path: Path
) -> None:
    assert (await command(server, "projects", "create", "tried")).status == 0
    password = tmp_path / "password"
    password.write_text(clickhouse.password + "\n", encoding="utf-8")
    known = ("--host", clickhouse.host, "--port", str(clickhouse.port), "--user", clickhouse.user)
    test = ("data-sets", "test", "-p", "tried")
    tried = await command(
        server, *test, "-q", SESSIONS, *known, "--password-file", str(password), "--rows", "1234", "--samples", "2"
    )
    assert tried.status == 0, tried.err
    lines = tried.out.splitlines()
    assert [line.split() for line in lines[:3]] == [["id", "user_id"], ["0", "user-0"], ["1", "user-1"]]
    assert lines[-1].startswith("1,234 rows in ")
    assert lines[-1].endswith(", 2 shown")

    refused = await command(server, *test, "-q", SESSIONS, *known, CLICKHOUSE_PASSWORD="guessed")
    assert refused.status == 1
    assert refused.err == "Error: ClickHouse refuses: Wrong password for user opsplane (FAILED_PRECONDITION)\n"
    broken = tmp_path / "broken.csv"
    broken.write_text("id,name\n1\n")
    refused = await command(server, *test, "--file", str(broken))
    assert refused.err == (
        "Error: data_set.upload.content: line 2: has 1 values, but the header has 2 names (INVALID_ARGUMENT)\n"
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"a": {"b": [1, null]}, "c": true}\n')
    tried = await command(server, *test, "--file", str(rows))
    assert tried.out.splitlines()[1].split() == ['{"b":', "[1,", "null]}", "true"]
    assert tried.out.splitlines()[-1].startswith("1 row in ")
