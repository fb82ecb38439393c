"""Pages of records: so many rows, and so many bytes, as a message can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncpg

from opsplane_server.logingest.queries import Found, StoredRecord
from opsplane_server.logingest.stores.postgres.conditions import bind

_FIELDS: Final = StoredRecord._fields
_PLAIN: Final = ", ".join("metadata::text AS metadata" if name == "metadata" else name for name in _FIELDS)
_NUMBERS: Final = ("id", "received_at", "timestamp", "level", "http_status", "duration_ms")
_SIZE: Final = " + ".join(f"coalesce(octet_length({name}), 0)" for name in _FIELDS if name not in _NUMBERS)


def first_rows(
    table: str, condition: str, *, order: Sequence[str], args: list[object], limit: int, max_bytes: int
) -> str:
    """The statement for the first records by `order`, up to `limit` and `max_bytes` of text, but at least one.

    They are measured by PostgreSQL, since a single one may have megabytes. `found` reads the result.
    """
    names = [f"key{index}" for index in range(len(order))]
    keys = ", ".join(f"{term.removesuffix(' DESC')} AS {name}" for term, name in zip(order, names, strict=True))
    by = ", ".join(name + (" DESC" if term.endswith(" DESC") else "") for term, name in zip(order, names, strict=True))
    rows = bind(args, limit)
    return f"""
        SELECT {", ".join(_FIELDS)}, candidates FROM (
            SELECT *, count(*) OVER () AS candidates, row_number() OVER ordered AS place,
                   sum({_SIZE}) OVER ordered AS bytes
            FROM (
                SELECT {_PLAIN}, {", ".join(names)} FROM (
                    SELECT *, {keys} FROM {table} WHERE {condition} ORDER BY {by} LIMIT {rows}::bigint + 1
                ) AS matching
            ) AS plain WINDOW ordered AS (ORDER BY {by})
        ) AS measured
        WHERE place <= {rows} AND (bytes <= {bind(args, max_bytes)}::bigint OR place = 1) ORDER BY {by}"""


def found(rows: Sequence[asyncpg.Record]) -> Found:
    """The records of a statement of `first_rows`."""
    records = [StoredRecord(*tuple(row)[:-1]) for row in rows]
    return Found(records, complete=not rows or rows[0]["candidates"] == len(rows))
