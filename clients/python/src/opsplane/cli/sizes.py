"""Amounts as people write them: `512Mi`, `2Gi`, `1.5GB`; processors as `500m` or `2`."""

from __future__ import annotations

import re
from typing import Any, Final

import click

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_MILLIS = re.compile(r"([0-9]+)m|([0-9]+(?:\.[0-9]+)?)")


def parse_size(text: str) -> int:
    """Bytes; ValueError for what is no size. `K` is a thousand and `Ki` 1024, as in Kubernetes."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no size; write it like 512Mi, 2Gi or 10G")
    unit = (found[2] or "").upper()
    return round(float(found[1]) * int((1024 if unit.endswith("I") else 1000) ** _POWERS[unit[:1]]))


def parse_millis(text: str) -> int:
    """Thousandths of a core: `500m`, `0.5`, `2`. ValueError for what is none."""
    found = _MILLIS.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no amount of processors; write it like 500m, 0.5 or 2")
    return int(found[1]) if found[1] else round(float(found[2]) * 1000)


class _Amount(click.ParamType[int]):
    def __init__(self, name: str, parse: Any) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Fails with what is wrong."""
        try:
            return value if isinstance(value, int) else int(self._parse(str(value)))
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = _Amount("size", parse_size)
CPU = _Amount("cpu", parse_millis)
