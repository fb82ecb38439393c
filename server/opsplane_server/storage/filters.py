"""Parsed filters (see `opsplane_server.rpc.filters`) as SQL conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

_TEMPLATES = {
    "=": "{column} = {value}",
    "!=": "{column} IS DISTINCT FROM {value}",  # a row without a value differs from any value
    "<": "{column} < {value}",
    "<=": "{column} <= {value}",
    ">": "{column} > {value}",
    ">=": "{column} >= {value}",
    ":": "strpos(lower({column}), lower({value}::text)) > 0",
}


class Condition(Protocol):
    """`field op value`, as the parser gives it."""

    @property
    def field(self) -> str:
        """A key of `columns`."""

    @property
    def op(self) -> str:
        """One of `= != < <= > >= :`."""

    @property
    def value(self) -> object:
        """Of the Python type that asyncpg takes for the column."""


def where(conditions: Iterable[Condition], columns: Mapping[str, str], args: list[object]) -> str:
    """The condition that all of `conditions` make, for the place after WHERE or AND; `TRUE` when there is none.

    `columns` maps each field to its column, or to an SQL expression in parentheses. Values never enter the text:
    they are appended to `args`, which already holds the values of the statement's earlier `$n`. `:` (contains)
    ignores case.
    """
    terms = []
    for condition in conditions:
        args.append(condition.value)
        template = _TEMPLATES[condition.op]
        terms.append(template.format(column=columns[condition.field], value=f"${len(args)}"))
    return " AND ".join(terms) or "TRUE"
