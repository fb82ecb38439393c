"""`opsplane logs search`, `tail` and `stats` against a server in memory."""

import asyncio
import json
import signal
from datetime import UTC, datetime, timedelta

import pytest
from opsplane.cli.logs_view import moment
from opsplane.logingest.v1 import logingest_pb2, queries_pb2, records_pb2

from tests.unit.cli.commands import opsplane_command, start
from tests.unit.cli.fake_logs_servicer import FakeLogs, entry, serving_logs


async def test_search_shows_all_pages_newest_first() -> None:
    async with serving_logs(FakeLogs()) as address:
        outcome = await opsplane_command("logs", "search", address=address)
    assert outcome.status == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == (
        f"{moment(entry(4).record.timestamp)} INFO  orders  line 4 \N{REPLACEMENT CHARACTER}[31m"
        '  http_status=500  duration_ms=1.5  order={"id": 42}  text=a b'
    )
    assert [line.split("  line ")[1][0] for line in lines] == list("43210")
    assert outcome.err == ""


async def test_search_tells_how_far_back_it_has_looked() -> None:
    servicer = FakeLogs(found=1000)
    async with serving_logs(servicer) as address:
        outcome = await opsplane_command("logs", "search", "--limit", "3", "--full", address=address)
    assert outcome.out.count("line ") == 3
    assert outcome.out.count("entry_id=e") == 3
    assert outcome.out.count("Traceback ...") == 3
    back_to = moment(entry(997).record.timestamp)
    assert outcome.err == f"there may be more: searched back to {back_to}; give a higher --limit, or --until\n"
    assert [search.page_size for search in servicer.searches] == [3, 3, 1]


async def test_search_as_json_is_a_line_a_record() -> None:
    async with serving_logs(FakeLogs()) as address:
        outcome = await opsplane_command("-o", "json", "logs", "search", address=address)
    found = [json.loads(line) for line in outcome.out.splitlines()]
    assert [each["entryId"] for each in found] == ["e4", "e3", "e2", "e1", "e0"]
    assert found[0]["record"]["level"] == "LEVEL_INFO"


async def test_search_sends_what_was_asked_for() -> None:
    servicer = FakeLogs()
    async with serving_logs(servicer) as address:
        outcome = await opsplane_command(
            "logs", "search", "time*", "two words", "-s", "orders", "-s", "web", "--level", "WARN",
            "--only", "error", "--only", "fatal", "--trace", "t", "--user", "u",
            "--meta", "order.id=42", "--meta", "a=", "--filter", "http_status >= 500",
            "--since", "1h30m", "--until", "2999-01-01T00:00:00Z",
            address=address,
        )  # fmt: skip
    assert outcome.status == 0, outcome.err
    request = servicer.searches[0]
    assert request.query == queries_pb2.LogQuery(
        text='time* "two words"',
        services=["orders", "web"],
        min_level=records_pb2.LEVEL_WARN,
        levels=[records_pb2.LEVEL_ERROR, records_pb2.LEVEL_FATAL],
        trace_id="t",
        user_id="u",
        metadata={"order.id": "42", "a": ""},
        filter="http_status >= 500",
    )
    ago = datetime.now(UTC) - request.start_time.ToDatetime(tzinfo=UTC)
    assert timedelta(minutes=90) <= ago < timedelta(minutes=95)
    assert request.end_time.ToDatetime(tzinfo=UTC) == datetime(2999, 1, 1, tzinfo=UTC)


async def test_tail_goes_on_after_the_last_record_when_its_stream_is_lost() -> None:
    servicer = FakeLogs(tail_losses=2)
    async with serving_logs(servicer) as address, asyncio.timeout(60):
        process = await start("logs", "tail", "-n", "7", "--level", "error", address=address)
        assert process.stdout is not None
        shown = [(await process.stdout.readline()).decode() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, said = await process.communicate()
    assert process.returncode == 130
    assert [line.split("  line ")[1][0] for line in shown] == ["0", "1", "2"]
    assert [(tail.backlog, tail.cursor) for tail in servicer.tails] == [(7, ""), (0, "1"), (0, "2")]
    assert {tail.query.min_level for tail in servicer.tails} == {records_pb2.LEVEL_ERROR}
    assert said.decode().count("connection lost, reconnecting") == 2
    assert "7 records were left out here; search finds them" in said.decode()


async def test_tail_as_json_is_a_line_a_record() -> None:
    async with serving_logs(FakeLogs()) as address, asyncio.timeout(60):
        process = await start("-o", "json", "logs", "tail", address=address)
        assert process.stdout is not None
        assert json.loads(await process.stdout.readline())["entryId"] == "e0"
        process.send_signal(signal.SIGINT)
        await process.communicate()


async def test_stats() -> None:
    servicer = FakeLogs()
    async with serving_logs(servicer) as address:
        outcome = await opsplane_command(
            "logs", "stats", "-s", "orders", "--since", "2023-11-14T22:13:20Z", "--limit", "2", address=address
        )
        as_json = await opsplane_command("-o", "json", "logs", "stats", address=address)
    assert outcome.status == 0, outcome.err
    rows = [line.split() for line in outcome.out.splitlines() if line]
    assert rows[0] == ["records", "12,034"]
    assert ["service", "records", "info", "error"] in rows
    assert ["orders", "12,000", "12,000"] in rows
    assert ["web", "\N{REPLACEMENT CHARACTER}[31m", "34", "34"] in rows
    assert outcome.err == "there are 3 services: give a higher --limit\n"
    assert json.loads(as_json.out)["totalCount"] == "12034"
    assert servicer.statistics == logingest_pb2.GetStatsRequest(max_services=20)


@pytest.mark.parametrize(
    "arguments",
    [
        ("search", "--since", "soon"),
        ("search", "--since", "1h", "--until", "2h"),
        ("search", "--level", "loud"),
        ("search", "--meta", "key"),
        ("search", "--meta", "=value"),
        ("tail", "-n", "1001"),
        ("stats", "--since", "1h", "--until", "2h"),
    ],
)
async def test_wrong_usage_is_status_2_before_any_call(arguments: tuple[str, ...]) -> None:
    outcome = await opsplane_command("logs", *arguments)
    assert outcome.status == 2
    assert "Error: " in outcome.err


async def test_every_command_has_help_with_an_example() -> None:
    for command in ("ship", "search", "tail", "stats"):
        outcome = await opsplane_command("logs", command, "--help")
        assert outcome.status == 0
        assert f"opsplane logs {command}" in outcome.out
