"""The rows that users of a run draw from: prepared before it starts, kept with it, put beside its script."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from opsplane_server.loadtesting.datasets.preparing import RowSource
from opsplane_server.loadtesting.k6.users import data_file
from opsplane_server.loadtesting.model import Run
from opsplane_server.loadtesting.ports import RunStore
from opsplane_server.loadtesting.users import templates


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The rows of all pools, by pool, as they are kept; `notes` are those of `PreparedRows`."""

    pools: Mapping[str, bytes]
    notes: tuple[str, ...] = ()


class RunRows:
    """Prepares the rows of runs, and gives them back."""

    def __init__(self, store: RunStore, source: RowSource) -> None:
        self._store = store
        self._source = source

    async def prepare(self, run: Run) -> PackedRows:
        """Reads and makes up the rows of a run. Raises FailedPrecondition `DATA_SET_FAILED`."""
        load = run.plan.users
        if load is None or not load.pools:
            return PackedRows({})
        assert run.create_time is not None
        taken = await asyncio.to_thread(templates.check, load, {})
        needed = {pool: sorted(fields) for pool, fields in taken.items()}
        prepared = await self._source.prepare(load.pools, seed=load.seed, now=run.create_time, needed=needed)
        return PackedRows(await asyncio.to_thread(_pack, prepared.files), prepared.notes)

    async def keep(self, run: Run, rows: PackedRows) -> None:
        """Stores prepared rows with the run, in the caller's transaction."""
        if rows.pools:
            await self._store.keep_rows(run.name, rows.pools)
        for note in rows.notes:
            await self._store.add_note(run.name, note)

    async def files(self, run: Run) -> dict[str, str]:
        """The files that stand beside the script of a run, by name."""
        if run.plan.users is None:
            return {}
        packed = await self._store.get_rows(run.key)
        return await asyncio.to_thread(_unpack, packed)


# Not left to the database: it would do so in a transaction that holds the run's operation, and receive ten times as
# much.
def _pack(files: Mapping[str, str]) -> dict[str, bytes]:
    return {pool: zlib.compress(text.encode(), level=1) for pool, text in files.items()}


def _unpack(pools: Mapping[str, bytes]) -> dict[str, str]:
    return {data_file(pool): zlib.decompress(data).decode() for pool, data in pools.items()}
