"""`opsplane loadtest data-sets`: rows that simulated users draw from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import click
from google.protobuf import json_format
from google.protobuf.empty_pb2 import Empty

from opsplane.cli.data_set_options import build_source, source_options
from opsplane.cli.durations import format_duration
from opsplane.cli.names import data_set_name, project_option
from opsplane.cli.output import clean, console, local_time, more, one_line, print_json, short, table
from opsplane.cli.session import Session, call, pages, pass_session
from opsplane.client import Client, new_request_id
from opsplane.loadtesting.v1 import datasets_pb2

_FORMAT_NAMES = {
    datasets_pb2.ROW_FORMAT_CSV: "CSV",
    datasets_pb2.ROW_FORMAT_JSON: "JSON",
    datasets_pb2.ROW_FORMAT_JSON_LINES: "JSON lines",
}
_DEFAULT_QUERY_TIME = timedelta(seconds=30)
# Files are sent and read, connections made.
_REST_OF_CALL = timedelta(seconds=120)


@click.group("data-sets")
def data_sets() -> None:
    """Data sets: rows that simulated users draw from.

    A file with rows (CSV with a header line, a JSON array of objects, or a JSON object a line), or a query to a
    ClickHouse server that is run whenever a run starts. Pools of run files name them: `data_set: sessions`.

    \b
    Examples:
      opsplane loadtest data-sets create bundles -p shop --file bundles.csv
      opsplane loadtest data-sets test -p shop --query "SELECT id, user_id FROM sessions" --host clickhouse
    """


@data_sets.command("create")
@click.argument("data_set_id", metavar="ID")
@project_option()
@click.option("--title", default="", help="What people call it.")
@source_options
@pass_session
def create_data_set(session: Session, /, data_set_id: str, project: str, title: str, **options: Any) -> None:
    """Create a data set of a file or of a query.

    A file is read at once. A query is not run before a run needs it; `data-sets test` tries it. The server keeps its
    password encrypted and never shows it.

    \b
    Examples:
      opsplane loadtest data-sets create bundles -p shop --file bundles.csv
      opsplane loadtest data-sets create sessions -p shop --query-file sessions.sql --host clickhouse --user reader \\
        --ask-password --rows 1000
    """
    data_set = build_source(options)
    data_set.title = title
    request = datasets_pb2.CreateDataSetRequest(
        parent=project, data_set=data_set, data_set_id=data_set_id, request_id=new_request_id()
    )
    _print_data_set(
        session, session.run(lambda client: call(client.load_testing.CreateDataSet, request, datasets_pb2.DataSet))
    )


@data_sets.command("test")
@project_option()
@source_options
@click.option("--samples", type=click.IntRange(1, 100), default=5, show_default=True, help="Most rows to show.")
@pass_session
def test_data_set(session: Session, /, project: str, samples: int, **options: Any) -> None:
    """Try a file or a query, and show its first rows. Nothing is kept.

    \b
    Examples:
      opsplane loadtest data-sets test -p shop --file bundles.csv
      CLICKHOUSE_HOST=clickhouse CLICKHOUSE_PASSWORD=... \\
        opsplane loadtest data-sets test -p shop --query "SELECT id FROM bundles" --rows 500
    """
    data_set = build_source(options)
    request = datasets_pb2.TestDataSetRequest(parent=project, data_set=data_set, sample_size=samples)
    timeout = options["timeout"] or _DEFAULT_QUERY_TIME

    async def work(client: Client) -> datasets_pb2.TestDataSetResponse:
        seconds = (timeout + _REST_OF_CALL).total_seconds()
        return await client.load_testing.TestDataSet(request, timeout=seconds)

    found = session.run(work)
    if session.as_json:
        print_json(found)
        return
    rows = [json_format.MessageToDict(sample) for sample in found.samples]
    console().print(table(found.fields, [[_cell(row.get(name)) for name in found.fields] for row in rows]))
    took = format_duration(found.duration.ToTimedelta())
    count = f"{found.row_count:,} row{'s' if found.row_count != 1 else ''}"
    click.echo(f"\n{count} in {took}, {len(rows)} shown")


@data_sets.command("list")
@project_option()
@click.option("--filter", "filter_", default="", help="Restrict them, for example 'title:session'.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most of them to list.")
@pass_session
def list_data_sets(session: Session, project: str, filter_: str, limit: int) -> None:
    """List the data sets of a project, newest first.

    \b
    Example:
      opsplane loadtest data-sets list -p shop
    """
    request = datasets_pb2.ListDataSetsRequest(parent=project, filter=filter_)
    found = session.run(
        lambda client: pages(client.load_testing.ListDataSets, request, datasets_pb2.ListDataSetsResponse, limit)
    )
    if session.as_json:
        print_json(found)
        return
    rows = [
        (short(each.name), one_line(each.title), _source(each), _row_count(each), one_line(_fields(each.fields)),
         local_time(each.create_time))
        for each in found.data_sets
    ]  # fmt: skip
    console().print(table(("data set", "title", "source", ">rows", "fields", "created"), rows))
    more(found.next_page_token)


@data_sets.command("show")
@click.argument("data_set")
@project_option(required=False)
@pass_session
def show_data_set(session: Session, data_set: str, project: str | None) -> None:
    """Show a data set, without its rows.

    \b
    Example:
      opsplane loadtest data-sets show shop/sessions
    """
    request = datasets_pb2.GetDataSetRequest(name=data_set_name(data_set, project))
    _print_data_set(
        session, session.run(lambda client: call(client.load_testing.GetDataSet, request, datasets_pb2.DataSet))
    )


@data_sets.command("delete")
@click.argument("data_set")
@project_option(required=False)
@pass_session
def delete_data_set(session: Session, data_set: str, project: str | None) -> None:
    """Delete a data set. Runs that used it keep their own copy of its rows.

    \b
    Example:
      opsplane loadtest data-sets delete shop/sessions
    """
    request = datasets_pb2.DeleteDataSetRequest(name=data_set_name(data_set, project), request_id=new_request_id())
    session.run(lambda client: call(client.load_testing.DeleteDataSet, request, Empty))
    click.echo(f"deleted {request.name}", err=True)


def _print_data_set(session: Session, data_set: datasets_pb2.DataSet) -> None:
    if session.as_json:
        print_json(data_set)
        return
    query = data_set.clickhouse
    facts = {
        "name": data_set.name,
        "title": data_set.title,
        "source": _source(data_set),
        "database": query.database,
        "user": query.user,
        "timeout": format_duration(query.timeout.ToTimedelta()) if query.HasField("timeout") else "",
        "at most": f"{query.limit:,} rows" if query.limit else "",
        "rows": _row_count(data_set),
        "fields": _fields(data_set.fields),
        "sha256": data_set.sha256,
        "created": local_time(data_set.create_time),
        "query": query.query.strip(),
    }
    result = table(("", ""), [(name, clean(value)) for name, value in facts.items() if value])
    result.show_header = False
    console().print(result)


def _source(data_set: datasets_pb2.DataSet) -> str:
    if data_set.WhichOneof("source") == "upload":
        return _FORMAT_NAMES.get(data_set.upload.format, "file")
    query = data_set.clickhouse
    port = query.port or (9440 if query.tls else 9000)
    return clean(f"ClickHouse {query.host}:{port}{' with TLS' if query.tls else ''}")


def _row_count(data_set: datasets_pb2.DataSet) -> str:
    """Nobody knows it of a query that has never run."""
    return f"{data_set.row_count:,}" if data_set.fields else "-"


def _fields(names: Iterable[str]) -> str:
    return ", ".join(names)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return one_line(value if isinstance(value, str) else json.dumps(_whole(value), ensure_ascii=False), 60)


def _whole(value: Any) -> Any:
    """Numbers come as doubles."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [_whole(item) for item in value]
        case dict():
            return {key: _whole(item) for key, item in value.items()}
    return value
