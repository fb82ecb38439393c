"""A gRPC stream on a connection of its own, by hand: as little work as a client can have.

gRPC's own client costs about as much for a small message as a server does, and on a machine that both share it would be
a good part of what is measured. This one knows just what one call to our server needs of HTTP/2 (RFC 9113).
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import cast

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_INITIAL_WINDOW, _MAX_FRAME = 4, 5
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_MOST = 2**31 - 1
_DEFAULT_WINDOW = 65_535
_FRAME_BYTES = 16_384


class GrpcStream(asyncio.Protocol):
    """A call with messages both ways. `received` is called with each message of the server."""

    def __init__(self, path: str, authority: str, received: Callable[[bytes], None]) -> None:
        self._begin = _begin(path, authority)
        self._received = received
        self._transport: asyncio.Transport | None = None
        self._connection_window = _DEFAULT_WINDOW
        self._stream_window = _DEFAULT_WINDOW
        self._initial_window = _DEFAULT_WINDOW
        self._frame_bytes = _FRAME_BYTES
        self._waiting: deque[memoryview] = deque()
        self._ending = False
        self._input = b""
        self._message = b""
        self._ready = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, address: str, path: str, received: Callable[[bytes], None]) -> GrpcStream:
        """Returns when the server has answered to the connection."""
        host, _, port = address.rpartition(":")
        _, stream = await asyncio.get_running_loop().create_connection(
            lambda: cls(path, address, received), host, int(port)
        )
        await stream._ready
        return stream

    def send(self, message: bytes) -> None:
        """Sends a message as soon as the server's windows allow."""
        self._waiting.append(memoryview(struct.pack("!BI", 0, len(message)) + message))
        self._pump()

    def end(self) -> None:
        """Says that no more messages come."""
        self._ending = True
        self._pump()

    async def ended(self) -> None:
        """Returns when the server has ended the call. ConnectionError if it did so in another way."""
        await self._ended

    def close(self) -> None:
        """Closes the connection."""
        assert self._transport is not None
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        self._transport.write(self._begin)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection is lost: {exc}")

    def data_received(self, data: bytes) -> None:
        data = self._input + data
        position = 0
        while len(data) - position >= 9:
            size = int.from_bytes(data[position : position + 3])
            if len(data) - position < 9 + size:
                break
            kind, flags = data[position + 3], data[position + 4]
            self._frame(kind, flags, data[position + 5 : position + 9], data[position + 9 : position + 9 + size])
            position += 9 + size
        self._input = data[position:]

    def _frame(self, kind: int, flags: int, stream: bytes, body: bytes) -> None:
        if kind == _DATA:
            self._messages(body)
        elif kind == _WINDOW:
            step = int.from_bytes(body)
            if stream == b"\0\0\0\0":
                self._connection_window += step
            else:
                self._stream_window += step
            self._pump()
        elif kind == _PING and not flags & _ACK:
            self._write(_frame(_PING, _ACK, 0, body))
        elif kind == _SETTINGS and not flags & _ACK:
            self._settings(body)
        elif kind in (_RESET, _GOAWAY):
            self._fail(f"the server ended the call: {body!r}")
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM and not self._ended.done():
            self._ended.set_result(None)

    def _settings(self, body: bytes) -> None:
        for name, value in struct.iter_unpack("!HI", body):
            if name == _INITIAL_WINDOW:
                self._stream_window += value - self._initial_window
                self._initial_window = value
            elif name == _MAX_FRAME:
                self._frame_bytes = value
        self._write(_frame(_SETTINGS, _ACK, 0, b""))
        if not self._ready.done():
            self._ready.set_result(None)
        self._pump()

    def _messages(self, body: bytes) -> None:
        data = self._message + body
        while len(data) >= 5 and len(data) >= 5 + (size := int.from_bytes(data[1:5])):
            self._received(data[5 : 5 + size])
            data = data[5 + size :]
        self._message = data

    def _pump(self) -> None:
        frames: list[bytes | memoryview] = []
        while self._waiting:
            message = self._waiting[0]
            size = min(len(message), self._frame_bytes, self._connection_window, self._stream_window)
            if size <= 0:
                break
            frames += [_head(size, _DATA, 0, 1), message[:size]]
            self._connection_window -= size
            self._stream_window -= size
            if size == len(message):
                self._waiting.popleft()
            else:
                self._waiting[0] = message[size:]
        if self._ending and not self._waiting:
            self._ending = False
            frames.append(_frame(_DATA, _END_STREAM, 1, b""))
        if frames:
            self._write(b"".join(frames))

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def _fail(self, why: str) -> None:
        for future in (self._ready, self._ended):
            if not future.done():
                future.set_exception(ConnectionError(why))


def _begin(path: str, authority: str) -> bytes:
    """The head of a connection with one call; both may be answered without end."""
    words = {":method": "POST", ":scheme": "http", ":path": path, ":authority": authority}
    words |= {"te": "trailers", "content-type": "application/grpc"}
    headers = b"".join(b"\0" + _word(name) + _word(value) for name, value in words.items())  # literals, not indexed
    return (
        _PREFACE
        + _frame(_SETTINGS, 0, 0, struct.pack("!HI", _INITIAL_WINDOW, _MOST))
        + _frame(_WINDOW, 0, 0, struct.pack("!I", _MOST - _DEFAULT_WINDOW))
        + _frame(_HEADERS, _END_HEADERS, 1, headers)
    )


def _word(text: str) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return _head(len(body), kind, flags, stream) + body


def _head(size: int, kind: int, flags: int, stream: int) -> bytes:
    return struct.pack("!IBI", size << 8 | kind, flags, stream)
