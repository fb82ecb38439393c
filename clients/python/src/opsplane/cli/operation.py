"""`opsplane operation`: what goes on in the background."""

from __future__ import annotations

import click
from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from google.rpc import code_pb2
from rich.text import Text

from opsplane.cli.operations import follow_operation
from opsplane.cli.output import clean, console, local_time, more, one_line, print_json, short, table
from opsplane.cli.session import Session, call, pages, pass_session
from opsplane.client import Client
from opsplane.common.v1 import platform_pb2


@click.group()
def operation() -> None:
    """Long operations: list, wait for, cancel.

    \b
    Examples:
      opsplane operation list
      opsplane operation wait OPERATION
    """


@operation.command("list")
@click.option("--filter", "filter_", default="", help="Restrict them, for example 'done=false'.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Most of them to list.")
@pass_session
def list_operations(session: Session, filter_: str, limit: int) -> None:
    """List operations, newest first.

    \b
    Example:
      opsplane operation list --filter 'done=false'
    """
    request = operations_pb2.ListOperationsRequest(filter=filter_)
    found = session.run(
        lambda client: pages(client.operations.ListOperations, request, operations_pb2.ListOperationsResponse, limit)
    )
    if session.as_json:
        print_json(found)
        return
    rows = []
    for one in found.operations:
        metadata = platform_pb2.OperationMetadata()
        one.metadata.Unpack(metadata)
        rows.append(
            (
                short(one.name),
                metadata.verb,
                metadata.target,
                _state(one),
                f"{metadata.progress_percent}%",
                one_line(one.error.message or metadata.stage, 80),
                local_time(metadata.create_time),
            )
        )
    console().print(table(("operation", "verb", "target", "state", ">done", "stage", "created"), rows))
    more(found.next_page_token)


@operation.command()
@click.argument("name", metavar="OPERATION")
@pass_session
def wait(session: Session, name: str) -> None:
    """Show an operation until its end. The exit status is 1 when it fails.

    \b
    Example:
      opsplane operation wait o-01jq3m
    """

    async def work(client: Client) -> None:
        request = operations_pb2.GetOperationRequest(name=_full(name))
        found = await call(client.operations.GetOperation, request, operations_pb2.Operation)
        found = await follow_operation(client, found)
        if session.as_json:
            print_json(found)
        if found.HasField("error"):
            raise click.ClickException(f"{clean(found.error.message)} ({code_pb2.Code.Name(found.error.code)})")

    session.run(work)


@operation.command()
@click.argument("name", metavar="OPERATION")
@pass_session
def cancel(session: Session, name: str) -> None:
    """Ask an operation to stop at its next safe point.

    \b
    Example:
      opsplane operation cancel o-01jq3m
    """
    request = operations_pb2.CancelOperationRequest(name=_full(name))
    session.run(lambda client: call(client.operations.CancelOperation, request, Empty))
    click.echo(f"asked to cancel {_full(name)}", err=True)


def _full(name: str) -> str:
    return f"operations/{short(name)}"


def _state(one: operations_pb2.Operation) -> Text:
    if not one.done:
        return Text("running", style="yellow")
    if one.HasField("error"):
        return Text(code_pb2.Code.Name(one.error.code).lower().replace("_", " "), style="bold red")
    return Text("done", style="green")
