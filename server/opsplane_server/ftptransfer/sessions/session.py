"""A session that is logged in: the commands of FTP, as `ports.RemoteSession` names them."""

from __future__ import annotations

import asyncio
import re
from builtins import list as List  # noqa: N812 - the method of that name hides it
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import structlog

from opsplane_server.ftptransfer.failures import ErrorReason, TransferFailure
from opsplane_server.ftptransfer.model import FileKind, FtpServer, RemoteFile
from opsplane_server.ftptransfer.sessions import listings
from opsplane_server.ftptransfer.sessions.exchange import Exchange, Knowledge
from opsplane_server.ftptransfer.sessions.refusals import Purpose, refusal
from opsplane_server.ftptransfer.sessions.replies import UNKNOWN_COMMAND, MalformedReply, Reply, quoted_path
from opsplane_server.ftptransfer.sessions.sinks import FileSink, MemorySink

log = structlog.get_logger(__name__)

_NO_RESTART: Final = UNKNOWN_COMMAND | {451, 550, 551, 553, 554}
"""What servers say to a STOR that is to begin elsewhere than at the start."""
_LINES: Final = 2000
"""Lines of a listing that are read at a time, so that a long one does not hold up the event loop."""

_NUMBER = re.compile(r"\s*(\d{1,19})\b")


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the server said of itself until the login was done."""

    greeting: str = ""
    features: frozenset[str] = field(default_factory=frozenset)
    tls_cipher: str = ""
    certificate_sha256: str = ""


class FtpSession:
    """See `ports.RemoteSession`. `usable` tells whether another command may follow.

    A session whose command was cancelled or broke in the middle is not usable: nobody knows which replies will come.
    """

    def __init__(self, exchange: Exchange, server: FtpServer, knowledge: Knowledge, welcome: Welcome) -> None:
        self._exchange = exchange
        self._server = server
        self._knowledge = knowledge
        self._welcome = welcome
        self._home: str | None = None

    @property
    def greeting(self) -> str:
        """What the server said first."""
        return self._welcome.greeting

    @property
    def features(self) -> frozenset[str]:
        """What FEAT names, upper case."""
        return self._welcome.features

    @property
    def tls_cipher(self) -> str:
        """TLS version and cipher; empty without TLS."""
        return self._welcome.tls_cipher

    @property
    def certificate_sha256(self) -> str:
        """SHA-256 of the server's certificate, hexadecimal; empty without TLS."""
        return self._welcome.certificate_sha256

    @property
    def supports_resume(self) -> bool:
        """Whether `offset` may be other than 0."""
        return self._knowledge.restart

    @property
    def usable(self) -> bool:
        """Whether the session may be used for another command."""
        return self._exchange.control.usable

    def on_lost(self, callback: Callable[[], None] | None) -> None:
        """Has `callback` called when the server ends the session."""
        self._exchange.control.on_lost = callback

    def quit(self) -> None:
        """Ends the session."""
        self._exchange.close()
        self._exchange.control.quit()

    def abort(self) -> None:
        """Ends the session without a word."""
        self._exchange.close()
        self._exchange.control.close()

    async def wait_closed(self) -> None:
        """Returns when an ended session's socket is closed."""
        await self._exchange.control.wait_closed()

    # Looking

    async def list(self, path: str) -> List[RemoteFile]:
        """See `ports.RemoteSession.list`."""
        if self._knowledge.fact_listings:
            try:
                content = await self._listing("MLSD", path)
            except TransferFailure as failure:
                if failure.ftp_code not in UNKNOWN_COMMAND or not self.usable:
                    raise
                self._knowledge.fact_listings = False
            else:
                return await self._read_listing(content, facts=True)
        # Servers answer to LIST of a missing folder with an empty list, of a file with one entry, and expand patterns.
        # So the folder is entered, and listed without an argument.
        if not path:
            return await self._read_listing(await self._listing("LIST", ""), facts=False)
        await self._enter(path)
        try:
            content = await self._listing("LIST", "")
        finally:
            if self.usable:
                await self._leave()
        return await self._read_listing(content, facts=False)

    async def stat(self, path: str) -> RemoteFile:
        """See `ports.RemoteSession.stat`."""
        name = path.rstrip("/").rpartition("/")[2]
        if self._knowledge.facts:
            (reply,) = await self._exchange.commands(f"MLST {path}")
            if reply.positive:
                found = (listings.parse_facts(line.lstrip(" "), itself=True) for line in reply.lines[1:-1])
                if entry := next(filter(None, found), None):
                    return RemoteFile(name or "/", entry.kind, entry.size, entry.modify_time)
            elif reply.code not in UNKNOWN_COMMAND:
                raise refusal("MLST", reply, Purpose.READ)
            self._knowledge.facts = False
        if not self._knowledge.size:
            return await self._stat_by_listing(path, name)
        size, modify_time = await self._exchange.commands(f"SIZE {path}", f"MDTM {path}")
        if size.positive:
            time = listings.parse_time(modify_time.text) if modify_time.positive else None
            return RemoteFile(name, FileKind.FILE, _number(size), time)
        if size.code in UNKNOWN_COMMAND:
            self._knowledge.size = False
            return await self._stat_by_listing(path, name)
        # Most servers do not tell a folder from a file that is missing.
        try:
            await self._enter(path)
        except TransferFailure as failure:
            if not failure.ftp_code or not self.usable:
                raise
            raise refusal("SIZE", size, Purpose.READ) from failure
        await self._leave()
        return RemoteFile(name or "/", FileKind.FOLDER)

    async def size(self, path: str) -> int | None:
        """See `ports.RemoteSession.size`."""
        if not self._knowledge.size:
            return None
        return self._size(await self._exchange.command(f"SIZE {path}"))

    def _size(self, reply: Reply) -> int | None:
        if reply.positive:
            return _number(reply)
        if reply.code in UNKNOWN_COMMAND:
            self._knowledge.size = False
            return None
        raise refusal("SIZE", reply, Purpose.READ)

    async def check(self) -> bool:
        """See `ports.RemoteSession.check`."""
        try:
            return (await self._exchange.command("NOOP")).positive
        except TransferFailure:
            return False

    # Files

    async def retrieve(
        self, path: str, descriptor: int, *, offset: int = 0, progress: Callable[[int], None] | None = None
    ) -> int:
        """See `ports.RemoteSession.retrieve`."""
        flow = await self._exchange.receive("RETR", path, FileSink(descriptor), offset, progress)
        if not flow.complete and await self.size(path) != offset + flow.meter.count:
            # Anybody on the way can end a connection; only TLS's own end tells that the server did.
            message = "the data ended without the end of TLS, and its size is not the file's"
            raise TransferFailure(ErrorReason.CONNECTION_LOST, message)
        return flow.meter.count

    async def store(
        self, path: str, descriptor: int, *, offset: int = 0, progress: Callable[[int], None] | None = None
    ) -> int:
        """See `ports.RemoteSession.store`."""
        if offset and not self._knowledge.restart_store:
            return await self._append(path, descriptor, offset, progress)
        try:
            return await self._exchange.send("STOR", path, descriptor, offset, progress)
        except TransferFailure as failure:
            if not offset or failure.ftp_code not in _NO_RESTART or not self.usable:
                raise
        # Some servers restart downloads only.
        try:
            sent = await self._append(path, descriptor, offset, progress)
        except TransferFailure as failure:
            if failure.ftp_code in _NO_RESTART:
                self._knowledge.restart = False  # so that another attempt begins at the start
            raise
        self._knowledge.restart_store = False
        return sent

    async def rename(self, old: str, new: str) -> None:
        """See `ports.RemoteSession.rename`."""
        if self._knowledge.pipelining:
            # After a refused RNFR a server refuses RNTO as well.
            source, target = await self._exchange.pipeline([f"RNFR {old}", f"RNTO {new}"])
        else:
            source = target = await self._exchange.command(f"RNFR {old}")
            if source.code == 350:
                target = await self._exchange.command(f"RNTO {new}")
        if source.code != 350:
            raise refusal("RNFR", source, Purpose.READ)
        if not target.positive:
            raise refusal("RNTO", target, Purpose.WRITE)

    async def delete(self, path: str) -> bool:
        """See `ports.RemoteSession.delete`."""
        reply = await self._exchange.command(f"DELE {path}")
        if reply.positive:
            return True
        failure = refusal("DELE", reply, Purpose.READ)
        if failure.reason is not ErrorReason.NOT_FOUND:
            raise failure
        try:
            exists = await self.size(path) is not None
        except TransferFailure as unknown:
            if unknown.reason is not ErrorReason.NOT_FOUND:
                raise
            exists = False
        if exists:
            raise refusal("DELE", reply, Purpose.WRITE)
        return False

    async def make_folders(self, path: str) -> None:
        """See `ports.RemoteSession.make_folders`."""
        path = path.rstrip("/")
        if not path:
            return
        reply = await self._exchange.command(f"MKD {path}")
        if reply.positive:
            return
        for position in [found.start() for found in re.finditer("/", path)][path.startswith("/") :]:
            await self._exchange.command(f"MKD {path[:position]}")  # it is refused where the folder is there
        again = await self._exchange.command(f"MKD {path}")
        if again.positive:
            return
        try:
            await self._enter(path)
        except TransferFailure as failure:
            if not failure.ftp_code or not self.usable:
                raise
            raise refusal("MKD", again, Purpose.WRITE) from failure
        await self._leave()

    async def set_modify_time(self, path: str, time: datetime) -> bool:
        """See `ports.RemoteSession.set_modify_time`."""
        if not (line := self._time_command(path, time)):
            return False
        return await self._time_was_set(await self._exchange.command(line), path, time)

    async def stamp(self, path: str, time: datetime) -> int | None:
        """See `ports.RemoteSession.stamp`; one round trip where the server takes commands ahead."""
        line = self._time_command(path, time)
        if not line or not self._knowledge.pipelining or not self._knowledge.size:
            size = await self.size(path)
            await self.set_modify_time(path, time)
            return size
        size_reply, reply = await self._exchange.commands(f"SIZE {path}", line)
        await self._time_was_set(reply, path, time)
        return self._size(size_reply)

    def _time_command(self, path: str, time: datetime) -> str:
        command = self._knowledge.modify_time_command
        return f"{command} {time.astimezone(UTC):%Y%m%d%H%M%S} {path}" if command else ""

    async def _time_was_set(self, reply: Reply, path: str, time: datetime) -> bool:
        if reply.positive:
            return True
        if self._knowledge.modify_time_command != "MDTM":
            if reply.code not in UNKNOWN_COMMAND:
                return False
            self._knowledge.modify_time_command = "MDTM"
            return await self.set_modify_time(path, time)
        # Those that do not take MDTM with a time look for a file of that name.
        if reply.code in UNKNOWN_COMMAND or (await self._exchange.command(f"SIZE {path}")).positive:
            self._knowledge.modify_time_command = ""
        return False

    async def _append(self, path: str, descriptor: int, offset: int, progress: Callable[[int], None] | None) -> int:
        # What is appended has to begin where the file there ends.
        size = await self.size(path)
        if size != offset:
            message = f"the server does not restart uploads, and has {size} bytes instead of {offset} to append to"
            raise TransferFailure(ErrorReason.SIZE_MISMATCH, message)
        return await self._exchange.send("APPE", path, descriptor, offset, progress)

    # Folders

    async def _enter(self, path: str) -> None:
        if self._home is None:
            self._home = await self._current_folder()
        reply = await self._exchange.command(f"CWD {path}")
        if not reply.positive:
            raise refusal("CWD", reply, Purpose.READ)

    async def _leave(self) -> None:
        """Goes back, because paths without a leading slash begin there."""
        try:
            left = (await self._exchange.command(f"CWD {self._home}")).positive
        except BaseException:
            self.abort()
            raise
        if not left:
            self.abort()

    async def _current_folder(self) -> str:
        reply = await self._exchange.command("PWD")
        if not reply.positive:
            raise refusal("PWD", reply)
        try:
            return quoted_path(reply)
        except MalformedReply as error:
            raise TransferFailure(ErrorReason.UNSPECIFIED, str(error), ftp_code=reply.code) from error

    async def _listing(self, command: str, path: str) -> bytes:
        sink = MemorySink()
        flow = await self._exchange.receive(command, path, sink, 0, None)
        if not flow.complete:
            log.warning("a listing ended without the end of TLS", host=self._server.host, path=path)
        return bytes(sink.content)

    async def _read_listing(self, content: bytes, *, facts: bool) -> List[RemoteFile]:
        lines = content.decode(self._server.encoding, "surrogateescape").split("\n")
        parse = listings.parser_for(facts=facts, now=datetime.now(UTC))
        entries: List[RemoteFile] = []
        strange = ""
        for number, line in enumerate(lines, start=1):
            line = line.removesuffix("\r")
            entry = parse(line)
            if entry is not None:
                entries.append(entry)
            elif not facts and not listings.is_noise(line):
                strange = strange or line
            if number % _LINES == 0:
                await asyncio.sleep(0)
        if strange and not entries:
            message = f"the server's listing cannot be read: {strange[:80]!r}"
            raise TransferFailure(ErrorReason.UNSPECIFIED, message)
        return entries

    async def _stat_by_listing(self, path: str, name: str) -> RemoteFile:
        folder = path.rstrip("/").rpartition("/")[0]
        entries = await self.list(folder or ("/" if path.startswith("/") else ""))
        for entry in entries:
            if entry.name == name:
                return entry
        raise TransferFailure(ErrorReason.NOT_FOUND, f"{path} is not in the listing of its folder")


def _number(reply: Reply) -> int | None:
    found = _NUMBER.match(reply.text)
    return int(found[1]) if found else None
