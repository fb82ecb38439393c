"""Data connections in threads: for big files, slow disks and TLS, whose work must not hold up the event loop.

Both ways the data moves inside the kernel where it can (splice, sendfile), so that a thread holds the interpreter for
microseconds only. To break a transfer off from outside, shut its socket down: every call here then returns.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import ssl
import struct
import threading
from typing import Final

from opsplane_server.ftptransfer.failures import ErrorReason, TransferFailure
from opsplane_server.ftptransfer.sessions.sinks import Sink, disk_failure
from opsplane_server.ftptransfer.sessions.tls import TlsClient, tls_failure

CHUNK: Final = 256 * 1024
_PIPE: Final = 1024 * 1024
_SEND: Final = 1 << 30
UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""What sendfile and splice say where a file system cannot do them."""
_CAN_SPLICE = hasattr(os, "splice") and hasattr(fcntl, "F_SETPIPE_SZ")

_local = threading.local()


class Stalled(Exception):
    """Nothing moved for as long as was allowed."""


class Meter:
    """Bytes of a transfer so far, counted by a thread and read by the loop."""

    __slots__ = ("count",)

    def __init__(self, count: int = 0) -> None:
        self.count = count


def wait_connected(data: socket.socket, timeout: float) -> None:
    """Waits for a connection that is being opened, and makes the socket blocking."""
    poll = select.poll()
    poll.register(data, select.POLLOUT)
    if not poll.poll(timeout * 1000):
        raise TransferFailure(ErrorReason.DATA_CONNECTION, "the data connection could not be opened in time")
    if error := data.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        message = f"the data connection could not be opened: {os.strerror(error)}"
        raise TransferFailure(ErrorReason.DATA_CONNECTION, message)
    data.setblocking(True)


def secure(data: socket.socket, client: TlsClient, session: ssl.SSLSession | None) -> ssl.SSLSocket:
    """The connected socket under TLS, before its handshake; the socket itself is used up.

    It resumes the TLS session of the control connection: by that servers know that both ends are the same.
    """
    data.getpeername()  # where there is no connection any more, wrapping fails and leaves the socket open
    return client.context.wrap_socket(
        data,
        server_hostname=client.server_name,
        session=session,
        do_handshake_on_connect=False,
        suppress_ragged_eofs=False,
    )


def shake_hands(data: ssl.SSLSocket, client: TlsClient, timeout: float) -> None:
    """Begins TLS. Raises TransferFailure."""
    data.settimeout(timeout)
    try:
        data.do_handshake()
    except (OSError, ValueError) as error:
        failure = tls_failure(error)
        failure.message = f"data connection: {failure.message}"
        raise failure from error
    if not data.session_reused:
        client.check(data)


def receive(data: socket.socket, sink: Sink, meter: Meter, stall_timeout: float) -> None:
    """Takes everything until the end. Raises OSError of the network, Stalled, or the sink's TransferFailure."""
    _limit(data, socket.SO_RCVTIMEO, stall_timeout)
    try:
        if _CAN_SPLICE and sink.descriptor is not None and not _appends(sink.descriptor):
            _splice(data, sink, meter)
        else:
            _copy(data, sink, meter)
    except BlockingIOError as error:
        raise Stalled from error


def receive_tls(data: ssl.SSLSocket, sink: Sink, meter: Meter, stall_timeout: float) -> bool:
    """As `receive`. False when the end came without TLS saying so: the data may have been cut short on the way."""
    data.settimeout(stall_timeout)
    try:
        _copy(data, sink, meter)
    except ssl.SSLEOFError:
        return False
    except TimeoutError as error:
        raise Stalled from error
    _say_end(data)
    return True


def send(data: socket.socket, descriptor: int, size: int, meter: Meter, stall_timeout: float) -> None:
    """Sends the file from `meter.count` up to `size`. Raises OSError of the network, Stalled, or TransferFailure."""
    _limit(data, socket.SO_SNDTIMEO, stall_timeout)
    try:
        while meter.count < size:
            try:
                sent = os.sendfile(data.fileno(), descriptor, meter.count, min(size - meter.count, _SEND))
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                sent = _send_copy(data, descriptor, size, meter.count)  # not every file system can
            if not sent:
                raise shrunk()
            meter.count += sent
    except BlockingIOError as error:
        raise Stalled from error


def send_tls(data: ssl.SSLSocket, descriptor: int, size: int, meter: Meter, stall_timeout: float) -> None:
    """As `send`. Ends with TLS's own end, without waiting for the server's."""
    data.settimeout(stall_timeout)
    try:
        while meter.count < size:
            if not (sent := _send_copy(data, descriptor, size, meter.count)):
                raise shrunk()
            meter.count += sent
    except TimeoutError as error:
        raise Stalled from error
    _say_end(data)


def shrunk() -> TransferFailure:
    """The failure of a file that became shorter while it was sent."""
    return TransferFailure(ErrorReason.SOURCE_CHANGED, "the local file became shorter while it was sent")


def _say_end(data: ssl.SSLSocket) -> None:
    """Sends TLS's end (close_notify). Not all servers send theirs, so it is not waited for."""
    data.setblocking(False)
    with contextlib.suppress(OSError, ValueError):
        data.unwrap()


def _splice(data: socket.socket, sink: Sink, meter: Meter) -> None:
    assert sink.descriptor is not None
    source, drain = os.pipe()
    try:
        # Where a user has many pipes the kernel refuses bigger ones.
        with contextlib.suppress(OSError):
            fcntl.fcntl(drain, fcntl.F_SETPIPE_SZ, _PIPE)
        while held := os.splice(data.fileno(), drain, _PIPE):
            while held:
                try:
                    moved = os.splice(source, sink.descriptor, held)
                except OSError as error:
                    if error.errno not in UNSUPPORTED:
                        raise disk_failure(error) from error
                    # Not every file system can; go on by copying, beginning with what the pipe holds.
                    sink.write(memoryview(os.read(source, held)))
                    moved = held
                held -= moved
                meter.count += moved
    finally:
        os.close(source)
        os.close(drain)


def _copy(data: socket.socket, sink: Sink, meter: Meter) -> None:
    buffer = _buffer()
    while count := data.recv_into(buffer):
        sink.write(buffer[:count])
        meter.count += count


def _send_copy(data: socket.socket, descriptor: int, size: int, position: int) -> int:
    buffer = _buffer()
    try:
        read = os.preadv(descriptor, [buffer[: min(CHUNK, size - position)]], position)
    except OSError as error:
        raise disk_failure(error) from error
    data.sendall(buffer[:read])
    return read


def _buffer() -> memoryview:
    buffer: memoryview | None = getattr(_local, "buffer", None)
    if buffer is None:
        buffer = _local.buffer = memoryview(bytearray(CHUNK))
    return buffer


def _appends(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND)


def _limit(data: socket.socket, option: int, seconds: float) -> None:
    """Lets blocking calls give up; Python's own time limit would make the socket non-blocking instead."""
    data.setblocking(True)
    whole = int(seconds)
    data.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", whole, int((seconds - whole) * 1_000_000)))
