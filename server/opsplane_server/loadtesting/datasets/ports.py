"""What data sets need from outside: a store, and a reader of rows (`reading.RowReader`).

The store joins the ambient transaction of its caller. Names are full resource names; a missing resource raises
NotFound, a taken name AlreadyExists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from opsplane_server.loadtesting.datasets.model import DataSet, Rows
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest


class DataSetStore(Protocol):
    """Keeps data sets and uploaded rows."""

    async def insert_data_set(self, data_set: DataSet, rows: Rows | None) -> DataSet:
        """Stores a new data set, with the rows of an uploaded one. NotFound when the project is not there."""
        ...

    async def get_data_set(self, name: str) -> DataSet:
        """Returns the data set."""
        ...

    async def get_data_sets(self, names: Sequence[str]) -> dict[str, DataSet]:
        """The named data sets; those that are not there are left out."""
        ...

    async def list_data_sets(self, parent: str, page: PageRequest, conditions: Sequence[Condition]) -> list[DataSet]:
        """Up to `page.size + 1` data sets of the project, newest first."""
        ...

    async def get_rows(self, name: str) -> Rows:
        """The rows of an uploaded data set."""
        ...

    async def note_use(self, name: str, rows: Rows) -> None:
        """Keeps what a query gave at its last use, but not the rows. Does nothing when the data set has gone."""
        ...

    async def delete_data_set(self, name: str) -> None:
        """Deletes the data set with its rows."""
        ...
