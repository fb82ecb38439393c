"""A service with every kind of RPC, for tests alone; its proto is built here, so that no client ships it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from opsplane.common.v1 import access_pb2
from opsplane_server.rpc.calls import Call, current_call

PACKAGE = "opsplane.rpctest.v1"
SERVICE = f"{PACKAGE}.Echo"

# method -> client streaming, server streaming, role
METHODS = {
    "Say": (False, False, access_pb2.ROLE_VIEWER),
    "Repeat": (False, True, access_pb2.ROLE_VIEWER),
    "RepeatByWriting": (False, True, access_pb2.ROLE_VIEWER),
    "Collect": (True, False, access_pb2.ROLE_WRITER),
    "CollectByReading": (True, False, access_pb2.ROLE_WRITER),
    "Chat": (True, True, access_pb2.ROLE_EDITOR),
    "Purge": (False, False, access_pb2.ROLE_ADMIN),
    "Undeclared": (False, False, access_pb2.ROLE_UNSPECIFIED),
}


def _describe() -> None:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="opsplane/rpctest/v1/echo.proto", package=PACKAGE, syntax="proto3")
    file.dependency[:] = ["opsplane/common/v1/access.proto", "buf/validate/validate.proto"]
    part = file.message_type.add(name="Part")
    name = part.field.add(name="name", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    name.options.Extensions[validate_pb2.field].string.min_len = 1
    request = file.message_type.add(name="EchoRequest")
    text = request.field.add(name="text", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    text.options.Extensions[validate_pb2.field].string.max_len = 20
    request.field.add(name="count", number=2, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    request.field.add(
        name="parts", number=3, type=field.TYPE_MESSAGE, label=field.LABEL_REPEATED, type_name=f".{PACKAGE}.Part"
    )
    entry = request.nested_type.add(name="NamedEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(
        name="value", number=2, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL, type_name=f".{PACKAGE}.Part"
    )
    request.field.add(
        name="named",
        number=4,
        type=field.TYPE_MESSAGE,
        label=field.LABEL_REPEATED,
        type_name=f".{PACKAGE}.EchoRequest.NamedEntry",
    )
    reply = file.message_type.add(name="EchoReply")
    reply.field.add(name="text", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    service = file.service.add(name="Echo")
    for method_name, (client_streaming, server_streaming, role) in METHODS.items():
        method = service.method.add(
            name=method_name,
            input_type=f".{PACKAGE}.EchoRequest",
            output_type=f".{PACKAGE}.EchoReply",
            client_streaming=client_streaming,
            server_streaming=server_streaming,
        )
        if role:
            method.options.Extensions[access_pb2.required_role] = role
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


_describe()


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(f"{PACKAGE}.{name}"))


Request = _message("EchoRequest")
Reply = _message("EchoReply")
Part = _message("Part")


class EchoServicer:
    """Answers what it is told; raises `error` if that is set, before or (streams) after the first answer."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.calls: list[Call] = []
        self.closed = asyncio.Event()

    def _enter(self) -> None:
        self.calls.append(current_call())

    async def Say(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter()
        if self.error is not None:
            raise self.error
        if request.text == "abort":
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "aborted by hand", (("why", "because"),))
        if request.text == "sleep":
            try:
                await asyncio.sleep(3600)
            finally:
                self.closed.set()
        return Reply(text=request.text)

    async def Repeat(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self._enter()
        try:
            for number in range(request.count):
                yield Reply(text=f"{request.text}{number}")
                if self.error is not None:
                    raise self.error
        finally:
            self.closed.set()

    async def RepeatByWriting(self, request: Any, context: Any) -> None:  # noqa: N802
        self._enter()
        for number in range(request.count):
            await context.write(Reply(text=f"{request.text}{number}"))
            if self.error is not None:
                raise self.error

    async def Collect(self, requests: AsyncIterator[Any], context: Any) -> Any:  # noqa: N802
        self._enter()
        return Reply(text=",".join([request.text async for request in requests]))

    async def CollectByReading(self, requests: AsyncIterator[Any], context: Any) -> Any:  # noqa: N802
        self._enter()
        texts = []
        while (request := await context.read()) is not grpc.aio.EOF:
            texts.append(request.text)
        return Reply(text=",".join(texts))

    async def Chat(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self._enter()
        async for request in requests:
            if self.error is not None:
                raise self.error
            yield Reply(text=request.text)

    async def Purge(self, request: Any, context: Any) -> Any:  # noqa: N802
        return Reply()

    async def Undeclared(self, request: Any, context: Any) -> Any:  # noqa: N802
        return Reply()


def add_echo_servicer_to_server(servicer: EchoServicer, server: grpc.aio.Server) -> None:
    """Do what generated code does."""
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    handlers = {
        name: kinds[client_streaming, server_streaming](
            getattr(servicer, name), Request.FromString, Reply.SerializeToString
        )
        for name, (client_streaming, server_streaming, _) in METHODS.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


class EchoStub:
    """Does what a generated stub does: one callable a method."""

    Say: Any
    Repeat: Any
    RepeatByWriting: Any
    Collect: Any
    CollectByReading: Any
    Chat: Any
    Purge: Any
    Undeclared: Any

    def __init__(self, channel: grpc.aio.Channel) -> None:
        kinds: dict[tuple[bool, bool], Any] = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
            (True, True): channel.stream_stream,
        }
        for name, (client_streaming, server_streaming, _) in METHODS.items():
            call = kinds[client_streaming, server_streaming](
                f"/{SERVICE}/{name}", Request.SerializeToString, Reply.FromString
            )
            setattr(self, name, call)
