"""Where files are: `CONNECTION:PATH`, or a path of this machine that is in the folder of a local connection."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from opsplane.cli.output import short
from opsplane.cli.resource_names import ID, NameType
from opsplane.cli.session import pages
from opsplane.client import Client, is_local
from opsplane.ftptransfer.v1 import connections_pb2, transfers_pb2

_ON_CONNECTION = re.compile(rf"({ID}):(.*)", re.DOTALL)
_MAGIC = re.compile(r"[*?\[]")
_MOST_CONNECTIONS = 10_000


@dataclass(frozen=True, slots=True)
class Place:
    """A path on a connection, `connections/{connection}`; on this machine, where that is empty."""

    connection: str
    path: str

    def __str__(self) -> str:
        return f"{short(self.connection)}:{self.path}" if self.connection else self.path

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine."""
        return not self.connection

    def location(self) -> transfers_pb2.Location:
        """As the API has it; an empty path is the folder after the login, or the base path."""
        assert self.connection
        return transfers_pb2.Location(connection=self.connection, path=self.path or ".")


class PlaceType(click.ParamType[Place]):
    """`CONNECTION:PATH` or a path of this machine. One whose name begins like a connection is written `./a:b`."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """Fails if it is empty."""
        if isinstance(value, Place):
            return value
        found = _ON_CONNECTION.fullmatch(str(value))
        if found:
            return Place(f"connections/{found[1]}", found[2])
        if not value:
            self.fail("a path must not be empty", param, ctx)
        return Place("", str(value))


PLACE = PlaceType()
CONNECTION = NameType("connection", "connections")
TRANSFER = NameType("transfer", "transfers")


def on_connection(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Callback of an argument that can not be a path of this machine."""
    for place in value if isinstance(value, tuple) else (value,):
        if place.is_here:
            raise click.BadParameter(f"{place.path!r} is to be CONNECTION:PATH", ctx, param)
    return value


def is_pattern(path: str) -> bool:
    """Whether a path has `*`, `?` or `[`."""
    return _MAGIC.search(path) is not None


def split_pattern(path: str) -> tuple[str, str]:
    """The fixed folder of a path with a pattern, and the pattern below it."""
    names = path.split("/")
    fixed = next((number for number, name in enumerate(names) if is_pattern(name)), len(names) - 1)
    folder = "/".join(names[:fixed])
    return folder or ("/" if path.startswith("/") else ""), "/".join(names[fixed:])


def join(folder: str, path: str) -> str:
    """A path below a folder; either may be empty."""
    if not folder or not path:
        return folder or path
    return f"{folder}{path}" if folder.endswith("/") else f"{folder}/{path}"


async def resolve(client: Client, places: Sequence[Place]) -> list[Place]:
    """The places with those of this machine as paths of the local connections that have them.

    Raises UsageError for one that no local connection has, or when the server is on another machine.
    """
    if not any(place.is_here for place in places):
        return list(places)
    if not is_local(client.address):
        path = next(place.path for place in places if place.is_here)
        raise click.UsageError(
            f"{path}: the server at {client.address} has not this machine's files: write CONNECTION:PATH, or give --via"
        )
    found = await pages(
        client.ftp_transfer.ListConnections,
        connections_pb2.ListConnectionsRequest(filter="kind = local"),
        connections_pb2.ListConnectionsResponse,
        _MOST_CONNECTIONS,
    )
    folders = _closest_first(found.connections)
    return [_in_folder(place.path, folders) if place.is_here else place for place in places]


def _closest_first(connections: Iterable[connections_pb2.Connection]) -> list[tuple[str, str]]:
    """Folders and their connections; of those around a path, the closest comes first."""
    folders = [(os.path.realpath(one.local.base_path), one.name) for one in connections]
    return sorted(folders, key=lambda folder: -len(folder[0]))


def _in_folder(path: str, folders: Sequence[tuple[str, str]]) -> Place:
    folder, pattern = split_pattern(path) if is_pattern(path) and not os.path.lexists(path) else (path, "")
    real = os.path.realpath(folder or ".")
    for base, name in folders:
        if os.path.commonpath((base, real)) == base:
            below = join(f"/{os.path.relpath(real, base)}" if real != base else "/", pattern)
            return Place(name, f"{below}/" if path.endswith("/") and not below.endswith("/") else below)
    raise click.UsageError(
        f"{path} is in the folder of no local connection: create one with "
        f"`opsplane ftp connections create NAME --folder FOLDER`, or give --via"
    )
