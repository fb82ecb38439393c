"""Opening a session: from a host name to a session that is logged in, step by step."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import string
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, TransferFailure
from opsplane_server.ftptransfer.model import FtpServer, TlsMode
from opsplane_server.ftptransfer.sessions.control import ControlChannel
from opsplane_server.ftptransfer.sessions.exchange import Exchange, Knowledge
from opsplane_server.ftptransfer.sessions.flow import DataPlane
from opsplane_server.ftptransfer.sessions.refusals import Purpose, refusal
from opsplane_server.ftptransfer.sessions.replies import Reply
from opsplane_server.ftptransfer.sessions.session import FtpSession, Welcome
from opsplane_server.ftptransfer.sessions.tls import TlsClient, cipher, fingerprint

Address: TypeAlias = tuple[socket.AddressFamily, tuple[Any, ...]]

_MAX_ADDRESSES: Final = 8


class Login:
    """Opens one session. `step`, `greeting` and the like tell how far it came, also when it fails."""

    def __init__(self, server: FtpServer, knowledge: Knowledge, plane: DataPlane, tls: TlsClient | None) -> None:
        """`tls` is needed where `server.tls` is set."""
        assert (server.tls is None) == (tls is None)
        self._server = server
        self._knowledge = knowledge
        self._plane = plane
        self._tls = tls
        self._certificate = ""
        self.step = ""
        self.greeting = ""
        self.features: tuple[str, ...] = ()
        self.tls_cipher = ""

    async def open(self) -> FtpSession:
        """The session. Raises TransferFailure, and leaves nothing open then."""
        _check_encoding(self._server.encoding)
        control = await self._connect()
        try:
            await self._greet(control)
            await self._log_in(control)
            await self._prepare(control)
        except BaseException:
            control.close()
            raise
        welcome = Welcome(self.greeting, frozenset(self.features), self.tls_cipher, self._certificate)
        exchange = Exchange(control, self._server, self._knowledge, self._plane, self._tls)
        return FtpSession(exchange, self._server, self._knowledge, welcome)

    @property
    def certificate_sha256(self) -> str:
        """SHA-256 of the server's certificate, hexadecimal; empty without TLS."""
        return self._certificate

    async def _connect(self) -> ControlChannel:
        self.step = "resolve"
        addresses = await resolve(self._server)
        self.step = "connect"
        _, control = await dial(self._server, addresses)
        return control

    async def _greet(self, control: ControlChannel) -> None:
        mode = self._server.tls.mode if self._server.tls else None
        if mode is TlsMode.IMPLICIT:
            await self._secure(control)
        reply = await control.final()
        if reply.code != 220:
            raise refusal("connect", reply, Purpose.LOGIN)
        self.greeting = reply.text
        if mode is TlsMode.EXPLICIT:
            self.step = "tls"
            reply = await control.command("AUTH TLS")
            if not reply.positive:
                message = f"the server refuses TLS: {reply.code} {reply.text[:200]}"
                raise TransferFailure(ErrorReason.TLS, message, ftp_code=reply.code)
            await self._secure(control)

    async def _secure(self, control: ControlChannel) -> None:
        self.step = "tls"
        assert self._tls is not None
        await control.start_tls(self._tls)
        secured = control.tls
        assert secured is not None
        self._certificate = self._tls.check(secured)
        self.tls_cipher = cipher(secured)

    async def _log_in(self, control: ControlChannel) -> None:
        self.step = "login"
        reply = await control.command(f"USER {self._server.user}")
        if reply.code == 331:
            reply = await control.command(f"PASS {self._server.password}")
        if not reply.positive:
            raise refusal("login", reply, Purpose.LOGIN)

    async def _prepare(self, control: ControlChannel) -> None:
        self.step = "features"
        knowledge = self._knowledge
        reply = await control.command("FEAT")
        if reply.positive:
            self.features = tuple(sorted(_features(reply)))
            names = {feature.partition(" ")[0] for feature in self.features}
            knowledge.facts = knowledge.facts and "MLST" in names
            knowledge.fact_listings = knowledge.fact_listings and bool({"MLST", "MLSD"} & names)
            if knowledge.modify_time_command == "MFMT" and "MFMT" not in names:
                knowledge.modify_time_command = "MDTM"
            if "UTF8" in names and self._server.encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
                await control.command("OPTS UTF8 ON")
        if self._tls is not None:
            for command in ("PBSZ 0", "PROT P"):
                reply = await control.command(command)
                if not reply.positive:
                    message = f"the server does not protect data: {command}: {reply.code} {reply.text[:200]}"
                    raise TransferFailure(ErrorReason.TLS, message, ftp_code=reply.code)
        reply = await control.command("TYPE I")
        if not reply.positive:
            raise refusal("TYPE", reply)
        if knowledge.pipelining is None:
            await self._try_pipelining(control)

    async def _try_pipelining(self, control: ControlChannel) -> None:
        """Finds out once whether the server takes two commands that come together."""
        self._knowledge.pipelining = False
        control.send(b"NOOP\r\nNOOP\r\n", 2)
        replies = [await control.final(), await control.final()]
        self._knowledge.pipelining = all(reply.positive for reply in replies)


async def resolve(server: FtpServer) -> Sequence[Address]:
    """Addresses of the server, in the order in which to try them."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(server.reply_timeout):
            found = await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        # UnicodeError: what cannot be a host name at all.
        reason = error.strerror if isinstance(error, socket.gaierror) else error
        raise TransferFailure(ErrorReason.HOST_UNKNOWN, f"{server.host}: {reason or 'no answer'}") from error
    return [(family, address) for family, _, _, _, address in found][:_MAX_ADDRESSES]


async def dial(server: FtpServer, addresses: Sequence[Address]) -> tuple[asyncio.Transport, ControlChannel]:
    """The control connection to the first address that answers."""
    loop = asyncio.get_running_loop()
    problem = "no address"
    for family, address in addresses:
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # Long transfers leave the control connection silent; routers forget it then.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            async with asyncio.timeout(server.reply_timeout):
                await loop.sock_connect(connection, address)
            return await loop.create_connection(
                lambda: ControlChannel(server.encoding, server.reply_timeout), sock=connection
            )
        except TimeoutError:
            connection.close()
            problem = f"{address[0]} port {address[1]} does not answer within {server.reply_timeout:g} s"
        except OSError as error:
            connection.close()
            problem = f"{address[0]} port {address[1]}: {error.strerror or error}"
        except BaseException:
            connection.close()
            raise
    raise TransferFailure(ErrorReason.UNREACHABLE, f"cannot connect: {problem}")


async def shown_certificate(server: FtpServer) -> str:
    """SHA-256 of the certificate that the server shows, trusted or not; empty if that cannot be found out."""
    assert server.tls is not None
    client = TlsClient(server, server.tls)
    client.context.check_hostname = False
    client.context.verify_mode = ssl.CERT_NONE
    control: ControlChannel | None = None
    try:
        _, control = await dial(server, await resolve(server))
        if server.tls.mode is TlsMode.EXPLICIT:
            await control.final()
            if not (await control.command("AUTH TLS")).positive:
                return ""
        await control.start_tls(client)
        secured = control.tls
        assert secured is not None
        return fingerprint(secured)
    except TransferFailure:
        return ""
    finally:
        if control is not None:
            control.close()


def _features(reply: Reply) -> set[str]:
    return {line.strip().upper() for line in reply.lines[1:-1] if line.strip()}


@functools.cache
def _check_encoding(encoding: str) -> None:
    """Commands are ASCII, so only encodings that contain it will do."""
    try:
        fits = string.printable.encode(encoding) == string.printable.encode("ascii")
    except (LookupError, UnicodeError):
        fits = False
    if not fits:
        message = f"{encoding} is no encoding of file names"
        raise TransferFailure(ErrorReason.UNSPECIFIED, message, code=ErrorCode.INVALID_CONFIG, retryable=False)
