from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from opsplane_server.rpc import reflection
from opsplane_server.rpc.identity import Anonymous
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.interceptors.chain import Chain, Handler, Method
from opsplane_server.rpc.server import Registration, RpcServer, ServerOptions, build_server

from tests.contract.rpc.echo import METHODS, PACKAGE, SERVICE, EchoServicer, EchoStub, Request
from tests.contract.rpc.echo import add_echo_servicer_to_server as add_echo
from tests.rpc_harness import RpcMethod, call_empty, methods, registration, require_status, serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def echo_registration() -> Registration:
    return registration(add_echo, EchoServicer())


def build(options: ServerOptions | None = None) -> RpcServer:
    return build_server([echo_registration()], standard(Anonymous()), options=options or ServerOptions())


async def health(channel: grpc.aio.Channel) -> list[int]:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return [(await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in ("", SERVICE)]


async def test_health_follows_the_life_of_the_server() -> None:
    server = build()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert await health(channel) == [NOT_SERVING, NOT_SERVING]
        await server.set_serving()
        assert await health(channel) == [SERVING, SERVING]
        await server.set_not_serving()
        assert await health(channel) == [NOT_SERVING, NOT_SERVING]
        await server.set_serving()
        await server.drain()
        await server.set_serving()
        assert await health(channel) == [NOT_SERVING, NOT_SERVING]
        assert (await EchoStub(channel).Say(Request(text="still here"))).text == "still here"
        await server.stop(None)


async def test_second_server_on_a_port_fails_unless_it_is_shared() -> None:
    first, second = build(), build()
    port = first.add_insecure_port("127.0.0.1:0")
    with pytest.raises(RuntimeError):
        second.add_insecure_port(f"127.0.0.1:{port}")
    await first.stop(None)

    shared = ServerOptions(so_reuseport=True)
    first, second = build(shared), build(shared)
    port = first.add_insecure_port("127.0.0.1:0")
    assert second.add_insecure_port(f"127.0.0.1:{port}") == port
    await first.stop(None)
    await second.stop(None)


async def test_request_above_the_limit_is_refused() -> None:
    options = ServerOptions(max_receive_bytes=1000)
    async with serving([echo_registration()], (), options=options) as served, served.channel() as channel:
        with require_status(StatusCode.RESOURCE_EXHAUSTED):
            await EchoStub(channel).Say(Request(text="x" * 1001))


@pytest.mark.parametrize("version", [reflection.V1, reflection.V1_ALPHA])
async def test_reflection_lists_and_describes_every_service(version: str) -> None:
    async with serving([echo_registration()], standard(Anonymous())) as served, served.channel() as channel:
        info = channel.stream_stream(
            f"/{version}/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=version),
        ]
        listed, described = [answer async for answer in info(iter(requests))]
        names = {service.name for service in listed.list_services_response.service}
        assert names == {SERVICE, "grpc.health.v1.Health", reflection.V1, reflection.V1_ALPHA}
        assert described.HasField("file_descriptor_response")


async def test_methods_are_told_with_their_kinds() -> None:
    async with serving([echo_registration()], standard(Anonymous())) as served, served.channel() as channel:
        told = await methods(channel)
    assert {method for method in told if method.path.startswith(f"/{SERVICE}/")} == {
        RpcMethod(f"/{SERVICE}/{name}", f"{PACKAGE}.EchoRequest", client_streaming, server_streaming)
        for name, (client_streaming, server_streaming, _) in METHODS.items()
    }


async def test_unknown_method_is_unimplemented_and_not_remembered() -> None:
    chain = Chain(standard(Anonymous()))

    class Details:
        method = "/made.up.Service/Method"
        invocation_metadata: tuple[tuple[str, str | bytes], ...] = ()

    async def unknown(details: grpc.HandlerCallDetails) -> None:
        return None

    assert await chain.intercept_service(unknown, Details()) is None
    assert chain._wrapped == {}
    async with serving([echo_registration()], standard(Anonymous())) as served, served.channel() as channel:
        with require_status(StatusCode.UNIMPLEMENTED):
            await call_empty(channel, RpcMethod("/made.up.Service/Method", "", False, False))


async def test_method_is_wrapped_once_and_outermost_first() -> None:
    wrapped: list[tuple[str, str]] = []
    entered: list[str] = []

    class Recording:
        def __init__(self, name: str) -> None:
            self.name = name

        def wrap(self, method: Method, handler: Handler) -> Handler:
            wrapped.append((self.name, method.name))

            async def call(request: Any, context: Any) -> Any:
                entered.append(self.name)
                return await handler(request, context)

            return call

    # The innermost one sets the call that the servicer asks for.
    interceptors = [Recording("outer"), Recording("inner"), *standard(Anonymous())]
    async with serving([echo_registration()], interceptors) as served, served.channel() as channel:
        stub = EchoStub(channel)
        await stub.Say(Request())
        await stub.Say(Request())
    assert wrapped == [("inner", "Say"), ("outer", "Say")]
    assert entered == ["outer", "inner"] * 2


async def test_handler_that_is_not_async_is_refused() -> None:
    class Blocking(EchoServicer):
        def Say(self, request: Any, context: Any) -> Any:  # noqa: N802
            return None

    async with serving([registration(add_echo, Blocking())], ()) as served, served.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await EchoStub(channel).Say(Request())
