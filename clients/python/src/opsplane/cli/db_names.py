"""Instances, backups and schedules on the command line, and pairs of keys and values."""

from __future__ import annotations

import re
from collections.abc import Iterable

import click

from opsplane.cli.resource_names import NameType

_LABEL = re.compile(r"([^=]+)=(.*)", re.DOTALL)


INSTANCE = NameType("instance", "instances")
BACKUP = NameType("backup", "backups")
SCHEDULE = NameType("schedule", "schedules")


def pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    """`KEY=VALUE` of a repeated option. Raises UsageError."""
    found = {}
    for text in texts:
        match = _LABEL.fullmatch(text)
        if not match:
            raise click.UsageError(f"{option} {text!r}: write KEY=VALUE")
        found[match[1]] = match[2]
    return found
