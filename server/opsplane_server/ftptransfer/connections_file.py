"""connections.ini, the FTP Pooler's file of connections: read as it is, at the start and whenever it changes.

    [remote-server-a]
    type = ftp
    host = ftp.example.com
    port = 21
    user = username
    pass = password
    passive = true

    [local]
    type = local
    base_path = /data/storage

The value of a key is all that stands after its `=`, so that a password may hold `%`, `#` and `;`. Beyond the keys of
the FTP Pooler there are those of `_FTP_KEYS`, which are named as in the API. Passwords stay in memory.
"""

from __future__ import annotations

import asyncio
import configparser
import hashlib
import ipaddress
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Self, TypeVar

import structlog

from opsplane_server.ftptransfer.model import ActiveMode, Connection, FtpServer, LocalFolder, TlsMode, TlsSettings

log = structlog.get_logger(__name__)

T = TypeVar("T")

_ID: Final = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_HOST: Final = re.compile(r"[A-Za-z0-9._:%-]{1,253}")
_ENCODING: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_PORTS: Final = re.compile(r"(\d{1,5})\s*-\s*(\d{1,5})")
_BOOLEANS: Final = configparser.ConfigParser.BOOLEAN_STATES

_FTP_KEYS: Final = frozenset({
    "type", "title", "host", "port", "user", "pass", "passive",
    "active_address", "active_ports", "use_announced_address", "encoding",
    "max_sessions", "idle_timeout", "reply_timeout", "stall_timeout",
})  # fmt: skip
_TLS_KEYS: Final = frozenset({"tls", "ca_file", "server_name", "certificate_sha256"})
_LOCAL_KEYS: Final = frozenset({"type", "title", "base_path"})

_POLL_SECONDS: Final = 1.0


class ConnectionsFileError(Exception):
    """The file can not be used; the message is one line that names file, section and key, and has no value of a key."""


def parse(text: str, file: Path) -> list[Connection]:
    """The connections of a file's content, in its order. Raises ConnectionsFileError."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        # Its own message quotes the line, which may be one with a password.
        line = getattr(error, "lineno", None) or next((number for number, _ in getattr(error, "errors", ())), None)
        place = f" in line {line}" if line else ""
        raise ConnectionsFileError(f"{file}: not an INI file{place}: {_problem(error)}") from None
    found: list[Connection] = []
    taken: set[str] = {name for name in parser.sections() if _ID.fullmatch(name)}
    for name in parser.sections():
        section = _Section(file, name, parser[name])
        connection_id = name if name in taken and _ID.fullmatch(name) else _derived_id(name, taken)
        taken.add(connection_id)
        found.append(
            Connection(
                id=connection_id,
                kind=section.kind(),
                title=section.text("title"),
                config_section=name,
                key=len(found) + 1,
            )
        )
    return found


class _Section:
    """One section; every method names it in what it raises."""

    def __init__(self, file: Path, name: str, values: Mapping[str, str]) -> None:
        self._file = file
        self._name = name
        self._values = values

    def kind(self) -> FtpServer | LocalFolder:
        kind = self._needed("type").lower()
        if kind not in ("ftp", "ftps", "local"):
            self._refuse("type", "is none of ftp, ftps, local")
        if kind == "local":
            self._allow(_LOCAL_KEYS)
            return self._local()
        self._allow(_FTP_KEYS if kind == "ftp" else _FTP_KEYS | _TLS_KEYS)
        return self._ftp(self._tls() if kind == "ftps" else None)

    def text(self, key: str) -> str:
        value = self._values.get(key, "")
        if "\0" in value or "\n" in value:
            self._refuse(key, "has more than one line, or a NUL")
        return value

    def _local(self) -> LocalFolder:
        base_path = Path(self._needed("base_path"))
        if not base_path.is_absolute():
            self._refuse("base_path", "is not an absolute path")
        return LocalFolder(base_path)

    def _ftp(self, tls: TlsSettings | None) -> FtpServer:
        fallback = 990 if tls is not None and tls.mode is TlsMode.IMPLICIT else 21
        defaults = FtpServer(host="")
        return FtpServer(
            host=self._matching("host", _HOST, self._needed("host")),
            port=self._read("port", lambda text: _between(int(text), 1, 65535), fallback),
            user=self.text("user") or defaults.user,
            password=self.text("pass"),
            tls=tls,
            active=None if self._flag("passive", True) else self._active(),
            use_announced_address=self._flag("use_announced_address", False),
            encoding=self._matching("encoding", _ENCODING, self.text("encoding") or defaults.encoding),
            max_sessions=self._read("max_sessions", lambda text: _between(int(text), 0, 1000), 0),
            idle_timeout=self._read("idle_timeout", lambda text: _between(float(text), 1, 3600), 0.0),
            reply_timeout=self._read(
                "reply_timeout", lambda text: _between(float(text), 1, 600), defaults.reply_timeout
            ),
            stall_timeout=self._read(
                "stall_timeout", lambda text: _between(float(text), 1, 3600), defaults.stall_timeout
            ),
        )

    def _tls(self) -> TlsSettings:
        mode = self.text("tls").lower() or "explicit"
        if mode not in ("explicit", "implicit"):
            self._refuse("tls", "is neither explicit nor implicit")
        certificate = self.text("certificate_sha256").replace(":", "").lower()
        if certificate and not _SHA256.fullmatch(certificate):
            self._refuse("certificate_sha256", "is not 64 hexadecimal digits")
        if certificate and (self.text("ca_file") or self.text("server_name")):
            self._refuse("certificate_sha256", "is used instead of ca_file and server_name, not with them")
        authorities = ""
        if file := self.text("ca_file"):
            try:
                authorities = Path(file).read_text(encoding="ascii")
            except (OSError, UnicodeDecodeError) as error:
                self._refuse("ca_file", f"can not be read: {getattr(error, 'strerror', 'not PEM')}")
        return TlsSettings(TlsMode(mode.upper()), authorities, self.text("server_name"), certificate)

    def _active(self) -> ActiveMode:
        address = self.text("active_address")
        first, last = self._read("active_ports", _port_range, (0, 0))
        if address:
            self._read("active_address", ipaddress.ip_address, None)
        return ActiveMode(address, first, last)

    def _allow(self, keys: Collection[str]) -> None:
        for key in self._values:
            if key not in keys:
                self._refuse(key, "is not a key of this type")

    def _needed(self, key: str) -> str:
        value = self.text(key)
        if not value:
            self._refuse(key, "is missing")
        return value

    def _matching(self, key: str, pattern: re.Pattern[str], value: str) -> str:
        if not pattern.fullmatch(value):
            self._refuse(key, "has characters that it can not have")
        return value

    def _flag(self, key: str, fallback: bool) -> bool:
        value = self.text(key).lower()
        if not value:
            return fallback
        if value not in _BOOLEANS:
            self._refuse(key, "is neither true nor false")
        return _BOOLEANS[value]

    def _read(self, key: str, read: Callable[[str], T], fallback: T) -> T:
        text = self.text(key)
        if not text:
            return fallback
        try:
            return read(text)
        except ValueError:
            self._refuse(key, "is not a value that it can have")

    def _refuse(self, key: str, what: str) -> NoReturn:
        raise ConnectionsFileError(f"{self._file}: [{self._name}] {key}: {what}")


N = TypeVar("N", int, float)


def _between(value: N, low: int, high: int) -> N:
    if not low <= value <= high:
        raise ValueError
    return value


def _port_range(text: str) -> tuple[int, int]:
    match = _PORTS.fullmatch(text)
    if match is None or not 1024 <= int(match[1]) <= int(match[2]) <= 65535:
        raise ValueError
    return int(match[1]), int(match[2])


def _problem(error: configparser.Error) -> str:
    match error:
        case configparser.DuplicateSectionError():
            return f"another section [{error.section}]"
        case configparser.DuplicateOptionError():
            return f"another {error.option} in [{error.section}]"
        case configparser.MissingSectionHeaderError():
            return "a line before the first section"
        case _:
            return "neither a section nor a key with a value"


def _derived_id(section: str, taken: Collection[str]) -> str:
    """An id for a section whose name is none; the same for the same file."""
    plain = re.sub(r"[^a-z0-9]+", "-", section.lower()).strip("-")[:50].strip("-")
    plain = plain if plain[:1].isalpha() else f"c-{plain}".rstrip("-")
    if plain not in taken:
        return plain
    return f"{plain}-{hashlib.sha256(section.encode()).hexdigest()[:8]}"


class ConnectionsFile:
    """The connections of a file as they are now; without a file there are none.

    Entered it reads the file, which raises ConnectionsFileError, and then looks each second whether it has changed. A
    change that can not be read is logged, and the connections stay as they were.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._seen: tuple[int, ...] = ()
        self._task: asyncio.Task[None] | None = None
        self.connections: Mapping[str, Connection] = {}
        """By id, in the file's order."""

    async def __aenter__(self) -> Self:
        if self._file is not None:
            await asyncio.to_thread(self._load, self._file)
            self._task = asyncio.create_task(self._watch(self._file), name="watch connections.ini")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def find(self, name: str) -> Connection | None:
        """The connection of this section, else of this id."""
        for connection in self.connections.values():
            if connection.config_section == name:
                return connection
        return self.connections.get(name)

    async def _watch(self, file: Path) -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                if await asyncio.to_thread(self._load, file):
                    log.info("connections read again", file=str(file), count=len(self.connections))
            except ConnectionsFileError as error:
                log.error("connections stay as they were", detail=str(error))

    def _load(self, file: Path) -> bool:
        """True when the file had changed. What was refused once is not read again before it changes."""
        try:
            found = file.stat()
            seen = (found.st_ino, found.st_size, found.st_mtime_ns)
            if seen == self._seen:
                return False
            self._seen = seen
            text = file.read_text(encoding="utf-8-sig")
        except OSError as error:
            if self._seen == (-1,):
                return False
            self._seen = (-1,)
            raise ConnectionsFileError(f"{file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConnectionsFileError(f"{file}: not UTF-8") from None
        time = datetime.fromtimestamp(found.st_mtime_ns // 1_000_000_000, UTC)
        self.connections = {one.id: self._timed(one, time) for one in parse(text, file)}
        return True

    def _timed(self, connection: Connection, time: datetime) -> Connection:
        """Its revision counts up when it changes, for those who keep sessions."""
        known = self.connections.get(connection.id)
        if known is None:
            return replace(connection, revision=1, create_time=time, update_time=time)
        same = replace(
            connection, revision=known.revision, create_time=known.create_time, update_time=known.update_time
        )
        return (
            same
            if same == replace(known, key=same.key)
            else replace(same, revision=known.revision + 1, update_time=time)
        )
