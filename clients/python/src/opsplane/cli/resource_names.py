"""Resources on the command line: by id, or by the whole name."""

from __future__ import annotations

import re
from typing import Any, Final

import click

ID: Final = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"


class NameType(click.ParamType[str]):
    """A resource of a collection by id or name; its value is the name."""

    def __init__(self, name: str, collection: str) -> None:
        self.name = name
        self._collection = collection
        self._pattern = re.compile(rf"(?:{collection}/)?({ID})")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Fails if it is neither."""
        found = self._pattern.fullmatch(str(value))
        if not found:
            self.fail(
                f"{value!r} is no {self.name}: lower-case letters, digits and '-', starting with a letter", param, ctx
            )
        return f"{self._collection}/{found[1]}"
