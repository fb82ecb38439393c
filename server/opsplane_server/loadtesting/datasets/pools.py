"""The rows of a run's pools: each pool's data set is read, or its generator run, and a fallback stands in for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import structlog

from opsplane_server.errors import DataLoss, FailedPrecondition, FieldViolation, InvalidArgument, NotFound
from opsplane_server.loadtesting.datasets.checking import check_generator
from opsplane_server.loadtesting.datasets.model import ClickHouseQuery, Rows
from opsplane_server.loadtesting.datasets.ports import DataSetStore
from opsplane_server.loadtesting.datasets.preparing import PreparedRows
from opsplane_server.loadtesting.datasets.reading import RowReader, failed
from opsplane_server.loadtesting.datasets.secrets import open_password
from opsplane_server.loadtesting.users.model import DataPool, Generator
from opsplane_server.storage.secrets import SecretBox

log = structlog.get_logger(__name__)

MAX_PREPARED_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Prepared:
    file: str = field(repr=False)
    size: int
    note: str = ""


class DataSetRows:
    """`preparing.RowSource` on stored data sets. `max_bytes` is the most that the rows of a run may come to."""

    def __init__(
        self, store: DataSetStore, secrets: SecretBox, reader: RowReader, *, max_bytes: int = MAX_PREPARED_BYTES
    ) -> None:
        self._store = store
        self._secrets = secrets
        self._reader = reader
        self._max_bytes = max_bytes

    async def fields(self, parent: str, pools: Sequence[DataPool]) -> Mapping[str, Sequence[str]]:
        """See the port. Where a query has never run, its fields are those of its fallback, if it has one."""
        wanted = [pool.source for pool in pools if isinstance(pool.source, str)]
        found = await self._store.get_data_sets([name for name in wanted if name.startswith(f"{parent}/")])
        violations: list[FieldViolation] = []
        fields: dict[str, Sequence[str]] = {}
        for number, pool in enumerate(pools):
            place = f"run.user_load.pools[{number}]"
            known: Sequence[str] = ()
            if isinstance(pool.source, Generator):
                violations += check_generator(pool.source, f"{place}.generator")
                known = _names(pool.source)
            elif pool.source in found:
                known = found[pool.source].fields
            else:
                violations.append(FieldViolation(f"{place}.data_set", f"{pool.source} does not exist in {parent}"))
            if pool.fallback is not None:
                violations += check_generator(pool.fallback, f"{place}.fallback")
                known = known or _names(pool.fallback)
                missing = [name for name in known if name not in _names(pool.fallback)]
                if missing and isinstance(pool.source, str):  # what is made up does not fail
                    problem = f"must have all fields of {pool.source}, and lacks {', '.join(missing)}"
                    violations.append(FieldViolation(f"{place}.fallback", problem))
            fields[pool.name] = known
        if violations:
            message = "; ".join(f"{violation.field}: {violation.description}" for violation in violations[:3])
            raise InvalidArgument(message, violations, reason="POOL_WRONG")
        return fields

    async def prepare(
        self, pools: Sequence[DataPool], *, seed: int, now: datetime, needed: Mapping[str, Sequence[str]]
    ) -> PreparedRows:
        """See the port. Sources are read side by side; the first that fails without a fallback ends them all."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._pool(pool, seed, now, needed.get(pool.name, ()))) for pool in pools]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        prepared = [task.result() for task in tasks]
        size = sum(each.size for each in prepared)
        if size > self._max_bytes:
            raise failed(
                f"the rows of all pools come to {_mib(size)} of JSON, and {_mib(self._max_bytes)} can be used; "
                "limit them or select fewer fields"
            )
        return PreparedRows(
            files={pool.name: each.file for pool, each in zip(pools, prepared, strict=True)},
            notes=tuple(each.note for each in prepared if each.note),
        )

    async def _pool(self, pool: DataPool, seed: int, now: datetime, needed: Sequence[str]) -> _Prepared:
        try:
            if isinstance(pool.source, Generator):
                return await _prepared(await self._made_up(pool, pool.source, seed, now, needed))
            try:
                return await _prepared(await self._read(pool.source, pool.limit, needed))
            except (FailedPrecondition, NotFound, DataLoss) as error:
                if pool.fallback is None:
                    raise
                log.warning("made up rows instead", pool=pool.name, data_set=pool.source, problem=error.message)
                rows = await self._made_up(pool, pool.fallback, seed, now, needed)
                note = f"pool {pool.name}: {error.message}; {rows.row_count:,} rows were made up instead"
                return await _prepared(rows, note)
        except (FailedPrecondition, NotFound, DataLoss) as error:
            raise failed(f"pool {pool.name}: {error.message}") from error

    async def _made_up(
        self, pool: DataPool, generator: Generator, seed: int, now: datetime, needed: Sequence[str]
    ) -> Rows:
        return _complete(await self._reader.generate(generator, pool=pool.name, seed=seed, now=now), needed)

    async def _read(self, name: str, limit: int, needed: Sequence[str]) -> Rows:
        data_set = await self._store.get_data_set(name)
        if not isinstance(data_set.source, ClickHouseQuery):
            rows = await self._store.get_rows(name)
            return _complete(await asyncio.to_thread(rows.first, limit), needed)
        rows = await self._reader.query(data_set.source, open_password(self._secrets, data_set), limit=limit)
        await self._store.note_use(name, rows)
        return _complete(rows, needed)


async def _prepared(rows: Rows, note: str = "") -> _Prepared:
    return _Prepared(await asyncio.to_thread(lambda: rows.file), len(rows.lines), note)


def _complete(rows: Rows, needed: Sequence[str]) -> Rows:
    """The rows. FailedPrecondition when templates take fields that they do not have."""
    if missing := [name for name in needed if name not in rows.fields]:
        raise failed(f"the rows have no field {', '.join(missing)}, but {', '.join(rows.fields)}")
    return rows


def _names(generator: Generator) -> list[str]:
    return [each.name for each in generator.fields]


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
