"""Replies of an FTP server: parsed strictly and within limits (RFC 959, 4.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MAX_LINE: Final = 16 * 1024
"""Longest line, in bytes. A reply may quote a path, which is up to 4096 bytes and may be written with escapes."""
MAX_REPLY: Final = 1024 * 1024
"""Longest reply of several lines, in bytes."""

UNKNOWN_COMMAND: Final = frozenset({500, 501, 502, 503, 504})
"""What servers say to commands that they do not have."""

_START = re.compile(rb"[1-5][0-5][0-9](?:[ -]|$)")
_ADDRESS = re.compile(r"(\d{1,3}),(\d{1,3}),(\d{1,3}),(\d{1,3}),(\d{1,3}),(\d{1,3})")
_EXTENDED = re.compile(r"\(([!-~])\1\1(\d{1,5})\1\)")


class MalformedReply(Exception):
    """What came is not a reply of FTP, or is too long for one."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply. `lines` are its lines without the code; of those between the first and the last only the end is cut."""

    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """All lines as one, for people."""
        return " ".join(filter(None, map(str.strip, self.lines)))

    @property
    def preliminary(self) -> bool:
        """Whether another reply follows (1xx)."""
        return self.code < 200

    @property
    def positive(self) -> bool:
        """Whether the command was done (2xx)."""
        return 200 <= self.code < 300

    @property
    def is_death_notice(self) -> bool:
        """Whether the server says that its session dies. vsftpd does so as 500, even in place of the reply to RETR."""
        return self.code == 500 and self.lines[0].startswith("OOPS: ")


class ReplyParser:
    """Makes replies of bytes as they come. After MalformedReply it must not be used again."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._rest = b""
        self._code = b""
        self._lines: list[bytes] = []
        self._size = 0

    @property
    def clean(self) -> bool:
        """Whether nothing of a next reply has come."""
        return not self._rest and not self._lines

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that are complete with `data`."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_LINE:
            raise MalformedReply("a line of the server's reply is too long")
        return [reply for line in lines if (reply := self._line(line)) is not None]

    def _line(self, line: bytes) -> Reply | None:
        if len(line) > MAX_LINE:
            raise MalformedReply("a line of the server's reply is too long")
        if line.endswith(b"\r"):
            line = line[:-1]
        if not self._lines:
            if _START.match(line) is None:
                raise MalformedReply(f"the server's reply is not FTP: {line[:80]!r}")
            if line[3:4] != b"-":
                return Reply(int(line[:3]), (self._decode(line[4:]),))
            self._code = line[:3]
            self._lines.append(line[4:])
            self._size = len(line)
            return None
        self._size += len(line)
        if self._size > MAX_REPLY:
            raise MalformedReply("the server's reply is too long")
        if line[:3] == self._code and line[3:4] in (b" ", b""):
            lines = (*map(self._decode, self._lines), self._decode(line[4:]))
            self._lines.clear()
            return Reply(int(self._code), lines)
        # Some servers put the code before each line, with a hyphen.
        self._lines.append(line[4:] if line[:4] == self._code + b"-" else line)
        return None

    def _decode(self, line: bytes) -> str:
        return line.decode(self._encoding, "replace")


def passive_address(reply: Reply) -> tuple[str, int]:
    """Address and port of the reply to PASV. Some servers leave out the parentheses."""
    found = _ADDRESS.search(reply.text)
    if found is None or any(int(part) > 255 for part in found.groups()):
        raise MalformedReply(f"PASV was answered without an address: {reply.text[:80]!r}")
    parts = found.groups()
    return ".".join(str(int(part)) for part in parts[:4]), _port(int(parts[4]) * 256 + int(parts[5]))


def extended_port(reply: Reply) -> int:
    """Port of the reply to EPSV (RFC 2428)."""
    found = _EXTENDED.search(reply.text)
    if found is None:
        raise MalformedReply(f"EPSV was answered without a port: {reply.text[:80]!r}")
    return _port(int(found[2]))


def _port(number: int) -> int:
    if not 0 < number < 65536:
        raise MalformedReply(f"the server announced port {number}")
    return number


def quoted_path(reply: Reply) -> str:
    """The path of the reply to PWD; a quotation mark in it is doubled."""
    found = re.search(r'"((?:[^"]|"")*)"', reply.text)
    if found is None:
        raise MalformedReply(f"PWD was answered without a path: {reply.text[:80]!r}")
    return found[1].replace('""', '"')
