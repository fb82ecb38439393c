"""A proxy between an FTP client and a server, without TLS, that does to connections what networks do.

    async with FtpProxy(server.host, server.port, data=lambda: Fault(cut_after=50_000)) as proxy:
        ...  # connect to 127.0.0.1, proxy.port

Data connections of passive mode go through it as well, because it announces ports of its own in the server's replies.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_CHUNK = 64 * 1024
_PASV = re.compile(rb"(227 [^\r\n]*?)\d{1,3},\d{1,3},\d{1,3},\d{1,3},(\d{1,3}),(\d{1,3})")
_EPSV = re.compile(rb"(229 [^\r\n]*?\(\|\|\|)(\d{1,5})(\|\))")


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one connection. Bytes are counted over both directions; None for never.

    delay: seconds by which each piece of data comes later.
    rate: bytes a second at most; 0 for any number.
    cut_after: both ends are reset.
    truncate_after: both ends see a proper end, and what still comes is thrown away.
    stall_after: nothing moves any more, and nothing is closed.
    """

    delay: float = 0.0
    rate: float = 0.0
    cut_after: int | None = None
    truncate_after: int | None = None
    stall_after: int | None = None


def no_fault() -> Fault:
    """Nothing happens."""
    return Fault()


class FtpProxy:
    """Listens on `port` of 127.0.0.1 once it is entered. `control` and `data` say what happens to the next connection.

    It may be given another server by setting `server_port`, and other faults, at any time.
    """

    def __init__(
        self,
        server_host: str,
        server_port: int,
        *,
        control: Callable[[], Fault] = no_fault,
        data: Callable[[], Fault] = no_fault,
    ) -> None:
        self.server_host = server_host
        self.server_port = server_port
        self.control = control
        self.data = data
        self.port = 0
        self.connections = 0
        self.data_connections = 0
        self._servers: set[asyncio.Server] = set()
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self.port = await self._listen(self._new_control)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_servers()
        for link in self._links:
            link.cancel()
        if self._links:
            await asyncio.wait(self._links)
        self._close_servers()  # those that were announced meanwhile

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()

    def cut_all(self) -> None:
        """Resets every connection that there is now."""
        for link in self._links:
            link.cancel()

    async def _listen(self, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]) -> int:
        return self._port_of(await self._started(serve))

    async def _started(self, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]) -> asyncio.Server:
        # Known before it serves: who is cancelled while it begins to would lose it, and leave it open.
        server = await asyncio.start_server(serve, "127.0.0.1", 0, start_serving=False)
        self._servers.add(server)
        await server.start_serving()
        return server

    @staticmethod
    def _port_of(server: asyncio.Server) -> int:
        return int(server.sockets[0].getsockname()[1])

    def _new_control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._start(_Link(reader, writer, self.control(), self._rewritten), self.server_port)

    async def _rewritten(self, content: bytes) -> bytes:
        """Replies that announce a port of the server announce one of the proxy's."""
        if found := _EPSV.search(content):
            port = await self._announce(int(found[2]))
            return content[: found.start(2)] + str(port).encode() + content[found.end(2) :]
        if found := _PASV.search(content):
            port = await self._announce(int(found[2]) * 256 + int(found[3]))
            address = b"127,0,0,1,%d,%d" % (port // 256, port % 256)
            return content[: found.end(1)] + address + content[found.end(3) :]
        return content

    async def _announce(self, server_port: int) -> int:
        server: asyncio.Server | None = None

        def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert server is not None
            server.close()
            self._servers.discard(server)
            self.data_connections += 1
            self._start(_Link(reader, writer, self.data(), None), server_port)

        server = await self._started(serve)
        return self._port_of(server)

    def _start(self, link: _Link, server_port: int) -> None:
        task = asyncio.create_task(link.run(self.server_host, server_port))
        self._links.add(task)
        task.add_done_callback(self._links.discard)


class _Cut(Exception):
    """Both ends are to be reset."""


class _Link:
    """A client's connection and the server's that belongs to it."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        fault: Fault,
        rewrite: Callable[[bytes], Awaitable[bytes]] | None,
    ) -> None:
        self._client = (reader, writer)
        self._fault = fault
        self._rewrite = rewrite
        self._moved = 0

    async def run(self, host: str, port: int) -> None:
        """Carries data until both have ended."""
        writers = [self._client[1]]
        try:
            reader, writer = await asyncio.open_connection(host, port)
            writers.append(writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(self._client[0], writer, None))
                group.create_task(self._carry(reader, self._client[1], self._rewrite))
        except BaseException as error:
            for each in writers:
                _reset(each)
            if not isinstance(error, (OSError, ExceptionGroup, asyncio.CancelledError)):
                raise
        finally:
            for each in writers:
                each.close()

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        rewrite: Callable[[bytes], Awaitable[bytes]] | None,
    ) -> None:
        fault = self._fault
        open_end = True
        while content := await reader.read(_CHUNK):
            if fault.delay:
                await asyncio.sleep(fault.delay)
            if fault.rate:
                await asyncio.sleep(len(content) / fault.rate)
            if rewrite is not None:
                content = await rewrite(content)
            limit, after = self._next_fault()
            if limit is not None and self._moved + len(content) >= limit:
                content = content[: max(0, limit - self._moved)]
            self._moved += len(content)
            if open_end:
                writer.write(content)
                await writer.drain()
            if limit is not None and self._moved >= limit:
                if after == "cut":
                    raise _Cut
                if after == "stall":
                    await asyncio.Event().wait()
                if open_end:
                    open_end = False
                    writer.write_eof()
        if open_end:
            with suppress(OSError):
                writer.write_eof()

    def _next_fault(self) -> tuple[int | None, str]:
        fault = self._fault
        for limit, after in ((fault.cut_after, "cut"), (fault.stall_after, "stall"), (fault.truncate_after, "end")):
            if limit is not None:
                return limit, after
        return None, ""


def _reset(writer: asyncio.StreamWriter) -> None:
    found = writer.get_extra_info("socket")
    with suppress(OSError):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
    writer.transport.abort()
