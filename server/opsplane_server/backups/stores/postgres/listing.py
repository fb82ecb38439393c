"""How both lists of this room are read: filtered, by a key that grows with age, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.filters import where

LABELS = "labels."


def page_of(
    select: str, *, page: PageRequest, conditions: Sequence[Condition], columns: Mapping[str, str]
) -> tuple[str, list[object]]:
    """The query and its arguments for one row more than a page, so that the caller knows whether another follows.

    `labels.KEY` compares the value of a label, whose key is an argument like any other. A column that ends in `[]` is
    an array, of which one element must fit.
    """
    args: list[object] = []
    clauses: list[str] = []
    for condition in conditions:
        expression = columns.get(condition.field, "")
        if condition.field.startswith(LABELS):
            args.append(condition.field.removeprefix(LABELS))
            clauses.append(where([condition], {condition.field: f"(labels ->> ${len(args)}::text)"}, args))
        elif expression.endswith("[]"):
            column = expression.removesuffix("[]")
            clauses.append(f"EXISTS (SELECT FROM unnest({column}) AS one WHERE {where([condition], _Any(), args)})")
        else:
            clauses.append(where([condition], columns, args))
    if page.key:
        args.append(page.key[0])
        clauses.append(f"key < ${len(args)}::bigint")
    args.append(page.size + 1)
    return f"{select} WHERE {' AND '.join(clauses) or 'TRUE'} ORDER BY key DESC LIMIT ${len(args)}", args


class _Any(dict[str, str]):
    def __missing__(self, field: str) -> str:
        return "one"
