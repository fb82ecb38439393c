"""A thin client: one channel, a typed stub for each service, and the few things that every caller needs.

    async with connect("127.0.0.1:50051") as client:
        project = await client.load_testing.GetProject(projects_pb2.GetProjectRequest(name="projects/demo"))

Calls that meet UNAVAILABLE are repeated with growing pauses. That is safe for reads always, and for changes that carry
a `request_id` (see `new_request_id`), so give each change one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status

from opsplane.backups.v1 import backups_pb2_grpc
from opsplane.common.v1 import platform_pb2, platform_pb2_grpc
from opsplane.ftptransfer.v1 import ftptransfer_pb2_grpc
from opsplane.instances.v1 import instances_pb2_grpc
from opsplane.loadtesting.v1 import loadtesting_pb2_grpc, runs_pb2
from opsplane.logingest.v1 import logingest_pb2, logingest_pb2_grpc, queries_pb2

DEFAULT_ADDRESS = "127.0.0.1:50051"

_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", json.dumps(_RETRIES)),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
]
# How a stream ends when its server goes away: killed, or stopped while the call was under way.
_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_RECONNECT_FIRST_SECONDS = 0.2
_RECONNECT_MOST_SECONDS = 5.0
_RECONNECT_GIVE_UP_SECONDS = 120.0

ENDED_RUN_STATES = frozenset((runs_pb2.RUN_STATE_COMPLETED, runs_pb2.RUN_STATE_CANCELLED, runs_pb2.RUN_STATE_FAILED))

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Tls:
    """How a connection is secured: PEM files. `ca` is None for the authorities that gRPC ships with.

    `certificate` and `key` go together: what this client proves itself with (mTLS).
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files; OSError if one is not readable."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.read_bytes() if self.ca else None,
            private_key=self.key.read_bytes() if self.key else None,
            certificate_chain=self.certificate.read_bytes() if self.certificate else None,
        )


class Client:
    """Typed stubs over one channel. Made by `connect`; `async with` closes the channel."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.channel = channel
        self.load_testing = loadtesting_pb2_grpc.LoadTestingStub(channel)
        self.instances = instances_pb2_grpc.InstancesStub(channel)
        self.backups = backups_pb2_grpc.BackupsStub(channel)
        self.log_ingest = logingest_pb2_grpc.LogIngestStub(channel)
        self.ftp_transfer = ftptransfer_pb2_grpc.FtpTransferStub(channel)
        self.platform = platform_pb2_grpc.PlatformStub(channel)
        self.operations = operations_pb2_grpc.OperationsStub(channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends calls under way and the connection."""
        await self.channel.close()

    async def watch_run(
        self, name: str, *, cursor: str = "", on_reconnect: Callable[[], None] | None = None
    ) -> AsyncIterator[runs_pb2.WatchRunResponse]:
        """LoadTesting.WatchRun that survives the loss of its stream: it goes on after the last message it gave.

        Windows are neither missed nor repeated; the run itself, which opens every stream, comes again only if it has
        changed. `on_reconnect` is called at each loss. Raises AioRpcError when the server can not be reached for two
        minutes, or refuses.
        """
        run = runs_pb2.Run()
        pause = _Pause()
        while True:
            call = self.load_testing.WatchRun(runs_pb2.WatchRunRequest(name=name, cursor=cursor))
            lost: grpc.aio.AioRpcError | None = None
            try:
                async for response in call:
                    pause.reset()
                    cursor = response.cursor or cursor
                    if response.HasField("run"):
                        if response.run == run:
                            continue
                        run = response.run
                    yield response
            except grpc.aio.AioRpcError as error:
                lost = error
            finally:
                call.cancel()
            if lost is None and run.state in ENDED_RUN_STATES:
                return
            if on_reconnect is not None and (lost is None or lost.code() in _LOST):
                on_reconnect()
            await pause.after(lost)

    async def tail_logs(
        self,
        query: queries_pb2.LogQuery | None = None,
        *,
        backlog: int = 0,
        cursor: str = "",
        on_reconnect: Callable[[], None] | None = None,
    ) -> AsyncIterator[logingest_pb2.TailLogsResponse]:
        """LogIngest.TailLogs that survives the loss of its stream: it goes on after the last message it gave.

        It ends only by an error, as `watch_run` does, or when the caller leaves. `on_reconnect` is called at each loss.
        """
        pause = _Pause()
        while True:
            request = logingest_pb2.TailLogsRequest(query=query, backlog=0 if cursor else backlog, cursor=cursor)
            call = self.log_ingest.TailLogs(request)
            lost: grpc.aio.AioRpcError | None = None
            try:
                async for response in call:
                    pause.reset()
                    cursor = response.cursor or cursor
                    yield response
            except grpc.aio.AioRpcError as error:
                lost = error
            finally:
                call.cancel()
            if on_reconnect is not None and (lost is None or lost.code() in _LOST):
                on_reconnect()
            await pause.after(lost)

    async def watch_operation(self, name: str) -> AsyncIterator[operations_pb2.Operation]:
        """Platform.WatchOperation that survives the loss of its stream; the last one it gives is done.

        Raises AioRpcError as `watch_run` does.
        """
        pause = _Pause()
        while True:
            try:
                async for current in self.platform.WatchOperation(platform_pb2.WatchOperationRequest(name=name)):
                    pause.reset()
                    yield current
                    if current.done:
                        return
                await pause.after(None)
            except grpc.aio.AioRpcError as error:
                await pause.after(error)

    async def wait_operation(self, operation: operations_pb2.Operation | str, response_type: type[M]) -> M:
        """Waits until an operation (or one of this name) is done and returns its response.

        Raises OperationFailed with what it ended with, and AioRpcError as `watch_run` does.
        """
        last = operations_pb2.Operation(name=operation) if isinstance(operation, str) else operation
        if not last.done:
            async for state in self.watch_operation(last.name):
                last = state
        return operation_response(last, response_type)


class OperationFailed(Exception):
    """An operation ended without a response: `name`, and `code` and message of its error."""

    def __init__(self, operation: operations_pb2.Operation) -> None:
        super().__init__(operation.error.message)
        self.name = operation.name
        self.code = code_pb2.Code.Name(operation.error.code)


@dataclass(frozen=True, slots=True)
class Details:
    """What an error says beyond its status. `fields` are pairs of the bad field's path and what is wrong with it."""

    reason: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    retry_after: timedelta | None = None


def connect(
    address: str | None = None, *, token: str | None = None, tls: Tls | None = None, plaintext: bool = False
) -> Client:
    """Returns a client for `address` (`host:port` or `unix:PATH`); the connection is made by the first call.

    What is not given comes from OPSPLANE_ADDRESS, OPSPLANE_TOKEN and OPSPLANE_CA. This machine is talked to in plain
    text unless `tls` or a CA is given; every other one with TLS, unless `plaintext` says that something else secures
    the way. OSError if a file of `tls` is not readable.
    """
    address = address or os.environ.get("OPSPLANE_ADDRESS") or DEFAULT_ADDRESS
    token = os.environ.get("OPSPLANE_TOKEN", "") if token is None else token
    if tls is None and (ca := os.environ.get("OPSPLANE_CA")):
        tls = Tls(ca=Path(ca))
    if plaintext or (tls is None and is_local(address)):
        channel = grpc.aio.insecure_channel(address, _OPTIONS)
    else:
        channel = grpc.aio.secure_channel(address, (tls or Tls()).credentials(), _OPTIONS)
    return Client(address, _Authorized(channel, token) if token else channel)


def new_request_id() -> str:
    """A new `request_id`: repeat a call with the same one, and it is done once."""
    return str(uuid.uuid4())


def details(error: grpc.aio.AioRpcError) -> Details:
    """Reads the `google.rpc` details that every refusal of the server carries; empty ones if there are none."""
    try:
        status = rpc_status.from_call(cast(grpc.Call, error))
    except ValueError:  # made by something on the way that is not of this system
        status = None
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    found_retry = False
    for packed in status.details if status else ():
        packed.Unpack(info)
        packed.Unpack(bad_request)
        found_retry = packed.Unpack(retry) or found_retry
    return Details(
        info.reason,
        tuple((violation.field, violation.description) for violation in bad_request.field_violations),
        retry.retry_delay.ToTimedelta() if found_retry else None,
    )


def is_local(address: str) -> bool:
    """True for unix sockets and loopback addresses."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0].rpartition("/")[2].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Pause:
    """Growing pauses between attempts; gives up after two minutes without success."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Called when something was received."""
        self._seconds = _RECONNECT_FIRST_SECONDS
        self._since: float | None = None

    async def after(self, lost: grpc.aio.AioRpcError | None) -> None:
        """Waits before the next attempt. `lost` is None for a stream that ended in good order, but too early.

        Raises `lost` where another attempt can not help.
        """
        now = asyncio.get_running_loop().time()
        if self._since is None:
            self._since = now
        if lost is not None and (lost.code() not in _LOST or now - self._since > _RECONNECT_GIVE_UP_SECONDS):
            raise lost
        await asyncio.sleep(self._seconds)
        self._seconds = min(self._seconds * 2, _RECONNECT_MOST_SECONDS)


def operation_response(operation: operations_pb2.Operation, response_type: type[M]) -> M:
    """The response of an operation that is done. Raises OperationFailed."""
    if operation.HasField("error"):
        raise OperationFailed(operation)
    response = response_type()
    if not operation.response.Unpack(response):
        raise TypeError(f"{operation.name} gave {operation.response.type_url}, not {response.DESCRIPTOR.full_name}")
    return response


class _Authorized(grpc.aio.Channel):
    """A channel whose calls carry a token. Call credentials would do, but they refuse plain text even on loopback."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {token}"),)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """Makes a unary call; the other three alike."""
        return self._with_token(self._channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See `unary_unary`."""
        return self._with_token(self._channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See `unary_unary`."""
        return self._with_token(self._channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See `unary_unary`."""
        return self._with_token(self._channel.stream_stream(*args, **kwargs))

    def _with_token(self, start: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, metadata: Any = None, **kwargs: Any) -> Any:
            return start(*args, metadata=(*(metadata or ()), *self._metadata), **kwargs)

        return call

    async def close(self, grace: float | None = None) -> None:
        """Closes the channel."""
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Tells whether it is connected."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Returns when its state is another one."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Returns when it is connected."""
        await self._channel.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
