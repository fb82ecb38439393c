"""Commands and the data that goes with them: an exchange of a transfer, from its port to its last reply."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, TransferFailure
from opsplane_server.ftptransfer.model import FtpServer
from opsplane_server.ftptransfer.sessions.control import ControlChannel
from opsplane_server.ftptransfer.sessions.data import Listener, connect
from opsplane_server.ftptransfer.sessions.flow import DataPlane, Flow, Incoming, Outgoing
from opsplane_server.ftptransfer.sessions.refusals import Purpose, refusal
from opsplane_server.ftptransfer.sessions.replies import (
    UNKNOWN_COMMAND,
    MalformedReply,
    Reply,
    extended_port,
    passive_address,
)
from opsplane_server.ftptransfer.sessions.sinks import Sink
from opsplane_server.ftptransfer.sessions.tls import TlsClient
from opsplane_server.ftptransfer.sessions.watchdog import Watchdog

_EXPLAIN: Final = 5.0
"""Seconds to wait for the server to say why the data connection broke."""
_DOUBT: Final = 2.0
"""Seconds to wait for the reply to a command whose data connection has broken already."""
_PORT_AGE: Final = 5.0
"""Seconds for which a port that the server opened ahead is used; then another is asked for."""
_SURPRISES: Final = 3


@dataclass(slots=True)
class Knowledge:
    """What was learned of a server, shared by the sessions of a connection, so that it is found out once."""

    extended_passive: bool = True
    facts: bool = True
    fact_listings: bool = True
    size: bool = True
    restart: bool = True
    restart_store: bool = True
    modify_time_command: str = "MFMT"
    pipelining: bool | None = None
    """Whether several commands may be sent at once; None until it was tried."""
    surprises: int = 0

    def surprised(self) -> None:
        """Something went wrong while several commands were under way; no more of that when it happens again."""
        self.surprises += 1
        if self.surprises >= _SURPRISES:
            self.pipelining = False


class Exchange:
    """What a session does its work with. One task at a time; after a failure in the middle `control` is not usable."""

    def __init__(
        self,
        control: ControlChannel,
        server: FtpServer,
        knowledge: Knowledge,
        plane: DataPlane,
        tls: TlsClient | None,
    ) -> None:
        self.control = control
        self._server = server
        self._knowledge = knowledge
        self._plane = plane
        self._tls = tls
        self._watchdog = Watchdog(asyncio.get_running_loop())
        self._peer = control.peer[0]
        self._port: tuple[str, int] | None = None
        self._port_time = 0.0
        self._transfer_follows = True

    def close(self) -> None:
        """Forgets its timers; the control connection is closed by its owner."""
        self._watchdog.close()

    async def command(self, line: str) -> Reply:
        """Sends a command and returns its final reply, whatever it says."""
        return await self.control.command(line)

    async def commands(self, *lines: str) -> tuple[Reply, ...]:
        """The replies to commands that do not depend on each other, asked all at once where the server takes that.

        Ahead of a transfer the port of its data connection is asked for as well.
        """
        if not self._knowledge.pipelining:
            return tuple([await self.control.command(line) for line in lines])
        ahead = self._transfer_follows and self._server.active is None and self._extends()
        self._transfer_follows = False
        if not ahead:
            return await self.pipeline(lines)
        *replies, passive = await self.pipeline([*lines, "EPSV"])
        if passive.positive:
            self._port = self._extended(passive)
            self._port_time = time.monotonic()
        return tuple(replies)

    async def pipeline(self, lines: Sequence[str]) -> tuple[Reply, ...]:
        """The replies to commands that are sent all at once; only where `Knowledge.pipelining` says so."""
        data = b"".join(map(self.control.encode, lines))
        try:
            self.control.send(data, len(lines))
            return tuple([await self.control.final() for _ in lines])
        except TransferFailure:
            self._knowledge.surprised()
            raise

    async def send(
        self, command: str, path: str, descriptor: int, offset: int, progress: Callable[[int], None] | None
    ) -> int:
        """Sends the open file from `offset` on, by STOR or APPE; how many bytes."""
        line = self.control.encode(f"{command} {path}")
        timeout = self._server.stall_timeout
        flow = Outgoing(self._plane, self._watchdog, timeout, progress, self._data_tls(), descriptor, offset)
        restart = offset if command == "STOR" else 0
        await self._transfer(command, line, flow, restart, Purpose.WRITE, flow.draining)
        return flow.sent

    async def receive(
        self, command: str, path: str, sink: Sink, offset: int = 0, progress: Callable[[int], None] | None = None
    ) -> Incoming:
        """Takes what the command brings. What has come and whether it was ended by TLS is in the answer."""
        line = self.control.encode(f"{command} {path}" if path else command)
        timeout = self._server.stall_timeout
        flow = Incoming(self._plane, self._watchdog, timeout, progress, self._data_tls(), sink)
        await self._transfer(command, line, flow, offset, Purpose.READ, None)
        return flow

    async def _transfer(
        self,
        command: str,
        line: bytes,
        flow: Flow,
        offset: int,
        purpose: Purpose,
        draining: Callable[[], bool] | None,
    ) -> None:
        control = self.control
        self._transfer_follows = True
        data: socket.socket | None = None
        listener: Listener | None = None
        try:
            if self._server.active is None:
                address, port = self._port_ahead() or await self._passive()
                data = connect(address, port)
                # What is sent has to wait for the server's word, and so has TLS; a download may begin.
                early = self._tls is None and draining is None
                if early:
                    flow.begin(data)
            else:
                listener = await self._listen()
                early = False
            if offset:
                await self._restart(offset)
            control.send(line)
            flow.on_failure = lambda: control.hasten(_DOUBT)
            try:
                reply = await control.reply()
            except TransferFailure as failure:
                if flow.failure is None:
                    raise
                flow.failure.unanswered = failure.unanswered
                raise flow.failure from failure
            flow.on_failure = None
            if not reply.preliminary and not reply.positive:
                raise refusal(command, reply, purpose)
            if not early:
                if listener is not None:
                    data = await listener.accept(self._peer, self._server.reply_timeout)
                assert data is not None
                flow.begin(data)
            try:
                await flow.finished()
            except TransferFailure as failure:
                await flow.close()
                raise await self._explained(command, failure, purpose, reply) from failure
            if draining is None:
                # Some servers confirm a download only when this end is closed as well.
                await flow.close()
            # What was sent may be on its way still, and the server may have to write it.
            timeout = max(self._server.reply_timeout, self._server.stall_timeout) if draining else None
            while reply.preliminary:
                reply = await control.reply(progress=draining, timeout=timeout)
            if reply.code not in (226, 250):
                raise refusal(command, reply, purpose)
        finally:
            if listener is not None:
                listener.close()
            if data is not None and not flow.begun:
                data.close()
            await flow.close()

    async def _explained(
        self, command: str, failure: TransferFailure, purpose: Purpose, reply: Reply
    ) -> TransferFailure:
        """What the server says of a data connection that broke, or else the failure as it was seen here."""
        if failure.reason is ErrorReason.STALLED:
            failure.unanswered = True
        if failure.code is not ErrorCode.CONNECTION_ERROR or failure.unanswered:
            return failure
        try:
            while reply.preliminary:
                reply = await self.control.reply(timeout=min(_EXPLAIN, self._server.reply_timeout))
        except TransferFailure as silence:
            failure.unanswered = silence.unanswered
            return failure
        return failure if reply.positive else refusal(command, reply, purpose)

    async def _restart(self, offset: int) -> None:
        reply = await self.control.command(f"REST {offset}")
        if reply.code != 350:
            self._knowledge.restart = False
            message = f"the server does not resume: {reply.code} {reply.text[:200]}"
            raise TransferFailure(ErrorReason.UNSPECIFIED, message, ftp_code=reply.code)

    def _port_ahead(self) -> tuple[str, int] | None:
        port, self._port = self._port, None
        return port if time.monotonic() - self._port_time < _PORT_AGE else None

    async def _passive(self) -> tuple[str, int]:
        """Address and port of the server for the next data connection."""
        if self._extends():
            reply = await self.control.command("EPSV")
            if reply.positive:
                return self._extended(reply)
            if ":" in self._peer:
                raise refusal("EPSV", reply)
            # Whatever the reason is: many servers and firewalls know PASV alone.
            self._knowledge.extended_passive = False
        reply = await self.control.command("PASV")
        if not reply.positive:
            failure = refusal("PASV", reply)
            raise TransferFailure(ErrorReason.DATA_CONNECTION, failure.message, ftp_code=reply.code)
        try:
            address, port = passive_address(reply)
        except MalformedReply as error:
            raise TransferFailure(ErrorReason.DATA_CONNECTION, str(error), ftp_code=reply.code) from error
        return (address if self._server.use_announced_address else self._peer), port

    def _extends(self) -> bool:
        # EPSV announces no address, so where that is wanted PASV has to do.
        return ":" in self._peer or (self._knowledge.extended_passive and not self._server.use_announced_address)

    def _extended(self, reply: Reply) -> tuple[str, int]:
        try:
            return self._peer, extended_port(reply)
        except MalformedReply as error:
            raise TransferFailure(ErrorReason.DATA_CONNECTION, str(error), ftp_code=reply.code) from error

    async def _listen(self) -> Listener:
        assert self._server.active is not None
        listener = Listener(self._server.active, self.control.local[0])
        try:
            reply = await self.control.command(listener.command(extended=False))
            if not reply.positive and reply.code in UNKNOWN_COMMAND:
                reply = await self.control.command(listener.command(extended=True))
            if not reply.positive:
                message = f"the server refuses active mode: {reply.code} {reply.text[:200]}"
                raise TransferFailure(ErrorReason.DATA_CONNECTION, message, ftp_code=reply.code)
        except BaseException:
            listener.close()
            raise
        return listener

    def _data_tls(self) -> tuple[TlsClient, ssl.SSLSession | None] | None:
        if self._tls is None:
            return None
        secured = self.control.tls
        return self._tls, secured.session if secured is not None else None
