"""One call of StreamLogs.

The synchronous gRPC is used, not `grpc.aio`: that one keeps a thread and descriptors for the whole process, which a
forked child shares, so that both hang. Here the last channel that is closed takes all of gRPC's threads with it, and a
process may fork then; see `Sender.pause`.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import grpc

from opsplane.client import Tls, details, is_local
from opsplane.logingest.v1 import logingest_pb2, records_pb2
from opsplane.logs.settings import Settings

METHOD = "/opsplane.logingest.v1.LogIngest/StreamLogs"
_JOIN_SECONDS = 2.0
_SHUTDOWN_SECONDS = 0.3
_TASKS = Path("/proc/self/task")
_NATIVE_THREADS = ("event_engine", "grpc_", "lifeguard")
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()  # those that gRPC has started for calls
_BATCH_TAG = bytes([logingest_pb2.StreamLogsRequest.BATCH_FIELD_NUMBER << 3 | 2])
_OPTIONS = [
    # Each stream has a connection of its own: it tries at once, and the kernel may give it to another server process.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a stream ended or could not be opened."""

    code: grpc.StatusCode
    message: str
    retry_after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a batch."""

    stream: Stream
    result: records_pb2.BatchResult


@dataclass(frozen=True, slots=True)
class Ended:
    """The stream is over."""

    stream: Stream
    failure: Failure


_first_channel: list[Callable[[], None]] = []


def on_first_channel(call: Callable[[], None]) -> None:
    """Calls this when the first channel of the process was made."""
    _first_channel.append(call)


class Stream:
    """A connection and its call; open once made. `tell` gets its events on a thread of the stream."""

    def __init__(self, settings: Settings, tell: Callable[[Answered | Ended], None]) -> None:
        self.opened_at = time.monotonic()
        self.answered = False
        """For its owner to set: the server has answered on it."""
        self._tell = tell
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        self._requests.put(logingest_pb2.StreamLogsRequest(settings=settings.stream).SerializeToString())
        self._channel: grpc.Channel | None = _channel(settings)
        while _first_channel:
            _first_channel.pop()()
        try:
            start: Any = self._channel.stream_stream(
                METHOD, request_serializer=None, response_deserializer=logingest_pb2.StreamLogsResponse.FromString
            )
            others = threading.enumerate()
            self._call: Any = start(
                iter(self._requests.get, None),
                metadata=(("authorization", f"Bearer {settings.token}"),) if settings.token else None,
                compression=grpc.Compression.Gzip if settings.gzip else None,
            )
            _threads.update(thread for thread in threading.enumerate() if thread not in others)
            self._reader = threading.Thread(target=self._read, name="opsplane-logs-answers", daemon=True)
            self._reader.start()
        except BaseException:
            self._requests.put(None)
            self._channel.close()
            raise

    def send(self, request: bytes) -> None:
        """Sends a serialized StreamLogsRequest; does not wait."""
        self._requests.put(request)

    def close(self) -> None:
        """Ends call and connection, and waits for their threads: nothing of gRPC is left if it was the only one."""
        self._requests.put(None)
        self._call.cancel()
        self._reader.join(_JOIN_SECONDS)
        if self._channel is not None:
            self._channel.close()
        self._call = self._channel = None

    def _read(self) -> None:
        call = self._call
        failure = Failure(grpc.StatusCode.OK, "the server has ended the stream")
        try:
            for response in call:
                self._tell(Answered(self, response.result))
        except grpc.RpcError as error:
            # The error is the call itself, which must not be kept.
            refused = cast(grpc.aio.AioRpcError, error)
            failure = Failure(refused.code(), refused.details() or "", details(refused).retry_after)
        except Exception as error:
            failure = Failure(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
        self._tell(Ended(self, failure))


def await_shutdown() -> None:
    """After the last channel is closed: waits for the threads of gRPC, which end a few milliseconds later.

    Not for long, as the application may have channels of its own; then gRPC's own handling of forks has to do.
    """
    deadline = time.monotonic() + _SHUTDOWN_SECONDS
    while time.monotonic() < deadline and _has_threads():
        time.sleep(0.001)


def _has_threads() -> bool:
    if any(thread.is_alive() for thread in _threads) or not _TASKS.is_dir():
        return True  # or there is nothing to see by: wait for as long as it may take
    for task in _TASKS.iterdir():
        with suppress(OSError):  # has ended
            if (task / "comm").read_text(encoding="utf-8", errors="replace").startswith(_NATIVE_THREADS):
                return True
    return False


def make_request(batch_id: str, records: list[bytes]) -> bytes:
    """Serializes a StreamLogsRequest with a batch, from serialized batches of one record each."""
    head = records_pb2.LogBatch(batch_id=batch_id).SerializeToString()
    size = len(head) + sum(map(len, records))
    return b"".join((_BATCH_TAG, _varint(size), head, *records))


def _varint(value: int) -> bytes:
    """An unsigned integer as protobuf writes it."""
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _channel(settings: Settings) -> grpc.Channel:
    if settings.plaintext or (settings.tls is None and is_local(settings.address)):
        return grpc.insecure_channel(settings.address, _OPTIONS)
    return grpc.secure_channel(settings.address, (settings.tls or Tls()).credentials(), _OPTIONS)
