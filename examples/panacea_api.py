"""An API to load-test with the users of panacea.yaml: `python examples/panacea_api.py --port 8090`.

It listens on loopback only. It has the twelve endpoints of that file, checks what it is asked, and answers with made-up
data: 401 without a session and a bearer token, 400 for a body or query that lacks something, 404 for every 97th bundle.
With `--access-log FILE` each call is a line there, a JSON object with time, method, path, query, session_id,
authorization, user_agent, body and status. With `--pace 1` each endpoint takes about as long as its like would in a
real API; without it answers at once. HTTP/1.1 with keep-alive on asyncio alone, so that it takes little of the machine
that the users run on, too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TextIO, cast
from urllib.parse import parse_qsl

HOST = "127.0.0.1"
MOST_HEAD_BYTES = 64 * 1024
MOST_BODY_BYTES = 1024 * 1024
UNKNOWN_BUNDLES = 97  # multiples of it
CASE_PATH = "/api/v1/log-bundle-paths/by-sfdc-case/"
SEVERITIES = ("fatal", "error", "warn", "info")


class Refused(Exception):
    """An answer other than success."""

    def __init__(self, status: HTTPStatus, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a call needs in its body and query (one of `any_query`), and how long it takes at pace 1, on average."""

    seconds: float
    fields: Mapping[str, type] | None = None
    any_query: tuple[str, ...] = ()


FILTERED = {"bundle_ids": list, "filters": dict}
ENDPOINTS = {
    "POST /api/v1/logs/analyze": Endpoint(
        0.030, {"remote_log_bundle_path": str, "sfdc_case_no": str, "is_retry": bool}
    ),
    "GET /api/v1/logs/info": Endpoint(0.005, any_query=("bundle_id",)),
    "POST /api/v1/logs/severity-count": Endpoint(0.015, FILTERED),
    "POST /api/v1/logs/histogram": Endpoint(0.025, {**FILTERED, "interval": str}),
    "POST /api/v1/logs/heatmap": Endpoint(0.030, {**FILTERED, "group_by": str}),
    "POST /api/v1/logs/search": Endpoint(0.040, {**FILTERED, "page_size": int, "page_no": int}),
    "GET /api/v1/logs/filter-options": Endpoint(0.005, any_query=("bundle_id",)),
    "GET /api/v1/events": Endpoint(0.010, any_query=("bundle_id", "combo_id")),
    "GET /api/v1/ai/report_summary": Endpoint(0.060, any_query=("bundle_id",)),
    "POST /api/v1/ai/ask-ai": Endpoint(0.080, {"bundle_id": int, "conversation_id": str, "question": str}),
    "POST /api/v1/reports": Endpoint(0.020, {"sfdc_case_no": str, "combo_ids": list, "page_size": int, "page_no": int}),
    f"GET {CASE_PATH}{{id}}": Endpoint(0.010),
}


@dataclass(frozen=True, slots=True)
class Call:
    """A call as it came in; names of headers are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: str


class Api:
    """Answers calls, and writes each to the access log. Times are random around those of the endpoints."""

    def __init__(self, pace: float, log: TextIO | None) -> None:
        self._pace = pace
        self._log = log
        self._random = random.Random(1)  # noqa: S311  # the same course of times each time
        self.calls = 0

    def answer(self, call: Call) -> tuple[HTTPStatus, Any, float]:
        """Status and JSON of a call, and after how many seconds to send them."""
        self.calls += 1
        is_case = call.method == "GET" and call.path.startswith(CASE_PATH)
        endpoint = ENDPOINTS.get(f"GET {CASE_PATH}{{id}}" if is_case else f"{call.method} {call.path}")
        content: Any
        try:
            if endpoint is None:
                raise Refused(HTTPStatus.NOT_FOUND, f"nothing answers {call.method} {call.path}")
            status, content = HTTPStatus.OK, self._content(call, endpoint)
        except Refused as refused:
            status, content = refused.status, {"error": refused.error}
        if self._log is not None:
            self._write(call, status)
        seconds = endpoint.seconds * self._random.uniform(0.6, 1.4) * self._pace if endpoint else 0.0
        return status, content, seconds

    def _content(self, call: Call, endpoint: Endpoint) -> Any:
        if not call.headers.get("x-session-id") or not call.headers.get("authorization", "").startswith("Bearer "):
            raise Refused(HTTPStatus.UNAUTHORIZED, "a session and a bearer token are needed")
        asked = _checked_body(call.body, endpoint.fields) if endpoint.fields else dict(call.query)
        if endpoint.any_query and not any(name in call.query for name in endpoint.any_query):
            raise Refused(HTTPStatus.BAD_REQUEST, f"the query needs {' or '.join(endpoint.any_query)}")
        for bundle in _bundles(asked):
            if bundle % UNKNOWN_BUNDLES == 0:
                raise Refused(HTTPStatus.NOT_FOUND, f"there is no bundle {bundle}")
        return {"of": asked, "counts": dict.fromkeys(SEVERITIES, 7), "total": 28}

    def _write(self, call: Call, status: HTTPStatus) -> None:
        record = {
            "time": time.time(),
            "method": call.method,
            "path": call.path,
            "query": dict(call.query),
            "session_id": call.headers.get("x-session-id", ""),
            "authorization": call.headers.get("authorization", ""),
            "user_agent": call.headers.get("user-agent", ""),
            "body": call.body,
            "status": status.value,
        }
        assert self._log is not None
        self._log.write(json.dumps(record) + "\n")


def _checked_body(body: str, fields: Mapping[str, type]) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except ValueError:
        raise Refused(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
    if not isinstance(asked, dict):
        raise Refused(HTTPStatus.BAD_REQUEST, "the body is no object")
    for name, kind in fields.items():
        if type(asked.get(name)) is not kind:
            raise Refused(HTTPStatus.BAD_REQUEST, f"{name} is needed, a {kind.__name__}")
    return asked


def _bundles(asked: Mapping[str, Any]) -> list[int]:
    found = asked.get("bundle_ids", [asked["bundle_id"]] if "bundle_id" in asked else [])
    try:
        return [int(bundle) for bundle in found]
    except (TypeError, ValueError):
        raise Refused(HTTPStatus.BAD_REQUEST, "a bundle's id is a number") from None


class Connection(asyncio.Protocol):
    """Answers the calls of a connection, one after another."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._received = b""
        self._answering: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps where to answer."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits for the answer any more."""
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        """Calls may come in pieces."""
        self._received += data
        self._go_on()

    def _go_on(self) -> None:
        while self._answering is None and (call := self._next_call()) is not None:
            status, content, seconds = self._api.answer(call)
            if seconds:
                self._answering = asyncio.get_running_loop().call_later(seconds, self._late, status, content)
            else:
                self._send(status, content)

    def _late(self, status: HTTPStatus, content: Any) -> None:
        self._answering = None
        self._send(status, content)
        self._go_on()

    def _next_call(self) -> Call | None:
        """The next call, when all of it is here."""
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            if len(head) > MOST_HEAD_BYTES:
                self._transport.close()
            return None
        request_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        words = request_line.split(" ")
        length = headers.get("content-length", "0")
        if len(words) != 3 or "transfer-encoding" in headers or not (length.isascii() and length.isdigit()):
            self._transport.close()  # where it ends is not known
            return None
        if int(length) > MOST_BODY_BYTES:
            self._transport.close()
            return None
        if len(rest) < int(length):
            return None
        self._received = rest[int(length) :]
        path, _, query = words[1].partition("?")
        return Call(words[0], path, dict(parse_qsl(query)), headers, rest[: int(length)].decode("utf-8", "replace"))

    def _send(self, status: HTTPStatus, content: Any) -> None:
        body = json.dumps(content).encode()
        self._transport.write(
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )


async def serve(port: int, api: Api) -> None:
    """Serves until SIGTERM or Ctrl-C; the first line of standard output says where."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(api), HOST, port, backlog=1024)
    address = f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
    print(f"sample API at {address}", flush=True)  # noqa: T201  # it is a program
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    try:
        await ended.wait()
    finally:
        server.close()


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=8090, help="port on 127.0.0.1; 0 takes a free one (default 8090)")
    parser.add_argument("--access-log", type=Path, help="file to write each call to, a JSON object a line")
    parser.add_argument("--pace", type=float, default=0.0, help="1 for the times of a real API (default 0, at once)")
    options = parser.parse_args()
    try:
        if options.access_log is None:
            asyncio.run(serve(options.port, Api(options.pace, None)))
            return
        with options.access_log.open("w", buffering=1, encoding="utf-8") as log:
            asyncio.run(serve(options.port, Api(options.pace, log)))
    except OSError as error:
        sys.exit(f"the sample API can not start: {error}")


if __name__ == "__main__":
    main()
