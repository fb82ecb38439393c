"""What every command has: where the server is, how to print, and how a failed call ends the command."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import click
import grpc
from google.protobuf.message import Message

from opsplane.cli.output import clean
from opsplane.client import Client, Tls, connect, details

T = TypeVar("T")
RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

CALL_SECONDS = 120.0
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Session:
    """The options of the root command."""

    address: str
    token: str = ""
    tls: Tls | None = None
    plaintext: bool = False
    as_json: bool = False

    def run(self, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """Runs `work` with a client; a refused or failed call becomes one line and exit status 1."""

        async def connected() -> T:
            async with connect(self.address, token=self.token, tls=self.tls, plaintext=self.plaintext) as client:
                try:
                    return await work(client)
                except grpc.aio.AioRpcError as error:
                    # A call that Ctrl-C breaks off may end as one that the server has cancelled.
                    task = asyncio.current_task()
                    if error.code() is grpc.StatusCode.CANCELLED and task is not None and task.cancelling():
                        raise asyncio.CancelledError from None
                    raise

        try:
            return asyncio.run(connected())
        except grpc.aio.AioRpcError as error:
            raise click.ClickException(explain(error, self.address)) from None
        except OSError as error:  # files of TLS
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            click.echo(err=True)
            sys.exit(130)


pass_session = click.make_pass_decorator(Session)


def explain(error: grpc.aio.AioRpcError, address: str) -> str:
    """One line for people: the status, what the server says, and every bad field."""
    message = clean(error.details() or "").strip() or "no reason was given"
    if error.code() is grpc.StatusCode.UNAVAILABLE and "onnect" in message and not details(error).reason:
        return f"no server answers at {address} (UNAVAILABLE); `opsplane serve` starts one"
    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
        message += "; give a token with OPSPLANE_TOKEN"
    fields = [f"{field}: {description}" if field else description for field, description in details(error).fields]
    if fields:
        listed = clean("; ".join(fields))
        # The message mostly is the first bad field.
        message = listed if clean(fields[0]) in message else f"{message}: {listed}"
    return f"{message} ({error.code().name})"


async def call(method: Callable[..., Any], request: RequestT, response_type: type[ResponseT]) -> ResponseT:
    """Makes a unary call, bounded in time. The type is named because a stub's call is generic in neither."""
    return cast(ResponseT, await cast(Awaitable[Any], method(request, timeout=CALL_SECONDS)))


async def pages(method: Callable[..., Any], request: Any, response_type: type[ResponseT], limit: int) -> ResponseT:
    """Calls a List method until `limit` items are there; returns one response with them.

    Its `next_page_token` is set if there are more.
    """
    items_field = next(field.name for field in response_type.DESCRIPTOR.fields if field.is_repeated)
    merged: Any = response_type()
    items = getattr(merged, items_field)
    while True:
        request.page_size = min(limit - len(items), _PAGE)
        page: Any = await call(method, request, response_type)
        items.extend(getattr(page, items_field))
        merged.next_page_token = request.page_token = page.next_page_token
        if not page.next_page_token or len(items) >= limit:
            return cast(ResponseT, merged)
