"""A connection through the proxy: a client, the node it was given, and what flows between the two."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Protocol, cast

from opsplane_server.instances.providers.local.proxy.routes import Target

OPENING_LIMIT = 16 * 1024
"""Bytes of a client that are kept to be said again to another node."""

WAIT_SECONDS = 10.0
"""How long a client waits for a node."""

_AGAIN_SECONDS = 0.02
_CANCEL_CODE = (80877102).to_bytes(4, "big")  # of PostgreSQL's CancelRequest, after its length


class Side(asyncio.Protocol):
    """One end of a pipe: hands on what arrives, and holds the other end back while this one can take no more."""

    def __init__(self, said: Callable[[Side, bytes], None], lost: Callable[[Side], None]) -> None:
        self._said = said
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self.other: Side | None = None

    @property
    def open(self) -> bool:
        """Whether what is written can still arrive."""
        return self._transport is not None and not self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Sends, or forgets what nobody can get any more."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def hold(self, held: bool) -> None:
        """Stops reading, or goes on."""
        if self._transport is not None and not self._transport.is_closing():
            if held:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def close(self) -> None:
        """Closes after everything is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Closes now."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """No delay for small messages, and word from the kernel when the other end is gone."""
        self._transport = cast(asyncio.Transport, transport)
        connection = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it may be gone already
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        """Hands it on."""
        self._said(self, data)

    def eof_received(self) -> bool:
        """Databases know no connections that are closed by half: the transport closes."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Hands it on."""
        self._lost(self)

    def pause_writing(self) -> None:
        """This end is full."""
        if self.other is not None:
            self.other.hold(True)

    def resume_writing(self) -> None:
        """This end has room again."""
        if self.other is not None:
            self.other.hold(False)


class Switch(Protocol):
    """Where pipes get their nodes from."""

    async def connect(self, side: Callable[[], Side], deadline: float) -> tuple[Target, Side] | None:
        """A node and the connection to it; None if there was none until `deadline`, in seconds of the loop."""
        ...

    async def cancel(self, request: bytes) -> None:
        """Hands a request to cancel a statement to the nodes."""
        ...

    def ended(self, pipe: Pipe) -> None:
        """The client has gone."""
        ...


class Pipe(Side):
    """The client's side. Finds it a node, and another one as long as none has answered a single byte: until then
    no node has done anything for the client. A node is asked for when the client has spoken, so that a mere probe
    of the port costs nothing; or at once where the server `greets`.
    """

    def __init__(self, switch: Switch, *, greets: bool) -> None:
        super().__init__(self._client_said, self._client_lost)
        self._switch = switch
        self._greets = greets
        self._opening: bytes | None = b""  # all that the client said, while it may have to be said again
        self._search: asyncio.Task[None] | None = None
        self._deadline: float | None = None
        self.target: Target | None = None
        """The node, None while one is looked for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client."""
        super().connection_made(transport)
        if self._greets:
            self._find()

    def _client_said(self, _: Side, data: bytes) -> None:
        if self._opening is not None:
            self._opening += data
        if self.other is not None:
            self.other.write(data)
            self._bound()
        elif self._search is None:
            self._find()
        else:
            self.hold(len(self._opening or b"") > OPENING_LIMIT)

    def _client_lost(self, _: Side) -> None:
        if self._search is not None:
            self._search.cancel()
        if self.other is not None:
            self.other.close()
        self._switch.ended(self)

    def _find(self) -> None:
        again = self._deadline is not None
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
        opening = self._opening or b""
        if opening[4:8] == _CANCEL_CODE and not self._greets:
            self._search = asyncio.create_task(self._pass_cancel(opening))
        else:
            self._search = asyncio.create_task(self._connect(self._deadline, _AGAIN_SECONDS if again else 0.0))

    async def _pass_cancel(self, request: bytes) -> None:
        await self._switch.cancel(request)
        self.abort()

    async def _connect(self, deadline: float, pause: float) -> None:
        await asyncio.sleep(pause)
        found = await self._switch.connect(lambda: Side(self._node_said, self._node_lost), deadline)
        self._search = None
        if found is None:
            self.abort()
            return
        self.target, self.other = found
        self.other.other = self
        self.other.write(self._opening or b"")
        self._bound()
        self.hold(False)
        if not self.other.open:
            self._node_lost(self.other)

    def _node_said(self, node: Side, data: bytes) -> None:
        self._opening = None
        self.write(data)

    def _node_lost(self, node: Side) -> None:
        if node is not self.other:  # not yet, or no longer
            return
        self.target = self.other = None
        if not self.open:
            return
        if self._opening is None:
            self.close()
        else:
            self.hold(False)
            self._find()

    def _bound(self) -> None:
        if self._opening is not None and len(self._opening) > OPENING_LIMIT:
            self._opening = None
