"""What load testing needs of a runner of load generators.

A load generator is known by the name that its starter gave it, and by nothing else: after a crash whoever goes on
with the run, on the same machine for local ones, asks about it by that name. So nothing is lost between its start
and the moment when somebody writes down that it was started.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from opsplane_server.loadtesting.runners.console import ConsoleLine


@dataclass(frozen=True, slots=True)
class Exporter:
    """Where a load generator sends its metrics: `host:port` or `unix:///path`, and the token that it shows.

    Without `tls` nothing is encrypted, which is for this machine only. `certificate` is a PEM file of authorities to
    trust; None for those of the system.
    """

    endpoint: str
    token: str = field(repr=False)
    tls: bool = False
    certificate: Path | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of the load that a load generator takes, as k6 writes it: `1/2:1` of the sequence `0,1/2,1`."""

    part: str
    sequence: str


@dataclass(frozen=True, slots=True)
class GeneratorSpec:
    """A load generator to start.

    `name` is its own for ever, `[a-z0-9-]`, up to 100 characters. `files` are the script and what stands beside it,
    by file name, `main` the one to run. `environment` is what the script reads of it, credentials for example.
    `instance` tells its metrics from those of the others of the run. With `thresholds` k6 judges the script's own
    and ends with 99 when they are crossed; it then keeps every measured value in memory.
    """

    name: str
    files: Mapping[str, str] = field(repr=False)
    main: str
    instance: str
    exporter: Exporter
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    segment: Segment | None = None
    thresholds: bool = False


@dataclass(frozen=True, slots=True)
class Running:
    """It runs, or is about to.

    `cpu_seconds` is the CPU time that it has used, None while that is not known, `cpus` how many it may use at a time.
    """

    cpu_seconds: float | None = field(default=None, compare=False)
    cpus: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Exited:
    """It has ended, with k6's exit code; a negative one is the signal that ended it."""

    code: int


@dataclass(frozen=True, slots=True)
class Lost:
    """It does not run any more, and nobody saw how it ended."""


Status = Running | Exited | Lost


class Runner(Protocol):
    """Starts, watches and ends load generators."""

    async def version(self) -> str:
        """The load generator and its version, `k6 1.1.0`. FailedPrecondition `K6_MISSING` when there is none."""
        ...

    async def start(self, spec: GeneratorSpec) -> None:
        """Starts it once: another start under the same name changes nothing, also after it has ended.

        FailedPrecondition `K6_MISSING` when there is none.
        """
        ...

    async def poll(self, name: str) -> Status:
        """Whether it runs. NotFound when it was not started, or was cleaned up."""
        ...

    async def stop(self, name: str, grace: timedelta = timedelta(seconds=2)) -> Exited | Lost:
        """Ends it and waits for that: asks it, then kills it after `grace`. An ended one stays as it is. NotFound.

        k6 takes about 1.2 s, in which it sends its last metrics.
        """
        ...

    async def console(self, name: str, max_bytes: int = 65536) -> list[ConsoleLine]:
        """The last lines that it wrote, from up to `max_bytes`. NotFound."""
        ...

    async def clean_up(self, name: str) -> None:
        """Ends it at once if it still runs, and removes all that is left of it: from here on it is NotFound.

        For a day after it a start under its name changes nothing, so that a process which slept while others ended
        the run cannot bring it back.
        """
        ...


def segments(count: int) -> Sequence[Segment | None]:
    """Equal parts of a load for `count` load generators; None for a single one, which takes all."""
    if count == 1:
        return [None]
    edges = ["0", *(f"{i}/{count}" for i in range(1, count)), "1"]
    sequence = ",".join(edges)
    return [Segment(f"{low}:{high}", sequence) for low, high in pairwise(edges)]
