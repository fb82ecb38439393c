"""A real server and a real channel for tests of RPCs.

pytest-grpc gives the contract: a module of tests defines `grpc_add_to_server`, `grpc_servicer` and `grpc_stub_cls`
and asks for `grpc_stub`. Its server and channel are not asynchronous, so these two fixtures take their place. They
live as long as the module, and so must its event loop:

    pytestmark = pytest.mark.asyncio(loop_scope="module")

The server has the interceptors of production, and lets every caller of this machine in; a module that needs others
defines pytest-grpc's `grpc_interceptors`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import grpc
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from opsplane_server.rpc import reflection
from opsplane_server.rpc.identity import Anonymous
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.interceptors.chain import Interceptor
from opsplane_server.rpc.server import Registration, RpcServer, ServerOptions, build_server

AddToServer = Callable[[Any, grpc.aio.Server], None]
Metadata = Sequence[tuple[str, str]]


def bearer(token: str) -> Metadata:
    """Metadata of a call with a token."""
    return (("authorization", f"Bearer {token}"),)


@dataclass(frozen=True, slots=True)
class Served:
    """A server that is up, and where."""

    server: RpcServer
    address: str

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.address)


def registration(add_to_server: AddToServer, servicer: Any) -> Registration:
    """Register a servicer by its generated `add_..._to_server`, which knows the name of its service."""
    names: list[str] = []

    class Recorder:
        def add_generic_rpc_handlers(self, handlers: Any) -> None: ...

        def add_registered_method_handlers(self, name: str, handlers: Any) -> None:
            names.append(name)

    add_to_server(servicer, cast(grpc.aio.Server, Recorder()))
    return Registration(names[0], lambda server: add_to_server(servicer, server))


@asynccontextmanager
async def serving(
    registrations: Sequence[Registration],
    interceptors: Sequence[Interceptor],
    *,
    address: str = "127.0.0.1:0",
    options: ServerOptions | None = None,
) -> AsyncIterator[Served]:
    """Run a server on a free port of loopback, or at the given address."""
    server = build_server(registrations, interceptors, options=options or ServerOptions())
    port = server.add_insecure_port(address)
    await server.start()
    try:
        await server.set_serving()
        yield Served(server, address if address.startswith("unix:") else f"127.0.0.1:{port}")
    finally:
        await server.stop(None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grpc_server(
    grpc_add_to_server: AddToServer, grpc_servicer: Any, grpc_interceptors: Sequence[Interceptor] | None
) -> AsyncIterator[Served]:
    interceptors = standard(Anonymous()) if grpc_interceptors is None else grpc_interceptors
    async with serving([registration(grpc_add_to_server, grpc_servicer)], interceptors) as served:
        yield served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grpc_channel(grpc_server: Served) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc_server.channel() as channel:
        yield channel


class Details(NamedTuple):
    """The `google.rpc` details of an error; what was not sent is None."""

    info: error_details_pb2.ErrorInfo
    bad_request: error_details_pb2.BadRequest | None
    precondition: error_details_pb2.PreconditionFailure | None
    retry: error_details_pb2.RetryInfo | None

    @property
    def bad_fields(self) -> list[str]:
        return [violation.field for violation in self.bad_request.field_violations] if self.bad_request else []


def details_of(error: grpc.aio.AioRpcError) -> Details:
    """Read the details of an error, which must carry an ErrorInfo."""
    status = rpc_status.from_call(cast(grpc.Call, error))
    assert status is not None, f"no details in {error}"
    found: dict[type[Any], Any] = {}
    for packed in status.details:
        for kind in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.BadRequest,
            error_details_pb2.PreconditionFailure,
            error_details_pb2.RetryInfo,
        ):
            if packed.Is(kind.DESCRIPTOR):
                found[kind] = kind.FromString(packed.value)
    return Details(
        found[error_details_pb2.ErrorInfo],
        found.get(error_details_pb2.BadRequest),
        found.get(error_details_pb2.PreconditionFailure),
        found.get(error_details_pb2.RetryInfo),
    )


@dataclass(slots=True)
class Refusal:
    """What `require_status` caught; filled when its block has ended."""

    message: str = ""
    details: Details | None = None

    @property
    def bad_fields(self) -> list[str]:
        return self.details.bad_fields if self.details else []


@contextmanager
def require_status(code: grpc.StatusCode, reason: str | None = None) -> Iterator[Refusal]:
    """Require that the block ends with a status, and with an ErrorInfo of this reason if one is given."""
    refusal = Refusal()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield refusal
    error = caught.value
    assert error.code() is code, f"{error.code()} instead of {code}: {error.details()}"
    refusal.message = error.details() or ""
    if reason is not None:
        refusal.details = details_of(error)
        assert refusal.details.info.reason == reason
        assert refusal.details.info.domain == "opsplane.dev"


class RpcMethod(NamedTuple):
    """An RPC as reflection tells it: `/package.Service/Name` and the full name of its request type."""

    path: str
    request_type: str
    client_streaming: bool
    server_streaming: bool


async def methods(channel: grpc.aio.Channel, metadata: Metadata = ()) -> list[RpcMethod]:
    """List every RPC of a server, as reflection (v1) tells them."""
    info = channel.stream_stream(
        f"/{reflection.V1}/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )

    async def ask(
        *requests: reflection_pb2.ServerReflectionRequest,
    ) -> list[reflection_pb2.ServerReflectionResponse]:
        return [answer async for answer in info(iter(requests), metadata=metadata)]

    [listed] = await ask(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = [service.name for service in listed.list_services_response.service]
    answers = await ask(*(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in names))
    found: list[RpcMethod] = []
    for name, answer in zip(names, answers, strict=True):
        assert not answer.HasField("error_response"), f"{name} is listed but not described"
        found += _methods_of(name, answer.file_descriptor_response.file_descriptor_proto)
    return found


def _methods_of(service_name: str, files: Sequence[bytes]) -> list[RpcMethod]:
    for raw in files:
        file = descriptor_pb2.FileDescriptorProto.FromString(raw)
        for service in file.service:
            if f"{file.package}.{service.name}" == service_name:
                return [
                    RpcMethod(
                        f"/{service_name}/{method.name}",
                        method.input_type.removeprefix("."),
                        method.client_streaming,
                        method.server_streaming,
                    )
                    for method in service.method
                ]
    raise AssertionError(f"no file of the answer holds {service_name}")


async def call_empty(channel: grpc.aio.Channel, method: RpcMethod, metadata: Metadata = ()) -> None:
    """Call an RPC of any kind with one empty message, and read its first answer."""
    kinds: dict[tuple[bool, bool], Any] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    invoke = kinds[method.client_streaming, method.server_streaming](method.path)
    attempts = 0
    while True:
        call = invoke(iter([b""]) if method.client_streaming else b"", metadata=metadata)
        try:
            await (call.read() if method.server_streaming else call)
        except grpc.aio.AioRpcError as error:
            # gRPC's client says INTERNAL when the server has refused before the message was sent, and the refusal is
            # lost. What the server itself calls so has a trace id.
            lost = error.code() is grpc.StatusCode.INTERNAL and "trace id" not in (error.details() or "")
            attempts += 1
            if method.client_streaming and lost and attempts < 10:
                continue
            raise
        return
