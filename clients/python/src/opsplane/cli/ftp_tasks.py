"""What is to be transferred: the arguments and options of `put`, `get` and `sync` as transfers."""

from __future__ import annotations

import os
import posixpath
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import click

from opsplane.cli.ftp_places import Place, is_pattern, join
from opsplane.client import Client, new_request_id
from opsplane.ftptransfer.v1 import ftptransfer_pb2, transfers_pb2

Command = TypeVar("Command", bound=Callable[..., Any])

PRIORITIES = {"low": "PRIORITY_LOW", "normal": "PRIORITY_NORMAL", "high": "PRIORITY_HIGH"}
EXISTING = {
    "replace": "EXISTING_FILE_REPLACE",
    "skip-same": "EXISTING_FILE_SKIP_SAME",
    "skip": "EXISTING_FILE_SKIP",
    "fail": "EXISTING_FILE_FAIL",
}
_AT_ONCE = 1000
_SUBMIT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be transferred, and the name that it goes by in a folder; that is empty for a base path."""

    place: Place
    selection: transfers_pb2.Selection.ValueType
    name: str


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The options of `task_options`."""

    priority: str = "normal"
    existing: str = "replace"
    group: str = ""
    max_attempts: int = 0
    sha256: str = ""

    def apply(self, transfer: transfers_pb2.Transfer) -> transfers_pb2.Transfer:
        """Sets what they say."""
        transfer.priority = transfers_pb2.Priority.Value(PRIORITIES[self.priority])
        transfer.existing_file = transfers_pb2.ExistingFile.Value(EXISTING[self.existing])
        transfer.group = self.group
        transfer.max_attempts = self.max_attempts
        transfer.sha256 = self.sha256
        return transfer


def task_options(command: Command) -> Command:
    """Options of every command that submits transfers."""
    for option in reversed(
        (
            click.option(
                "--priority",
                type=click.Choice(list(PRIORITIES)),
                default="normal",
                show_default=True,
                help="Which transfers go first.",
            ),
            click.option("--group", default="", help="Word that ties transfers together, to list and watch them."),
            click.option(
                "--max-attempts",
                type=click.IntRange(1, 100),
                help="Attempts before a transfer has failed.  [default: what the server is set to]",
            ),
            click.option(
                "--wait/--no-wait",
                default=True,
                show_default=True,
                help="Show the transfers until all have ended, or only submit them.",
            ),
        )
    ):
        command = option(command)
    return command


def existing_option(command: Command) -> Command:
    """The option --existing."""
    return click.option(
        "--existing",
        type=click.Choice(list(EXISTING)),
        default="replace",
        show_default=True,
        help="What to do when the destination exists; skip-same leaves a file of the same size that is not older.",
    )(command)


def source_of(place: Place, *, recursive: bool) -> Source:
    """Looks at a path of this machine; of one elsewhere, its form says what it is."""
    if place.is_here:
        name = os.path.basename(os.path.realpath(place.path))
        if os.path.isdir(place.path):
            if not recursive:
                raise click.UsageError(f"{place.path} is a folder: give -r")
            return Source(place, transfers_pb2.SELECTION_TREE, name)
        if os.path.lexists(place.path):
            return Source(place, transfers_pb2.SELECTION_FILE, name)
        if not is_pattern(place.path):
            raise click.UsageError(f"{place.path} does not exist")
        return Source(place, transfers_pb2.SELECTION_GLOB, "")
    if is_pattern(place.path):
        return Source(place, transfers_pb2.SELECTION_GLOB, "")
    name = posixpath.basename(posixpath.normpath(place.path)) if place.path else ""
    if recursive:
        return Source(place, transfers_pb2.SELECTION_TREE, "" if name in (".", "..") else name)
    if not name or place.path.endswith("/"):
        raise click.UsageError(f"{place} is a folder: give -r")
    return Source(place, transfers_pb2.SELECTION_FILE, name)


def destination_of(source: Source, destination: Place, *, many: bool) -> Place:
    """Where a source goes.

    A file goes into a destination that ends with `/`, that is a folder of this machine, or that `many` sources have;
    otherwise that is its new name. A tree keeps its own name only in a destination that ends with `/` or `.`, or with
    `many` sources: whether a folder exists already does not change where files go.
    """
    path = destination.path
    into = many or posixpath.basename(path) in ("", ".", "..")
    if source.selection == transfers_pb2.SELECTION_FILE:
        into = into or (destination.is_here and os.path.isdir(path))
        return Place(destination.connection, f"{path or '.'}/" if into and not path.endswith("/") else path)
    if source.selection == transfers_pb2.SELECTION_TREE and into:
        return Place(destination.connection, join(path, source.name))
    return destination


def build(source: Source, destination: Place, options: TaskOptions) -> transfers_pb2.Transfer:
    """The transfer between places that are both on connections."""
    return options.apply(
        transfers_pb2.Transfer(
            source=source.place.location(), destination=destination.location(), selection=source.selection
        )
    )


async def submit(
    client: Client, transfers: Sequence[transfers_pb2.Transfer]
) -> ftptransfer_pb2.SubmitTransfersResponse:
    """Submits all; the answer has the names of all that were taken."""
    total = ftptransfer_pb2.SubmitTransfersResponse()
    for start in range(0, len(transfers), _AT_ONCE):
        # A call for each message, because a call names only its first thousand.
        answer = await _submit(client, transfers[start : start + _AT_ONCE])
        for rejected in answer.rejected_transfers:
            rejected.index += start
        total.submitted_count += answer.submitted_count
        total.duplicate_count += answer.duplicate_count
        total.rejected_count += answer.rejected_count
        total.rejected_transfers.extend(answer.rejected_transfers)
        total.names.extend(answer.names)
    return total


async def _submit(
    client: Client, transfers: Sequence[transfers_pb2.Transfer]
) -> ftptransfer_pb2.SubmitTransfersResponse:
    async def messages() -> AsyncIterator[ftptransfer_pb2.SubmitTransfersRequest]:
        yield ftptransfer_pb2.SubmitTransfersRequest(transfers=transfers, request_id=new_request_id())

    method = cast(Any, client.ftp_transfer.SubmitTransfers)
    return cast(ftptransfer_pb2.SubmitTransfersResponse, await method(messages(), timeout=_SUBMIT_SECONDS))
