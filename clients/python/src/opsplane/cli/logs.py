"""`opsplane logs`: shipping log records, searching and following them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click
from rich.text import Text

from opsplane.cli.logs_filters import MOMENT, build_query, query_options, timestamp
from opsplane.cli.logs_ship import ship
from opsplane.cli.logs_view import LEVEL_STYLES, entry_text, level_name, moment
from opsplane.cli.output import console, local_time, one_line, print_json, print_json_line, table
from opsplane.cli.session import Session, call, pass_session
from opsplane.client import Client
from opsplane.logingest.v1 import logingest_pb2, queries_pb2

_PAGE = 1000


@click.group()
def logs() -> None:
    """Ship, search and follow log records.

    \b
    Examples:
      opsplane logs ship -f /var/log/app.log --service orders
      opsplane logs tail --level warn
      opsplane logs search "connection lost" --since 1h
    """


logs.add_command(ship)


@logs.command()
@click.argument("words", metavar="[WORD...]", nargs=-1)
@query_options
@click.option("--since", type=MOMENT, help="Only from this time on: 1h, 2026-11-21, or 2026-11-21T09:30:00Z.")
@click.option("--until", type=MOMENT, help="Only before this time, written likewise.")
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=100, show_default=True, help="Most records to show."
)
@click.option("--full", is_flag=True, help="Show stack traces, ids, and values uncut.")
@pass_session
def search(
    session: Session,
    /,
    words: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    limit: int,
    full: bool,
    **options: Any,
) -> None:
    """Find records, newest first.

    All WORDs must stand in the message, error type or stack trace, in any case; word* finds what begins so. With
    -o json each record is a line.

    \b
    Examples:
      opsplane logs search timeout --service orders --level error --since 1h
      opsplane logs search "connection lost" --meta order.id=42 --full
      opsplane logs search --trace 4bf92f3577b34da6a3ce929d0e0e4736 --limit 1000
      opsplane -o json logs search --filter 'http_status >= 500' | jq -r .record.httpPath
    """
    if since is not None and until is not None and since >= until:
        raise click.UsageError("--until must be after --since")
    request = logingest_pb2.SearchLogsRequest(
        query=build_query(words, **options), start_time=timestamp(since), end_time=timestamp(until)
    )
    show = _printer(session, full=full)
    looking = sys.stderr.isatty()

    async def work(client: Client) -> None:
        shown = 0
        while True:
            request.page_size = min(limit - shown, _PAGE)
            page = await call(client.log_ingest.SearchLogs, request, logingest_pb2.SearchLogsResponse)
            for entry in page.entries:
                show(entry)
            shown += len(page.entries)
            request.page_token = page.next_page_token
            if looking:
                click.echo("\x1b[K", nl=False, err=True)
            if not page.next_page_token:
                return
            back_to = moment(page.searched_back_to) if page.HasField("searched_back_to") else ""
            if shown >= limit:
                click.echo(
                    f"there may be more: searched back to {back_to}; give a higher --limit, or --until", err=True
                )
                return
            if looking:
                click.echo(f"\r\x1b[Ksearched back to {back_to}\r", nl=False, err=True)

    session.run(work)


@logs.command()
@click.argument("words", metavar="[WORD...]", nargs=-1)
@query_options
@click.option(
    "--backlog", "-n", type=click.IntRange(0, 1000), default=10, show_default=True, help="Newest records to begin with."
)
@click.option("--full", is_flag=True, help="Show stack traces, ids, and values uncut.")
@pass_session
def tail(session: Session, /, words: tuple[str, ...], backlog: int, full: bool, **options: Any) -> None:
    """Follow records as they are stored, until Ctrl-C.

    When its server goes away it reconnects and goes on after the last record that it showed. It says so when records
    were left out because they came faster than they could be shown; search finds them. With -o json each record is a
    line.

    \b
    Examples:
      opsplane logs tail
      opsplane logs tail --service orders --level warn -n 100
      opsplane -o json logs tail timeout | jq -r .record.message
    """
    query = build_query(words, **options)
    show = _printer(session, full=full)

    async def work(client: Client) -> None:
        def reconnecting() -> None:
            click.echo("connection lost, reconnecting", err=True)

        async for response in client.tail_logs(query, backlog=backlog, on_reconnect=reconnecting):
            if response.dropped_count:
                click.echo(f"{response.dropped_count:,} records were left out here; search finds them", err=True)
            for entry in response.entries:
                show(entry)
            sys.stdout.flush()

    session.run(work)


@logs.command()
@click.option("--service", "-s", "services", multiple=True, help="Only of this service; repeatable.")
@click.option("--since", type=MOMENT, help="Only from this time on: 24h, 2026-11-21, or 2026-11-21T09:30:00Z.")
@click.option("--until", type=MOMENT, help="Only before this time, written likewise.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Most services to list.")
@pass_session
def stats(
    session: Session, services: tuple[str, ...], since: datetime | None, until: datetime | None, limit: int
) -> None:
    """Count records by service and level.

    \b
    Examples:
      opsplane logs stats
      opsplane logs stats --service orders --since 24h
    """
    if since is not None and until is not None and since >= until:
        raise click.UsageError("--until must be after --since")
    request = logingest_pb2.GetStatsRequest(
        services=services, start_time=timestamp(since), end_time=timestamp(until), max_services=limit
    )
    found = session.run(lambda client: call(client.log_ingest.GetStats, request, logingest_pb2.GetStatsResponse))
    if session.as_json:
        print_json(found)
        return
    facts = [
        ("records", f"{found.total_count:,}"),
        ("last 24 h", f"{found.last_24h_count:,}"),
        ("oldest", local_time(found.oldest_time)),
        ("newest", local_time(found.newest_time)),
        ("on disk", f"{found.stored_bytes / 1e6:,.1f} MB"),
        ("counted up to", local_time(found.as_of_time)),
    ]
    overview = table(("", ""), facts)
    overview.show_header = False
    console().print(overview)
    if not found.services:
        return
    levels = [count.level for count in found.levels]
    rows = []
    for service in found.services:
        counts = {count.level: count.count for count in service.levels}
        rows.append(
            (
                one_line(service.service),
                f"{service.count:,}",
                *(
                    Text(f"{counts[level]:,}", style=LEVEL_STYLES.get(level, "")) if level in counts else ""
                    for level in levels
                ),
            )
        )
    columns = ("service", ">records", *(f">{level_name(level).lower()}" for level in levels))
    console().print()
    console().print(table(columns, rows))
    if found.service_count > len(found.services):
        click.echo(f"there are {found.service_count} services: give a higher --limit", err=True)


def _printer(session: Session, *, full: bool) -> Callable[[queries_pb2.LogEntry], None]:
    if session.as_json:
        return print_json_line
    out = console()
    out.soft_wrap = True  # a record that is wrapped by the terminal itself can be copied

    def show(entry: queries_pb2.LogEntry) -> None:
        out.print(entry_text(entry, full=full))

    return show
