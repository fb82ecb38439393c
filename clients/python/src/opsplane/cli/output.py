"""Printing: tables for people, JSON for programs. What a server sent can not drive the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC

import click
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PIPE_WIDTH = 400  # wide enough that rows stay on one line for grep and awk


def clean(text: str) -> str:
    """Text without control characters but tab and line feed, which could otherwise move the cursor or worse."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def console() -> Console:
    """A console on standard output as it is now."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, soft_wrap=False)


def one_line(text: str, limit: int = 80) -> str:
    """A cell of a table: white space folded, cut at `limit` characters."""
    folded = " ".join(clean(text).split())
    return folded if len(folded) <= limit else folded[: limit - 1] + "…"


def print_json(message: Message) -> None:
    """Prints a message as proto JSON."""
    click.echo(json_format.MessageToJson(message, ensure_ascii=False))


def print_json_line(message: Message) -> None:
    """Prints a message as one line of JSON, for streams."""
    click.echo(json_format.MessageToJson(message, indent=None, ensure_ascii=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, title: str = "") -> Table:
    """A table without lines. A column whose name starts with `>` is right-aligned."""
    result = Table(box=None, title=title or None, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        result.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", header_style="bold"
        )
    for row in rows:
        result.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return result


def more(token: str) -> None:
    """Says on standard error that a list was cut."""
    if token:
        click.echo("there are more: give a higher --limit", err=True)


def local_time(moment: Timestamp) -> str:
    """A time to the second in the zone of this machine; empty when unset."""
    if not moment.ByteSize():
        return ""
    return moment.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def short(name: str) -> str:
    """The last part of a resource name."""
    return name.rpartition("/")[2]
