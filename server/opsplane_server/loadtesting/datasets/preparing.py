"""Rows for a run: every pool's data set is read, or its generator run, before the load starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from opsplane_server.loadtesting.users.model import DataPool


@dataclass(frozen=True, slots=True)
class PreparedRows:
    """Rows of all pools. `files` are JSON arrays of objects, by pool; `notes` say in words what people should know,
    of a source that failed and was replaced for example."""

    files: Mapping[str, str] = field(repr=False)
    notes: tuple[str, ...] = ()


class RowSource(Protocol):
    """What runs need of data sets."""

    async def fields(self, parent: str, pools: Sequence[DataPool]) -> Mapping[str, Sequence[str]]:
        """Names of the fields of each pool's rows, as far as they are known: a query that has never run has none.

        InvalidArgument naming `run.user_load.pools[i].…` when a data set is not there, is of another project, or when
        a fallback has not the fields of its data set.
        """
        ...

    async def prepare(
        self, pools: Sequence[DataPool], *, seed: int, now: datetime, needed: Mapping[str, Sequence[str]]
    ) -> PreparedRows:
        """The rows of all pools. The same seed and time give the same made-up rows.

        `needed` are the fields that templates take of each pool. FailedPrecondition, reason `DATA_SET_FAILED`, naming
        the pool and what went wrong, when a source fails, has no rows, or lacks a field, and has no fallback.
        """
        ...
