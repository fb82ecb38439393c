"""Long operations: shows how they go on until they end, and what to do about one that is left."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import click
from google.longrunning import operations_pb2
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from opsplane.cli.output import clean, one_line, print_json, short
from opsplane.cli.session import Session, call
from opsplane.client import Client, OperationFailed, operation_response
from opsplane.common.v1 import platform_pb2

M = TypeVar("M", bound=Message)
RequestT = TypeVar("RequestT", bound=Message)

Command = TypeVar("Command", bound=Callable[..., Any])


def wait_option(command: Command) -> Command:
    """--wait/--no-wait."""
    return click.option(
        "--wait/--no-wait", default=True, show_default=True, help="Show how it goes on and wait for its end."
    )(command)


async def run_operation(
    session: Session,
    client: Client,
    method: Callable[..., Any],
    request: RequestT,
    response_type: type[M],
    *,
    wait: bool = True,
) -> M | None:
    """Makes a call that returns an operation, and shows it until its end; its response, or None without `wait`.

    With `wait` an operation that fails ends the command with status 1. Ctrl-C leaves, and the operation goes on.
    """
    operation = await call(cast("Callable[..., Awaitable[Any]]", method), request, operations_pb2.Operation)
    if not wait:
        if session.as_json:
            print_json(operation)
        else:
            click.echo(operation.name)
            click.echo(f"`opsplane operation wait {short(operation.name)}` shows how it goes on", err=True)
        return None
    return response_of(await follow_operation(client, operation), response_type)


async def follow_operation(client: Client, operation: operations_pb2.Operation) -> operations_pb2.Operation:
    """Shows an operation until its end, and returns it as it is then."""
    if operation.done:
        return operation
    current = operation
    with _view() as view:
        try:
            async for current in client.watch_operation(operation.name):
                metadata = platform_pb2.OperationMetadata()
                if current.metadata.Unpack(metadata):
                    view.show(metadata)
        except asyncio.CancelledError:
            click.echo(f"\nit goes on; `opsplane operation wait {short(operation.name)}` shows it again", err=True)
            raise
    return current


def response_of(operation: operations_pb2.Operation, response_type: type[M]) -> M:
    """The response of one that is done; ends the command with status 1 when it failed."""
    try:
        return operation_response(operation, response_type)
    except OperationFailed as failure:
        raise click.ClickException(f"{clean(str(failure))} ({failure.code})") from None


class _View:
    """Lines on standard error, one a stage."""

    def __init__(self) -> None:
        self._stage = ""

    def __enter__(self) -> _View:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, metadata: platform_pb2.OperationMetadata) -> None:
        """Takes in what is new."""
        if metadata.stage and metadata.stage != self._stage:
            self._stage = metadata.stage
            click.echo(f"{metadata.progress_percent:3d}% {one_line(metadata.stage, 100)}", err=True)


class _Bar(_View):
    """A bar that is drawn over itself; gone afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = Progress(
            BarColumn(24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=100)

    def __enter__(self) -> _View:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, metadata: platform_pb2.OperationMetadata) -> None:
        self._bar.update(self._task, completed=metadata.progress_percent, description=one_line(metadata.stage, 60))


def _view() -> _View:
    return _Bar() if sys.stderr.isatty() else _View()
