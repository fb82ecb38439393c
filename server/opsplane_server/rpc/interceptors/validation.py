"""Checks every request against the rules in the protos before a handler sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import grpc
from google.protobuf.message import Message
from protovalidate import Validator, Violation

from opsplane_server.errors import FieldViolation, InvalidArgument
from opsplane_server.rpc.interceptors.chain import Context, Handler, Method


class Rules:
    """The rules that stand in the protos."""

    def __init__(self) -> None:
        self._violations = Validator().collect_violations

    def check(self, message: Message, *, within: str = "") -> None:
        """Raise InvalidArgument when the message breaks a rule; `within` is the path of the message in its request."""
        if found := self._violations(message):
            raise _invalid(found, within)


class Validation:
    """Refuses requests that break a rule, each message of a stream included.

    Services of others have no rules, and a handler that takes undecoded requests checks them itself.
    """

    def __init__(self) -> None:
        self._rules = Rules()

    def wrap(self, method: Method, handler: Handler) -> Handler:
        """Validate what the method receives."""
        if method.undecoded or not method.service.startswith("opsplane."):
            return handler
        check = self._rules.check

        async def call(request: Any, context: Context) -> Any:
            check(request)
            return await handler(request, context)

        async def call_streaming(requests: AsyncIterator[Any], context: Context) -> Any:
            return await handler(_checked(requests, check), cast(Context, _CheckedContext(context, check)))

        return call_streaming if method.client_streaming else call


async def _checked(requests: AsyncIterator[Any], check: Callable[[Message], None]) -> AsyncIterator[Any]:
    async for request in requests:
        check(request)
        yield request


class _CheckedContext:
    """A context whose `read()`, the other way to take the requests of a stream, checks them too."""

    def __init__(self, context: Context, check: Callable[[Message], None]) -> None:
        self._context = context
        self._check = check

    async def read(self) -> Any:
        request = await self._context.read()
        if request is not grpc.aio.EOF:
            self._check(request)
        return request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _invalid(violations: list[Violation], within: str) -> InvalidArgument:
    prefix = f"{within}." if within else ""
    fields = [FieldViolation(prefix + field_path(violation), violation.proto.message) for violation in violations]
    first = fields[0]
    more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    what = f"{first.field}: {first.description}" if first.field else first.description
    return InvalidArgument(what + more, fields)


def field_path(violation: Violation) -> str:
    """Return the path as in the proto, `scenarios[0].headers["Accept"]`; empty for a rule of the whole message."""
    path = ""
    for element in violation.proto.field.elements if violation.proto.field else ():
        path += ("." if path else "") + element.field_name
        if element.subscript is not None:
            key = element.subscript.value
            path += f'["{key}"]' if isinstance(key, str) else f"[{str(key).lower()}]"
    return path
