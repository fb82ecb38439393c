"""A small HTTP server for tests: fixed answers by path, and a record of what was asked."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Answer:
    """What a path answers; `hold` keeps it from answering at all."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    hold: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: `headers` by name in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class LocalServer:
    """A server at 127.0.0.1:`port`; `asked` are the requests that it got."""

    port: int
    answers: dict[str, Answer]
    asked: list[Asked]

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """The URL of a path."""
        return f"http://{host}:{self.port}{path}"


@asynccontextmanager
async def local_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[LocalServer]:
    """Runs a server while the context is open."""
    answers: dict[str, Answer] = {}
    asked: list[Asked] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            sent = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(sent.get("content-length", "0")))
            asked.append(Asked(method, path, sent, body))
            answer = answers.get(path, Answer(status=404))
            if answer.hold:
                await reader.read()
                return
            headers = {"Content-Length": str(len(answer.body)), "Connection": "close", **answer.headers}
            lines = [f"HTTP/1.1 {answer.status} Status", *(f"{name}: {value}" for name, value in headers.items())]
            writer.write("\r\n".join([*lines, "", ""]).encode() + answer.body)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield LocalServer(server.sockets[0].getsockname()[1], answers, asked)
