"""Filters and pages of lists that engines give whole."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from opsplane_server.rpc.filters import Condition, FieldType
from opsplane_server.rpc.paging import next_page_token, page_request

T = TypeVar("T")

Fields = Mapping[str, FieldType | Collection[str]]

_OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    ":": lambda present, wanted: wanted.lower() in present.lower(),
}


def matching(items: Iterable[T], conditions: Sequence[Condition], values: Mapping[str, Callable[[T], Any]]) -> list[T]:
    """The items that fit all conditions; `values` reads each field of a filter."""
    return [item for item in items if all(_OPERATORS[one.op](values[one.field](item), one.value) for one in conditions)]


def page_by_name(
    items: Sequence[T], name: Callable[[T], str], *, page_size: int, page_token: str, binding: str
) -> tuple[list[T], str]:
    """A page of items, ordered by name, and the token of the next one."""
    page = page_request(page_size, page_token, binding=binding, key_types=(str,))
    rest = sorted(items, key=name)
    if page.key is not None:
        after = str(page.key[0])
        rest = [item for item in rest if name(item) > after]
    shown = rest[: page.size]
    return shown, next_page_token(binding, [name(shown[-1])]) if len(rest) > page.size else ""


def page_by_place(items: Sequence[T], *, page_size: int, page_token: str, binding: str) -> tuple[list[T], str]:
    """A page of items in their order, and the token of the next one."""
    page = page_request(page_size, page_token, binding=binding, key_types=(int,))
    first = max(0, int(page.key[0] or 0)) if page.key is not None else 0
    last = first + page.size
    return list(items[first:last]), next_page_token(binding, [last]) if len(items) > last else ""


def enum_names(prefix: str, names: Iterable[str]) -> frozenset[str]:
    """What a filter may call the values of an enumeration: `STATE_READY` as in the API, and `READY`."""
    return frozenset(spelling for name in names for spelling in (name, prefix + name))


def without_prefixes(conditions: Iterable[Condition], prefixes: Mapping[str, str]) -> list[Condition]:
    """The conditions with the short names of enumerations; `prefixes` by field."""
    return [
        Condition(one.field, one.op, str(one.value).removeprefix(prefixes[one.field])) if one.field in prefixes else one
        for one in conditions
    ]
