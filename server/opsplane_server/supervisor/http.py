"""A small HTTP server for probes and Prometheus: GET of a few fixed pages, a connection each."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Self

import structlog

log = structlog.get_logger(__name__)

_REQUEST_SECONDS = 10.0
_REQUEST_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Answer:
    """What a page says."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"


Page = Callable[[], Awaitable[Answer]]


class HttpServer:
    """Serves `pages`, by path, on a socket that listens already."""

    def __init__(self, listening: socket.socket, pages: Mapping[str, Page]) -> None:
        self._socket = listening
        self._pages = pages
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, sock=self._socket, limit=_REQUEST_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                method, _, rest = head.partition(b" ")
                answer = await self._answer(method, rest.partition(b" ")[0])
                writer.write(_encode(answer, with_body=method != b"HEAD"))
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # not a caller worth an answer
        except Exception:
            log.exception("status page failed")
        finally:
            writer.close()

    async def _answer(self, method: bytes, target: bytes) -> Answer:
        if method not in (b"GET", b"HEAD"):
            return Answer(b"only GET\n", HTTPStatus.METHOD_NOT_ALLOWED)
        page = self._pages.get(target.partition(b"?")[0].decode("latin-1"))
        if page is None:
            return Answer(f"there is {', '.join(self._pages)}\n".encode(), HTTPStatus.NOT_FOUND)
        return await page()


def _encode(answer: Answer, *, with_body: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (answer.body if with_body else b"")
