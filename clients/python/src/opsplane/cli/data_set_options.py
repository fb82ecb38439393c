"""Options of `opsplane loadtest data-sets create` and `test`: a file, or a query to ClickHouse."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from opsplane.cli.durations import DURATION
from opsplane.cli.passwords import FILE, given_password, password_options, read_text
from opsplane.loadtesting.v1 import datasets_pb2

Command = TypeVar("Command", bound=Callable[..., Any])

FORMATS = {
    "csv": datasets_pb2.ROW_FORMAT_CSV,
    "json": datasets_pb2.ROW_FORMAT_JSON,
    "jsonl": datasets_pb2.ROW_FORMAT_JSON_LINES,
}
_SUFFIXES = FORMATS | {"ndjson": datasets_pb2.ROW_FORMAT_JSON_LINES}
_MOST_BYTES = 16 * 1024 * 1024
_QUERY_OPTIONS = ("host", "port", "database", "user", "ask_password", "password_file", "password_env", "tls",
                  "timeout", "row_limit")  # fmt: skip

# Kubernetes sets CLICKHOUSE_PORT to such an address where a Service is called `clickhouse`.
_LINK = re.compile(r"(tcp|udp)://")


def source_options(command: Command) -> Command:
    """The options that say where rows come from; `build_source` takes them."""
    for option in reversed(
        (
            click.option("--file", "-f", "file", type=FILE, help="File with rows; - is standard input."),
            click.option("--format", "form", type=click.Choice([*FORMATS]),
                         help="What the file holds.  [default: by its suffix]"),
            click.option("--query", "-q", help="SELECT to send to a ClickHouse server, instead of a file."),
            click.option("--query-file", type=FILE, help="The same from a file; - is standard input."),
            click.option("--host", help="Host of the ClickHouse server.  [default: CLICKHOUSE_HOST]"),
            click.option("--port", type=click.IntRange(1, 65535),
                         help="Its native port.  [default: CLICKHOUSE_PORT, else 9000, with TLS 9440]"),
            click.option("--database", help="Database.  [default: CLICKHOUSE_DATABASE, else default]"),
            click.option("--user", help="User.  [default: CLICKHOUSE_USER, else default]"),
            password_options,
            click.option("--tls", is_flag=True, help="Use TLS and check the certificate of the ClickHouse server."),
            click.option("--timeout", type=DURATION, help="How long the query may take.  [default: 30s]"),
            click.option("--rows", "row_limit", type=click.IntRange(1, 1_000_000),
                         help="Most rows to take of the query.  [default: 10000]"),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def build_source(options: Mapping[str, Any]) -> datasets_pb2.DataSet:
    """The data set of the options. Raises UsageError."""
    given = [name for name in ("file", "query", "query_file") if options[name] is not None]
    if len(given) != 1:
        raise click.UsageError("give one of --file, --query and --query-file")
    if given == ["file"]:
        unused = [name for name in _QUERY_OPTIONS if options[name]]
        if unused:
            names = ", ".join("--rows" if name == "row_limit" else f"--{name.replace('_', '-')}" for name in unused)
            raise click.UsageError(f"{names} is for queries, not for files")
        return datasets_pb2.DataSet(upload=_upload(options["file"], options["form"]))
    if options["form"] is not None:
        raise click.UsageError("--format is for files, not for queries")
    text = options["query"] if options["query"] is not None else read_text(options["query_file"])
    return datasets_pb2.DataSet(clickhouse=_query(text, options))


def _upload(file: Path, form: str | None) -> datasets_pb2.UploadedRows:
    row_format = FORMATS[form] if form else _SUFFIXES.get(file.suffix.removeprefix(".").lower())
    if row_format is None:
        raise click.UsageError(f"{file}: give --format, one of {', '.join(FORMATS)}")
    try:
        if str(file) == "-":
            content = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with file.open("rb") as stream:
                content = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise click.UsageError(f"{file}: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise click.UsageError(f"{file}: has more than 16 MiB")
    return datasets_pb2.UploadedRows(format=row_format, content=content)


def _query(text: str, options: Mapping[str, Any]) -> datasets_pb2.ClickHouseQuery:
    host = options["host"] or _variable("HOST")
    if not host:
        raise click.UsageError("give the ClickHouse server with --host or CLICKHOUSE_HOST")
    password = given_password(options, "the ClickHouse user")
    query = datasets_pb2.ClickHouseQuery(
        host=host,
        port=options["port"] or _port(),
        database=options["database"] or _variable("DATABASE"),
        user=options["user"] or _variable("USER"),
        password=_variable("PASSWORD") if password is None else password,
        query=text,
        tls=options["tls"],
        limit=options["row_limit"] or 0,
    )
    timeout: timedelta | None = options["timeout"]
    if timeout is not None:
        query.timeout.FromTimedelta(timeout)
    return query


def _port() -> int:
    text = _variable("PORT")
    if not text or _LINK.match(text):
        return 0
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise click.UsageError(f"CLICKHOUSE_PORT: {text!r} is no port")
    return int(text)


def _variable(name: str) -> str:
    return os.environ.get(f"CLICKHOUSE_{name}", "")
