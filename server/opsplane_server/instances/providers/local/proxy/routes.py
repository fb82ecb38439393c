"""The file that tells the proxy where to listen and whom to pass connections on to."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Target:
    """A node that takes connections."""

    node: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Route:
    """A stable port and the nodes behind it, of which there may be none for now.

    name: `{instance}/{endpoint}`, such as `orders/rw`. Connections are spread over the targets; one whose target
    leaves the route is cut. greets: the server speaks first, as MySQL's does.
    """

    name: str
    host: str
    port: int
    targets: tuple[Target, ...] = ()
    greets: bool = False


def write(file: Path, routes: Iterable[Route], owner: tuple[int, int] | None = None) -> None:
    """Replaces the file at once. owner: who may read it, by numbers, when that is not this process."""
    ordered = sorted(routes, key=lambda route: route.name)
    descriptor, scratch = tempfile.mkstemp(dir=file.parent, prefix=".routes-")
    try:
        # Not synced: it lies on the way of a failover, and after a loss of power it is written anew anyhow.
        with os.fdopen(descriptor, "w") as stream:
            json.dump({"routes": [asdict(route) for route in ordered]}, stream, indent=1)
        if owner is not None:
            os.chown(scratch, *owner)
        os.rename(scratch, file)
    except BaseException:
        os.unlink(scratch)
        raise


def read(file: Path) -> Sequence[Route]:
    """The routes, none where there is no file. ValueError for one that was not written by `write`."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return ()
    try:
        return [
            Route(
                name=str(route["name"]),
                host=str(route["host"]),
                port=int(route["port"]),
                targets=tuple(
                    Target(str(target["node"]), str(target["host"]), int(target["port"])) for target in route["targets"]
                ),
                greets=bool(route["greets"]),
            )
            for route in json.loads(text)["routes"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} holds no routes: {error!r}") from error
