"""An API under test that answers everything and keeps what it was asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it came; `user` is its header `X-User`."""

    method: str
    path: str
    user: str
    session: str
    authorization: str
    body: str


class RecordingApi:
    """Where it is, and what it was asked in the order in which it came."""

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}"
        self.calls: list[Call] = []


@contextmanager
def recording_api() -> Iterator[RecordingApi]:
    """A server of this process, for the time of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            """Keeps the call; every answer is the same."""
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            header = self.headers.get
            user, session, authorization = header("X-User", ""), header("X-Session-Id", ""), header("Authorization", "")
            api.calls.append(Call(self.command, self.path, user, session, authorization, body))
            content = json.dumps({"data": {"token": f"of {user}"}}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False
        api = RecordingApi(server.server_port)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield api
        finally:
            server.shutdown()
            thread.join()
