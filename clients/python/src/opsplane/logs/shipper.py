"""The shipper as applications see it. See the package for a summary."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from opsplane.client import Tls
from opsplane.logingest.v1 import records_pb2
from opsplane.logs import settings as _settings
from opsplane.logs import spool as _spool
from opsplane.logs import stream
from opsplane.logs.encoding import Encoder
from opsplane.logs.report import ProblemKind, Reporter, Stats
from opsplane.logs.sender import Pause, Sender

_FORK_SECONDS = 3.0


class Shipper:
    """Ships records in the background. Making one opens nothing: the first record does.

    - `address`, `token`, `tls`, `plaintext`: as of `opsplane.client.connect`; what is not given comes from
      OPSPLANE_ADDRESS, OPSPLANE_TOKEN and OPSPLANE_CA.
    - `service` (default OTEL_SERVICE_NAME, or the name of the program), `environment`, `host` (default the name of this
      one), `service_version`: for records that do not say.
    - `client_id`: name of the sender at the server, which tells batches apart by it; default the service. Keep it over
      restarts: what is in the spool is shipped by a process of the same client id and address.
    - `durability`: "durable" or "fast", what an acknowledgement promises.
    - `gzip`: compress on the way, which costs CPU.
    - `memory_bytes`: bound of what is held in memory; up to 4 MiB that are read back from the spool may come to it.
    - `spool`: folder for what cannot be sent, shared by any number of processes; default OPSPLANE_LOGS_SPOOL or
      `opsplane/logs` in the user's state folder. None: memory alone.
    - `spool_bytes`: bound of that whole folder, up to a segment (a quarter of it, at most 4 MiB) a process.
    - `spool_fsync`: wait for the disk at each batch. By default what is spooled outlives the process, but the last
      seconds may not outlive the machine.
    - `linger_seconds`: how long a record waits for others to share its batch.
    - `window`: how many batches may be without an answer.
    - `exit_seconds`: how long the exit of the interpreter may wait for the server, before the rest is spooled.
    - `on_rejected(record, rejection)`: called on the sender's thread.
    - `on_problem(problem)`: called on the sender's thread, or in the call that it is about.

    Raises ValueError for settings that are wrong, and nothing later.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        plaintext: bool = False,
        service: str = "",
        environment: str = "",
        host: str = "",
        service_version: str = "",
        client_id: str = "",
        durability: str = "durable",
        gzip: bool = False,
        memory_bytes: int = 16 * 1024 * 1024,
        spool: str | os.PathLike[str] | None = _settings.DEFAULT_SPOOL,
        spool_bytes: int = 256 * 1024 * 1024,
        spool_fsync: bool = False,
        linger_seconds: float = 0.1,
        window: int = 8,
        exit_seconds: float = 5.0,
        on_rejected: _settings.OnRejected | None = None,
        on_problem: _settings.OnProblem | None = None,
    ) -> None:
        self.settings = _settings.resolve(
            address,
            token,
            tls,
            plaintext,
            service,
            environment,
            host,
            service_version,
            client_id,
            durability,
            gzip,
            memory_bytes,
            spool if _spool.SUPPORTED else None,
            spool_bytes,
            spool_fsync,
            linger_seconds,
            window,
            exit_seconds,
            on_rejected,
            on_problem,
        )
        self._lock = threading.RLock()
        self._closed = False
        self._running = False  # so that a call need not ask the thread
        self._encoder = Encoder(
            self.settings.service, self.settings.environment, self.settings.host, self.settings.service_version
        )
        self._reporter = Reporter(self.settings.on_problem)
        self._sender = Sender(self.settings, self._encoder, self._reporter)
        _shippers.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def log(self, level: str | int, message: object, /, *, wait: float = 0.0, **fields: Any) -> bool:
        """Ships a record made of plain values; False if it was dropped.

        `fields` are fields of LogRecord by name, `error` (an exception: its class and traceback), `metadata` (a
        mapping), and whatever else, which becomes metadata. `timestamp` may be a datetime, seconds or ISO 8601.
        """
        return self.log_fields(level, message, fields, wait=wait)

    def log_fields(self, level: str | int, message: object, fields: dict[str, Any], *, wait: float = 0.0) -> bool:
        """As `log`, with the fields in a dict."""
        try:
            return self._put(self._encoder.values(level, message, fields), wait)
        except Exception as error:
            return self._not_encoded(error)

    def send(self, record: records_pb2.LogRecord, *, wait: float = 0.0) -> bool:
        """Ships a record as it is, with what it leaves empty filled in; False if it was dropped."""
        try:
            return self._put(self._encoder.record(record), wait)
        except Exception as error:
            return self._not_encoded(error)

    def flush(self, timeout: float | None = None) -> bool:
        """True when all that was sent before is acknowledged or rejected; False when `timeout` seconds passed first."""
        sender = self._sender
        if sender.is_me():
            return False
        try:
            self._start()
        except RuntimeError:  # no thread can be started any more
            return False
        if self._closed:
            return self.stats().pending == 0
        return sender.flush(timeout)

    def close(self, timeout: float = 5.0) -> bool:
        """Flushes for up to `timeout` seconds and spools what is left; True if nothing was left. May be repeated."""
        sender = self._sender
        with self._lock:
            first, self._closed = not self._closed, True
            _started.discard(self)
        if first and not sender.is_me():
            sender.close(timeout)
        stats = self.stats()
        return stats.pending == 0 and sender.lost == 0

    def stats(self) -> Stats:
        """Figures of now."""
        sender = self._sender
        queue = sender.queue
        done = sender.acknowledged + sender.rejected + sender.lost
        return Stats(
            accepted=queue.accepted,
            acknowledged=sender.acknowledged,
            rejected=sender.rejected,
            pending=max(queue.accepted - done, 0),
            dropped=queue.dropped,
            spilled=sender.backlog.spilled,
            recovered=sender.recovered,
            memory_bytes=queue.used,
            spool_bytes=sender.backlog.spool_bytes,
            connected=sender.connected,
            error=sender.error,
        )

    def is_sender_thread(self) -> bool:
        """True on the thread that ships, and so in callbacks: what is logged there would feed on itself."""
        return self._sender.is_me()

    def drop(self) -> None:
        """Counts a record that its caller could not ship."""
        self._sender.queue.drop()

    def _put(self, record: bytes, wait: float) -> bool:
        if not self._running:
            with suppress(RuntimeError):  # the interpreter ends and starts no threads; `close` spools the queue
                self._start()
        sender = self._sender
        if self._closed or len(record) > _settings.MAX_RECORD_BYTES:
            sender.queue.drop()
            self._reporter.tell(
                ProblemKind.DROPPED,
                "a log record was dropped: " + ("the shipper is closed" if self._closed else "it is too large"),
            )
            return False
        return sender.queue.put(record, wait)

    def _start(self) -> None:
        with self._lock:
            if not self._sender.started and not self._closed:
                _started.add(self)
                self._sender.start()
                self._running = True
                self._at_exit_of_child()

    def _at_exit_of_child(self) -> None:
        """Children of multiprocessing end without the handlers of `atexit`."""
        process = sys.modules.get("multiprocessing.process")
        util = sys.modules.get("multiprocessing.util")
        if process is not None and util is not None and process.parent_process() is not None:
            util.Finalize(None, _close, args=(weakref.ref(self),), exitpriority=0)

    def _not_encoded(self, error: Exception) -> bool:
        with suppress(Exception):
            self._sender.queue.drop()
            self._reporter.tell(
                ProblemKind.INTERNAL, f"a log record could not be encoded: {type(error).__name__}: {error}"
            )
        return False

    def _before_fork(self) -> Pause | None:
        return self._sender.pause() if self._sender.started else None

    def _after_fork_in_child(self) -> None:
        # What the parent has taken in, the parent ships.
        sender = self._sender
        self._running = False
        _started.discard(self)
        self._lock = threading.RLock()
        self._reporter = Reporter(self.settings.on_problem)
        self._sender = Sender(self.settings, self._encoder, self._reporter)
        if sender.backlog.spool is not None:
            sender.backlog.spool.abandon()


_shippers: weakref.WeakSet[Shipper] = weakref.WeakSet()
_started: set[Shipper] = set()  # held until they are closed: one that nobody holds any more may have records
_forking = threading.local()  # of the thread that forks: the pauses that it has asked for


def _close(reference: weakref.ref[Shipper]) -> None:
    shipper = reference()
    if shipper is not None:
        shipper.close(shipper.settings.exit_seconds)


def _close_all() -> None:
    for shipper in list(_started):
        shipper.close(shipper.settings.exit_seconds)


def _before_fork() -> None:
    """gRPC's threads do not live on in a child, and what they held stays held: there must be none at the fork."""
    if getattr(_forking, "pauses", None):
        return
    with suppress(Exception):
        asked = [pause for shipper in list(_shippers) if (pause := shipper._before_fork()) is not None]
        _forking.pauses = asked
        deadline = time.monotonic() + _FORK_SECONDS
        for pause in asked:
            pause.ready.wait(max(deadline - time.monotonic(), 0.0))
        if asked:
            stream.await_shutdown()


def _after_fork_in_parent() -> None:
    for pause in getattr(_forking, "pauses", ()):
        pause.resume.set()
    _forking.pauses = ()


def _after_fork_in_child() -> None:
    _forking.pauses = ()
    for shipper in list(_shippers):
        with suppress(Exception):
            shipper._after_fork_in_child()


def _register_before_fork() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before_fork)


_register_before_fork()
# What is registered last runs first. gRPC registers a handler with its first channel that stops its threads, if its own
# support of forks is on; after that they could not be ended.
stream.on_first_channel(_register_before_fork)
atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
