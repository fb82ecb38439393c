"""`opsplane db parameters|slow|events|usage`."""

from __future__ import annotations

import click

from opsplane.cli.db_figures import EVENT_COLUMNS, event_row
from opsplane.cli.db_names import INSTANCE
from opsplane.cli.durations import format_duration
from opsplane.cli.output import clean, console, local_time, more, one_line, print_json, short, table
from opsplane.cli.session import Session, call, pages, pass_session
from opsplane.instances.v1 import events_pb2, monitoring_pb2, usage_pb2

_ORDERS = {
    "total": monitoring_pb2.SLOW_QUERY_ORDER_TOTAL_TIME,
    "mean": monitoring_pb2.SLOW_QUERY_ORDER_MEAN_TIME,
    "max": monitoring_pb2.SLOW_QUERY_ORDER_MAX_TIME,
    "calls": monitoring_pb2.SLOW_QUERY_ORDER_CALLS,
}
_GRANULARITIES = {
    "hour": usage_pb2.GRANULARITY_HOUR,
    "day": usage_pb2.GRANULARITY_DAY,
    "month": usage_pb2.GRANULARITY_MONTH,
}
_MICROS = 1_000_000


@click.command()
@click.argument("instance", type=INSTANCE)
@click.option("--filter", "filter_", default="", help="Restrict them, for example 'parameter:\"buffers\"'.")
@click.option("--all", "all_", is_flag=True, help="Also those that have the engine's default.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Most to list.")
@pass_session
def parameters(session: Session, instance: str, filter_: str, all_: bool, limit: int) -> None:
    """List the settings of the engine.

    \b
    Examples:
      opsplane db parameters orders
      opsplane db parameters orders --all --filter 'parameter:"wal"'
    """
    request = monitoring_pb2.ListParametersRequest(parent=instance, filter=filter_)
    found = session.run(
        lambda client: pages(client.instances.ListParameters, request, monitoring_pb2.ListParametersResponse, limit)
    )
    if session.as_json:
        print_json(found)
        return
    rows = [
        (
            clean(one.parameter),
            one_line(f"{one.value} {one.unit}".rstrip(), 60),
            monitoring_pb2.ParameterSource.Name(one.source).removeprefix("PARAMETER_SOURCE_").lower().replace("_", " "),
            "restart" if one.requires_restart else "",
            one_line(one.pending_value, 40),
        )
        for one in found.parameters
        if all_ or filter_ or one.source != monitoring_pb2.PARAMETER_SOURCE_ENGINE_DEFAULT
    ]
    console().print(table(("parameter", "value", "from", "needs", "waiting"), rows))
    more(found.next_page_token)


@click.command()
@click.argument("instance", type=INSTANCE)
@click.option("--by", "order", type=click.Choice([*_ORDERS]), default="total", show_default=True, help="Sort by.")
@click.option("--filter", "filter_", default="", help="Restrict them, for example 'mean_time>=100'.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Most of them to list.")
@pass_session
def slow(session: Session, instance: str, order: str, filter_: str, limit: int) -> None:
    """List slow statements.

    \b
    Examples:
      opsplane db slow orders
      opsplane db slow orders --by max --limit 5
    """
    request = monitoring_pb2.ListSlowQueriesRequest(parent=instance, filter=filter_, order=_ORDERS[order])
    found = session.run(
        lambda client: pages(client.instances.ListSlowQueries, request, monitoring_pb2.ListSlowQueriesResponse, limit)
    )
    if session.as_json:
        print_json(found)
        return
    rows = [
        (
            f"{one.calls:,}",
            format_duration(one.total_time.ToTimedelta()),
            format_duration(one.mean_time.ToTimedelta()),
            format_duration(one.max_time.ToTimedelta()),
            clean(one.database),
            one_line(one.query, 120),
        )
        for one in found.slow_queries
    ]
    console().print(table((">calls", ">total", ">mean", ">max", "database", "statement"), rows))
    if found.source == monitoring_pb2.SLOW_QUERY_SOURCE_LOG:
        threshold = format_duration(found.threshold.ToTimedelta())
        click.echo(f"from the log: statements below {threshold} are not counted", err=True)
    more(found.next_page_token)


@click.command()
@click.argument("instance", type=INSTANCE, required=False)
@click.option("--filter", "filter_", default="", help="Restrict them, for example 'severity=\"SEVERITY_ERROR\"'.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most of them to list.")
@pass_session
def events(session: Session, instance: str | None, filter_: str, limit: int) -> None:
    """List what happened to an instance, or to all, newest first.

    \b
    Examples:
      opsplane db events orders
      opsplane db events --filter 'kind="KIND_FAILED_OVER"'
    """
    request = events_pb2.ListEventsRequest(parent=instance or "instances/-", filter=filter_)
    found = session.run(
        lambda client: pages(client.instances.ListEvents, request, events_pb2.ListEventsResponse, limit)
    )
    if session.as_json:
        print_json(found)
        return
    console().print(table(EVENT_COLUMNS, map(event_row, found.events)))
    more(found.next_page_token)


@click.command()
@click.argument("instance", type=INSTANCE, required=False)
@click.option("--by", "granularity", type=click.Choice([*_GRANULARITIES]), default="day", show_default=True,
              help="Spans to sum over.")  # fmt: skip
@click.option("--since", type=click.DateTime(), help="First moment, UTC.  [default: a day ago]")
@click.option("--until", type=click.DateTime(), help="Moment after the last, UTC.  [default: now]")
@pass_session
def usage(session: Session, instance: str | None, granularity: str, since: object, until: object) -> None:
    """Show what an instance, or all of them, used and what it costs at the configured rates.

    \b
    Examples:
      opsplane db usage orders --by hour
      opsplane db usage --since 2026-11-01 --by month
    """
    request = usage_pb2.GetUsageRequest(
        name=instance or "instances/-", granularity=_GRANULARITIES[granularity], page_size=1000
    )
    if since is not None:
        request.start_time.FromDatetime(since)  # type: ignore[arg-type]
    if until is not None:
        request.end_time.FromDatetime(until)  # type: ignore[arg-type]
    found = session.run(lambda client: call(client.instances.GetUsage, request, usage_pb2.GetUsageResponse))
    if session.as_json:
        print_json(found)
        return
    rows = [_usage_row(one, found.currency_code) for one in found.usage]
    rows.append(_usage_row(found.total, found.currency_code, title="total"))
    columns = ("from", "instance", ">core h", ">memory GiB h", ">storage GiB h", ">backups GiB h", ">cost")
    console().print(table(columns, rows))


def _usage_row(usage: usage_pb2.Usage, currency: str, *, title: str = "") -> tuple[str, ...]:
    return (
        title or local_time(usage.start_time),
        short(usage.instance),
        f"{usage.cpu_core_hours:,.2f}",
        f"{usage.memory_gib_hours:,.2f}",
        f"{usage.storage_gib_hours:,.2f}",
        f"{usage.backup_gib_hours:,.2f}",
        f"{usage.cost_micros / _MICROS:,.2f} {currency}".rstrip(),
    )
