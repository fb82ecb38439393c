"""PostgreSQL's protocol by hand, as far as a benchmark needs it: nothing in Python sends a COPY with less work.

with Connection(dsn) as connection:
    connection.run("TRUNCATE t")
    connection.send_and_wait(message)      # made by copy_message, once
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

_PROTOCOL = 196608  # 3.0


class PostgresError(Exception):
    """The server's word."""


def copy_message(table: str, data: bytes) -> bytes:
    """The messages Query, CopyData and CopyDone of a whole COPY into `table`, a name that needs no quotes."""
    query = f"COPY {table} FROM STDIN BINARY".encode() + b"\0"
    return _message(b"Q", query) + _message(b"d", data) + _message(b"c", b"")


class Connection:
    """A blocking connection through a unix socket; the user's password by SCRAM-SHA-256."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        query = parse_qs(parts.query)
        self._path = str(Path(query["host"][0]) / f".s.PGSQL.{query['port'][0]}")
        self._user = unquote(parts.username or "")
        self._password = unquote(parts.password or "")
        self._database = unquote(parts.path.removeprefix("/"))
        self._socket = socket.socket(socket.AF_UNIX)
        self._buffer = b""

    def __enter__(self) -> Self:
        self._socket.connect(self._path)
        words = ("user", self._user, "database", self._database, "")
        body = struct.pack("!i", _PROTOCOL) + b"\0".join(word.encode() for word in words) + b"\0"
        self._socket.sendall(struct.pack("!i", len(body) + 4) + body)
        self._authenticate()
        self._until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def run(self, statement: str) -> list[str]:
        """Runs a statement and returns the first column of its rows, as text."""
        self._socket.sendall(_message(b"Q", statement.encode() + b"\0"))
        return self._until_ready()

    def send_and_wait(self, message: bytes) -> None:
        """Sends ready-made messages at once and returns when they are committed."""
        self._socket.sendall(message)
        self._until_ready()

    def _until_ready(self) -> list[str]:
        rows: list[str] = []
        failure: PostgresError | None = None
        while True:
            kind, body = self._read()
            if kind == b"Z":
                if failure is not None:
                    raise failure
                return rows
            if kind == b"E":
                failure = PostgresError(_words(body))
            elif kind == b"D":
                (length,) = struct.unpack_from("!i", body, 2)
                rows.append(body[6 : 6 + max(0, length)].decode())

    def _read(self) -> tuple[bytes, bytes]:
        while len(self._buffer) < 5 or len(self._buffer) < 1 + (size := struct.unpack_from("!i", self._buffer, 1)[0]):
            data = self._socket.recv(65536)
            if not data:
                raise PostgresError("the server closed the connection")
            self._buffer += data
        message, self._buffer = self._buffer[: 1 + size], self._buffer[1 + size :]
        return message[:1], message[5:]

    def _authenticate(self) -> None:
        """RFC 5802 with SHA-256, without channel binding."""
        self._require(10)
        nonce = secrets.token_urlsafe(18)
        bare = f"n=,r={nonce}"
        first = f"n,,{bare}".encode()
        self._socket.sendall(_message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(first)) + first))
        challenge = self._require(11).decode()
        fields = dict(part.split("=", 1) for part in challenge.split(","))
        proofless = f"c=biws,r={fields['r']}"
        salted = hashlib.pbkdf2_hmac("sha256", self._password.encode(), base64.b64decode(fields["s"]), int(fields["i"]))
        key = hmac.digest(salted, b"Client Key", "sha256")
        said = f"{bare},{challenge},{proofless}".encode()
        signature = hmac.digest(hashlib.sha256(key).digest(), said, "sha256")
        proof = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True))).decode()
        self._socket.sendall(_message(b"p", f"{proofless},p={proof}".encode()))
        self._require(12)
        self._require(0)

    def _require(self, code: int) -> bytes:
        kind, body = self._read()
        if kind == b"E":
            raise PostgresError(_words(body))
        (got,) = struct.unpack_from("!i", body)
        if (kind, got) != (b"R", code):
            raise PostgresError(f"authentication: expected {code}, got {kind!r} {got}")
        return body[4:]


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _words(body: bytes) -> str:
    fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
    return fields.get(b"M", "an error without a message")
