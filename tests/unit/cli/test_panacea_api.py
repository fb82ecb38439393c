"""The API that examples/panacea.yaml is written for."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.unit.cli.sample_api import panacea_api

HEADERS = {"X-Session-Id": "a" * 32, "Authorization": "Bearer mock-token-me", "User-Agent": "Panacea"}
FILTERS: dict[str, Any] = {"filters": {}}
CALLS: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "logs/analyze", {"remote_log_bundle_path": "/a.zip", "sfdc_case_no": "01", "is_retry": True}),
    ("GET", "logs/info?bundle_id=838", None),
    ("POST", "logs/severity-count", {"bundle_ids": [838], **FILTERS}),
    ("POST", "logs/histogram", {"bundle_ids": [838], "interval": "1m", **FILTERS}),
    ("POST", "logs/heatmap", {"bundle_ids": [838], "group_by": "component", **FILTERS}),
    ("POST", "logs/search", {"bundle_ids": [838, 839], "page_size": 20, "page_no": 1, **FILTERS}),
    ("GET", "logs/filter-options?bundle_id=838", None),
    ("GET", "events?combo_id=12", None),
    ("GET", "ai/report_summary?bundle_id=838", None),
    ("POST", "ai/ask-ai", {"bundle_id": 838, "conversation_id": "c", "question": "why?"}),
    ("POST", "reports", {"sfdc_case_no": "01", "combo_ids": [1], "page_size": 20, "page_no": 1}),
    ("GET", "log-bundle-paths/by-sfdc-case/012345678", None),
]


@pytest.fixture(scope="module")
def access_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("panacea") / "calls.jsonl"


@pytest.fixture(scope="module")
def url(access_log: Path) -> Iterator[str]:
    with panacea_api(access_log, pace=0.01) as running:
        yield running


@pytest.fixture
def connection(url: str) -> Iterator[http.client.HTTPConnection]:
    opened = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    yield opened
    opened.close()


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, headers: Any = HEADERS
) -> int:
    sent = body if body is None or isinstance(body, str) else json.dumps(body)
    connection.request(method, f"/api/v1/{path}", sent, headers)
    response = connection.getresponse()
    json.loads(response.read())
    return response.status


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_what_is_right_is_answered(connection: http.client.HTTPConnection, method: str, path: str, body: Any) -> None:
    assert ask(connection, method, path, body) == 200
    for name in body or {}:
        assert ask(connection, method, path, {**body, name: None}) == 400, f"without {name}"
    if "?" in path:
        assert ask(connection, method, path.partition("?")[0]) == 400


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "logs/info?bundle_id=873", None, 404),
        ("POST", "logs/severity-count", {"bundle_ids": [838, 970], **FILTERS}, 404),
        ("GET", "logs/info?bundle_id=many", None, 400),
        ("POST", "reports", "{", 400),
        ("POST", "reports", "[]", 400),
        ("GET", "nothing", None, 404),
        ("PUT", "reports", {}, 404),
    ],
)
def test_what_is_wrong_is_refused(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any, status: int
) -> None:
    assert ask(connection, method, path, body) == status


@pytest.mark.parametrize("missing", ["X-Session-Id", "Authorization"])
def test_nobody_is_answered_without_saying_who_it_is(connection: http.client.HTTPConnection, missing: str) -> None:
    headers = {name: value for name, value in HEADERS.items() if name != missing}
    assert ask(connection, "GET", "events?combo_id=1", headers=headers) == 401


def test_calls_come_in_pieces_and_several_at_a_time(url: str, access_log: Path) -> None:
    parts = urlsplit(url)
    head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    first = f"GET /api/v1/events?combo_id=1 HTTP/1.1\r\n{head}\r\n"
    body = '{"é": 1}'.encode()
    second = f"POST /api/v1/reports HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as opened:
        for piece in (first[:30].encode(), first[30:].encode() + second[:-3], second[-3:]):
            opened.sendall(piece)
        received = b""
        while received.count(b"HTTP/1.1") < 2 or not received.endswith(b"}"):
            received += opened.recv(65536)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"400"]
    calls = [json.loads(line) for line in access_log.read_text(encoding="utf-8").splitlines()]
    assert calls[-1].pop("time") >= calls[-2].pop("time")
    said = {"session_id": "a" * 32, "authorization": "Bearer mock-token-me", "user_agent": "Panacea"}
    assert calls[-2:] == [
        {"method": "GET", "path": "/api/v1/events", "query": {"combo_id": "1"}, "body": "", "status": 200, **said},
        {"method": "POST", "path": "/api/v1/reports", "query": {}, "body": '{"é": 1}', "status": 400, **said},
    ]


def test_what_is_no_call_ends_the_connection(url: str) -> None:
    parts = urlsplit(url)
    for sent in (b"nonsense\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"x" * 100_000):
        with (
            socket.create_connection((parts.hostname, parts.port), timeout=20) as opened,
            suppress(ConnectionError),  # what was not read of it is refused with a reset
        ):
            opened.sendall(sent)
            assert opened.recv(1000) == b""
