"""Moving data over an open data connection: small files on the event loop, big ones and TLS in threads."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import socket
import ssl
import struct
import termios
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from opsplane_server.ftptransfer.failures import ErrorReason, TransferFailure
from opsplane_server.ftptransfer.sessions import blocking
from opsplane_server.ftptransfer.sessions.blocking import Meter, Stalled
from opsplane_server.ftptransfer.sessions.sinks import Sink
from opsplane_server.ftptransfer.sessions.tls import TlsClient
from opsplane_server.ftptransfer.sessions.watchdog import Watchdog

INLINE: Final = 256 * 1024
"""Bytes of a transfer that the event loop moves itself; the rest is a thread's, which costs about 0.1 ms to begin."""
_READS: Final = 8
"""Most reads at a time, so that one fast transfer does not keep the others waiting."""
_SLOW: Final = 0.01
"""Seconds; where the disk takes longer for a chunk, threads do everything for a while."""
_TURN: Final = 0.008
"""Seconds of a turn of the event loop that go into moving data; what is left then threads do."""
_SLOW_FOR: Final = 10.0
_PROGRESS: Final = 0.25
"""Seconds between reports of what a thread does."""

_RESET = struct.pack("@ii", 1, 0)


class DataPlane:
    """What the data connections of an event loop share: a buffer, threads, and what is known of the disk's speed."""

    def __init__(self, threads: Executor) -> None:
        self.threads = threads
        self.buffer = memoryview(bytearray(blocking.CHUNK))
        self._loop = asyncio.get_running_loop()
        self._slow_until = self._began = self._spent = 0.0
        self._waits = 0

    @property
    def slow(self) -> bool:
        """Whether the disk was slow lately, so that the event loop must not wait for it."""
        return time.monotonic() < self._slow_until

    @property
    def tired(self) -> bool:
        """Whether the event loop has moved so much in this turn that others would wait too long for theirs."""
        return self._spent > _TURN

    def start(self) -> None:
        """The event loop is about to use the disk."""
        if not self._spent:
            # Runs when all that is ready now has been seen to.
            self._loop.call_soon(self._rest)
        self._began = time.perf_counter()
        self._waits = _waits()

    def waited(self) -> bool:
        """Whether the disk kept the event loop waiting too long since `start`; it is remembered."""
        took = time.perf_counter() - self._began
        self._spent += took
        # A process that had to give way to others is late as well; that does not count.
        if took < _SLOW or _waits() == self._waits:
            return False
        self._slow_until = time.monotonic() + _SLOW_FOR
        return True

    def _rest(self) -> None:
        self._spent = 0.0


def _waits() -> int:
    """How often this thread has waited for something."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class Flow(ABC):
    """The data of one transfer. `finished` raises TransferFailure; `close` must be awaited whatever happens."""

    def __init__(
        self,
        plane: DataPlane,
        watchdog: Watchdog,
        timeout: float,
        progress: Callable[[int], None] | None,
        tls: tuple[TlsClient, ssl.SSLSession | None] | None = None,
    ) -> None:
        """`timeout` is how long the data may stand still, in seconds."""
        self._loop = asyncio.get_running_loop()
        self._plane = plane
        self._watchdog = watchdog
        self._timeout = timeout
        self._progress = progress
        self._tls = tls
        self._data: socket.socket | None = None
        self._handle = -1
        self._watched = False
        self._connected = False
        self._thread: asyncio.Future[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._stopping = False
        self._wrapping = threading.Lock()
        self._failure: TransferFailure | None = None
        self.meter = Meter()
        self.on_failure: Callable[[], None] | None = None

    @property
    def begun(self) -> bool:
        """Whether there is a connection."""
        return self._data is not None

    @property
    def failure(self) -> TransferFailure | None:
        """Why it failed; None while it has not."""
        return self._failure

    def begin(self, data: socket.socket) -> None:
        """Goes on over `data`, connected or about to be, which is closed by `close`."""
        self._data = data
        self._handle = data.fileno()
        if self._tls is not None or self._plane.slow:
            self._hand_over()
            return
        self._watchdog.start(self._timeout, self._stalled)
        self._watch()

    async def finished(self) -> None:
        """Returns when all data has moved."""
        if not self._ended:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Ends it, at once where it has not ended by itself; then the server sees it broken off, and not complete."""
        self._stopping = True
        self._unwatch()
        self._watchdog.stop()
        if self._ticker is not None:
            self._ticker.cancel()
        if self._data is None:
            return
        cancelled = False
        if self._thread is not None and not self._thread.done():
            while not self._thread.done():
                # Broken off while it is being wrapped, the TLS socket would be left open.
                with self._wrapping, contextlib.suppress(OSError):
                    # Not the method of a TLS socket, which would take its TLS away from under the thread.
                    socket.socket.shutdown(self._data, socket.SHUT_RDWR)
                try:
                    await asyncio.wait([self._thread], timeout=1.0)
                except asyncio.CancelledError:
                    # The thread uses the caller's file: nobody may close that before it has ended.
                    cancelled = True
        if not self._ended or self._failure is not None:
            with contextlib.suppress(OSError):
                self._data.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._data.close()
        if cancelled:
            raise asyncio.CancelledError

    @abstractmethod
    def _watch(self) -> None:
        """Has the loop call when there is something to do."""

    @abstractmethod
    def _unwatch(self) -> None:
        """The opposite of `_watch`; harmless without it."""

    @abstractmethod
    def _move(self, data: socket.socket) -> None:
        """Moves what is left, in a thread."""

    @abstractmethod
    def _move_tls(self, data: ssl.SSLSocket) -> None:
        """Moves everything under TLS, in a thread."""

    def _moved(self) -> bool:
        """Whether any data has moved, so that there is a connection."""
        return self.meter.count > 0

    def _hand_over(self) -> None:
        self._connected = self._moved()
        self._unwatch()
        self._watchdog.stop()
        self._thread = self._loop.run_in_executor(self._plane.threads, self._run)
        self._thread.add_done_callback(self._thread_ended)
        if self._progress is not None:
            self._tick()

    def _run(self) -> None:
        assert self._data is not None
        if not self._connected:
            blocking.wait_connected(self._data, self._timeout)
        if self._tls is None:
            self._move(self._data)
            return
        client, session = self._tls
        with self._wrapping:
            if self._stopping:
                raise ConnectionAbortedError("broken off")
            secured = blocking.secure(self._data, client, session)
            self._data = secured
        blocking.shake_hands(secured, client, self._timeout)
        self._move_tls(secured)

    def _tick(self) -> None:
        assert self._progress is not None
        self._progress(self.meter.count)
        self._ticker = self._loop.call_later(_PROGRESS, self._tick)

    def _thread_ended(self, thread: asyncio.Future[None]) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        if not thread.cancelled():
            self._end(thread.exception())

    def _stalled(self) -> None:
        self._end(Stalled())

    def _end(self, error: BaseException | None) -> None:
        self._unwatch()
        self._watchdog.stop()
        self._ended = True
        if error is not None:
            self._failure = self._translate(error)
            if self.on_failure is not None:
                self.on_failure()
        elif self._progress is not None:
            self._progress(self.meter.count)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _translate(self, error: BaseException) -> TransferFailure:
        if isinstance(error, TransferFailure):
            return error
        if isinstance(error, Stalled):
            return TransferFailure(ErrorReason.STALLED, f"the data stood still for {self._timeout:g} s")
        if isinstance(error, ConnectionRefusedError):
            return TransferFailure(ErrorReason.DATA_CONNECTION, f"the data connection was refused: {error.strerror}")
        if isinstance(error, OSError):
            return TransferFailure(ErrorReason.CONNECTION_LOST, f"the data connection broke: {error}")
        failure = TransferFailure(ErrorReason.UNSPECIFIED, f"the transfer failed: {type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure


class Incoming(Flow):
    """Data from the server into a sink. `complete` is False when TLS did not say that it was the end."""

    def __init__(
        self,
        plane: DataPlane,
        watchdog: Watchdog,
        timeout: float,
        progress: Callable[[int], None] | None,
        tls: tuple[TlsClient, ssl.SSLSession | None] | None,
        sink: Sink,
    ) -> None:
        super().__init__(plane, watchdog, timeout, progress, tls)
        self._sink = sink
        self.complete = True

    def _watch(self) -> None:
        self._watched = True
        self._loop.add_reader(self._handle, self._readable)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._handle)

    def _readable(self) -> None:
        assert self._data is not None
        if self._plane.tired:
            self._hand_over()
            return
        buffer, meter = self._plane.buffer, self.meter
        self._plane.start()
        try:
            for _ in range(_READS):
                count = self._data.recv_into(buffer)
                if not count:
                    self._plane.waited()
                    self._end(None)
                    return
                self._sink.write(buffer[:count])
                meter.count += count
                if meter.count >= INLINE:
                    break
        except BlockingIOError:
            pass
        except (OSError, TransferFailure) as error:
            self._end(error)
            return
        if self._progress is not None:
            self._progress(meter.count)
        if self._plane.waited() or meter.count >= INLINE:
            self._hand_over()
        else:
            self._watchdog.feed()

    def _move(self, data: socket.socket) -> None:
        blocking.receive(data, self._sink, self.meter, self._timeout)

    def _move_tls(self, data: ssl.SSLSocket) -> None:
        self.complete = blocking.receive_tls(data, self._sink, self.meter, self._timeout)


class Outgoing(Flow):
    """A file to the server, from `offset` on up to the size that it has now."""

    def __init__(
        self,
        plane: DataPlane,
        watchdog: Watchdog,
        timeout: float,
        progress: Callable[[int], None] | None,
        tls: tuple[TlsClient, ssl.SSLSession | None] | None,
        descriptor: int,
        offset: int,
    ) -> None:
        super().__init__(plane, watchdog, timeout, None, tls)
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._offset = offset
        self._left = -1
        self.meter.count = offset
        if progress is not None:
            self._progress = lambda count: progress(count - offset)

    @property
    def sent(self) -> int:
        """Bytes that were sent."""
        return self.meter.count - self._offset

    def _moved(self) -> bool:
        return self.sent > 0

    def draining(self) -> bool:
        """Whether the server has taken anything of what the kernel still holds since it was last asked."""
        assert self._data is not None
        left = struct.unpack("@i", fcntl.ioctl(self._data.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        before, self._left = self._left, left
        return left > 0 and (before < 0 or left < before)

    def _watch(self) -> None:
        # The connection stands: the server has said that it waits. So most files go at the first try.
        self._writable()
        if not self._ended and self._thread is None:
            self._watched = True
            self._loop.add_writer(self._handle, self._writable)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.remove_writer(self._handle)

    def _writable(self) -> None:
        assert self._data is not None
        if self._plane.tired:
            self._hand_over()
            return
        meter = self.meter
        self._plane.start()
        try:
            if meter.count < self._size:
                count = min(self._size - meter.count, INLINE)
                sent = os.sendfile(self._handle, self._descriptor, meter.count, count)
                if not sent:
                    raise blocking.shrunk()
                meter.count += sent
            if meter.count >= self._size:
                self._data.shutdown(socket.SHUT_WR)
                self._plane.waited()
                self._end(None)
                return
        except BlockingIOError:
            return
        except (OSError, TransferFailure) as error:
            if isinstance(error, OSError) and error.errno in blocking.UNSUPPORTED:
                self._hand_over()
            else:
                self._end(error)
            return
        if self._progress is not None:
            self._progress(meter.count)
        if self._plane.waited() or meter.count - self._offset >= INLINE:
            self._hand_over()
        else:
            self._watchdog.feed()

    def _move(self, data: socket.socket) -> None:
        blocking.send(data, self._descriptor, self._size, self.meter, self._timeout)
        data.shutdown(socket.SHUT_WR)

    def _move_tls(self, data: ssl.SSLSocket) -> None:
        blocking.send_tls(data, self._descriptor, self._size, self.meter, self._timeout)
        socket.socket.shutdown(data, socket.SHUT_WR)
