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
import threading
from collections.abc import Callable, Iterator
from typing import Final

from opsplane_server.ftptransfer.failures import ErrorReason, TransferFailure
from opsplane_server.ftptransfer.sessions.sinks import Sink, disk_failure
from opsplane_server.ftptransfer.sessions.tls import TlsClient, tls_failure

CHUNK: Final = 256 * 1024
_AT_ONCE: Final = 1024 * 1024
"""Bytes that the kernel moves at a time."""
UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""What sendfile and splice say where a file system cannot do them."""
_CAN_SPLICE = hasattr(os, "splice") and hasattr(fcntl, "F_SETPIPE_SZ")

_local = threading.local()
_turns = threading.BoundedSemaphore(max(2, os.cpu_count() or 2))
"""So many threads move data at a time. With more than there are processors, the event loop would wait for its turn."""


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
    if not _CAN_SPLICE or sink.descriptor is None or _appends(sink.descriptor):
        _repeat(data, select.POLLIN, stall_timeout, lambda: _copied(data, sink, meter))
        return
    with _pipe() as pipe:
        _repeat(data, select.POLLIN, stall_timeout, lambda: _spliced(data, sink, meter, pipe))


def receive_tls(data: ssl.SSLSocket, sink: Sink, meter: Meter, stall_timeout: float) -> bool:
    """As `receive`. False when the end came without TLS saying so: the data may have been cut short on the way."""
    try:
        _repeat(data, select.POLLIN, stall_timeout, lambda: _decrypted(data, sink, meter))
    except ssl.SSLEOFError:
        return False
    _say_end(data)
    return True


def send(data: socket.socket, descriptor: int, size: int, meter: Meter, stall_timeout: float) -> None:
    """Sends the file from `meter.count` up to `size`. Raises OSError of the network, Stalled, or TransferFailure."""

    def move() -> bool:
        count = min(size - meter.count, _AT_ONCE)
        try:
            sent = os.sendfile(data.fileno(), descriptor, meter.count, count) if count else 0
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            sent = _send_copy(data, descriptor, count, meter.count)  # not every file system can
        return _went(sent, size, meter)

    _repeat(data, select.POLLOUT, stall_timeout, move)


def send_tls(data: ssl.SSLSocket, descriptor: int, size: int, meter: Meter, stall_timeout: float) -> None:
    """As `send`. Ends with TLS's own end, without waiting for the server's."""

    def move() -> bool:
        count = min(size - meter.count, CHUNK)
        return _went(_send_copy(data, descriptor, count, meter.count) if count else 0, size, meter)

    _repeat(data, select.POLLOUT, stall_timeout, move)
    _say_end(data)


def shrunk() -> TransferFailure:
    """The failure of a file that became shorter while it was sent."""
    return TransferFailure(ErrorReason.SOURCE_CHANGED, "the local file became shorter while it was sent")


def _say_end(data: ssl.SSLSocket) -> None:
    """Sends TLS's end (close_notify). Not all servers send theirs, so it is not waited for."""
    with contextlib.suppress(OSError, ValueError):
        data.unwrap()


def _repeat(data: socket.socket, events: int, stall_timeout: float, move: Callable[[], bool]) -> None:
    """Calls `move` until it is done, and waits for `events`, or for what TLS wants, where it cannot go on."""
    data.setblocking(False)
    done = False
    while not done:
        wanted = 0
        with _turns:
            try:
                done = move()
            except BlockingIOError:
                wanted = events
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except ssl.SSLWantWriteError:
                wanted = select.POLLOUT
        if wanted and not _is_ready(data, wanted, stall_timeout):
            raise Stalled


def _is_ready(data: socket.socket, events: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(data, events)
    return bool(poll.poll(timeout * 1000))


def _copied(data: socket.socket, sink: Sink, meter: Meter) -> bool:
    """Takes some data; True at the end of it."""
    buffer = _buffer()
    count = data.recv_into(buffer)
    sink.write(buffer[:count])
    meter.count += count
    return not count


def _decrypted(data: ssl.SSLSocket, sink: Sink, meter: Meter) -> bool:
    """As `_copied`. Gathers what there is, because TLS hands it out in pieces of 16 KiB."""
    buffer = _buffer()
    filled, count = 0, 1
    try:
        while count and filled < CHUNK:
            count = data.recv_into(buffer[filled:])
            filled += count
    finally:
        sink.write(buffer[:filled])
        meter.count += filled
    return not count


def _spliced(data: socket.socket, sink: Sink, meter: Meter, pipe: tuple[int, int]) -> bool:
    """As `_copied`, without taking the data out of the kernel. The pipe is empty before and after."""
    assert sink.descriptor is not None
    count = held = os.splice(data.fileno(), pipe[1], _AT_ONCE)
    while held:
        try:
            moved = os.splice(pipe[0], sink.descriptor, held)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise disk_failure(error) from error
            content = os.read(pipe[0], held)  # not every file system can
            sink.write(memoryview(content))
            moved = len(content)
        held -= moved
        meter.count += moved
    return not count


def _send_copy(data: socket.socket, descriptor: int, count: int, position: int) -> int:
    buffer = _buffer()
    try:
        read = os.preadv(descriptor, [buffer[: min(CHUNK, count)]], position)
    except OSError as error:
        raise disk_failure(error) from error
    return data.send(buffer[:read]) if read else 0


def _went(sent: int, size: int, meter: Meter) -> bool:
    if not sent and meter.count < size:
        raise shrunk()
    meter.count += sent
    return meter.count >= size


def _buffer() -> memoryview:
    buffer: memoryview | None = getattr(_local, "buffer", None)
    if buffer is None:
        buffer = _local.buffer = memoryview(bytearray(CHUNK))
    return buffer


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    pipe = os.pipe()
    try:
        # Where a user has many pipes the kernel refuses bigger ones.
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, _AT_ONCE)
        yield pipe
    finally:
        os.close(pipe[0])
        os.close(pipe[1])


def _appends(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND)
