"""The control connection: commands out, replies in, and an exact count of replies that are still to come."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import cast

from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, TransferFailure
from opsplane_server.ftptransfer.sessions.replies import MalformedReply, Reply, ReplyParser
from opsplane_server.ftptransfer.sessions.tls import TlsClient, tls_failure
from opsplane_server.ftptransfer.sessions.watchdog import Watchdog


class ControlChannel(asyncio.Protocol):
    """A control connection over a transport that is made with it. One task at a time may use it.

    Every method that waits raises TransferFailure. `usable` tells whether its state is known: after a cancellation or
    a failure in the middle of a command it is not, and the connection is to be thrown away.
    """

    def __init__(self, encoding: str, reply_timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._encoding = encoding
        self._reply_timeout = self._allowed = reply_timeout
        self._parser = ReplyParser(encoding)
        self._replies: deque[Reply] = deque()
        self._expected = 1  # the greeting, for which nobody asks
        self._waiter: asyncio.Future[Reply] | None = None
        self._watchdog = Watchdog(self._loop)
        self._transport: asyncio.Transport | None = None
        self._failure: TransferFailure | None = None
        self._progress: Callable[[], bool] | None = None
        self._closed = self._loop.create_future()
        self.on_lost: Callable[[], None] | None = None

    @property
    def usable(self) -> bool:
        """Whether it is open, and every reply to every command was read."""
        return self._failure is None and not self._expected and not self._replies and self._parser.clean

    @property
    def peer(self) -> tuple[str, int]:
        """The server's address and port; of IPv6 with its zone."""
        return self._address("peername")

    @property
    def local(self) -> tuple[str, int]:
        """Our address and port."""
        return self._address("sockname")

    @property
    def tls(self) -> ssl.SSLObject | None:
        """The TLS of the connection; None without."""
        assert self._transport is not None
        return cast("ssl.SSLObject | None", self._transport.get_extra_info("ssl_object"))

    async def command(self, line: str) -> Reply:
        """Sends a command and returns its final reply, whatever it says."""
        self.send(self.encode(line))
        return await self.final()

    def encode(self, line: str) -> bytes:
        """A command as bytes. Raises INVALID_CONFIG for what cannot be sent, so that nothing of it ever is."""
        try:
            data = line.encode(self._encoding, "surrogateescape")
        except UnicodeEncodeError as error:
            message = f"the path has characters that {self._encoding} does not have"
            raise TransferFailure(ErrorReason.PATH, message) from error
        if b"\r" in data or b"\n" in data or b"\0" in data:
            raise TransferFailure(ErrorReason.PATH, "a path must not have line breaks or NUL")
        return data + b"\r\n"

    def send(self, data: bytes, commands: int = 1) -> None:
        """Sends what `encode` made of one or more commands. Each must have its final reply read."""
        if self._failure is not None:
            raise self._failure
        assert self._transport is not None
        self._expected += commands
        self._transport.write(data)

    async def final(self) -> Reply:
        """The next final reply."""
        while (reply := await self.reply()).preliminary:
            pass
        return reply

    async def reply(self, *, progress: Callable[[], bool] | None = None, timeout: float | None = None) -> Reply:
        """The next reply. Where it does not come in time `progress` is asked whether to wait longer.

        `timeout` in seconds; None for the time that every reply has.
        """
        if not self._replies:
            if self._failure is not None:
                raise self._failure
            self._waiter = self._loop.create_future()
            self._progress = progress
            self._allowed = self._reply_timeout if timeout is None else timeout
            self._watchdog.start(self._allowed, self._late)
            try:
                await self._waiter
            finally:
                self._waiter = None
                self._watchdog.stop()
        reply = self._replies.popleft()
        if not reply.preliminary:
            self._expected -= 1
        return reply

    def hasten(self, seconds: float) -> None:
        """Waits no longer than this for the reply that is waited for: there is reason to doubt that it will come."""
        if self._waiter is not None and seconds < self._reply_timeout:
            self._progress = None
            self._allowed = seconds
            self._watchdog.start(seconds, self._late)

    async def start_tls(self, client: TlsClient) -> None:
        """Goes on under TLS, from the next byte on."""
        assert self._transport is not None
        if not self._parser.clean or self._replies:
            # Somebody in between could slip replies in before TLS protects them.
            raise self._fail(TransferFailure(ErrorReason.TLS, "the server sent more before TLS began"))
        try:
            transport = await self._loop.start_tls(
                self._transport,
                self,
                client.context,
                server_hostname=client.server_name,
                ssl_handshake_timeout=self._reply_timeout,
                ssl_shutdown_timeout=1.0,
            )
        except (ssl.SSLError, ssl.CertificateError, OSError) as error:
            raise self._fail(tls_failure(error)) from error
        assert transport is not None
        self._transport = transport

    def quit(self) -> None:
        """Says good-bye and closes it, without waiting for the answer."""
        if self.usable:
            assert self._transport is not None
            self._transport.write(b"QUIT\r\n")
            if self.tls is None:
                # Under TLS this would wait for the server to end that, for longer than there may be an event loop.
                self._transport.close()
        self.close()

    def close(self) -> None:
        """Closes it at once. Harmless when it is closed."""
        self._fail(TransferFailure(ErrorReason.CONNECTION_LOST, "the session is closed"))

    async def wait_closed(self) -> None:
        """Returns when the socket is closed."""
        await asyncio.wait([self._closed])

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remembers the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Takes replies."""
        try:
            replies = self._parser.feed(data)
        except MalformedReply as error:
            self._fail(TransferFailure(ErrorReason.UNSPECIFIED, str(error), code=ErrorCode.CONNECTION_ERROR))
            return
        if not replies:
            return
        last = replies[-1]
        if last.is_death_notice:
            # It answers no command, whichever is under way.
            replies.pop()
        self._replies.extend(replies)
        if not self._expected or last.code == 421 or last.is_death_notice:
            # Nobody asked: the server says good-bye, or is out of step.
            message = f"the server ended the session: {last.code} {last.text[:200]}"
            self._fail(TransferFailure(ErrorReason.CONNECTION_LOST, message, ftp_code=last.code), keep=True)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(self._replies[0])

    def eof_received(self) -> bool:
        """The server has nothing more to say."""
        self._fail(TransferFailure(ErrorReason.CONNECTION_LOST, "the server closed the control connection"), keep=True)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        message = f"the control connection broke: {exc}" if exc else "the control connection was closed"
        self._fail(TransferFailure(ErrorReason.CONNECTION_LOST, message), keep=True)
        if not self._closed.done():
            self._closed.set_result(None)

    def _fail(self, failure: TransferFailure, *, keep: bool = False) -> TransferFailure:
        """Gives the connection up; `keep` the replies that came before, to be read still."""
        if self._failure is None:
            self._failure = failure
            self._watchdog.close()
            if self._transport is not None and not self._transport.is_closing():
                self._transport.abort()
            if self.on_lost is not None:
                self.on_lost()
        if not keep:
            self._replies.clear()
        if self._waiter is not None and not self._waiter.done() and not self._replies:
            self._waiter.set_exception(self._failure)
        return self._failure

    def _late(self) -> None:
        if self._progress is not None and self._progress():
            self._watchdog.start(self._allowed, self._late)
            return
        message = f"the server did not reply within {self._allowed:g} s"
        failure = TransferFailure(ErrorReason.CONNECTION_LOST, message)
        failure.unanswered = True
        self._fail(failure)

    def _address(self, which: str) -> tuple[str, int]:
        assert self._transport is not None
        address = self._transport.get_extra_info(which)
        return address[0], address[1]
