"""How all lists of this room are read: filtered, by a key that grows with age, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opsplane_server.loadtesting import names
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.filters import where


def page_of(
    select: str,
    *,
    key: str,
    page: PageRequest,
    conditions: Sequence[Condition],
    columns: Mapping[str, str],
    arrays: Mapping[str, str] | None = None,
    parents: Mapping[str, str | int] | None = None,
    newest_first: bool = True,
) -> tuple[str, list[object]]:
    """The query and its arguments for one row more than a page, so that the caller knows whether another follows.

    `columns` maps fields of filters to columns, `arrays` those that are one of an array's values; `parents` maps
    columns to the id that they must have (`-` for any); `key` is the integer column that orders the list.
    """
    args: list[object] = []
    arrays = arrays or {}
    scalar = where([c for c in conditions if c.field not in arrays], columns, args)
    clauses = [scalar]
    for condition in conditions:
        if condition.field in arrays:
            args.append(condition.value)
            holds = f"${len(args)} = ANY ({arrays[condition.field]})"
            clauses.append(f"NOT {holds}" if condition.op == "!=" else holds)
    for column, value in (parents or {}).items():
        if value != names.WILDCARD:
            args.append(value)
            clauses.append(f"{column} = ${len(args)}")
    if page.key:
        args.append(page.key[0])
        clauses.append(f"{key} {'<' if newest_first else '>'} ${len(args)}::bigint")
    args.append(page.size + 1)
    order = "DESC" if newest_first else "ASC"
    return f"{select} WHERE {' AND '.join(clauses)} ORDER BY {key} {order} LIMIT ${len(args)}", args
