"""Where the rows of a data set come from, as people say it on the command line."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from opsplane.cli.data_set_options import build_source, source_options
from opsplane.loadtesting.v1 import datasets_pb2


def build(*arguments: str, stdin: str = "", **variables: str) -> datasets_pb2.DataSet:
    """The data set, or UsageError."""
    found: list[datasets_pb2.DataSet] = []

    @click.command()
    @source_options
    def command(**options: Any) -> None:
        found.append(build_source(options))

    environment = {f"CLICKHOUSE_{name}": value for name, value in variables.items()}
    result = CliRunner().invoke(command, arguments, input=stdin, env=environment, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return found[0]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.csv", datasets_pb2.ROW_FORMAT_CSV),
        ("a.JSON", datasets_pb2.ROW_FORMAT_JSON),
        ("a.jsonl", datasets_pb2.ROW_FORMAT_JSON_LINES),
        ("a.ndjson", datasets_pb2.ROW_FORMAT_JSON_LINES),
    ],
)
def test_format_follows_from_the_suffix(tmp_path: Path, name: str, form: int) -> None:
    (tmp_path / name).write_bytes(b"\xff rows")
    upload = build("--file", str(tmp_path / name)).upload
    assert (upload.format, upload.content) == (form, b"\xff rows")
    assert build("--file", str(tmp_path / name), "--format", "csv").upload.format == datasets_pb2.ROW_FORMAT_CSV


def test_file_may_be_standard_input() -> None:
    assert build("-f", "-", "--format", "csv", stdin="a\n1\n").upload.content == b"a\n1\n"
    with pytest.raises(click.UsageError, match="give --format"):
        build("-f", "-", stdin="a\n1\n")


def test_query_takes_its_options() -> None:
    query = build(
        "--query", "SELECT 1", "--host", "db", "--port", "9001", "--database", "shop", "--user", "reader", "--tls",
        "--timeout", "1m", "--rows", "70", "--password-env", "CLICKHOUSE_SECRET", SECRET="sesame", HOST="other",
    ).clickhouse  # fmt: skip
    expected = datasets_pb2.ClickHouseQuery(
        host="db", port=9001, database="shop", user="reader", password="sesame", query="SELECT 1", tls=True, limit=70
    )
    expected.timeout.FromTimedelta(timedelta(minutes=1))
    assert query == expected


def test_query_takes_the_variables_of_clickhouse() -> None:
    known = {"HOST": "db", "PORT": "9001", "DATABASE": "shop", "USER": "reader", "PASSWORD": "sesame"}
    expected = datasets_pb2.ClickHouseQuery(
        host="db", port=9001, database="shop", user="reader", password="sesame", query="SELECT 1"
    )
    assert build("-q", "SELECT 1", **known).clickhouse == expected
    # Kubernetes sets it so for a Service of that name.
    assert build("-q", "SELECT 1", **known | {"PORT": "tcp://10.0.0.1:9000"}).clickhouse.port == 0
    assert build("-q", "SELECT 1", "--user", "me", **known).clickhouse.user == "me"


def test_query_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "sessions.sql"
    file.write_text("SELECT 1\n")
    assert build("--query-file", str(file), "--host", "db").clickhouse.query == "SELECT 1\n"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "give one of --file, --query and --query-file"),
        (("-q", "SELECT 1", "-f", "-"), "give one of --file, --query and --query-file"),
        (("-q", "SELECT 1"), "give the ClickHouse server with --host or CLICKHOUSE_HOST"),
        (("-q", "SELECT 1", "--host", "db", "--format", "csv"), "--format is for files"),
        (("-f", "-", "--format", "csv", "--rows", "3", "--tls"), "--tls, --rows is for queries, not for files"),
        (("-q", "SELECT 1", "--host", "db", "--ask-password"), "nobody can be asked for the password"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: tuple[str, ...], problem: str) -> None:
    with pytest.raises(click.UsageError) as refusal:
        build(*arguments)
    assert problem in refusal.value.message


def test_port_of_the_environment_is_checked() -> None:
    for text in ("x", "0", "65536", "-1"):
        with pytest.raises(click.UsageError, match="is no port"):
            build("-q", "SELECT 1", HOST="db", PORT=text)


def test_file_that_is_too_large_is_not_sent(tmp_path: Path) -> None:
    file = tmp_path / "large.csv"
    with file.open("wb") as stream:
        stream.truncate(16 * 1024 * 1024 + 1)
    with pytest.raises(click.UsageError, match="has more than 16 MiB"):
        build("-f", str(file))
