"""One shape for all handlers, and the one gRPC interceptor that holds ours.

gRPC has four kinds of handler, and two ways of writing those that stream responses (a generator, or
`await context.write()`). Here all become `async (request or request iterator, context) -> response or None`, so an
interceptor is one function around another. A method is wrapped at its first call and kept: a call costs a look-up
and the work of the interceptors, whatever their number.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from opsplane_server.errors import Unimplemented
from opsplane_server.rpc.identity import Metadata

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Method:
    """An RPC of this server: `path` is `/package.Service/Name`. undecoded: its handler takes requests as bytes."""

    path: str
    client_streaming: bool
    server_streaming: bool
    undecoded: bool = False

    @property
    def service(self) -> str:
        """Full name of the service, `package.Service`."""
        return self.path[1:].rpartition("/")[0]

    @property
    def name(self) -> str:
        """Name of the method alone."""
        return self.path.rpartition("/")[2]


_metadata: ContextVar[Metadata] = ContextVar("opsplane_incoming_metadata")


def incoming_metadata() -> Metadata:
    """Return what the caller of the current RPC sent; asking the context again would decode all of it anew."""
    return _metadata.get()


class Interceptor(Protocol):
    """Adds something to every call of a method."""

    def wrap(self, method: Method, handler: Handler) -> Handler:
        """Return a handler around the given one, or the given one where nothing is to be added.

        Called once a method. The result must be a coroutine function.
        """
        ...


class Chain(grpc.aio.ServerInterceptor):
    """Runs interceptors around every handler, the first one outermost."""

    def __init__(self, interceptors: Sequence[Interceptor]) -> None:
        self._interceptors = tuple(interceptors)
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Find the wrapped handler of a method, None (UNIMPLEMENTED) for one that is not served."""
        # gRPC runs this and the handler in one context, a new one for each RPC.
        _metadata.set(handler_call_details.invocation_metadata)
        path = handler_call_details.method
        wrapped = self._wrapped.get(path)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # not kept: callers can make up any number of names
            wrapped = self._wrapped[path] = self._wrap(path, handler)
        return wrapped

    def _wrap(self, path: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        method = Method(
            path,
            bool(handler.request_streaming),
            bool(handler.response_streaming),
            undecoded=handler.request_deserializer is None,
        )
        behavior, rebuild = _parts(handler)
        call = _uniform(method, behavior)
        for interceptor in reversed(self._interceptors):
            call = interceptor.wrap(method, call)
        return rebuild(call, handler.request_deserializer, handler.response_serializer)


def _parts(handler: grpc.RpcMethodHandler[Any, Any]) -> tuple[Any, Callable[..., grpc.RpcMethodHandler[Any, Any]]]:
    if handler.request_streaming and handler.response_streaming:
        return handler.stream_stream, grpc.stream_stream_rpc_method_handler
    if handler.request_streaming:
        return handler.stream_unary, grpc.stream_unary_rpc_method_handler
    if handler.response_streaming:
        return handler.unary_stream, grpc.unary_stream_rpc_method_handler
    return handler.unary_unary, grpc.unary_unary_rpc_method_handler


def _uniform(method: Method, behavior: Any) -> Handler:
    if method.server_streaming and inspect.isasyncgenfunction(behavior):
        return _writing(behavior)
    if getattr(behavior, "__module__", "").endswith("_pb2_grpc"):
        return _unbuilt(method)
    if not inspect.iscoroutinefunction(behavior):
        # gRPC would run it in a thread, where neither the call nor its task is known.
        raise TypeError(f"the handler of {method.path} must be `async def`")
    handler: Handler = behavior
    return handler


def _unbuilt(method: Method) -> Handler:
    """In place of what the generated base class does for an RPC that its servicer leaves out, which blocks a thread."""

    async def refuse(request: Any, context: Context) -> None:
        raise Unimplemented(f"{method.path} is not built yet")

    return refuse


def _writing(generate: Callable[[Any, Context], AsyncGenerator[Any, None]]) -> Handler:
    async def write_all(request: Any, context: Context) -> None:
        # Closed here and now, so that its clean-up does not wait for the garbage collector when the caller leaves.
        async with aclosing(generate(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return write_all
